"""Codes the frames of a file: their exact regions, perhaps with alpha, and latents of the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from . import alpha, chunks, coarse, codec, exact, fewer, graphics, regions, scans, vp8l
from .block_maps import Blocks
from .codec import DoesNotFit, EncodedLatents
from .container import Chunk, chunk_size
from .exact_parts import shape_of
from .order import MAX_CHANGES

# With a target size, exact regions are tried at these qualities.  Chosen: the default, and two that
# may have fewer colours.
QUALITIES = (75, 45, 20)
HIGHEST = 100  # the quality that the header says of a file in which all pixels fit
# All pixels of graphics are tried with the levels of these qualities: before exact regions, and
# after them.  Chosen: those of `coarse`.
FINE, COARSE = (HIGHEST, 95, 75, scans.PIXELS_FROM), (60, 45, 20)
# Then exact regions of graphics have so many colours, while their squared error is at most this
# part of their contrast.  Chosen: half each time, and 3 for letters on paper.  Measured:
# docs/measurements.md#graphics-exact-and-regions.
FEW, MOST_ERROR = (32, 16, 8, 4, 3, 2), 0.08

# Exact blocks without strokes, and the latents beside them, take at most so many times the bytes of
# latents alone; and if all of the picture is exact.  Measured on photos of a bright door that were
# JPEGs: 1.9 to 2.7, for one point more, and 5.7 to 8.2.  A chart of half transparent discs that is
# exact takes 4.05 times the bytes, for 20 points more.  Chosen between.
TIMES_OF_LATENTS = {False: 1.5, True: 4.5}


class Given(NamedTuple):
    """A frame of a file that is written: its colours, of mode RGB, and its alpha channel.

    ``hidden``, of mode L, is 255 where nobody sees the pixels; None if all colours must be kept.
    ``alpha``, of mode L, takes ``bytes_of_alpha`` bytes as a chunk of its own.  It is None if it
    has one level.
    """

    image: Image.Image
    hidden: Image.Image | None
    alpha: Image.Image | None = None
    bytes_of_alpha: int = 0


class Coder:
    """Codes the frames of a file, images of mode RGB: the exact regions, and latents of the rest.

    ``latents`` are the rows and columns of the latents.  Without ``wanted``, nothing is exact.
    """

    def __init__(
        self,
        encoder: codec.Encoder,
        latents: tuple[int, int],
        *,
        wanted: bool,
        quality: float,
        animated: bool,
    ) -> None:
        self._encoder, self._latents = encoder, latents
        self._wanted = wanted and vp8l.is_available()
        self._quality, self._animated = quality, animated
        self._exact = exact.Encoder(MAX_CHANGES if animated else 0)

    def encode(self, given: Given) -> list[Chunk]:
        """The chunks of the next frame.  They may have its alpha channel: `have_alpha`."""
        found = self._found(given, self._quality) if self._wanted else None
        kept = self._kept(found, given, self._exact)
        frame = found if kept else None
        if not self._wanted or self._animated:
            return self._with_latents(given, frame, kept)
        known = None if frame is None else frame.blocks
        if scans.is_scan(given.image, known) and (scan := self._scan(given)) is not None:
            return scan
        coded = self._with_latents(given, frame, kept)
        if frame is not None and (latents := self._far_fewer(given, frame, coded)) is not None:
            return latents
        if frame is not None and (frame.picture is None or frame.only_gradients):
            return coded
        rest = _rest(given.image, frame)
        letters = scans.letters(given.image)
        size, error = _size(coded), self._error(letters, rest, frame)
        most = size + error
        if self._quality >= regions.EXACT_FROM and (found is None or found.is_photo):
            most = min(most, scans.TIMES_OF_LETTERS * size)
        picture = graphics.Picture(given.image)
        if _is_drawn(found):
            return self._pixels(given, most, most, known) or coded
        if error > size and scans.has_letters(picture, letters, rest):
            return self._pixels(given, most, scans.TIMES_OF_LATENTS * size, known) or coded
        return self._exact_if_smaller(given, coded)

    def _with_latents(
        self, given: Given, frame: regions.Frame | None, kept: list[Chunk]
    ) -> list[Chunk]:
        """The chunks of a frame: exact blocks that are ``kept``, and latents of the rest."""
        if frame is None:
            return self._encoder.encode(alpha.replaced(given.image, given.hidden))
        if frame.picture is None:
            return [*kept, *self._nothing()]
        return [*kept, *self._encoder.encode(frame.picture, frame.higher, frame.seen())]

    def _far_fewer(
        self, given: Given, frame: regions.Frame, coded: list[Chunk]
    ) -> list[Chunk] | None:
        """The chunks of latents alone, if exact blocks take far more bytes than they are worth.

        Photos that were JPEGs may have flat parts, and as many repeats as graphics, but no letters.
        """
        pixels = given.image.width * given.image.height
        if frame.is_photo or pixels <= regions.ICON:
            return None  # these have limits of their own
        strokes = float((scans.letters(given.image).strokes & frame.blocks).sum())
        size = _size(coded) - _saved(coded, given) - strokes * scans.worth(self._quality)
        times = TIMES_OF_LATENTS[frame.picture is None]
        if size <= times * regions.FEWEST_BYTES * pixels:
            return None
        latents = self._with_latents(given, None, [])
        return latents if size > times * _size(latents) else None

    def _exact_if_smaller(self, given: Given, coded: list[Chunk]) -> list[Chunk]:
        """The chunks of a small picture: ``coded``, or exact pixels if they take fewer bytes."""
        if given.image.width * given.image.height > regions.SMALL:
            return coded
        frame = regions.whole(alpha.painted(given.image, given.hidden), _size(coded))
        if frame is None:
            return coded
        exactly = [*self._kept(frame, given, self._exact), *self._nothing()]
        return exactly if _size(exactly) < _size(coded) else coded

    def _nothing(self) -> list[Chunk]:
        return self._encoder.encode_nothing(*self._latents)

    def _scan(self, given: Given) -> list[Chunk] | None:
        """The chunks of a scanned page; None if they take too many bytes, as those of photos do."""
        image = alpha.replaced(given.image, given.hidden)
        encoded = self._encoder.encode(image, scans.HIGHER * self._quality)
        if self._quality >= scans.PIXELS_FROM:
            most = scans.TIMES_OF_LATENTS * _size(encoded)
            return self._pixels(given, most, most)
        most = _size(encoded) + self._error(scans.letters(image), _rest(image, None), None)
        return self._pixels(given, most, most) or encoded

    def _error(self, letters: scans.Letters, rest: Blocks, frame: regions.Frame | None) -> float:
        """How many bytes it is worth that a page has errors, and latents of letters in the rest."""
        strokes = float((letters.strokes & rest).sum())
        return (0 if frame is None else frame.error) + strokes * scans.worth(self._quality)

    def _pixels(
        self, given: Given, most: float, most_exact: float, known: Blocks | None = None
    ) -> list[Chunk] | None:
        """The chunks of a page without latents; None if they take more than ``most`` bytes.

        It has coarser levels if it otherwise takes `scans.TIMES_FOR_EXACT` times the bytes; below
        quality `regions.EXACT_FROM`, if it takes more.  If coarser levels show bands, it is exact,
        in ``most_exact`` bytes.  Some blocks are ``known`` to be graphics.
        """
        every = np.ones(shape_of(given.image.size), np.bool_)
        levels = _coarser(given, self._quality)
        if levels is None:
            most = most_exact
        frame = None if levels is None else regions.whole(levels, most, every)
        if frame is not None and frame.coded is not None:
            times = scans.TIMES_FOR_EXACT if self._quality >= regions.EXACT_FROM else 1
            most = min(most, times * len(frame.coded.data))
        frame = regions.whole(alpha.painted(given.image, given.hidden), most, known) or frame
        if frame is None:
            return None
        kept = self._kept(frame, given, self._exact)
        return [*kept, *self._nothing()]

    def fit(self, images: Sequence[Given], max_size: int) -> EncodedLatents:
        """The best coding of all frames in ``max_size`` bytes; DoesNotFit if none fits.

        An alpha channel in exact regions takes none of them.
        """
        for quality, frames in self._ways(images, max_size) if self._wanted else ():
            if not any(frames):
                break
            coder = exact.Encoder(MAX_CHANGES)
            kept = [
                self._kept(frame, each, coder) for frame, each in zip(frames, images, strict=True)
            ]
            if not any(kept):
                continue
            frames = [frame if own else None for frame, own in zip(frames, kept, strict=True)]
            saved = sum(_saved(*each) for each in zip(kept, images, strict=True))
            left = max_size + saved - sum(map(_size, kept))
            if all(f is not None and f.picture is None for f in frames):
                nothing = self._nothing()
                if len(frames) * _size(nothing) <= left:
                    coded = [[*each, *nothing] for each in kept]
                    return EncodedLatents(coded, self._encoder.quantisation_of(quality))
                continue
            pictures = [
                alpha.replaced(each.image, each.hidden)
                if f is None
                else f.picture or Image.new("RGB", each.image.size)
                for f, each in zip(frames, images, strict=True)
            ]
            try:
                seen = [None if f is None else f.seen() for f in frames]
                fitted = self._encoder.fit(pictures, left, seen)
            except DoesNotFit:
                continue
            # The exact regions must leave enough bytes for the rest.
            if self.quality_of(fitted) >= quality:
                coded = [[*own, *rest] for own, rest in zip(kept, fitted.frames, strict=True)]
                return EncodedLatents(coded, fitted.quantisation)
        pictures = [alpha.replaced(each.image, each.hidden) for each in images]
        return self._encoder.fit(pictures, max_size)

    def quality_of(self, coded: EncodedLatents) -> float:
        """The quality of latents; the highest if their coding has no choice."""
        return self._encoder.coding.said(coded.quantisation).get("quality", HIGHEST)

    def _ways(
        self, images: Sequence[Given], max_size: int
    ) -> Iterator[tuple[int, list[regions.Frame | None]]]:
        """The frames that may fit in ``max_size`` bytes, and the least quality of their latents."""
        best = [self._found(each, QUALITIES[0]) for each in images]
        alone = len(images) == 1
        if alone:
            yield from self._pixels_in(images[0], best[0], max_size, FINE)
        yield QUALITIES[0], best
        for quality in QUALITIES[1:]:
            yield quality, [self._found(each, quality) for each in images]
        if alone:
            yield from self._pixels_in(images[0], best[0], max_size, COARSE)
        if alone and not self._animated and (frame := best[0]) is not None and not frame.is_photo:
            for count in FEW:
                colours, error = fewer.limited(frame.colours, frame.blocks, count)
                if error > MOST_ERROR:
                    break
                coded = exact.coded(colours, frame.blocks)
                yield QUALITIES[-1], [frame._replace(colours=colours, coded=coded)]

    def _pixels_in(
        self,
        given: Given,
        found: regions.Frame | None,
        max_size: int,
        qualities: Sequence[int],
    ) -> Iterator[tuple[int, list[regions.Frame | None]]]:
        """All pixels of a picture at some qualities, if they may fit in ``max_size`` bytes.

        Below `HIGHEST`, they have coarser levels, and the picture must be graphics or a scan.
        """
        is_drawn = _is_drawn(found)
        # Shapes of graphics may repeat, and no estimate knows that.
        known = np.ones(shape_of(given.image.size), np.bool_) if is_drawn else None
        has_levels = is_drawn or scans.is_scan(given.image)
        for quality in qualities:
            pixels: Image.Image | None
            if quality == HIGHEST:
                pixels = alpha.painted(given.image, given.hidden)
                # Colours and alpha together may take half of what they take alone.  Chosen.
                most = max_size if given.alpha is None else 2 * max_size
            elif not has_levels:
                return
            else:
                pixels, most = _coarser(given, quality), max_size
            if pixels is not None and (frame := regions.whole(pixels, most, known)):
                yield quality, [frame]

    def _found(self, given: Given, quality: float) -> regions.Frame | None:
        # In an animation, the colours of still parts must not change.
        return regions.found(given.image, given.hidden, quality, keeps_colours=self._animated)

    def _kept(self, frame: regions.Frame | None, given: Given, coder: exact.Encoder) -> list[Chunk]:
        """A frame's EXCT chunk; nothing if it has no exact blocks, or if they cost too much."""
        if frame is None:
            coder.encode(None, None)
            return []
        data = coder.encode(frame.colours, frame.blocks, frame.coded)
        kept = [Chunk(chunks.EXACT, data)]
        if self._animated:
            return kept
        if frame.picture is None and given.alpha is not None:
            whole = frame.colours.convert("RGB")
            whole.putalpha(given.alpha)
            joint = exact.with_alpha(whole, keeps_hidden=given.hidden is None)
            ways = kept, [Chunk(chunks.EXACT, joint)]
            kept = min(ways, key=lambda way: _size(way) - _saved(way, given))
        return kept if _size(kept) - _saved(kept, given) <= frame.most else []


