"""`sdz demo`: a photo that comes with the package, as .sdz, JPEG and WebP side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import Commands, add_size, path
from .messages import complain, reason, say


def add_demo(commands: Commands) -> None:
    """Add `demo` to the commands of `sdz`."""
    parser = commands.add_parser(
        "demo",
        help="compare .sdz, JPEG and WebP on one photo",
        description="Encode a photo that comes with this package as .sdz and, in the same number"
        " of bytes, as JPEG and WebP. Print how close each is, and write them side by side. Files"
        " that exist are not replaced.",
    )
    add_size(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=path,
        default=Path("."),
        metavar="FOLDER",
        help="the folder to write to; default: .",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from .. import demo  # here, because it imports numpy, which other commands do not need

    try:
        demo.check_free(options.output)
        result = demo.run(quality=options.quality, target_size=options.target_size)
        paths = demo.write(result, options.output)
    except (OSError, ValueError) as error:
        complain("demo", reason(error))
        return 1
    for line in (*result.table().splitlines(), "", *map(str, paths)):
        say(line)
    return 0
