"""The networks of `mini`, second generation: pixels to base latents, and details to all rates.

The base is the first generation's autoencoder: a lapped transform learnt from data, 32x32
samples at a stride of 16, and a CNN beside it, to 160 channels.  What its reconstruction
leaves is coded by a fixed lapped transform of all 192 coefficients for 8x8 pixels
(`LappedTransform`), whose steps are learnt; a small CNN sees the sum (`Restoration`).  At low
rates no detail is coded.  The transform is orthogonal and complete, so that any fidelity can
be reached whatever the base makes of a picture.

The place on the rate axis, from 0 to 1, is a map (B, 1, ceil(h/2), ceil(w/2)) over cells of
32x32 pixels, h and w being those of the latents, or one value for a picture, (B, 1, 1, 1).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pillow_sdz.models.blocks import blocks

FACTOR = 16
CHANNELS = 160
DETAIL_FACTOR = 8  # pixels along the stride of the details' transform
DETAILS = 3 * DETAIL_FACTOR * DETAIL_FACTOR
WIDTHS = (40, 80, 144)  # channels at 1/4, 1/8 and 1/16 of the resolution
DEPTHS_ENCODER = (4, 3, 2)  # residual blocks at each of them
DEPTHS_DECODER = (5, 5, 2)
RESTORATION_WIDTH, RESTORATION_DEPTH = 48, 2
KNOTS = 11  # along the rate axis


def spread(rate: Tensor, factor: int, height: int, width: int) -> Tensor:
    """A map over cells at a resolution ``factor`` times theirs, cut to (height, width)."""
    if rate.shape[2:] == (1, 1):
        return rate
    return F.interpolate(rate, scale_factor=factor, mode="nearest")[..., :height, :width]


def knots(rate: Tensor) -> Tensor:
    """A map of the rate (B, 1, h, w) in [0, 1] as weights (B, KNOTS, h, w) of the knots beside
    it, by which what is learnt for each of them is interpolated.
    """
    places = torch.arange(KNOTS, device=rate.device, dtype=rate.dtype)[:, None, None]
    return F.relu(1 - (rate * (KNOTS - 1) - places).abs())


class Encoder(nn.Module):
    """Images (B, 3, H, W) in [-0.5, 0.5], H and W multiples of 16, to
    latents (B, C, H/16, W/16).
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
    """Latents (B, C, h, w) and the rate at each cell to images (B, 3, 16h, 16w), and the
    features at 1/4 of the resolution that they were made of.
    """

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
        # What the reconstruction should smooth depends on the quantisation step.
        self.rate = nn.ModuleList(nn.Conv2d(KNOTS, n, 1, bias=False) for n in (n16, n8, n4))
        for layer in self.rate:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, latents: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        height, width = latents.shape[2:]
        features = knots(rate)
        r16, r8, r4 = (
            spread(layer(features), 2 * n, n * height, n * width)
            for layer, n in zip(self.rate, (1, 2, 4), strict=True)
        )
        y = self.at16(self.enter(latents) + r16)
        y = self.at8(F.pixel_shuffle(self.up8(y), 2) + r8)
        y = self.at4(F.pixel_shuffle(self.up4(y), 2) + r4)
        residual = F.pixel_shuffle(self.leave(y), 4)
        with torch.autocast(latents.device.type, enabled=False):
            image = F.pixel_shuffle(self.linear(latents.float()), FACTOR)[..., 8:-8, 8:-8]
            return image + residual.float(), y


