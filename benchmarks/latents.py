"""Bytes of quantised latents: the two priors, lossless pictures and archivers.

    python -m benchmarks.latents --latents FILE [--priors DIR]

FILE holds latents (C, h, w) at a factor of 8, one tensor for each photo. No prior was fitted to
what it codes here. Photo i is coded with DIR/fold(i mod folds).safetensors.
`python -m training.lattice_prior --folds 3` made this prior from the other photos. Without DIR, the
priors are trained first. The adaptive prior is fitted to no photos. All columns code the same
integers, and every sdz payload is decoded and compared.

For JPEG XL, the integers become 8-bit samples, less the minimum of each channel. There are several
layouts below. Each photo uses the one that becomes smallest.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import io
import lzma
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from pillow_sdz.arrays import Ints
from pillow_sdz.codings.adaptive import AdaptivePrior
from pillow_sdz.codings.integers import STEP_UNITS
from pillow_sdz.codings.lattice import LatticePrior
from pillow_sdz.codings.priors import Prior
from pillow_sdz.codings.quantize import Quantizer
from pillow_sdz.codings.range_coder import SymbolDecoder, Tables

STEPS = (0.25, 0.5, 1.0)  # the steps of all of the project's figures
FACTOR = 8  # pixels a side for one latent
FOLDS = 3  # `training.lattice_prior` makes the same number


def encode(prior: Prior, symbols: Ints, step: int) -> bytes:
    """Encode integers (h, w, C) to a payload."""
    quantizer = Quantizer(Tables.shipped(), symbols.astype(np.float64), np.zeros(0, np.int64))
    prior.code(quantizer, symbols.shape[0], symbols.shape[1], step)
    return quantizer.bytes()


def decode(prior: Prior, payload: bytes, shape: tuple[int, ...], step: int) -> Ints:
    """Decode the integers (h, w, C) of a payload."""
    decoder = SymbolDecoder(Tables.shipped(), payload)
    symbols = prior.code(decoder, shape[0], shape[1], step)
    decoder.finish()
    return symbols


def samples(symbols: Ints) -> NDArray[np.uint8]:
    """Integers as bytes. The smallest of each channel (axis 2) becomes 0."""
    offset = symbols - symbols.min((0, 1))
    if offset.max() > 255:
        msg = "the integers do not fit 8 bits"
        raise ValueError(msg)
    planes: NDArray[np.uint8] = offset.astype(np.uint8)
    return planes


def jpeg_xl(symbols: Ints) -> int:
    """Bytes of JPEG XL in its best layout, lossless at effort 9."""
    planes = samples(symbols)
    height, width, channels = planes.shape
    pictures = [
        Image.fromarray(planes.transpose(2, 0, 1).reshape(-1, width)),  # one below the other
        Image.fromarray(planes.transpose(0, 2, 1).reshape(height, -1)),  # side by side
    ]
    if channels == 4:
        pictures.append(Image.fromarray(planes, "RGBA"))
    sizes = []
    for picture in pictures:
        file = io.BytesIO()
        picture.save(file, "JXL", lossless=True, effort=9)
        sizes.append(len(file.getvalue()))
    return min(sizes)


def milliseconds(work: Callable[[], object]) -> float:
    """The median of three calls, after a first one to warm up."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def measure(
    photos: list[NDArray[Any]], priors: list[LatticePrior], step: float, with_jxl: bool
) -> dict[str, float]:
    """Average bits per pixel of each codec, and milliseconds."""
    units = round(step * STEP_UNITS)
    sums: dict[str, float] = {}
    for i, latents in enumerate(photos):
        prior = priors[i % len(priors)]
        symbols = np.rint(latents.transpose(1, 2, 0) / step).astype(np.int64)
        payload = encode(prior, symbols, units)
        adaptive = AdaptivePrior(symbols.shape[2])
        learned = encode(adaptive, symbols, units)
        for known, data in ((prior, payload), (adaptive, learned)):
            if not np.array_equal(decode(known, data, symbols.shape, units), symbols):
                msg = "the payload does not decode to what was encoded"
                raise AssertionError(msg)
        # One channel after another: both archivers pack this better than interleaved channels.
        raw = samples(symbols).transpose(2, 0, 1).tobytes()
        sizes = {
            "sdz": len(payload),
            "adaptive": len(learned),
            "zlib 9": len(zlib.compress(raw, 9)),
            "LZMA": len(lzma.compress(raw, lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME)),
        }
        if with_jxl:
            sizes["JPEG XL"] = jpeg_xl(symbols)
        pixels = symbols.shape[0] * symbols.shape[1] * FACTOR**2
        row = {name: 8 * size / pixels for name, size in sizes.items()}
        row["encode"] = milliseconds(functools.partial(encode, prior, symbols, units))
        row["decode"] = milliseconds(
            functools.partial(decode, prior, payload, symbols.shape, units)
        )
        for name, value in row.items():
            sums[name] = sums.get(name, 0.0) + value / len(photos)
    return sums


def table(results: dict[float, dict[str, float]]) -> str:
    """A Markdown table of `measure`'s results, by step."""
    lines = [
        "| step | sdz bpp | adaptive bpp | JPEG XL e9 bpp | sdz less by | LZMA bpp | zlib bpp | encode ms | decode ms |",  # noqa: E501
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for step, r in results.items():
        jxl, saved = "-", "-"
        if "JPEG XL" in r:
            jxl, saved = f"{r['JPEG XL']:.4f}", f"{100 * (1 - r['sdz'] / r['JPEG XL']):.1f} %"
        lines.append(
            f"| {step} | {r['sdz']:.4f} | {r['adaptive']:.4f} | {jxl} | {saved} "
            f"| {r['LZMA']:.4f} | {r['zlib 9']:.4f} | {r['encode']:.0f} | {r['decode']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Bytes of quantised latents.")
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--priors", type=Path, help="folder with the priors of the folds")
    args = parser.parse_args()
    with_jxl = importlib.util.find_spec("pillow_jxl") is not None
    if with_jxl:
        import pillow_jxl  # noqa: F401  # registers the format JXL
    else:
        print("JPEG XL is left out: pip install pillow-jxl-plugin", file=sys.stderr)
    photos = [x.astype(np.float32) for _, x in sorted(load_file(args.latents).items())]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.priors or Path(temporary)
        if args.priors is None:
            command = [sys.executable, "-m", "training.lattice_prior", "--folds", str(FOLDS)]
            command += ["--latents", str(args.latents), "--output", str(folder)]
            subprocess.run(command, check=True, stdout=sys.stderr)
        files = [folder / f"fold{k}.safetensors" for k in range(FOLDS)]
        priors = [LatticePrior(load_file(file)) for file in files]
    print(table({step: measure(photos, priors, step, with_jxl) for step in STEPS}))


if __name__ == "__main__":
    main()
