"""Codes latents with the hyperprior of their model, band by band and frame after frame."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .. import chunks, cores, order, progress
from ..arrays import CELL, Area, Latents, Mapped, Pixels, Quantisation, Samples
from ..container import Chunk
from ..spaces import HIGHEST_QUALITY, LOWEST_QUALITY, CodingSpec
from ..threads import one_blas_thread
from . import allocation, quality_map, unseen
from .band_encoder import BandEncoder, same
from .coding import Frame, FrameEncoder, finite
from .hyperprior import Coded, HyperPrior, Part
from .lenient import decoder_of
from .places import doubled
from .target_size import DoesNotFit, EncodedLatents, largest, largest_of_slow

# The most rows of latents in a band.  Chosen: to decode a region, whole bands must be decoded.
BAND_ROWS = 64

# From this effort on, an encoder decodes its own result and looks at it.
LOOKING_EFFORT = 4
# With more effort than this, encoding takes seconds.
HIGHEST_QUICK_EFFORT = 4
# The search for a size first searches without looking, until less than one in this many bytes is
# left.  Chosen: a map adds a few per cent to the bytes, or takes a little away.
NEAR = 20
# An encoder looks once for each range of this many hundredths of quality, in the middle of the
# range.  Chosen: a search over qualities then looks seldom, and qualities of one range need similar
# maps.
LOOKED_AT = 500


def looked_at(quality: int) -> int:
    """The quality at which an encoder looks at its result, if it is to encode at ``quality``."""
    return min(quality // LOOKED_AT * LOOKED_AT + LOOKED_AT // 2, HIGHEST_QUALITY)


@runtime_checkable
class Network(Protocol):
    """What this coding needs of a loaded model.  Qualities are in hundredths: the header's, or
    those of all cells."""

    @property
    def prior(self) -> HyperPrior: ...

    @property
    def factor(self) -> int:
        """Pixels along a side of a latent."""
        ...

    def part(self, scale: int) -> Part:
        """What the prior codes of a picture that is decoded at 1/scale of its size."""
        ...

    def seen(self, quality: Quantisation) -> bytes:
        """What `encode` sees of a quality.  If it is equal for two of them, so are the latents."""
        ...

    def encode(self, pixels: Samples, quality: Quantisation) -> Latents:
        """The latents (h, w, C) of pixels."""
        ...

    def decode(
        self,
        latents: Samples,
        quality: int | Mapped,
        *,
        scale: int,
    ) -> Iterator[tuple[Area, Pixels]]:
        """The pixels of latents, tile by tile, as in `models.network`."""
        ...

    def gain(self, quality: Quantisation, height: int = 1, width: int = 1) -> NDArray[np.float32]:
        """How many steps a unit of latent has, (C,) or (height, width, C)."""
        ...

    def refine(
        self,
        pixels: Samples | None,
        steps: NDArray[np.float32],
        quality: Quantisation,
        effort: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Latents in steps, and hyperlatents, neither of them rounded.

        The more ``effort``, the fewer bits they cost.
        """
        ...


