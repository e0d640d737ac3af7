"""Scale the channels of the encoder's CNN so that 8 bits hold them; what it computes stays.

Activations have one scale for a whole tensor.  A few channels are far larger than the others, so
that the others have few of the 256 levels.  Sums and ReLU let a channel be divided by a number
where it is made, and its weights be multiplied by it where it is read: Nagel et al., "Data-Free
Quantization Through Weight Equalization and Bias Correction", ICCV 2019.  How much goes into the
weights is chosen as in Xiao et al., "SmoothQuant", ICML 2023.  The decoder gains nothing by it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pillow_sdz.models.blocks import ResidualBlock
from pillow_sdz.models.mini.network import Encoder

# The part of a channel's range that goes into the weights.  Measured: training/README.md.
SHARE = 0.5


class _Ranges:
    """The largest magnitude of each channel that enters some convolutions."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self.of: dict[nn.Module, Tensor] = {}
        self._hooks = [layer.register_forward_pre_hook(self._note) for layer in layers]

    def _note(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        largest = inputs[0].detach().abs().amax((0, 2, 3))
        self.of[layer] = torch.maximum(self.of.get(layer, largest), largest)

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _factors(ranges: list[Tensor], readers: list[nn.Conv2d]) -> Tensor:
    """What each channel is divided by, given its ranges and the convolutions that read it."""
    largest = torch.stack(ranges).amax(0).clamp_min(1e-6)
    weights = torch.stack([r.weight.abs().amax((0, 2, 3)) for r in readers]).amax(0)
    logarithms = SHARE * largest.log() - (1 - SHARE) * weights.clamp_min(1e-6).log()
    return torch.exp(logarithms - logarithms.mean())


def _divide(makers: Iterable[nn.Conv2d], factors: Tensor) -> None:
    for maker in makers:
        each = factors.repeat_interleave(len(maker.weight) // len(factors))
        maker.weight /= each[:, None, None, None]
        if maker.bias is not None:
            maker.bias /= each


def _multiply(readers: Iterable[nn.Conv2d], factors: Tensor) -> None:
    for reader in readers:
        reader.weight *= factors[:, None, None]


@torch.no_grad()
def equalise(encoder: Encoder, inputs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Scale the channels of all stages by what they are for these images and their rates."""
    stages = [encoder.at4, encoder.at8, encoder.at16]
    makers = [encoder.enter, encoder.down8, encoder.down16, encoder.leave]
    blocks = [[b for b in stage if isinstance(b, ResidualBlock)] for stage in stages]
    inside = [block.second for stage in blocks for block in stage]
    ranges = _Ranges([*(b.first for stage in blocks for b in stage), *makers[1:], *inside])
    for images, rate in inputs:
        encoder(images, rate)
    ranges.remove()
    for stage, added, made, read in zip(blocks, encoder.rate, makers, makers[1:], strict=False):
        assert isinstance(added, nn.Conv2d)
        for block in stage:
            factors = _factors([ranges.of[block.second]], [block.second])
            _divide([block.first], factors)
            _multiply([block.second], factors)
        reading = [*(block.first for block in stage), read]
        factors = _factors([ranges.of[r] for r in reading], reading)
        _divide([made, added, *(block.second for block in stage)], factors)
        _multiply(reading, factors)
