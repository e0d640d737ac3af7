"""The encoder's search for better latents: gradient steps through `mini`'s decoder and prior.

The latents of the encoder network are a good guess.  From there, gradient steps lower the rate and
the distortion of this one picture, as in Campos et al., "Content Adaptive Optimization for Neural
Image Compression" (CVPR Workshops 2019).  Rounding has no gradient.  It is replaced by soft
rounding with noise (Agustsson and Theis, "Universally Quantized Neural Compression", NeurIPS 2020),
which gets closer to real rounding from step to step.  Decoders need not know of the search.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ... import progress
from ...arrays import CELL, Ints, Samples
from ...codings.rate_axis import LAST
from .. import ssimulacra2, tiles
from .network import spread
from .rate import RateModel
from .shape import BASE, CHANNELS, FACTOR, TAIL_FROM

#: Turns latents (1, C, h, w) in steps into pictures (1, 3, 16 h, 16 w) in [-0.5, 0.5].  The rate is
#: as in `network`.
Decode = Callable[[Tensor, Tensor], Tensor]

# The constants are measured or chosen: docs/measurements.md#refinement.

# The loss is bits per pixel, plus a weight times the squared error in grey levels, plus a weight
# times the distance from 100 in SSIMULACRA2.  The first weight grows geometrically from one end of
# the rate axis to the other, between these values.  Measured.
SQUARED_ERROR = (1.2e-4, 0.45)
# The second weight is PERCEPTUAL * (first weight / PERCEPTUAL_AT) ** PERCEPTUAL_POWER.  Measured;
# the power is chosen.
PERCEPTUAL = 0.2 * 0.35
PERCEPTUAL_AT, PERCEPTUAL_POWER = 9e-4, 0.47

LEARNING_RATE = 0.04  # in quantisation steps; falls as a cosine to a twentieth.  Measured.
STEEPNESS = (2.0, 12.0)  # of tanh, in the first and the last step.  Measured.
MOMENTUM, DECAY = 0.9, 0.99  # Adam's, but there is one second moment for each channel

# By effort: the number of steps with latents and hyperlatents together, and then with hyperlatents
# alone.  The latter change no pixel and need no decoder.  Chosen: each effort takes up to twice the
# time of the effort before.
STEPS = {5: (6, 8), 6: (12, 8), 7: (20, 8), 8: (32, 16), 9: (48, 16)}

# Latents along a side of a tile that is refined at once, and along a side of its margin.  Both are
# even, because a hyperlatent stands for two latents along a side.  Chosen.
TILE, MARGIN = 64, 8


def refine(
    rate_model: RateModel,
    decode: Decode,
    pixels: Samples | None,
    latents: NDArray[np.float32],
    hyper: NDArray[np.float32],
    *,
    places: Ints,
    effort: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Latents (h, w, C) and hyperlatents (ceil(h/2), ceil(w/2), Z) that cost less when rounded.

    Both are in steps.  ``pixels`` (H, W, 3) are those of the original; without them, the latents
    stay as they are.  ``places`` on the rate axis has a place for each cell, or one for all.  On
    one machine, with one number of threads, the same input gives the same output.
    """
    of_both, of_hyper = STEPS[effort]
    latents, hyper = latents.copy(), hyper.copy()
    random = torch.Generator().manual_seed(0)
    # Tiles are cut between hyperlatents, so that the latents of a hyperlatent stay together.
    rows, columns, _ = hyper.shape
    area = tiles.everything(rows, columns)
    cut = list(tiles.tiles(area, rows, columns, TILE // CELL, MARGIN // CELL))
    for tile in progress.told("refining", cut) if pixels is not None else cut:
        needed = tiles.scaled(tile.needed, CELL)
        here = places[tile.needed] if places.ndim else places[None, None]
        rate = torch.from_numpy((here / LAST).astype(np.float32))[None, None]
        channels = CHANNELS if (here >= TAIL_FROM).any() else BASE
        y, z = _tensor(latents[needed][..., :channels]), _tensor(hyper[tile.needed])
        with torch.enable_grad():
            if pixels is not None:
                original = _tensor(pixels[tiles.scaled(needed, FACTOR)]).float() / 255 - 0.5
                loss = _loss(rate_model, decode, original, rate)
                y, z = _descend(loss, [y, z], of_both, random, noise=1)
                y = rate_model.coded(y, rate)
            z = _cheaper_hyper(rate_model, y.round(), z, rate, of_hyper, random)
        for whole, part, scale in ((latents, y, CELL), (hyper, z, 1)):
            kept = tiles.scaled(tile.place, scale)
            height, width = whole[kept].shape[:2]
            top, left = (
                scale * (place.start - around.start)
                for place, around in zip(tile.place, tile.needed, strict=True)
            )
            found = part[0].permute(1, 2, 0)[top : top + height, left : left + width]
            whole[kept][..., : part.shape[1]] = found.numpy()
    return latents, hyper


def _tensor(samples: NDArray[Any]) -> Tensor:
    """(H, W, C) as (1, C, H, W)."""
    return torch.from_numpy(samples.copy()).permute(2, 0, 1)[None]


def _loss(
    rate_model: RateModel, decode: Decode, original: Tensor, rate: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a tile, as a function of its latents and hyperlatents."""
    low, high = SQUARED_ERROR
    errors = low * (high / low) ** rate
    error = torch.exp(torch.log(errors).mean()).item()
    perceptual = PERCEPTUAL * (error / PERCEPTUAL_AT) ** PERCEPTUAL_POWER
    height, width = original.shape[2:]
    errors = spread(errors, CELL * FACTOR, height, width)
    # The metric cannot judge smaller pictures.
    judged = min(height, width) >= ssimulacra2.SMALLEST
    reference = ssimulacra2.Reference(original) if judged else None

    def loss(latents: Tensor, hyper: Tensor) -> Tensor:
        latents = rate_model.coded(latents, rate)
        picture = decode(latents, rate)[..., :height, :width]
        bits = rate_model.bits(latents, hyper, rate_model.before_hyper(latents, rate), rate)
        # The picture is not clipped, so that values beyond black and white have a gradient.
        squared = (errors * (picture - original) ** 2).mean() * 255**2
        total: Tensor = bits / (height * width) + squared
        if reference is not None:
            total = total + perceptual * (1 - reference.score(picture)[0] / 100)
        return total

    return loss


def _cheaper_hyper(
    rate_model: RateModel,
    symbols: Tensor,
    hyper: Tensor,
    rate: Tensor,
    steps: int,
    random: torch.Generator,
) -> Tensor:
    """Hyperlatents that make these symbols take fewer bits."""
    before = rate_model.before_hyper(symbols, rate)

    def loss(hyper: Tensor) -> Tensor:
        return rate_model.bits(symbols, hyper, before, rate)

    # The symbols are fixed.  For hyperlatents alone, no noise is needed.  Chosen.
    return _descend(loss, [hyper], steps, random, noise=0)[0]


def _descend(
    loss: Callable[..., Tensor],
    start: list[Tensor],
    steps: int,
    random: torch.Generator,
    noise: float,
) -> list[Tensor]:
    """Values with a smaller loss.  The loss sees them softly rounded."""
    variables = [values.clone().requires_grad_() for values in start]
    momenta = [torch.zeros_like(v) for v in variables]
    squares = [v.new_zeros(1, v.shape[1], 1, 1) for v in variables]
    for number in range(1, steps + 1):
        left = 1 - number / steps
        steepness = STEEPNESS[0] ** left * STEEPNESS[1] ** (1 - left)
        softened = [_soft(v, steepness, noise * math.sqrt(left), random) for v in variables]
        gradients = torch.autograd.grad(loss(*softened), variables)
        learning_rate = LEARNING_RATE * (0.5 - 0.45 * math.cos(math.pi * left))
        with torch.no_grad():
            for variable, gradient, momentum, square in zip(
                variables, gradients, momenta, squares, strict=True
            ):
                momentum.lerp_(gradient, 1 - MOMENTUM)
                square.lerp_((gradient * gradient).mean((2, 3), keepdim=True), 1 - DECAY)
                scale = (square / (1 - DECAY**number)).sqrt() + 1e-12
                variable -= learning_rate / (1 - MOMENTUM**number) * momentum / scale
    return [variable.detach() for variable in variables]


def _soft(values: Tensor, steepness: float, noise: float, random: torch.Generator) -> Tensor:
    """The values softly rounded, with noise added, and softly rounded again."""
    rounded = _soft_round(values, steepness)
    if noise:
        uniform = torch.rand(values.shape, generator=random, dtype=values.dtype)
        rounded = rounded + noise * (uniform - 0.5)
    return _soft_round(rounded, steepness)


def _soft_round(values: Tensor, steepness: float) -> Tensor:
    middle = values.detach().floor() + 0.5
    return middle + 0.5 * torch.tanh(steepness * (values - middle)) / math.tanh(steepness / 2)
