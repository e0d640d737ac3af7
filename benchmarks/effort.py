"""What more effort saves on latents with a lattice prior: bytes at equal error.

    python -m benchmarks.effort --latents FILE --priors DIR [--fold K]

FILE holds latents (C, h, w), one tensor for each photo. Photo i is coded with
DIR/fold(i mod folds).safetensors. `python -m training.lattice_prior --folds 3` made this prior from
the other photos. With --fold, only the photos of that fold are coded.

Rounding sets the mark for each step: its mean squared error over all photos. Each effort codes the
photos with three finer steps. A parabola of log(bytes) over log(error) through these three points
gives the bytes at the mark. Errors are measured on decoded payloads.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tqdm import tqdm

from benchmarks.latents import FOLDS, decode
from pillow_sdz.codings import quantize
from pillow_sdz.codings.integers import STEP_UNITS
from pillow_sdz.codings.lattice import LatticePrior
from pillow_sdz.threads import one_blas_thread

STEPS = (0.25, 0.5, 1.0)
EFFORTS = (3, *quantize.ROUNDS)  # efforts that differ: 0 to 2 round, 4 and 5 equal 3
# Steps are multiplied by these. The choice by rate then has about the error of rounding.
FINER = (0.7, 0.85, 1.0)


class Coded(NamedTuple):
    """All photos at one step and effort."""

    bytes: int
    error: float  # mean squared, in the unit of the latents
    seconds: float  # of processor time, with one thread


def code(photos: list[NDArray[Any]], priors: list[LatticePrior], step: float, effort: int) -> Coded:
    """Encode photos (h, w, C), each with its prior, and decode them."""
    units = round(step * STEP_UNITS)
    size, squares, seconds = 0, 0.0, 0.0
    for latents, prior in zip(photos, priors, strict=True):
        start = time.process_time()
        payload = quantize.encode(prior, latents, units, effort)
        seconds += time.process_time() - start
        size += len(payload)
        decoded = decode(prior, payload, latents.shape, units) * (units / STEP_UNITS)
        squares += float(((decoded - latents) ** 2).sum())
    return Coded(size, squares / sum(latents.size for latents in photos), seconds)


def at_error(points: list[Coded], error: float) -> float:
    """Bytes at an error, from a parabola through three points. ValueError beyond these points."""
    if not min(p.error for p in points) <= error <= max(p.error for p in points):
        msg = f"an error of {error} lies outside of {[p.error for p in points]}"
        raise ValueError(msg)
    x, y = np.log([p.error for p in points]), np.log([p.bytes for p in points])
    return float(np.exp(np.polyval(np.polyfit(x - x[1], y, 2), np.log(error) - x[1])))


def table(photos: list[NDArray[Any]], priors: list[LatticePrior]) -> str:
    """A Markdown table: how many bytes less than rounding, and how many times its milliseconds."""
    lines = [f"| effort |{''.join(f' step {s} |' for s in STEPS)} time |"]
    lines += ["|---" * (len(STEPS) + 2) + "|"]
    rounded = [code(photos, priors, step, 0) for step in STEPS]
    with tqdm(total=len(EFFORTS) * len(STEPS), leave=False, unit="point") as progress:
        for effort in EFFORTS:
            cells, ratios = [], []
            for step, mark in zip(STEPS, rounded, strict=True):
                points = [code(photos, priors, step * f, effort) for f in FINER]
                cells.append(f"{100 * (at_error(points, mark.error) / mark.bytes - 1):+.1f} %")
                ratios.append(np.mean([p.seconds for p in points]) / mark.seconds)
                progress.update()
            lines.append(f"| {effort} | {' | '.join(cells)} | {np.mean(ratios):.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Bytes at equal error by effort.")
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument(
        "--priors", type=Path, required=True, help="folder with the priors of the folds"
    )
    parser.add_argument(
        "--fold", type=int, choices=range(FOLDS), help="code only the photos i with i %% 3 = K"
    )
    args = parser.parse_args()
    folds = [LatticePrior(load_file(args.priors / f"fold{k}.safetensors")) for k in range(FOLDS)]
    tensors = [x for _, x in sorted(load_file(args.latents).items())]
    chosen = [i for i in range(len(tensors)) if args.fold in (None, i % FOLDS)]
    photos = [tensors[i].astype(np.float32).transpose(1, 2, 0) for i in chosen]
    with one_blas_thread():
        print(table(photos, [folds[i % FOLDS] for i in chosen]))


if __name__ == "__main__":
    main()
