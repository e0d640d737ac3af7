"""Turn the trained floating-point prior into integers, for `training.export`.

Weights become int8 per output, activations 12-bit integers whose units are calibrated on
training photos.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pillow_sdz.catalogue import HIGHEST_QUALITY, LOWEST_QUALITY
from pillow_sdz.codings.hyperprior import ACTIVATION_LIMIT, CHECKERBOARD, PARITIES, SQUARE, quadrant
from pillow_sdz.codings.integers import EXACT_SINGLE
from pillow_sdz.codings.range_coder import MEAN_UNITS
from training.prior import GROUPS, Prior, checkerboard

QUALITIES = HIGHEST_QUALITY - LOWEST_QUALITY

# Largest multiplier kept: 20 bits are precise to a millionth and leave room in 62.
MULTIPLIER_BITS = 20


def affine(
    name: str,
    parts: list[tuple[Tensor, float]],
    bias: Tensor,
    units: Tensor,
    *,
    single: bool = False,
) -> dict[str, NDArray[Any]]:
    """Integer form of sum_i W_i x_i + b.

    ``parts`` holds each weight (outputs, inputs) with the unit of its inputs (the real
    value of an integer 1); ``units`` (outputs,) are those of the outputs.  ``single`` keeps
    the sums over activations below 2 ** 24, exact in float32.
    """
    ratios, tensors = [], {}
    for i, (weight, unit) in enumerate(parts):
        step = weight.abs().amax(1) / 127
        if single:
            # Rounding may add half a unit for each input.
            room = (EXACT_SINGLE - 1) // ACTIVATION_LIMIT - weight.shape[1] / 2
            step = torch.maximum(step, weight.abs().sum(1) / room)
        step = step.clamp_min(1e-12)
        tensors[f"{name}.weight{i}"] = torch.round(weight / step[:, None]).to(torch.int8).numpy()
        ratios.append((step * unit / units).double())
    largest = max(r.max().item() for r in ratios)
    shift = max(1, MULTIPLIER_BITS - math.ceil(math.log2(largest)))
    for i, ratio in enumerate(ratios):
        tensors[f"{name}.multiplier{i}"] = torch.round(ratio * 2**shift).to(torch.int32).numpy()
    scaled = torch.round(bias.double() / units.double() * 2.0**shift)
    tensors[f"{name}.bias"] = scaled.to(torch.int64).numpy()
    tensors[f"{name}.shift"] = np.array([shift], np.int32)
    return tensors


def taps_last(weight: Tensor, taps: list[tuple[int, int]]) -> Tensor:
    """A convolution's weight (O, I, k, k) as (O, taps * I) in the order of ``taps``."""
    centre = weight.shape[-1] // 2
    return torch.cat([weight[:, :, centre + dy, centre + dx] for dy, dx in taps], dim=1)


def upsampling(weight: Tensor, down: int, right: int) -> Tensor:
    """A transposed 4x4 convolution at stride 2 (I, O, 4, 4), seen from the outputs at row
    2 y + down and column 2 x + right: (O, 4 * I) of the places in ``quadrant``."""
    # Output row 2 y + down comes from input row y + dy by kernel row down + 1 - 2 dy.
    taps = [(down + 1 - 2 * dy, right + 1 - 2 * dx) for dy, dx in quadrant(down, right)]
    return torch.cat([weight[:, :, ky, kx].T for ky, kx in taps], dim=1)


@torch.no_grad()
def calibrate(prior: Prior, batches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Largest activations over (latents, rate) batches, hard rounding."""
    largest: dict[str, float] = {}

    def note(name: str, value: Tensor) -> None:
        largest[name] = max(largest.get(name, 0.0), value.abs().max().item())

    for latents, rate in batches:
        symbols = torch.round(latents)
        hyper = torch.round(prior.analysis(latents))
        up = F.relu(prior.synthesis_up(hyper))
        features = F.relu(prior.synthesis(up))
        first = checkerboard(symbols)
        context = prior.context(symbols * first) * (1 - first)
        note("up", up)
        note("features", features)
        note("context", context)
        t = rate[:, None, None, None].expand(-1, 1, *symbols.shape[2:])
        start = 0
        for i, group in enumerate(GROUPS):
            known = torch.cat([features, context, t, symbols[:, :start]], 1)
            note(f"hidden{i}", F.relu(prior.first[i](known)))
            start += group
    return largest


@torch.no_grad()
def integers(prior: Prior, largest: dict[str, float]) -> dict[str, NDArray[Any]]:
    """All tensors of `pillow_sdz.codings.hyperprior.HyperPrior`."""
    # A margin of 1.5: what is larger than anything seen in calibration is clipped.  Chosen.
    unit = {k: 1.5 * v / ACTIVATION_LIMIT for k, v in largest.items()}
    ones = torch.ones
    f = prior.synthesis.weight.shape[0]
    tensors = {"groups": np.array(GROUPS, np.int32)}
    # log2 of the scale in eighths of an octave, from -5 octaves on; the header's quality
    # runs from 100 to 10,000 for a rate from 0 to 1.
    octaves = 8 / math.log(2)
    base, slope = prior.hyper_scale * octaves
    slope = slope / QUALITIES
    base = base + 40 - LOWEST_QUALITY * slope + 0.5
    hyper_scale = torch.stack([base, slope]) * 65536
    tensors["hyper_scale"] = torch.round(hyper_scale).to(torch.int32).numpy()
    bias = torch.as_tensor(prior.synthesis_up.bias)
    for i, (down, right) in enumerate(PARITIES):
        weight = upsampling(prior.synthesis_up.weight, down, right)
        tensors |= affine(f"up{i}", [(weight, 1.0)], bias, ones(f) * unit["up"])
    weight = taps_last(prior.synthesis.weight, SQUARE)
    bias = torch.as_tensor(prior.synthesis.bias)
    tensors |= affine("features", [(weight, unit["up"])], bias, ones(f) * unit["features"])
    weight = taps_last(prior.context.weight, CHECKERBOARD)
    tensors |= affine("context", [(weight, 1.0)], torch.zeros(f), ones(f) * unit["context"])
    start = 0
    for i, group in enumerate(GROUPS):
        (weight, bias), (last_weight, last_bias) = prior.dense(i)
        parts = [(weight[:, :f], unit["features"]), (weight[:, f : 2 * f], unit["context"])]
        parts.append((weight[:, 2 * f : 2 * f + 1], 1 / QUALITIES))
        if start:
            parts.append((weight[:, 2 * f + 1 :], 1.0))
        hidden = unit[f"hidden{i}"]
        # The lowest quality is rate 0: its offset goes into the bias.
        bias = bias - weight[:, 2 * f] * (LOWEST_QUALITY / QUALITIES)
        tensors |= affine(f"hidden{i}", parts, bias, ones(len(weight)) * hidden, single=True)
        weight, bias = last_weight.clone(), last_bias.clone()
        weight[group:] *= octaves
        bias[group:] = bias[group:] * octaves + 40
        units = torch.cat([ones(group) / MEAN_UNITS, ones(group)])
        tensors |= affine(f"output{i}", [(weight, hidden)], bias, units, single=True)
        start += group
    return tensors
