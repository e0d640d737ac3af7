"""The encoder's search for better latents: gradient steps through `mini`'s decoder and prior.

The latents of the encoder network are a good guess.  From there, gradient steps lower the rate and
the distortion of this one picture, as in Campos et al., "Content Adaptive Optimization for Neural
Image Compression" (CVPR Workshops 2019).  Rounding has no gradient.  It is replaced by soft
rounding with noise (Agustsson and Theis, "Universally Quantized Neural Compression", NeurIPS 2020),
which gets harder from step to step.  Decoders need not know of the search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ... import options, progress
from ...arrays import Samples
from ...catalogue import HIGHEST_QUALITY, LOWEST_QUALITY
from ...codings.hyperprior import ACTIVATION_LIMIT, CHECKERBOARD, PARITIES, SQUARE, quadrant
from ...codings.range_coder import MEAN_UNITS, SCALES
from .. import ssimulacra2, tiles
from .shape import FACTOR

# The constants are measured or chosen: docs/measurements.md#refinement.

# The loss is bits per pixel, plus a weight for a squared grey level, plus a weight for a distance
# of 100 in SSIMULACRA2.  The first weight is geometric between these, from the lowest to the
# highest quality.  Measured.
SQUARED_ERROR = (1.5e-4, 0.065)
# The second weight is PERCEPTUAL * (first weight / PERCEPTUAL_AT) ** PERCEPTUAL_POWER.  Measured;
# the power is chosen.
PERCEPTUAL = 0.2 * 0.35
PERCEPTUAL_AT, PERCEPTUAL_POWER = 9e-4, 0.47

LEARNING_RATE = 0.04  # in quantisation steps; falls as a cosine to a twentieth.  Measured.
STEEPNESS = (2.0, 12.0)  # of tanh, in the first and the last step.  Measured.
MOMENTUM, DECAY = 0.9, 0.99  # Adam's, but there is one second moment for each channel

# By effort: how many steps with latents and hyperlatents together, and then with the hyperlatents
# alone, which changes no pixel and needs no decoder.  Chosen: up to the default, encoding takes
# less time than AVIF's default.  Above it, each level takes up to twice the time.
STEPS = ((0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (6, 8), (12, 8), (20, 8), (32, 16), (48, 16))

# Latents along a side of a tile that is refined at once, and of its margin.  Both are even, because
# a hyperlatent stands for two latents along a side.  Chosen.
TILE, MARGIN = 64, 8


class RateModel:
    """`hyperprior.HyperPrior` without rounding, so that bits have a gradient."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        def layer(name: str, inputs: int) -> tuple[list[Tensor], Tensor]:
            unit = 2.0 ** -int(tensors[f"{name}.shift"])
            weights = [
                tensors[f"{name}.weight{i}"].float()
                * (tensors[f"{name}.multiplier{i}"].float() * unit)[:, None]
                for i in range(inputs)
            ]
            return weights, tensors[f"{name}.bias"].double().mul(unit).float()

        self._groups = [int(g) for g in tensors["groups"]]
        self._hyper_scale = tensors["hyper_scale"].float() / 65536
        ups, biases = zip(*(layer(f"up{i}", 1) for i in range(len(PARITIES))), strict=True)
        # The four latents of a hyperlatent are channels, which pixel_shuffle spreads.
        kernels = [
            _kernel(weights[0], quadrant(*parity), 3)
            for weights, parity in zip(ups, PARITIES, strict=True)
        ]
        self._up = torch.stack(kernels, 1).flatten(0, 1), torch.stack(biases, 1).flatten()
        weights, bias = layer("features", 1)
        self._features = _kernel(weights[0], SQUARE, 3), bias
        weights, bias = layer("context", 1)
        self._context = _kernel(weights[0], CHECKERBOARD, 5), bias
        self._hidden = [layer(f"hidden{i}", 3 + (i > 0)) for i in range(len(self._groups))]
        self._output = [layer(f"output{i}", 1) for i in range(len(self._groups))]

    def before_hyper(self, symbols: Tensor, quality: int) -> list[Tensor]:
        """The part of the hidden layers' sums that does not depend on the hyperlatents.

        ``symbols`` are latents (1, C, h, w) in steps, which need not be integers.  They begin at an
        even row and column of the picture.  ``quality`` is the header's.
        """
        height, width = symbols.shape[2:]
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        first = ((rows + columns) % 2).to(symbols.dtype)
        sums, before = [], 0
        with _fast():
            context = F.conv2d(symbols * first, *self._context, padding=2) * (1 - first)
            context = context.clamp(-ACTIVATION_LIMIT, ACTIVATION_LIMIT)
            for group, ((_, of_context, of_quality, *of_coded), bias) in zip(
                self._groups, self._hidden, strict=True
            ):
                known = torch.cat([context, symbols[:, :before]], 1)
                weight = torch.cat([of_context, *of_coded], 1)
                sums.append(_dense(known, weight, bias + of_quality[:, 0] * quality))
                before += group
        return sums

    def bits(self, symbols: Tensor, hyper: Tensor, sums: list[Tensor], quality: int) -> Tensor:
        """The bits of latents and hyperlatents (1, Z, h/2, w/2); ``sums`` is `before_hyper`'s."""
        height, width = symbols.shape[2:]
        predicted = []
        with _fast():
            up = _rectified(F.conv2d(hyper, *self._up, padding=1))
            features = _rectified(F.conv2d(F.pixel_shuffle(up, 2), *self._features, padding=1))
            features = features[..., :height, :width]
            for rest, ((of_features, *_), _), ((weight,), bias) in zip(
                sums, self._hidden, self._output, strict=True
            ):
                inside = _rectified(_dense(features, of_features, None) + rest)
                predicted.append(_dense(inside, weight, bias).float())
        hyper_scale = self._hyper_scale[0] + self._hyper_scale[1] * quality
        total = _bits(hyper, hyper.new_zeros(()), hyper_scale[:, None, None])
        groups = torch.split(symbols, self._groups, 1)
        for group, parameters in zip(groups, predicted, strict=True):
            mean, scale = parameters.chunk(2, 1)
            total = total + _bits(group, mean / MEAN_UNITS, scale)
        return total


