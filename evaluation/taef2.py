"""The tiny autoencoder of FLUX.2's latents, with the weights of the public taesd repository.

The weights do not come with this project.  Tests and benchmarks that need them are left out if they
are not there.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

#: Where `weights` looks, unless the environment variable TAEF2 names a file.
USUAL = Path(__file__).parents[2] / "shared" / "data" / "taef2" / "taef2.safetensors"


def weights() -> Path | None:
    """The file of weights, or None if there is none on this computer."""
    path = Path(os.environ.get("TAEF2", USUAL))
    return path if path.is_file() else None


class _Block(nn.Module):
    def __init__(self, width: int, pooled: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )
        self.pool = nn.Sequential()
        if pooled:
            self.pool = nn.Sequential(
                nn.Conv2d(width, 4 * width, 1, bias=False),
                nn.GroupNorm(4, 4 * width),
                nn.ReLU(),
                nn.Conv2d(4 * width, width, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if len(self.pool):
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


def _conv(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)


def _blocks(width: int, count: int, pooled: bool = False) -> list[nn.Module]:
    return [_Block(width, pooled) for _ in range(count)]


class Taef2(nn.Module):
    """Pictures (B, 3, H, W) in 0..1 <-> latents (B, 32, H/8, W/8) of FLUX.2.

    ``width`` and ``channels`` must fit the weights.  Tests use smaller ones.
    """

    def __init__(self, width: int = 64, channels: int = 32) -> None:
        super().__init__()
        encoder: list[nn.Module] = [_conv(3, width), *_blocks(width, 1)]
        for pooled in (False, False, True):
            encoder += [_conv(width, width, 2, bias=False), *_blocks(width, 3, pooled)]
        decoder: list[nn.Module] = [_Clamp(), _conv(channels, width), nn.ReLU()]
        for count, pooled in ((3, True), (3, False), (3, False)):
            decoder += [*_blocks(width, count, pooled), nn.Upsample(scale_factor=2)]
            decoder.append(_conv(width, width, bias=False))
        self.encoder = nn.Sequential(*encoder, _conv(width, channels))
        self.decoder = nn.Sequential(*decoder, *_blocks(width, 1), _conv(width, 3))

    def encode(self, images: Tensor) -> Tensor:
        latents: Tensor = self.encoder(images)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.decoder(latents)
        return images


def load(path: Path) -> Taef2:
    """The autoencoder with the weights of a file, in float32."""
    module = Taef2()
    module.load_state_dict({name: t.float() for name, t in load_file(path).items()})
    return module.eval().requires_grad_(False)
