"""The floating-point prior that training sees; `quantize_prior.py` turns it into integers.

Hyperlatents at 1/32 (Ballé et al., "Variational image compression with a scale
hyperprior", ICLR 2018), a checkerboard of two passes (He et al., CVPR 2021) and groups of
channels, each told of the groups before it (He et al., "ELIC", CVPR 2022).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pillow_sdz.models.mini.network import HyperAnalysis
from pillow_sdz.models.mini.shape import CHANNELS

HYPER_CHANNELS = 32
FEATURES = 96
HIDDEN = 192
# Channels come out of the initial principal components in order of their energy, so the
# first group is small and tells the most.  Chosen.
GROUPS = (16, 48, 96)


def logistic_bits(symbols: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Bits of integers (or integers plus uniform noise) under a discretised logistic."""
    scale = torch.exp(log_scale.clamp(-3.5, 6))
    # The upper tail is computed as the lower one, where a difference of sigmoids is precise.
    distance = -(symbols - mean).abs()
    mass = torch.sigmoid((distance + 0.5) / scale) - torch.sigmoid((distance - 0.5) / scale)
    return -torch.log2(mass.clamp_min(1e-9))


def checkerboard(like: Tensor) -> Tensor:
    """(1, 1, h, w): 1 where the first pass goes (row + column odd), 0 elsewhere."""
    rows = torch.arange(like.shape[-2], device=like.device)[:, None]
    columns = torch.arange(like.shape[-1], device=like.device)[None]
    return ((rows + columns) % 2).to(like.dtype)[None, None]


class Prior(nn.Module):
    """Probabilities of quantised latents (B, C, h, w) at a rate t (B,)."""

    def __init__(self) -> None:
        super().__init__()
        c, f, z = CHANNELS, FEATURES, HYPER_CHANNELS
        self.analysis = HyperAnalysis(z, f)
        self.synthesis_up = nn.ConvTranspose2d(z, f, 4, stride=2, padding=1)
        self.synthesis = nn.Conv2d(f, f, 3, padding=1)
        self.context = nn.Conv2d(c, f, 5, padding=2, bias=False)
        self.hyper_scale = nn.Parameter(torch.zeros(2, z))
        starts = [sum(GROUPS[:i]) for i in range(len(GROUPS))]
        self.first = nn.ModuleList(nn.Conv2d(2 * f + 1 + s, HIDDEN, 1) for s in starts)
        self.last = nn.ModuleList(nn.Conv2d(HIDDEN, 2 * g, 1) for g in GROUPS)

    def dense(self, group: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """A group's two layers as (weight (outputs, inputs), bias (outputs,)) each."""
        first, last = (m.state_dict() for m in (self.first[group], self.last[group]))
        return (
            (first["weight"][:, :, 0, 0], first["bias"]),
            (last["weight"][:, :, 0, 0], last["bias"]),
        )

    def hyper_bits(self, hyper: Tensor, rate: Tensor) -> Tensor:
        log_scale = self.hyper_scale[0] + self.hyper_scale[1] * rate[:, None]
        return logistic_bits(hyper, torch.zeros_like(hyper), log_scale[:, :, None, None])

    def features(self, hyper: Tensor) -> Tensor:
        """Hyperlatents (B, Z, h/2, w/2) to features (B, FEATURES, h, w)."""
        y: Tensor = F.relu(self.synthesis(F.relu(self.synthesis_up(hyper))))
        return y

    def parameters_of(
        self, features: Tensor, symbols: Tensor, rate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Means and log scales (B, C, h, w), each from what its decoder knows by then."""
        first_pass = checkerboard(symbols)
        context = self.context(symbols * first_pass) * (1 - first_pass)
        t = rate[:, None, None, None].expand(-1, 1, *symbols.shape[2:])
        known = torch.cat([features, context, t], dim=1)
        means, log_scales, start = [], [], 0
        for first, last, group in zip(self.first, self.last, GROUPS, strict=True):
            mean, log_scale = last(F.relu(first(torch.cat([known, symbols[:, :start]], 1)))).chunk(
                2, 1
            )
            means.append(mean)
            log_scales.append(log_scale)
            start += group
        return torch.cat(means, 1), torch.cat(log_scales, 1)

    def bits(self, latents: Tensor, rate: Tensor, *, hard: bool) -> Tensor:
        """Bits of each picture (B,); noise in the place of rounding unless ``hard``."""
        height, width = latents.shape[2:]
        # Hyperlatents stand for pairs of latents, of which the last may be missing.
        hyper = self.analysis(F.pad(latents, (0, width % 2, 0, height % 2)))
        if hard:
            hyper, symbols = torch.round(hyper), torch.round(latents)
        else:
            hyper = hyper + torch.rand_like(hyper) - 0.5
            symbols = latents + torch.rand_like(latents) - 0.5
        with torch.autocast(latents.device.type, enabled=False):
            hyper, symbols = hyper.float(), symbols.float()
            mean, log_scale = self.parameters_of(
                self.features(hyper)[..., :height, :width], symbols, rate
            )
            total = self.hyper_bits(hyper, rate).sum((1, 2, 3))
            return total + logistic_bits(symbols, mean, log_scale).sum((1, 2, 3))
