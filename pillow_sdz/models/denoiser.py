"""The contract between denoising and every network that predicts noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Steps(Protocol):
    """The last steps of a model's schedule: `schedule.Schedule`, or `flow.Flow`."""

    def last(self, strength: float, steps: int) -> list[tuple[int, int]]:
        """The last times, from ``strength`` of the schedule on, each with the time after it."""
        ...

    def noisy(self, latents: Tensor, time: int) -> Tensor:
        """Latents that have the noise of a time, scaled as the model expects noisy latents."""
        ...

    def step(self, x: Tensor, predicted: Tensor, time: int, after: int) -> Tensor:
        """Noisy latents at ``time`` to those at ``after``."""
        ...


@dataclass(frozen=True)
class Scaling:
    """The mean and the deviation of latents, each (C, side, side), repeated over all places."""

    mean: Tensor
    deviation: Tensor

    def scaled(self, x: Tensor) -> Tensor:
        """Scale a decoder's latents (1, C, h, w) as the network expects them."""
        mean, deviation = self._over(x)
        return (x - mean) / deviation

    def unscaled(self, x: Tensor) -> Tensor:
        """The inverse of `scaled`."""
        mean, deviation = self._over(x)
        return x * deviation + mean

    def _over(self, x: Tensor) -> Iterator[Tensor]:
        side = self.mean.shape[-1]
        for each in (self.mean, self.deviation):
            yield each.to(x).repeat(1, x.shape[2] // side, x.shape[3] // side)


@dataclass(frozen=True)
class Denoiser:
    """A network, the schedule that it was made for, and how it gets prompts.

    ``predict`` takes noisy latents (1, C, h, w), their time, and the result of ``embed`` for a
    prompt.  The latents are on ``device`` and of ``dtype``, and h and w are multiples of
    ``multiple``.  It predicts what ``schedule`` takes.  ``embed`` is None if the network takes no
    prompt.  ``unet`` is the loaded module, if it is a U-Net of diffusers.  ``memory`` is how many
    bytes the network takes for each latent, or 0 if tiles of the usual size are small enough.
    ``kind`` is the name of the network in messages.  ``own`` scales the latents as the network
    knows them, if the decoder's latents are scaled in another way.
    """

    predict: Callable[[Tensor, int, Any], Tensor]
    schedule: Steps
    device: torch.device
    dtype: torch.dtype
    multiple: int
    embed: Callable[[str], Any] | None = None
    unet: Any = None
    memory: int = 0
    kind: str = "U-Net"
    own: Scaling | None = None
