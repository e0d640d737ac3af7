"""Pixels of frames <-> chunks of their latents, for every model and every coding alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import chunks, container, models, order
from .arrays import CELL, Area, Box, Latents, Mapped, Pixels
from .catalogue import ModelSpec, judge, judge_chunks, whole_of
from .codings import quality_map, unseen
from .codings.coding import Frame
from .codings.target_size import DoesNotFit as DoesNotFit
from .codings.target_size import EncodedLatents as EncodedLatents
from .container import Chunk
from .decoding import FrameLatents, coder_of
from .header import Header
from .scaling import scaled, unpatched, unscaled
from .spaces import CodingSpec

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

    def quantisation_of(self, quality: float) -> int:
        """The quantisation that a header has for this quality, 1..100."""
        return self._coder.quantisation(quality)

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
