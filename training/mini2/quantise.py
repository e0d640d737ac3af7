"""Turn the trained floating-point prior into integers (`pillow_sdz.codings.hyperprior`).

Weights become integers of at most 16 bits, as fine as the sums allow: none may reach 2 ** 24, up
to which float32 is exact.  Activations get 9 bits; their units are calibrated on training photos.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pillow_sdz.codings import hyperprior as integer
from pillow_sdz.codings.dense import EXACT
from pillow_sdz.codings.range_coder import MEAN_UNITS
from pillow_sdz.codings.rate_axis import APART, KNOTS, LAST
from pillow_sdz.models.mini.network import knots
from pillow_sdz.models.mini.rate import checkerboard
from pillow_sdz.models.mini.shape import BASE
from training.mini2.model import TAIL_FROM
from training.mini2.prior import BASE_GROUPS, GROUPS, Magnitudes, Prior, ScaleOfMagnitude, levels

Tensors = dict[str, NDArray[Any]]

# What is larger by this factor than anything seen in calibration is clipped.  Chosen.
MARGIN = 1.5
SHIFT_LIMIT = 20  # no layer's outputs are divided by more.  Chosen: weights stay within 16 bits.
LARGEST_WEIGHT = (1 << 15) - 1
MOST_SYMBOL = 1023  # the largest magnitude of a symbol that enters the networks.  Chosen.


def dense(name: str, weight: Tensor, bias: Tensor, units: Tensor, limits: Tensor) -> Tensors:
    """Integer form of W x + b, for inputs that are integers of at most ``limits`` (inputs,).

    ``weight`` (outputs, inputs) is per integer of the inputs, and ``units`` (outputs,) has the
    real value of an integer 1 of the outputs.
    """
    weight, bias, limits = weight.double(), bias.double(), limits.double()
    weight, bias = weight / units[:, None], bias / units + 0.5  # floor rounds to the nearest
    # Rounding may add half of an integer for each input.
    room = EXACT - 2 - 0.5 * limits.sum()
    largest = weight.abs() @ limits + bias.abs()
    shift = torch.floor(torch.log2(room / largest))
    widest = torch.floor(torch.log2(LARGEST_WEIGHT / weight.abs().amax(1).clamp_min(1e-12)))
    shift = torch.minimum(shift, widest).clamp(max=SHIFT_LIMIT)
    if shift.min() < 0:
        msg = f"{name}: its sums do not fit, by a factor of {2.0 ** -shift.min().item():g}"
        raise ValueError(msg)
    scale = torch.exp2(shift)
    return {
        f"{name}.weight": torch.round(weight * scale[:, None]).to(torch.int16).numpy(),
        f"{name}.bias": torch.round(bias * scale).to(torch.int32).numpy(),
        f"{name}.shift": shift.to(torch.uint8).numpy(),
    }


def taps_last(weight: Tensor, taps: integer.Taps) -> Tensor:
    """A convolution's weight (O, I, k, k) as (O, taps * I) in the order of ``taps``."""
    centre = weight.shape[-1] // 2
    return torch.cat([weight[:, :, centre + dy, centre + dx] for dy, dx in taps], dim=1)


def upsampling(weight: Tensor, down: int, right: int) -> Tensor:
    """A transposed 4x4 convolution at stride 2 (I, O, 4, 4), seen from the outputs at row
    2 y + down and column 2 x + right: (O, 4 * I) of the places in ``quadrant``."""
    # Output row 2 y + down comes from input row y + dy by kernel row down + 1 - 2 dy.
    taps = [(down + 1 - 2 * dy, right + 1 - 2 * dx) for dy, dx in integer.quadrant(down, right)]
    return torch.cat([weight[:, :, ky, kx].T for ky, kx in taps], dim=1)


