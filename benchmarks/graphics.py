"""Graphics, compared with lossless WebP and AVIF: bytes, SSIMULACRA2, words for OCR, QR codes.

    python -m benchmarks.graphics [--set judging] [--photos DIR] [--quality 75 30] [--sheet FILE]

It makes its graphics itself (benchmarks.drawings), or takes those in --graphics DIR. AVIF (speed 6)
gets the bytes of the `.sdz` file. If tesseract is installed, it reads the words. A word counts if
tesseract also finds it in the original. If zxing-cpp is installed, it reads the QR codes.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import re
import shutil
import statistics
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageOps

import pillow_sdz  # noqa: F401  # registers the format SDZ
from benchmarks.codecs import Codec
from benchmarks.drawings import VARIANTS, Drawing, drawings
from benchmarks.metrics import ssimulacra2
from pillow_sdz import demo

AVIF = Codec("avif", "AVIF", {"speed": 6}, tuple(range(101)), lambda: None)


class Result(NamedTuple):
    """A codec's file of a graphic."""

    bytes: int
    ssimulacra2: float
    words: float | None  # the share of the original's words that OCR finds again
    scans: bool | None  # whether the QR code is read


class Row(NamedTuple):
    name: str
    kind: str
    lossless: int  # bytes of lossless WebP
    exact: float  # the share of pixels that are exact
    seconds: tuple[float, float]  # to encode, to decode
    sdz: Result
    avif: Result
    avif_fits: bool


def words_in(picture: Image.Image) -> list[str] | None:
    """The words that tesseract reads; None if it is not installed."""
    if shutil.which("tesseract") is None:
        return None
    file = io.BytesIO()
    # Letters of 10 pixels are too small for tesseract, which was trained on 300 dots an inch.
    picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.BICUBIC).save(
        file, "PPM"
    )
    run = subprocess.run(
        ["tesseract", "-", "-", "--psm", "6"],
        input=file.getvalue(),
        capture_output=True,
        env={**os.environ, "OMP_THREAD_LIMIT": "1"},  # its threads wait for each other in a loop
    )
    return re.findall(r"[a-z]{4,}", run.stdout.decode(errors="replace").lower())


def message_in(picture: Image.Image) -> str | None:
    """The text of a QR code, '' if it cannot be read; None if zxing-cpp is not installed."""
    if importlib.util.find_spec("zxingcpp") is None:
        return None
    import zxingcpp

    found = zxingcpp.read_barcodes(picture)
    return found[0].text if found else ""


def found_again(read: list[str] | None, known: list[str]) -> float | None:
    """The share of the known words that were read. A word counts as often as it is there."""
    if read is None or not known:
        return None
    return (Counter(read) & Counter(known)).total() / len(known)


def judged(drawing: Drawing, data: bytes, shown: Image.Image, known: list[str]) -> Result:
    """Judge a file of a drawing."""
    words = found_again(words_in(shown), known) if known else None
    scans = None
    if drawing.message and (message := message_in(shown)) is not None:
        scans = message == drawing.message
    return Result(len(data), ssimulacra2(drawing.picture, shown), words, scans)


def compared(drawing: Drawing, quality: float) -> Row:
    """An `.sdz` file of a drawing, and AVIF in the same bytes."""
    picture = drawing.picture
    webp, sdz = io.BytesIO(), io.BytesIO()
    picture.save(webp, "WEBP", lossless=True)
    started = time.process_time()
    picture.save(sdz, "SDZ", quality=quality)
    encoded = time.process_time()
    with Image.open(sdz) as opened:
        shown, exact = opened.convert("RGB"), opened.info["sdz"]["exact"]
    seconds = encoded - started, time.process_time() - encoded
    (fitted,) = AVIF.fit(picture, [sdz.tell()])
    read = words_in(picture) if drawing.words else None
    known = sorted((Counter(read or []) & Counter(drawing.words)).elements())
    return Row(
        drawing.name,
        drawing.kind,
        webp.tell(),
        exact,
        seconds,
        judged(drawing, sdz.getvalue(), shown, known),
        judged(drawing, fitted.data, AVIF.decode(fitted.data), known),
        fitted.fits,
    )


