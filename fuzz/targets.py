"""The fuzz targets: one function for each layer. It takes bytes, and returns if all is well.

Otherwise it raises an exception that is not in `allowed.ALLOWED`, or an AssertionError if the
result of reading is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from io import BytesIO
from itertools import islice
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from pillow_sdz import (
    catalogue,
    chunks,
    decoding,
    latents,
    models,
    open_latents,
    options,
    spaces,
)
from pillow_sdz import container as format
from pillow_sdz.arrays import Area
from pillow_sdz.codings import adaptive
from pillow_sdz.codings.coding import Coding
from pillow_sdz.codings.context import Context
from pillow_sdz.codings.range_coder import DamagedPayload, SymbolDecoder, Tables
from pillow_sdz.container import Chunk
from pillow_sdz.header import MODES, Header

from .allowed import ALLOWED
from .mutations import repaired

MAX_SIDE = 3  # latents; chosen: a single latent has no neighbours, and the middle one of 3 has all
MAX_FRAMES = 3  # frames that are decoded of a file; chosen: a first, a second, and one more


class Case(NamedTuple):
    """What a header would say of a payload of latents, and the coding of this payload."""

    model: catalogue.ModelSpec
    coding: spaces.CodingSpec
    quantisation: int
    prior: int | None = None

    def coder(self) -> Coding:
        """The coding. It has only one prior if that is named."""
        if self.prior is None:
            return decoding.coder_of(self.model, self.coding)
        return Context(self.model.channels, [self.prior])


# With two channels, one of them has a channel before it. More channels would take more time.
TWO = catalogue.ModelSpec("two", 2, 8, catalogue.NOT_NAMED, latent_space="two")

CASES = (
    Case(catalogue.MINI, spaces.HYPERPRIOR, 5000),
    Case(catalogue.SD_MINI, spaces.CONTEXT, 250, prior=1),
    Case(catalogue.SD_MINI, spaces.CONTEXT, 250, prior=2),
    Case(TWO, spaces.CONTEXT, 250, prior=0),
    Case(TWO, spaces.PALETTE, 34),
    Case(TWO, spaces.FLOAT16, 0),
    Case(TWO, spaces.BFLOAT16, 0),
    Case(TWO, spaces.FLOAT32, 0),
)


def container(data: bytes) -> None:
    """Read chunks, as they are and with right CRCs. Writing them again must give the same bytes."""
    for file in (data, repaired(data)):
        try:
            found = format.read(file)
        except ALLOWED:
            continue
        assert format.write(found) == file
        header = Header.parse(found[0].data)
        with suppress(*ALLOWED):
            catalogue.judge(header)
        for chunk in found:
            kind = chunks.KINDS.get(chunk.type)
            if kind is not None and kind.at_open:
                with suppress(*ALLOWED):
                    kind.parse(chunk.data, header)


def entropy(data: bytes) -> None:
    """Decode a payload. The first byte chooses the case, the second the rows and columns."""
    if len(data) < 2:
        return
    number, payload = data[0] % (len(CASES) + 2), data[2:]
    shape = (data[1] >> 4) % MAX_SIDE + 1, data[1] % MAX_SIDE + 1
    if number >= len(CASES):
        other = _changes if number == len(CASES) else _coder
        with suppress(*ALLOWED, DamagedPayload):
            other(payload, shape)
        return
    case = CASES[number]
    try:
        coder = case.coder()
        integers = coder.decode(payload, shape, case.quantisation)
    except (*ALLOWED, DamagedPayload):
        return
    found = coder.latents(integers, case.quantisation)
    assert found.shape == (*shape, case.model.channels)
    # numpy lacks bfloat16, so it is float32 there.
    assert found.dtype.name == ("float16" if case.coding.lossless == "float16" else "float32")
    assert case.coding.lossless or np.isfinite(found).all()


def _changes(payload: bytes, shape: tuple[int, int]) -> None:
    """Decode what changes in a frame of `mini` that follows a frame of the likeliest latents."""
    height, width = (n * catalogue.MINI.factor for n in shape)
    header = Header(
        "RGB",
        (width, height),
        "mini",
        catalogue.MINI.digest,
        catalogue.MINI.channels,
        catalogue.MINI.factor,
        5000,
        frames=2,
    )
    latents = [[Chunk(chunks.LATENTS, b"")], [Chunk(chunks.CHANGES, payload)]]
    reader = format.Reader(BytesIO(format.write(format.assemble(header, [], latents))))
    frames = format.Frames(reader, bands=1)
    model, coding = catalogue.judge(header)
    found = decoding.Frames(header, model, coding, reader.bands, frames, reader).decode(1, 0)
    assert found.latents.shape == (*shape, catalogue.MINI.channels)


def _coder(payload: bytes, _: object) -> None:
    """The range coder alone, with all of the means and scales."""
    decoder = SymbolDecoder(Tables.shipped(), payload)
    numbers = np.arange(64)
    for _ in range(2):
        decoder.code("latents", (numbers,), 7 * numbers - 99, 3 * numbers // 2)
        decoder.uniform(3, 1000)
    decoder.finish()


def whole(data: bytes) -> None:
    """Repair a file's CRCs, and use it in all ways."""
    data = repaired(data)
    for use in (shown, cropped, reduced, verified, latents_of):
        with suppress(*ALLOWED):
            use(data)


