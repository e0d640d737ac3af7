"""Blocks that compute in training as the package's graphs in int8 do.

The graphs round the numbers of `LimitedBlock`, and the weights of each output channel, to integers
of 8 bits (`pillow_sdz.models.runtime.quantised`).  A network that is trained with this rounding
loses less by it.  Rounding has the gradient of the identity (Jacob et al., "Quantization and
training of neural networks for efficient integer-arithmetic-only inference", CVPR 2018).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pillow_sdz.models.mini.network import LimitedBlock
from pillow_sdz.models.runtime import LARGEST_INT8

LARGEST_UINT8 = 255


class _Rounded(torch.autograd.Function):
    """x, rounded to multiples of ``unit``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, unit: Tensor) -> Tensor:
        return torch.round(x / unit).mul_(unit)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[0], None


def rounded(x: Tensor, unit: Tensor) -> Tensor:
    """x, rounded to multiples of ``unit``, with the gradient of the identity."""
    y: Tensor = _Rounded.apply(x, unit)  # type: ignore[no-untyped-call]
    return y


class RoundedBlock(LimitedBlock):
    """A `LimitedBlock` whose weights and numbers have 8 bits."""

    def forward(self, x: Tensor) -> Tensor:
        of_input, of_hidden, of_output = self.limits.unbind()
        y = F.relu(_convolved(self.first, _signed(x, of_input)))
        y = rounded(torch.minimum(y, of_hidden), of_hidden / LARGEST_UINT8)
        return x + _signed(_convolved(self.second, y), of_output)


def _signed(x: Tensor, limit: Tensor) -> Tensor:
    """x in integers from -128 to 127, of which the last one is the limit."""
    unit = limit / LARGEST_INT8
    return rounded(torch.clamp(x, -(LARGEST_INT8 + 1) * unit, limit), unit)


def _convolved(layer: nn.Conv2d, x: Tensor) -> Tensor:
    weight = layer.weight
    return F.conv2d(x, rounded(weight, _unit(weight.detach())), layer.bias, padding=1)


def _unit(weight: Tensor) -> Tensor:
    """As `pillow_sdz.models.runtime.scale_of_weights`: (outputs, 1, 1, 1)."""
    largest = summed(weight[:, ::2], weight[:, 1::2]).amax((1, 2, 3), keepdim=True)
    return (largest / LARGEST_INT8).clamp_min(1e-12)


def summed(a: Tensor, b: Tensor) -> Tensor:
    """The sums of what is positive, or the magnitudes of those of what is negative, if larger."""
    return torch.maximum(F.relu(a) + F.relu(b), F.relu(-a) + F.relu(-b))


def round_blocks(module: nn.Module) -> None:
    """Replace all blocks in ``module`` that have limits; they keep their weights."""
    for parent in [m for m in module.modules() if isinstance(m, nn.Sequential)]:
        for number, block in enumerate(parent):
            if type(block) is LimitedBlock:
                new = RoundedBlock(block.first.in_channels)
                new.load_state_dict(block.state_dict())
                parent[number] = new
