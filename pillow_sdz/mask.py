"""Masks of latents <-> the data of the mASK chunk; docs/format.md specifies it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from . import alpha
from .pillow_private import check_pixels

if TYPE_CHECKING:
    import torch

LEVELS = 255
# How far a value may be from n / 255, in levels.  Chosen: float16 rounds n / 255, and n times
# (1 / 255), by 0.13 levels at most.  Masks that were scaled have other values.
NEAR = 0.25
# bfloat16 rounds n / 255 by 0.498 levels at most, so the nearest level is always right.
NEAR_IN_BFLOAT16 = 0.5

_PNG_SIZE = struct.Struct(">II")
_PNG_SIZE_AT = 17  # in the data: after the method, the signature, and the length and type of IHDR


def encode(mask: ArrayLike | torch.Tensor, size: tuple[int, int], factor: int) -> bytes:
    """The data of the mASK chunk; ValueError if the mask does not fit the picture.

    ``mask`` is (height, width).  It has the picture's size, or the size that the picture had before
    it was rounded down to whole latents, as VAEs do.  Its values are n / 255, as exactly as its
    dtype holds them.
    """
    values, near = _array(mask)
    if values.ndim != 2 or not _fits(values.shape[::-1], size, factor):
        msg = f"alpha_mask must have the picture's shape {size[::-1]}, not {values.shape}"
        raise ValueError(msg)
    picture = Image.fromarray(_levels(values, near))
    # In a file, a mask with one value always has the picture's size.
    constant = alpha.constant(picture) if picture.size == size else None
    return constant or alpha.png(picture)


def decode(data: bytes, size: tuple[int, int], factor: int) -> NDArray[np.float32]:
    """The mask (height, width) in the data of a mASK chunk, in 0..1."""
    if len(data) >= _PNG_SIZE_AT + _PNG_SIZE.size:
        said = _PNG_SIZE.unpack_from(data, _PNG_SIZE_AT)
        if _fits(said, size, factor):
            size = said
    # Two bytes of data can stand for any number of pixels.
    check_pixels(size)
    try:
        levels = np.asarray(alpha.decode(data, size))
    except OSError as e:
        msg = "damaged SDZ file: chunk mASK is not an alpha channel of the picture's size"
        raise OSError(msg) from e
    return levels.astype(np.float32) / np.float32(LEVELS)


def _fits(mask: tuple[int, ...], size: tuple[int, int], factor: int) -> bool:
    """Whether a mask (width, height) may belong to a picture of this size."""
    latents = tuple(-(-side // factor) for side in size)
    return mask == size or tuple(side // factor for side in mask) == latents


def _array(mask: Any) -> tuple[NDArray[Any], float]:
    """A mask as an array, and how near its values must be to levels."""
    near = NEAR
    if hasattr(mask, "detach"):  # a tensor; torch is not imported to find out
        tensor = mask.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":  # numpy has no bfloat16
            tensor, near = tensor.float(), NEAR_IN_BFLOAT16
        mask = tensor.numpy()
    return np.asarray(mask), near


def _levels(values: NDArray[Any], near: float) -> NDArray[np.uint8]:
    if values.dtype.kind in "fiub":
        scaled = values.astype(np.float64) * LEVELS
        with np.errstate(invalid="ignore"):  # NaN becomes another value, and is refused below
            levels = np.rint(np.clip(scaled, 0, LEVELS)).astype(np.uint8)
        # This is False for NaN, too.
        if (np.abs(levels - scaled) <= near).all():
            return levels
    msg = "alpha_mask must have values n/255: other values cannot be kept exactly"
    raise ValueError(msg)
