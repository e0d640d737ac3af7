"""How real pictures look at few bits: mini's two decoders and other codecs at equal bytes.

    python -m benchmarks.perception --images DIR --output DIR
    python -m benchmarks.perception --images DIR --sheet FILE.webp

For each photo and rate, each codec makes its best file within rate * width * height / 8 bytes. sdz
makes two: with ``tune="psnr"`` and with ``tune="perceptual"``. Prints a table of averages, and
writes perception.csv (one row per picture) to the output folder. With --sheet, it shows parts of
the pictures side by side instead.

Butteraugli (its 3-norm) is measured if `butteraugli_main` is installed. This is libjxl's tool
(Debian: libjxl-devtools). The feature distance is ST-LPIPS. No model here was trained with it.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from benchmarks.codecs import CODECS, Codec
from benchmarks.metrics import BUTTERAUGLI, butteraugli, measure
from benchmarks.rate_distortion import load, photos_in
from evaluation import feature_distance

RATES = (0.05, 0.10, 0.15, 0.25)  # bits per pixel at which decoders invent texture
CODERS: dict[str, Codec] = {
    "sdz, psnr": replace(CODECS["sdz"], options={"tune": "psnr"}),
    "sdz, perceptual": replace(CODECS["sdz"], options={"tune": "perceptual"}),
    "JPEG": CODECS["jpeg"],
    "WebP": CODECS["webp"],
    "AVIF": CODECS["avif"],
}

SHEET_RATE = 0.10
SHEET_PHOTOS = 6
SHEET_CODECS = ("sdz, psnr", "sdz, perceptual", "WebP", "AVIF")
CROP = 224  # pixels along a side; five crops fill the width of a page at 1:1
MARGIN, LABEL = 6, 22


@dataclass(frozen=True)
class Row:
    """One decoded picture. A metric is None if it is not available here."""

    image: str
    codec: str
    rate: float  # bits per pixel asked for
    fits: bool
    bpp: float  # of the file
    psnr: float
    ms_ssim: float
    ssimulacra2: float
    butteraugli: float | None  # less is better, also in the next one
    feature_distance: float | None


class Decoded(NamedTuple):
    """A picture after a codec has coded and decoded it."""

    codec: str
    rate: float
    bpp: float
    fits: bool
    picture: Image.Image


def decoded(original: Image.Image, rates: Sequence[float]) -> Iterator[Decoded]:
    """Code a photo with every codec at every rate."""
    pixels = original.width * original.height
    budgets = [int(rate * pixels / 8) for rate in rates]
    for label, codec in CODERS.items():
        for rate, file in zip(rates, codec.fit(original, budgets), strict=True):
            bpp = 8 * len(file.data) / pixels
            yield Decoded(label, rate, bpp, file.fits, codec.decode(file.data))


def rows(path: Path, rates: Sequence[float]) -> Iterator[Row]:
    """One photo with every codec at every rate."""
    original = load(path)
    for codec, rate, bpp, fits, picture in decoded(original, rates):
        fidelity = measure(original, picture)
        distance = None
        if feature_distance.missing() is None:
            distance = feature_distance.feature_distance(original, picture)
        yield Row(
            image=path.name,
            codec=codec,
            rate=rate,
            fits=fits,
            bpp=bpp,
            psnr=fidelity.psnr,
            ms_ssim=fidelity.ms_ssim,
            ssimulacra2=fidelity.ssimulacra2,
            butteraugli=butteraugli(original, picture) if shutil.which(BUTTERAUGLI) else None,
            feature_distance=distance,
        )


def table(found: Sequence[Row]) -> str:
    """A Markdown table of the averages over the photos."""
    lines = [
        "| bpp asked | codec | bpp | PSNR dB | MS-SSIM | SSIMULACRA2 | Butteraugli |"
        " feature distance | over budget |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    columns = {"bpp": ".3f", "psnr": ".2f", "ms_ssim": ".4f", "ssimulacra2": ".1f"}
    columns |= {"butteraugli": ".2f", "feature_distance": ".3f"}
    for rate, codec in sorted(
        dict.fromkeys((row.rate, row.codec) for row in found), key=lambda key: key[0]
    ):
        group = [row for row in found if (row.rate, row.codec) == (rate, codec)]
        cells = []
        for name, form in columns.items():
            values = [getattr(row, name) for row in group]
            cells.append("" if None in values else format(statistics.fmean(values), form))
        misses = sum(not row.fits for row in group)
        over = f"{misses} of {len(group)}" if misses else ""
        lines.append(f"| {rate:.2f} | {codec} | {' | '.join(cells)} | {over} |")
    return "\n".join(lines)


def write_csv(found: Sequence[Row], path: Path) -> None:
    """Write one line per picture, after a line with the names."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(
            file, [field.name for field in dataclasses.fields(Row)], lineterminator="\n"
        )
        writer.writeheader()
        for row in found:
            values = dataclasses.asdict(row)
            writer.writerow(
                {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}
            )