def sheet(given: list[Drawing], quality: float) -> Image.Image:
    """A contact sheet: cuttings of the originals, of `.sdz`, and of AVIF in the same bytes."""
    side = 200
    whole = Image.new("RGB", (3 * side + 4, len(given) * (side + 16)), (255, 255, 255))
    draw = ImageDraw.Draw(whole)
    for number, drawing in enumerate(given):
        file = io.BytesIO()
        drawing.picture.save(file, "SDZ", quality=quality)
        (avif,) = AVIF.fit(drawing.picture, [file.tell()])
        with Image.open(file) as opened:
            shown = [drawing.picture, opened.convert("RGB"), AVIF.decode(avif.data)]
        width, height = drawing.picture.size
        left, top = max(0, width * 2 // 3 - side // 2), max(0, height // 3 - side // 2)
        for column, picture in enumerate(shown):
            at = column * (side + 2), number * (side + 16) + 14
            whole.paste(picture.crop((left, top, left + side, top + side)), at)
        about = f"{drawing.name}: original | .sdz, {file.tell():,} bytes | AVIF, {len(avif.data):,}"
        draw.text((2, number * (side + 16) + 1), about, (0, 0, 0))
    return whole


HEAD = (
    "| graphic | lossless WebP | sdz | exact | SSIMULACRA2 | words | AVIF | SSIMULACRA2 | words |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def line(row: Row) -> str:
    """A line of the table."""

    def words(result: Result) -> str:
        if result.scans is not None:
            return "scans" if result.scans else "does not scan"
        return "" if result.words is None else f"{result.words:.2f}"

    sdz, avif = row.sdz, row.avif
    too_large = "" if row.avif_fits else " (its smallest)"
    return (
        f"| {row.name} | {row.lossless:,} | {sdz.bytes:,} | {row.exact:.2f} |"
        f" {sdz.ssimulacra2:.1f} | {words(sdz)} | {avif.bytes:,}{too_large} |"
        f" {avif.ssimulacra2:.1f} | {words(avif)} |"
    )


def means(rows: list[Row]) -> str:
    """The means of both codecs."""
    lines = []
    for of in ("sdz", "avif"):
        results: list[Result] = [getattr(row, of) for row in rows]
        read = [r.words for r in results if r.words is not None]
        scans = [r.scans for r in results if r.scans is not None]
        lines.append(
            f"{of}: SSIMULACRA2 {statistics.fmean(r.ssimulacra2 for r in results):.2f}"
            + (f", words {statistics.fmean(read):.3f}" if read else "")
            + (f", QR codes {sum(scans)} of {len(scans)}" if scans else "")
        )
    encode, decode = (statistics.fmean(row.seconds[n] for row in rows) for n in (0, 1))
    lines.append(f"seconds of a core: {encode:.2f} to encode, {decode:.3f} to decode")
    return "\n".join(lines)


def _demos() -> list[Image.Image]:
    """The demo's photo, and what is no copy of it: AVIF codes a second copy in few bytes."""
    photo = demo.photo()
    return [photo, ImageOps.mirror(photo), ImageOps.flip(photo), ImageOps.invert(photo)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.graphics", description=__doc__)
    parser.add_argument("--set", choices=("judging", "tuning"), default="judging")
    parser.add_argument("--graphics", type=Path, help="a folder of PNG files instead")
    parser.add_argument("--photos", type=Path, help="photos for screenshots, instead of the demo's")
    parser.add_argument(
        "--variants", type=int, default=VARIANTS, help="the most graphics of each kind"
    )
    parser.add_argument("--kinds", nargs="*", help="only these kinds")
    parser.add_argument("--quality", type=float, nargs="*", default=[75, 30])
    parser.add_argument("--sheet", type=Path, help="write a contact sheet, and nothing else")
    options = parser.parse_args()
    if options.graphics:
        paths = sorted(options.graphics.glob("*.png"))
        given = [Drawing(p.stem, "file", Image.open(p).convert("RGB")) for p in paths]
    else:
        paths = sorted(options.photos.iterdir()) if options.photos else []
        photos = [Image.open(path).convert("RGB") for path in paths[:6]] or _demos()
        given = drawings(options.set, photos)
        given = [drawing for drawing in given if int(drawing.name[-1]) < options.variants]
    if options.kinds:
        given = [drawing for drawing in given if drawing.kind in options.kinds]
    for quality in options.quality:
        if options.sheet:
            sheet(given, quality).save(options.sheet, lossless=True)
            return
        print(f"quality {quality:g}\n\n{HEAD}")
        rows = []
        for drawing in given:
            rows.append(compared(drawing, quality))
            print(line(rows[-1]), flush=True)
        print(f"\n{means(rows)}\n")


if __name__ == "__main__":
    main()
