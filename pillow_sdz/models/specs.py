"""Checks what is registered or recorded as a model, and makes its specification."""

from __future__ import annotations

from collections.abc import Mapping

from ..catalogue import EMBEDDED, ModelSpec, known
from ..header import ANY_NAME, is_name
from ..presets import Preset
from . import sources
from .sources import DenoiserParts


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
    shape: tuple[int, int],
    parts: DenoiserParts | None,
    sha256: str,
    latent_space: str | None,
    presets: Mapping[str, Preset],
) -> ModelSpec:
    """The model to register; ValueError or OSError if it is not allowed.

    ``shape`` is the number of channels of its latents, and their factor.
    """
    if not is_name(name):
        msg = f"a model's name must have {ANY_NAME}, not {name!r}"
        raise ValueError(msg)
    if name in EMBEDDED:
        msg = f"{name!r} is the name of a model that comes with pillow-sdz"
        raise ValueError(msg)
    channels, factor = shape
    if parts is not None and parts.pipeline is None:
        sources.check_denoiser(parts, channels)
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
    spec = ModelSpec(name, channels, factor, bytes.fromhex(sha256)[:4], latent_space)
    if complaint := misplaced(spec):
        raise ValueError(complaint)
    return spec