def _is_drawn(found: regions.Frame | None) -> bool:
    """Whether a picture is graphics.  Flat parts that are larger than the rest are no photo's."""
    return found is not None and (not found.is_photo or bool(2 * found.blocks.mean() > 1))


def _coarser(given: Given, quality: float) -> Image.Image | None:
    """The colours of a frame with coarser levels; None if bands would be seen in them.

    Then latents look better, and take fewer bytes.
    """
    apart = coarse.apart_at(quality)
    levels = coarse.coarser(alpha.replaced(given.image, given.hidden), apart)
    seen, shown = (alpha.painted(image, given.hidden) for image in (given.image, levels))
    return None if coarse.has_bands(seen, shown, apart) else levels


def _rest(image: Image.Image, frame: regions.Frame | None) -> Blocks:
    """The blocks of an image that are not exact."""
    every: Blocks = np.ones(shape_of(image.size), np.bool_)
    return every if frame is None else ~frame.blocks


def _size(coded: Sequence[Chunk]) -> int:
    return sum(chunk_size(len(chunk.data)) for chunk in coded)


def have_alpha(coded: Sequence[Chunk]) -> bool:
    """Whether the chunks of a frame's exact regions and latents have its alpha channel."""
    return any(chunk.type == chunks.EXACT and exact.has_alpha(chunk.data) for chunk in coded)


def _saved(coded: Sequence[Chunk], given: Given) -> int:
    """The bytes that a frame's ALPH chunk need not have, because these chunks have the alpha."""
    if not have_alpha(coded):
        return 0
    return chunk_size(given.bytes_of_alpha) - chunk_size(len(alpha.IN_EXACT))
