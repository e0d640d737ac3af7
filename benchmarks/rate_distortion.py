"""Compare sdz with other codecs at equal bytes.

    python -m benchmarks.rate_distortion --images DIR --output DIR

For each photo and rate, each codec makes its best file within rate * width * height / 8 bytes. All
bytes of the file count. If a codec has no setting that is small enough, its smallest file counts,
and the table says how often. Prints a table of averages over the photos, and writes
rate_distortion.csv (one row per file) and rate_distortion.png to the output folder. The files of
one codec do not change from run to run, so ``--earlier`` takes the rows of other runs.

    python -m benchmarks.rate_distortion --table docs/quality.md --output docs

draws the plot again, from a table that was printed earlier. It encodes nothing.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_type_hints

from PIL import Image
from tqdm import tqdm

from .codecs import CODECS, Encoded
from .metrics import measure

RATES = (0.10, 0.15, 0.25, 0.40, 0.75, 1.5, 2.5)  # bits per pixel.  Chosen.
SUFFIXES = {".png", ".webp", ".ppm", ".bmp", ".tif", ".tiff"}
LABELS = {
    "sdz": "sdz",
    "sdz3": "sdz, effort 3",
    "sdz9": "sdz, effort 9",
    "jpeg": "JPEG",
    "webp": "WebP",
    "avif": "AVIF",
    "avif444": "AVIF 4:4:4",
    "jxl": "JPEG XL",
}


@dataclass(frozen=True)
class Row:
    """One file, which one codec made from one photo."""

    image: str
    codec: str
    rate: float  # bits per pixel asked for
    fits: bool
    setting: str
    bytes: int
    bpp: float  # bits per pixel of the file
    psnr: float
    ms_ssim: float
    ssimulacra2: float
    encode_ms: float  # 0 if times are not measured
    decode_ms: float


@dataclass(frozen=True)
class Point:
    """The averages of one codec at one rate. Times are medians."""

    codec: str
    rate: float
    images: int
    misses: int  # number of photos whose smallest file is over the budget
    bpp: float
    psnr: float
    ms_ssim: float
    ssimulacra2: float
    encode_ms: float
    decode_ms: float


@dataclass(frozen=True)
class Task:
    """All files that one codec makes from one photo."""

    image: Path
    codec: str
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Outcome:
    """The files of a task, and rows that lack only the times."""

    task: Task
    files: list[Encoded]
    rows: list[Row]


def evaluate(task: Task) -> Outcome:
    """Make a photo's files with one codec, decode them and measure."""
    codec = CODECS[task.codec]
    codec.missing()  # imports the plugin if this process has not done so yet
    picture = load(task.image)
    pixels = picture.width * picture.height
    files = codec.fit(picture, [int(rate * pixels / 8) for rate in task.rates])
    rows = []
    for rate, file in zip(task.rates, files, strict=True):
        fidelity = measure(picture, codec.decode(file.data))
        rows.append(
            Row(
                image=task.image.name,
                codec=task.codec,
                rate=rate,
                fits=file.fits,
                setting=" ".join(f"{k}={v}" for k, v in file.options.items()),
                bytes=len(file.data),
                bpp=8 * len(file.data) / pixels,
                psnr=fidelity.psnr,
                ms_ssim=fidelity.ms_ssim,
                ssimulacra2=fidelity.ssimulacra2,
                encode_ms=0.0,
                decode_ms=0.0,
            )
        )
    return Outcome(task, files, rows)


def timed(outcome: Outcome, repeats: int) -> list[Row]:
    """Add encode and decode times to the rows. Each is the median of ``repeats`` runs."""
    codec = CODECS[outcome.task.codec]
    picture = load(outcome.task.image)
    rows = []
    for file, row in zip(outcome.files, outcome.rows, strict=True):
        encode, decode = [], []
        for _ in range(repeats):
            start = time.perf_counter()
            codec.encode(picture, file.options)
            middle = time.perf_counter()
            codec.decode(file.data)
            decode.append(time.perf_counter() - middle)
            encode.append(middle - start)
        times = {
            "encode_ms": 1000 * statistics.median(encode),
            "decode_ms": 1000 * statistics.median(decode),
        }
        rows.append(Row(**{**vars(row), **times}))
    return rows