class Banded:
    """The coding.  Its quantisation is the quality in hundredths."""

    def __init__(self, spec: CodingSpec, network: Network, scale: int = 1) -> None:
        assert spec.band_latents is not None
        self._spec, self._network = spec, network
        self._limit, self._scale = spec.band_latents, scale

    @classmethod
    def of(cls, spec: CodingSpec, network: object) -> Self:
        """The coding for a loaded model; TypeError if the model has no hyperprior."""
        if not isinstance(network, Network):
            msg = f"{type(network).__name__} is no model with a hyperprior"
            raise TypeError(msg)
        return cls(spec, network)

    def draft(self, scale: int) -> Self:
        return type(self)(self._spec, self._network, scale)

    def quantisation(self, quality: float) -> int:
        return round(100 * quality)

    def band_rows(self, height: int, width: int) -> int | None:
        limit = min(BAND_ROWS, self._limit // width // 2 * 2)
        if height <= limit:
            return None
        return -(-height // -(-height // limit) // 2) * 2  # bands are about equal, and even

    def work(self, height: int, width: int) -> int:
        return 0

    def prepare(self, latents: NDArray[Any], quantisation: int) -> NDArray[Any]:
        return finite(latents)

    def encoder(self, quantisation: int, effort: int, *, predict: bool = False) -> FrameEncoder:
        look = self.allocated if effort >= LOOKING_EFFORT else None
        return _Encoder(self, quantisation, effort, predict=predict, look=look).encode

    def fit(
        self, frames: Sequence[Frame], limit: int, effort: int, *, predict: bool = False
    ) -> EncodedLatents:
        try:
            return self._fitted(frames, limit, effort, predict=predict)
        except DoesNotFit:
            if all(frame.offsets is None for frame in frames):
                raise
        # Protected places get less and less extra quality, until the file fits.
        weaker = [
            f._replace(offsets=quality_map.halved(f.offsets), quantisation=None) for f in frames
        ]
        return self.fit(weaker, limit, effort, predict=predict)

    def _fitted(
        self, frames: Sequence[Frame], limit: int, effort: int, *, predict: bool
    ) -> EncodedLatents:
        first = frames[0].quantisation
        mapped: dict[tuple[int, int], Frame] = {}

        def seen_at(quality: int) -> bytes:
            # This is of all frames together, because they have the same map, or none.
            return b"".join(
                self._network.seen(quality_map.qualities(quality, f.offsets)) for f in frames
            )

        encoded = {} if first is None else {seen_at(first): [*frames]}

        def at(quality: int) -> list[Frame]:
            """The frames with the latents that they have at a quality."""
            if (seen := seen_at(quality)) not in encoded:
                encoded.clear()  # the search does not come back to earlier qualities
                mapped.clear()
                encoded[seen] = [self._again(frame, quality) for frame in frames]
            return encoded[seen]

        def plain(hundredths: int) -> EncodedLatents:
            quick = min(effort, HIGHEST_QUICK_EFFORT)
            encoder = _Encoder(self, hundredths, quick, predict=predict)
            return EncodedLatents([*map(encoder.encode, at(hundredths))], hundredths)

        def tried(hundredths: int) -> EncodedLatents:
            look = allocated if effort >= LOOKING_EFFORT else None
            encoder = _Encoder(self, hundredths, effort, predict=predict, look=look)
            return EncodedLatents([*map(encoder.encode, at(hundredths))], hundredths)

        def allocated(frame: Frame, quality: int) -> Frame:
            # The id of the latents is safe as a key: the frame that is kept holds its latents.
            key = id(frame.latents), looked_at(quality)
            if key not in mapped:
                mapped[key] = self.allocated(frame, quality)
            return mapped[key]

        if effort > HIGHEST_QUICK_EFFORT:
            return largest_of_slow(functools.cache(plain), tried, limit, first)
        search = functools.partial(largest, low=LOWEST_QUALITY, high=HIGHEST_QUALITY, limit=limit)
        if effort < LOOKING_EFFORT:
            return search(plain, first=first)[1]
        try:
            # To look takes time, so this search begins near the quality that fits.
            return search(tried, first=search(plain, first=first, one_in=NEAR)[0])[1]
        except DoesNotFit:
            return search(plain)[1]

    def _again(self, frame: Frame, quality: int) -> Frame:
        if frame.pixels is None:
            return frame
        qualities = quality_map.qualities(quality, frame.offsets)
        return frame._replace(latents=self._network.encode(frame.pixels, qualities))

    def allocated(self, frame: Frame, quality: int) -> Frame:
        """The frame with a map that gives more to the cells that would look worst without it.

        ``quality`` is the header's, in hundredths; see `looked_at`.  The map is added to the map
        that the frame has.  A frame stays as it is if its pixels are not known, or if the quality
        is high.
        """
        latents, pixels, offsets = frame[:3]
        if pixels is None or quality >= allocation.LOOKS_BELOW:
            return frame
        height, width, _ = latents.shape
        quality = looked_at(quality)
        cells = quality_map.qualities(quality, offsets)
        rounded = allocation.Rounded(latents, self._network.gain(cells, height, width))

        def of_latents(area: Area) -> NDArray[np.int32]:
            rows, columns = (np.arange(part.start, part.stop) // CELL for part in area)
            return np.asarray(cells)[rows[:, None], columns]

        known = cells if isinstance(cells, int) else Mapped(quality, of_latents)
        scale = 2 if quality >= allocation.HALF_FROM else 1
        size = [-(-n // 2) for n in pixels.shape[:2]]
        original, shown = (np.empty(size, np.uint8) for _ in range(2))
        for area, decoded in self._network.decode(rounded, known, scale=scale):
            down, across = (slice(scale * one.start, scale * one.stop) for one in area)
            half = allocation.luma(pixels[down, across], 2)
            rows, columns = len(half) * 2 // scale, half.shape[1] * 2 // scale
            top, left = down.start // 2, across.start // 2
            here = slice(top, top + len(half)), slice(left, left + half.shape[1])
            original[here] = half
            shown[here] = allocation.luma(decoded[:rows, :columns], 2 // scale)
        highest = min(quality + quality_map.UNIT, HIGHEST_QUALITY)
        gains = (self._network.gain(q) for q in (highest, highest - quality_map.UNIT))
        step = float(np.subtract(*map(np.log, gains)).mean())
        magnitudes = rounded.magnitudes()
        if frame.unseen is not None:
            magnitudes[doubled(frame.unseen, height, width)] = 0
        side = CELL * self._network.factor // 2
        found = allocation.offsets(original, shown, magnitudes, step, side)
        if not found.any():
            return frame
        if offsets is not None:
            found = np.clip(found + offsets, -quality_map.LIMIT, quality_map.LIMIT)
        return frame._replace(offsets=found.astype(np.int32))

    def decode(
        self,
        payload: bytes,
        shape: tuple[int, int],
        quantisation: int,
        before: Coded | None = None,
        *,
        complete: bool = True,
    ) -> Coded:
        network = self._network
        part = network.part(self._scale)
        with one_blas_thread():
            decoder = decoder_of(payload, complete=complete)
            coded = network.prior.code(decoder, *shape, quantisation, before, part)
            if part.channels == network.prior.channels:
                decoder.finish()
        return coded

    def cells(self, integers: Coded, quantisation: int) -> Quantisation:
        return quality_map.qualities(quantisation, integers.offsets)

    def decode_together(
        self, payloads: Sequence[bytes], shape: tuple[int, int], quantisations: Sequence[int]
    ) -> list[Coded]:
        return [
            self.decode(payload, shape, quantisation)
            for payload, quantisation in zip(payloads, quantisations, strict=True)
        ]

    def latents(self, integers: Coded, quantisation: int) -> Latents:
        cells = self.cells(integers, quantisation)
        height, width, channels = integers.symbols.shape
        gain = self._network.gain(cells, height, width)[..., :channels]
        return np.divide(integers.symbols, gain, dtype=np.float32, casting="unsafe")


class _Encoder:
    """Codes frames, one after another."""

    def __init__(
        self,
        coding: Banded,
        quality: int,
        effort: int,
        *,
        predict: bool,
        look: Callable[[Frame, int], Frame] | None = None,
    ) -> None:
        self._coding, self._network = coding, coding._network
        self._quality, self._effort = quality, effort
        self._predict, self._look = predict, look
        self._bands: dict[int, BandEncoder] = {}  # by their first row
        self._maps: list[NDArray[np.int32] | None] = []  # of the frame before

    def encode(self, frame: Frame) -> list[Chunk]:
        """The chunks of the next frame."""
        if self._look is None:
            return self._coded(frame)
        for before in self._maps:
            # A frame that is stored as changes has the map of the frame before.
            coded = self._coded(frame._replace(offsets=before))
            if any(chunk.type == chunks.CHANGES for chunk in coded):
                return coded
        mapped = self._look(frame, self._quality)
        if not self._maps or not same(mapped.offsets, self._maps[0]):
            coded = self._coded(mapped)
        if self._predict:
            self._maps = [mapped.offsets]
        return coded

    def _coded(self, frame: Frame) -> list[Chunk]:
        """The chunks of the next frame with the map that it has."""
        network, effort = self._network, self._effort
        latents, pixels, offsets, _, hidden = frame
        height, width, _ = latents.shape
        if hidden is not None:
            offsets, likely = unseen.lowered(network.prior, self._quality, offsets, hidden)
        if slow := effort > HIGHEST_QUICK_EFFORT and pixels is not None:
            # This comes before the frame is cut into bands, because tiles of pixels may cross
            # bands.
            cells = quality_map.qualities(self._quality, offsets)
            steps = latents * network.gain(cells, height, width)
            steps, hyper = network.refine(pixels, steps, cells, effort)
        bands = order.bands(height, self._coding.band_rows(height, width))

        def in_steps(band: slice) -> Latents:
            here = None if offsets is None else offsets[_cells_of(band)]
            cells = quality_map.qualities(self._quality, here)
            size = band.stop - band.start, width
            found: Latents = steps[band] if slow else latents[band] * network.gain(cells, *size)
            if hidden is not None:
                found[doubled(hidden[_cells_of(band)], *size)] = 0
            return found

        def of_band(band: slice) -> Chunk:
            here = None if offsets is None else offsets[_cells_of(band)]
            part = in_steps(band)
            part[..., kept:] = 0
            cells = quality_map.qualities(self._quality, here)
            if slow:
                refined = part, hyper[_cells_of(band)]
            else:
                refined = network.refine(None, part, cells, effort)
            nobody = None if hidden is None else hidden[_cells_of(band)]
            if nobody is not None:
                refined[1][nobody] = likely
            with one_blas_thread():
                return self._bands[band.start].encode(*refined, here, nobody)

        for band in bands:
            if band.start not in self._bands:
                new = BandEncoder(network.prior, self._quality, predict=self._predict)
                self._bands[band.start] = new
        with one_blas_thread():
            # This is of the whole frame, so that bands leave no seam.
            counts = sum((network.prior.counts(in_steps(band)) for band in bands), start=0)
            kept = network.prior.worth_coding(np.asarray(counts), height * width)
            workers = min(len(bands), cores.threads())
            coded = cores.at_once(of_band, bands, workers)
            return [chunk for _, chunk in zip(progress.told("coding", bands), coded, strict=True)]


def _cells_of(band: slice) -> slice:
    """The rows of cells that lie in a band of rows of latents."""
    return slice(band.start // 2, -(-band.stop // 2))
