"""The prior of `mini` in floating point, as it is trained.

It has hyperlatents at 1/32 (Ballé et al., "Variational image compression with a scale hyperprior",
ICLR 2018), a checkerboard of two passes (He et al., CVPR 2021), and groups of channels, which are
predicted from the groups before (He et al., "ELIC", CVPR 2022).

Each channel also has a linear prediction of its magnitude, as in hand-made coders of transform
coefficients.  It is made from the magnitudes of the groups before, at the place and around it.  In
the second pass, the four places beside it, in the same group, are used too.  The prediction is
fitted by least squares before training (`Magnitudes.fit`), and the networks correct it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pillow_sdz.codings.rate_axis import KNOTS
from pillow_sdz.models.mini import rate as rate_model
from pillow_sdz.models.mini.network import Analysis, knots, spread
from pillow_sdz.models.mini.rate import checkerboard, logistic_bits
from pillow_sdz.models.mini.shape import BASE, CHANNELS
from training.mini.symbols import chosen, rate_weights

HYPER_CHANNELS = 32
FEATURES = 96
CONTEXT = 64
AROUND = 48
HIDDEN = 192
# Channels are in the order of their energy, so the first group is small and helps the others most.
# The last four groups are the tail.  Chosen.
GROUPS = (16, 24, 24, 48, 48, 48, 48, 64, 64)
BASE_GROUPS = 5
assert sum(GROUPS[:BASE_GROUPS]) == BASE
assert sum(GROUPS) == CHANNELS
# In the latents' gradient, the mean of a small scale is replaced by the nearest integer.  The mean
# of a large scale stays as it is.  Without this, weak channels drift away from zero: if a latent
# and its mean are shifted together, noise shows no difference, but rounding does.  Chosen.
SMALL_SCALE, LARGE_SCALE = 0.15, 0.5
# A pull to the nearest integer: bits for a distance of one step, at the upper end of the rate axis.
# At the lower end there is none.  The pull is only a gradient; it adds nothing to the loss.  The
# other gradients see a latent that is rounded to zero as an error that a larger latent would mend.
# But the larger latent would be rounded to zero, too.  So without the pull, weak channels grow.
# Measured on 16 training crops, at places from 0.15 to 0.9: without it, the derivative by the scale
# of latents is wrong by about this much (a script that is not in this repository).
COMMITMENT = 3.0
LARGEST = 60.0  # magnitudes are clipped to this, so that a single one does not spoil a prediction


def even(x: Tensor) -> Tensor:
    """Padded with zeros to even height and width: each hyperlatent stands for 2x2 latents."""
    return F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))


def levels(symbols: Tensor) -> Tensor:
    """Logarithms of magnitudes plus 1, in octaves."""
    return torch.log2(1 + symbols.abs())


def around(x: Tensor) -> Tensor:
    """For each place, the mean over the eight around it (zeros beyond the border)."""
    return (F.avg_pool2d(x, 3, 1, 1, divisor_override=1) - x) / 8


def beside(x: Tensor) -> Tensor:
    """For each place, the mean over the four beside it (zeros beyond the border)."""
    return rate_model.beside(x) / 4


def centres(mean: Tensor, log_scale: Tensor) -> Tensor:
    """The centres that the noisy latents are coded with.

    They are the nearest integer if the scale is small, the mean if it is large, or in between.
    """
    share = (torch.exp(log_scale) - SMALL_SCALE) / (LARGE_SCALE - SMALL_SCALE)
    return torch.lerp(torch.round(mean), mean, share.clamp(0, 1))


class HyperScale(nn.Module):
    """Bits of hyperlatents (B, Z, h, w).  Their mean is zero; their scale grows with the rate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(2, channels))

    def forward(self, hyper: Tensor, rate: Tensor) -> Tensor:
        """Bits of each picture (B,)."""
        base, slope = self.coefficients[:, :, None, None]
        log_scale = base + slope * rate
        return logistic_bits(hyper, torch.zeros_like(hyper), log_scale).sum((1, 2, 3))


