"""The embedded autoencoder `mini`: a lapped transform learnt from data, with a CNN beside it.

Encoder and decoder are each the sum of two paths.  The linear path is an overlapped block transform
of 32x32 samples at a stride of 16.  The residual path is a small CNN at 1/4, 1/8 and 1/16 of the
resolution.  The linear path alone is a good transform coder.  The CNN adds what a linear path
cannot do: edges without ringing, and a reconstruction that knows how coarsely the latents were
quantised.  Its result is multiplied by a learnt gate, because the linear path alone has to be
precise when steps are small.  The first channels, the base, are coded at all rates.  The other
channels hold fine or weak details, and cost nothing at low rates.  training/README.md has the
figures.

The place on the rate axis is from 0 to 1.  It is one value for a picture, (B, 1, 1, 1), or a map
over cells of 32x32 pixels, (B, 1, ceil(h/2), ceil(w/2)) for latents (h, w).

These networks are for training and for the encoder's search.  The graphs of `training.graphs`,
which compute the same, encode and decode pictures.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...codings.rate_axis import KNOTS
from ..blocks import ResidualBlock
from . import borders as at_borders
from .borders import HALF
from .shape import BASE, CHANNELS, DEPTHS_DECODER, DEPTHS_ENCODER, FACTOR, WIDTHS


def spread(rate: Tensor, factor: int, height: int, width: int) -> Tensor:
    """A map over cells at a resolution ``factor`` times theirs, cut to (height, width)."""
    if rate.shape[2:] == (1, 1):
        return rate
    return F.interpolate(rate, scale_factor=factor, mode="nearest")[..., :height, :width]


def knots(rate: Tensor) -> Tensor:
    """A map of the rate (B, 1, h, w) in [0, 1] as the weights (B, KNOTS, h, w) of all knots.

    Everything that is learnt along the axis is linear between knots.
    """
    places = torch.arange(KNOTS, device=rate.device, dtype=rate.dtype)[:, None, None]
    return F.relu(1 - (rate * (KNOTS - 1) - places).abs())


def beyond(x: Tensor, size: int = FACTOR) -> Tensor:
    """(B, 3, H, W) with size / 2 samples more on all sides, multiples of their mirror images."""
    half = size // 2
    mirrored = torch.from_numpy(at_borders.mirrored(size)).to(x)
    for dim in (2, 3):
        factor = mirrored[:, None] if dim == 2 else mirrored
        first = x.narrow(dim, 0, half) * factor
        last = -x.narrow(dim, x.shape[dim] - half, half).flip(dim) * factor
        x = torch.cat([first.flip(dim), x, last], dim)
    return x


def borders(x: Tensor) -> Tensor:
    """Undo what `beyond` does to the HALF samples inside of each border."""
    for dim in (2, 3):
        factor = torch.from_numpy(at_borders.along(x.shape[dim])).to(x)
        x = x * (factor[:, None] if dim == 2 else factor)
    return x


class LimitedBlock(ResidualBlock):
    """x + c(second(b(first(a(x))))): a and c limit to -n .. n, and b limits to 0 .. n.

    The three limits n are part of the network, not trained.  So integers of 8 bits hold whatever a
    picture leads to, and they are fine enough for photos, which are hardly ever limited.
    """

    limits: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("limits", torch.full((3,), torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        of_input, of_hidden, of_output = self.limits.unbind()
        y = torch.minimum(F.relu(self.first(torch.clamp(x, -of_input, of_input))), of_hidden)
        return x + torch.clamp(self.second(y), -of_output, of_output)


def blocks(channels: int, depth: int) -> nn.Sequential:
    """Blocks one after another."""
    return nn.Sequential(*(LimitedBlock(channels) for _ in range(depth)))


class Gate(nn.Module):
    """The factor for a CNN's result, by channel and place on the rate axis."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(KNOTS, channels))

    def forward(self, rate: Tensor, factor: int, height: int, width: int) -> Tensor:
        gate = torch.einsum("bkhw,kc->bchw", knots(rate), self.weight)
        return spread(gate, factor, height, width)


