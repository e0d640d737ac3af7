"""Frames <-> chunks: pixels, latents and payloads, for every model and every coding alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import chunks, container, models, order
from .arrays import CELL, Area, Box, Latents, Mapped, Pixels, Quantisation
from .catalogue import ModelSpec, judge, judge_chunks, whole_of
from .codings import CODINGS, quality_map, unseen
from .codings.coding import Coding, Frame
from .codings.range_coder import DamagedPayload
from .codings.target_size import DoesNotFit as DoesNotFit
from .codings.target_size import EncodedLatents as EncodedLatents
from .container import Chunk
from .header import Header
from .scaling import is_unscaled, scaled, unpatched, unscaled
from .spaces import CodingSpec
from .threads import one_blas_thread

Seen = NDArray[np.bool_] | None  # the pixels (H, W) that latents show; None means all of them


class ImagePixels:
    """The pixels (H, W, 3) of an image of mode RGB.  Slicing copies an area."""

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self.shape = image.height, image.width, 3

    def __getitem__(self, area: Area) -> Pixels:
        rows, columns = (
            range(*part.indices(length)) for part, length in zip(area, self.shape, strict=False)
        )
        return np.asarray(self._image.crop((columns.start, rows.start, columns.stop, rows.stop)))


def coder_of(model: ModelSpec, coding: CodingSpec) -> Coding:
    """The coding object for a model's latents.

    OSError if the coding needs the model's weights, and they are not on this computer.
    """
    network = models.load(model) if coding.needs_weights else None
    return CODINGS[coding](model, network)


class Encoder:
    """Turns the frames of a file, images of mode RGB and of one size, into chunks.

    ``quality`` is 1..100; it is ignored if the coding has no choice of quality.  ``effort`` is
    0..9.  With ``predict``, a frame may be stored as the difference from the frame before.
    ``offsets`` (ceil(h/2), ceil(w/2)) says by how many steps of `quality_map` the quality of each
    cell of 2x2 latents (h, w) differs.
    """

    def __init__(
        self,
        model: ModelSpec,
        coding: CodingSpec,
        *,
        quality: float = 75,
        effort: int = 4,
        predict: bool = False,
        offsets: NDArray[np.int32] | None = None,
    ) -> None:
        self.coding = coding
        self._space, self._factor = model.space, model.factor
        self._coder = coder_of(model, coding)
        self._network = models.load(model)
        self._effort, self._predict, self._offsets = effort, predict, offsets
        #: The quantisation for the header.
        self.quantisation = self._coder.quantisation(quality)
        self._encode = self._coder.encoder(self.quantisation, effort, predict=predict)

    def band_rows(self, height: int, width: int) -> int | None:
        """How many rows of latents (height, width) a band has; None if a frame is one band."""
        return self._coder.band_rows(height, width)

    def encode(self, image: Image.Image, higher: float = 0, seen: Seen = None) -> list[Chunk]:
        """The chunks of the next frame, one for each band.

        Its quality is ``higher`` than that of the header, as far as the model allows.
        """
        return self._encode(self._frame(image, higher, seen))

    def encode_nothing(self, height: int, width: int) -> list[Chunk]:
        """The chunks of a frame whose latents (height, width) nobody decodes."""
        # A later frame must not be coded as the difference from this one.
        self._encode = self._coder.encoder(self.quantisation, self._effort, predict=self._predict)
        bands = order.bands(height, self.band_rows(height, width))
        return [Chunk(chunks.LATENTS, b"")] * len(bands)

    def fit(
        self, images: Iterable[Image.Image], max_size: int, seen: Iterable[Seen] = ()
    ) -> EncodedLatents:
        """The best coding of the frames in ``max_size`` bytes of chunks, or DoesNotFit."""
        frames = [self._frame(each, seen=own) for each, own in zip_longest(images, seen)]
        return self._coder.fit(frames, max_size, self._effort, predict=self._predict)

    def _frame(self, image: Image.Image, higher: float = 0, seen: Seen = None) -> Frame:
        pixels, offsets = ImagePixels(image), self._offsets
        steps = round(100 * higher / quality_map.UNIT)
        if steps and self._space.quality_map:
            shape = [-(-side // (CELL * self._factor)) for side in pixels.shape[:2]]
            raised = steps + (np.zeros(shape, np.int32) if offsets is None else offsets)
            offsets = np.minimum(raised, quality_map.LIMIT)
        qualities = quality_map.qualities(self.quantisation, offsets)
        latents = self._network.encode(pixels, qualities)
        hidden = None
        if seen is not None and not self._predict:  # frames are compared with those before
            hidden = unseen.cells(seen, CELL * self._factor)
        return Frame(latents, pixels, offsets, self.quantisation, hidden)


def write(file: Sequence[Chunk]) -> bytes:
    """The bytes of a file with these chunks; ValueError if a reader would refuse it."""
    data = container.write(file)
    try:
        header = Header.parse(file[0].data)
        judge_chunks(*judge(header), {chunk.type for chunk in file})
        for chunk in file:
            if kind := chunks.KINDS.get(chunk.type):
                kind.parse(chunk.data, header)
    except OSError as e:
        raise ValueError(str(e)) from e
    return data


class Frames:
    """The latents of a file's frames.  Each band is decoded when it is asked for.

    ``bands`` has the rows of each band, and ``frames`` says where their chunks lie in the file of
    ``reader``.  With a ``scale``, latents may lack channels that pictures at 1/scale of their size
    do not show.  OSError if the coding has no bands, if they are too large, or if the coding needs
    other weights than those on this computer.
    """

    def __init__(
        self,
        header: Header,
        model: ModelSpec,
        coding: CodingSpec,
        bands: Sequence[slice],
        frames: container.Frames,
        reader: container.Reader,
        scale: int = 1,
    ) -> None:
        rows, columns = bands[0].stop, header.latents[2]
        if coding.band_latents is not None and rows * columns > coding.band_latents:
            # Without a limit, a file of a few bytes could ask for any number of latents.
            msg = f"damaged SDZ file: bands of {rows}x{columns} latents, more than the limit"
            raise OSError(msg)
        if coding.needs_weights and header.digest != model.digest:
            msg = (
                f"this SDZ file needs the model {model.name!r} with the weights "
                f"{header.digest.hex()}, but the installed weights are {model.digest.hex()}"
            )
            raise OSError(msg)
        self.header, self.model, self.coding, self.bands = header, model, coding, bands
        self._frames, self._reader = frames, reader
        self.scale = scale
        self.coder = coder_of(model, coding).draft(scale)
        # For each band: the frame that was decoded last, its integers, and whether all chunks were
        # sound.  A DIFF chunk builds on these integers.
        self._latest: dict[int, tuple[int, Any, bool]] = {}

    def frame(self, number: int, *, lenient: bool = False) -> FrameLatents:
        """One frame.  With ``lenient``, damaged bands are 0 and listed in ``losses``."""
        return FrameLatents(self, number, lenient=lenient)

    def decode(self, number: int, band: int, *, complete: bool = True) -> Band:
        """The latents of a band as pipelines return them; OSError if it is damaged.

        If it need not be ``complete``, a damaged chunk is decoded as far as it goes.
        """
        integers = self._decoded(number, band, complete=complete)
        quantisation = self.header.quantisation
        latents = self.as_pipelines_have(self.coder.latents(integers, quantisation))
        return Band(latents, self.coder.cells(integers, quantisation))

    def as_pipelines_have(self, stored: NDArray[Any], axis: int = -1) -> Latents:
        """Stored latents, scaled and in float32; OSError if their scaling is not known.

        ``axis`` is that of the channels.
        """
        if not is_unscaled(self.coding, self.header.quantisation):
            return stored.astype(np.float32, copy=False)
        try:
            return scaled(stored, self.model, axis)
        except ValueError as e:
            msg = f"SDZ file of unscaled latents: {e}"
            raise OSError(msg) from e

    def decode_stored(self, number: int, band: int) -> NDArray[Any]:
        """As `decode`, but in the coding's dtype, and unscaled if the file has them unscaled."""
        return self.coder.latents(self._decoded(number, band), self.header.quantisation)

    def _decoded(self, number: int, band: int, *, complete: bool = True) -> Any:
        entry = self._frames.band(number, band)
        if entry is None:
            msg = "truncated SDZ file: it ends before the latents do"
            raise OSError(msg)
        rows = self.bands[band]
        shape = rows.stop - rows.start, self.header.latents[2]
        try:
            # Once for all DIFF in a row: entering takes as long as a small DIFF does.
            with one_blas_thread():
                return self._integers(number, band, shape, complete=complete)
        except DamagedPayload as e:
            msg = f"damaged SDZ file: {entry}: {e}"
            raise OSError(msg) from e

    def _integers(self, number: int, band: int, shape: tuple[int, int], *, complete: bool) -> Any:
        """The integers of a band.  For DIFF, the frames that it builds on are decoded first."""
        latest, integers, sound = self._latest.pop(band, (-1, None, True))
        if complete and not sound:
            latest = -1
        first = number  # in the end: the frame whose LATN all DIFF up to this one build on
        while first != latest and self._is_changes(first, band):
            first -= 1
        for frame in range(first + (first == latest), number + 1):
            before = integers if self._is_changes(frame, band) else None
            entry = self._frames.band(frame, band)
            assert entry is not None
            payload, sound = self._payload(entry, complete)
            try:
                integers = self.coder.decode(
                    payload, shape, self.header.quantisation, before, complete=sound
                )
            except DamagedPayload:
                if sound or before is None:
                    raise
                # If a chunk is damaged, its missing changes count as no change.
        # The integers are kept if this frame needs them when it is read again, or the next one
        # does.
        if any(self._is_changes(near, band) for near in (number, number + 1)):
            self._latest[band] = number, integers, complete
        return integers

    def _payload(self, entry: container.Entry, complete: bool) -> tuple[bytes, bool]:
        """The data of a chunk, and whether it is sound; OSError if it is not but must be.

        It must be if ``complete``.
        """
        try:
            return self._reader.data(entry), True
        except OSError:
            if complete:
                raise
            return self._reader.unchecked(entry), False

    def _is_changes(self, number: int, band: int) -> bool:
        """Whether a band is stored as the difference from the frame before."""
        entry = self._frames.band(number, band)
        return entry is not None and entry.type == chunks.CHANGES


