"""What a palette does to latents: pairs for the end of the U-Net's training.

    python -m training.palettes --latents FILE --output FILE [--count 900]

FILE holds latents (4, h, w), one tensor a photo (training.latents).  The output has `exact` and
`coded`, both (N, 4, 64, 96) in float16: latents as large as a 768x512 photo's, put together from
parts of one to six photos, since those at hand are smaller and a palette serves a whole picture.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from pillow_sdz import palette
from pillow_sdz.codec import PALETTE_STEP

PART = 32
ROWS, COLUMNS = 2, 3  # parts in a picture


def part(latents: NDArray[Any], rng: random.Random) -> NDArray[Any]:
    """A random PART x PART of latents (4, h, w)."""
    top = rng.randint(0, latents.shape[1] - PART)
    left = rng.randint(0, latents.shape[2] - PART)
    cut = latents[:, top : top + PART, left : left + PART]
    return cut[:, :, ::-1] if rng.random() < 0.5 else cut


def picture(photos: list[NDArray[Any]], rng: random.Random) -> NDArray[Any]:
    """Latents (4, 64, 96) of parts of some photos."""
    chosen = rng.sample(photos, rng.choice((1, 2, 3, 6)))
    parts = [part(rng.choice(chosen), rng) for _ in range(ROWS * COLUMNS)]
    rows = [np.concatenate(parts[r::ROWS], axis=2) for r in range(ROWS)]
    return np.concatenate(rows, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=900)
    options = parser.parse_args()
    photos = [x for x in load_file(options.latents).values() if min(x.shape[1:]) >= PART]
    rng = random.Random(0)
    exact, coded = [], []
    for _ in range(options.count):
        latents = picture(photos, rng)
        payload = palette.encode(latents.transpose(1, 2, 0), step=PALETTE_STEP)
        shape = ROWS * PART, COLUMNS * PART, latents.shape[0]
        decoded = palette.decode(payload, *shape, step=PALETTE_STEP)
        exact.append(latents)
        coded.append(decoded.transpose(2, 0, 1).astype(np.float16))
    # safetensors writes memory as it lies: stacks of transposed views would be shuffled.
    pairs = {"exact": np.stack(exact), "coded": np.stack(coded)}
    save_file({k: np.ascontiguousarray(v) for k, v in pairs.items()}, options.output)


if __name__ == "__main__":
    main()
