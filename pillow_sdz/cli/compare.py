"""`sdz compare`: pictures as .sdz, JPEG, WebP and AVIF in the same number of bytes."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import catalogue
from ..atomic import replacing
from .arguments import Commands, add_coding, add_inputs, add_jobs, add_size, given, path, refuse
from .files import check_inputs, find, readable
from .messages import complain, reason, say, say_json
from .metadata import upright_alone
from .pictures import is_picture, needs_scaling, open_picture, scaled, warn_of_frames
from .reports import Report
from .running import close, each
from .targets import lost_link


def add_compare(commands: Commands) -> None:
    """Add `compare` to the commands of `sdz`."""
    parser = commands.add_parser(
        "compare",
        help="compare .sdz with JPEG, WebP and AVIF of the same size",
        description="Encode pictures as .sdz and, in the same number of bytes, as JPEG, WebP and"
        " AVIF. Print how close each is to the original. With --report, also write a web page that"
        " shows them.",
    )
    add_inputs(parser, "a picture")
    parser.add_argument(
        "--report",
        type=path,
        metavar="FILE.html",
        help="write a web page that contains all pictures, and replace a page of that name; it"
        " takes 5 to 8 bytes for each pixel of an original",
    )
    parser.add_argument(
        "-f", "--force", action="store_true", help="write the page through a symbolic link"
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON list with one object for each picture"
    )
    add_size(parser)
    parser.add_argument(
        "--model",
        metavar="NAME",
        help=f"the model that encodes the .sdz files; default: {catalogue.DEFAULT.name}",
    )
    add_coding(parser)
    add_jobs(parser)
    parser.set_defaults(run=_run, parser=parser)


def _run(options: argparse.Namespace) -> int:
    check_inputs(options)
    page: Path | None = options.report
    if page is not None:
        _check_page(options, page)
    found = find(options.inputs, lambda paths: [*filter(is_picture, paths)], "pictures")
    paths = [path for path, _ in found.paths]
    names = ("quality", "target_size", "model", "coding", "effort", "tune")
    comparer = Comparer(
        given(options, *names), with_text=not options.json, with_section=page is not None
    )
    summary = each(comparer, paths, jobs=options.jobs)
    complete = True
    if options.json:
        say_json([figures for figures, _ in summary.results])
    sections = [section for _, section in summary.results]
    if page is not None and sections:
        complete = _write_page(page, sections)
        if complete and not options.json:
            say(str(page))
    if options.json:
        return int(summary.failed > 0 or not (complete and found.complete))
    return close(summary, found, several=False) or int(not complete)


def _check_page(options: argparse.Namespace, page: Path) -> None:
    """End the program if the page may not be written."""
    if page.suffix.lower() not in (".html", ".htm"):
        # This protects pictures whose name is given by mistake.
        refuse(options, f"--report {page}: the name of a page ends in .html")
    if page.is_symlink() and not options.force:
        refuse(options, f"--report {page} is a symbolic link (--force writes through it)")
    if (lost := lost_link(page)) is not None and not options.force:
        refuse(options, f"--report {page}: {lost} is a symbolic link to nothing")


@dataclass(frozen=True)
class Comparer:
    """Compares one picture; the result is its figures and its section of the page."""

    save_options: dict[str, Any]
    with_text: bool
    with_section: bool

    def __call__(self, path: Path, report: Report) -> None:
        from .. import compare  # here, because it imports numpy, which other commands do not need

        with open_picture(readable(path)) as image:
            warn_of_frames(image, report)
            deep = needs_scaling(image, report)
            image.load()
            picture = upright_alone(scaled(image) if deep else image)
            comparison = compare.compare(picture, str(path), **self.save_options)
        section = compare.section(comparison) if self.with_section else ""
        report.result = comparison.figures(), section
        if self.with_text:
            report.say(f"{path}: {comparison.heading()}")
            for line in comparison.table().splitlines():
                report.say(line)
            report.say("")


def _write_page(page: Path, sections: list[str]) -> bool:
    from .. import compare

    try:
        Path(os.path.realpath(page)).parent.mkdir(parents=True, exist_ok=True)
        with replacing(page) as file:
            file.write(compare.report(sections).encode())
    except OSError as error:
        complain(page, reason(error, page))
        return False
    return True
