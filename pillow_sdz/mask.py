"""Masks that belong to latents <-> bytes: the data of the mASK chunk, as docs/format.md has it."""

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
# How far a value may be from n / 255, in levels.  Chosen: float16 rounds 1 / 255 and n times that
# by 0.13 levels at most; masks that were scaled have values anywhere.
NEAR = 0.25
# bfloat16 rounds n / 255 itself by 0.498 levels at most, so that the nearest is always right.
NEAR_IN_BFLOAT16 = 0.5

_PNG_SIZE = struct.Struct(">II")
_PNG_SIZE_AT = 17  # in the data: after the method, the signature, and the length and type of IHDR


def encode(mask: ArrayLike | torch.Tensor, size: tuple[int, int], factor: int) -> bytes:
    """The data of the mASK chunk; ValueError where a mask is none for a picture of this size.

    It has the picture's (height, width), or those of the picture that was rounded down to whole
    latents, which VAEs do; its values are n / 255, as exactly as its type has them.
    """
    values, near = _array(mask)
    if values.ndim != 2 or not _fits(values.shape[::-1], size, factor):
        msg = f"alpha_mask has the shape {values.shape}, the picture has {size[::-1]}"
        raise ValueError(msg)
    picture = Image.fromarray(_levels(values, near))
    # A constant has the picture's size.
    return alpha.encode(picture) if picture.size == size else alpha.png(picture)


def decode(data: bytes, size: tuple[int, int], factor: int) -> NDArray[np.float32]:
    """The mask (height, width) in the data of a mASK chunk, in 0..1."""
    if len(data) >= _PNG_SIZE_AT + _PNG_SIZE.size:
        said = _PNG_SIZE.unpack_from(data, _PNG_SIZE_AT)
        if _fits(said, size, factor):
            size = said
    # A mask is pixels, of which two bytes may ask for as many as the header says.
    check_pixels(size)
    try:
        levels = np.asarray(alpha.decode(data, size))
    except OSError as e:
        msg = "damaged SDZ file: chunk mASK is no alpha channel of the picture's size"
        raise OSError(msg) from e
    return levels.astype(np.float32) / np.float32(LEVELS)


def _fits(mask: tuple[int, ...], size: tuple[int, int], factor: int) -> bool:
    """Whether a mask of this (width, height) may belong to latents of such a picture."""
    latents = tuple(-(-side // factor) for side in size)
    return mask == size or tuple(side // factor for side in mask) == latents


def _array(mask: Any) -> tuple[NDArray[Any], float]:
    """A mask as an array, and how near to its levels its values must be."""
    near = NEAR
    if hasattr(mask, "detach"):  # torch's, which is not imported for others
        tensor = mask.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":  # which numpy has not
            tensor, near = tensor.float(), NEAR_IN_BFLOAT16
        mask = tensor.numpy()
    return np.asarray(mask), near


def _levels(values: NDArray[Any], near: float) -> NDArray[np.uint8]:
    if values.dtype.kind in "fiub":
        scaled = values.astype(np.float64) * LEVELS
        with np.errstate(invalid="ignore"):  # NaN becomes something else, and is found so
            levels = np.rint(np.clip(scaled, 0, LEVELS)).astype(np.uint8)
        # Written so that NaN fails, too.
        if (np.abs(levels - scaled) <= near).all():
            return levels
    msg = "alpha_mask has values other than n/255, which cannot be kept exactly"
    raise ValueError(msg)
