"""The embedded autoencoder `mini`: a lapped transform learnt from data, with a CNN beside it.

Encoder and decoder are each the sum of two paths.  The linear path is an overlapped block transform
of 32x32 samples at a stride of 16.  The residual path is a small CNN at 1/4, 1/8 and 1/16 of the
resolution.  The linear path alone is a good transform coder.  The CNN adds what it cannot do: edges
without ringing, and a reconstruction that knows how coarsely the latents were quantised.
training/README.md has the figures.

These are for training and for the encoder's search.  Pictures are encoded and decoded by the graphs
of `training.graphs`, which compute the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...catalogue import HIGHEST_QUALITY, LOWEST_QUALITY
from ..blocks import blocks
from .shape import CHANNELS, DEPTHS_DECODER, DEPTHS_ENCODER, FACTOR, RATE_FEATURES, WIDTHS


def rate_of(quality: int) -> Tensor:
    """The place on the rate axis, (1,) in [0, 1], of a header's quality."""
    place = (quality - LOWEST_QUALITY) / (HIGHEST_QUALITY - LOWEST_QUALITY)
    return torch.tensor([place], dtype=torch.float32)


def rate_features(rate: Tensor) -> Tensor:
    """Smooth features (B, RATE_FEATURES) of places on the rate axis, (B,) in [0, 1]."""
    u = 2 * rate - 1
    return torch.stack([u, u * u, u * u * u], dim=1)


class Encoder(nn.Module):
    """Images (B, 3, H, W) to latents (B, C, H/16, W/16).

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

    def forward(self, x: Tensor) -> Tensor:
        near = F.pad(x, (8, 8, 8, 8), mode="replicate")
        latents: Tensor = self.linear(F.pixel_unshuffle(near, FACTOR))
        y = self.at4(self.enter(F.pixel_unshuffle(x, 4)))
        y = self.at16(self.down16(self.at8(self.down8(y))))
        residual: Tensor = self.leave(y)
        return latents + residual


class Decoder(nn.Module):
    """Latents (B, C, h, w) and places on the rate axis (B,) to images (B, 3, 16h, 16w)."""

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
        self.rate = nn.ModuleList(nn.Linear(RATE_FEATURES, n) for n in (n16, n8, n4))
        for layer in self.rate:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, latents: Tensor, rate: Tensor) -> Tensor:
        features = rate_features(rate)
        r16, r8, r4 = (layer(features)[:, :, None, None] for layer in self.rate)
        y = self.at16(self.enter(latents) + r16)
        y = self.at8(F.pixel_shuffle(self.up8(y), 2) + r8)
        y = self.at4(F.pixel_shuffle(self.up4(y), 2) + r4)
        image = F.pixel_shuffle(self.linear(latents), FACTOR)[..., 8:-8, 8:-8]
        return image + F.pixel_shuffle(self.leave(y), 4)


class Gain(nn.Module):
    """The gain of every channel, as a function of the place t on the rate axis.

    Latents are multiplied by exp(a + b t + c t^2) before rounding, and divided by it after.  So one
    model has all rates (Cui et al., "Asymmetric Gained Deep Image Compression With Continuous Rate
    Adaptation", CVPR 2021).
    """

    def __init__(self) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(3, CHANNELS))

    def forward(self, rate: Tensor) -> Tensor:
        powers = torch.stack([torch.ones_like(rate), rate, rate * rate], dim=1)
        return torch.exp(powers @ self.coefficients)[:, :, None, None]


class Autoencoder(nn.Module):
    """Encoder, decoder and gain.  Latents are in the encoder's units, before the gain."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.gain = Gain()


class HyperAnalysis(nn.Sequential):
    """Latents (B, C, h, w) in steps, h and w even, to hyperlatents (B, 32, h/2, w/2).

    Only the encoder runs it, so it may be floating point.
    """

    def __init__(self, hyper: int = 32, width: int = 96) -> None:
        super().__init__(
            nn.Conv2d(CHANNELS, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, hyper, 3, padding=1),
        )
