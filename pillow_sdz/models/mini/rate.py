"""The prior of `mini` in floating point: bits that have a gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def logistic_bits(symbols: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Bits of integers (or integers plus uniform noise) under a discretised logistic."""
    scale = torch.exp(log_scale.clamp(-3.5, 6))
    # The upper tail is computed as the lower one, where a difference of sigmoids is precise.
    distance = -(symbols - mean).abs()
    mass = torch.sigmoid((distance + 0.5) / scale) - torch.sigmoid((distance - 0.5) / scale)
    return -torch.log2(mass.clamp_min(1e-9))


def checkerboard(like: Tensor) -> Tensor:
    """(1, 1, h, w): 1 where the first pass goes (row + column odd), 0 elsewhere."""
    rows = torch.arange(like.shape[-2], device=like.device)[:, None]
    columns = torch.arange(like.shape[-1], device=like.device)[None]
    return ((rows + columns) % 2).to(like.dtype)[None, None]