@torch.no_grad()
def calibrate(prior: Prior, samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Largest activations, and symbols by channel, over (latents in steps, rate)."""
    largest: dict[str, Tensor] = {}

    def note(name: str, value: Tensor, by_channel: bool = False) -> None:
        found = value.abs().amax((0, 2, 3)) if by_channel else value.abs().max()
        largest[name] = torch.maximum(largest.get(name, torch.zeros_like(found)), found)

    for latents, rate in samples:
        symbols = torch.round(latents)
        hyper = torch.round(prior.analysis(latents[:, :BASE]))
        inside = F.relu(prior.synthesis(hyper))
        note("synthesis", inside)
        features = F.relu(prior.synthesis_up(inside))
        note("features", features)
        note("symbols", symbols, by_channel=True)
        first = checkerboard(symbols)
        near = knots(rate).expand(-1, -1, *symbols.shape[2:])
        level = levels(symbols)
        start = 0
        groups = GROUPS if rate.item() >= TAIL_FROM else GROUPS[:BASE_GROUPS]
        for i, group in enumerate(groups):
            end = start + group
            context = F.relu(prior.context[i](symbols[:, prior.seen[i] : end] * first))
            context = context * (1 - first)
            note(f"context{i}", context)
            inputs = [features, near, context]
            if start:
                seen = F.relu(prior.around[i - 1](level[:, :start]))
                note(f"around{i}", seen)
                inputs += [seen, symbols[:, :start]]
            hidden = F.relu(prior.first[i](torch.cat(inputs, 1)))
            note(f"hidden{i}", hidden)
            start = end
    return largest


def _convolution(layer: nn.Module) -> nn.Conv2d:
    assert isinstance(layer, nn.Conv2d)
    return layer


def scales(table: ScaleOfMagnitude) -> NDArray[Any]:
    """The scale for each exponent and mantissa of a magnitude in 2 ** -MAGNITUDE_BITS."""
    steps = 1 << integer.MANTISSA_BITS
    exponents = 24
    index = torch.arange(exponents * steps)
    # In the middle of what has this exponent and these first bits of the mantissa.
    value = torch.exp2((index // steps).double()) * (1 + (index % steps + 0.5) / steps)
    magnitude = value * 2.0**-integer.MAGNITUDE_BITS
    octaves = table(magnitude.float()).double() / math.log(2)
    return torch.round((8 * octaves + 40) * integer.SCALE_UNITS).to(torch.int16).numpy()


@torch.no_grad()
def integers(prior: Prior, largest: dict[str, Tensor]) -> Tensors:
    """All tensors of `pillow_sdz.codings.hyperprior.HyperPrior`."""
    limit = integer.ACTIVATION_LIMIT
    unit = {k: MARGIN * v.item() / limit for k, v in largest.items() if v.dim() == 0}
    symbols = torch.ceil(MARGIN * largest["symbols"] + 1).clamp(max=MOST_SYMBOL)
    magnitudes = symbols.clamp(max=integer.LARGEST_MAGNITUDE)
    level = torch.round(integer.LEVEL_UNITS * levels(torch.arange(MOST_SYMBOL + 1)))
    level_limit = level[symbols.long()]
    tensors: Tensors = {
        "groups": np.array(GROUPS, np.int32),
        "tail": np.array([BASE, round(TAIL_FROM * LAST)], np.int32),
        "largest": symbols.to(torch.int16).numpy(),
        "levels": level.to(torch.int16).numpy(),
        "scales": scales(prior.scale),
    }
    octaves = 8 / math.log(2)
    base, slope = prior.hyper_scale.coefficients * octaves
    hyper_scale = torch.stack([base + 40 + 0.5, slope / LAST]) * 65536
    tensors["hyper_scale"] = torch.round(hyper_scale).to(torch.int32).numpy()

    def acts(count: int) -> Tensor:
        return torch.full((count,), float(limit))

    def ones(count: int) -> Tensor:
        return torch.ones(count).double()

    z, f = prior.synthesis.weight.shape[1], prior.synthesis.weight.shape[0]
    weight = taps_last(prior.synthesis.weight, integer.SQUARE)
    limits = torch.full((weight.shape[1],), float(integer.HYPER_LIMIT))
    assert weight.shape[1] == len(integer.SQUARE) * z
    bias = torch.as_tensor(prior.synthesis.bias)
    tensors |= dense("synthesis", weight, bias, ones(f) * unit["synthesis"], limits)
    bias = torch.as_tensor(prior.synthesis_up.bias)
    for i, (down, right) in enumerate(integer.PARITIES):
        weight = upsampling(prior.synthesis_up.weight, down, right) * unit["synthesis"]
        tensors |= dense(f"up{i}", weight, bias, ones(f) * unit["features"], acts(weight.shape[1]))
    rate_limits = torch.full((KNOTS,), float(APART))
    start = 0
    for i, group in enumerate(GROUPS):
        end, seen = start + group, prior.seen[i]
        conv, first, last = (
            _convolution(layers[i]) for layers in (prior.context, prior.first, prior.last)
        )
        taps = integer.CHECKERBOARD if conv.weight.shape[-1] == 5 else integer.BESIDE
        weight = taps_last(conv.weight, taps)
        n_context = len(weight)
        tensors |= dense(
            f"context{i}",
            weight,
            torch.zeros(n_context),
            ones(n_context) * unit[f"context{i}"],
            symbols[seen:end].repeat(len(taps)),
        )
        n_around = 0
        if start:
            layer = _convolution(prior.around[i - 1])
            weight = taps_last(layer.weight, integer.SQUARE) / integer.LEVEL_UNITS
            n_around = len(weight)
            tensors |= dense(
                f"around{i}",
                weight,
                torch.as_tensor(layer.bias),
                ones(n_around) * unit[f"around{i}"],
                level_limit[:start].repeat(len(integer.SQUARE)),
            )
        # Training's order of the inputs: features, knots, context, around, symbols.
        weight, bias = first.weight[:, :, 0, 0], torch.as_tensor(first.bias)
        sizes = [f, KNOTS, n_context, n_around, start]
        features, near, context, about, known = torch.split(weight, sizes, 1)
        parts = [features * unit["features"], near / APART, known]
        if start:
            parts.append(about * unit[f"around{i}"])
        parts.append(context * unit[f"context{i}"])
        limits = torch.cat([acts(f), rate_limits, symbols[:start], acts(n_around + n_context)])
        hidden = len(weight)
        tensors |= dense(
            f"hidden{i}", torch.cat(parts, 1), bias, ones(hidden) * unit[f"hidden{i}"], limits
        )
        weight, bias = last.weight[:, :, 0, 0].clone(), torch.as_tensor(last.bias).clone()
        weight[group:] *= octaves
        bias[group:] *= octaves
        units = torch.cat([ones(group) / MEAN_UNITS, ones(group) / integer.SCALE_UNITS])
        tensors |= dense(f"output{i}", weight * unit[f"hidden{i}"], bias, units, acts(hidden))
        sizes_of = prior.magnitudes[i]
        assert isinstance(sizes_of, Magnitudes)
        for second in (0, 1):
            weight = sizes_of.weight[second]
            at, ring, own = torch.split(weight, [start, start, group], 1)
            parts = [at, ring / len(integer.RING), sizes_of.bias[second].T / APART]
            known = magnitudes[:start]
            limits = torch.cat([known, known * len(integer.RING), rate_limits])
            if second:
                parts.append(own / len(integer.BESIDE))
                limits = torch.cat([limits, magnitudes[start:end] * len(integer.BESIDE)])
            tensors |= dense(
                f"magnitude{i}.{second}",
                torch.cat(parts, 1),
                torch.zeros(group),
                ones(group) * 2.0**-integer.MAGNITUDE_BITS,
                limits,
            )
        start = end
    return tensors
