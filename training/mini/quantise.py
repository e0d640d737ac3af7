"""Turn the trained floating-point prior into integers (`pillow_sdz.codings.hyperprior`).

Weights become integers of at most 16 bits.  They are as fine as the sums allow: no sum may reach
2 ** 24, because float32 is exact only up to there.  Activations get 11 bits, or 12 in hidden
layers.  The unit of each channel is calibrated on training photos.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pillow_sdz.codings import hyperprior as integer
from pillow_sdz.codings.dense import EXACT
from pillow_sdz.codings.groups import ACTIVATION_LIMIT, HIDDEN_LIMIT
from pillow_sdz.codings.known import LARGEST_MAGNITUDE
from pillow_sdz.codings.places import BESIDE, CHECKERBOARD, PARITIES, RING, SQUARE, Taps, quadrant
from pillow_sdz.codings.range_coder import MEAN_UNITS
from pillow_sdz.codings.rate_axis import APART, KNOTS, LAST
from pillow_sdz.models.mini.network import knots
from pillow_sdz.models.mini.rate import checkerboard
from pillow_sdz.models.mini.shape import BASE
from training.mini.model import TAIL_FROM
from training.mini.prior import BASE_GROUPS, GROUPS, Prior, ScaleOfMagnitude, levels

Tensors = dict[str, NDArray[Any]]

# Values are clipped at this many times the largest one that was seen in calibration.  Chosen.
MARGIN = 1.5
SHIFT_LIMIT = 20  # the largest shift of a layer's sums.  Chosen: weights stay within 16 bits.
LARGEST_WEIGHT = (1 << 15) - 1
LEAST = 1 / 32  # the finest unit of a channel, as a part of the coarsest one.  Chosen.
MOST_SYMBOL = 1023  # the largest magnitude of a symbol that the networks get.  Chosen.


def dense(name: str, weight: Tensor, bias: Tensor, units: Tensor, limits: Tensor) -> Tensors:
    """Integer form of W x + b, for inputs that are integers of at most ``limits`` (inputs,).

    ``weight`` (outputs, inputs) is for an integer 1 of the inputs.  ``units`` (outputs,) has the
    real value of an integer 1 of the outputs.
    """
    weight, bias, limits = weight.double(), bias.double(), limits.double()
    weight, bias = weight / units[:, None], bias / units + 0.5  # floor rounds to the nearest
    # Rounding a weight may change the sum by half of the input's integer.
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


def taps_last(weight: Tensor, taps: Taps) -> Tensor:
    """A convolution's weight (O, I, k, k) as (O, taps * I) in the order of ``taps``."""
    centre = weight.shape[-1] // 2
    return torch.cat([weight[:, :, centre + dy, centre + dx] for dy, dx in taps], dim=1)


def upsampling(weight: Tensor, down: int, right: int) -> Tensor:
    """The weights (O, 4 * I) that make a quarter of a transposed convolution's outputs.

    The convolution is 4x4 at stride 2, (I, O, 4, 4).  The outputs are those at row 2 y + down and
    column 2 x + right.  The inputs are those at the places in ``quadrant``.
    """
    # Output row 2 y + down comes from input row y + dy by kernel row down + 1 - 2 dy.
    taps = [(down + 1 - 2 * dy, right + 1 - 2 * dx) for dy, dx in quadrant(down, right)]
    return torch.cat([weight[:, :, ky, kx].T for ky, kx in taps], dim=1)


