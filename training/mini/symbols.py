"""The symbols that the package's encoder chooses, in floating point.

They are the nearest integers, or the second nearest ones where these save enough bits
(`pillow_sdz.codings.quantize.ThriftyQuantizer`).  The bits are those of `training.mini.prior`, with
the symbols around as they are when rounded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pillow_sdz.codings.quantize import AXIS_PLACES, AXIS_WEIGHTS
from pillow_sdz.models.mini.rate import logistic_bits


def rate_weights(rate: Tensor) -> Tensor:
    """Lambda at places in [0, 1], as `pillow_sdz.codings.quantize.rate_weights`."""
    (first, last), (low, high) = AXIS_PLACES, (math.log(w) for w in AXIS_WEIGHTS)
    share = ((rate - first) / (last - first)).clamp(0, 1)
    return torch.exp(low + share * (high - low))


@torch.no_grad()
def chosen(latents: Tensor, mean: Tensor, log_scale: Tensor, weight: Tensor) -> Tensor:
    """The integers (B, C, h, w) for latents in quantisation steps, whose distributions are given.

    ``weight`` is lambda, in squared steps a bit.
    """
    nearest = torch.round(latents)
    other = nearest + 2 * (latents > nearest).to(latents.dtype) - 1
    saved = logistic_bits(nearest, mean, log_scale) - logistic_bits(other, mean, log_scale)
    worse = (latents - other) ** 2 - (latents - nearest) ** 2
    return torch.where(worse < weight * saved, other, nearest)
