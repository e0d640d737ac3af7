"""Make examples of what a palette does to latents, for the end of the U-Net's training.

    python -m training.palettes --latents FILE --photos DIR --output FILE [--held-out] [--count 600]

The input FILE has the photos' latents (from `training.latents`).  A palette serves a whole picture,
and these photos are small.  So six parts, of one to six photos, make a picture of 768x512 pixels.
The output has the parts one by one: `exact` and `coded` latents, both (N, 4, 32, 32) in float16,
and `pixels` (N, 3, 256, 256) in uint8.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from evaluation.photos import photo_paths
from pillow_sdz.codings import dithering
from pillow_sdz.codings.dithering import STEP
from training import data

PART = 32
ROWS, COLUMNS = 2, 3  # parts in a picture
FACTOR = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--count", type=int, default=600, help="pictures")
    options = parser.parse_args()
    latents = {k: x for k, x in load_file(options.latents).items() if min(x.shape[1:]) >= PART}
    paths = photo_paths(options.photos, held_out=options.held_out)
    photos = {path.stem: photo for path, photo in zip(paths, data.load(paths), strict=True)}
    rng = random.Random(0)
    examples: dict[str, list[np.ndarray]] = {"exact": [], "coded": [], "pixels": []}
    for _ in range(options.count):
        names = rng.sample(sorted(latents), rng.choice((1, 2, 3, 6)))
        picture = np.empty((ROWS * PART, COLUMNS * PART, 4), np.float32)
        places = [
            np.s_[y : y + PART, x : x + PART]
            for y in range(0, ROWS * PART, PART)
            for x in range(0, COLUMNS * PART, PART)
        ]
        for place in places:
            name = rng.choice(names)
            top = rng.randint(0, latents[name].shape[1] - PART)
            left = rng.randint(0, latents[name].shape[2] - PART)
            part = latents[name][:, top : top + PART, left : left + PART]
            picture[place] = part.transpose(1, 2, 0)
            y, x = FACTOR * top, FACTOR * left
            pixels = photos[name][y : y + FACTOR * PART, x : x + FACTOR * PART]
            examples["exact"].append(part)
            examples["pixels"].append(pixels.transpose(2, 0, 1))
        payload = dithering.encode(picture, step=STEP)
        decoded = dithering.decode(payload, *picture.shape, step=STEP)
        for place in places:
            examples["coded"].append(decoded[place].transpose(2, 0, 1).astype(np.float16))
    # safetensors writes memory in its order there, so transposed views would become shuffled.
    tensors = {name: np.ascontiguousarray(np.stack(parts)) for name, parts in examples.items()}
    save_file(tensors, options.output)


if __name__ == "__main__":
    main()
