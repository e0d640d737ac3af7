"""What more effort saves on latents without hyperlatents: bytes at equal errors of pictures.

    python -m benchmarks.effort --images DIR [--limit N]

The models are `sd-mini`, and the real taef2 (FLUX.2's latents) if its weights are there: the
environment variable TAEF2 names them.  A picture's error is the mean squared difference from what
the model makes of latents that are not quantised.  Rounding (effort 0), at several qualities, sets
the bytes for each error; between two qualities, log(bytes) is linear in log(error).  Each effort's
bytes are divided by those.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from evaluation import taef2
from pillow_sdz import register_model

QUALITIES = (40, 60, 80)
MARKS = range(10, 101, 10)  # the qualities of rounding
EFFORTS = (4, 6)  # efforts that differ: 0 to 2 round, 3 and 5 equal 4, and 7 to 9 equal 6


class Coded(NamedTuple):
    """A picture at one quality and effort."""

    bytes: int  # of latents
    error: float  # mean squared, in levels
    seconds: float  # of processor time, to encode


def decode(data: bytes) -> tuple[NDArray[np.uint8], int]:
    """The pixels of a file, and its bytes of latents."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")), image.info["sdz"]["bytes"]["latents"]


def encode(picture: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "SDZ", **options)
    return file.getvalue()


def code(picture: Image.Image, exact: NDArray[np.uint8], **options: Any) -> Coded:
    """Encode and decode a picture.  ``exact`` is what the model makes of its own latents."""
    start = time.process_time()
    data = encode(picture, **options)
    seconds = time.process_time() - start
    pixels, size = decode(data)
    return Coded(size, float(((pixels.astype(float) - exact) ** 2).mean()), seconds)


def at_error(marks: Sequence[Coded], error: float) -> float:
    """The bytes of rounding at an error.  ValueError beyond the marks."""
    sizes, errors = np.array([mark[:2] for mark in marks]).T
    if not errors.min() <= error <= errors.max():
        msg = f"an error of {error} lies outside of {errors}"
        raise ValueError(msg)
    order = np.argsort(errors)
    return float(np.exp(np.interp(np.log(error), np.log(errors[order]), np.log(sizes[order]))))


def table(pictures: Sequence[Image.Image], model: str) -> str:
    """A Markdown table: the bytes less than rounding, and how many times its processor time."""
    ratios = np.zeros((len(pictures), len(EFFORTS), len(QUALITIES), 2))
    for of_picture, picture in zip(ratios, tqdm(pictures, leave=False, unit="photo"), strict=True):
        exact, _ = decode(encode(picture, model=model, coding="float32"))

        def coded(
            quality: float,
            effort: int,
            picture: Image.Image = picture,
            exact: NDArray[np.uint8] = exact,
        ) -> Coded:
            return code(picture, exact, model=model, quality=quality, effort=effort)

        marks = {quality: coded(quality, 0) for quality in MARKS}
        for row, effort in zip(of_picture, EFFORTS, strict=True):
            for cell, quality in zip(row, QUALITIES, strict=True):
                size, error, seconds = coded(quality, effort)
                cell[0] = size / at_error(list(marks.values()), error)
                cell[1] = seconds / marks[quality].seconds
    means = np.exp(np.log(ratios).mean(0))
    lines = [f"| {model}, effort |{''.join(f' quality {q} |' for q in QUALITIES)} time |"]
    lines += ["|---" * (len(QUALITIES) + 2) + "|"]
    for effort, row in zip(EFFORTS, means, strict=True):
        cells = " | ".join(f"{100 * (ratio - 1):+.1f} %" for ratio in row[:, 0])
        lines.append(f"| {effort} | {cells} | {row[:, 1].mean():.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Bytes at equal errors of pictures, by effort.")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="only so many photos")
    args = parser.parse_args()
    paths = sorted(p for p in args.images.iterdir() if p.is_file())[: args.limit]
    pictures = [Image.open(path).convert("RGB") for path in paths]
    print(table(pictures, "sd-mini"))
    weights = taef2.weights()
    if weights is not None:
        module = taef2.load(weights)
        register_model("taef2", module, latent_space="flux2", pixel_range=(0, 1))
        print(table(pictures, "taef2"))


if __name__ == "__main__":
    main()
