"""Checks what is registered or recorded as a model, and makes its specification."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from ..catalogue import EMBEDDED, ModelSpec, known, whole_of
from ..header import ANY_NAME, is_name
from ..presets import Preset
from . import sources
from .configurations import Numbers
from .sources import DenoiserParts, Shape


def remedy(spec: ModelSpec) -> str:
    """What makes this computer know a model that it does not know, for a message."""
    from ..families import FROM_FOLDERS  # here, because files of the embedded models do not need it

    spec = whole_of(spec) or spec
    call = f"call register_model({spec.name!r}, AUTOENCODER)"
    if known(spec.name) and spec.latent_space not in FROM_FOLDERS:
        return call
    return f"run 'sdz models add {spec.name} DIRECTORY', {call}"


def only_a_family(spec: ModelSpec) -> str:
    """What is missing if only the latents of a family are known here, for a message."""
    return f"no autoencoder of {spec.name} latents is known here: {remedy(spec)}"


def misplaced(spec: ModelSpec) -> str | None:
    """Why a model that is not this package's own cannot be of its latent space, or None."""
    space = spec.space
    if space.is_own:
        return f"{space.name} latents belong to one model alone: choose another latent space"
    if (spec.channels, spec.factor) != (space.channels, space.factor):
        return (
            f"{space.name} latents have {space.channels} channels at a factor of {space.factor}, "
            f"but this autoencoder has {spec.channels} at {spec.factor}"
        )
    return None


def new(
    name: str,
    shape: Shape,
    parts: DenoiserParts | None,
    sha256: str,
    latent_space: str | None,
    presets: Mapping[str, Preset],
) -> ModelSpec:
    """The model to register; ValueError or OSError if it is not allowed.

    Warns if its latents are not scaled as those of other models of its latent space.
    """
    if not is_name(name):
        msg = f"a model's name must have {ANY_NAME}, not {name!r}"
        raise ValueError(msg)
    if name in EMBEDDED:
        msg = f"{name!r} is the name of a model that comes with pillow-sdz"
        raise ValueError(msg)
    if parts is not None and parts.pipeline is None:
        sources.check_denoiser(parts, shape.channels)
    family = known(name)
    if latent_space is None:
        latent_space = family.latent_space if family else name
    if not is_name(latent_space):
        msg = f"a latent space must have a name such as sd1, not {latent_space!r}"
        raise ValueError(msg)
    preset = presets.get(name)
    pinned = preset.autoencoder.files[-1].sha256 if preset else None
    is_other = family is not None and latent_space != family.latent_space
    if is_other or sha256 != (pinned or sha256):
        msg = f"{name!r} is a known model with other weights or latents: choose another name"
        raise ValueError(msg)
    spec = ModelSpec(name, shape.channels, shape.factor, bytes.fromhex(sha256)[:4], latent_space)
    if complaint := misplaced(spec):
        raise ValueError(complaint)
    _warn_of_scaling(spec, shape)
    return spec


def _warn_of_scaling(spec: ModelSpec, shape: Shape) -> None:
    """Warn if the scaling is neither that of the latent space nor none at all.

    A distilled autoencoder needs none, because it returns scaled latents.
    """
    space = spec.space
    if space.scaling is None:
        return
    import numpy as np  # here, because most models that are registered have a space of their own

    none = np.zeros(spec.channels)
    found, unscaled, wanted = (
        np.stack(np.broadcast_arrays(*pair, none)[:2])
        for pair in ((shape.scaling, shape.shift), (1, 0), (space.scaling, space.shift))
    )
    # Chosen: statistics are published with 4 digits or more.
    if not any(np.allclose(found, each, rtol=1e-3, atol=1e-4) for each in (wanted, unscaled)):
        msg = (
            f"pictures of other {space.name} models will have wrong colours with {spec.name!r}, "
            f"and its own will with others: its scaling and shift are {_said(shape.scaling)} and "
            f"{_said(shape.shift)}, not {_said(space.scaling)} and {_said(space.shift)}. "
            "If they are meant, choose another latent space"
        )
        warnings.warn(msg, stacklevel=4)


def _said(numbers: Numbers) -> str:
    """A number for a message, or the first of several."""
    if isinstance(numbers, (int, float)):
        return f"{numbers:g}"
    return f"{numbers[0]:g}, ..."
