"""The symbols that the package's encoder chooses, in floating point.

They are the nearest integers, or the second nearest ones where these save enough bits
(`pillow_sdz.codings.quantize.ThriftyQuantizer`).  The bits are those of `training.mini.prior`, with
the symbols around as they are when rounded.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pillow_sdz.codings.quantize import rate_weights
from pillow_sdz.codings.rate_axis import LAST
from pillow_sdz.models.mini.network import spread
from pillow_sdz.models.mini.rate import logistic_bits
from pillow_sdz.models.mini.shape import BASE
from training.mini.model import TAIL_FROM, Model
from training.mini.prior import BASE_GROUPS, GROUPS, even


def latents_in_steps(model: Model, images: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Latents (B, C, h, w) in quantisation steps, and the gains that they were multiplied by.

    ``images`` and ``rate`` are as in `Model`.  The tail is zero where the rate is too low for it.
    """
    latents = model.autoencoder.encoder(images, rate)
    height, width = latents.shape[2:]
    gain = model.autoencoder.gain(rate, 2, height, width)
    latents = latents * gain
    active = spread((rate >= TAIL_FROM).float(), 2, height, width)
    return torch.cat([latents[:, :BASE], latents[:, BASE:] * active], 1), gain


@torch.no_grad()
def as_decoded(model: Model, images: Tensor, rate: Tensor) -> Tensor:
    """The latents (B, C, h, w) that a reader of a file gets."""
    latents, gain = latents_in_steps(model, images, rate)
    height, width = latents.shape[2:]
    symbols = torch.round(latents)
    hyper = torch.round(model.prior.analysis(even(latents[:, :BASE])))
    features = model.prior.features(hyper)[..., :height, :width]
    groups = len(GROUPS) if bool((rate >= TAIL_FROM).any()) else BASE_GROUPS
    mean, log_scale = model.prior.parameters_of(features, symbols, rate, groups)
    coded = slice(0, mean.shape[1])
    here, nearest = latents[:, coded], symbols[:, coded]
    other = nearest + torch.where(here > nearest, 1, -1)
    saved = logistic_bits(nearest, mean, log_scale) - logistic_bits(other, mean, log_scale)
    worse = (here - other) ** 2 - (here - nearest) ** 2
    weights = rate_weights(np.round(rate.cpu().numpy() * LAST)).astype(np.float32)
    weight = spread(torch.from_numpy(weights).to(latents.device), 2, height, width)
    symbols[:, coded] = torch.where(worse < weight * saved, other, nearest)
    return symbols / gain