def opened(data: bytes) -> None:
    """Open the picture."""
    with Image.open(BytesIO(data), formats=["SDZ"]):
        pass


def shown(data: bytes) -> None:
    """Decode the first frames."""
    with Image.open(BytesIO(data), formats=["SDZ"]) as im:
        for frame in islice(ImageSequence.Iterator(im), MAX_FRAMES):
            frame.load()
            assert frame.mode in MODES


def cropped(data: bytes) -> None:
    """Decode a part of the picture."""
    with Image.open(BytesIO(data), formats=["SDZ"]) as im:
        im.crop((im.width // 2, im.height // 2, im.width, im.height)).load()


def reduced(data: bytes) -> None:
    """Decode the picture at an eighth of its size."""
    with Image.open(BytesIO(data), formats=["SDZ"]) as im:
        im.draft(None, (1, 1))
        im.load()


def verified(data: bytes) -> None:
    """Open and verify the picture."""
    with Image.open(BytesIO(data), formats=["SDZ"]) as im:
        im.verify()


def latents_of(data: bytes) -> None:
    """Read the latents of all frames."""
    open_latents(BytesIO(data))


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "container": container,
    "entropy": entropy,
    "whole": whole,
}


class _WithoutNetwork:
    """A loaded model whose pictures are grey. The network's work does not depend on its input."""

    def __init__(self, spec: catalogue.ModelSpec) -> None:
        self._loaded, self._factor = models.load(spec), spec.factor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loaded, name)

    def decode(
        self, found: Any, _quantisation: int, *, area: Area | None = None, scale: int = 1
    ) -> Iterator[tuple[Area, NDArray[np.uint8]]]:
        side = self._factor // scale
        rows, columns = (
            slice(part.start * side, part.stop * side)
            for part in area or (slice(0, found.shape[0]), slice(0, found.shape[1]))
        )
        if area is not None:
            found[area]  # decodes them
        shape = rows.stop - rows.start, columns.stop - columns.start, 3
        yield (rows, columns), np.full(shape, 128, np.uint8)


@contextmanager
def light() -> Iterator[None]:
    """Make `whole` take a millisecond: no networks, and limits of about 64x64 pixels.

    tests/test_hostile.py tests the package's own limits.
    """
    grey = {spec: _WithoutNetwork(spec) for spec in catalogue.EMBEDDED.values()}
    with ExitStack() as stack:
        for owner, name, value in (
            (models, "_loaded", grey),
            (Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2),  # Pillow refuses twice as many
            (latents, "MAX_VALUES", 1 << 16),
            (adaptive, "FREE_WORK", 1 << 10),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        # Denoising runs a U-Net, which is also a network. A file may recommend it.
        stack.enter_context(options.override(DENOISE=False))
        yield
