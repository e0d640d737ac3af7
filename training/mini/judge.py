"""Compare weights of a training run with AVIF at equal bytes, on pictures not trained on.

    python -m training.mini.judge --state RUN/averaged.safetensors --images PACK/city

The command prints a line for each place on the rate axis.  The line has the means over the middles
of the pictures: estimated bits per pixel, PSNR and SSIMULACRA2.  Then it has the same figures of
AVIF in at most as many bytes.  AVIF is at speed 4, with 4:2:0 or 4:4:4, whichever scores higher.
"""

from __future__ import annotations

import argparse
import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from pillow_sdz.models.ssimulacra2 import ssimulacra2
from training.mini.data import Photo, to_tensor
from training.mini.model import Model

PLACES = (0.05, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9)


def qualities(picture: Tensor, image: Tensor) -> tuple[float, float]:
    """PSNR and SSIMULACRA2 of a picture, rounded to bytes."""
    picture = torch.round(picture.clamp(-0.5, 0.5) * 255) / 255
    mse = max(((picture - image) ** 2).mean().item(), 1e-9)
    return -10 * math.log10(mse), ssimulacra2(picture, image).item()


def avif(photo: Photo, size: float) -> tuple[float, float, float]:
    """Bytes, PSNR and score of an AVIF file of at most ``size`` bytes, 4:2:0 or 4:4:4.

    The one with the higher score is taken.
    """
    found: list[tuple[float, float, float]] = []
    for subsampling in ("4:2:0", "4:4:4"):
        low, high, best = 0, 100, b""
        while low <= high:
            quality = (low + high) // 2
            file = io.BytesIO()
            options = {"quality": quality, "speed": 4, "subsampling": subsampling}
            Image.fromarray(photo).save(file, "AVIF", **options)
            # If no file is small enough, the smallest is taken.
            if file.tell() <= size or not best or file.tell() < len(best):
                best = file.getvalue()
            low, high = (quality + 1, high) if file.tell() <= size else (low, quality - 1)
        decoded = np.asarray(Image.open(io.BytesIO(best)).convert("RGB"))
        found.append((len(best), *qualities(to_tensor(decoded), to_tensor(photo))))
    return max(found, key=lambda f: f[2])


def middles(folder: Path, size: int, limit: int) -> list[Photo]:
    """The middles (at most size x size, in whole cells) of pictures in a folder."""
    out = []
    for path in sorted(folder.glob("*.png"))[:limit]:
        photo = np.asarray(Image.open(path).convert("RGB"))
        height, width = (min(size, n // 32 * 32) for n in photo.shape[:2])
        top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
        out.append(photo[top : top + height, left : left + width])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--limit", type=int, default=12)
    parser.add_argument("--places", type=float, nargs="*", default=PLACES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = Model()
    model.load_state_dict({k: v.float() for k, v in load_file(options.state).items()})
    photos = middles(options.images, options.size, options.limit)
    for place in options.places:
        rows = []
        for photo in photos:
            image = to_tensor(photo)
            with torch.no_grad():
                coded = model(image, torch.full((1, 1, 1, 1), float(place)), hard=True)
            pixels, bits = photo.shape[0] * photo.shape[1], (coded.base + coded.tail).item()
            size, *others = avif(photo, bits * pixels / 8)
            found = qualities(coded.picture, image)
            rows.append((bits, *found, 8 * size / pixels, *others))
        words = "{:.3f} {:.2f} {:.1f} | AVIF {:.3f} {:.2f} {:.1f}".format(*np.mean(rows, 0))
        print(f"{place:.2f}: {words}", flush=True)


if __name__ == "__main__":
    main()
