"""`sd-mini`'s U-Net: it predicts the noise in latents, in the last steps of its schedule.

It is diffusers' UNet2DModel without attention.  Its tensors have the same names, so they can be
used with diffusers as well.  It is written out here, so that a file that recommends denoising does
not need diffusers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from . import sources
from .denoiser import Denoiser
from .running import built, undisturbed
from .schedule import Schedule
from .sd_mini import CHANNELS
from .sources import DenoiserParts

# As training.unet made it.
FULL, HALF = 64, 96  # channels at the resolution of latents and at half of it
TIME_WIDTH = 256  # of what stands for a timestep
GROUPS, EPSILON = 16, 1e-5  # of the norms
LONGEST_PERIOD = 10000  # of the sines that stand for a timestep (Vaswani et al. 2017)


class Block(nn.Module):
    """x plus two convolutions of it.  The timestep is added between them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, inputs, EPSILON)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(TIME_WIDTH, outputs)
        self.norm2 = nn.GroupNorm(GROUPS, outputs, EPSILON)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        same = inputs == outputs
        self.conv_shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x), inplace=True))
        y += self.time_emb_proj(F.silu(time))[:, :, None, None]
        out: Tensor = self.conv2(F.silu(self.norm2(y), inplace=True))
        del y
        out += self.conv_shortcut(x)
        return out


class Resampling(nn.Module):
    """A convolution between two resolutions."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class Down(nn.Module):
    """Blocks at one resolution.  Their results are kept for the way up."""

    def __init__(self, inputs: int, outputs: int, *, halves: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Block(inputs, outputs), Block(outputs, outputs)])
        self.downsamplers = nn.ModuleList([Resampling(outputs, 2)] if halves else [])

    def forward(self, x: Tensor, time: Tensor, found: list[Tensor]) -> Tensor:
        for block in self.resnets:
            x = block(x, time)
            found.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
            found.append(x)
        return x


class Middle(nn.Module):
    """Blocks at the lowest resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Block(HALF, HALF), Block(HALF, HALF)])

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        for block in self.resnets:
            x = block(x, time)
        return x


class Up(nn.Module):
    """Blocks at one resolution.  Each one also sees a result from the way down."""

    def __init__(self, inputs: tuple[int, ...], outputs: int, *, doubles: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Block(width, outputs) for width in inputs)
        self.upsamplers = nn.ModuleList([Resampling(outputs, 1)] if doubles else [])

    def forward(self, x: Tensor, time: Tensor, found: list[Tensor]) -> Tensor:
        for block in self.resnets:
            x = block(torch.cat([x, found.pop()], 1), time)
        for upsampler in self.upsamplers:
            x = upsampler(F.interpolate(x, scale_factor=2))
        return x


class UNet(nn.Module):
    """Noisy latents (B, 4, h, w), h and w even, and their timestep to the noise in them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(CHANNELS, FULL, 3, padding=1)
        self.time_embedding = nn.ModuleDict(
            {
                "linear_1": nn.Linear(FULL, TIME_WIDTH),
                "linear_2": nn.Linear(TIME_WIDTH, TIME_WIDTH),
            }
        )
        self.down_blocks = nn.ModuleList(
            [
                Down(FULL, FULL, halves=True),
                Down(FULL, HALF, halves=False),
            ]
        )
        self.mid_block = Middle()
        # The channels from the lower resolution, and those of the results from the way down.
        self.up_blocks = nn.ModuleList(
            [
                Up((HALF + HALF, HALF + HALF, HALF + FULL), HALF, doubles=True),
                Up((HALF + FULL, FULL + FULL, FULL + FULL), FULL, doubles=False),
            ]
        )
        self.conv_norm_out = nn.GroupNorm(GROUPS, FULL, EPSILON)
        self.conv_out = nn.Conv2d(FULL, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor, timestep: int) -> Tensor:
        first, second = self.time_embedding.values()
        time = second(F.silu(first(_sines(timestep))))
        x = self.conv_in(x)
        found = [x]
        for down in self.down_blocks:
            x = down(x, time, found)
        x = self.mid_block(x, time)
        for up in self.up_blocks:
            x = up(x, time, found)
        noise: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return noise


def _sines(timestep: int) -> Tensor:
    """Cosines and sines of a timestep, (1, FULL)."""
    places = torch.arange(FULL // 2, dtype=torch.float32) / (FULL // 2)
    phases = timestep * torch.exp(-math.log(LONGEST_PERIOD) * places)
    return torch.cat([phases.cos(), phases.sin()])[None]


@torch.inference_mode(False)
@undisturbed()
def load(parts: DenoiserParts) -> Denoiser:
    """The U-Net of these folders, on the CPU in float32; OSError if its weights are damaged."""
    unet = built(UNet, load_file(sources.check_weights(parts.unet)))

    def predict(x: Tensor, timestep: int, _: Tensor | None) -> Tensor:
        noise: Tensor = unet(x, timestep)
        return noise

    settings = sources.config(parts.scheduler, "scheduler_config.json")
    schedule = Schedule.of(settings, parts.scheduler.path)
    return Denoiser(predict, schedule, torch.device("cpu"), torch.float32, multiple=2)