@torch.no_grad()
def calibrate(prior: Prior, samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The largest activation and symbol of each channel.

    Each sample is the latents of a picture, in quantisation steps, and its rate.
    """
    largest: dict[str, Tensor] = {}

    def note(name: str, value: Tensor) -> None:
        found = value.abs().amax((0, 2, 3))
        largest[name] = torch.maximum(largest.get(name, torch.zeros_like(found)), found)

    for latents, rate in samples:
        symbols = torch.round(latents)
        hyper = torch.round(prior.analysis(latents[:, :BASE]))
        inside = F.relu(prior.synthesis(hyper))
        note("synthesis", inside)
        features = F.relu(prior.synthesis_up(inside))
        note("features", features)
        note("symbols", symbols)
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


def scales(table: ScaleOfMagnitude) -> NDArray[Any]:
    """The scale for each exponent and mantissa of a magnitude in 2 ** -MAGNITUDE_BITS."""
    steps = 1 << integer.MANTISSA_BITS
    exponents = 24
    index = torch.arange(exponents * steps)
    # The middle of the magnitudes that have this exponent and these first bits of the mantissa.
    value = torch.exp2((index // steps).double()) * (1 + (index % steps + 0.5) / steps)
    magnitude = value * 2.0**-integer.MAGNITUDE_BITS
    octaves = table(magnitude.float()).double() / math.log(2)
    return torch.round((8 * octaves + 40) * integer.SCALE_UNITS).to(torch.int16).numpy()


class _Quantiser:
    """Turns the layers of the prior into integers, and collects them in `tensors`."""

    def __init__(self, prior: Prior, largest: dict[str, Tensor]) -> None:
        self.state, self.seen = prior.state_dict(), prior.seen
        # Each channel has its own unit, because some channels are used only at high rates.
        self.unit = {
            name: MARGIN * value.clamp_min(LEAST * value.max().item()) / limit_of(name)
            for name, value in largest.items()
        }
        self.symbols = torch.ceil(MARGIN * largest["symbols"] + 1).clamp(max=MOST_SYMBOL)
        self.magnitudes = self.symbols.clamp(max=LARGEST_MAGNITUDE)
        self.levels = torch.round(integer.LEVEL_UNITS * levels(torch.arange(MOST_SYMBOL + 1)))
        self.tensors: Tensors = {}

    def add(self, name: str, weight: Tensor, bias: Tensor, unit: Tensor, limits: Tensor) -> None:
        self.tensors |= dense(name, weight, bias, unit.expand(len(weight)).double(), limits)

    def hyper(self) -> None:
        """Add the layers from hyperlatents to features."""
        state, unit = self.state, self.unit
        weight = taps_last(state["synthesis.weight"], SQUARE)
        limits = torch.full((weight.shape[1],), float(integer.HYPER_LIMIT))
        of_synthesis, of_features = unit["synthesis"], unit["features"]
        self.add("synthesis", weight, state["synthesis.bias"], of_synthesis, limits)
        for i, parity in enumerate(PARITIES):
            weight = upsampling(state["synthesis_up.weight"], *parity) * of_synthesis.repeat(4)
            limits = activations(weight.shape[1])
            self.add(f"up{i}", weight, state["synthesis_up.bias"], of_features, limits)

    def around(self, i: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Add the two layers that see places around.  Returns the units of their outputs."""
        seen, weight = self.seen[i], self.state[f"context.{i}.weight"]
        taps = CHECKERBOARD if weight.shape[-1] == 5 else BESIDE
        weight = taps_last(weight, taps)
        units = [self.unit.get(f"{k}{i}", torch.ones(0)) for k in ("context", "around")]
        limits = self.symbols[seen:end].repeat(len(taps))
        self.add(f"context{i}", weight, torch.zeros(len(weight)), units[0], limits)
        if start:
            weight, bias = (self.state[f"around.{i - 1}.{part}"] for part in ("weight", "bias"))
            weight = taps_last(weight, SQUARE) / integer.LEVEL_UNITS
            limits = self.levels[self.symbols[:start].long()].repeat(len(SQUARE))
            self.add(f"around{i}", weight, bias, units[1], limits)
        return units[0], units[1]

    def means(self, i: int, start: int, end: int) -> None:
        """Add the two layers that give means, and corrections of the scales."""
        of_context, of_around = self.around(i, start, end)
        count = {k: len(self.state[f"{k}.0.weight"]) for k in ("context", "around")}
        if not start:
            count["around"] = 0
        weight, bias = (self.state[f"first.{i}.{part}"] for part in ("weight", "bias"))
        features = self.state["synthesis.weight"].shape[0]
        # The order of the inputs in training: features, knots, context, around, symbols.
        sizes = [features, KNOTS, count["context"], count["around"], start]
        seen, near, context, around, known = weight[:, :, 0, 0].split(sizes, 1)
        parts = [seen * self.unit["features"], near / APART, known]
        parts += [around * of_around, context * of_context]
        limits = [activations(features), ON_AXIS, self.symbols[:start]]
        limits.append(activations(count["around"] + count["context"]))
        of_hidden = self.unit[f"hidden{i}"]
        self.add(f"hidden{i}", torch.cat(parts, 1), bias, of_hidden, torch.cat(limits))
        group = end - start
        weight, bias = (self.state[f"last.{i}.{part}"].clone() for part in ("weight", "bias"))
        weight = weight[:, :, 0, 0]
        weight[group:] *= EIGHTHS
        bias[group:] *= EIGHTHS
        units = torch.tensor([1 / MEAN_UNITS, 1 / integer.SCALE_UNITS]).repeat_interleave(group)
        hidden = torch.full((weight.shape[1],), float(HIDDEN_LIMIT))
        self.add(f"output{i}", weight * of_hidden, bias, units, hidden)

    def sizes(self, i: int, start: int, end: int) -> None:
        """Add the linear predictions of magnitudes, one for each pass."""
        group, known = end - start, self.magnitudes[:start]
        unit = torch.tensor(2.0**-integer.MAGNITUDE_BITS)
        for second in (0, 1):
            weight, bias = (
                self.state[f"magnitudes.{i}.{part}"][second] for part in ("weight", "bias")
            )
            at, ring, own = weight.split([start, start, group], 1)
            parts = [at, ring / len(RING), bias.T / APART]
            limits = [known, known * len(RING), ON_AXIS]
            if second:
                parts.append(own / len(BESIDE))
                limits.append(self.magnitudes[start:end] * len(BESIDE))
            zero = torch.zeros(group)
            self.add(f"magnitude{i}.{second}", torch.cat(parts, 1), zero, unit, torch.cat(limits))


def limit_of(name: str) -> int:
    """The limit of a layer's outputs."""
    return HIDDEN_LIMIT if name.startswith("hidden") else ACTIVATION_LIMIT


def activations(count: int) -> Tensor:
    """The limits of ``count`` activations."""
    return torch.full((count,), float(ACTIVATION_LIMIT))


ON_AXIS = torch.full((KNOTS,), float(APART))  # the limits of knots
EIGHTHS = 8 / math.log(2)  # eighths of an octave in 1 of a natural logarithm


@torch.no_grad()
def integers(prior: Prior, largest: dict[str, Tensor]) -> Tensors:
    """All tensors of `pillow_sdz.codings.hyperprior.HyperPrior`."""
    quantiser = _Quantiser(prior, largest)
    quantiser.hyper()
    start = 0
    for i, group in enumerate(GROUPS):
        quantiser.means(i, start, start + group)
        quantiser.sizes(i, start, start + group)
        start += group
    base, slope = prior.hyper_scale.coefficients * EIGHTHS
    # The scales begin at -5 octaves, and their unit is 1/65536 of an eighth of an octave.
    hyper_scale = torch.stack([base + 40 + 0.5, slope / LAST]) * 65536
    return quantiser.tensors | {
        "groups": np.array(GROUPS, np.int32),
        "tail": np.array([BASE, round(TAIL_FROM * LAST)], np.int32),
        "largest": quantiser.symbols.to(torch.int16).numpy(),
        "levels": quantiser.levels.to(torch.int16).numpy(),
        "scales": scales(prior.scale),
        "hyper_scale": torch.round(hyper_scale).to(torch.int32).numpy(),
    }
