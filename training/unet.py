"""Train the U-Net of `sd-mini`: it predicts the noise in the latents of its autoencoder.

    python -m training.unet --autoencoder FILE --latents FILE --run DIR --minutes 30
    python -m training.unet --autoencoder FILE --latents FILE --run DIR --minutes 25 \
        --warm-start DIR --palettes FILE --perceptual 0.5

The first command trains denoising diffusion (Ho et al., NeurIPS 2020) with Stable Diffusion 1's
schedule.  The second one is for the end: it trains with the errors that files have.  ``--palettes``
takes a file of `training.palettes`, and half of a batch has a palette's error instead of Gaussian
noise.  With ``--perceptual``, the loss also has the score of the decoded pictures.

If a run has a checkpoint, it goes on from there.  It writes RUN/unet and RUN/scheduler in
diffusers' layout, and needs diffusers.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from pillow_sdz.chunks import ARTICLES_DENOISING
from pillow_sdz.models.denoise import last_steps
from pillow_sdz.models.schedule import Schedule
from pillow_sdz.models.sd_mini import CHANNELS, FACTOR
from pillow_sdz.models.sd_mini_network import Autoencoder
from pillow_sdz.models.ssimulacra2 import ssimulacra2
from pillow_sdz.presets import WEIGHTS
from training.run import Run, add_options, autocast

BATCH = 16
CROP = 32  # latents along a side
# Half of a batch has the last 150 of 1000 timesteps.  Chosen: decoding runs only the last few
# dozen.  The other half has any timestep, so that the U-Net still predicts noise on the whole
# schedule.
LAST = 150

# The denoising that files recommend.
STRENGTH, STEPS = ARTICLES_DENOISING.strength / 1000, ARTICLES_DENOISING.steps
# SSIMULACRA2 and the decoder cost more than the U-Net, so they see four pictures, and only 192x192
# pixels of each count.  Chosen.
PERCEPTUAL_BATCH, PERCEPTUAL_CROP = 4, 32
MARGIN = 32  # pixels at each side that do not count


def unet() -> Any:
    """A new U-Net.  Its size is chosen: with the autoencoder, 4.9 million weights (9.8 MB)."""
    return UNet2DModel(  # type: ignore[no-untyped-call]
        sample_size=64,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=2,
        block_out_channels=(64, 96),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=16,
        add_attention=False,
    )


def scheduler() -> Any:
    """Stable Diffusion 1's noise schedule."""
    return DDIMScheduler(  # type: ignore[no-untyped-call]
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def crops(pictures: list[Tensor], count: int, size: int, rng: random.Random) -> Tensor:
    """Random crops (count, C, size, size) of pictures (C, h, w), half of them mirrored."""
    batch = []
    for _ in range(count):
        picture = rng.choice(pictures)
        top = rng.randint(0, picture.shape[1] - size)
        left = rng.randint(0, picture.shape[2] - size)
        crop = picture[:, top : top + size, left : left + size]
        batch.append(crop.flip(2) if rng.random() < 0.5 else crop)
    return torch.stack(batch)


class Examples:
    """Latents before and after palettes, from a file of `training.palettes`."""

    def __init__(self, file: Path) -> None:
        tensors = load_file(file)
        self.exact, self.coded = tensors["exact"].float(), tensors["coded"].float()
        self.pixels = tensors["pixels"]

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Exact and coded latents (count, C, h, w)."""
        chosen = torch.randint(0, len(self.exact), (count,))
        return self.exact[chosen], self.coded[chosen]

    def crops(self, count: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Exact and coded latents (count, C, size, size), pixels (count, 3, 8 size, 8 size)."""
        parts = []
        for i in torch.randint(0, len(self.exact), (count,)).tolist():
            y, x = torch.randint(0, self.exact.shape[2] - size + 1, (2,)).tolist()
            place = np.s_[i, :, y : y + size, x : x + size]
            top, left, side = FACTOR * y, FACTOR * x, FACTOR * size
            pixels = self.pixels[i, :, top : top + side, left : left + side]
            parts.append((self.exact[place], self.coded[place], pixels))
        exact, coded, pixels = (torch.stack(column) for column in zip(*parts, strict=True))
        return exact, coded, pixels.float() / 255 - 0.5


def refine(latents: Tensor, model: nn.Module, noises: Any, strength: float = STRENGTH) -> Tensor:
    """Refine latents (B, C, h, w) as decoding does."""

    def predict(x: Tensor, time: int) -> Tensor:
        noise: Tensor = model(x, time).sample
        return noise.float()

    schedule = Schedule.of(noises.config, "the schedule")
    return last_steps(latents, predict, schedule, strength, STEPS)


def as_noise(exact: Tensor, coded: Tensor, noises: Any) -> Tensor:
    """A palette's errors, divided by the standard deviation of noise at the article's strength."""
    start = round(STRENGTH * noises.config.num_train_timesteps) - 1
    cumulative = noises.alphas_cumprod[start]
    noise: Tensor = (coded - exact) * (cumulative / (1 - cumulative)).sqrt()
    return noise


def distance_left(
    model: nn.Module,
    autoencoder: Autoencoder,
    exact: Tensor,
    coded: Tensor,
    pixels: Tensor,
    noises: Any,
) -> tuple[Tensor, Tensor]:
    """What the last steps leave of a palette's error.

    Returns the part of the latents' squared error that is left, and the logarithm of the decoded
    picture's distance from the photo.
    """
    refined = refine(coded, model, noises)
    error = ((refined - exact) ** 2).mean() / ((coded - exact) ** 2).mean()
    images = autoencoder.decoder(refined).float() / 2
    # The latents were cut out of larger ones, so the decoder's pixels are wrong near the border.
    inside = ..., slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN)
    images, pixels = images[inside].contiguous(), pixels[inside].contiguous()
    with torch.autocast(exact.device.type, enabled=False):
        # The logarithm is taken, because a few pictures with much texture score far below 0, and
        # would outweigh all others.
        seen = torch.log(1 - ssimulacra2(images, pixels) / 100).mean()
    return error, seen


