"""The prior of `mini` without its roundings, so that bits have a gradient."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import options
from ...arrays import CELL
from ...codings.groups import ACTIVATION_LIMIT, HIDDEN_LIMIT
from ...codings.hyperprior import HYPER_LIMIT, LEVEL_UNITS, MANTISSA_BITS, SCALE_UNITS
from ...codings.known import LARGEST_MAGNITUDE
from ...codings.places import BESIDE, CHECKERBOARD, PARITIES, SQUARE, Taps, quadrant
from ...codings.range_coder import MEAN_UNITS, SCALES
from ...codings.rate_axis import APART, KNOTS, LAST
from .network import knots, spread

HERE: Taps = [(0, 0)]


def logistic_bits(symbols: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Bits of integers (or integers plus uniform noise) under a discretised logistic."""
    scale = torch.exp(log_scale.clamp(-3.5, 6))
    # The upper tail is mirrored to the lower one, where a difference of sigmoids is precise.
    distance = -(symbols - mean).abs()
    mass = torch.sigmoid((distance + 0.5) / scale) - torch.sigmoid((distance - 0.5) / scale)
    return -torch.log2(mass.clamp_min(1e-9))


def checkerboard(like: Tensor) -> Tensor:
    """(1, 1, h, w): 1 at the places of the first pass (row + column odd), 0 elsewhere."""
    rows = torch.arange(like.shape[-2], device=like.device)[:, None]
    columns = torch.arange(like.shape[-1], device=like.device)[None]
    return ((rows + columns) % 2).to(like.dtype)[None, None]


