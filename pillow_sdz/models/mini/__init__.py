"""The embedded autoencoder `mini`, loaded: pixels <-> latents in numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ... import weights
from ...arrays import Area, Pixels, Samples
from ...catalogue import HIGHEST_QUALITY, LOWEST_QUALITY, MINI, ModelSpec
from ...codings.hyperprior import HyperPrior
from ...codings.range_coder import Tables
from .. import runtime, tiles
from ..network import Network
from ..runtime import built_once
from . import eighth
from .memory import DECODER_MEMORY, ENCODER_MEMORY, tile_side
from .shape import CHANNELS, DECODERS, ENCODER_MARGIN, FACTOR

if TYPE_CHECKING:
    from .search import Search


def place_of(quality: int) -> np.float32:
    """The place on the rate axis, in [0, 1], of a header's quality."""
    return np.float32((quality - LOWEST_QUALITY) / (HIGHEST_QUALITY - LOWEST_QUALITY))


def rate_features(quality: int) -> NDArray[np.float32]:
    """What the decoders see of a header's quality, (1, RATE_FEATURES)."""
    u = 2 * place_of(quality) - 1
    return np.array([[u, u * u, u * u * u]], np.float32)


class Mini:
    """`mini`, loaded: pixels <-> latents in the encoder's units, in numpy arrays.

    Multiplied by the gain, the latents are in quantisation steps.  ``quality`` is the header's, in
    hundredths (100..10000).
    """

    def __init__(self, path: Path) -> None:
        # Here, `models.load` holds its lock.  Later, each of the first threads would load them.
        Tables.shipped()
        tensors = load_file(path)
        self.tensors = {k.removeprefix("autoencoder."): v for k, v in tensors.items()}
        self._encoder = runtime.Network("mini_encoder", part(self.tensors, "encoder"), "mini")
        self._analysis = runtime.Network("mini_analysis", part(self.tensors, "analysis"))
        self._decoders = Decoders(self.tensors, "mini")
        self._gain = self.tensors["gain.coefficients"].astype(np.float32)
        self.prior = HyperPrior(
            {k.removeprefix("prior."): v for k, v in part(tensors, "prior").items()}
        )

    def gain(self, quality: int) -> NDArray[np.float32]:
        """How many steps a unit of latent has, (C,)."""
        t = place_of(quality)
        gain: NDArray[np.float32] = np.exp(np.array([1, t, t * t], np.float32) @ self._gain)
        return gain

    def encode(self, pixels: Samples) -> NDArray[np.float32]:
        """Pixels (H, W, 3) to latents (ceil(H/16), ceil(W/16), C)."""
        return tiles.encode(
            pixels,
            self._encoder,
            channels=CHANNELS,
            factor=FACTOR,
            side=lambda workers: tile_side(ENCODER_MEMORY, ENCODER_MARGIN, workers=workers),
            margin=ENCODER_MARGIN,
        )

    def hyperlatents(self, steps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Latents in steps (h, w, C) to hyperlatents (ceil(h/2), ceil(w/2), 32), not rounded."""
        height, width = (n % 2 for n in steps.shape[:2])
        even = np.pad(steps, ((0, height), (0, width), (0, 0)))
        hyper: NDArray[np.float32] = self._analysis(latents=even)
        return hyper

    def refine(
        self,
        pixels: Samples | None,
        steps: NDArray[np.float32],
        quality: int,
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
        return search.refine(pixels, steps, hyper, quality=quality, effort=effort)

    @built_once
    def _search(self) -> Search:
        from .search import Search

        return Search(self.tensors)

    def decode(
        self, latents: Samples, quantisation: int, *, area: Area | None = None, scale: int = 1
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
        self._decoders = Decoders(load_file(path), "mini_perceptual")
        self._mini = mini
        self.encode = mini.encode

    def decode(
        self, latents: Samples, quantisation: int, *, area: Area | None = None, scale: int = 1
    ) -> Iterator[tuple[Area, Pixels]]:
        """As `Mini.decode`.  Small pictures have little texture to invent: `mini` decodes them."""
        if scale == 1:
            return self._decoders.decode(latents, quantisation, area, scale)
        return self._mini.decode(latents, quantisation, area=area, scale=scale)


class Decoders:
    """The decoders of a model's tensors, for full size and for smaller pictures."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]], ranges: str) -> None:
        self._tensors, self._ranges = tensors, ranges
        self._full = runtime.Network("mini_decoder", part(tensors, "decoder"), ranges)

    def decode(
        self, latents: Samples, quality: int, area: Area | None, scale: int
    ) -> Iterator[tuple[Area, Pixels]]:
        """As `Mini.decode`."""
        rate = rate_features(quality)
        if scale == 8:
            reduced = self._heads
            return eighth.decode(latents, reduced, place_of(quality), area)
        network = self._full if scale == 1 else self._reduced[scale]
        margin, columns = DECODERS[scale][2][0], latents.shape[1]
        return tiles.decode(
            latents,
            lambda latents, sides: network(latents=latents, rate=rate, sides=sides),
            area=area,
            factor=FACTOR // scale,
            side=lambda workers: tile_side(DECODER_MEMORY, margin, columns, workers=workers),
            margin=margin,
        )

    @built_once
    def _heads(self) -> dict[str, NDArray[Any]]:
        return load_file(weights.MINI_REDUCED.checked())

    @built_once
    def _reduced(self) -> dict[int, runtime.Network]:
        tensors = tensors_of_decoders(self._tensors, self._heads)
        return {s: runtime.Network(f"mini_decoder{s}", tensors, self._ranges) for s in (2, 4)}


def part(tensors: Mapping[str, NDArray[Any]], name: str) -> dict[str, NDArray[Any]]:
    """The tensors whose names begin with this one."""
    return {k: v for k, v in tensors.items() if k.startswith(f"{name}.")}


def tensors_of_decoders(
    tensors: Mapping[str, NDArray[Any]], heads: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """All tensors of the decoders for full size, 1/2 and 1/4."""
    found = {**part(tensors, "decoder"), **heads}
    for scale in (2, 4):
        linear = reduced_linear(tensors["decoder.linear.weight"], scale)
        found[f"{scale}.linear.weight"] = linear
    return found


def reduced_linear(weight: NDArray[Any], scale: int) -> NDArray[np.float32]:
    """The kernels of the linear path, reduced exactly: a mean of pixels is a mean of kernels."""
    side = FACTOR // scale
    kernels = weight.astype(np.float32).reshape(3, side, scale, side, scale, *weight.shape[1:])
    reduced: NDArray[np.float32] = kernels.mean((2, 4)).reshape(-1, *weight.shape[1:])
    return reduced


def load(_: object) -> Mini:
    """The model with the weights of this package; a `models.network.Loader`."""
    return Mini(weights.MINI.checked())


def load_perceptual(other: Callable[[ModelSpec], Network]) -> MiniPerceptual:
    """As `load`.  Encoder and prior are those of the `Mini` that ``other`` loads."""
    mini = other(MINI)
    assert isinstance(mini, Mini)
    return MiniPerceptual(weights.MINI_PERCEPTUAL.checked(), mini)
