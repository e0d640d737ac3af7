"""Codes latents with the hyperprior of their model, band by band and frame after frame."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .. import chunks, cores, order, progress
from ..arrays import Area, Latents, Mapped, Quantisation, Samples
from ..container import Chunk
from ..spaces import HIGHEST_QUALITY, LOWEST_QUALITY, CodingSpec
from ..threads import one_blas_thread
from . import looking, quality_map, unseen
from .band_encoder import BandEncoder, same
from .coding import Frame, FrameEncoder, finite
from .hyperprior import Coded, HyperPrior, Part
from .lenient import decoder_of
from .looking import Look
from .places import doubled
from .target_size import DoesNotFit, EncodedLatents, largest, largest_of_slow

# The most rows of latents in a band.  Chosen: to decode a region, whole bands must be decoded.
BAND_ROWS = 64

# From this effort on, an encoder decodes its own result and looks at it.
LOOKING_EFFORT = 4
# With more effort than this, encoding takes seconds.
HIGHEST_QUICK_EFFORT = 4
# A search for a size first searches without looking.  It assumes that the bytes will be so many
# times as many after a look.  Measured on eight validation photos: 0.99 to 1.015.
LOOKED = 1.005


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

    def look(
        self, pixels: Samples, latents: Samples, quality: int | Mapped
    ) -> Iterator[tuple[Area, Look]]:
        """What a reader will see, tile by tile: as `looking.Looking`."""
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
        look = self._looked(predict) if effort >= LOOKING_EFFORT else None
        return _Encoder(self, quantisation, effort, predict=predict, look=look).encode

    def _looked(self, predict: bool) -> Callable[[Frame, int], Frame]:
        # Where nothing changes from frame to frame, the latents must not change either.
        return functools.partial(looking.looked, self._network, changes=not predict)

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

        @functools.cache
        def plain(hundredths: int) -> EncodedLatents:
            quick = min(effort, HIGHEST_QUICK_EFFORT)
            encoder = _Encoder(self, hundredths, quick, predict=predict)
            return EncodedLatents([*map(encoder.encode, at(hundredths))], hundredths)

        def tried(hundredths: int) -> EncodedLatents:
            look = looked if effort >= LOOKING_EFFORT else None
            encoder = _Encoder(self, hundredths, effort, predict=predict, look=look)
            return EncodedLatents([*map(encoder.encode, at(hundredths))], hundredths)

        look_at = self._looked(predict)

        def looked(frame: Frame, quality: int) -> Frame:
            # `encoded` holds the latents, so no other latents have their id.
            key = id(frame.latents), looking.looked_at(quality)
            if key not in mapped:
                mapped[key] = look_at(frame, quality)
            return mapped[key]

        if effort > HIGHEST_QUICK_EFFORT:
            return largest_of_slow(plain, tried, limit, first)
        search = functools.partial(largest, low=LOWEST_QUALITY, high=HIGHEST_QUALITY, limit=limit)
        if effort < LOOKING_EFFORT:
            return search(plain, first=first)[1]
        # To look takes time, so the last search begins near the quality that fits.
        quality = LOWEST_QUALITY
        with contextlib.suppress(DoesNotFit):
            quality, _ = search(plain, first=first, limit=round(limit / LOOKED))
        try:
            return search(tried, first=quality)[1]
        except DoesNotFit as e:
            smallest = e.smallest
        try:
            return search(plain)[1]
        except DoesNotFit as e:
            raise DoesNotFit(min(smallest, e.smallest)) from None

    def _again(self, frame: Frame, quality: int) -> Frame:
        if frame.pixels is None:
            return frame
        qualities = quality_map.qualities(quality, frame.offsets)
        return frame._replace(latents=self._network.encode(frame.pixels, qualities))

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
