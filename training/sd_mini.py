"""Train the autoencoder of `sd-mini`.

    python -m training.sd_mini --photos DIR --run DIR --minutes 60

goes on from the run's checkpoint if there is one.  The U-Net is trained afterwards, on the
latents of this one: training/unet.py.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pillow_sdz.models.sd_mini import CHANNELS, FACTOR, Autoencoder
from training import data
from training.mini import average
from training.perceptual import ssimulacra2

BATCH = 16
# Standard deviation of the noise that the decoder is trained with, of latents of unit
# variance.  Chosen: a KL-regularised autoencoder samples its latents with such noise, which
# keeps near latents near in the picture; well under a palette's error, which is the U-Net's work.
NOISE = 0.1
# Bits per pixel for a squared grey level, and the share of SSIMULACRA2: `training.mini`'s
# balance of the two at 0.15 bits per pixel.
SQUARED = 9e-4


class Model(nn.Module):
    """What is trained: the autoencoder, and the normalisation that is folded into it."""

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
    """A model's weights as those of an `Autoencoder` whose latents are normalised."""
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
    """PSNR and SSIMULACRA2 on whole photos, of exact latents and of noisy ones."""
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
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--crop", type=int, nargs="+", default=[128], help="one is drawn per step")
    parser.add_argument("--perceptual", type=float, default=0.3, help="share of SSIMULACRA2")
    parser.add_argument("--flat", type=float, default=0.3, help="part of the run before decay")
    parser.add_argument("--report", type=int, default=1000, help="steps between reports")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    options.run.mkdir(parents=True, exist_ok=True)
    checkpoint_path = options.run / "checkpoint.pt"
    rng = random.Random(0)
    photos = data.load(data.photo_paths(options.photos, held_out=False))
    held_out = data.load(data.photo_paths(options.photos, held_out=True))[::3]
    torch.manual_seed(0)
    model = Model()
    step, spent = 0, 0.0
    if checkpoint_path.exists():
        saved = torch.load(checkpoint_path, weights_only=True)
        model.load_state_dict(saved["model"])
        step, spent = saved["step"], saved["spent"]
        rng.seed(step)
        torch.manual_seed(step)
    model = model.to(options.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean = {k: v.clone() for k, v in model.state_dict().items() if v.is_floating_point()}
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate, fused=True)
    if checkpoint_path.exists():
        optimizer.load_state_dict(saved["optimizer"])
        mean = {k: v.to(options.device) for k, v in saved["mean"].items()}

    def report() -> None:
        line = f"{step} {spent / 60:.1f}m " + score(mean, held_out)
        print(line, flush=True)
        with open(options.run / "log.txt", "a") as log:
            log.write(line + "\n")
        state = {"model": model.state_dict(), "mean": mean, "optimizer": optimizer.state_dict()}
        torch.save({**state, "step": step, "spent": spent}, options.run / "checkpoint.tmp")
        (options.run / "checkpoint.tmp").replace(checkpoint_path)
        weights = {k: v.half().contiguous() for k, v in folded(mean).items()}
        save_file(weights, options.run / "autoencoder.safetensors")

    while spent < options.minutes * 60:
        started = time.perf_counter()
        done = spent / (options.minutes * 60)
        decay = max(0.0, (done - options.flat) / (1 - options.flat))
        lr = (
            options.learning_rate
            * min(1, (step + 1) / 200)
            * (0.5 + 0.5 * math.cos(math.pi * decay) + 0.01)
        )
        for group in optimizer.param_groups:
            group["lr"] = lr
        crop = rng.choice(options.crop)
        batch = min(max(BATCH * 128**2 // crop**2, 1), 4 * BATCH)
        images = data.crops(photos, batch, crop, rng).to(options.device)
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            reconstruction = model(images, NOISE)
        loss = SQUARED * ((reconstruction - images) ** 2).mean() * 255**2
        quarter = slice(max(1, batch // 4))  # it costs more than the networks
        distance = 1 - ssimulacra2(reconstruction[quarter], images[quarter]).mean() / 100
        loss = loss + options.perceptual * 0.35 * distance
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not torch.isfinite(norm):
            msg = f"the gradient is not finite at step {step}"
            raise RuntimeError(msg)
        optimizer.step()
        step += 1
        average(mean, model, step)
        spent += time.perf_counter() - started
        if step % options.report == 0:
            report()
    report()


if __name__ == "__main__":
    main()
