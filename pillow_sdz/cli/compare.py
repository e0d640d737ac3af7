"""`sdz compare`: pictures as .sdz, JPEG, WebP and AVIF in the same number of bytes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image

from ..atomic import replacing
from .arguments import Commands, add_coding, add_size, given, refuse
from .messages import complain, complain_of_frames, reason
from .running import each


def add_compare(commands: Commands) -> None:
    """Add `compare` to the commands of `sdz`."""
    parser = commands.add_parser(
        "compare",
        help="compare .sdz with JPEG, WebP and AVIF of the same size",
        description="Encode pictures as .sdz and, in the same number of bytes, as JPEG, WebP and"
        " AVIF. Print how close each is to the original. With --report, also write a web page that"
        " shows them.",
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="IMAGE", help="a picture")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE.html",
        help="write a web page with all pictures in it, 5 to 8 bytes for each pixel of an"
        " original; a page of that name is replaced",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON list with one object for each picture"
    )
    add_size(parser)
    parser.add_argument(
        "--model", metavar="NAME", help="the model that encodes the .sdz files; default: mini"
    )
    add_coding(parser)
    parser.set_defaults(run=_run_compare, parser=parser)


def _run_compare(options: argparse.Namespace) -> int:
    from .. import compare  # takes numpy, for which the other commands need not wait

    page: Path | None = options.report
    if page is not None and page.suffix.lower() not in (".html", ".htm"):
        # So no picture is replaced, even if its name is given by mistake.
        refuse(options, f"--report {page}: the name of a page ends in .html")
    names = ("quality", "target_size", "model", "coding", "effort", "tune")
    save_options = given(options, *names)
    figures: list[dict[str, Any]] = []
    sections: list[str] = []

    def compare_one(path: Path) -> None:
        with Image.open(path) as image:
            complain_of_frames(path, image)
            comparison = compare.compare(image, str(path), **save_options)
        if page is not None:
            sections.append(compare.section(comparison))
        figures.append(comparison.figures())
        if not options.json:
            print(f"{path}: {comparison.heading()}\n{comparison.table()}\n")

    complete = each(options.inputs, compare_one, lambda path: path)
    if options.json:
        print(json.dumps(figures, indent=2))
    if page is not None and sections:
        try:
            page.parent.mkdir(parents=True, exist_ok=True)
            with replacing(page) as file:
                file.write(compare.report(sections).encode())
        except OSError as error:
            complain(page, reason(error, page))
            return 1
        if not options.json:
            print(page)
    return int(not complete)
