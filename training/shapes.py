"""Compare shapes of the autoencoder: each trained from scratch for the same few steps.

    python -m training.shapes --photos DIR --steps 500

prints, for each shape, parameters, multiply-accumulates per pixel, seconds, and the
rate-distortion points on the photos held out from training.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pillow_sdz.models import embedded
from training import data
from training.mini import BATCH, Model, channels_last, initialise, loss_of, score
from training.run import average

# widths, residual blocks of the encoder, residual blocks of the decoder
SHAPES = {
    "trial": ((40, 80, 144), (1, 2, 2), (2, 2, 2)),
    "deep": ((40, 80, 144), (4, 3, 2), (5, 5, 2)),
    "wide": ((64, 112, 144), (1, 2, 2), (2, 2, 2)),
}


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
    options = parser.parse_args()
    photos = data.load(data.photo_paths(options.photos, held_out=False))
    held_out = data.load(data.photo_paths(options.photos, held_out=True))[::3]
    for name, shape in SHAPES.items():
        embedded.WIDTHS, embedded.DEPTHS_ENCODER, embedded.DEPTHS_DECODER = shape
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
            f"{seconds:.0f} s of processor time: {points}",
            flush=True,
        )


if __name__ == "__main__":
    main()
