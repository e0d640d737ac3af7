"""Score a plain transform coder on the photos that the training is scored on.

    python -m training.mini.baseline --validation PACKS/validation

The command codes the middles of the validation photos.  A lapped transform makes 8x8 or 16x16
coefficients, which are all divided by the same step.  Then each magnitude is predicted by least
squares, from coefficients that a raster scan has decoded already: at lower frequencies, in other
colours, and at neighbouring places.  The bits of an integer come from how often the other photos
have it at about the same prediction.  This is an ideal code, and slow.  A trained model must be
better than these figures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pillow_sdz.models.mini.network import beyond
from training.mini.data import to_tensor
from training.mini.lapped import lapped_transform
from training.mini.model import COLOUR
from training.mini.train import scored_photos

STEPS = (40, 24, 14, 9)  # grey levels
DEAD_ZONE, TOWARDS_ZERO = 0.4, 0.03  # of a step.  Chosen, as in many transform coders.
LARGEST = 40  # larger magnitudes are coded by twice as many bits as they have, and one
CONTEXTS = 120

Coefficients = NDArray[np.float32]  # (3, rows, columns, h, w)


def coefficients(image: Tensor, size: int) -> Coefficients:
    """The coefficients of an image (1, 3, H, W) in [-0.5, 0.5], in grey levels."""
    basis = lapped_transform(size)
    x = torch.einsum("ij,bjyx->biyx", torch.tensor(COLOUR), image) * 255
    x = beyond(x, size)[0]
    x = x.unfold(-1, 2 * size, size) @ basis.T
    x = x.permute(0, 2, 3, 1).unfold(-1, 2 * size, size) @ basis.T  # (3, w, u, h, v)
    return x.permute(0, 4, 2, 3, 1).numpy()


def shifted(a: Coefficients, down: int, right: int) -> Coefficients:
    """The coefficients moved down and right: each place has what was above and to the left of it.

    Places at the border get zero.
    """
    out = np.zeros_like(a)
    height, width = a.shape[-2:]
    left = max(-right, 0)
    out[..., down:, max(right, 0) : width - left] = a[
        ..., : height - down, left : width - max(right, 0)
    ]
    return out


def lower(a: Coefficients, rows: int, columns: int) -> Coefficients:
    """The coefficients moved to higher frequencies: each frequency has what was at a lower one."""
    out = np.zeros_like(a)
    out[:, rows:, columns:] = a[:, : a.shape[1] - rows, : a.shape[2] - columns]
    return out


def known(a: Coefficients) -> Coefficients:
    """Magnitudes (..., inputs) that a decoder knows before each of ``a``."""
    inputs = [shifted(a, *p) for p in ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))]
    inputs += [lower(a, *p) for p in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0))]
    beside = inputs[0] + inputs[1]
    above, after = np.zeros_like(a), np.zeros_like(a)
    above[:, :-1], after[:, :, :-1] = beside[:, 1:], beside[:, :, 1:]
    inputs += [above, after, lower(beside, 1, 0), lower(beside, 0, 1)]
    first, second = np.zeros_like(a), np.zeros_like(a)
    first[1:], second[2] = a[0], a[1]
    return np.stack([*inputs, first, second, np.ones_like(a)], -1)


def bits(photos: list[Coefficients]) -> float:
    """Bits of an ideal code of all photos, each coded with the counts of the others."""
    magnitudes = [np.abs(p).reshape(np.prod(p.shape[:3]), -1) for p in photos]
    inputs = [
        known(np.abs(p)).reshape(*m.shape, -1) for p, m in zip(photos, magnitudes, strict=True)
    ]
    products = sum(np.einsum("cnk,cnl->ckl", x, x) for x in inputs)
    targets = sum(np.einsum("cnk,cn->ck", x, m) for x, m in zip(inputs, magnitudes, strict=True))
    weights = np.linalg.solve(products + np.eye(products.shape[-1]), targets[..., None])[..., 0]
    predictions = [np.maximum(np.einsum("cnk,ck->cn", x, weights), 1e-4) for x in inputs]
    shares = [*np.linspace(0, 1, CONTEXTS + 1)[1:-1], 0.995, 0.998, 0.999, 0.9995]
    edges = np.unique(np.quantile(np.concatenate([p.ravel() for p in predictions]), shares))
    contexts = [np.searchsorted(edges, p) for p in predictions]
    clipped = [np.minimum(m, LARGEST).astype(int) for m in magnitudes]
    counts = []
    for context, symbol in zip(contexts, clipped, strict=True):
        count = np.zeros((len(edges) + 1, LARGEST + 1))
        np.add.at(count, (context.ravel(), symbol.ravel()), 1)
        counts.append(count)
    total = 0.0
    for i, (context, symbol) in enumerate(zip(contexts, clipped, strict=True)):
        others = sum(counts) - counts[i] + 0.02
        code = -np.log2(others / others.sum(1, keepdims=True))
        excess = np.maximum(magnitudes[i] - LARGEST, 0)
        escape = (2 * np.log2(excess + 1) + 1) * (symbol == LARGEST)
        total += float((code[context, symbol] + (symbol > 0) + escape).sum())
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--validation", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    photos = scored_photos(options.validation)
    pixels = sum(p.shape[0] * p.shape[1] for p in photos)
    for size in (8, 16):
        exact = [coefficients(to_tensor(p), size) for p in photos]
        for step in STEPS:
            integers, errors = [], []
            for c in exact:
                symbols = np.sign(c) * np.floor(np.abs(c) / step + DEAD_ZONE)
                back = np.sign(symbols) * (np.abs(symbols) - TOWARDS_ZERO) * step
                errors.append(float(((c - back) ** 2).mean()))
                integers.append(symbols)
            psnr = float(np.mean([10 * np.log10(255**2 / e) for e in errors]))
            print(
                f"{size}x{size}, step {step}: {bits(integers) / pixels:.3f} {psnr:.2f}", flush=True
            )


if __name__ == "__main__":
    main()
