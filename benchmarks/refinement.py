"""What more effort saves with `mini`, and how long it takes.

    python -m benchmarks.refinement --images DIR

Every photo is coded with every effort at a few qualities. Effort 0 is also run at many qualities.
This gives two curves: the mean bits per pixel over the mean PSNR, and over the mean SSIMULACRA2.
Each effort is compared with the bits that effort 0 needs for the same PSNR or score. Times are
processor times of encoding alone. Negative numbers mean smaller files. Efforts from 0 to 3 make the
same files.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

import pillow_sdz  # noqa: F401  # registers the format SDZ
from benchmarks.metrics import measure
from benchmarks.rate_distortion import load, photos_in

QUALITIES = (15, 35, 65)
CURVE = (1, 8, 15, 25, 35, 45, 55, 65, 75, 88)


class Coded(NamedTuple):
    """The means over all photos, with one effort at one quality."""

    bpp: float
    psnr: float
    ssimulacra2: float
    seconds: float  # of processor time per megapixel


def code(photos: Sequence[Image.Image], quality: int, effort: int) -> Coded:
    """Encode the photos, decode them and measure."""
    rows = []
    for photo in photos:
        file = io.BytesIO()
        start = time.process_time()
        photo.save(file, "SDZ", quality=quality, effort=effort)
        seconds = time.process_time() - start
        with Image.open(file) as again:
            fidelity = measure(photo, again.convert("RGB"))
        pixels = photo.width * photo.height
        bpp = 8 * len(file.getvalue()) / pixels
        rows.append((bpp, fidelity.psnr, fidelity.ssimulacra2, seconds * 1e6 / pixels))
    return Coded(*np.mean(rows, 0).tolist())


def saved(point: Coded, curve: Sequence[Coded], metric: str) -> float:
    """How many percent a point's bits per pixel differ from the curve, at equal ``metric``."""
    marks = sorted((getattr(c, metric), c.bpp) for c in curve)
    levels, rates = (np.array(v) for v in zip(*marks, strict=True))
    value = getattr(point, metric)
    if not levels[0] <= value <= levels[-1]:
        msg = f"{metric} {value:.2f} is outside of {levels[0]:.2f} to {levels[-1]:.2f}"
        raise ValueError(msg)
    return float(100 * (point.bpp / np.exp(np.interp(value, levels, np.log(rates))) - 1))


def table(photos: Sequence[Image.Image], efforts: Sequence[int]) -> str:
    """A Markdown table, a line for each effort: bytes at equal quality, equal PSNR, equal score."""
    head = "".join(f" quality {q} |" for q in QUALITIES)
    lines = [f"| effort | s/megapixel |{head}", "|--:|--:|" + "---|" * len(QUALITIES)]
    with tqdm(total=len(CURVE) + len(efforts) * len(QUALITIES), leave=False) as progress:
        curve = []
        for quality in CURVE:
            curve.append(code(photos, quality, 0))
            progress.update()
        for effort in efforts:
            cells, seconds = [], []
            for quality in QUALITIES:
                point = code(photos, quality, effort)
                own = curve[CURVE.index(quality)]
                figures = (
                    100 * (point.bpp / own.bpp - 1),
                    saved(point, curve, "psnr"),
                    saved(point, curve, "ssimulacra2"),
                )
                cells.append(", ".join(f"{v:+.1f} %" for v in figures))
                seconds.append(point.seconds)
                progress.update()
            lines.append(f"| {effort} | {np.mean(seconds):.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="What more effort saves with mini.")
    parser.add_argument("--images", type=Path, required=True, help="a folder of lossless photos")
    parser.add_argument("--limit", type=int, help="use only this many photos, evenly spread")
    parser.add_argument("--efforts", type=int, nargs="+", default=list(range(4, 10)))
    options = parser.parse_args()
    try:
        paths = photos_in(options.images, options.limit)
    except FileNotFoundError as e:
        parser.error(str(e))
    print(table([load(path) for path in paths], options.efforts))


if __name__ == "__main__":
    main()
