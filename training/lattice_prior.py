"""Train `pillow_sdz.codings.lattice.LatticePrior` and turn it into integers.

    python -m training.lattice_prior --latents FILE --folds 3 --output DIR [--fold K]
    python -m training.lattice_prior --latents FILE --output sd1_prior.safetensors

With folds, photo i belongs to fold i mod folds. The prior DIR/foldK.safetensors is trained on the
photos of the other folds. Then the photos of fold K are coded with it. The command prints the size
of their real payloads, and the size that the floating-point prior promised. Without folds, all
photos train the prior that ships.

FILE has one tensor of latents (C, h, w) for each photo. The loss is the rate: the negative log2
likelihood of a discretised logistic, at a random step for each photo.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from pillow_sdz.codings.integers import LOG_UNITS, STEP_UNITS
from pillow_sdz.codings.lattice import (
    ACTIVITY_FLOOR,
    BASE_SPACING,
    PASSES,
    REACH,
    SPACINGS,
    LatticePrior,
    Pass,
)
from pillow_sdz.codings.quantize import Quantizer
from pillow_sdz.codings.range_coder import SymbolDecoder, Tables

# These were compared on fold 0. The figures are bits per pixel at steps 0.25, 0.5 and 1.0, after
# 1,500 iterations at a learning rate of 4e-3:
#   one hidden layer of 32:           .1757 .1198 .0726
#   one hidden layer of 64:           .1743 .1186 .0717
#   48 and 32 with wider taps:        .1724 .1169 .0703
#   the same at 8e-3:                 .1706 .1154 .0693
#   the same at 1.6e-2, 1,200 only:   .1698 .1148 .0691
# A first layer of 64, or even wider taps, were not better than the last row.
HIDDEN = (48, 32)
ITERATIONS = 4000
LEARNING_RATE = 1.6e-2
SCORED_STEPS = (0.25, 0.5, 1.0)
# Bits of the largest multiplier. It is precise to a millionth, and the products stay below 2 ** 62.
MULTIPLIER_BITS = 20
# Four of five steps are in the range in which photos look good. The others are in all of the range
# in which a prior must work.
USUAL, ALL = (0.15, 1.5), (0.05, 4.0)
# The largest integer of a hidden layer in the file. `LatticePrior` uses coarser ones.
ACTIVATION_LIMIT = (1 << 15) - 1


def logarithm(x: Tensor) -> Tensor:
    """`logarithm` of `pillow_sdz.codings` for real values, in octaves."""
    mantissa, exponent = torch.frexp(x)
    return exponent - 1 + (2 * mantissa - 1)


class Network(nn.Module):
    """A network that gives a correction of the local mean, and log2 of the scale.

    Both are in the latents' unit.
    """

    def __init__(self, values: int, logs: int) -> None:
        super().__init__()
        self.values = values
        self.first = nn.Linear(values + logs, HIDDEN[0])
        self.second = nn.Linear(HIDDEN[0], HIDDEN[1])
        self.last = nn.Linear(HIDDEN[1], 2)
        self.skip = nn.Linear(values + logs, 2, bias=False)
        for parameter in (self.last.weight, self.last.bias, self.skip.weight):
            nn.init.zeros_(parameter)

    def hidden(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = F.relu(self.first(x))
        return first, F.relu(self.second(first))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.last(self.hidden(x)[1]) + self.skip(x))


class FloatPrior(nn.Module):
    """The same prior in floating point; scales are relative to the step."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.base = nn.ModuleList(nn.Linear(c + 1, 2) for c in range(channels))
        self.networks = nn.ModuleDict()
        for base in self.base:
            assert isinstance(base, nn.Linear)
            nn.init.zeros_(base.weight)
            nn.init.zeros_(base.bias)
            nn.init.constant_(base.weight[1, :1], -1)  # of the step's logarithm
        for kind in PASSES:
            for c in range(channels):
                values = channels * (len(kind.known) + 1) + c * len(kind.before)
                network = Network(values, channels + c + 1 + len(SPACINGS))
                # Before any training, the scale follows the activity around the place.
                nn.init.constant_(network.skip.weight[1, values + c], 0.7)
                nn.init.constant_(network.skip.weight[1, values + channels + c], -1)
                self.networks[f"{kind.name}{c}"] = network

    def inputs(
        self, lattice: Tensor, kind: Pass, step: float
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Values and logarithms for each channel, without the one-hot spacing, and the targets.

        The targets (n, C) are the channels' differences from their local means.
        """
        _, channels, height, width = lattice.shape
        padded = F.pad(lattice, (REACH,) * 4, mode="reflect")

        def around(taps: list[tuple[int, int]]) -> Tensor:
            columns = []
            for dy, dx in taps:
                parts = []
                for y, x in kind.places:
                    top, left = REACH + y + dy, REACH + x + dx
                    bottom, right = REACH + height + dy, REACH + width + dx
                    parts.append(padded[:, :, top:bottom:2, left:right:2].flatten(2))
                columns.append(torch.cat(parts, 2).transpose(1, 2).reshape(-1, channels))
            return torch.stack(columns, 2)

        known = around(kind.known)
        mean = known[:, :, :4].mean(2)
        known = known - mean[:, :, None]
        before = around(kind.before) - mean[:, :, None]
        floor = step / 4 + ACTIVITY_FLOOR / STEP_UNITS
        activity = logarithm(known[:, :, :4].abs().sum(2) + floor)
        surprise = logarithm(before[:, :, 0].abs() + floor)
        log_step = logarithm(torch.full((len(mean), 1), step))
        values, logs = [], []
        for c in range(channels):
            values.append(torch.cat([known.flatten(1), mean, before[:, :c].flatten(1)], 1))
            logs.append(torch.cat([activity, surprise[:, :c], log_step], 1))
        return values, logs, before[:, :, 0]

    def network(self, kind: Pass, c: int) -> Network:
        return cast(Network, self.networks[f"{kind.name}{c}"])

    def bits(self, latents: Tensor, step: float) -> Tensor:
        """Bits of latents (B, C, h, w), which this method quantises."""
        values = torch.round(latents / step) * step
        base = values[:, :, ::BASE_SPACING, ::BASE_SPACING].permute(0, 2, 3, 1).flatten(0, 2)
        log_step = logarithm(torch.full((len(base), 1), step))
        total = torch.zeros(())
        for c, layer in enumerate(self.base):
            output = layer(torch.cat([log_step, base[:, :c]], 1))
            total = total + logistic_bits((base[:, c] - output[:, 0]) / step, output[:, 1]).sum()
        for i, spacing in enumerate(SPACINGS):
            lattice = values[:, :, ::spacing, ::spacing]
            for kind in PASSES:
                inputs, logs, target = self.inputs(lattice, kind, step)
                at = torch.zeros(len(target), len(SPACINGS))
                at[:, i] = 1
                for c in range(self.channels):
                    output = self.network(kind, c)(torch.cat([inputs[c], logs[c], at], 1))
                    residual = (target[:, c] - output[:, 0]) / step
                    total = total + logistic_bits(residual, output[:, 1]).sum()
        return total


def logistic_bits(residual: Tensor, log_scale: Tensor) -> Tensor:
    """Bits of residuals by a discretised logistic.  The floor is that of the tables."""
    inverse = torch.exp2(-log_scale.clamp(-5, 7))
    residual = residual.abs()
    mass = torch.sigmoid((0.5 - residual) * inverse) - torch.sigmoid((-0.5 - residual) * inverse)
    return -torch.log2(mass * (1 - 2**-10) + 2**-16)


def random_step(rng: np.random.Generator) -> float:
    """A step that a file can have."""
    low, high = USUAL if rng.random() < 0.8 else ALL
    step = math.exp(rng.uniform(math.log(low), math.log(high)))
    return round(step * STEP_UNITS) / STEP_UNITS


def train(photos: list[Tensor], iterations: int) -> FloatPrior:
    """Train a prior on latents (C, h, w).

    They must have at least 64x64 places, because the coarsest lattice is padded.
    """
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    prior = FloatPrior(photos[0].shape[0])
    optimizer = torch.optim.Adam(prior.parameters())
    start = time.perf_counter()
    for iteration in range(iterations):
        warm_up = min(1.0, (iteration + 1) / 50)
        decay = 0.5 + 0.5 * math.cos(math.pi * iteration / iterations)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * warm_up * decay
        latents = photos[rng.integers(len(photos))]
        latents = latents.flip([d for d in (1, 2) if rng.random() < 0.5])
        loss = prior.bits(latents[None], random_step(rng)) / latents.numel()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if iteration % 500 == 499:
            seconds = time.perf_counter() - start
            print(f"iteration {iteration + 1}, {seconds:.0f} s", flush=True)
    return prior


@torch.no_grad()
def calibrate(prior: FloatPrior, photos: list[Tensor]) -> dict[str, tuple[float, float]]:
    """The largest activation of each hidden layer, at `SCORED_STEPS` and both ends of the range."""
    largest: dict[str, tuple[float, float]] = {}
    for latents in photos:
        for step in (*ALL, *SCORED_STEPS):
            values = (torch.round(latents / step) * step)[None]
            for i, spacing in enumerate(SPACINGS):
                for kind in PASSES:
                    inputs, logs, target = prior.inputs(
                        values[:, :, ::spacing, ::spacing], kind, step
                    )
                    at = torch.zeros(len(target), len(SPACINGS))
                    at[:, i] = 1
                    for c in range(prior.channels):
                        x = torch.cat([inputs[c], logs[c], at], 1)
                        first, second = prior.network(kind, c).hidden(x)
                        before = largest.get(f"{kind.name}{c}", (0.0, 0.0))
                        largest[f"{kind.name}{c}"] = (
                            max(before[0], first.max().item()),
                            max(before[1], second.max().item()),
                        )
    return largest


def affine(
    name: str, parts: list[tuple[Tensor, float]], bias: Tensor, units: Tensor
) -> dict[str, NDArray[Any]]:
    """Integer form of sum_i W_i x_i + b, with weights of 8 bits.

    A unit is the real value of an integer 1. ``parts`` has each weight (outputs, inputs) with the
    unit of its inputs, and ``units`` (outputs,) has the units of the outputs.
    """
    ratios, tensors = [], {}
    for i, (weight, unit) in enumerate(parts):
        step = (weight.abs().amax(1) / 127).clamp_min(1e-12)
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


@torch.no_grad()
def integers(prior: FloatPrior, largest: dict[str, tuple[float, float]]) -> dict[str, NDArray[Any]]:
    """All tensors of `LatticePrior`."""
    value, log = 1 / STEP_UNITS, 1 / LOG_UNITS
    # log2 of the scale is in eighths of an octave, from -5 octaves on. `Affine` rounds halves up.
    octaves, lowest = 8, 40
    units = torch.tensor([value, 1.0])
    scaling = torch.tensor([1.0, octaves])[:, None]
    offset = torch.tensor([0.0, lowest])
    tensors: dict[str, NDArray[Any]] = {"channels": np.array([prior.channels], np.int32)}
    for c, base in enumerate(prior.base):
        assert isinstance(base, nn.Linear)
        weight, bias = base.weight * scaling, base.bias * scaling[:, 0] + offset
        parts = [(weight[:, :1], log)] + ([(weight[:, 1:], value)] if c else [])
        tensors |= affine(f"base{c}", parts, bias, units)
    for name, network in prior.networks.items():
        assert isinstance(network, Network)
        # Values are clipped at 1.5 times the largest one that was seen in calibration. Chosen.
        first, second = (1.5 * x / ACTIVATION_LIMIT for x in largest[name])
        n = network.values

        def parts_of(weight: Tensor, n: int = n) -> list[tuple[Tensor, float]]:
            return [(weight[:, :n], value), (weight[:, n:], log)]

        bias = network.first.bias
        tensors |= affine(
            f"{name}.first", parts_of(network.first.weight), bias, torch.full_like(bias, first)
        )
        bias = network.second.bias
        tensors |= affine(
            f"{name}.second", [(network.second.weight, first)], bias, torch.full_like(bias, second)
        )
        parts = [(network.last.weight * scaling, second)]
        parts += parts_of(network.skip.weight * scaling)
        bias = network.last.bias * scaling[:, 0] + offset
        tensors |= affine(f"{name}.output", parts, bias, units)
    return tensors


def encode(prior: LatticePrior, tables: Tables, latents: NDArray[Any], step: int) -> bytes:
    """The payload of latents (h, w, C), rounded to ``step`` / 1024."""
    quantizer = Quantizer(
        tables, latents.astype(np.float64) * STEP_UNITS / step, np.zeros((0,), np.int64)
    )
    prior.code(quantizer, latents.shape[0], latents.shape[1], step)
    return quantizer.bytes()


def score(prior: FloatPrior, tensors: dict[str, NDArray[Any]], photos: list[Tensor]) -> None:
    """Print the size that the floating-point prior promises, and that of files, for each step."""
    exact, tables = LatticePrior(tensors), Tables.shipped()
    for step in SCORED_STEPS:
        units = round(step * STEP_UNITS)
        promised = real = pixels = 0.0
        for latents in photos:
            _, h, w = latents.shape
            with torch.no_grad():
                promised += prior.bits(latents[None], step).item()
            payload = encode(exact, tables, latents.permute(1, 2, 0).numpy(), units)
            decoder = SymbolDecoder(tables, payload)
            symbols = exact.code(decoder, h, w, units)
            decoder.finish()
            # `Quantizer` and torch both round halves to even.
            expected = torch.round(latents.double() / step).permute(1, 2, 0).numpy()
            if not np.array_equal(symbols, expected):
                msg = "the integer prior decoded other values than it had encoded"
                raise AssertionError(msg)
            real += 8 * len(payload)
            pixels += 64 * h * w
        print(
            f"step {step}: {real / pixels:.4f} bpp in files, {promised / pixels:.4f} promised "
            f"({100 * (real / promised - 1):+.2f} %)",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the prior of latents without a model.")
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=0, help="0: train on all photos")
    parser.add_argument("--fold", type=int, help="only this fold")
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    args = parser.parse_args()
    # The matrices are small, so a second thread gains nothing.
    torch.set_num_threads(1)
    photos = [
        torch.from_numpy(x.astype(np.float32)) for _, x in sorted(load_file(args.latents).items())
    ]
    if not args.folds:
        prior = train(photos, args.iterations)
        tensors = integers(prior, calibrate(prior, photos))
        save_file(tensors, args.output)
        score(prior, tensors, photos)
        return
    args.output.mkdir(parents=True, exist_ok=True)
    for fold in range(args.folds) if args.fold is None else [args.fold]:
        print(f"fold {fold} of {args.folds}")
        rest = [x for i, x in enumerate(photos) if i % args.folds != fold]
        prior = train(rest, args.iterations)
        tensors = integers(prior, calibrate(prior, rest))
        save_file(tensors, args.output / f"fold{fold}.safetensors")
        score(prior, tensors, photos[fold :: args.folds])


if __name__ == "__main__":
    main()