def photos_in(folder: Path, limit: int | None = None) -> list[Path]:
    """The lossless photos of a folder in the order of their names.

    With ``limit``, only this many, evenly spread. FileNotFoundError if there are none.
    """
    paths = []
    if folder.is_dir():
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not paths:
        msg = f"no photos in {folder}"
        raise FileNotFoundError(msg)
    count = min(limit or len(paths), len(paths))
    return [paths[i * len(paths) // count] for i in range(count)]


def load(path: Path) -> Image.Image:
    """A photo in RGB without its metadata, so that no codec has to store it."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    picture.info.clear()
    return picture


def averages(rows: Iterable[Row]) -> list[Point]:
    """One point for each codec and rate. Codecs keep the order in which they first appear."""
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.codec, row.rate), []).append(row)
    order = list(dict.fromkeys(codec for codec, _ in groups))
    return [
        Point(
            codec=codec,
            rate=rate,
            images=len(group),
            misses=sum(not row.fits for row in group),
            bpp=statistics.fmean(row.bpp for row in group),
            psnr=statistics.fmean(row.psnr for row in group),
            ms_ssim=statistics.fmean(row.ms_ssim for row in group),
            ssimulacra2=statistics.fmean(row.ssimulacra2 for row in group),
            encode_ms=statistics.median(row.encode_ms for row in group),
            decode_ms=statistics.median(row.decode_ms for row in group),
        )
        for (codec, rate), group in sorted(
            groups.items(), key=lambda item: (item[0][1], order.index(item[0][0]))
        )
    ]


def table(points: Sequence[Point]) -> str:
    """The points as a Markdown table. It has times if they were measured."""
    timed = any(p.encode_ms for p in points)
    columns = ["bpp asked", "codec", "bpp", "PSNR dB", "MS-SSIM", "SSIMULACRA2"]
    columns += ["encode ms", "decode ms"] if timed else []
    columns.append("over budget")
    lines = [f"| {' | '.join(columns)} |", "|--:|---" + "|--:" * (len(columns) - 2) + "|"]
    for p in points:
        cells = [f"{p.rate:.2f}", LABELS[p.codec], f"{p.bpp:.3f}", f"{p.psnr:.2f}"]
        cells += [f"{p.ms_ssim:.4f}", f"{p.ssimulacra2:.1f}"]
        cells += [f"{p.encode_ms:.0f}", f"{p.decode_ms:.0f}"] if timed else []
        cells.append(f"{p.misses} of {p.images}" if p.misses else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def read_table(page: str) -> list[Point]:
    """The points of the first table in a page that `table` has printed without times.

    ValueError if there is none. How many photos there were is not read: it is 0.
    """
    lines = iter(page.splitlines())
    if not any(line.startswith("| bpp asked | codec | bpp |") for line in lines):
        msg = "no table of rates and codecs in this page"
        raise ValueError(msg)
    next(lines)  # the line below the names of the columns
    codecs = {label: codec for codec, label in LABELS.items()}
    points = []
    for line in itertools.takewhile(lambda line: line.startswith("|"), lines):
        cells = [cell.strip() for cell in line.split("|")]
        rate, bpp, psnr, ms_ssim, ssimulacra2 = map(float, (cells[1], *cells[3:7]))
        points.append(
            Point(codecs[cells[2]], rate, 0, 0, bpp, psnr, ms_ssim, ssimulacra2, 0.0, 0.0)
        )
    return points


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write one line per file, after a line with the names."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = [field.name for field in fields(Row)]
        writer.writerow(names)
        for row in rows:
            values = [getattr(row, name) for name in names]
            writer.writerow([f"{v:.5f}" if isinstance(v, float) else v for v in values])


def read_csv(path: Path) -> list[Row]:
    """The rows that `write_csv` has written."""
    types = get_type_hints(Row) | {"fits": "True".__eq__}
    with path.open(newline="", encoding="utf-8") as file:
        return [Row(**{k: types[k](v) for k, v in row.items()}) for row in csv.DictReader(file)]


def plot(points: Sequence[Point], path: Path) -> None:
    """Draw three panels: each metric over the bits per pixel that the files really have."""
    import matplotlib

    matplotlib.use("Agg")  # opens no window, so it also works without a display
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
    metrics = (("psnr", "PSNR (dB)"), ("ms_ssim", "MS-SSIM"), ("ssimulacra2", "SSIMULACRA2"))
    for panel, (name, label) in zip(panels, metrics, strict=True):
        for codec in dict.fromkeys(p.codec for p in points):
            curve = sorted((p.bpp, getattr(p, name)) for p in points if p.codec == codec)
            panel.plot(*zip(*curve, strict=True), marker="o", label=LABELS[codec])
        panel.set_xlabel("bits per pixel")
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def usable(names: Iterable[str]) -> list[str]:
    """The codecs that work here. For each other codec, stderr says why not."""
    result = []
    for name in names:
        reason = CODECS[name].missing()
        if reason is None:
            result.append(name)
        else:
            print(f"{name} is left out: {reason}", file=sys.stderr)
    return result


def run(
    images: Sequence[Path], codecs: Sequence[str], rates: Sequence[float], jobs: int, repeats: int
) -> list[Row]:
    """Run every codec on every photo at every rate. Measure times last, one by one."""
    tasks = [Task(image, codec, tuple(rates)) for image in images for codec in codecs]
    quiet = not sys.stderr.isatty()
    if jobs == 1:
        outcomes = [evaluate(t) for t in tqdm(tasks, "files and metrics", disable=quiet)]
    else:
        # Processes are spawned because torch's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with context.Pool(jobs, initializer=_single_threaded) as pool:
            work = pool.imap(evaluate, tasks)
            outcomes = list(tqdm(work, "files and metrics", len(tasks), disable=quiet))
    if not repeats:
        return [row for outcome in outcomes for row in outcome.rows]
    for codec in codecs:  # the first call loads the model; it is not timed
        first = next(outcome for outcome in outcomes if outcome.task.codec == codec)
        timed(first, 1)
    return [
        row for outcome in tqdm(outcomes, "times", disable=quiet) for row in timed(outcome, repeats)
    ]


def _single_threaded() -> None:
    # torch reads this when it is first imported. A worker does so at its first .sdz file.
    os.environ["OMP_NUM_THREADS"] = "1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rate_distortion",
        description="Compare sdz with other codecs at equal bytes.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, help="a folder of lossless photos")
    source.add_argument(
        "--table", type=Path, metavar="PAGE", help="only draw the plot of the table in this page"
    )
    parser.add_argument(
        "--rates",
        type=float,
        nargs="+",
        default=RATES,
        help="bits per pixel (default: %(default)s)",
    )
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS))
    parser.add_argument(
        "--output", type=Path, default=Path("."), help="folder for the CSV file and the plot"
    )
    parser.add_argument("--limit", type=int, help="use only this many photos, evenly spread")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument(
        "--repeats",
        type=int,
        default=1,
        help="runs of each file to measure times; the table has medians over the photos;"
        " 0: no times",
    )
    parser.add_argument(
        "--earlier",
        type=Path,
        nargs="+",
        default=[],
        metavar="CSV",
        help="rows of earlier runs, for the table, the plot and the new CSV file",
    )
    options = parser.parse_args(arguments)
    for name, least in (("jobs", 1), ("repeats", 0), ("limit", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"--{name} must be at least {least}")

    options.output.mkdir(parents=True, exist_ok=True)
    figure = options.output / "rate_distortion.png"
    try:
        if options.table:
            plot(read_table(options.table.read_text(encoding="utf-8")), figure)
            return 0
        images = photos_in(options.images, options.limit)
    except (FileNotFoundError, ValueError) as e:
        parser.error(str(e))
    codecs = usable(options.codecs)
    if not codecs:
        return 1

    rows = run(images, codecs, options.rates, options.jobs, options.repeats)
    rows += [row for path in options.earlier for row in read_csv(path)]
    points = averages(rows)
    print(table(points))
    write_csv(rows, options.output / "rate_distortion.csv")
    plot(points, figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