class Gain(nn.Module):
    """The quantisation step of every channel, as a function of the place on the rate axis.

    Latents are multiplied by the gain before rounding and divided by it after: one model for
    all rates (Cui et al., "Asymmetric Gained Deep Image Compression With Continuous Rate
    Adaptation", CVPR 2021).  Its logarithm is linear between knots.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.logarithms = nn.Parameter(torch.zeros(KNOTS, channels))

    def forward(self, rate: Tensor, factor: int, height: int, width: int) -> Tensor:
        """(B, C, height, width) for latents of that size, ``factor`` of them along a cell's
        side, or (B, C, 1, 1)."""
        log_gain = torch.einsum("bkhw,kc->bchw", knots(rate), self.logarithms)
        return spread(torch.exp(log_gain), factor, height, width)


def lapped_basis(size: int) -> Tensor:
    """The modulated lapped transform, (size, 2 * size); Malvar, IEEE TASSP 1990."""
    n = torch.arange(2 * size, dtype=torch.float64)
    k = torch.arange(size, dtype=torch.float64)[:, None]
    window = torch.sin(math.pi * (n + 0.5) / (2 * size)) * math.sqrt(2 / size)
    return (window * torch.cos(math.pi / size * (n + 0.5 + size / 2) * (k + 0.5))).float()


# Orthonormal: grey, red against blue, green against both.
COLOUR = (
    (3**-0.5, 3**-0.5, 3**-0.5),
    (2**-0.5, 0.0, -(2**-0.5)),
    (6**-0.5, -2 * 6**-0.5, 6**-0.5),
)
# Detail channels are coded in groups from low to high frequencies, each told of those before
# it; chroma counts as three frequencies higher than it is.  Chosen by the spectrum.
CHROMA_LATER = 3
GROUPS = (32, 64, 96)


def detail_order() -> Tensor:
    """For each detail channel in coding order, its number as (colour, row, column) has it."""
    row = torch.arange(DETAIL_FACTOR)[None, :, None]
    column = torch.arange(DETAIL_FACTOR)[None, None]
    later = torch.tensor([0, CHROMA_LATER, CHROMA_LATER])[:, None, None]
    place = torch.hypot(row.double(), column.double()) + later
    return torch.argsort(place.flatten(), stable=True)


class LappedTransform(nn.Module):
    """All 192 coefficients of 8x8 pixels in a separable orthogonal lapped transform.

    Windows of 16 samples at a stride of 8.  At a picture's border the window does not
    overlap: it falls from 1 to 0 at once, so that `inverse` gives back every pixel (an edge
    as the window switching of audio codecs has it).
    """

    basis: Tensor
    colour: Tensor
    order: Tensor
    place: Tensor
    beyond: Tensor
    border: Tensor

    def __init__(self) -> None:
        super().__init__()
        half = DETAIL_FACTOR // 2
        angle = math.pi * (torch.arange(half) + 0.5) / (2 * DETAIL_FACTOR)
        constants = {
            "basis": lapped_basis(DETAIL_FACTOR),
            "colour": torch.tensor(COLOUR),
            "order": detail_order(),
            "place": torch.argsort(detail_order()),
            # Samples beyond the border, the outermost first, as multiples of their mirror
            # images; and what the samples inside are to be multiplied by afterwards.
            "beyond": torch.tan(angle / 2),
            "border": 1 / torch.cos(angle.flip(0)),
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def _along_rows(self, x: Tensor) -> Tensor:
        """(..., W) samples to (..., W/8, 8) coefficients."""
        half = DETAIL_FACTOR // 2
        before = -x[..., :half].flip(-1) * self.beyond
        after = x[..., -half:].flip(-1) * self.beyond.flip(0)
        windows = torch.cat([before, x, after], -1).unfold(-1, 2 * DETAIL_FACTOR, DETAIL_FACTOR)
        # As one matrix: else as many small products.
        coefficients = windows.reshape(-1, 2 * DETAIL_FACTOR) @ self.basis.T
        return coefficients.view(*windows.shape[:-1], DETAIL_FACTOR)

    def _back_along_rows(self, c: Tensor) -> Tensor:
        """(..., w, 8) coefficients to (..., 8 w) samples."""
        half = DETAIL_FACTOR // 2
        parts = (c.reshape(-1, DETAIL_FACTOR) @ self.basis).view(*c.shape[:-1], -1)
        first = F.pad(parts[..., :DETAIL_FACTOR], (0, 0, 0, 1))
        second = F.pad(parts[..., DETAIL_FACTOR:], (0, 0, 1, 0))
        x = (first + second).flatten(-2)[..., half:-half]
        inner = x[..., half:-half]
        return torch.cat(
            [x[..., :half] * self.border, inner, x[..., -half:] * self.border.flip(0)], -1
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, 8h, 8w) to (B, 192, h, w), channels in coding order."""
        x = torch.einsum("ij,bjyx->biyx", self.colour, image)
        x = self._along_rows(x)  # (B, 3, H, w, kx)
        x = self._along_rows(x.permute(0, 1, 3, 4, 2))  # (B, 3, w, kx, h, ky)
        return x.permute(0, 1, 5, 3, 4, 2).flatten(1, 3)[:, self.order]

    def inverse(self, coefficients: Tensor) -> Tensor:
        """(B, 192, h, w) to (B, 3, 8h, 8w)."""
        batch, _, height, width = coefficients.shape
        shape = batch, 3, DETAIL_FACTOR, DETAIL_FACTOR, height, width
        c = coefficients[:, self.place].reshape(shape)
        x = self._back_along_rows(c.permute(0, 1, 5, 3, 4, 2))  # (B, 3, w, kx, H)
        x = self._back_along_rows(x.permute(0, 1, 4, 2, 3))  # (B, 3, H, W)
        return torch.einsum("ij,biyx->bjyx", self.colour, x)


class Details(nn.Module):
    """Steps of the detail channels, and where in its step a coefficient is reconstructed."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = LappedTransform()
        self.gain = Gain(DETAILS)
        # Towards zero, where coefficients are more frequent; in steps.
        self.bias = nn.Parameter(torch.full((DETAILS,), 0.05))

    def reconstruct(self, symbols: Tensor, gain: Tensor) -> Tensor:
        """Integers (B, 192, h, w) to the image (B, 3, 8h, 8w) they stand for."""
        towards_zero = self.bias.clamp(0, 0.4)[:, None, None] * torch.sign(symbols.detach())
        image: Tensor = self.transform.inverse((symbols - towards_zero) / gain)
        return image


class Restoration(nn.Module):
    """What a picture with details still gets: a CNN at 1/4 of the resolution.

    It sees the picture, its details in steps, and the decoder's features.  What it adds is in
    units of the step, so that it fades where rates are high.
    """

    def __init__(self) -> None:
        super().__init__()
        n = RESTORATION_WIDTH
        self.enter = nn.Conv2d(48 + 48 + WIDTHS[0], n, 3, padding=1)
        self.rate = nn.Conv2d(KNOTS, n, 1, bias=False)
        self.blocks = blocks(n, RESTORATION_DEPTH)
        self.leave = nn.Conv2d(n, 48, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(torch.as_tensor(self.leave.bias))

    def forward(
        self, picture: Tensor, details: Tensor, step: Tensor, features: Tensor, rate: Tensor
    ) -> Tensor:
        """What to add to (B, 3, H, W); ``step`` (B, 1, H/4, W/4) or (B, 1, 1, 1)."""
        seen = F.pixel_unshuffle(picture, 4), F.pixel_unshuffle(details, 4) / step, features
        bias = spread(self.rate(knots(rate)), 8, *features.shape[2:])
        y = self.leave(self.blocks(self.enter(torch.cat(seen, 1)) + bias))
        return F.pixel_shuffle(y.float() * step, 4)


class Autoencoder(nn.Module):
    """All networks but the priors; latents are in units of the encoder, before the gain."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.gain = Gain(CHANNELS)
        self.details = Details()
        self.restoration = Restoration()
