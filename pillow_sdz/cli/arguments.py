"""Arguments that several commands take, and the types that turn their text into values."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from .. import chunks, spaces

# The argument for standard input or output. A file of this name has to be given as ./-.
STREAM = Path("-")

# The most processes that a user may ask for. Chosen: no machine has so many cores.
MOST_JOBS = 1000

# Factors of the units of sizes, decimal and (IEC 80000-13) binary.
UNITS = {"": 1, "k": 1000, "m": 1000**2, "ki": 1024, "mi": 1024**2}


class Commands(Protocol):
    """What argparse's ``add_subparsers`` returns; its class has no public name."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser:
        """Add a command and return its parser."""


@dataclass(frozen=True)
class Output:
    """What follows -o: a path, and whether it ends in a slash, as only folders do."""

    path: Path
    is_folder: bool

    def __str__(self) -> str:
        return str(self.path)


def path(text: str) -> Path:
    """A path; ``-`` alone is `STREAM`."""
    if not text:  # which pathlib takes for the current folder
        msg = "it is empty"
        raise argparse.ArgumentTypeError(msg)
    given = Path(text)
    return given.absolute() if given == STREAM and text != "-" else given


def output(text: str) -> Output:
    """What follows -o."""
    return Output(path(text), text.endswith(("/", os.sep)))


def byte_count(text: str) -> int:
    """A size as people write it, in bytes: 5000, 5k, 5kB, 4KiB, 1.5MB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?((?:[km]i?)?)b?", text.strip(), re.IGNORECASE)
    size = round(float(match[1]) * UNITS[match[2].lower()]) if match else 0
    if size < 1:
        msg = f"{text!r} is not a size in bytes (write 5000, 5kB or 4KiB)"
        raise argparse.ArgumentTypeError(msg)
    return size


def pixels(text: str) -> tuple[int, int]:
    """A picture's width and height: 1024x768."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text.strip())
    if match is None:
        msg = f"{text!r} is not a size in pixels (write 1024x768)"
        raise argparse.ArgumentTypeError(msg)
    return int(match[1]), int(match[2])


def integer(low: int, high: int) -> Callable[[str], int]:
    """A type for whole numbers in a range, both ends included."""

    def parse(text: str) -> int:
        # Longer numbers are in none of the ranges, and int() raises for thousands of digits.
        if not text.isdecimal() or len(text) > 9 or not low <= int(text) <= high:
            msg = f"{text!r} is not a whole number from {low} to {high}"
            raise argparse.ArgumentTypeError(msg)
        return int(text)

    return parse


def number(low: float, high: float) -> Callable[[str], float]:
    """A type for numbers in a range, both ends included."""

    def parse(text: str) -> float:
        if not low <= (value := _float(text)) <= high:
            msg = f"{text!r} is not a number from {low} to {high}"
            raise argparse.ArgumentTypeError(msg)
        return value

    return parse


def positive(text: str) -> float:
    """A finite number above 0."""
    if not 0 < (value := _float(text)) < math.inf:
        msg = f"{text!r} is not a number above 0"
        raise argparse.ArgumentTypeError(msg)
    return value


def _float(text: str) -> float:
    """The number.  For any other text NaN, which is in no range."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def add_inputs(parser: argparse.ArgumentParser, kind: str) -> None:
    """Add the files and folders to work on."""
    parser.add_argument(
        "inputs",
        nargs="+",
        type=path,
        metavar="INPUT",
        help=f"{kind}, a folder, or - for standard input",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where results go, and what happens to files that exist."""
    parser.add_argument(
        "-o",
        "--output",
        type=output,
        metavar="OUTPUT",
        help="where to write: a file, a folder, or - for standard output; if the input is a folder"
        " or several files, it has to be a folder; default: beside each input",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "-f",
        "--force",
        action="store_true",
        help="replace files that exist, and write through symbolic links",
    )
    existing.add_argument(
        "--skip-existing",
        action="store_true",
        help="leave files that exist as they are, and write the others",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="print a line for each file that is written"
    )


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Add the option for how many files are worked on at once."""
    parser.add_argument(
        "-j",
        "--jobs",
        type=integer(1, MOST_JOBS),
        metavar="N",
        help="work on N files at once, each in a process of its own; default: the number of"
        " processor cores that this program may use",
    )


def add_strip(parser: argparse.ArgumentParser) -> None:
    """Add the option that leaves out metadata."""
    parser.add_argument(
        "--strip",
        action="store_true",
        help="leave out EXIF (camera, place, thumbnail) and XMP; the colour profile is kept",
    )


def add_size(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Add the options for the quality and the size; return their group, for more such options."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "-q",
        "--quality",
        type=number(1, 100),
        metavar="N",
        help="1 (smallest file) to 100 (best picture); default: 75",
    )
    group.add_argument(
        "-t",
        "--target-size",
        type=byte_count,
        metavar="SIZE",
        help="use the best quality that fits in this many bytes: 5000, 5kB, 4KiB; with few bytes"
        " for each pixel, pictures may get another model",
    )
    return group


def add_coding(parser: argparse.ArgumentParser) -> None:
    """Add the options for how latents are coded."""
    parser.add_argument(
        "--coding",
        choices=spaces.CODING_NAMES,
        help=f"how the latents are stored; default: {spaces.CODING_NAMES[0]}",
    )
    parser.add_argument(
        "--effort",
        type=integer(0, 9),
        metavar="N",
        help="0 (fastest) to 9 (smallest file); default: 4",
    )
    parser.add_argument(
        "--tune",
        choices=chunks.TUNES,
        help="psnr: close to the original; perceptual: pleasant to look at; default: psnr",
    )


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options among ``names`` that the user gave."""
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def refuse(options: argparse.Namespace, message: str) -> NoReturn:
    """End the program because of a wrong command line."""
    parser: argparse.ArgumentParser = options.parser
    parser.error(message)