def _fast() -> AbstractContextManager[object]:
    """Run the rate model in bfloat16 if that is faster: docs/measurements.md#refinement."""
    # Older versions of torch do not know what the CPU has.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    enabled = bool(capabilities.get("amx_bf16")) and options.DTYPE != "float32"
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same matrix (O, I) at every place."""
    return F.conv2d(x, weight[:, :, None, None], bias)


def _kernel(weight: Tensor, taps: list[tuple[int, int]], size: int) -> Tensor:
    """The kernel (O, I, size, size) of a convolution with weights (O, taps * I); zero elsewhere."""
    kernel = weight.new_zeros(len(weight), weight.shape[1] // len(taps), size, size)
    for (dy, dx), part in zip(taps, weight.chunk(len(taps), 1), strict=True):
        kernel[:, :, size // 2 + dy, size // 2 + dx] = part
    return kernel


def _rectified(x: Tensor) -> Tensor:
    return x.clamp(0, ACTIVATION_LIMIT)


def _bits(symbols: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """About the bits of all symbols with the frequency tables; ``scale`` is the tables' index."""
    spread = torch.exp2(scale.clamp(0, SCALES - 1) / 8 - 5)
    # Always in the lower tail, where a difference of sigmoids is precise.
    distance = -(symbols - mean).abs()
    mass = torch.sigmoid((distance + 0.5) / spread) - torch.sigmoid((distance - 0.5) / spread)
    return -torch.log2(mass.clamp_min(1e-9)).sum()  # escapes take about 30 bits, too


