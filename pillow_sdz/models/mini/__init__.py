"""The embedded autoencoder `mini`, loaded: pixels <-> latents in numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ... import weights
from ...arrays import Area, Ints, Latents, Pixels, Quantisation, Samples
from ...catalogue import MINI, ModelSpec
from ...codings.hyperprior import HyperPrior
from ...codings.range_coder import Tables
from ...codings.rate_axis import APART, RateAxis
from .. import runtime, tiles
from ..network import Network
from ..runtime import built_once
from ..tiles import Tile
from . import eighth
from .memory import DECODER_MEMORY, ENCODER_MEMORY, tile_side
from .shape import BASE, CELL, CHANNELS, DECODERS, ENCODER_MARGIN, FACTOR, TAIL_FROM

if TYPE_CHECKING:
    from .search import Search

# The encoder computes at places that are multiples of this, so that who tries qualities that are
# near each other needs few latents.  Chosen.
ENCODER_PLACES = 500

# The tensors that have latents' channels, by the axis along which they have them.
CHANNELS_ALONG = {
    0: (
        "encoder.linear.weight",
        "encoder.linear.bias",
        "encoder.leave.weight",
        "encoder.leave.bias",
    ),
    1: (
        "encoder.gate.weight",
        "decoder.enter.weight",
        "decoder.linear.weight",
        "2.linear.weight",
        "4.linear.weight",
    ),
}


class Mini:
    """`mini`, loaded: pixels <-> latents in the encoder's units, in numpy arrays.

    Multiplied by the gain, the latents are in quantisation steps.  A quantisation is a quality in
    hundredths (100..10000), or that of each cell.
    """

    def __init__(self, path: Path) -> None:
        # Here, `models.load` holds its lock.  Later, each of the first threads would load them.
        Tables.shipped()
        tensors = load_file(path)
        self.tensors = {k.removeprefix("autoencoder."): v for k, v in tensors.items()}
        self.axis = RateAxis(tensors["axis"])
        self._encoder = Variants("mini_encoder", part(self.tensors, "encoder"), "mini")
        self._analysis = runtime.Network("mini_analysis", part(self.tensors, "analysis"))
        self._decoders = Decoders(self.tensors, self.axis, "mini")
        self._gain = self.tensors["gain.logarithms"].astype(np.float32)
        self.prior = HyperPrior(
            {k.removeprefix("prior."): v for k, v in part(tensors, "prior").items()}, self.axis
        )

    def gain(
        self, quantisation: Quantisation, height: int = 1, width: int = 1
    ) -> NDArray[np.float32]:
        """How many steps a unit of latent has: (C,), or for a map (height, width, C)."""
        gain: NDArray[np.float32] = np.exp(knots(self.axis.places(quantisation)) @ self._gain)
        return gain if gain.ndim == 1 else of_cells(gain, (slice(0, height), slice(0, width)))

    def encode(self, pixels: Samples, quantisation: Quantisation) -> Latents:
        """Pixels (H, W, 3) to latents (ceil(H/16), ceil(W/16), C).

        Channels of the tail may be 0 where they are not coded.
        """
        exact = self.axis.places(quantisation)
        places = (exact + ENCODER_PLACES // 2) // ENCODER_PLACES * ENCODER_PLACES

        def latents(part: Pixels, tile: Tile) -> Latents:
            found = self._encoder(places, tile, pixels=part)
            missing = CHANNELS - found.shape[2]
            return np.pad(found, ((0, 0), (0, 0), (0, missing))) if missing else found

        return tiles.encode(
            pixels,
            latents,
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

        Both are returned without rounding.  The more ``effort``, the longer the search, which
        imports torch; see `refinement.refine`.
        """
        hyper = self.hyperlatents(steps)
        if not effort:
            return steps, hyper
        search: Search = self._search
        return search.refine(pixels, steps, hyper, quality=quantisation, effort=effort)

    @built_once
    def _search(self) -> Search:
        from .search import Search

        return Search(self.tensors)

    def decode(
        self,
        latents: Samples,
        quantisation: Quantisation,
        *,
        area: Area | None = None,
        scale: int = 1,
    ) -> Iterator[tuple[Area, Pixels]]:
        """Latents (h, w, C) to pixels, tile by tile: each tile's place and pixels.

        The latents are in the encoder's units, not in steps.  The pixels cover at least ``area`` of
        the latents.  With a ``scale`` of 2, 4 or 8, pictures are at 1/scale of their size, and
        places are in their pixels.
        """
        return self._decoders.decode(latents, quantisation, area, scale)


class MiniPerceptual:
    """`mini` with the second decoder for its latents."""

    def __init__(self, path: Path, mini: Mini) -> None:
        self._decoders = Decoders(load_file(path), mini.axis, "mini_perceptual")
        self._mini = mini
        self.encode = mini.encode

    def decode(
        self,
        latents: Samples,
        quantisation: Quantisation,
        *,
        area: Area | None = None,
        scale: int = 1,
    ) -> Iterator[tuple[Area, Pixels]]:
        """As `Mini.decode`.  Small pictures have little texture to invent: `mini` decodes them."""
        if scale == 1:
            return self._decoders.decode(latents, quantisation, area, scale)
        return self._mini.decode(latents, quantisation, area=area, scale=scale)


