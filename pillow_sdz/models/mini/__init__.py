"""The embedded autoencoder `mini`, loaded: pixels <-> latents in numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from ... import weights
from ...arrays import Area, Pixels, Samples
from ...catalogue import MINI, ModelSpec
from ...codings.hyperprior import HyperPrior
from ...codings.range_coder import Tables
from .. import tiles
from ..network import Network
from ..running import Computing, built, built_once, undisturbed
from ..tiles import Sides
from . import refinement
from .memory import DECODER_MEMORY, ENCODER_MEMORY, tile_side
from .network import (
    CHANNELS,
    DECODER_MARGIN,
    ENCODER_MARGIN,
    FACTOR,
    Autoencoder,
    Decoder,
    HyperAnalysis,
    rate_of,
)
from .reduced import Reduced


class Mini:
    """`mini`, loaded: pixels <-> latents in the encoder's units, in numpy arrays.

    Multiplied by the gain, the latents are in quantisation steps.  ``quality`` is the header's, in
    hundredths (100..10000).
    """

    @torch.inference_mode(False)
    @undisturbed()
    def __init__(self, path: Path) -> None:
        # Here, `models.load` holds its lock.  Later, each of the first threads would load them.
        Tables.shipped()
        tensors = load_file(path)

        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}

        autoencoder = built(Autoencoder, part("autoencoder."))
        self._encoder = Computing(autoencoder.encoder)
        self.decoder = Computing(autoencoder.decoder)
        self._gain = autoencoder.gain
        self._analysis = built(HyperAnalysis, part("analysis."))
        self._prior_tensors = part("prior.")
        self.prior = HyperPrior({k: v.numpy() for k, v in self._prior_tensors.items()})

    @undisturbed()
    def gain(self, quality: int) -> NDArray[np.float32]:
        """How many steps a unit of latent has, (C,)."""
        gain: NDArray[np.float32] = self._gain(rate_of(quality)).numpy().ravel()
        return gain

    def encode(self, pixels: Samples) -> NDArray[np.float32]:
        """Pixels (H, W, 3) to latents (ceil(H/16), ceil(W/16), C)."""
        # For one column of latents, oneDNN's strided convolution in bfloat16 with AMX
        # (brg_conv_fwd, torch 2.13) adds what was in the memory before.
        narrow = pixels.shape[1] <= FACTOR
        network = self._encoder.in_float32 if narrow else self._encoder()

        def latents(levels: Tensor, sides: Sides) -> Tensor:
            out: Tensor = network(levels.div_(255).sub_(0.5), sides)
            return out

        side = tile_side(ENCODER_MEMORY, ENCODER_MARGIN)
        shape = {"channels": CHANNELS, "factor": FACTOR, "margin": ENCODER_MARGIN}
        return tiles.encode(pixels, latents, side=side, **shape)

    @undisturbed()
    def hyperlatents(self, steps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Latents in steps (h, w, C) to hyperlatents (ceil(h/2), ceil(w/2), 32), not rounded."""
        height, width = (n % 2 for n in steps.shape[:2])
        even = np.pad(steps, ((0, height), (0, width), (0, 0)))
        with torch.inference_mode():
            out = self._analysis(torch.from_numpy(even).permute(2, 0, 1)[None])
        hyper: NDArray[np.float32] = out[0].permute(1, 2, 0).numpy()
        return hyper

    @undisturbed()
    def refine(
        self,
        pixels: Samples | None,
        steps: NDArray[np.float32],
        quality: int,
        effort: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Improve latents in steps (h, w, C), and find their hyperlatents.

        Both are returned without rounding.  The more ``effort``, the longer the search; see
        `refinement.refine`.
        """
        hyper = self.hyperlatents(steps)
        with torch.inference_mode(False):  # the search needs gradients
            network, rate = self.decoder(), rate_of(quality)
            gain = self._gain(rate)
            return refinement.refine(
                self._rate_model,
                lambda latents: network(latents / gain, rate),
                pixels,
                steps,
                hyper,
                quality=quality,
                effort=effort,
            )

    @built_once
    def _rate_model(self) -> refinement.RateModel:
        return refinement.RateModel(self._prior_tensors)

    def decode(
        self, latents: Samples, quantisation: int, *, area: Area | None = None, scale: int = 1
    ) -> Iterator[tuple[Area, Pixels]]:
        """Latents (h, w, C) to pixels, tile by tile: each tile's place and pixels.

        The latents are in the encoder's units, not in steps.  The pixels cover at least ``area`` of
        the latents.  With a ``scale`` of 2, 4 or 8, pictures are at 1/scale of their size, and
        places are in their pixels.
        """
        if scale == 1:
            return decoded(self.decoder, latents, quantisation, area)
        reduced: Reduced = self._reduced
        return reduced.decode(latents, quantisation, area, scale)

    @built_once
    def _reduced(self) -> Reduced:
        return Reduced(self.decoder.in_float32)


class MiniPerceptual:
    """`mini` with the second decoder for its latents."""

    @torch.inference_mode(False)
    @undisturbed()
    def __init__(self, path: Path, mini: Mini) -> None:
        tensors = {k.removeprefix("decoder."): v for k, v in load_file(path).items()}
        self.decoder = Computing(built(Decoder, tensors))
        self._mini = mini
        self.encode = mini.encode

    def decode(
        self, latents: Samples, quantisation: int, *, area: Area | None = None, scale: int = 1
    ) -> Iterator[tuple[Area, Pixels]]:
        """As `Mini.decode`.  Small pictures have little texture to invent: `mini` decodes them."""
        if scale == 1:
            return decoded(self.decoder, latents, quantisation, area)
        return self._mini.decode(latents, quantisation, area=area, scale=scale)


def decoded(
    network: Computing[Decoder], latents: Samples, quantisation: int, area: Area | None
) -> Iterator[tuple[Area, Pixels]]:
    """Latents (h, w, C), in the encoder's units, to pixels: each tile's place and pixels."""

    def levels(part: Tensor, sides: Sides) -> Tensor:
        out: Tensor = network()(part, rate_of(quantisation), sides).add_(0.5).mul_(255)
        return out

    side = tile_side(DECODER_MEMORY, DECODER_MARGIN, latents.shape[1])
    return tiles.decode(latents, levels, area=area, factor=FACTOR, side=side, margin=DECODER_MARGIN)


def load(_: object) -> Mini:
    """The model with the weights of this package; a `models.network.Loader`."""
    return Mini(weights.MINI.checked())


def load_perceptual(other: Callable[[ModelSpec], Network]) -> MiniPerceptual:
    """As `load`.  Encoder and prior are those of the `Mini` that ``other`` loads."""
    mini = other(MINI)
    assert isinstance(mini, Mini)
    return MiniPerceptual(weights.MINI_PERCEPTUAL.checked(), mini)
