"""Make the weights that ship, and show what the integer prior loses.

    python -m training.export --run DIR --photos DIR

writes `pillow_sdz/models/weights/mini.safetensors` and the floats of its prior, prints the
digest for the registry, and compares real payloads with the floating-point estimate on photos
held out from training.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from evaluation.photos import photo_paths
from pillow_sdz.catalogue import HIGHEST_QUALITY, LOWEST_QUALITY
from pillow_sdz.codings.quantize import Quantizer
from pillow_sdz.codings.range_coder import Tables
from pillow_sdz.models.mini import Mini
from pillow_sdz.weights import MINI
from training import data
from training.mini import PRIOR, Model
from training.quantize_prior import calibrate, integers

RATES = (0.0, 0.2, 0.35, 0.5, 0.7, 1.0)


@torch.no_grad()
def calibration(model: Model, images: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    batches = []
    for image in images:
        latents = model.autoencoder.encoder(image)
        for value in RATES:
            rate = torch.tensor([value])
            batches.append((latents * model.autoencoder.gain(rate), rate))
    return batches


def even(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut to whole pairs of latents, where the training network needs no padding."""
    height, width = (n // 32 * 32 for n in photo.shape[:2])
    return photo[:height, :width]


@torch.no_grad()
def compare(model: Model, network: Mini, photos: list[NDArray[np.uint8]]) -> None:
    """Print real bytes and estimated bytes, with the same roundings, at several rates."""
    tables = Tables.shipped()
    print("| quality | bits per pixel | float estimate | loss |\n|---|---|---|---|")
    for value in RATES:
        quality = round(LOWEST_QUALITY + (HIGHEST_QUALITY - LOWEST_QUALITY) * value)
        real, estimate, pixels = 0.0, 0.0, 0
        for photo in photos:
            steps = network.encode(photo) * network.gain(quality)
            quantizer = Quantizer(tables, steps, network.hyperlatents(steps))
            rows, columns, _ = steps.shape
            network.prior.code(quantizer, rows, columns, quality)
            real += 8 * len(quantizer.bytes())
            tensor = torch.from_numpy(steps).permute(2, 0, 1)[None]
            estimate += model.prior.bits(tensor, torch.tensor([value]), hard=True).item()
            pixels += photo.shape[0] * photo.shape[1]
        loss = f"{100 * (real / estimate - 1):.2f} %"
        print(f"| {quality / 100:g} | {real / pixels:.4f} | {estimate / pixels:.4f} | {loss} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=MINI.path)
    options = parser.parse_args()
    model = Model().eval()
    weights = load_file(options.run / "averaged.safetensors")
    model.load_state_dict({k: v.float() for k, v in weights.items()})
    paths = photo_paths(options.photos, held_out=False)
    images = [data.to_tensor(even(p)) for p in data.load(paths[::120])]

    tensors: dict[str, Tensor] = {}
    for name, module in (("autoencoder", model.autoencoder), ("analysis", model.prior.analysis)):
        for key, value in module.state_dict().items():
            tensors[f"{name}.{key}"] = value.half()
    for key, array in integers(
        model.prior, calibrate(model.prior, calibration(model, images))
    ).items():
        tensors[f"prior.{key}"] = torch.from_numpy(array)
    save_file({k: v.contiguous() for k, v in tensors.items()}, options.output)
    floats = {k: v for k, v in weights.items() if k.startswith("prior.") and ".analysis." not in k}
    save_file(floats, PRIOR)
    content = options.output.read_bytes()
    print(f"{options.output}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
    held_out = [even(p) for p in data.load(photo_paths(options.photos, held_out=True)[::3])]
    compare(model, Mini(options.output), held_out)


if __name__ == "__main__":
    main()
