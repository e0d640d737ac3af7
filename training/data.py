"""Training photos in memory, and random crops of them as tensors."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def load(paths: list[Path]) -> list[NDArray[np.uint8]]:
    """The photos as (H, W, 3) arrays of sRGB bytes."""
    return [np.asarray(Image.open(p).convert("RGB")) for p in paths]


def to_tensor(photo: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) bytes to (1, 3, H, W) float32 in [-0.5, 0.5]."""
    return torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 255 - 0.5


def crops(photos: list[NDArray[np.uint8]], count: int, size: int, rng: random.Random) -> Tensor:
    """Random crops (count, 3, size, size) in [-0.5, 0.5]; half of them are mirrored."""
    batch = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        photo = rng.choice(photos)
        while min(photo.shape[:2]) < size:
            photo = rng.choice(photos)
        top = rng.randint(0, photo.shape[0] - size)
        left = rng.randint(0, photo.shape[1] - size)
        crop = photo[top : top + size, left : left + size]
        batch[i] = crop[:, ::-1] if rng.random() < 0.5 else crop
    tensor = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255 - 0.5
    return tensor.contiguous(memory_format=torch.channels_last)
