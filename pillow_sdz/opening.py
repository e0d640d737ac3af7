"""Reads the latents of `.sdz` files: of one file, of some of its frames, or of many files at once.

Neither a model nor torch is needed.  Only the latents of `mini` need its networks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import chunks, container, decoding, keywords, scaling, shapes
from .codings.coding import WORK_PER_BYTE, Coding
from .codings.range_coder import DamagedPayload
from .contents import contents
from .header import Header
from .spaces import CodingSpec

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]
File = str | os.PathLike[str] | IO[bytes]
T = TypeVar("T")

# The most values of all frames together.  Chosen: a gigabyte of float32, or 16,384 images of
# 512x512 pixels in 4 channels.
MAX_VALUES = 1 << 28
# The most work of all frames together, in addition to the work that the bytes of the file allow
# (WORK_PER_BYTE).  Chosen: about 20 seconds.  Only thousands of empty frames exceed it.  Codings
# limit the work of each payload, but a file may have very many payloads.
FREE_WORK = 1 << 21
# The most frames that are decoded together, and the most values in them.  So many files are open at
# once, and the values are in memory several times.  Measured: with more frames, a frame takes no
# less time (docs/speed.md#caches-of-latents).  16 latents of FLUX.2 have 3 million values.
TOGETHER = 16
VALUES_TOGETHER = 1 << 22


@dataclass(frozen=True, eq=False)
class Latents:
    """What `open_latents` returns.

    ``latents`` are (C, h, w), or (B, C, h, w) if there are several frames.  Those of a clip are
    (C, T, h, w), and those of several clips (B, C, T, h, w).  They are scaled and shifted as
    diffusers' pipelines return them with ``output_type="latent"``.  ``dtype`` is the type in which
    they were saved without loss, or "float32".  numpy lacks bfloat16: such latents are float32 in
    ``latents``, and bfloat16 in `torch`.

    ``size`` is the picture's (width, height) in pixels, and ``factor`` the number of pixels along
    one side of a latent.  ``step`` is the quantisation step, or None if values have different
    steps.  ``steps`` is T, or 1 without clips.  ``info`` has the other contents of the file, under
    the keywords of `save_latents`: prompt, denoise, exif, icc_profile, xmp, provenance, alpha_mask.
    """

    latents: NDArray[np.float32] | NDArray[np.float16]
    model: str
    size: tuple[int, int]
    factor: int
    coding: str
    step: float | None
    info: dict[str, Any]
    dtype: str = "float32"
    steps: int = 1
    _stored: Array | None = field(default=None, repr=False)  # if stored unscaled

    def torch(self) -> torch.Tensor:
        """The latents as a tensor on the CPU.  It shares their memory, unless it is bfloat16."""
        import torch

        tensor = torch.from_numpy(self.latents)
        return tensor.bfloat16() if self.dtype == "bfloat16" else tensor

    def unscaled(self) -> NDArray[np.float32] | NDArray[np.float16]:
        """The latents as the model's VAE encodes them; ValueError if its scaling is not known.

        If they were saved with ``scaled=False`` and ``lossless``, they come back bit for bit.
        """
        if self._stored is not None:
            return self._stored
        axis = self.latents.ndim - (3 if self.steps == 1 else 4)
        try:
            model = keywords.model_named(self.model)
        except keywords.UnknownModelError:
            msg = f"the scaling of {self.model} latents is not known here"
            raise ValueError(msg) from None
        return scaling.unscaled(self.latents, model, axis)


def open_latents(fp: File, frames: int | slice | Sequence[int] | None = None) -> Latents:
    """Decode the latents in any `.sdz` file; see `Latents`.

    ``frames`` chooses some of the frames (or clips, if the file has clips): a number, a slice or a
    list of numbers.  Other frames are not decoded.  By default, all frames are decoded.

    This needs memory for the result, and 60 MB more, or 25 times the latents of one band if that is
    more.  The model need not be installed or known.  OSError if the file is damaged or not an
    `.sdz` file.  ValueError if it does not have these frames.  `Image.DecompressionBombError` if it
    has a mask with more pixels than Pillow allows.
    """
    with ExitStack() as files:
        return _decoded([_begun(fp, files, frames)])[0]


def open_latents_batch(fps: Iterable[File]) -> Iterator[Latents]:
    """Decode many `.sdz` files, such as a cache for training, in their order; see `open_latents`.

    Latents of the same shape and coding are decoded together.  This takes a third of the time of
    decoding one after another.  At most 16 files are read ahead.
    """
    for some in _parts(fps, TOGETHER):
        with ExitStack() as files:
            found = _decoded([_begun(fp, files, None) for fp in some])
        yield from found


def _parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items; the last one may be shorter."""
    left = iter(items)
    while part := [*islice(left, size)]:
        yield part


