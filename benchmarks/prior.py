"""What mini's prior saves: bits of the same integers with it and with a hand-made context model.

    python -m benchmarks.prior --images DIR [--limit N]

The integers are mini's rounded latents, as in files of the default effort. The prior's bits are
those of real payloads. Each payload is decoded and encoded again. The row of the ideal code has the
same predictions without the range coder. The prior also runs without one of its parts at a time.
The parts are the features that it computes from the hyperlatents, the context (the first pass
around a place), earlier groups of channels around a place, and the magnitudes of known symbols. The
part then adds zero. The networks were not trained for that, and the hyperlatents were not chosen
for it, so a prior that is trained without a part would lose less.

The hand-made model's bits are those of an ideal code, without side information. Photo i is coded
with a model fitted to those photos j of DIR whose j mod 3 differs, at the same quality. mini should
not have seen any photo of DIR. The entropies come from the histograms of each photo, one for each
channel. A decoder would also need these histograms.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tqdm import tqdm

from benchmarks.latents import FOLDS
from benchmarks.rate_distortion import load, photos_in
from pillow_sdz import catalogue, models, weights
from pillow_sdz.arrays import Floats, Ints, Pixels
from pillow_sdz.codings import quality_map
from pillow_sdz.codings.hyperprior import HyperPrior
from pillow_sdz.codings.quantize import Quantizer
from pillow_sdz.codings.range_coder import Prediction, SymbolDecoder, Tables
from pillow_sdz.codings.rate_axis import RateAxis
from pillow_sdz.models.mini import Mini
from pillow_sdz.threads import one_blas_thread

QUALITIES = (10, 30, 50, 70, 85)
EFFORT = 4  # the default

# A scale context is two thirds of an octave of the expected error, and the first begins at 2 ** -8
# steps. Counts begin as 0.03 of the counts of the other photos. Other choices were tried on 25
# photos held out from training, at qualities 10, 35 and 75: a first context from 2 ** -9 to
# 2 ** -5, contexts of half an octave, and shares from 0.01 to 1. None saved more than 0.4 %. Three
# times the contexts, by the fraction of the mean, would save 1.1, 0.4 and 0.05 %.
CONTEXTS, FINEST, PER_OCTAVE = 16, -8, 1.5
SHARE, UNSEEN = 0.03, 0.01
REACH = 1023  # the alphabet of residuals, on both sides of 0; enough at these qualities

HAND_MADE = "causal linear mean + 16 scale contexts"
PRIOR = "mini's prior"
IDEAL, HYPER = "an ideal code of its predictions", "of which hyperlatents"

# For each row without a part, the tensors of the prior that are set to zero.
PARTS = {
    "without the features": r"up\d",
    "without the context": r"context\d",
    "without the groups around": r"around\d",
    "without magnitudes": r"magnitude\d\.\d",
}


class HandMade:
    """A causal linear mean, and counts in contexts of a causal linear scale.

    Both are fitted by least squares to integers (h, w, C) of photos, for each channel. The mean is
    fitted to the integers around a place. The scale is the expected error of the mean, and is
    fitted to the errors around the place.
    """

    def __init__(self, photos: list[Ints]) -> None:
        self._mean = _least_squares((x, x) for x in photos)
        errors = [np.abs(x - _predicted(x, self._mean)) for x in photos]
        self._scale = _least_squares((x, x) for x in errors)
        self._counts = SHARE * np.sum([self._histogram(x) for x in photos], axis=0) + UNSEEN

    def bits(self, symbols: Ints) -> float:
        """The ideal code length of a photo's integers (h, w, C). Counts adapt to each integer."""
        # With adaptive counts, the order of the symbols does not change their bits.
        before, after = self._counts, self._counts + self._histogram(symbols)
        of_symbols = _log_gamma(after).sum() - _log_gamma(before).sum()
        of_contexts = _log_gamma(after.sum(1)).sum() - _log_gamma(before.sum(1)).sum()
        return float(of_contexts - of_symbols) / math.log(2)

    def _histogram(self, symbols: Ints) -> Floats:
        """How often each residual occurs in each context, (CONTEXTS, 2 * REACH + 1)."""
        mean = _predicted(symbols, self._mean)
        scale = np.maximum(_predicted(np.abs(symbols - mean), self._scale), 2.0**FINEST)
        octaves = np.log2(scale) - FINEST
        context = np.minimum(octaves * PER_OCTAVE, CONTEXTS - 1).astype(np.int64)
        residual = symbols - np.rint(mean).astype(np.int64)
        if np.abs(residual).max() > REACH:
            msg = f"a residual beyond {REACH}"
            raise ValueError(msg)
        counts = np.zeros((CONTEXTS, 2 * REACH + 1))
        np.add.at(counts, (context.ravel(), residual.ravel() + REACH), 1)
        return counts


_log_gamma = np.vectorize(math.lgamma)


def _causal(values: NDArray[Any]) -> Floats:
    """W, N, NW, NE, the same place in the channel before, and 1, for places (h, w, C)."""
    height, width, channels = values.shape
    padded = np.pad(values.astype(np.float64), ((1, 0), (1, 1), (1, 0)))
    above, here = padded[:-1], padded[1:]
    known = [
        here[:, :width, 1:],
        above[:, 1 : width + 1, 1:],
        above[:, :width, 1:],
        above[:, 2:, 1:],
        here[:, 1 : width + 1, :channels],
        np.ones(values.shape),
    ]
    return np.stack(known, -1).transpose(2, 0, 1, 3).reshape(channels, height * width, len(known))


def _predicted(values: NDArray[Any], coefficients: Floats) -> Floats:
    """Predict each place (h, w, C) from those before it, with coefficients (C, 6)."""
    height, width, channels = values.shape
    flat = _causal(values) @ coefficients[:, :, None]
    return flat.reshape(channels, height, width).transpose(1, 2, 0)


