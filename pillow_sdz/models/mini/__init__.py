"""The embedded autoencoder `mini`, loaded: pixels <-> latents in numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ... import weights
from ...arrays import CELL, Area, Ints, Latents, Mapped, Pixels, Quantisation, Samples
from ...catalogue import MINI, ModelSpec
from ...codings.banded import HIGHEST_QUICK_EFFORT
from ...codings.hyperprior import HyperPrior, Part
from ...codings.looking import Look
from ...codings.range_coder import Tables
from ...codings.rate_axis import LAST, RateAxis
from .. import runtime, tiles
from ..network import Network, Qualities
from ..runtime import built_once
from ..tiles import Tile
from . import digits, predicting
from .digits import Steps
from .eighth import Eighth
from .memory import DECODER_MEMORY, ENCODER_MEMORY, LOOK_MEMORY, tile_side
from .shape import BASE, CHANNELS, ENCODER_MARGIN, FACTOR, LOOK_MARGIN, MARGINS, SHOWN, TAIL_FROM
from .tensors import Tensors, adjoint_of_decoder, encoder_of_base, knots, part, tensors_of_decoders
from .tile_inputs import TileInputs

if TYPE_CHECKING:
    from .search import Search

# The rate axis is cut into ranges of this many places, and the encoder computes in the middle of a
# range.  So a search that tries neighbouring qualities needs few latents.  Chosen.
ENCODER_PLACES = 500
# If a picture's place is this or more, 8 bits are not precise enough.  On corners (384x384) of
# eight validation photos, decoding in 8 bits loses 0.016, 0.022, 0.029 and 0.042 dB at qualities
# of 75, 80, 85 and 90 (place 9042), but 0.056 at 100 (docs/format.md allows 0.05).  Measured
# (docs/speed.md).
PRECISE_FROM = 9100
# The length of a step down the gradient of the squared error, if pixels are from 0 to 1.  It is a
# tenth of what would remove all error of a linear transform in the latents' unit, 5 squared.
# Measured: docs/measurements.md#looking.
DESCENT = 2.5


class Mini:
    """`mini`, loaded: pixels <-> latents in the encoder's units, in numpy arrays.

    Multiplied by the gain, the latents are in quantisation steps.  A quantisation is a quality in
    hundredths (100..10000), or that of each cell.
    """

    factor = FACTOR

    def __init__(self, path: Path) -> None:
        # The tables are loaded now, while `models.load` holds its lock.  Later, each of the first
        # threads would load them.
        Tables.shipped()
        tensors = load_file(path)
        self.tensors = {k.removeprefix("autoencoder."): v for k, v in tensors.items()}
        self.axis = RateAxis(tensors["axis"])
        self._encoder = Encoder(part(self.tensors, "encoder"))
        self._analysis = runtime.Network("mini_analysis", part(self.tensors, "analysis"))
        self._gain = self.tensors["gain.logarithms"].astype(np.float32)
        self.steps = Steps(self._gain)
        self._decoders = Decoders(self.tensors, self.axis, self.steps)
        self.prior = HyperPrior(
            {k.removeprefix("prior."): v for k, v in part(tensors, "prior").items()},
            self.axis,
            self._part_of,
        )

    def part(self, scale: int) -> Part:
        """What the prior codes of a picture that is decoded at 1/scale of its size."""
        # At 1/8, nothing else needs the runtime.  It takes longer to load than it saves here.
        channels = SHOWN.get(scale, CHANNELS)
        if scale == 8 and not runtime.is_loaded():
            return Part(channels)
        return self._part_of(channels)

    @staticmethod
    def _part_of(channels: int) -> Part:
        return Part(channels, runtime.product, predicting.predict, threads=True)

    def gain(
        self, quantisation: Quantisation, height: int = 1, width: int = 1
    ) -> NDArray[np.float32]:
        """How many steps a unit of latent has: (C,), or for a map (height, width, C)."""
        gain: NDArray[np.float32] = np.exp(knots(self.axis.places(quantisation)) @ self._gain)
        return gain if gain.ndim == 1 else of_cells(gain, (slice(0, height), slice(0, width)))

    def seen(self, quantisation: Quantisation) -> bytes:
        """What `encode` sees of a quantisation.  If it is equal for two, so are the latents."""
        return self._encoded_at(quantisation).tobytes()

    def _encoded_at(self, quantisation: Quantisation) -> Ints:
        places = self.axis.places(quantisation)
        # A place and the middle of its range lie on the same side of TAIL_FROM.
        return np.minimum(places // ENCODER_PLACES * ENCODER_PLACES + ENCODER_PLACES // 2, LAST)

    def encode(self, pixels: Samples, quantisation: Quantisation) -> Latents:
        """Pixels (H, W, 3) to latents (ceil(H/16), ceil(W/16), C).

        Channels beyond the base are 0 at places with a quality so low that only the base is coded.
        """
        places = self._encoded_at(quantisation)

        def encoded(part: Pixels, tile: Tile) -> Latents:
            latents = np.zeros((*tiles.shape(tile.place), CHANNELS), np.float32)
            found = self._encoder(of_latents(places, tile.needed), pixels=part, sides=tile.trimmed)
            latents[..., : found.shape[2]] = found
            latents[..., BASE:] *= of_latents(places >= TAIL_FROM, tile.place)[..., None]
            return latents

        return tiles.encode(
            pixels,
            encoded,
            channels=CHANNELS,
            factor=FACTOR,
            side=lambda workers: tile_side(ENCODER_MEMORY, ENCODER_MARGIN, workers=workers),
            margin=ENCODER_MARGIN,
        )

    def hyperlatents(self, steps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Latents in steps (h, w, C) to hyperlatents (ceil(h/2), ceil(w/2), 32), not rounded."""
        height, width = (n % CELL for n in steps.shape[:2])
        even = np.pad(steps[..., :BASE], ((0, height), (0, width), (0, 0)))
        hyper: NDArray[np.float32] = self._analysis(latents=even)
        return hyper

    def refine(
        self,
        pixels: Samples | None,
        steps: NDArray[np.float32],
        quantisation: Quantisation,
        effort: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Improve latents in steps (h, w, C), and find their hyperlatents.

        Both are returned without rounding.  Up to `HIGHEST_QUICK_EFFORT`, the latents stay as they
        are.  With more ``effort``, `refinement.refine` searches longer; it imports torch.
        """
        hyper = self.hyperlatents(steps)
        if effort <= HIGHEST_QUICK_EFFORT:
            return steps, hyper
        search: Search = self._search
        places = self.axis.places(quantisation)
        return search.refine(pixels, steps, hyper, places=places, effort=effort)

    @built_once
    def _search(self) -> Search:
        from .search import Search

        return Search(self.tensors)

    def decode(
        self,
        latents: Samples,
        quantisation: Qualities,
        *,
        area: Area | None = None,
        scale: int = 1,
    ) -> Iterator[tuple[Area, Pixels]]:
        """Latents (h, w, C) to pixels, tile by tile: each tile's place and pixels.

        ``quantisation`` is as in `models.network.Network`.  The latents are in the encoder's units,
        not in steps.  The pixels cover at least ``area`` of them.  With a ``scale`` of 2, 4 or 8,
        pictures are at 1/scale of their size, and places are in their pixels.
        """
        return self._decoders.decode(latents, quantisation, area, scale)

    def look(
        self, pixels: Samples, latents: Samples, quantisation: Qualities
    ) -> Iterator[tuple[Area, Look]]:
        """What a reader will see of ``pixels``: each tile's place in the latents, and the look.

        ``latents`` are rounded.
        """
        return self._decoders.look(pixels, latents, quantisation)


class MiniPerceptual:
    """`mini` with the second decoder for its latents.  Both have the same linear path."""

    def __init__(self, path: Path, mini: Mini) -> None:
        tensors = {**part(mini.tensors, "decoder"), **load_file(path)}
        self._decoders = Decoders(tensors, mini.axis, mini.steps)
        self._mini = mini
        self.encode = mini.encode

    def decode(
        self,
        latents: Samples,
        quantisation: Qualities,
        *,
        area: Area | None = None,
        scale: int = 1,
    ) -> Iterator[tuple[Area, Pixels]]:
        """As `Mini.decode`.  `mini` decodes small pictures, because they show little texture."""
        if scale == 1:
            return self._decoders.decode(latents, quantisation, area, scale)
        return self._mini.decode(latents, quantisation, area=area, scale=scale)


class Encoder:
    """The encoder of all channels, and that of the base alone, which takes less time."""

    def __init__(self, tensors: Tensors) -> None:
        self._all = runtime.Network("mini_encoder", tensors)
        self._base = runtime.Network("mini_encoder_base", encoder_of_base(tensors))

    def __call__(self, places: Ints, *, pixels: Pixels, sides: NDArray[np.int64]) -> Latents:
        """A tile's latents; ``places`` has a place for each of them, or (1, 1) for all."""
        network = self._all if (places >= TAIL_FROM).any() else self._base
        latents: Latents = network(pixels=pixels, rate=knots(places), sides=sides)
        return latents


class Decoder:
    """A decoder in ONNX Runtime.  It leaves out channels that are 0 in all of a tile."""

    def __init__(self, graph: str, tensors: Tensors, steps: Steps) -> None:
        self._network, self._steps = runtime.Network(graph, tensors), steps

    def __call__(self, tile: TileInputs, *, precise: bool) -> Pixels:
        """The pixels of a tile, which are computed more precisely if ``precise``."""
        pixels: Pixels = self._network(**inputs(tile, self._steps), precise=precise)
        return pixels


def inputs(tile: TileInputs, steps: Steps) -> dict[str, NDArray[Any]]:
    """The inputs of a decoder's graph."""
    split = digits.inputs(tile.latents, steps(tile.places), steps.unit(tile.place))
    return {**split, "rate": knots(tile.places), "sides": tile.sides}


class Decoders:
    """The decoders of a model's tensors, for full size and for smaller pictures."""

    def __init__(self, tensors: Tensors, axis: RateAxis, steps: Steps) -> None:
        self._tensors, self._axis, self._steps = tensors, axis, steps
        self._full = Decoder("mini_decoder", part(tensors, "decoder"), steps)

    def decode(
        self, latents: Samples, quantisation: Qualities, area: Area | None, scale: int
    ) -> Iterator[tuple[Area, Pixels]]:
        """As `Mini.decode`."""
        picture = quantisation.picture if isinstance(quantisation, Mapped) else quantisation
        # All tiles are computed alike, whatever their own qualities.  Otherwise, there would be
        # seams between them.
        precise = bool(self._axis.places(picture) >= PRECISE_FROM)
        network, margin, columns = self._network(scale), MARGINS[scale], latents.shape[1]
        return tiles.decode(
            latents.shape,
            lambda tile: self._inputs(latents, quantisation, tile),
            lambda tile: network(tile, precise=precise),
            area=area,
            factor=FACTOR // scale,
            side=lambda workers: tile_side(DECODER_MEMORY, margin, columns, workers=workers),
            margin=margin,
            scale=scale,
        )

    def look(
        self, pixels: Samples, latents: Samples, quantisation: Qualities
    ) -> Iterator[tuple[Area, Look]]:
        """As `Mini.look`."""
        picture = quantisation.picture if isinstance(quantisation, Mapped) else quantisation
        changed = np.arange(CHANNELS if self._axis.places(picture) >= TAIL_FROM else BASE)

        def given(tile: Tile) -> tuple[TileInputs, Pixels, Pixels]:
            found = self._inputs(latents, quantisation, tile)
            here, around = (tiles.scaled(a, FACTOR) for a in (tile.place, tile.needed))
            return found, pixels[here], tiles.whole(pixels, around)

        def looked(item: tuple[TileInputs, Pixels, Pixels]) -> Look:
            tile, original, around = item
            shown, change = self._looking.several(
                "shown",
                "result",
                **inputs(tile, self._steps),
                pixels=around,
                changed=changed,
            )
            height, width, _ = original.shape
            change *= DESCENT
            return Look(original, shown[:height, :width], change, FACTOR)

        return tiles.decode(
            latents.shape,
            given,
            looked,
            factor=1,
            side=lambda workers: tile_side(LOOK_MEMORY, LOOK_MARGIN, workers=workers),
            margin=LOOK_MARGIN,
        )

    def _inputs(self, latents: Samples, quantisation: Qualities, tile: Tile) -> TileInputs:
        values = latents[tile.needed]
        # This is asked now, because the quantisation may only be known after decoding.
        picture, of = quantisation if isinstance(quantisation, Mapped) else (quantisation, None)
        known = picture if of is None else of(tile.needed)
        place, places = self._axis.places(picture), np.atleast_2d(self._axis.places(known))
        return TileInputs(values, place, places, tile.trimmed)

    @built_once
    def _looking(self) -> runtime.Network:
        decoder = part(self._tensors, "decoder")
        return runtime.Network("mini_look", {**decoder, **adjoint_of_decoder(decoder)})

    def _network(self, scale: int) -> Decoder | Eighth:
        if scale == 1:
            return self._full
        found: Decoder | Eighth = self._eighth if scale == 8 else self._reduced[scale]
        return found

    @built_once
    def _heads(self) -> dict[str, NDArray[Any]]:
        return load_file(weights.MINI_REDUCED.checked())

    @built_once
    def _reduced(self) -> dict[int, Decoder]:
        tensors = tensors_of_decoders(self._tensors, self._heads)
        return {s: Decoder(f"mini_decoder{s}", tensors, self._steps) for s in (2, 4)}

    @built_once
    def _eighth(self) -> Eighth:
        return Eighth(self._tensors, self._heads)


def of_latents(values: NDArray[Any], area: Area) -> NDArray[Any]:
    """The values of cells, for each latent of an area, or (1, 1) if there is one value for all."""
    return values[None, None] if values.ndim == 0 else of_cells(values, area)


def of_cells(values: NDArray[Any], area: Area) -> NDArray[Any]:
    """The values of cells (ceil(h/2), ceil(w/2), ...), for each latent of an area."""
    rows, columns = (np.arange(part.start, part.stop) // CELL for part in area)
    return values[rows[:, None], columns]


def load(_: object) -> Mini:
    """The model with the weights of this package; a `models.network.Loader`."""
    return Mini(weights.MINI.checked())


def load_perceptual(other: Callable[[ModelSpec], Network]) -> MiniPerceptual:
    """As `load`.  Encoder and prior are those of the `Mini` that ``other`` loads."""
    mini = other(MINI)
    assert isinstance(mini, Mini)
    return MiniPerceptual(weights.MINI_PERCEPTUAL.checked(), mini)
