"""What the tests of codings share: latents, integers, damage, and runs with more threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pillow_sdz.arrays import Ints


def correlated_latents(height: int, width: int, channels: int) -> NDArray[np.float64]:
    """Latents (h, w, C) like those of an autoencoder: mixtures of waves, edges and noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    planes = []
    for _ in range(channels):
        a, b, phase = rng.uniform(-0.15, 0.15, 3)
        edge = rng.uniform(-1, 1) * (y * rng.uniform(-1, 1) + x > width / 2)
        planes.append(np.sin(a * y + b * x + 20 * phase) + edge)
    latents = np.stack(planes, axis=2) + rng.normal(0, 0.3, (height, width, channels))
    mixture: NDArray[np.float64] = latents @ rng.normal(0, channels**-0.5, (channels, channels))
    return mixture


def pinned_symbols(height: int, width: int, channels: int, largest: int) -> Ints:
    """Integers that depend on no library: a congruential generator, smoothed by sums."""
    state, numbers = 1, []
    for _ in range(height * width * channels):
        state = (state * 1664525 + 1013904223) % 2**32
        numbers.append((state >> 16) % (2 * largest + 1) - largest)
    noise = np.array(numbers).reshape(height, width, channels)
    smooth: Ints = noise + (noise.cumsum(0) + noise.cumsum(1)) // 4 + noise.cumsum(2) // 2
    return smooth


def flipped(payload: bytes, every: int = 1) -> Iterator[bytes]:
    """The payload with one flipped bit, in each byte or in every second, third, ... one."""
    for position in range(0, len(payload), every):
        damaged = bytearray(payload)
        damaged[position] ^= 1 << (position % 8)
        yield bytes(damaged)


def outputs_by_threads(code: str) -> set[str]:
    """What a script prints with one thread and with two.  It can import the files of tests."""
    outputs = set()
    for threads in ("1", "2"):
        # numpy reads these when it loads its BLAS, so each case needs its own process.
        variables = dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads
        )
        paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        run = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | variables | {"PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.add(run.stdout)
    return outputs
