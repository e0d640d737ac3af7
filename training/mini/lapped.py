"""Lapped transforms, with which the training of `mini`'s linear paths begins."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pillow_sdz.models.mini.shape import FACTOR


def lapped_transform(size: int) -> Tensor:
    """The modulated lapped transform, (size, 2 * size); Malvar, IEEE TASSP 1990."""
    n = torch.arange(2 * size, dtype=torch.float64)
    k = torch.arange(size, dtype=torch.float64)[:, None]
    window = torch.sin(math.pi * (n + 0.5) / (2 * size)) * math.sqrt(2 / size)
    return (window * torch.cos(math.pi / size * (n + 0.5 + size / 2) * (k + 0.5))).float()


def block_weight(filters: Tensor) -> Tensor:
    """32x32 filters (C, 3, 32, 32) as a 2x2 convolution over 16x16 blocks (C, 768, 2, 2)."""
    c = filters.shape[0]
    blocks = filters.reshape(c, 3, 2, FACTOR, 2, FACTOR).permute(0, 1, 3, 5, 2, 4)
    return blocks.reshape(c, 3 * FACTOR * FACTOR, 2, 2).contiguous()
