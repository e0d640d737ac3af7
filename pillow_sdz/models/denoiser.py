"""The contract between denoising and every U-Net."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .schedule import Schedule


@dataclass(frozen=True)
class Denoiser:
    """A U-Net, the schedule that it was made for, and what prompts are to it.

    ``predict`` takes noisy latents (1, C, h, w) on ``device`` and of ``dtype``, h and w multiples
    of ``multiple``, their timestep, and what ``embed`` makes of a prompt: (1, tokens, features).
    It predicts what `Schedule.predicts` says.
    ``embed`` is None if the U-Net takes no prompt.  ``unet`` is the loaded module, if it is one of
    diffusers'.
    """

    predict: Callable[[Tensor, int, Tensor | None], Tensor]
    schedule: Schedule
    device: torch.device
    dtype: torch.dtype
    multiple: int
    embed: Callable[[str], Tensor] | None = None
    unet: Any = None
