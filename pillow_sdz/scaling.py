"""Scales latents: as autoencoders encode them <-> as pipelines return them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Latents
from .catalogue import ModelSpec, known
from .spaces import CodingSpec


def scaled(latents: NDArray[Any], model: ModelSpec, axis: int = -1) -> Latents:
    """Turn latents as the model's VAE encodes them into latents as pipelines return them.

    ``axis`` is that of the channels.
    """
    factor, shift = scaling(model, latents.ndim - 1 - axis % latents.ndim)
    return (latents.astype(np.float32) - shift) * factor


def unscaled(latents: NDArray[Any], model: ModelSpec, axis: int = -1) -> Latents:
    """Turn latents as pipelines return them into latents as the model's VAE encodes them."""
    factor, shift = scaling(model, latents.ndim - 1 - axis % latents.ndim)
    return latents.astype(np.float32) / factor + shift


def scaling(model: ModelSpec, after: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The scaling and the shift of the model's latent space; ValueError if they are not known.

    They broadcast to latents that have ``after`` axes after the axis of channels.
    """
    space = model.space
    if space.scaling is None:
        msg = (
            f"the scaling of {model.latent_space} latents is not known here: scale them as "
            "pipelines do, or keep them as they are under another name, with a factor"
        )
        raise ValueError(msg)
    factor, shift = (np.array(each, np.float32) for each in (space.scaling, space.shift))
    ones = (1,) * after
    return (
        factor.reshape(*factor.shape, *ones) if factor.ndim else factor,
        shift.reshape(*shift.shape, *ones) if shift.ndim else shift,
    )


def unpatched(patches: Latents) -> Latents:
    """Latents (h, w, 4 C) of 2x2 patches as latents (2 h, 2 w, C)."""
    height, width, depth = patches.shape
    split = patches.reshape(height, width, depth // 4, 2, 2).transpose(0, 3, 1, 4, 2)
    return split.reshape(2 * height, 2 * width, depth // 4)


def check_others_can_scale(model: ModelSpec) -> None:
    """ValueError if other computers do not know how the model's latents are scaled.

    If latents are stored unscaled, every reader must know their scaling.
    """
    scaling(model)
    if known(model.name) is None:
        msg = (
            f"other computers do not know the scaling of {model.name} latents, so they cannot be "
            "stored unscaled: scale them first"
        )
        raise ValueError(msg)


def is_unscaled(coding: CodingSpec, quantisation: int) -> bool:
    """Whether latents of this quantisation are stored as the VAE encodes them."""
    return coding.unscaled == quantisation
