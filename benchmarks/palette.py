"""Bytes of the palette coding, compared with zlib as in the article of 2022, and latent errors.

    python -m benchmarks.palette --latents FILE

FILE holds latents (C, h, w) at a factor of 8, one tensor for each photo. Rows are averages over
crops of 64x64 latents, which are those of a 512x512 picture. There is a crop every 16 latents, and
at the far ends. Times are medians of processor time. Every payload is decoded and checked. "Raw"
and "zlib" pack the same palette and indices as the article did. The unit of the squared errors is
the step of a byte. One error is that of latents. The other is that of means of 3x3 latents, which
dithering changes little.
"""

from __future__ import annotations

import argparse
import statistics
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from pillow_sdz.codings import dithering, palette
from pillow_sdz.codings.integers import STEP_UNITS

STEP = 34  # the step of the article's bytes, in 1/1024 of a latent
SIDE = 64  # latents along each side of the article's pictures
STRIDE = 16
ENTRIES = (128, 256, 512, 640)

Latents = NDArray[np.float32]


def crops(latents: Latents) -> Iterator[Latents]:
    """All crops (SIDE, SIDE, C) of latents (h, w, C)."""
    starts = [sorted({*range(0, n - SIDE, STRIDE), n - SIDE}) for n in latents.shape[:2]]
    for top in starts[0]:
        for left in starts[1]:
            yield latents[top : top + SIDE, left : left + SIDE]


def means(values: NDArray[Any]) -> NDArray[Any]:
    """The means of all 3x3 values that lie within (h, w, C)."""
    windows = np.lib.stride_tricks.sliding_window_view(values, (3, 3), axis=(0, 1))
    return np.asarray(windows.mean((3, 4)))


def measure(latents: Latents, entries: int, dither: bool) -> dict[str, float]:
    """Bytes, errors and milliseconds of one picture."""
    start = time.process_time()
    payload = dithering.encode(latents, step=STEP, entries=entries, dither=dither)
    encoded = time.process_time()
    decoded = dithering.decode(payload, *latents.shape, step=STEP)
    end = time.process_time()
    colours, indices = palette.unpack(payload, *latents.shape)
    if palette.pack(colours, indices) != payload:
        msg = "the payload is not the same after decoding and coding again"
        raise AssertionError(msg)
    coder = palette._Encoder()
    palette._code_palette(coder, colours, indices.size, latents.shape[2])
    index_type = np.uint8 if len(colours.entries) <= 256 else np.uint16
    raw = colours.bytes.astype(np.uint8).tobytes() + indices.astype(index_type).tobytes()
    error = (decoded - latents) * (STEP_UNITS / STEP)
    return {
        "raw": len(raw),
        "zlib 9": len(zlib.compress(raw, 9)),
        "sdz": len(payload),
        "palette": len(coder.bytes()),
        "error": float((error**2).mean()),
        "3x3": float((means(error) ** 2).mean()),
        "encode ms": 1000 * (encoded - start),
        "decode ms": 1000 * (end - encoded),
    }


def table(pictures: list[Latents]) -> str:
    """A Markdown table of averages. For sdz, it also shows the largest."""
    lines = [
        "| entries | dither | raw | zlib 9 | sdz | largest | its palette | squared error "
        "| of 3x3 means | encode ms | decode ms |",
        "|" + "---|" * 11,
    ]
    for entries in ENTRIES:
        for dither in (True, False):
            rows = [measure(picture, entries, dither) for picture in pictures]
            r = {name: statistics.mean(row[name] for row in rows) for name in rows[0]}
            largest = max(row["sdz"] for row in rows)
            encode, decode = (
                statistics.median(row[name] for row in rows) for name in ("encode ms", "decode ms")
            )
            lines.append(
                f"| {entries} | {'yes' if dither else 'no'} | {r['raw']:.0f} | {r['zlib 9']:.0f} "
                f"| {r['sdz']:.0f} | {largest} | {r['palette']:.0f} "
                f"| {r['error']:.1f} | {r['3x3']:.2f} | {encode:.0f} | {decode:.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Bytes and errors of the palette coding.")
    parser.add_argument("--latents", type=Path, required=True)
    args = parser.parse_args()
    photos = [x.astype(np.float32) for _, x in sorted(load_file(args.latents).items())]
    print(table([crop for photo in photos for crop in crops(photo.transpose(1, 2, 0))]))


if __name__ == "__main__":
    main()
