"""`sdz info`: what is in .sdz files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .arguments import Commands, add_inputs
from .files import files_below, open_sdz, sdz_files
from .metadata import metadata
from .running import each


def add_info(commands: Commands) -> None:
    """Add `info` to the commands of `sdz`."""
    parser = commands.add_parser(
        "info",
        help="print what is in .sdz files",
        description="Print what is in .sdz files, and in all .sdz files in folders.",
    )
    add_inputs(parser)
    parser.add_argument(
        "--json", action="store_true", help="print a JSON list with one object for each file"
    )
    parser.set_defaults(run=_run_info)


def _run_info(options: argparse.Namespace) -> int:
    described: list[dict[str, Any]] = []

    def describe(path: Path) -> None:
        described.append(_description(path))

    paths: list[Path] = []
    for path in options.inputs:
        paths += sdz_files(files_below(path)) if path.is_dir() else [path]
    complete = each(paths, describe, lambda path: path)
    if options.json:
        print(json.dumps(described, indent=2))
    elif described:
        print("\n\n".join(_text(entry) for entry in described))
    return int(not complete)


def _description(path: Path) -> dict[str, Any]:
    """What is in one file, for a program to read."""
    with open_sdz(path) as image:
        size = path.stat().st_size
        frames = getattr(image, "n_frames", 1)
        image.seek(frames - 1)
        return {
            "file": str(path),
            "width": image.width,
            "height": image.height,
            "mode": image.mode,
            "frames": frames,
            "duration": image.info.get("timestamp", 0) + image.info.get("duration", 0),
            "loop": image.info.get("loop"),
            "bytes": size,
            "bits_per_pixel": round(8 * size / (image.width * image.height * frames), 4),
            "metadata": {name: len(data) for name, data in metadata(image).items()},
            "sdz": image.info["sdz"],
        }


def _text(entry: dict[str, Any]) -> str:
    """What is in one file, for a person to read."""
    sdz = entry["sdz"]
    lines = [
        ("size", f"{entry['width']}x{entry['height']} {entry['mode']}"),
        *([("frames", _frames_text(entry))] if entry["frames"] > 1 else []),
        ("bytes", f"{entry['bytes']:,} ({entry['bits_per_pixel']:.3f} bits per pixel)"),
        *((f"  {part}", f"{size:,}") for part, size in sdz["bytes"].items() if size),
        *((name, f"{sdz[name]:g}") for name in ("quality", "step") if name in sdz),
        ("model", sdz["model"]),
        ("coding", sdz["coding"]),
        ("latents", "x".join(map(str, sdz["latents"])) + f", factor {sdz['factor']}"),
    ]
    if "prompt" in sdz:
        # Nothing that a terminal takes for a command may reach it.
        text = "".join(c if c.isprintable() else " " for c in sdz["prompt"])
        lines.append(("prompt", " ".join(text.split())))
    if entry["metadata"]:
        parts = (f"{name} {size:,}" for name, size in entry["metadata"].items())
        lines.append(("metadata", ", ".join(parts) + " bytes"))
    return "\n".join([entry["file"], *(f"  {name:<12}{value}" for name, value in lines)])


def _frames_text(entry: dict[str, Any]) -> str:
    """How many frames there are and, in an animation, how long and how often they are shown."""
    if entry["loop"] is None:
        return f"{entry['frames']:,}"
    seconds = f"{entry['duration'] / 1000:g}"
    often = f"{entry['loop']:,} times" if entry["loop"] else "for ever"
    return f"{entry['frames']:,} in {seconds} s, {often}"
