"""The floating-point prior of `mini`, second generation, that training sees.

Base latents: hyperlatents at 1/32 (Ballé et al., "Variational image compression with a
scale hyperprior", ICLR 2018), a checkerboard of two passes (He et al., CVPR 2021) and two
groups of channels, the second told of the first (He et al., "ELIC", CVPR 2022).

Details: scales alone, their means being zero, from hyperlatents of their own, the base
latents and hyperlatents, and magnitudes: those of the groups of channels before, at the
place and around it, and in the second pass of a checkerboard the same group's around it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pillow_sdz.models.mini.network import HyperAnalysis
from training.mini2.network import CHANNELS, DETAILS, spread
from training.mini2.network import GROUPS as DETAIL_GROUPS
from training.prior import checkerboard, logistic_bits

HYPER_CHANNELS = 32
FEATURES = 96
CONTEXT = 64
HIDDEN = 192
# Channels come out of the initial principal components in order of their energy, so the
# first group is small and tells the most.  Chosen.
GROUPS = (48, 112)

DETAIL_HYPER = 16
DETAIL_FEATURES = 48
DETAIL_TRUNK = 64
DETAIL_CONTEXT = 48
DETAIL_HIDDEN = 96
# At first a scale of a quarter of a step: most details are zero.
FIRST_LOG_SCALE = -1.4


def even(x: Tensor) -> Tensor:
    """Padded by zeros to whole pairs, for which one hyperlatent stands."""
    return F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))


class HyperScale(nn.Module):
    """Bits of hyperlatents (B, Z, h, w), of zero mean and a scale that grows with the rate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(2, channels))

    def forward(self, hyper: Tensor, rate: Tensor) -> Tensor:
        """(B,)"""
        base, slope = self.coefficients[:, :, None, None]
        log_scale = base + slope * rate
        return logistic_bits(hyper, torch.zeros_like(hyper), log_scale).sum((1, 2, 3))


