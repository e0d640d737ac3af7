"""Decodes `mini`'s pictures at 1/2, 1/4 and 1/8 of their size, faster than in full size.

At 1/8, a pixel is a linear function of the latents around it.  At 1/2 and 1/4, the linear path is
reduced exactly: the mean of pixels is a mean of kernels.  The CNN stops early, and a convolution
makes the residual: at 1/2 after the first of its five blocks at 1/4 of the resolution, at 1/4 after
the second block at 1/8.  These convolutions were fitted by least squares to the reduced pictures of
the decoder (training/reduced.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ... import weights
from ...arrays import Area, Pixels, Samples
from .. import tiles
from ..running import Computing, undisturbed
from ..tiles import WHOLE, Sides
from .memory import DECODER_MEMORY, tile_side
from .network import CHANNELS, FACTOR, WIDTHS, Decoder, rate_features, rate_of


class Eighth(nn.Module):
    """Latents (B, C, h, w) and places on the rate axis (B,) to images (B, 3, 2h, 2w)."""

    margin = 1

    def __init__(self) -> None:
        super().__init__()
        # Its inputs are the latents, and the latents times their place on the rate axis.
        self.head = nn.Conv2d(2 * CHANNELS, 3 * 2**2, 3, padding=1)

    def forward(self, latents: Tensor, rate: Tensor, sides: Sides = WHOLE) -> Tensor:
        """The image of a tile, without its margin."""
        place = (2 * rate - 1)[:, None, None, None]
        levels = self.head(torch.cat([latents, place * latents], 1))
        return F.pixel_shuffle(sides.trim(levels, self.margin), 2)


class Reducing(nn.Module):
    """As `Eighth`, to images (B, 3, 16h / scale, 16w / scale), with a scale of 2 or 4.

    It shares all layers but the last with a `Decoder`.
    """

    # By scale: the blocks at 1/8 and at 1/4 of the resolution, and the margins of the whole, from
    # the stage at 1/8 on, and after that stage (see `network.DECODER_MARGIN`).
    SHAPES = {2: (5, 1, (11, 6, 1)), 4: (2, 0, (8, 3, 3))}  # noqa: RUF012

    def __init__(self, decoder: Decoder, scale: int) -> None:
        super().__init__()
        at8, self.blocks_at4, margins = self.SHAPES[scale]
        self.margin, self.margin_8, self.margin_of_head = margins
        self.side = FACTOR // scale  # pixels of a latent, along a side
        self.linear = _reduced(decoder.linear, scale)
        self.enter, self.at16 = decoder.enter, decoder.at16
        self.up8, self.at8 = decoder.up8, decoder.at8[:at8]
        self.up4, self.at4 = decoder.up4, decoder.at4[: self.blocks_at4]
        self.rate = decoder.rate
        # Each place becomes 2x2 pixels.
        self.head = nn.Conv2d(WIDTHS[0] if self.blocks_at4 else WIDTHS[1], 3 * 2**2, 3, padding=1)

    def forward(self, latents: Tensor, rate: Tensor, sides: Sides = WHOLE) -> Tensor:
        """The image of a tile, without its margin."""
        y = self.head(self.features(latents, rate, sides))
        y = F.pixel_shuffle(sides.trim(y, self.side // 2 * self.margin_of_head), 2)
        near, cut = sides.trim(latents, self.margin - 1), self.side // 2
        image = F.pixel_shuffle(self.linear(near), self.side)[..., cut:-cut, cut:-cut]
        return sides.trim(image, self.side) + y

    def features(self, latents: Tensor, rate: Tensor, sides: Sides = WHOLE) -> Tensor:
        """The head's input for a tile, with the margin that the head needs."""
        dtype = self.enter.weight.dtype
        of_rate = rate_features(rate).to(dtype)
        r16, r8, r4 = (layer(of_rate)[:, :, None, None] for layer in self.rate)
        y = sides.trim(self.at16(self.enter(latents.to(dtype)) + r16), self.margin - self.margin_8)
        out: Tensor = self.at8(F.pixel_shuffle(self.up8(y), 2) + r8)
        if self.blocks_at4:
            y = sides.trim(out, 2 * (self.margin_8 - self.margin_of_head))
            out = self.at4(F.pixel_shuffle(self.up4(y), 2) + r4)
        return out


def _reduced(linear: nn.Conv2d, scale: int) -> nn.Conv2d:
    """The linear path, reduced to means of ``scale`` x ``scale`` pixels."""
    side = FACTOR // scale
    outputs, inputs, height, width = linear.weight.shape
    kernels = linear.weight.float().view(3, side, scale, side, scale, inputs, height, width)
    out = nn.Conv2d(inputs, outputs // scale**2, (height, width), padding=1, bias=False)
    out.weight = nn.Parameter(kernels.mean((2, 4)).flatten(0, 2), requires_grad=False)
    return out


class Reduced:
    """The decoders for the scales of 2, 4 and 8, loaded."""

    @torch.inference_mode(False)
    @undisturbed()
    def __init__(self, decoder: Decoder) -> None:
        tensors = load_file(weights.MINI_REDUCED.checked())
        with torch.device("meta"):  # as `running.built`
            networks: dict[int, Reducing | Eighth] = {
                2: Reducing(decoder, 2),
                4: Reducing(decoder, 4),
                8: Eighth(),
            }
        for scale, network in networks.items():
            name = f"{scale}.head."
            head = {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}
            network.head.load_state_dict(head, assign=True)
        self._networks = {scale: Computing(network) for scale, network in networks.items()}

    def decode(
        self, latents: Samples, quality: int, area: Area | None, scale: int
    ) -> Iterator[tuple[Area, Pixels]]:
        """As `Mini.decode`, with a scale of 2, 4 or 8."""
        # At 1/8 there is only a linear path, which stays in float32.
        computing = self._networks[scale]
        network = computing.in_float32 if scale == 8 else computing()

        def levels(part: Tensor, sides: Sides) -> Tensor:
            out: Tensor = network(part, rate_of(quality), sides).add_(0.5).mul_(255)
            return out

        return tiles.decode(
            latents,
            levels,
            area=area,
            factor=FACTOR // scale,
            side=tile_side(DECODER_MEMORY, network.margin, latents.shape[1]),
            margin=network.margin,
        )