class Band(NamedTuple):
    """Latents (h, w, C), and the quantisation: one for all, or one for each cell of 2x2 latents."""

    latents: Latents
    cells: Quantisation


class Loss(NamedTuple):
    """Damaged rows of latents in a frame, the reason, and whether a part of them is shown."""

    rows: slice
    reason: str
    shown: bool


class FrameLatents:
    """The latents (h, w, C) of one frame.  Slicing an area decodes the bands that it needs.

    Bands above the last area are forgotten, so areas are best asked for from top to bottom.
    """

    def __init__(self, frames: Frames, number: int, *, lenient: bool) -> None:
        self.header, self.model = frames.header, frames.model
        self._frames, self._number, self._lenient = frames, number, lenient
        channels, height, width = frames.header.latents
        self.shape = height, width, channels
        self.losses: list[Loss] = []
        self._decoded: dict[int, Band] = {}

    def __getitem__(self, area: Area) -> Latents:
        rows, columns = area
        top, bottom, _ = rows.indices(self.shape[0])
        parts = []
        for number, band in enumerate(self._frames.bands):
            if band.stop <= top:
                self._decoded.pop(number, None)  # nobody asks for it again
            elif band.start < bottom:
                start, stop = max(top, band.start), min(bottom, band.stop)
                latents = self._band(number).latents
                parts.append(latents[start - band.start : stop - band.start, columns])
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def quantisation(self, area: Area) -> int | NDArray[np.int32]:
        """The quantisation of an area: one for each latent (h, w), or one for all of them."""
        rows, columns = area
        parts: list[NDArray[np.int32]] = []
        for number, band in enumerate(self._frames.bands):
            start, stop = max(rows.start, band.start), min(rows.stop, band.stop)
            if start < stop:
                cells = np.atleast_2d(np.asarray(self._band(number).cells, np.int32))
                down, right = (
                    np.arange(start, stop) - band.start,
                    np.arange(*columns.indices(self.shape[1])),
                )
                if cells.size == 1:
                    parts.append(np.full((len(down), len(right)), cells[0, 0]))
                else:
                    parts.append(cells[down[:, None] // CELL, right // CELL])
        found = np.concatenate(parts)
        one = int(found[0, 0])
        return one if (found == one).all() else found

    def _band(self, number: int) -> Band:
        if number not in self._decoded:
            try:
                self._decoded[number] = self._frames.decode(self._number, number)
            except OSError as e:
                if not self._lenient:
                    raise
                self._decoded[number] = self._rescued(number, e)
        return self._decoded[number]

    def _rescued(self, number: int, error: OSError) -> Band:
        """The part of a damaged band that can be decoded; zeros if nothing can."""
        rows = self._frames.bands[number]
        with suppress(OSError):
            begun = self._frames.decode(self._number, number, complete=False)
            self.losses.append(Loss(rows, str(error), shown=True))
            return begun
        self.losses.append(Loss(rows, str(error), shown=False))
        nothing = np.zeros((rows.stop - rows.start, *self.shape[1:]), np.float32)
        return Band(nothing, self.header.quantisation)


def decode(
    latents: FrameLatents,
    *,
    decoder: ModelSpec,
    box: Box,
    scale: int = 1,
    refine: Callable[[Latents], Latents] | None = None,
) -> Iterator[tuple[Box, Pixels]]:
    """The part ``box`` of the picture in RGB, in pieces: the place in the part, and the pixels.

    ``decoder`` is the model that turns the latents into pixels.  ``refine`` changes all latents
    (h, w, C) before.  ``scale`` is one of the decoder's: the picture is decoded at 1/scale of its
    size, and ``box`` is in pixels of the smaller picture.
    """
    header = latents.header
    network = models.load(decoder)
    if decoder.by_area and refine is None:
        area = _area_of(box, header.factor // scale)
        qualities = Mapped(header.quantisation, latents.quantisation)
        pieces = network.decode(latents, qualities, area=area, scale=scale)
    else:
        whole = latents[:, :]
        if not np.isfinite(whole).all():  # lossless codings keep such values
            msg = "the latents have values that are infinite or not a number"
            raise OSError(msg)
        patched = whole_of(latents.model)
        if patched is not None and patched.space == decoder.space:
            whole = scaled(unpatched(unscaled(whole, latents.model)), decoder)
        refined = whole if refine is None else refine(whole)
        pieces = network.decode(refined, header.quantisation, scale=scale)
    left, top, right, bottom = box
    for (rows, columns), pixels in pieces:
        place = (
            max(columns.start, left),
            max(rows.start, top),
            min(columns.stop, right),
            min(rows.stop, bottom),
        )
        kept = pixels[
            place[1] - rows.start : place[3] - rows.start,
            place[0] - columns.start : place[2] - columns.start,
        ]
        yield (place[0] - left, place[1] - top, place[2] - left, place[3] - top), kept


def _area_of(box: Box, factor: int) -> Area:
    """The area of latents that covers a box of pixels; a latent has ``factor`` pixels a side."""
    left, top, right, bottom = box
    return (
        slice(top // factor, -(-bottom // factor)),
        slice(left // factor, -(-right // factor)),
    )
