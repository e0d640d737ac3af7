"""The noise schedule of a diffusion model, and its steps without noise: DDIM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import configurations


class Schedule(NamedTuple):
    """The share of the latents at each timestep, and what the U-Net predicts.

    ``kept`` (T,), float32, falls from near 1.  It is the share of the original latents in the power
    of noisy latents.  ``predicts`` is "epsilon" (the noise), "sample" (the latents) or
    "v_prediction" (Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion
    Models", 2022).
    """

    kept: Tensor
    predicts: str

    @classmethod
    def of(cls, settings: Mapping[str, Any], where: object) -> Schedule:
        """The schedule in a configuration, of any class; OSError with the field's name."""
        found = configurations.checked("scheduler", settings, where)
        kept = torch.cumprod(1 - _betas(found), 0)
        if found.get("rescale_betas_zero_snr"):
            kept = _without_signal_at_the_end(kept)
        return cls(kept, found.get("prediction_type", "epsilon"))

    def last(self, strength: float, steps: int) -> list[tuple[int, int]]:
        """The last timesteps, from ``strength`` of the schedule on, each with the one after it.

        There are at most as many as the schedule has from there on.  The last one is followed by
        -1, without noise.  diffusers' DDIMScheduler with trailing spacing has the same timesteps.
        """
        in_all = len(self.kept)
        steps = min(steps, max(1, round(strength * in_all)))
        count = min(round(steps / strength), in_all)
        times = np.round(np.arange(in_all, 0, -in_all / count)).astype(int) - 1
        return [(t, max(t - in_all // count, -1)) for t in times[-steps:].tolist()]

    def noisy(self, latents: Tensor, time: int) -> Tensor:
        """Latents that have the noise of a timestep, scaled as the U-Net expects noisy latents."""
        return latents * self.kept[time].sqrt()

    def step(self, x: Tensor, predicted: Tensor, time: int, after: int) -> Tensor:
        """Noisy latents at ``time`` to those at ``after`` (Song et al. 2021, eta 0)."""
        kept = self.kept[time]
        signal, noise = kept.sqrt(), (1 - kept).sqrt()
        if self.predicts == "epsilon":
            latents, epsilon = (x - noise * predicted) / signal, predicted
        elif self.predicts == "sample":
            latents, epsilon = predicted, (x - signal * predicted) / noise
        else:
            latents, epsilon = signal * x - noise * predicted, signal * predicted + noise * x
        left = self.kept[after] if after >= 0 else torch.ones_like(kept)
        return left.sqrt() * latents + (1 - left).sqrt() * epsilon


def _betas(settings: Mapping[str, Any]) -> Tensor:
    """The noise that each timestep adds, (T,)."""
    if (trained := settings.get("trained_betas")) is not None:
        return torch.tensor(trained, dtype=torch.float32)
    count, start, end = (
        settings[name] for name in ("num_train_timesteps", "beta_start", "beta_end")
    )
    if settings["beta_schedule"] == "linear":
        return torch.linspace(start, end, count, dtype=torch.float32)
    if settings["beta_schedule"] == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2
    # "squaredcos_cap_v2": Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic
    # Models", 2021, with their offset of 0.008 and their cap of 0.999.
    places = torch.arange(count + 1, dtype=torch.float64) / count
    kept = torch.cos((places + 0.008) / 1.008 * torch.pi / 2) ** 2
    return (1 - kept[1:] / kept[:-1]).clamp_max(0.999).float()


def _without_signal_at_the_end(kept: Tensor) -> Tensor:
    """``kept``, shifted so that the last timestep is noise alone (Lin et al. 2023, algorithm 1)."""
    signal = kept.sqrt()
    return ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2
