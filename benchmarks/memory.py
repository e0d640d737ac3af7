"""The peak memory of decoding, and the time of a megapixel, by the size of the picture.

    python -m benchmarks.memory --megapixels 1 12 24 100

Every figure comes from a fresh process with one thread. The process imports Pillow, pillow_sdz and
torch, and then measures its memory for the first time. The pictures are one photo, repeated with
its mirror images.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

import pillow_sdz
from pillow_sdz import demo

MB = 1e6
WAYS = ("load", "draft 1/2", "draft 1/4", "draft 1/8", "crop 512x512")


def picture(megapixels: float) -> Image.Image:
    """A picture of 3:2 with this many pixels: the demo's photo and its mirror images."""
    photo = demo.photo()
    mirrored = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    height = round(math.sqrt(megapixels * 1e6 / 1.5))
    found = Image.new("RGB", (round(1.5 * height), height))
    for row in range(-(-found.height // photo.height)):
        for column in range(-(-found.width // photo.width)):
            piece = mirrored if column % 2 else photo
            if row % 2:
                piece = piece.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
            found.paste(piece, (column * photo.width, row * photo.height))
    return found


def status(name: str) -> float:
    """A figure of this process's memory in bytes, read from /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def measure(path: Path, way: str) -> dict[str, float]:
    """Measure in this process: CPU seconds, and the additional memory in bytes."""
    import torch

    torch.zeros(1)
    before = status("VmRSS")
    start = time.process_time()
    if way == "encode":
        with Image.open(path) as im:
            im.load()
            before = status("VmRSS")
            start = time.process_time()
            im.save(path.with_suffix(".sdz"), quality=50)
            size = im.size
    else:
        with Image.open(path) as im:
            if way.startswith("crop"):
                left, top = im.width // 2, im.height // 2
                size = im.crop((left, top, left + 512, top + 512)).size
            else:
                if way.startswith("draft"):
                    scale = int(way[-1])
                    im.draft(None, (im.width // scale, im.height // scale))
                im.load()
                size = im.size
    return {
        "seconds": time.process_time() - start,
        "peak": status("VmHWM") - before,
        "decoded": 4.0 * size[0] * size[1],  # Pillow keeps RGB in four bytes
    }


def in_fresh_process(path: Path, way: str) -> dict[str, float]:
    """Run `measure` in its own process with one thread."""
    command = [sys.executable, "-m", "benchmarks.memory", "--measure", str(path), way]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    ).stdout
    found: dict[str, float] = json.loads(out)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1, 12, 24, 100])
    parser.add_argument("--ways", nargs="+", default=["encode", *WAYS], help="what to measure")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        Image.MAX_IMAGE_PIXELS = None
        print(json.dumps(measure(Path(given.measure[0]), given.measure[1])))
        return
    print(f"pillow-sdz {pillow_sdz.__version__}")
    print("| megapixels | | CPU s/megapixel | peak, MB | of which beside twice the result |")
    print("|--:|---|--:|--:|--:|")
    for megapixels in given.megapixels:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "picture.bmp"
            picture(megapixels).save(path)
            for way in given.ways if "encode" in given.ways else ["encode", *given.ways]:
                source = path if way == "encode" else path.with_suffix(".sdz")
                found = in_fresh_process(source, way)
                beside = found["peak"] - 2 * found["decoded"] * (way != "encode")
                print(
                    f"| {megapixels:g} | {way} | {found['seconds'] / megapixels:.3f}"
                    f" | {found['peak'] / MB:.0f} | {beside / MB:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
