"""Does it change a byte, an integer or a pixel if many threads use one model?

    python -m benchmarks.many --seconds 60
    python -m benchmarks.many --seconds 60 --torch-threads 1

First, one thread saves and opens pictures of several modes, sizes and qualities. Then many threads
do so at once. Each has its own picture, in a random order, and everything is compared. If the
threads stop making progress, the stack of every thread is shown and the exit status is 1. It is
also 1 for any difference, except one grey level of a pixel.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import os
import random
import re
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import pillow_sdz
from pillow_sdz import demo

THREADS = 16  # chosen: many more than most computers have cores
STUCK = 120  # chosen: seconds, longer than anything takes


@dataclass(frozen=True)
class Outcome:
    """The result for a picture that was saved and opened."""

    data: bytes
    latents: np.ndarray[Any, np.dtype[Any]]  # (C, h, w), each is an integer divided by its gain
    pixels: np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Result:
    """How often results differed from those of one thread, and how much memory they took."""

    pictures: int
    other_bytes: int
    other_integers: int
    other_pixels: int
    grey_levels: int  # the largest difference of a pixel
    peak_of_one: int  # bytes of memory with one thread
    warm_peak: int  # bytes of memory with all threads after a third of the time
    peak: int  # and at the end

    @property
    def exact(self) -> bool:
        """Whether bytes and integers equal those of one thread, and pixels within a grey level."""
        return not self.other_bytes and not self.other_integers and self.grey_levels <= 1


Case = tuple[Image.Image, dict[str, Any]]  # a picture, and the options it is saved with


def cases() -> list[Case]:
    """Pictures of all modes, of even and odd sizes, with options that use other code."""
    photo = demo.photo()

    def crop(mode: str, width: int, height: int) -> Image.Image:
        return photo.crop((100, 50, 100 + width, 50 + height)).convert(mode)

    return [
        (crop("RGB", 256, 256), {}),
        (crop("RGB", 61, 43), {"quality": 20}),
        (crop("L", 97, 130), {"quality": 90}),
        (crop("RGBA", 64, 48), {"effort": 0}),
        (crop("LA", 33, 200), {"quality": 5}),
        (crop("RGB", 120, 80), {"target_size": 700}),
        (crop("RGB", 80, 80), {"tune": "perceptual", "quality": 40}),
        (crop("RGB", 9, 70), {"quality": 50}),
        (crop("RGB", 32, 32), {"effort": 5}),
    ]


def outcome(case: Case) -> Outcome:
    """Save a picture and open it again."""
    picture, options = case
    file = io.BytesIO()
    picture.save(file, "SDZ", **options)
    with Image.open(file) as opened:
        pixels = np.asarray(opened)
    return Outcome(file.getvalue(), pillow_sdz.open_latents(file).latents, pixels)


def stress(seconds: float, threads: int = THREADS, torch_threads: int | None = None) -> Result:
    """Save and open pictures in this many threads for this long. Each has ``torch_threads``."""
    import torch

    own = torch_threads or torch.get_num_threads()
    pictures = cases()
    expected = [outcome(case) for case in pictures]
    peak_of_one = peak_memory()
    start = time.monotonic()

    def work(seed: int) -> list[tuple[bool, bool, int]]:
        order = random.Random(seed)
        found = []
        while time.monotonic() < start + seconds:
            number = order.randrange(len(pictures))
            picture, options = pictures[number]
            # Only one thread at a time may use an image of Pillow.
            got, right = outcome((picture.copy(), options)), expected[number]
            difference = np.abs(got.pixels.astype(int) - right.pixels)
            same_integers = np.array_equal(got.latents, right.latents)
            found.append((got.data == right.data, same_integers, int(difference.max())))
        return found

    faulthandler.dump_traceback_later(seconds + STUCK, exit=True)
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(own,)) as pool:
        running = [pool.submit(work, seed) for seed in range(threads)]
        time.sleep(seconds / 3)
        warm_peak = peak_memory()
        done = [one for future in running for one in future.result()]
    faulthandler.cancel_dump_traceback_later()
    return Result(
        pictures=len(done),
        other_bytes=sum(not same for same, _, _ in done),
        other_integers=sum(not same for _, same, _ in done),
        other_pixels=sum(levels > 0 for _, _, levels in done),
        grey_levels=max(levels for _, _, levels in done),
        peak_of_one=peak_of_one,
        warm_peak=warm_peak,
        peak=peak_memory(),
    )


def peak_memory() -> int:
    """The largest resident set of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # On Linux, getrusage is of no use: a new process starts with its parent's figure.
        kilobytes = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if kilobytes:
            return 1024 * int(kilobytes[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.many",
        description="Save and open pictures in many threads, and compare with one thread.",
    )
    parser.add_argument("--seconds", type=float, default=60, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=THREADS, help="default: %(default)s")
    parser.add_argument(
        "--torch-threads", type=int, help="torch's threads in each thread (default: torch's choice)"
    )
    options = parser.parse_args(arguments)
    if options.seconds <= 0 or min(options.threads, options.torch_threads or 1) < 1:
        parser.error("--seconds, --threads and --torch-threads must be positive")
    result = stress(options.seconds, options.threads, options.torch_threads)
    print(f"{options.threads} threads on {os.cpu_count()} cores")
    print(f"{result.pictures} pictures were saved and opened in {options.seconds:g} s")
    print(f"other bytes: {result.other_bytes}")
    print(f"other integers: {result.other_integers}")
    print(f"other pixels: {result.other_pixels}, by {result.grey_levels} grey levels at most")
    print(f"peak memory of one thread: {result.peak_of_one / 1e6:.0f} MB, of all threads:")
    print(f"{result.warm_peak / 1e6:.0f} MB after a third of the time, ", end="")
    print(f"{result.peak / 1e6:.0f} MB at the end")
    return int(not result.exact)


if __name__ == "__main__":
    sys.exit(main())