class _Begun(NamedTuple):
    """A file whose latents have not been decoded, and which of them are wanted."""

    coding: CodingSpec
    frames: decoding.Frames
    info: Mapping[str, Any]
    numbers: list[int]
    has_batch: bool  # whether the result has an axis of frames
    payloads: list[bytes] | None  # of the wanted frames, if they can be decoded with others

    @property
    def kind(self) -> tuple[Any, ...]:
        """What must be equal for frames to be decoded together."""
        header = self.frames.header
        return self.coding.number, header.latents


def _begun(fp: File, files: ExitStack, wanted: int | slice | Sequence[int] | None) -> _Begun:
    """Read and check all of a file except its latents."""
    if isinstance(fp, (str, os.PathLike)):
        fp = files.enter_context(Path(fp).open("rb"))  # noqa: SIM115  # closed with the others
    reader = container.Reader(fp)
    header = reader.header
    model, coding, entries, info = contents(reader, chunks.KINDS.values())
    for entry in entries:
        if entry.type not in chunks.KINDS and entry.type not in chunks.CODED:
            reader.data(entry)  # checks the CRC
    numbers, has_batch = _numbers(wanted, header.frames, info.get(chunks.CLIP.keyword, 1))
    channels, *shape = header.latents
    if len(numbers) * channels * shape[0] * shape[1] > MAX_VALUES:
        msg = (
            f"{len(numbers)} frames of latents {header.latents} have more than the limit of "
            f"{MAX_VALUES} values"
        )
        raise OSError(msg)
    places = container.Frames(entries, len(reader.bands))
    found = decoding.Frames(header, model, coding, reader.bands, places, reader)
    sizes = [entry.length for entry in entries if entry.type in chunks.CODED]
    if 0 in sizes and any(entry.type == chunks.EXACT for entry in entries):
        msg = "this SDZ file has a frame without latents: all of its pixels are kept exactly"
        raise OSError(msg)
    if complaint := too_much_work(header, found.coder, sum(sizes)):
        raise OSError(complaint)
    payloads = None
    if found.coder.band_rows(*shape) is None and not coding.needs_weights:
        payloads = [reader.data(places.bands(number)[0]) for number in numbers]
    return _Begun(coding, found, info, numbers, has_batch, payloads)


def _numbers(
    wanted: int | slice | Sequence[int] | None, frames: int, steps: int
) -> tuple[list[int], bool]:
    """The numbers of the wanted frames, and whether the result has an axis of frames."""
    count = frames // steps
    if wanted is None:
        return [*range(frames)], count > 1
    if isinstance(wanted, slice):
        pictures = [*range(count)[wanted]]
    else:
        pictures = [wanted] if isinstance(wanted, int) else [*wanted]
    if not pictures or not all(-count <= picture < count for picture in pictures):
        # All time steps of a clip are read together.
        what, each = ("frames", "") if steps == 1 else ("clips", f" of {steps} time steps")
        msg = f"this SDZ file has {count} {what}{each}: it does not have the {what} {wanted}"
        raise ValueError(msg)
    found = [picture % count * steps + step for picture in pictures for step in range(steps)]
    return found, not isinstance(wanted, int)


