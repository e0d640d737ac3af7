"""`sdz demo`: a photo that comes with the package, as .sdz, JPEG and WebP side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import Commands, add_size
from .messages import complain, reason


def add_demo(commands: Commands) -> None:
    """Add `demo` to the commands of `sdz`."""
    parser = commands.add_parser(
        "demo",
        help="compare .sdz, JPEG and WebP on one photo",
        description="Encode a photo that comes with this package as .sdz and, in the same number"
        " of bytes, as JPEG and WebP. Print how close each is, and write them side by side.",
    )
    add_size(parser)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("."), help="the folder to write to; default: ."
    )
    parser.set_defaults(run=_run_demo)


def _run_demo(options: argparse.Namespace) -> int:
    from .. import demo  # takes numpy, for which the other commands need not wait

    try:
        result = demo.run(quality=options.quality, target_size=options.target_size)
        paths = demo.write(result, options.output)
    except (OSError, ValueError) as error:
        complain("demo", reason(error))
        return 1
    print(result.table())
    print()
    for path in paths:
        print(path)
    return 0
