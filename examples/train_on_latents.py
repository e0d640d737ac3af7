"""Train a U-Net on a folder of `.sdz` latents. `sdz encode` makes them from sd-scripts' caches.

sdz encode cache -o latents
python examples/train_on_latents.py latents
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

import pillow_sdz


class LatentFolder(Dataset[torch.Tensor]):
    """The first latents (C, h, w) of every `.sdz` file below a folder, scaled for the U-Net."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.rglob("*.sdz"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        latents = pillow_sdz.open_latents(self.paths[index]).torch().float()
        return latents[0] if latents.ndim == 4 else latents


def main(
    pipe: Any, folder: Path, *, epochs: int = 1, batch_size: int = 4, workers: int = 4
) -> list[float]:
    """Train a pipeline's U-Net to predict noise, without captions. Yield the loss of every step."""
    unet, scheduler = pipe.unet, pipe.scheduler
    with torch.no_grad():
        nothing, _ = pipe.encode_prompt("", unet.device, 1, False)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5)
    # Reading imports neither torch's networks nor a model, so workers start fast and stay small.
    loader = DataLoader(LatentFolder(folder), batch_size, shuffle=True, num_workers=workers)
    losses = []
    for _ in range(epochs):
        for latents in loader:
            latents = latents.to(unet.device)
            noise = torch.randn_like(latents)
            steps = scheduler.config.num_train_timesteps
            t = torch.randint(0, steps, latents.shape[:1], device=unet.device)
            noisy = scheduler.add_noise(latents, noise, t)
            condition = nothing.expand(len(latents), -1, -1)
            loss = F.mse_loss(unet(noisy, t, condition).sample, noise)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


if __name__ == "__main__":
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", use_safetensors=True
    ).to("cuda")
    for step, loss in enumerate(main(pipe, Path(sys.argv[1]))):
        print(step, loss)