def _decoded(files: Sequence[_Begun]) -> list[Latents]:
    """The latents of files.  Frames that are alike are decoded together."""
    alike: dict[tuple[Any, ...], list[_Begun]] = {}
    for file in files:
        if file.payloads is not None:
            alike.setdefault(file.kind, []).append(file)
    stored = {id(file): part for some in alike.values() for file, part in _together(some)}
    return [
        _latents(file, stored[id(file)] if id(file) in stored else _band_by_band(file))
        for file in files
    ]


def _together(files: Sequence[_Begun]) -> Iterator[tuple[_Begun, Array]]:
    """The stored latents (N, C, h, w) of files that are alike."""
    channels, *shape = files[0].frames.header.latents
    coder = files[0].frames.coder
    at_once = max(1, min(TOGETHER, VALUES_TOGETHER // (channels * shape[0] * shape[1])))
    wanted = [(file, place) for file in files for place in range(len(file.numbers))]
    stored: dict[int, Array] = {}
    for some in _parts(wanted, at_once):
        payloads = [file.payloads[place] for file, place in some if file.payloads is not None]
        steps = [file.frames.header.quantisation for file, _ in some]
        try:
            parts = coder.decode_together(payloads, (shape[0], shape[1]), steps)
        except DamagedPayload as e:
            for file, place in some:  # one by one, so that the error names the damaged file
                file.frames.decode_stored(file.numbers[place], 0)
            raise OSError(str(e)) from e
        for (file, place), part, step in zip(some, parts, steps, strict=True):
            latents = coder.latents(part, step)
            if id(file) not in stored:
                stored[id(file)] = np.empty((len(file.numbers), channels, *shape), latents.dtype)
            stored[id(file)][place] = latents.transpose(2, 0, 1)
    return ((file, stored[id(file)]) for file in files)


def _band_by_band(file: _Begun) -> Array:
    """The stored latents (N, C, h, w) of a file.  One band at a time is decoded."""
    frames = file.frames
    stored: Array | None = None
    for place, number in enumerate(file.numbers):
        for band, rows in enumerate(frames.bands):
            part = frames.decode_stored(number, band)
            if stored is None:
                stored = np.empty((len(file.numbers), *frames.header.latents), part.dtype)
            stored[place, :, rows] = part.transpose(2, 0, 1)
    assert stored is not None  # a file has at least a frame, and a frame at least a band
    return stored


def _latents(file: _Begun, stored: Array) -> Latents:
    """What a file says of its latents, and the latents."""
    header, coding = file.frames.header, file.coding
    is_unscaled = scaling.is_unscaled(coding, header.quantisation)
    latents = file.frames.as_pipelines_have(stored, 1) if is_unscaled else stored
    steps = file.info.get(chunks.CLIP.keyword, 1)

    def shaped(frames: Array) -> Array:
        pictures = shapes.clips(frames, steps) if steps > 1 else frames
        return pictures if file.has_batch else pictures[0]

    return Latents(
        shaped(latents),
        header.model,
        header.size,
        header.factor,
        coding.name,
        coding.step(header.quantisation),
        _info(file.info),
        coding.lossless or "float32",
        steps,
        shaped(stored) if is_unscaled else None,
    )


def too_much_work(header: Header, coder: Coding, size: int) -> str | None:
    """What is wrong if decoding takes too long for so few bytes, or None."""
    _, height, width = header.latents
    work = header.frames * coder.work(height, width)
    if work <= FREE_WORK + WORK_PER_BYTE * size:
        return None
    return f"{header.frames} frames of latents {header.latents} in {size} bytes are too many"


def _info(found: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the chunks before the latents, under the keywords of `save_latents`."""
    info = {keyword: found[keyword] for keyword in _KEYWORDS if keyword in found}
    if chunks.DENOISING.keyword in found:
        info[chunks.DENOISING.keyword] = found[chunks.DENOISING.keyword].strength / 1000
    return info


_KEYWORDS = [
    kind.keyword for kind in (*chunks.METADATA, chunks.PROMPT, chunks.PROVENANCE, chunks.MASK)
]