class ScaleOfMagnitude(nn.Module):
    """A table that gives the log scale of the discretised logistic of a given mean magnitude."""

    table: Tensor
    LOW, HIGH, SIZE = math.log(1e-4), math.log(2 * LARGEST), 512

    def __init__(self) -> None:
        super().__init__()
        log_scales = torch.linspace(-4, 6, 2001, dtype=torch.float64)
        symbols = torch.arange(0, 6000, dtype=torch.float64)
        # The mean magnitude is twice the sum of the tails beyond 0.5, 1.5, ...
        means = torch.stack(
            [2 * torch.sigmoid(-(symbols + 0.5) / s).sum() for s in torch.exp(log_scales)]
        )
        grid = torch.exp(torch.linspace(self.LOW, self.HIGH, self.SIZE, dtype=torch.float64))
        places = torch.searchsorted(means, grid).clamp(1, len(means) - 1)
        low, high = means[places - 1].log(), means[places].log()
        share = ((grid.log() - low) / (high - low)).clamp(0, 1)
        table = log_scales[places - 1] + share * (log_scales[places] - log_scales[places - 1])
        self.register_buffer("table", table.float(), persistent=False)

    def forward(self, magnitude: Tensor) -> Tensor:
        x = torch.log(magnitude.clamp(1e-4, LARGEST))
        place = (x - self.LOW) / (self.HIGH - self.LOW) * (self.SIZE - 1)
        low = place.detach().floor().long().clamp(0, self.SIZE - 2)
        share = place - low
        return self.table[low] * (1 - share) + self.table[low + 1] * share


class Magnitudes(nn.Module):
    """The linear prediction of a group's magnitudes (B, G, h, w), for each of the two passes."""

    def __init__(self, before: int, group: int) -> None:
        super().__init__()
        self.before, self.group = before, group
        # For the groups before, at the place and around it, then for the same group beside it.
        self.weight = nn.Parameter(torch.zeros(2, group, 2 * before + group))
        self.bias = nn.Parameter(torch.full((2, KNOTS, group), 0.3))

    def inputs(self, magnitudes: Tensor, first_pass: Tensor) -> Tensor:
        known = magnitudes[:, : self.before]
        own = magnitudes[:, self.before : self.before + self.group]
        sides = beside(own * first_pass)
        return torch.cat([known, around(known), sides], 1) if self.before else sides

    def forward(self, magnitudes: Tensor, first_pass: Tensor, rate: Tensor) -> Tensor:
        x = self.inputs(magnitudes, first_pass)
        n = 2 * self.before
        near = knots(rate)
        size = x.shape[2:]
        bias = [spread(torch.einsum("bkhw,kc->bchw", near, b), 2, *size) for b in self.bias]
        first = F.conv2d(x[:, :n], self.weight[0, :, :n, None, None]) if n else 0.0
        second = F.conv2d(x, self.weight[1, :, :, None, None])
        return torch.where(first_pass > 0, first + bias[0], second + bias[1])

    @torch.no_grad()
    def fit(self, samples: list[tuple[Tensor, Tensor]], ridge: float) -> None:
        """Least squares on magnitudes (1, CHANNELS, h, w) at rates (1, 1, 1, 1)."""
        n, g = 2 * self.before, self.group
        for number, parity in enumerate((1, 0)):
            size = n + (g if number else 0)
            products = torch.zeros(size + KNOTS, size + KNOTS, dtype=torch.float64)
            targets = torch.zeros(size + KNOTS, g, dtype=torch.float64)
            for magnitudes, rate in samples:
                first_pass = checkerboard(magnitudes)
                chosen = (first_pass[0, 0] == parity).flatten()
                x = self.inputs(magnitudes, first_pass)[0, :size].flatten(1)[:, chosen]
                near = knots(rate)[0, :, 0].expand(-1, x.shape[1])
                x = torch.cat([x, near]).double()
                y = magnitudes[0, self.before : self.before + g].flatten(1)[:, chosen].double()
                # Small magnitudes are as important as large ones.
                weight = 1 / (0.1 + y.mean()) ** 2
                products += weight * x @ x.T
                targets += weight * x @ y.T
            scale = ridge * products.diagonal().mean()
            solved = torch.linalg.solve(products + scale * torch.eye(len(products)), targets).T
            self.weight[number, :, :size] = solved[:, :size].float()
            self.bias[number] = solved[:, size:].T.float()


