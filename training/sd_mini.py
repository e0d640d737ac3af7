"""Train the autoencoder of `sd-mini`.

    python -m training.sd_mini --photos DIR --run DIR --minutes 60

If the run has a checkpoint, it goes on from there.  Train the U-Net afterwards, on the latents of
this autoencoder (training/unet.py).
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from evaluation.photos import photo_paths
from pillow_sdz.models.sd_mini import CHANNELS, FACTOR
from pillow_sdz.models.sd_mini_network import Autoencoder
from pillow_sdz.models.ssimulacra2 import ssimulacra2
from training import data
from training.run import Run, add_options, autocast

BATCH = 16
# Standard deviation of the noise that is added to latents of unit variance when the decoder is
# trained.  Chosen: a KL-regularised autoencoder samples its latents with such noise, so similar
# latents give similar pictures.  It is much less than the error of a palette, which the U-Net
# removes.
NOISE = 0.1
# Bits per pixel for a squared grey level.  With the default of --perceptual, the balance is that
# of `mini` at 0.15 bits per pixel.
SQUARED = 9e-4


class Model(nn.Module):
    """The autoencoder under training, and the normalisation that is folded into it at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.autoencoder = Autoencoder()
        self.normalise = nn.BatchNorm2d(CHANNELS, affine=False, momentum=0.01)

    def latents(self, images: Tensor) -> Tensor:
        """Normalised latents of images in [-0.5, 0.5]."""
        encoded = self.autoencoder.encoder(2 * images)
        with torch.autocast(images.device.type, enabled=False):
            latents: Tensor = self.normalise(encoded.float())
        return latents

    def forward(self, images: Tensor, noise: float) -> Tensor:
        latents = self.latents(images)
        noisy = latents + noise * torch.randn_like(latents)
        reconstruction: Tensor = self.autoencoder.decoder(noisy).float() / 2
        return reconstruction


@torch.no_grad()
def folded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights as weights of an `Autoencoder` whose latents are normalised."""
    tensors = {
        k.removeprefix("autoencoder."): v.float().cpu()
        for k, v in weights.items()
        if k.startswith("autoencoder.")
    }
    mean = weights["normalise.running_mean"].float().cpu()
    deviation = (weights["normalise.running_var"].float().cpu() + 1e-5).sqrt()
    tensors["encoder.leave.weight"] = (
        tensors["encoder.leave.weight"] / deviation[:, None, None, None]
    )
    tensors["encoder.leave.bias"] = (tensors["encoder.leave.bias"] - mean) / deviation
    return tensors


@torch.no_grad()
def score(weights: dict[str, Tensor], photos: list[np.ndarray]) -> str:
    """PSNR and SSIMULACRA2 on whole photos, for exact latents and for noisy ones."""
    autoencoder = Autoencoder()
    autoencoder.load_state_dict(folded(weights))
    autoencoder.eval()
    out = []
    for noise in (0.0, NOISE, 0.3):
        torch.manual_seed(0)
        rows = []
        for photo in photos:
            height, width = (n // FACTOR * FACTOR for n in photo.shape[:2])
            image = data.to_tensor(photo[:height, :width])
            latents = autoencoder.encoder(2 * image)
            noisy = latents + noise * torch.randn_like(latents)
            reconstruction = autoencoder.decoder(noisy) / 2
            reconstruction = torch.round(reconstruction.clamp(-0.5, 0.5) * 255) / 255
            mse = ((reconstruction - image) ** 2).mean().item()
            rows.append((-10 * math.log10(mse), ssimulacra2(reconstruction, image).item()))
        out.append("{:.2f} {:.1f}".format(*np.mean(rows, 0)))
    return " | ".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="checkpoint, log and weights")
    parser.add_argument("--minutes", type=float, required=True, help="length of the whole run")
    parser.add_argument(
        "--crop", type=int, nargs="+", default=[128], help="sides; each step draws one"
    )
    parser.add_argument("--perceptual", type=float, default=0.3, help="share of SSIMULACRA2")
    parser.add_argument("--warm-start", type=Path, help="weights that were written by this command")
    add_options(parser, learning_rate=1e-3, flat=0.3)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    options.run.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    photos = data.load(photo_paths(options.photos, held_out=False))
    held_out = data.load(photo_paths(options.photos, held_out=True))[::3]
    torch.manual_seed(0)
    model = Model()
    if options.warm_start:
        # Their latents are normalised already.  The layer of normalisation will learn that.
        model.autoencoder.load_state_dict(load_file(options.warm_start))
    model = model.to(options.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = Run(model, options, rng)

    def report() -> None:
        run.report(score(run.mean, held_out))
        weights = {k: v.half().contiguous() for k, v in folded(run.mean).items()}
        save_file(weights, options.run / "autoencoder.safetensors")

    while run.unfinished:
        run.begin()
        crop = rng.choice(options.crop)
        batch = min(max(BATCH * 128**2 // crop**2, 1), 4 * BATCH)
        images = data.crops(photos, batch, crop, rng).to(options.device)
        with autocast(images.device):
            reconstruction = model(images, NOISE)
        loss = SQUARED * ((reconstruction - images) ** 2).mean() * 255**2
        quarter = slice(max(1, batch // 4))  # SSIMULACRA2 costs more than the networks
        distance = 1 - ssimulacra2(reconstruction[quarter], images[quarter]).mean() / 100
        loss = loss + options.perceptual * 0.35 * distance
        if run.descend(loss):
            report()
    report()


if __name__ == "__main__":
    main()