def _least_squares(pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> Floats:
    """Coefficients (C, 6) that predict targets (h, w, C) from the values around."""
    squares: Any = 0.0
    products: Any = 0.0
    for values, targets in pairs:
        known = _causal(values)
        wanted = targets.transpose(2, 0, 1).reshape(len(known), -1, 1)
        squares = squares + known.transpose(0, 2, 1) @ known
        products = products + known.transpose(0, 2, 1) @ wanted
    ridge = 1e-3 * np.eye(squares.shape[-1])  # for channels that are zero everywhere
    solution: Floats = np.linalg.solve(squares + ridge, products)[:, :, 0]
    return solution


class Reader:
    """A `range_coder.Coder` that decodes, and counts bits of an ideal code by volume."""

    def __init__(self, payload: bytes) -> None:
        self._decoder = SymbolDecoder(Tables.shipped(), payload)
        self.bits: dict[str, float] = defaultdict(float)

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        symbols = self._decoder.code(volume, index, mean, scale)
        self.bits[volume] += float(Tables.shipped().bits(symbols, Prediction.of(mean, scale)).sum())
        return symbols


def payload_of(
    prior: HyperPrior, symbols: NDArray[Any], hyper: NDArray[Any], quality: int
) -> bytes:
    """The payload of latents (h, w, C) in steps and their hyperlatents, at the header's quality."""
    height, width, _ = symbols.shape
    besides = quality_map.volumes(None) | prior.volumes(symbols)
    quantizer = Quantizer(Tables.shipped(), symbols, hyper, besides=besides)
    prior.code(quantizer, height, width, quality)
    return quantizer.bytes()


def without(part: str) -> HyperPrior:
    """mini's prior without the layers whose names match."""
    tensors = load_file(weights.MINI.checked())
    kept = {
        name.removeprefix("prior."): np.zeros_like(tensor)
        if re.fullmatch(rf"prior\.{part}\.(weight|bias)", name)
        else tensor
        for name, tensor in tensors.items()
        if name.startswith("prior.")
    }
    return HyperPrior(kept, RateAxis(tensors["axis"]))


def order_0(symbols: Ints) -> float:
    """Bits of integers (h, w, C), each channel coded with its own histogram."""
    bits = 0.0
    for channel in symbols.reshape(-1, symbols.shape[2]).T:
        counts = np.unique(channel, return_counts=True)[1]
        bits -= float((counts * np.log2(counts / len(channel))).sum())
    return bits


def measure(photos: list[Pixels], quality: float) -> dict[str, float]:
    """Bits per pixel of all photos together, for each way to code them."""
    hundredths = round(100 * quality)
    mini = models.load(catalogue.MINI)
    assert isinstance(mini, Mini)
    less = {name: without(part) for name, part in PARTS.items()}
    names = ("entropy of each channel", HAND_MADE, PRIOR, IDEAL, HYPER, *less)
    bits = dict.fromkeys(names, 0.0)
    integers = []
    for photo in photos:
        latents = mini.encode(photo, hundredths)
        steps = latents * mini.gain(hundredths)
        payload = payload_of(mini.prior, *mini.refine(None, steps, hundredths, EFFORT), hundredths)
        reader = Reader(payload)
        height, width, _ = latents.shape
        symbols, hyper, *_ = mini.prior.code(reader, height, width, hundredths)
        integers.append(symbols)
        if payload_of(mini.prior, symbols, hyper, hundredths) != payload:
            msg = "the payload's integers encode to another payload"
            raise AssertionError(msg)
        bits["entropy of each channel"] += order_0(symbols)
        bits[PRIOR] += 8 * len(payload)
        bits[IDEAL] += sum(reader.bits.values())
        bits[HYPER] += reader.bits["hyper"]
        for name, prior in less.items():
            bits[name] += 8 * len(payload_of(prior, symbols, hyper, hundredths))
    for fold in range(FOLDS):
        others = HandMade([x for i, x in enumerate(integers) if i % FOLDS != fold])
        bits[HAND_MADE] += sum(others.bits(x) for x in integers[fold::FOLDS])
    pixels = sum(photo.shape[0] * photo.shape[1] for photo in photos)
    return {name: total / pixels for name, total in bits.items()}


def table(results: dict[float, dict[str, float]]) -> str:
    """A Markdown table of `measure`'s results, by quality."""
    lines = [f"| bits per pixel |{''.join(f' quality {quality} |' for quality in results)}"]
    lines.append("|---|" + "--:|" * len(results))
    for name in next(iter(results.values())):
        lines.append(f"| {name} |{''.join(f' {r[name]:.4f} |' for r in results.values())}")
    saved = [100 * (1 - r[PRIOR] / r[HAND_MADE]) for r in results.values()]
    lines.append(f"| saved against the hand-made model |{''.join(f' {s:.1f} % |' for s in saved)}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Bits of mini's integers by what predicts them.")
    parser.add_argument("--images", type=Path, required=True, help="folder of photos")
    parser.add_argument("--limit", type=int, help="use only this many photos, evenly spread")
    args = parser.parse_args(arguments)
    try:
        paths = photos_in(args.images, args.limit)
    except FileNotFoundError as e:
        parser.error(str(e))
    if len(paths) < FOLDS:
        parser.error(f"the hand-made model is fitted to other photos: at least {FOLDS} are needed")
    photos = [np.asarray(load(path)) for path in paths]
    with one_blas_thread():
        progress = tqdm(QUALITIES, "code", leave=False)
        print(table({quality: measure(photos, quality) for quality in progress}))


if __name__ == "__main__":
    main()