class Prior(nn.Module):
    """Probabilities of quantised latents (B, CHANNELS, h, w) and of hyperlatents."""

    def __init__(self) -> None:
        super().__init__()
        f, z = FEATURES, HYPER_CHANNELS
        self.analysis = Analysis(z, f)
        self.hyper_scale = HyperScale(z)
        self.synthesis = nn.Conv2d(z, f, 3, padding=1)
        self.synthesis_up = nn.ConvTranspose2d(f, f, 4, stride=2, padding=1)
        starts = [sum(GROUPS[:i]) for i in range(len(GROUPS))]
        # The first channel whose symbols of the first pass are seen.  A group of the base sees all
        # groups so far, a group of the tail only itself.
        self.seen = [0 if s < BASE else s for s in starts]
        self.context = nn.ModuleList(
            nn.Conv2d(s + g - n, CONTEXT, 3 if n else 5, padding="same", bias=False)
            for s, g, n in zip(starts, GROUPS, self.seen, strict=True)
        )
        # These see the magnitudes of the groups before.
        self.around = nn.ModuleList(nn.Conv2d(s, AROUND, 3, padding=1) for s in starts[1:])
        self.magnitudes = nn.ModuleList(
            Magnitudes(s, g) for s, g in zip(starts, GROUPS, strict=True)
        )
        self.first = nn.ModuleList(
            nn.Conv2d(f + CONTEXT + (AROUND if s else 0) + KNOTS + s, HIDDEN, 1) for s in starts
        )
        self.last = nn.ModuleList(nn.Conv2d(HIDDEN, 2 * g, 1) for g in GROUPS)
        for layer in self.last:
            nn.init.zeros_(torch.as_tensor(layer.weight))
            nn.init.zeros_(torch.as_tensor(layer.bias))
        self.scale = ScaleOfMagnitude()

    def features(self, hyper: Tensor) -> Tensor:
        """Hyperlatents (B, Z, h/2, w/2) to features (B, FEATURES, h, w)."""
        y: Tensor = F.relu(self.synthesis_up(F.relu(self.synthesis(hyper))))
        return y

    def parameters_of(
        self, features: Tensor, symbols: Tensor, rate: Tensor, groups: int
    ) -> tuple[Tensor, Tensor]:
        """Means and log scales (B, C, h, w), each from what a decoder knows at that point."""
        first_pass = checkerboard(symbols)
        near = spread(knots(rate), 2, *symbols.shape[2:]).expand(-1, -1, *symbols.shape[2:])
        known = torch.cat([features, near], dim=1)
        magnitudes = symbols.detach().abs().clamp(max=LARGEST)
        level = levels(symbols.detach())
        means, log_scales, start = [], [], 0
        for i, group in enumerate(GROUPS[:groups]):
            end = start + group
            seen = symbols[:, self.seen[i] : end] * first_pass
            inputs = [known, F.relu(self.context[i](seen)) * (1 - first_pass)]
            if start:
                inputs += [F.relu(self.around[i - 1](level[:, :start])), symbols[:, :start]]
            hidden = F.relu(self.first[i](torch.cat(inputs, 1)))
            mean, correction = self.last[i](hidden).chunk(2, 1)
            predicted = self.magnitudes[i](magnitudes, first_pass, rate)
            means.append(mean)
            log_scales.append(self.scale(predicted) + correction)
            start = end
        return torch.cat(means, 1), torch.cat(log_scales, 1)

    def forward(
        self, latents: Tensor, active: Tensor, rate: Tensor, *, hard: bool, whole: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Bits of each picture (B,), of the base and of the tail, and the symbols (B, C, h, w).

        ``active`` (B, 1, h, w) or (B, 1, 1, 1) is 1 where there is a tail, and ``whole`` says
        whether there is one anywhere.  ``latents`` are in quantisation steps; the tail's are zero
        where there is no tail.  The symbols are those that the package's encoder chooses.  Their
        gradient is that of the latents.

        The prior learns from the symbols: most are zero, and with noise the prior would learn
        nothing about zeros.  The latents get their gradient from noisy latents, and this gradient
        does not train the means and scales.
        """
        height, width = latents.shape[2:]
        hyper = self.analysis(even(latents[:, :BASE])).float()
        with torch.autocast(latents.device.type, enabled=False):
            hyper = torch.round(hyper) if hard else hyper + torch.rand_like(hyper) - 0.5
            features = self.features(hyper)[..., :height, :width]
            groups = len(GROUPS) if whole else BASE_GROUPS
            count = sum(GROUPS[:groups])
            known = latents[:, :count]
            integers = torch.round(latents.detach())
            with torch.no_grad():
                expected = self.parameters_of(features, integers, rate, groups)
                weight = spread(rate_weights(rate), 2, height, width)
                integers[:, :count] = chosen(known, *expected, weight)
                integers[:, BASE:] *= active
            symbols = latents + (integers - latents).detach()
            mean, log_scale = self.parameters_of(features, symbols, rate, groups)
            bits = logistic_bits(integers[:, :count], mean, log_scale)
            if not hard:
                noisy = known + torch.rand_like(mean) - 0.5
                fixed = log_scale.detach()
                by_noise = logistic_bits(noisy, centres(mean.detach(), fixed), fixed)
                pull = COMMITMENT * spread(rate, 2, height, width)
                distance = pull * (known - integers[:, :count]).abs()
                gradient = by_noise + distance
                bits = bits + gradient - gradient.detach()
            base = bits[:, :BASE].sum((1, 2, 3)) + self.hyper_scale(hyper, rate)
            return base, (bits[:, BASE:] * active).sum((1, 2, 3)), symbols
