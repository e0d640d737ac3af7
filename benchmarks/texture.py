"""Woven texture: fine patterns in flat saturated areas that are not in the original.

    python -m benchmarks.texture [--photos DIR] [--quality 5 10 20 30]

It looks at tiles of 32x32 pixels that are flat and saturated in the original. The pictures are
photos, or it makes them itself. The figure is the energy at periods of 2 to 4 pixels that a tile
has in addition to the original's. It is the root of the mean square in levels, in the channel with
the most. Nobody sees less than 1. Exact regions are off, because they would keep such tiles. AVIF
(speed 6) gets the bytes of the `.sdz` file.
"""

from __future__ import annotations

import argparse
import colorsys
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

import pillow_sdz  # noqa: F401  # registers the format SDZ
from benchmarks.codecs import Codec

AVIF = Codec("avif", "AVIF", {"speed": 6}, tuple(range(101)), lambda: None)

TILE = 32
# A tile is flat if no channel has a larger standard deviation than this, in levels.  It is
# saturated if the means of its channels are so far apart.  Chosen: a viewer sees one strong colour.
FLAT, SATURATED = 6, 90
SIZE = 384, 256
PICTURES = 8  # chosen: about 300 tiles

Levels = NDArray[np.float64]


def pictures() -> Iterator[Image.Image]:
    """Saturated shapes with soft edges and a little noise, as in photos of toys and flowers."""
    for number in range(PICTURES):
        chance = np.random.default_rng(number)
        picture = Image.new("RGB", SIZE, _colour(chance))
        draw = ImageDraw.Draw(picture)
        for _ in range(5):
            x, y = (int(chance.integers(0, side)) for side in SIZE)
            width, height = (int(side) for side in chance.integers(60, 200, 2))
            draw.ellipse((x, y, x + width, y + height), _colour(chance))
        soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.5)), np.float64)
        light = np.linspace(0.92, 1, SIZE[0])[None, :, None]
        noisy = soft * light + chance.normal(0, 1.5, soft.shape)
        yield Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def _colour(chance: np.random.Generator) -> tuple[int, int, int]:
    hue, saturation, value = chance.uniform(), chance.uniform(0.75, 1), chance.uniform(0.5, 1)
    red, green, blue = (round(255 * x) for x in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def tiles(picture: Image.Image) -> list[tuple[slice, slice]]:
    """The rows and columns of a picture's tiles that are flat and saturated."""
    pixels = np.asarray(picture, np.float64)
    found = []
    for top in range(0, picture.height - TILE + 1, TILE):
        for left in range(0, picture.width - TILE + 1, TILE):
            area = slice(top, top + TILE), slice(left, left + TILE)
            means, deviations = pixels[area].mean((0, 1)), pixels[area].std((0, 1))
            if deviations.max() <= FLAT and np.ptp(means) >= SATURATED:
                found.append(area)
    return found


def energy(tile: Levels) -> Levels:
    """The mean square of each channel (h, w, C) at periods of 2 to 4 pixels, in squared levels."""
    height, width, _ = tile.shape
    spectrum = np.fft.fft2(tile, axes=(0, 1)) / (height * width)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    fine = np.maximum(abs(rows), abs(columns)) >= 1 / 4
    found: Levels = (np.abs(spectrum[fine]) ** 2).sum(0)
    return found


def woven(original: Image.Image, shown: Image.Image) -> list[float]:
    """For each tile, the fine patterns that are not in the original, in levels."""
    before, after = (np.asarray(im, np.float64) for im in (original, shown))
    return [
        float(np.sqrt(max(0.0, (energy(after[area]) - energy(before[area])).max())))
        for area in tiles(original)
    ]


def decoded(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as picture:
        return picture.convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.texture", description=__doc__)
    parser.add_argument("--photos", type=Path, help="a folder of photos to use instead")
    parser.add_argument("--quality", type=float, nargs="*", default=[5, 10, 20, 30])
    options = parser.parse_args()
    paths = sorted(options.photos.iterdir()) if options.photos else []
    given = [Image.open(path).convert("RGB") for path in paths] or list(pictures())
    given = [picture for picture in given if tiles(picture)]
    print(f"{sum(len(tiles(picture)) for picture in given)} tiles in {len(given)} pictures\n")
    print("| quality | codec | bytes | mean | 95 % | most | above 1 |")
    print("|--:|---|--:|--:|--:|--:|--:|")
    for quality in options.quality:
        levels: dict[str, list[float]] = {"sdz": [], "sdz, perceptual": [], "avif": []}
        sizes = dict.fromkeys(levels, 0)
        for picture in given:
            files = {}
            for way, tune in (("sdz", "psnr"), ("sdz, perceptual", "perceptual")):
                file = io.BytesIO()
                picture.save(file, "SDZ", quality=quality, tune=tune, regions=False)
                files[way] = file.getvalue()
            files["avif"] = AVIF.fit(picture, [len(files["sdz"])])[0].data
            for way, data in files.items():
                sizes[way] += len(data)
                levels[way] += woven(picture, decoded(data))
        for way, found in levels.items():
            values = np.array(found)
            print(
                f"| {quality:g} | {way} | {sizes[way]:,} | {values.mean():.2f} |"
                f" {np.percentile(values, 95):.2f} | {values.max():.2f} | {(values > 1).sum()} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