@torch.no_grad()
def score(
    model: nn.Module, autoencoder: Autoencoder, unseen: list[Tensor], examples: Examples | None
) -> str:
    """Score the U-Net, in one line.

    The line has the mean squared error that is left of white noise of 0.1, 0.2 and 0.3, denoised at
    the strength that equals it.  With examples of palettes, it also has their error and
    SSIMULACRA2, without and with denoising.
    """
    noises = scheduler()
    cumulative = noises.alphas_cumprod
    torch.manual_seed(0)
    out = []
    for noise in (0.1, 0.2, 0.3):
        strength = int((((1 - cumulative) / cumulative).sqrt() < noise).sum()) / 1000
        left = []
        for latents in unseen:
            exact = latents[None, :, : latents.shape[1] // 2 * 2, : latents.shape[2] // 2 * 2]
            noisy = exact + noise * torch.randn_like(exact)
            refined = refine(noisy, model, noises, strength)
            left.append(((refined - exact) ** 2).mean().item())
        out.append(f"{noise**2:.4f} {np.mean(left):.4f}")
    if examples:
        inside = ..., slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN)
        pixels = (examples.pixels[inside].float() / 255 - 0.5).contiguous()
        refined = refine(examples.coded, model, noises)
        for latents in (examples.coded, refined):
            error = ((latents - examples.exact) ** 2).mean().item()
            images = autoencoder.decoder(latents)[inside].contiguous() / 2
            likeness = ssimulacra2(images, pixels).mean().item()
            out.append(f"{error:.4f} {likeness:.1f}")
    return " | ".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--latents", type=Path, required=True, help="of training.latents")
    parser.add_argument(
        "--held-out", type=Path, required=True, help="latents of the held-out photos"
    )
    parser.add_argument("--palettes", type=Path, help="of training.palettes")
    parser.add_argument("--held-out-palettes", type=Path)
    parser.add_argument("--perceptual", type=float, default=0.0, help="share of SSIMULACRA2")
    parser.add_argument("--warm-start", type=Path, help="the folder of another run")
    parser.add_argument("--run", type=Path, required=True, help="checkpoint, log and weights")
    parser.add_argument("--minutes", type=float, required=True, help="length of the whole run")
    add_options(parser, learning_rate=1e-3, flat=0.0)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    options.run.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    autoencoder = Autoencoder()
    autoencoder.load_state_dict(load_file(options.autoencoder))
    autoencoder.float().eval().requires_grad_(False)
    latents = [x.float() for x in load_file(options.latents).values() if min(x.shape[1:]) >= CROP]
    unseen = [x.float() for x in load_file(options.held_out).values()][::3]
    examples = Examples(options.palettes) if options.palettes else None
    unseen_examples = Examples(options.held_out_palettes) if options.held_out_palettes else None
    torch.manual_seed(0)
    model = unet()
    if options.warm_start:
        model.load_state_dict(load_file(options.warm_start / "unet" / WEIGHTS))
    model = model.to(options.device).to(memory_format=torch.channels_last)
    run = Run(model, options, rng)
    noises = scheduler()
    on_device = Autoencoder().to(options.device)
    on_device.load_state_dict(autoencoder.state_dict())
    on_device.requires_grad_(False)

    def report() -> None:
        averaged = unet()
        averaged.load_state_dict({k: v.float().cpu() for k, v in run.mean.items()})
        run.report(score(averaged.eval(), autoencoder, unseen, unseen_examples))
        averaged.half().save_pretrained(options.run / "unet")
        noises.save_pretrained(options.run / "scheduler")

    while run.unfinished:
        run.begin()
        exact = crops(latents, BATCH, CROP, rng)
        noise = torch.randn_like(exact)
        t = torch.randint(0, noises.config.num_train_timesteps, (BATCH,))
        half = slice(BATCH // 2)
        t[half] %= LAST
        if examples:
            exact[half], coded = examples.batch(BATCH // 2)
            noise[half] = as_noise(exact[half], coded, noises)
        exact, noise, t = (x.to(options.device) for x in (exact, noise, t))
        noisy = noises.add_noise(exact, noise, t).contiguous(memory_format=torch.channels_last)
        with autocast(exact.device):
            predicted = model(noisy, t).sample
        loss = F.mse_loss(predicted.float(), noise)
        if examples and options.perceptual:
            few = examples.crops(PERCEPTUAL_BATCH, PERCEPTUAL_CROP)
            few_exact, few_coded, pixels = (x.to(options.device) for x in few)
            with autocast(exact.device):
                error, seen = distance_left(model, on_device, few_exact, few_coded, pixels, noises)
            loss = loss + error + options.perceptual * seen
        if run.descend(loss):
            report()
    report()


if __name__ == "__main__":
    main()
