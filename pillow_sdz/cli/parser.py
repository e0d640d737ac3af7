"""The whole command line, and `main`, which runs it.

The exit status is 0 if everything was done, 1 if a file could not be done (the others are), 2 for
a wrong command line or environment, 130 after Ctrl-C and 141 if the reader of the output went away.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import __version__
from .. import options as settings
from .comfyui import add_comfyui
from .compare import add_compare
from .decode import add_decode
from .demo import add_demo
from .encode import add_encode
from .info import add_info
from .latents import add_latents
from .messages import StdoutError, complain, flush, note, one_line_each, printable, reason, say
from .models import add_models
from .shell import add_completion, add_manpage


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (by default ``sys.argv``) and return the exit status."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # A file's name may have characters that the terminal's encoding lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        options = _parsed(arguments)
        if complaints := settings.complaints():
            for complaint in complaints:
                note(f"sdz: {complaint}")
            return 2
        with one_line_each():
            status: int = options.run(options)
        flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader went away, as in `sdz info *.sdz | head`. A signal then kills other programs,
        # and they say nothing. Python would complain when it flushes the streams at its end.
        _silence()
        return 141
    except StdoutError as error:
        _silence(1)
        complain("standard output", str(error))
        return 1
    except OSError as error:
        note(f"sdz: {reason(error)}")
        return 1
    return status


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line.  The parser ends the program after --help and --version."""
    try:
        return parser().parse_args(arguments)
    except SystemExit:
        flush()  # otherwise Python's own flush at its end may fail, with a traceback
        raise


def _open_closed_streams() -> None:
    """Open standard streams that are closed. Otherwise other files would get their numbers.

    What is written to them is lost. Standard output is opened for reading, so that writing to it is
    still an error, as it is for a closed file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
            if descriptor == number:
                mode = "r" if name == "stdin" else "w"
                setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))


def _silence(*numbers: int) -> None:
    """Discard what is still to be written to standard output and error."""
    for number in numbers or (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)


class _Parser(argparse.ArgumentParser):
    """A parser whose messages are printable lines, whatever the arguments are."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stdout:  # argparse does not report that the help cannot be written
            for line in message.splitlines():
                say(line)
        else:
            super()._print_message(message, file)


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    whole = _Parser(
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
    add_comfyui(commands)
    add_demo(commands)
    add_completion(commands, parser)
    add_manpage(commands, parser)
    return whole
