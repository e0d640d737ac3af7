"""Compare shapes of the autoencoder: each trained from scratch for the same few steps.

    python -m training.shapes --photos DIR --steps 500

prints, for each shape, parameters, multiply-accumulates per pixel, milliseconds of one thread
for decoding 768x512 as the package does it, seconds of training, and the rate-distortion points
on the photos held out from training.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from evaluation.photos import photo_paths
from pillow_sdz.models import blocks
from pillow_sdz.models.mini import network
from pillow_sdz.models.mini.shape import CHANNELS
from pillow_sdz.models.running import frozen
from training import data
from training.mini import BATCH, Model, channels_last, initialise, loss_of, score
from training.run import average


class DepthwiseBlock(nn.Module):
    """x + conv1x1(relu(conv1x1(depthwise conv 5x5(x)))), twice as many channels between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.first = nn.Conv2d(channels, 2 * channels, 1)
        self.second = nn.Conv2d(2 * channels, channels, 1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(torch.as_tensor(self.second.bias))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(F.relu(self.first(self.depthwise(x))))
        return x + y


class SmoothBlock(blocks.ResidualBlock):
    """x + conv(silu(conv(x)))."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(F.silu(self.first(x)))
        return x + y


class Shape(NamedTuple):
    """Channels at 1/4, 1/8 and 1/16, residual blocks there in encoder and decoder, and which."""

    widths: tuple[int, int, int]
    encoder: tuple[int, int, int]
    decoder: tuple[int, int, int]
    block: type[nn.Module] = blocks.ResidualBlock


SHAPES = {
    "trial": Shape((40, 80, 144), (1, 2, 2), (2, 2, 2)),
    "deep": Shape((40, 80, 144), (4, 3, 2), (5, 5, 2)),
    "wide": Shape((64, 112, 144), (1, 2, 2), (2, 2, 2)),
    "smooth": Shape((40, 80, 144), (4, 3, 2), (5, 5, 2), SmoothBlock),
    # Of about deep's multiply-accumulates.
    "depthwise": Shape((64, 128, 192), (4, 4, 3), (7, 7, 4), DepthwiseBlock),
}


def decoding_ms(model: Model) -> float:
    """Milliseconds of the processor for the decoder at 768x512."""
    decoder = frozen(model.autoencoder.decoder)
    latents = torch.zeros(1, CHANNELS, 32, 48)
    times = []
    with torch.inference_mode():
        for _ in range(10):
            start = time.process_time()
            decoder(latents, torch.zeros(1))
            times.append(1000 * (time.process_time() - start))
    return min(times)


def macs_per_pixel(model: Model) -> tuple[float, float]:
    """Multiply-accumulates per pixel of the encoder and of the decoder."""
    size = 256
    counts = []
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            latents = model.autoencoder.encoder(torch.zeros(1, 3, size, size))
        counts.append(counter.get_total_flops() / 2 / size**2)
        with FlopCounterMode(display=False) as counter:
            model.autoencoder.decoder(latents, torch.zeros(1))
        counts.append(counter.get_total_flops() / 2 / size**2)
    return counts[0], counts[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    options = parser.parse_args()
    photos = data.load(photo_paths(options.photos, held_out=False))
    held_out = data.load(photo_paths(options.photos, held_out=True))[::3]
    torch.set_num_threads(1)
    for name in options.shapes:
        shape = SHAPES[name]
        for constant, value in zip(
            ("WIDTHS", "DEPTHS_ENCODER", "DEPTHS_DECODER"), shape, strict=False
        ):
            setattr(network, constant, value)
        blocks.ResidualBlock = shape.block  # type: ignore[assignment,misc]
        torch.manual_seed(0)
        rng = random.Random(0)
        model = Model()
        initialise(model, photos, rng)
        model = channels_last(model)
        mean = {k: v.clone() for k, v in model.state_dict().items()}
        optimizer = torch.optim.Adam(model.parameters(), lr=6e-4, fused=True)
        started = time.process_time()
        for step in range(options.steps):
            for group in optimizer.param_groups:
                group["lr"] = 6e-4 * min(1, (step + 1) / 200, (options.steps - step) / 100)
            images = data.crops(photos, BATCH, 128, rng)
            rate = torch.tensor([rng.triangular(0, 1, 0.35) for _ in range(BATCH)])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(model, images, rate, hard=False, perceptual=0.0)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            average(mean, model, step)
        seconds = time.process_time() - started
        encoder, decoder = macs_per_pixel(model)
        count = sum(p.numel() for p in model.autoencoder.parameters()) / 1e6
        model.load_state_dict(mean)
        points = score(model, held_out, [0.2, 0.35, 0.5, 0.7])
        print(
            f"{name}: {count:.2f} M, {encoder / 1e3:.1f} + {decoder / 1e3:.1f} kMAC/pixel, "
            f"{decoding_ms(model):.0f} ms, {seconds:.0f} s of training: {points}",
            flush=True,
        )


if __name__ == "__main__":
    main()