def sheet(crops: Sequence[tuple[Path, tuple[int, int]]], rates: Sequence[float]) -> Image.Image:
    """A row for each photo and rate: a part of the original at 1:1, and then from SHEET_CODECS.

    ``crops`` says which photos, and the left and upper edge of each part.
    """
    lines = [(*crop, rate) for crop in crops for rate in rates]
    width, height = CROP + MARGIN, CROP + LABEL
    columns = len(SHEET_CODECS) + 1
    result = Image.new("RGB", (columns * width + MARGIN, len(lines) * height + MARGIN), "white")
    draw = ImageDraw.Draw(result)
    font = ImageFont.load_default(size=14)
    for line, (path, (left, top), rate) in enumerate(tqdm(lines, "sheet", disable=None)):
        original = load(path)
        pictures = {d.codec: d for d in decoded(original, [rate])}
        shown = [(f"original, {path.stem}", original)]
        shown += [
            (f"{codec}, {pictures[codec].bpp:.3f} bpp", pictures[codec].picture)
            for codec in SHEET_CODECS
        ]
        for column, (label, picture) in enumerate(shown):
            x, y = MARGIN + column * width, line * height
            draw.text((x, y + LABEL / 2), label, fill="black", font=font, anchor="lm")
            result.paste(picture.crop((left, top, left + CROP, top + CROP)), (x, y + LABEL))
    return result


def _crop(text: str) -> tuple[str, tuple[int, int]]:
    name, _, position = text.partition(":")
    left, _, top = position.partition(",")
    return name, (int(left), int(top))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.perception",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=Path, required=True, help="a folder of lossless photos")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="bits per pixel")
    parser.add_argument("--limit", type=int, help="use only this many photos, evenly spread")
    parser.add_argument("--output", type=Path, default=Path("."), help="folder for the CSV file")
    parser.add_argument("--sheet", type=Path, help="make a sheet of crops at 1:1 instead")
    parser.add_argument(
        "--sheet-rates", type=float, nargs="+", default=[SHEET_RATE], help="bits per pixel"
    )
    parser.add_argument(
        "--crops",
        type=_crop,
        nargs="+",
        metavar="PHOTO:LEFT,TOP",
        help=f"what the sheet shows (default: the middle of {SHEET_PHOTOS} photos)",
    )
    options = parser.parse_args(arguments)
    try:
        chosen = photos_in(options.images, SHEET_PHOTOS if options.sheet else options.limit)
    except FileNotFoundError as e:
        parser.error(str(e))

    if options.sheet:
        if options.crops:
            crops = [(options.images / name, corner) for name, corner in options.crops]
        else:
            crops = [(path, _middle(path)) for path in chosen]
        sheet(crops, options.sheet_rates).save(options.sheet, quality=90, method=6)
        return 0
    if not shutil.which(BUTTERAUGLI):
        print(f"Butteraugli is left out because there is no {BUTTERAUGLI}", file=sys.stderr)
    if reason := feature_distance.missing():
        print(f"the feature distance is left out: {reason}", file=sys.stderr)
    found = [row for path in tqdm(chosen, disable=None) for row in rows(path, options.rates)]
    print(table(found))
    options.output.mkdir(parents=True, exist_ok=True)
    write_csv(found, options.output / "perception.csv")
    return 0


def _middle(path: Path) -> tuple[int, int]:
    width, height = load(path).size
    return (width - CROP) // 2, (height - CROP) // 2


if __name__ == "__main__":
    sys.exit(main())