class Prior(nn.Module):
    """Probabilities of quantised base latents (B, C, h, w) and of hyperlatents."""

    def __init__(self) -> None:
        super().__init__()
        f, z = FEATURES, HYPER_CHANNELS
        self.analysis = HyperAnalysis(z, f)
        self.hyper_scale = HyperScale(z)
        self.synthesis = nn.Conv2d(z, f, 3, padding=1)
        self.synthesis_up = nn.ConvTranspose2d(f, f, 4, stride=2, padding=1)
        self.context = nn.Conv2d(CHANNELS, CONTEXT, 5, padding=2, bias=False)
        starts = [sum(GROUPS[:i]) for i in range(len(GROUPS))]
        self.first = nn.ModuleList(nn.Conv2d(f + CONTEXT + 1 + s, HIDDEN, 1) for s in starts)
        self.last = nn.ModuleList(nn.Conv2d(HIDDEN, 2 * g, 1) for g in GROUPS)

    def features(self, hyper: Tensor) -> Tensor:
        """Hyperlatents (B, Z, h/2, w/2) to features (B, FEATURES, h, w)."""
        y: Tensor = F.relu(self.synthesis_up(F.relu(self.synthesis(hyper))))
        return y

    def parameters_of(
        self, features: Tensor, symbols: Tensor, rate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Means and log scales (B, C, h, w), each from what its decoder knows by then."""
        first_pass = checkerboard(symbols)
        context = self.context(symbols * first_pass) * (1 - first_pass)
        t = spread(rate, 2, *symbols.shape[2:]).expand(-1, -1, *symbols.shape[2:])
        known = torch.cat([features, context, t], dim=1)
        means, log_scales, start = [], [], 0
        for first, last, group in zip(self.first, self.last, GROUPS, strict=True):
            hidden = F.relu(first(torch.cat([known, symbols[:, :start]], 1)))
            mean, log_scale = last(hidden).chunk(2, 1)
            means.append(mean)
            log_scales.append(log_scale)
            start += group
        return torch.cat(means, 1), torch.cat(log_scales, 1)

    def bits(self, latents: Tensor, rate: Tensor, *, hard: bool) -> tuple[Tensor, Tensor]:
        """Bits of each picture (B,), noise in the place of rounding unless ``hard``; and the
        features of the rounded hyperlatents, for the details."""
        height, width = latents.shape[2:]
        # Hyperlatents stand for pairs of latents, of which the last may be missing.
        hyper = self.analysis(even(latents)).float()
        with torch.autocast(latents.device.type, enabled=False):
            if hard:
                hyper, symbols = torch.round(hyper), torch.round(latents)
            else:
                hyper = hyper + torch.rand_like(hyper) - 0.5
                symbols = latents + torch.rand_like(latents) - 0.5
            features = self.features(hyper)[..., :height, :width]
            mean, log_scale = self.parameters_of(features, symbols, rate)
            total = self.hyper_scale(hyper, rate)
            return total + logistic_bits(symbols, mean, log_scale).sum((1, 2, 3)), features


def levels(symbols: Tensor) -> Tensor:
    """Magnitudes on a scale of octaves: what says how large the next ones may be."""
    return torch.log2(1 + symbols.abs())


def around(x: Tensor) -> Tensor:
    """For each place, the sum over the eight around it."""
    return F.avg_pool2d(x, 3, 1, 1, divisor_override=1) - x


class DetailPrior(nn.Module):
    """Probabilities of quantised details (B, 192, 2h, 2w) beside base latents (B, C, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        f, z, c = DETAIL_FEATURES, DETAIL_HYPER, DETAIL_CONTEXT
        self.analysis = nn.Sequential(
            nn.Conv2d(DETAILS, 64, 1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 4, stride=4),
            nn.ReLU(),
            nn.Conv2d(64, z, 1),
        )
        self.hyper_scale = HyperScale(z)
        self.synthesis_up = nn.ConvTranspose2d(z, f, 4, stride=2, padding=1)
        self.trunk = nn.Conv2d(FEATURES + CHANNELS + f + 1, 4 * DETAIL_TRUNK, 1)
        # Of each group: for the groups after it, and for its own second pass.
        self.after = nn.ModuleList(nn.Conv2d(2 * g, c, 1) for g in DETAIL_GROUPS[:-1])
        self.beside = nn.ModuleList(nn.Conv2d(g, c, 1) for g in DETAIL_GROUPS)
        self.hidden = nn.ModuleList(
            nn.Conv2d(DETAIL_TRUNK + c * (1 + i), DETAIL_HIDDEN, 1)
            for i in range(len(DETAIL_GROUPS))
        )
        self.last = nn.ModuleList(nn.Conv2d(DETAIL_HIDDEN, g, 1) for g in DETAIL_GROUPS)
        for layer in self.last:
            nn.init.constant_(torch.as_tensor(layer.bias), FIRST_LOG_SCALE)

    def log_scales(self, symbols: Tensor, known: Tensor) -> Tensor:
        """(B, 192, 2h, 2w) from the details themselves and what is known (B, K, h, w)."""
        trunk = F.pixel_shuffle(F.relu(self.trunk(known)), 2)
        first_pass = checkerboard(symbols)
        out, before, start = [], [trunk], 0
        for i, group in enumerate(DETAIL_GROUPS):
            level = levels(symbols[:, start : start + group])
            start += group
            beside = self.beside[i](around(level * first_pass)) * (1 - first_pass)
            hidden = F.relu(self.hidden[i](torch.cat([*before, F.relu(beside)], 1)))
            out.append(self.last[i](hidden))
            if i < len(self.after):
                before.append(F.relu(self.after[i](torch.cat([level, around(level)], 1))))
        return torch.cat(out, 1)

    def bits(
        self, steps: Tensor, base: Tensor, features: Tensor, rate: Tensor, *, hard: bool
    ) -> Tensor:
        """Bits of each picture (B,) for its details in steps (B, 192, 2h, 2w).

        ``base`` are rounded base latents and ``features`` those of their prior.  The prior
        learns from rounded details, since most are zero, of which noise would say nothing;
        gradients to the steps go by noise, whose own scales are not trained.
        """
        height, width = base.shape[2:]
        with torch.autocast(steps.device.type, enabled=False):
            symbols = torch.round(steps.detach())
            level = levels(steps.detach())
            hyper = self.analysis(F.pad(level, (0, 2 * width % 4, 0, 2 * height % 4)))
            hyper = torch.round(hyper) if hard else hyper + torch.rand_like(hyper) - 0.5
            own = F.relu(self.synthesis_up(hyper))[..., :height, :width]
            t = spread(rate, 2, height, width).expand(-1, -1, height, width)
            known = torch.cat([features, levels(base), own, t], 1)
            log_scale = self.log_scales(symbols, known)
            zero = symbols.new_zeros(())
            bits = logistic_bits(symbols, zero, log_scale).sum((1, 2, 3))
            if not hard:
                noisy = steps + torch.rand_like(steps) - 0.5
                by_noise = logistic_bits(noisy, zero, log_scale.detach()).sum((1, 2, 3))
                bits = bits + by_noise - by_noise.detach()
            total: Tensor = bits + self.hyper_scale(hyper, rate)
            return total