class Encoder(nn.Module):
    """Images (B, 3, H, W) and the rate at each cell to latents (B, C, H/16, W/16).

    Images are in [-0.5, 0.5], and H and W are multiples of 16.
    """

    def __init__(self) -> None:
        super().__init__()
        n4, n8, n16 = WIDTHS
        d4, d8, d16 = DEPTHS_ENCODER
        # A 32x32 convolution at stride 16 is a 2x2 convolution over 16x16 blocks.
        self.linear = nn.Conv2d(3 * FACTOR * FACTOR, CHANNELS, 2)
        self.enter = nn.Conv2d(48, n4, 3, padding=1)
        self.at4 = blocks(n4, d4)
        self.down8 = nn.Conv2d(n4, n8, 4, stride=2, padding=1)
        self.at8 = blocks(n8, d8)
        self.down16 = nn.Conv2d(n8, n16, 4, stride=2, padding=1)
        self.at16 = blocks(n16, d16)
        self.leave = nn.Conv2d(n16, CHANNELS, 3, padding=1)
        self.rate = _of_rate(n4, n8, n16)
        self.gate = Gate(CHANNELS)

    def forward(self, x: Tensor, rate: Tensor) -> Tensor:
        height, width = (n // FACTOR for n in x.shape[2:])
        features = knots(rate)
        r4, r8, r16 = (
            spread(layer(features), 2 * n, n * height, n * width)
            for layer, n in zip(self.rate, (4, 2, 1), strict=True)
        )
        with torch.autocast(x.device.type, enabled=False):
            latents: Tensor = self.linear(F.pixel_unshuffle(beyond(x), FACTOR))
        y = self.at4(self.enter(F.pixel_unshuffle(x, 4)) + r4)
        y = self.at8(self.down8(y) + r8)
        y = self.at16(self.down16(y) + r16)
        residual: Tensor = self.leave(y).float() * self.gate(rate, 2, height, width)
        return latents + residual


class Decoder(nn.Module):
    """Latents (B, C, h, w) and the rate at each cell to images (B, 3, 16h, 16w)."""

    def __init__(self) -> None:
        super().__init__()
        n4, n8, n16 = WIDTHS
        d4, d8, d16 = DEPTHS_DECODER
        self.linear = nn.Conv2d(CHANNELS, 3 * FACTOR * FACTOR, 2, padding=1, bias=False)
        self.enter = nn.Conv2d(CHANNELS, n16, 3, padding=1)
        self.at16 = blocks(n16, d16)
        self.up8 = nn.Conv2d(n16, n8 * 4, 1)
        self.at8 = blocks(n8, d8)
        self.up4 = nn.Conv2d(n8, n4 * 4, 1)
        self.at4 = blocks(n4, d4)
        self.leave = nn.Conv2d(n4, 48, 3, padding=1)
        # How much the reconstruction should smooth depends on the quantisation step.
        self.rate = _of_rate(n16, n8, n4)
        self.gate = Gate(48)

    def forward(self, latents: Tensor, rate: Tensor) -> Tensor:
        height, width = latents.shape[2:]
        features = knots(rate)
        r16, r8, r4 = (
            spread(layer(features), 2 * n, n * height, n * width)
            for layer, n in zip(self.rate, (1, 2, 4), strict=True)
        )
        y = self.at16(self.enter(latents) + r16)
        y = self.at8(F.pixel_shuffle(self.up8(y), 2) + r8)
        y = self.at4(F.pixel_shuffle(self.up4(y), 2) + r4)
        gate = self.gate(rate, 8, 4 * height, 4 * width)
        residual = F.pixel_shuffle(self.leave(y).float() * gate, 4)
        with torch.autocast(latents.device.type, enabled=False):
            image = F.pixel_shuffle(self.linear(latents.float()), FACTOR)
            whole: Tensor = borders(image[..., HALF:-HALF, HALF:-HALF]) + residual
            return whole

    def of_base(self) -> Decoder:
        """The same for the base alone (B, BASE, h, w); it shares all other weights."""
        base = copy.copy(self)
        base._modules = dict(self._modules)
        for name in ("linear", "enter"):
            layer = copy.copy(getattr(self, name))
            layer._parameters = dict(layer._parameters)
            layer.weight = nn.Parameter(layer.weight[:, :BASE], requires_grad=False)
            base._modules[name] = layer
        return base


def _of_rate(*channels: int) -> nn.ModuleList:
    """The layers that add something for the rate at each stage.  Before training they add 0."""
    layers = nn.ModuleList(nn.Conv2d(KNOTS, n, 1, bias=False) for n in channels)
    for parameter in layers.parameters():
        nn.init.zeros_(parameter)
    return layers


class Gain(nn.Module):
    """The quantisation step of every channel, as a function of the place on the rate axis.

    Latents are multiplied by the gain before rounding, and divided by it after rounding.  So one
    model has all rates (Cui et al., "Asymmetric Gained Deep Image Compression With Continuous Rate
    Adaptation", CVPR 2021).  The logarithm of the gain is linear between knots.
    """

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.logarithms = nn.Parameter(torch.zeros(KNOTS, channels))

    def forward(self, rate: Tensor, factor: int, height: int, width: int) -> Tensor:
        """(B, C, height, width) for latents of that size, or (B, C, 1, 1).

        A cell has ``factor`` latents along a side.
        """
        log_gain = torch.einsum("bkhw,kc->bchw", knots(rate), self.logarithms)
        return spread(torch.exp(log_gain), factor, height, width)


class Autoencoder(nn.Module):
    """Encoder, decoder and gain.  Latents are in the encoder's units, before the gain."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.gain = Gain()


class Analysis(nn.Sequential):
    """Base latents (B, BASE, h, w) in steps, h and w even, to hyperlatents (B, 32, h/2, w/2).

    Only the encoder runs it, so it may be floating point.
    """

    def __init__(self, hyper: int = 32, width: int = 96) -> None:
        super().__init__(
            nn.Conv2d(BASE, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, hyper, 3, padding=1),
        )
