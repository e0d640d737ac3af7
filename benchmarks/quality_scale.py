"""What a quality means: the bits and the fidelity of whole files of `mini`, by ``quality``.

    python -m benchmarks.quality_scale --images DIR

prints the mean over the photos.  ``quality`` should be about the SSIMULACRA2 of photos.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .metrics import measure
from .rate_distortion import load, photos_in

QUALITIES = (10, 20, 30, 40, 50, 60, 70, 75, 80, 90, 100)


def rows(paths: Sequence[Path], qualities: Sequence[int]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield "| quality | bpp | PSNR dB | MS-SSIM | SSIMULACRA2 |\n|--:|--:|--:|--:|--:|"
    for quality in qualities:
        found = []
        for path in paths:
            original, file = load(path), io.BytesIO()
            original.save(file, "SDZ", quality=quality)
            with Image.open(file) as picture:
                fidelity = measure(original, picture)
            bpp = 8 * len(file.getvalue()) / (original.width * original.height)
            found.append((bpp, fidelity.psnr, fidelity.ms_ssim, fidelity.ssimulacra2))
        yield "| {} | {:.3f} | {:.2f} | {:.4f} | {:.1f} |".format(quality, *np.mean(found, 0))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality_scale", description="What a quality means, as a table."
    )
    parser.add_argument("--images", type=Path, required=True, help="a folder of lossless photos")
    parser.add_argument("--limit", type=int, help="use only this many photos, evenly spread")
    parser.add_argument("--qualities", type=int, nargs="+", default=QUALITIES)
    options = parser.parse_args(arguments)
    for line in rows(photos_in(options.images, options.limit), options.qualities):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