class Layer:
    """A layer of `codings.dense` in floating point, as a convolution over ``taps``.

    Its inputs come in parts, and ``parts`` has the channels of each.  The sum of each part can be
    computed apart.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], name: str, taps: Taps, parts: list[int] | None = None
    ) -> None:
        unit = torch.exp2(-tensors[f"{name}.shift"].float())
        weight = tensors[f"{name}.weight"].float() * unit[:, None]
        # The integer layers add half a unit, so that rounding down gives the nearest integer.
        self._bias = tensors[f"{name}.bias"].float() * unit - 0.5
        reach = max(max(abs(dy), abs(dx)) for dy, dx in taps)
        kernel = weight.new_zeros(len(weight), weight.shape[1] // len(taps), *[2 * reach + 1] * 2)
        for (dy, dx), of_tap in zip(taps, weight.chunk(len(taps), 1), strict=True):
            kernel[:, :, reach + dy, reach + dx] = of_tap
        self.outputs = len(weight)
        self._parts = torch.split(kernel, parts, 1) if parts else (kernel,)

    def __call__(self, *parts: Tensor) -> Tensor:
        """The outputs for all inputs."""
        return self.rest(parts, 0)

    def first(self, part: Tensor) -> Tensor:
        """What the first part adds."""
        return F.conv2d(part, self._parts[0])

    def rest(self, parts: Sequence[Tensor], first: int = 1) -> Tensor:
        """What the other parts add, with the bias."""
        total = self._bias[:, None, None]
        for x, kernel in zip(parts, self._parts[first:], strict=True):
            if x.shape[1]:
                total = total + F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
        return total


class Group:
    """What predicts the channels ``start`` to ``end``; see `codings.hyperprior.HyperPrior`."""

    def __init__(
        self, tensors: Mapping[str, Tensor], number: int, start: int, end: int, seen: int
    ) -> None:
        self.start, self.end, self._seen = start, end, seen
        taps = tensors[f"context{number}.weight"].shape[1] // (end - seen)
        near = CHECKERBOARD if taps == len(CHECKERBOARD) else BESIDE
        self._context = Layer(tensors, f"context{number}", near)
        self._around = Layer(tensors, f"around{number}", SQUARE) if start else None
        sizes = [start, start, KNOTS]
        self._first = Layer(tensors, f"magnitude{number}.0", HERE, sizes)
        self._second = Layer(tensors, f"magnitude{number}.1", HERE, [*sizes, end - start])
        around = self._around.outputs if self._around else 0
        inside = tensors[f"hidden{number}.weight"].shape[1] - KNOTS - start - around
        features = inside - self._context.outputs
        parts = [features, KNOTS, start, around, self._context.outputs]
        self._hidden = Layer(tensors, f"hidden{number}", HERE, parts)
        self._output = Layer(tensors, f"output{number}", HERE)

    def before_hyper(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """What does not depend on the hyperlatents: a part of the hidden layer's sum, magnitudes.

        The magnitudes are predicted for the group, in 2 ** -MAGNITUDE_BITS.
        """
        start, end = self.start, self.end
        known = [seen.knots, seen.symbols[:, :start]]
        level = seen.levels[:, :start]
        known.append(_rectified(self._around(level)) if self._around else level)
        context = _rectified(self._context(seen.symbols[:, self._seen : end]))
        known.append(context * (1 - seen.first))
        sizes = [seen.magnitudes[:, :start], seen.ring[:, :start], seen.knots]
        first = self._first(*sizes)
        second = self._second(*sizes, beside(seen.magnitudes[:, start:end]))
        return self._hidden.rest(known), torch.where(seen.first > 0, first, second)

    def parameters(self, features: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """The means of the group in eighths, and what is added to the index of its scales."""
        inside = _rectified(self._hidden.first(features) + before, HIDDEN_LIMIT)
        output = self._output(inside).float()
        mean, correction = output.chunk(2, 1)
        return mean, correction / SCALE_UNITS


class Seen(NamedTuple):
    """What the predictions see of symbols (1, C, h, w) and of the rate."""

    symbols: Tensor  # clipped
    magnitudes: Tensor
    ring: Tensor  # the sums of the magnitudes around each place
    levels: Tensor
    knots: Tensor  # (1, KNOTS, h, w) or (1, KNOTS, 1, 1)
    first: Tensor  # (1, 1, h, w): 1 at the places of the first pass


class RateModel:
    """`codings.hyperprior.HyperPrior` without rounding.  The rate is as in `network`."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        starts = [0, *itertools.accumulate(tensors["groups"].tolist())]
        base, tail_from = tensors["tail"].tolist()
        self._base, self._tail_from = base, tail_from / LAST
        self._groups = [
            Group(tensors, number, start, end, 0 if start < base else start)
            for number, (start, end) in enumerate(itertools.pairwise(starts))
        ]
        self._largest = tensors["largest"].float()[:, None, None]
        self._scales = tensors["scales"].float() / SCALE_UNITS
        self._hyper_scale = tensors["hyper_scale"].float()[:, :, None, None] / 65536
        self._synthesis = Layer(tensors, "synthesis", SQUARE)
        self._up = [Layer(tensors, f"up{i}", quadrant(*p)) for i, p in enumerate(PARITIES)]

    def coded(self, latents: Tensor, rate: Tensor) -> Tensor:
        """The latents, 0 where their channels are not coded."""
        base, tail = latents[:, : self._base], latents[:, self._base :]
        return torch.cat([base, tail * self._has_tail(latents, rate)], 1)

    def _has_tail(self, latents: Tensor, rate: Tensor) -> Tensor:
        """1 where there is a tail (1, 1, h, w) or (1, 1, 1, 1), 0 elsewhere."""
        return spread((rate >= self._tail_from).float(), CELL, *latents.shape[2:])

    def before_hyper(self, symbols: Tensor, rate: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What does not depend on the hyperlatents; see `Group`.

        ``symbols`` are latents (1, C, h, w) in steps, which need not be integers: all channels, or
        the base.  They begin at an even row and column of the picture.
        """
        channels = symbols.shape[1]
        with _fast():
            largest = self._largest[:channels]
            clipped = torch.minimum(torch.maximum(symbols, -largest), largest)
            sizes = clipped.abs()
            magnitudes = sizes.clamp(max=LARGEST_MAGNITUDE)
            seen = Seen(
                clipped,
                magnitudes,
                9 * F.avg_pool2d(magnitudes, 3, 1, 1) - magnitudes,
                LEVEL_UNITS * torch.log2(1 + sizes),
                APART * spread(knots(rate), CELL, *symbols.shape[2:]),
                checkerboard(symbols),
            )
            return [g.before_hyper(seen) for g in self._groups if g.end <= channels]

    def bits(
        self, symbols: Tensor, hyper: Tensor, before: list[tuple[Tensor, Tensor]], rate: Tensor
    ) -> Tensor:
        """The bits of latents and hyperlatents (1, Z, h/2, w/2).

        ``before`` is the result of `before_hyper`.
        """
        height, width = symbols.shape[2:]
        with _fast():
            inside = _rectified(self._synthesis(hyper.clamp(-HYPER_LIMIT, HYPER_LIMIT)))
            # The four latents of a hyperlatent are channels, which pixel_shuffle spreads.
            four = torch.stack([_rectified(up(inside)) for up in self._up], 2)
            features = F.pixel_shuffle(four.flatten(1, 2), CELL)[..., :height, :width]
            predicted = [
                group.parameters(features, sums)
                for group, (sums, _) in zip(self._groups, before, strict=False)
            ]
        base, slope = self._hyper_scale
        total = _bits(hyper, hyper.new_zeros(()), base + slope * LAST * rate - 0.5).sum()
        tail = self._has_tail(symbols, rate)
        for group, (mean, correction), (_, magnitudes) in zip(
            self._groups, predicted, before, strict=False
        ):
            scale = self._scale_of(magnitudes.float()) + correction
            bits = _bits(symbols[:, group.start : group.end], mean / MEAN_UNITS, scale)
            total = total + (bits * tail if group.start >= self._base else bits).sum()
        return total

    def _scale_of(self, magnitudes: Tensor) -> Tensor:
        """The indices of the scales for mean magnitudes: linear between the table's entries."""
        magnitudes = magnitudes.clamp(min=1)
        exponents = torch.log2(magnitudes).floor().detach()
        mantissas = magnitudes * torch.exp2(-exponents) - 1
        places = (exponents + mantissas) * 2**MANTISSA_BITS - 0.5
        low = places.detach().floor().clamp(0, len(self._scales) - 2)
        index = low.long()
        share = places - low
        scales: Tensor = torch.lerp(self._scales[index], self._scales[index + 1], share)
        return scales


def beside(x: Tensor) -> Tensor:
    """For each place, the sum over the four beside it (zeros beyond the border)."""
    y = F.pad(x, (1, 1, 1, 1))
    return y[..., 1:-1, :-2] + y[..., 1:-1, 2:] + y[..., :-2, 1:-1] + y[..., 2:, 1:-1]


def _fast() -> AbstractContextManager[object]:
    """Run the networks in bfloat16 if that is faster: docs/measurements.md#refinement."""
    # Older versions of torch cannot tell what the CPU has.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    enabled = bool(capabilities.get("amx_bf16")) and options.DTYPE != "float32"
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


def _rectified(x: Tensor, limit: int = ACTIVATION_LIMIT) -> Tensor:
    return x.clamp(0, limit)


def _bits(symbols: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """About the bits of symbols with the frequency tables; ``scale`` is the tables' index."""
    spread = torch.exp2(scale.clamp(0, SCALES - 1) / 8 - 5)
    # This is always computed in the lower tail, where a difference of sigmoids is precise.
    distance = -(symbols - mean).abs()
    mass = torch.sigmoid((distance + 0.5) / spread) - torch.sigmoid((distance - 0.5) / spread)
    return -torch.log2(mass.clamp_min(1e-9))  # escapes take about 30 bits, too