class Variants:
    """A network of all channels, and the same one of the base alone, which takes less time."""

    def __init__(self, graph: str, tensors: Mapping[str, NDArray[Any]], ranges: str) -> None:
        self._all = runtime.Network(graph, tensors, ranges)
        self._base = runtime.Network(f"{graph}_base", tensors_of_base(tensors), ranges)

    def __call__(self, places: Ints, tile: Tile, **inputs: NDArray[Any]) -> NDArray[Any]:
        """The result for a tile's pixels or latents; ``places`` on the axis are the picture's."""
        here = of_tile(places, tile.needed)
        inputs |= {"sides": tile.trimmed, "rate": knots(here)}
        if (here >= TAIL_FROM).any():
            return self._all(**inputs)
        if "latents" in inputs:
            inputs["latents"] = np.ascontiguousarray(inputs["latents"][..., :BASE])
        return self._base(**inputs)


class Decoders:
    """The decoders of a model's tensors, for full size and for smaller pictures."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]], axis: RateAxis, ranges: str) -> None:
        self._tensors, self._axis, self._ranges = tensors, axis, ranges
        self._full = Variants("mini_decoder", part(tensors, "decoder"), ranges)

    def decode(
        self, latents: Samples, quantisation: Quantisation, area: Area | None, scale: int
    ) -> Iterator[tuple[Area, Pixels]]:
        """As `Mini.decode`."""
        places = self._axis.places(quantisation)
        if scale == 8:
            return eighth.decode(latents, self._heads, places, area)
        network = self._full if scale == 1 else self._reduced[scale]
        margin, columns = DECODERS[scale][2][0], latents.shape[1]

        return tiles.decode(
            latents,
            lambda part, tile: network(places, tile, latents=part),
            area=area,
            factor=FACTOR // scale,
            side=lambda workers: tile_side(DECODER_MEMORY, margin, columns, workers=workers),
            margin=margin,
        )

    @built_once
    def _heads(self) -> dict[str, NDArray[Any]]:
        return load_file(weights.MINI_REDUCED.checked())

    @built_once
    def _reduced(self) -> dict[int, Variants]:
        tensors = tensors_of_decoders(self._tensors, self._heads)
        return {s: Variants(f"mini_decoder{s}", tensors, self._ranges) for s in (2, 4)}


def knots(places: Ints) -> NDArray[np.float32]:
    """The weights of the knots at places on the rate axis, (..., KNOTS), which sum to 1."""
    return RateAxis.knots(places) / np.float32(APART)


def of_tile(places: Ints, needed: Area) -> Ints:
    """The place of each latent of an area, (h, w), or (1, 1) if there is one for all."""
    return places[None, None] if places.ndim == 0 else of_cells(places, needed)


def of_cells(values: NDArray[Any], area: Area) -> NDArray[Any]:
    """What cells have (ceil(h/2), ceil(w/2), ...), for each latent of an area."""
    rows, columns = (np.arange(part.start, part.stop) // CELL for part in area)
    return values[rows[:, None], columns]


def part(tensors: Mapping[str, NDArray[Any]], name: str) -> dict[str, NDArray[Any]]:
    """The tensors whose names begin with this one."""
    return {k: v for k, v in tensors.items() if k.startswith(f"{name}.")}


def tensors_of_base(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """A network's tensors, without those of the channels beyond the base."""
    found = dict(tensors)
    for axis, names in CHANNELS_ALONG.items():
        for name in names:
            if name in found:
                found[name] = np.ascontiguousarray(found[name].take(range(BASE), axis))
    return found


def tensors_of_decoders(
    tensors: Mapping[str, NDArray[Any]], heads: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """All tensors of the decoders for full size, 1/2 and 1/4."""
    found = {**part(tensors, "decoder"), **heads}
    for scale in (2, 4):
        found[f"{scale}.linear.weight"] = reduced_linear(tensors["decoder.linear.weight"], scale)
        found[f"{scale}.gate.weight"] = reduced_gate(tensors["decoder.gate.weight"], scale)
    return found


def reduced_linear(weight: NDArray[Any], scale: int) -> NDArray[np.float32]:
    """The kernels of the linear path, reduced exactly: a mean of pixels is a mean of kernels."""
    side = FACTOR // scale
    kernels = weight.astype(np.float32).reshape(3, side, scale, side, scale, *weight.shape[1:])
    reduced: NDArray[np.float32] = kernels.mean((2, 4)).reshape(-1, *weight.shape[1:])
    return reduced


def reduced_gate(weight: NDArray[Any], scale: int) -> NDArray[np.float32]:
    """The gate (KNOTS, 48) of 4x4 pixels for the 2x2 that one place of a head becomes.

    They are means: at 1/4, one pixel has the mean of all 4x4.
    """
    gates = weight.astype(np.float32).reshape(-1, 3, 4 // scale, scale, 4 // scale, scale)
    reduced = np.broadcast_to(gates.mean((3, 5)), (len(weight), 3, 2, 2))
    return np.ascontiguousarray(reduced.reshape(len(weight), -1))


def load(_: object) -> Mini:
    """The model with the weights of this package; a `models.network.Loader`."""
    return Mini(weights.MINI.checked())


def load_perceptual(other: Callable[[ModelSpec], Network]) -> MiniPerceptual:
    """As `load`.  Encoder and prior are those of the `Mini` that ``other`` loads."""
    mini = other(MINI)
    assert isinstance(mini, Mini)
    return MiniPerceptual(weights.MINI_PERCEPTUAL.checked(), mini)
