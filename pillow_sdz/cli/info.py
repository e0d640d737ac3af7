"""`sdz info`: what is in .sdz files."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from PIL import ExifTags, Image

from ..chunks import MASK, PROVENANCE
from ..reading import Reader, TruncatedError
from .arguments import Commands, add_inputs
from .files import check_inputs, find, open_sdz, readable, sdz_files, size_of
from .messages import say, say_json
from .metadata import UPRIGHT, metadata, orientation
from .pictures import frame_count
from .reports import Report
from .running import close, each

# Longer values are cut in the text, but not in JSON. Chosen: a few lines of a terminal.
LONGEST = 300

SHOWN = {
    2: "mirrored",
    3: "turned by 180 degrees",
    4: "mirrored and turned by 180 degrees",
    5: "mirrored and turned by 90 degrees to the left",
    6: "turned by 90 degrees to the right",
    7: "mirrored and turned by 90 degrees to the right",
    8: "turned by 90 degrees to the left",
}


def add_info(commands: Commands) -> None:
    """Add `info` to the commands of `sdz`."""
    parser = commands.add_parser(
        "info",
        help="print what is in .sdz files",
        description="Print what is in .sdz files, and in all .sdz files in folders.",
    )
    add_inputs(parser, "an .sdz file")
    parser.add_argument(
        "--json", action="store_true", help="print a JSON list with one object for each file"
    )
    parser.set_defaults(run=_run, parser=parser)


def _run(options: argparse.Namespace) -> int:
    check_inputs(options)
    found = find(options.inputs, sdz_files, ".sdz files")
    summary = each(_describe, [path for path, _ in found.paths])
    if options.json:
        say_json(summary.results)
        return int(summary.failed > 0 or not found.complete)
    for number, entry in enumerate(summary.results):
        if number:
            say("")
        say(entry["file"])
        for name, value in _lines(entry):
            say(f"  {name:<12}{value}")
    return close(summary, found, several=False)


def _describe(path: Path, report: Report) -> None:
    report.result = _description(path)
    if report.result["truncated"]:
        report.warn(report.result["truncated"])
        report.failed = True


def _description(path: Path) -> dict[str, Any]:
    """What is in one file, for a program to read."""
    source = readable(path)
    size = size_of(source)
    with open_sdz(source) as image:
        frames = frame_count(image)
        image.seek(frames - 1)
        return {
            "file": str(path),
            "width": image.width,
            "height": image.height,
            "mode": image.mode,
            "orientation": orientation(image),
            "frames": frames,
            "duration": image.info.get("timestamp", 0) + image.info.get("duration", 0),
            "loop": image.info.get("loop"),
            "bytes": size,
            "bits_per_pixel": round(8 * size / (image.width * image.height * frames), 4),
            "metadata": {name: len(data) for name, data in metadata(image).items()},
            "place": _has_place(image),
            "sdz": image.info["sdz"],
            **_chunks(source),
        }


def _has_place(image: Image.Image) -> bool:
    """Whether EXIF says where the picture was taken."""
    try:
        return bool(image.getexif().get_ifd(ExifTags.IFD.GPSInfo))
    except Exception:  # Pillow raises anything for damaged EXIF
        return False


def _chunks(source: Path | IO[bytes]) -> dict[str, Any]:
    """What is only known from the chunks themselves."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            return _chunks(file)
    reader = Reader(source)
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    provenance = truncated = None
    try:
        for entry in reader:
            name = entry.type.decode("ascii")
            counts[name] += 1
            sizes[name] += entry.length
            if entry.type == PROVENANCE.type:
                provenance = PROVENANCE.parse(reader.data(entry), reader.header)
    except TruncatedError as error:
        truncated = str(error)
    return {
        "truncated": truncated,
        "weights": reader.header.digest.hex(),
        "provenance": provenance,
        "alpha_mask": MASK.type.decode("ascii") in counts,
        "chunks": [{"type": n, "count": counts[n], "bytes": sizes[n]} for n in counts],
    }


def _lines(entry: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is in one file, for a person to read: names and values."""
    sdz = entry["sdz"]
    yield "size", f"{entry['width']}x{entry['height']} {entry['mode']}"
    if entry["orientation"] != UPRIGHT:
        yield "shown", SHOWN[entry["orientation"]]
    if entry["frames"] > 1:
        yield "frames", _frames_text(entry)
    yield "bytes", f"{entry['bytes']:,} ({entry['bits_per_pixel']:.3f} bits per pixel)"
    for part, size in sdz["bytes"].items():
        if size:
            yield f"  {part}", f"{size:,}"
    if sdz["exact"]:
        yield "exact", f"{sdz['exact']:.1%} of the picture"
    for name in ("quality", "step"):
        if name in sdz:
            yield name, f"{sdz[name]:g}"
    yield "model", sdz["model"]
    yield "weights", entry["weights"]
    yield "coding", sdz["coding"]
    yield "latents", "x".join(map(str, sdz["latents"])) + f", factor {sdz['factor']}"
    if "tune" in sdz:
        yield "tune", sdz["tune"]
    if "denoise" in sdz:
        yield "denoise", "strength {strength:g}, {steps} steps".format_map(sdz["denoise"])
    if "prompt" in sdz:
        yield "prompt", _cut(" ".join(sdz["prompt"].split()))
    if entry["provenance"] is not None:
        yield "provenance", _cut(json.dumps(entry["provenance"]))
    if entry["alpha_mask"]:
        yield "alpha mask", "yes"
    yield "chunks", ", ".join(_chunk_text(**chunk) for chunk in entry["chunks"])
    if entry["metadata"]:
        parts = (f"{name} {size:,}" for name, size in entry["metadata"].items())
        place = ", with the place where it was taken" if entry["place"] else ""
        yield "metadata", ", ".join(parts) + f" bytes{place}"


def _chunk_text(type: str, count: int, bytes: int) -> str:
    return f"{type} {bytes:,}" if count == 1 else f"{count:,} {type} {bytes:,}"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... (--json prints all)"


def _frames_text(entry: dict[str, Any]) -> str:
    """How many frames there are and, in an animation, how long and how often they are shown."""
    if entry["loop"] is None:
        return f"{entry['frames']:,}"
    seconds = f"{entry['duration'] / 1000:g}"
    often = f"{entry['loop']:,} times" if entry["loop"] else "for ever"
    return f"{entry['frames']:,} in {seconds} s, {often}"
