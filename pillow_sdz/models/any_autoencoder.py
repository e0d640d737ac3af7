"""Any loaded autoencoder: an object with `encode` and `decode`, from diffusers or anywhere else.

A small grey picture is encoded to find out how it works.  Autoencoders of videos get pictures as
clips of one frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..catalogue import NOT_NAMED
from . import configurations, sources
from .running import undisturbed
from .stable_diffusion import DiffusersAutoencoder, digest, where

PROBE = 64  # pixels a side of the grey picture; the largest factor of published autoencoders is 32

Numbers = float | Sequence[float]


@dataclass(frozen=True)
class Conventions:
    """How an autoencoder is called.

    Latents have ``channels`` at a ``factor``.  ``frames`` says whether pictures and latents have an
    axis of time, and ``alpha`` whether pictures have an alpha channel.  ``pixel_range`` has the
    values of black and white.  Pipelines scale what `encode` returns to (x - shift) * scaling.
    """

    channels: int
    factor: int
    frames: bool
    alpha: bool
    pixel_range: tuple[float, float]
    scaling: Numbers
    shift: Numbers


#: The fields that users may give.
GIVEN = frozenset(("channels", "factor", "pixel_range", "scaling", "shift"))


def weights_digest(autoencoder: Any) -> str:
    """The digest of the weights; zeros, which name no weights, if there is no state dict."""
    if hasattr(autoencoder, "state_dict"):
        return digest(autoencoder)
    return NOT_NAMED.hex() + "00" * 28


@torch.inference_mode()
@undisturbed()
def conventions(autoencoder: Any, given: Mapping[str, Any]) -> Conventions:
    """How to call an autoencoder: as ``given``, as its configuration says, or as a trial shows.

    ``given`` has some fields of `Conventions`; ValueError for others.  OSError if the autoencoder
    cannot be called, or if its latents are not what was given.
    """
    name = type(autoencoder).__name__
    if unknown := given.keys() - GIVEN:
        msg = f"register_model has no {min(unknown)!r}"
        raise ValueError(msg)
    device, dtype = where(autoencoder)
    low, high = given.get("pixel_range", (-1, 1))
    grey = torch.full((1, 3, PROBE, PROBE), (low + high) / 2, device=device, dtype=dtype)
    errors = []
    opaque = torch.cat([grey, torch.full_like(grey[:, :1], high)], 1)
    for images in (grey, grey[:, :, None], opaque, opaque[:, :, None]):
        try:
            latents = _latents(autoencoder.encode(images))
            back = _images(autoencoder.decode(latents))
        except Exception as e:  # somebody's network may raise anything
            errors.append(f"{type(e).__name__}: {e}")
            continue
        if latents.ndim != images.ndim or back.shape != images.shape:
            errors.append(f"{tuple(images.shape)} became {tuple(latents.shape)} and then others")
            continue
        channels, factor = latents.shape[1], PROBE // latents.shape[-1]
        for field, found in (("channels", channels), ("factor", factor)):
            if given.get(field, found) != found:
                msg = f"this {name} has {found} as its {field}, not {given[field]}"
                raise OSError(msg)
        scaling, shift = _scaling(autoencoder, channels)
        return Conventions(
            channels,
            factor,
            images.ndim == 5,
            images.shape[1] == opaque.shape[1],
            (low, high),
            given.get("scaling", scaling),
            given.get("shift", shift),
        )
    msg = f"this {name} is no autoencoder of pictures: {'; '.join(errors)}"
    raise OSError(msg)


def _scaling(autoencoder: Any, channels: int) -> tuple[Numbers, Numbers]:
    """The scaling and shift in diffusers' configuration; 1 and 0 if there is none.

    Some autoencoders, as that of LTX, have the statistics among their weights.
    """
    settings = sources.config(autoencoder)
    named = getattr(autoencoder, "named_buffers", dict)
    buffers = {
        name: tensor.tolist()
        for name, tensor in dict(named()).items()
        if name in ("latents_mean", "latents_std")
    }
    found = configurations.checked(
        "scaling",
        {"latent_channels": channels, **settings, **buffers},
        f"this {type(autoencoder).__name__}",
    )
    factor = found.get("scaling_factor") or 1.0
    shift = found.get("latents_mean") or found.get("shift_factor") or 0.0
    std = found.get("latents_std")
    return (tuple(factor / each for each in std) if std else factor), shift


def _latents(out: Any) -> Tensor:
    """The latents in what `encode` returns.  If that is a distribution, they are its mode."""
    if hasattr(out, "latent_dist"):
        out = out.latent_dist.mode()
    for name in ("latents", "latent"):
        out = getattr(out, name, out)
    return _tensor(out)


def _images(out: Any) -> Tensor:
    return _tensor(getattr(out, "sample", out))


def _tensor(out: Any) -> Tensor:
    found: Tensor = out[0] if isinstance(out, (tuple, list)) else out
    return found


class AnyAutoencoder(DiffusersAutoencoder):
    """A loaded autoencoder whose `Conventions` are known."""

    def __init__(self, autoencoder: Any, how: Conventions) -> None:
        super().__init__(autoencoder, how=how)
        self._how = how
        self._low, self._high = how.pixel_range

    def _encoded(self, module: Any, images: Tensor) -> Tensor:
        images = (images + 1) / 2 * (self._high - self._low) + self._low
        if self._how.alpha:  # pictures are opaque
            images = torch.cat([images, torch.full_like(images[:, :1], self._high)], 1)
        if self._how.frames:
            return _latents(module.encode(images[:, :, None]))[:, :, 0]
        return _latents(module.encode(images))

    def _decoded_by(self, module: Any, latents: Tensor) -> Tensor:
        if self._how.frames:
            images = _images(module.decode(latents[:, :, None]))[:, :, 0]
        else:
            images = _images(module.decode(latents))
        return (images[:, :3] - self._low) / (self._high - self._low) * 2 - 1
