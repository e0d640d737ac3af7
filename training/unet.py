"""Train the U-Net of `sd-mini`: it predicts the noise in the latents of its autoencoder.

    python -m training.unet --autoencoder FILE --photos DIR --run DIR --minutes 35

goes on from the run's checkpoint if there is one, and writes RUN/unet and RUN/scheduler in
diffusers' layout.  Needs diffusers.  The objective is that of denoising diffusion (Ho et al.,
NeurIPS 2020) with Stable Diffusion 1's schedule.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DModel
from numpy.typing import NDArray
from torch import Tensor, nn

from pillow_sdz.denoise import denoise
from pillow_sdz.models.sd_mini import CHANNELS, SdMini
from pillow_sdz.models.stable_diffusion import Denoiser
from training import data
from training.mini import average

BATCH = 16
CROP = 32  # latents along a side
# Timesteps of 1000.  Chosen: decoding runs the last few dozen, so that half of the batch is
# drawn from the last 150; the rest keeps it a noise predictor of the whole schedule.
LAST = 150

Latents = NDArray[np.float32]


def unet() -> Any:
    """Chosen: with the autoencoder 4.9 million weights, 9.8 MB in float16."""
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


def latents_of(network: SdMini, photo: NDArray[np.uint8]) -> Latents:
    """The latents (h, w, 4) of a photo's whole blocks."""
    height, width = (n // 8 * 8 for n in photo.shape[:2])
    return network.encode(photo[:height, :width])


def crops(latents: list[Latents], count: int, rng: random.Random) -> Tensor:
    """Random crops (count, 4, CROP, CROP)."""
    batch = np.empty((count, CROP, CROP, CHANNELS), np.float32)
    for i in range(count):
        whole = rng.choice(latents)
        top = rng.randint(0, whole.shape[0] - CROP)
        left = rng.randint(0, whole.shape[1] - CROP)
        batch[i] = whole[top : top + CROP, left : left + CROP]
    return torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def score(model: nn.Module, latents: list[Latents]) -> str:
    """Mean squared error left of white noise of 0.1, 0.2 and 0.3, denoised at what it equals."""
    denoiser = Denoiser(model, scheduler(), None)
    cumulative = denoiser.scheduler.alphas_cumprod
    rng = np.random.default_rng(0)
    out = []
    for noise in (0.1, 0.2, 0.3):
        strength = int((((1 - cumulative) / cumulative).sqrt() < noise).sum()) / 1000
        left = []
        for whole in latents:
            noisy = whole + noise * rng.standard_normal(whole.shape, np.float32)
            left.append(np.mean((denoise(noisy, denoiser, strength, 3) - whole) ** 2))
        out.append(f"{noise**2:.4f} {np.mean(left):.4f}")
    return " | ".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="checkpoint, log and weights")
    parser.add_argument("--minutes", type=float, required=True, help="length of the whole run")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--report", type=int, default=1000, help="steps between reports")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    options.run.mkdir(parents=True, exist_ok=True)
    checkpoint_path = options.run / "checkpoint.pt"
    rng = random.Random(0)
    network = SdMini(options.autoencoder)
    latents = []
    for photo in data.load(data.photo_paths(options.photos, held_out=False)):
        # Once as it is, once mirrored and off the grid.
        for view in (photo, photo[4:, :-4][:, ::-1].copy()):
            if min(view.shape[:2]) >= 8 * CROP:
                latents.append(latents_of(network, view))
    held_out = data.load(data.photo_paths(options.photos, held_out=True))[::3]
    unseen = [latents_of(network, photo) for photo in held_out]
    print(f"latents of {len(latents)} views", flush=True)
    torch.manual_seed(0)
    model = unet()
    step, spent = 0, 0.0
    if checkpoint_path.exists():
        saved = torch.load(checkpoint_path, weights_only=True)
        model.load_state_dict(saved["model"])
        step, spent = saved["step"], saved["spent"]
        rng.seed(step)
        torch.manual_seed(step)
    model = model.to(options.device).to(memory_format=torch.channels_last)
    mean = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate, fused=True)
    if checkpoint_path.exists():
        optimizer.load_state_dict(saved["optimizer"])
        mean = {k: v.to(options.device) for k, v in saved["mean"].items()}
    noises = scheduler()

    def report() -> None:
        averaged = unet()
        averaged.load_state_dict({k: v.float().cpu() for k, v in mean.items()})
        line = f"{step} {spent / 60:.1f}m " + score(averaged.eval(), unseen)
        print(line, flush=True)
        with open(options.run / "log.txt", "a") as log:
            log.write(line + "\n")
        state = {"model": model.state_dict(), "mean": mean, "optimizer": optimizer.state_dict()}
        torch.save({**state, "step": step, "spent": spent}, options.run / "checkpoint.tmp")
        (options.run / "checkpoint.tmp").replace(checkpoint_path)
        averaged.half().save_pretrained(options.run / "unet")
        noises.save_pretrained(options.run / "scheduler")

    while spent < options.minutes * 60:
        started = time.perf_counter()
        done = spent / (options.minutes * 60)
        lr = (
            options.learning_rate
            * min(1, (step + 1) / 200)
            * (0.51 + 0.5 * math.cos(math.pi * done))
        )
        for group in optimizer.param_groups:
            group["lr"] = lr
        exact = crops(latents, BATCH, rng).to(options.device)
        exact = exact.contiguous(memory_format=torch.channels_last)
        t = torch.randint(0, noises.config.num_train_timesteps, (BATCH,))
        t[: BATCH // 2] %= LAST
        t = t.to(options.device)
        noise = torch.randn_like(exact)
        noisy = noises.add_noise(exact, noise, t)
        with torch.autocast(exact.device.type, dtype=torch.bfloat16):
            predicted = model(noisy, t).sample
        loss = F.mse_loss(predicted.float(), noise)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
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