def refine(
    rate: RateModel,
    decode: Callable[[Tensor], Tensor],
    pixels: Samples | None,
    latents: NDArray[np.float32],
    hyper: NDArray[np.float32],
    *,
    quality: int,
    effort: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Latents (h, w, C) and hyperlatents (ceil(h/2), ceil(w/2), Z) that cost less when rounded.

    Both are in steps.  ``decode`` turns latents (1, C, h, w) in steps into pictures (1, 3, 16 h,
    16 w) in [-0.5, 0.5].  ``pixels`` (H, W, 3) are the original's; without them, the latents stay
    as they are.  ``quality`` is the header's.  On one machine, with one number of threads, the same
    input gives the same output.
    """
    of_both, of_hyper = STEPS[effort]
    latents, hyper = latents.copy(), hyper.copy()
    random = torch.Generator().manual_seed(0)
    # Tiles are cut in hyperlatents, so that the latents of one stay together.
    rows, columns, _ = hyper.shape
    area = tiles.everything(rows, columns)
    cut = list(tiles.tiles(area, rows, columns, TILE // 2, MARGIN // 2))
    for tile in progress.told("refining", cut) if of_both and pixels is not None else cut:
        needed = tiles.scaled(tile.needed, 2)
        y, z = _tensor(latents[needed]), _tensor(hyper[tile.needed])
        with torch.enable_grad():
            if of_both and pixels is not None:
                original = _tensor(pixels[tiles.scaled(needed, FACTOR)]).float() / 255 - 0.5
                loss = _loss(rate, decode, original, quality)
                y, z = _descend(loss, [y, z], of_both, random, noise=1)
            if of_hyper:
                z = _cheaper_hyper(rate, y.round(), z, quality, of_hyper, random)
        for whole, part, scale in ((latents, y, 2), (hyper, z, 1)):
            kept = tiles.scaled(tile.place, scale)
            height, width = whole[kept].shape[:2]
            top, left = (
                scale * (place.start - around.start)
                for place, around in zip(tile.place, tile.needed, strict=True)
            )
            found = part[0].permute(1, 2, 0)[top : top + height, left : left + width]
            whole[kept] = found.numpy()
    return latents, hyper


def _tensor(samples: NDArray[Any]) -> Tensor:
    """(H, W, C) as (1, C, H, W)."""
    return torch.from_numpy(samples.copy()).permute(2, 0, 1)[None]


def _loss(
    rate: RateModel, decode: Callable[[Tensor], Tensor], original: Tensor, quality: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a tile, as a function of its latents and hyperlatents."""
    low, high = SQUARED_ERROR
    error = low * (high / low) ** ((quality - LOWEST_QUALITY) / (HIGHEST_QUALITY - LOWEST_QUALITY))
    perceptual = PERCEPTUAL * (error / PERCEPTUAL_AT) ** PERCEPTUAL_POWER
    height, width = original.shape[2:]
    # The metric cannot judge smaller pictures.
    judged = min(height, width) >= ssimulacra2.SMALLEST
    reference = ssimulacra2.Reference(original) if judged else None

    def loss(latents: Tensor, hyper: Tensor) -> Tensor:
        picture = decode(latents)[..., :height, :width]
        bits = rate.bits(latents, hyper, rate.before_hyper(latents, quality), quality)
        # The picture is not clipped, so that values beyond black and white have a gradient.
        squared = ((picture - original) ** 2).mean() * 255**2
        total: Tensor = bits / (height * width) + error * squared
        if reference is not None:
            total = total + perceptual * (1 - reference.score(picture)[0] / 100)
        return total

    return loss


def _cheaper_hyper(
    rate: RateModel,
    symbols: Tensor,
    hyper: Tensor,
    quality: int,
    steps: int,
    random: torch.Generator,
) -> Tensor:
    """Hyperlatents that make these symbols take fewer bits."""
    sums = rate.before_hyper(symbols, quality)

    def loss(hyper: Tensor) -> Tensor:
        return rate.bits(symbols, hyper, sums, quality)

    # The symbols are fixed, and hyperlatents alone need no noise.  Chosen.
    return _descend(loss, [hyper], steps, random, noise=0)[0]


def _descend(
    loss: Callable[..., Tensor],
    start: list[Tensor],
    steps: int,
    random: torch.Generator,
    noise: float,
) -> list[Tensor]:
    """Values with a smaller loss.  The loss sees them softly rounded."""
    variables = [values.clone().requires_grad_() for values in start]
    momenta = [torch.zeros_like(v) for v in variables]
    squares = [v.new_zeros(1, v.shape[1], 1, 1) for v in variables]
    for number in range(1, steps + 1):
        left = 1 - number / steps
        steepness = STEEPNESS[0] ** left * STEEPNESS[1] ** (1 - left)
        softened = [_soft(v, steepness, noise * math.sqrt(left), random) for v in variables]
        gradients = torch.autograd.grad(loss(*softened), variables)
        learning_rate = LEARNING_RATE * (0.5 - 0.45 * math.cos(math.pi * left))
        with torch.no_grad():
            for variable, gradient, momentum, square in zip(
                variables, gradients, momenta, squares, strict=True
            ):
                momentum.lerp_(gradient, 1 - MOMENTUM)
                square.lerp_((gradient * gradient).mean((2, 3), keepdim=True), 1 - DECAY)
                scale = (square / (1 - DECAY**number)).sqrt() + 1e-12
                variable -= learning_rate / (1 - MOMENTUM**number) * momentum / scale
    return [variable.detach() for variable in variables]


def _soft(values: Tensor, steepness: float, noise: float, random: torch.Generator) -> Tensor:
    """The values softly rounded, with noise added, and softly rounded again."""
    rounded = _soft_round(values, steepness)
    if noise:
        uniform = torch.rand(values.shape, generator=random, dtype=values.dtype)
        rounded = rounded + noise * (uniform - 0.5)
    return _soft_round(rounded, steepness)


def _soft_round(values: Tensor, steepness: float) -> Tensor:
    middle = values.detach().floor() + 0.5
    return middle + 0.5 * torch.tanh(steepness * (values - middle)) / math.tanh(steepness / 2)
