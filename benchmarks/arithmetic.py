"""What int8 saves and costs: the CPU time of `mini`'s networks, and the PSNR of their pictures.

    python -m benchmarks.arithmetic [--photos DIR]

The times are CPU time of one thread for a 768x512 photo, the median of five.  The PSNR is of the
photos in a folder, or of the demo's photo, decoded from the same latents in both arithmetics.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.article import assembled
from evaluation.photos import photo_paths
from pillow_sdz import catalogue, demo, models, options
from pillow_sdz.arrays import Latents, Pixels
from pillow_sdz.models.mini import Mini

ARITHMETICS = ("float32", "int8")
QUALITIES = (1500, 5000, 7500, 10000)
TIMED = (1500, 7500)  # one quality with the base alone, and one with all channels


def cpu_ms(call: Callable[[], object]) -> float:
    """The median CPU time of five calls in milliseconds, after a first call."""
    call()
    times = []
    for _ in range(5):
        start = time.process_time()
        call()
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times)


def quantised(mini: Mini, photo: Pixels, quality: int) -> Latents:
    """The latents that a file has, in the encoder's units."""
    gain = mini.gain(quality)
    latents: Latents = np.rint(mini.encode(photo, quality) * gain) / gain
    return latents


def shown(mini: Mini, latents: Latents, quality: int, scale: int) -> None:
    """Decode all tiles."""
    for _ in mini.decode(latents, quality, scale=scale):
        pass


def times(mini: Mini) -> Iterator[str]:
    """Rows of a table: the networks' time in each arithmetic, and the ratio."""
    pixels = np.asarray(demo.photo().resize((768, 512)))
    calls: dict[str, Callable[[], object]] = {}
    for quality in TIMED:
        latents = quantised(mini, pixels, quality)
        at = f"at quality {quality // 100}"
        calls[f"encode {at}"] = functools.partial(mini.encode, pixels, quality)
        for scale in (1, 2, 4, 8):
            name = "decode" if scale == 1 else f"decode 1/{scale}"
            calls[f"{name} {at}"] = functools.partial(shown, mini, latents, quality, scale)
    for name, call in calls.items():
        found = []
        for dtype in ARITHMETICS:
            with options.override(DTYPE=dtype):
                found.append(cpu_ms(call))
        exact, close = found
        yield f"| {name} | {exact:.1f} ms | {close:.1f} ms | {close / exact:.2f} |"


def psnr(a: Pixels, b: Pixels) -> float:
    """Decibels between two pictures (H, W, 3)."""
    error = ((a.astype(np.float64) - b) ** 2).mean()
    return float(10 * np.log10(255**2 / error))


def losses(mini: Mini, photos: Sequence[Pixels]) -> Iterator[str]:
    """Rows of a table: by quality, mean PSNR in each arithmetic, and the largest difference."""
    for quality in QUALITIES:
        found, largest = [], 0
        for photo in photos:
            height, width, _ = photo.shape
            with options.override(DTYPE="float32"):
                latents = quantised(mini, photo, quality)
            pictures = []
            for dtype in ARITHMETICS:
                with options.override(DTYPE=dtype):
                    pieces = mini.decode(latents, quality)
                    pictures.append(assembled(pieces, latents, 16)[:height, :width])
            found.append([psnr(photo, picture) for picture in pictures])
            difference = np.abs(pictures[0].astype(int) - pictures[1]).max()
            largest = max(largest, int(difference))
        exact, close = np.mean(found, 0)
        yield f"| {quality / 100:g} | {exact:.3f} | {close:.3f} | {largest} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arithmetic", description=__doc__)
    parser.add_argument("--photos", type=Path, help="a folder; every 29th of its photos is used")
    given = parser.parse_args(arguments)
    photos = [np.asarray(demo.photo())]
    if given.photos:
        paths = photo_paths(given.photos, held_out=True)
        photos = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    mini = models.load(catalogue.MINI)
    assert isinstance(mini, Mini)
    print("| | float32 | int8 | ratio |\n|---|--:|--:|--:|")
    print(*times(mini), sep="\n")
    print("\n| quality | float32 | int8 | largest difference |\n|--:|--:|--:|--:|")
    print(*losses(mini, photos), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
