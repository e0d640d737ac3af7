"""Any loaded autoencoder: an object with `encode` and `decode`, from diffusers or anywhere else.

A small grey picture is encoded to find out how it works.  Autoencoders of videos get pictures as
clips of one frame.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..catalogue import NOT_NAMED
from . import configurations, sources
from .configurations import CONVENTIONS, Numbers
from .running import undisturbed
from .stable_diffusion import DiffusersAutoencoder, digest, where

PROBE = 64  # pixels a side of the grey picture; the largest factor of published autoencoders is 32


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


def weights_digest(autoencoder: Any) -> str:
    """The digest of the weights; zeros, which name no weights, if there is no state dict."""
    if hasattr(autoencoder, "state_dict"):
        return digest(autoencoder)
    return NOT_NAMED.hex() + "00" * 28


@torch.inference_mode()
@undisturbed()
def conventions(autoencoder: Any, given: Mapping[str, Any]) -> Conventions:
    """How to call an autoencoder: as ``given``, as its configuration says, or as a trial shows.

    ``given`` has some fields of `Conventions`; ValueError for others, and for impossible values.
    OSError if the autoencoder cannot be called, or if its latents are not what was given.
    """
    name = type(autoencoder).__name__
    given = {field: _checked(field, value) for field, value in given.items()}
    device, dtype = where(autoencoder)
    low, high = given.get("pixel_range", (-1, 1))
    grey = torch.full((1, 3, PROBE, PROBE), (low + high) / 2, device=device, dtype=dtype)
    errors = []
    opaque = torch.cat([grey, torch.full_like(grey[:, :1], high)], 1)
    for images in (grey, grey[:, :, None], opaque, opaque[:, :, None]):
        try:
            channels, factor = _tried(autoencoder, images)
        except Exception as e:  # somebody's network may raise anything
            errors.append(f"{type(e).__name__}: {e}")
            continue
        for field, found in (("channels", channels), ("factor", factor)):
            if given.get(field, found) != found:
                msg = f"this {name} has {found} as its {field}, not {given[field]}"
                raise OSError(msg)
        for field in ("scaling", "shift"):
            if len(numbers := np.ravel(given.get(field, 1))) not in (1, channels):
                msg = f"{field} has {len(numbers)} numbers, but the latents {channels} channels"
                raise ValueError(msg)
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
    # The others are of pictures with alpha, which most networks refuse.
    msg = f"this {name} is no autoencoder of pictures: {'; '.join(dict.fromkeys(errors[:2]))}"
    raise OSError(msg)


def _checked(name: str, value: Any) -> Any:
    """The value of a field that a user gives, without arrays."""
    if name not in CONVENTIONS:
        msg = f"register_model has no {name!r}, only {', '.join(sorted(CONVENTIONS))}"
        raise ValueError(msg)
    if hasattr(value, "tolist"):  # of numpy or torch
        value = value.tolist() if value.ndim == 0 else value.reshape(-1).tolist()
    if not CONVENTIONS[name].fits(value):
        msg = f"{name} must be {CONVENTIONS[name].what}, not {reprlib.repr(value)}"
        raise ValueError(msg)
    return value


def _tried(autoencoder: Any, images: Tensor) -> tuple[int, int]:
    """The channels and the factor of the latents of some grey images.

    TypeError or ValueError if the latents or their images are not what they must be.
    """
    latents = _latents(autoencoder.encode(images))
    if not (isinstance(latents, Tensor) and latents.is_floating_point()):
        kind = getattr(latents, "dtype", type(latents).__name__)
        msg = f"encode must return a tensor of floating point latents, not {kind}"
        raise TypeError(msg)
    shape = tuple(latents.shape)
    channels, factor = (shape[1], PROBE // max(1, shape[-1])) if len(shape) > 1 else (0, 0)
    wanted = (1, channels, *images.shape[2:-2], PROBE // max(1, factor), PROBE // max(1, factor))
    if shape != wanted or factor * shape[-1] != PROBE:
        msg = f"images of the shape {tuple(images.shape)} became latents of the shape {shape}"
        raise ValueError(msg)
    back = _images(autoencoder.decode(latents))
    if not isinstance(back, Tensor) or back.shape != images.shape:
        found = getattr(back, "shape", type(back).__name__)
        msg = f"images of the shape {tuple(images.shape)} came back as {found}"
        raise ValueError(msg)
    return channels, factor


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
    return configurations.scaling(found)


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
