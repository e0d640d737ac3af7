"""Arguments that several commands take, and the types that turn their text into values."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol

from .. import catalogue, chunks

UNITS = {"": 1, "k": 1000, "m": 1000**2, "ki": 1024, "mi": 1024**2}


class Commands(Protocol):
    """What argparse's ``add_subparsers`` returns; its class has no public name."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser:
        """Add a command and return its parser."""


def byte_count(text: str) -> int:
    """A size as people write it, in bytes: 5000, 5k, 5kB, 4KiB, 1.5MB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?((?:[km]i?)?)b?", text.strip(), re.IGNORECASE)
    size = round(float(match[1]) * UNITS[match[2].lower()]) if match else 0
    if size < 1:
        msg = f"{text!r} is not a size in bytes (write 5000, 5kB or 4KiB)"
        raise argparse.ArgumentTypeError(msg)
    return size


def integer(low: int, high: int) -> Callable[[str], int]:
    """A type for whole numbers in a range, both ends included."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            msg = f"{text!r} is not a whole number from {low} to {high}"
            raise argparse.ArgumentTypeError(msg)
        return int(text)

    return parse


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        msg = f"{text!r} is not a number above 0"
        raise argparse.ArgumentTypeError(msg)
    return number


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add the files and folders to work on."""
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="a file or a folder")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add where the results go, and what happens to files that exist."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="for one input a file or a folder, for several a folder; default: beside each input",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("-f", "--force", action="store_true", help="replace files that exist")
    existing.add_argument(
        "--skip-existing",
        action="store_true",
        help="leave files that exist as they are, and write the others",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="print a line for each file that is written"
    )


def add_size(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Add the quality or the size of the result; return the group, for more such options."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "-q",
        "--quality",
        type=integer(1, 100),
        metavar="N",
        help="1 (smallest file) to 100 (best picture); default: 75",
    )
    group.add_argument(
        "-t",
        "--target-size",
        type=byte_count,
        metavar="SIZE",
        help="use the best quality that fits in this many bytes: 5000, 5kB, 4KiB",
    )
    return group


def add_coding(parser: argparse.ArgumentParser) -> None:
    """Add how the latents are coded."""
    parser.add_argument(
        "--coding",
        choices=catalogue.CODING_NAMES,
        help="how the latents are stored; default: context",
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
