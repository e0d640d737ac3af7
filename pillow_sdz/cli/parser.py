"""The whole command line, and `main`, which runs it.

The exit status is 0 if everything was done, 1 if a file could not be done (the others are), 2 for
a wrong command line, 130 after Ctrl-C and 141 if the reader of the output went away.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence

from .. import __version__
from .compare import add_compare
from .demo import add_demo
from .info import add_info
from .latents import add_latents
from .messages import complain, reason, show_warning
from .models import add_models
from .pictures import add_decode, add_encode


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (by default ``sys.argv``) and return the exit status."""
    options = parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        # A file's name may hold what the terminal's encoding cannot show.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            status: int = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader went away, as in `sdz info *.sdz | head`. Programs that the signal kills say
        # nothing, and neither may Python when it flushes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # such as a full disk behind stdout
        complain("stdout", reason(error))
        return 1
    return status


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    whole = argparse.ArgumentParser(
        prog="sdz",
        description="Keep pictures as .sdz, in a few kilobytes each, and get them back.",
    )
    whole.add_argument("--version", action="version", version=f"sdz {__version__}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    add_encode(commands)
    add_decode(commands)
    add_latents(commands)
    add_info(commands)
    add_compare(commands)
    add_models(commands)
    add_demo(commands)
    return whole
