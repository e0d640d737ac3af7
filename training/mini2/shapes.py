"""Compare shapes of `mini`, second generation: each for the same few steps from a warm start.

    python -m training.mini2.shapes --packs PACK/train --validation PACK/validation \\
        --shapes chosen light-encoder --steps 600

prints, for each shape, seconds of training, and bits per pixel (of them detail), PSNR and
SSIMULACRA2 at the places of `train.SCORED` on the middles of eight validation photos.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from training.mini import shipped
from training.mini2 import network
from training.mini2.data import Crops
from training.mini2.model import Model, begin_details, channels_last, loss_of, take_over
from training.mini2.train import (
    PIXELS,
    average,
    parameter_groups,
    rates,
    score,
    scored_photos,
)


def chosen() -> Model:
    return Model()


def light_encoder() -> Model:
    """One residual block at 1/4 of the resolution instead of four."""
    network.DEPTHS_ENCODER = (1, 3, 2)
    return Model()


def no_restoration() -> Model:
    """No CNN after the details."""
    model = Model()
    for parameter in model.autoencoder.restoration.parameters():
        parameter.requires_grad_(False)  # what it adds is zero and stays so
    return model


SHAPES = {"chosen": chosen, "light-encoder": light_encoder, "no-restoration": no_restoration}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--packs", type=Path, nargs="+", required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--prior-first", type=int, default=200)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--perceptual", type=float, default=0.35)
    options = parser.parse_args()
    torch.set_num_threads(1)
    photos = scored_photos(options.validation)
    constants = {k: v for k, v in vars(network).items() if k.isupper()}
    for name in options.shapes:
        vars(network).update(constants)
        torch.manual_seed(0)
        model = SHAPES[name]()
        take_over(model, shipped())
        begin_details(model)
        model = channels_last(model)
        taught = [p for p in model.autoencoder.parameters() if p.requires_grad]
        rng = random.Random(0)
        crops = Crops(options.packs, rng)
        mean: dict[str, Tensor] = {k: v.clone() for k, v in model.state_dict().items()}
        mean = {k: v for k, v in mean.items() if v.is_floating_point()}
        groups = parameter_groups(model, 3e-4)
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
        started = time.process_time()
        for step in range(options.steps):
            for parameter in taught:
                parameter.requires_grad_(step >= options.prior_first)
            for group in optimizer.param_groups:
                falling = (options.steps - step) / 100
                group["lr"] = group["base"] * min(1, (step + 1) / 50, falling)
            images = crops.batch(PIXELS // options.crop**2, options.crop)
            details = rng.random() < 0.5
            rate = rates(len(images), options.crop, details, rng)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                coded = model(images, rate, details=details, hard=False)
                if step < options.prior_first:
                    loss = (coded.base + coded.detail).mean()
                else:
                    loss = loss_of(coded, images, rate, perceptual=options.perceptual)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            average(mean, model, min(step, 400))
        seconds = time.process_time() - started
        model.load_state_dict(mean, strict=False)
        print(f"{name}: {seconds:.0f} s: {score(model, photos)}", flush=True)


if __name__ == "__main__":
    main()
