"""What the commands print: one line for one thing.

A name or a text that comes from a file may hold characters that command a terminal or start a new
line. Everything goes through `printable`, which makes them visible instead.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from PIL import UnidentifiedImageError


class StdoutError(Exception):
    """Standard output cannot be written to; the text says why."""


def printable(text: str) -> str:
    """The text as one line, in which every control character is written as an escape."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def say(line: str) -> None:
    """Print one line of results."""
    with _stdout_errors():
        _print(line, error=False)


def write_data(data: bytes | memoryview) -> None:
    """Write a file to standard output."""
    with _stdout_errors():
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def flush() -> None:
    """Flush what was printed."""
    with _stdout_errors():
        sys.stdout.flush()


@contextlib.contextmanager
def _stdout_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:  # such as a full disk
        raise StdoutError(reason(error)) from error


def say_json(value: object) -> None:
    """Print a value as JSON, which writes control characters as escapes itself."""
    for line in json.dumps(value, indent=2).splitlines():
        say(line)


def complain(about: str | Path, message: str) -> None:
    """Print one line about what went wrong with a file."""
    note(f"sdz: {about}: {message}")


def note(line: str) -> None:
    """Print one line on stderr."""
    _print(line, error=True)


def _print(line: str, *, error: bool) -> None:
    # Looked up now, because tests and callers replace the streams.
    file = sys.stderr if error else sys.stdout
    if "tqdm" in sys.modules:  # there may be a bar, and the line has to go above it
        from tqdm import tqdm

        tqdm.write(printable(line), file=file)
    else:
        print(printable(line), file=file)


def reason(error: BaseException, about: Path | None = None) -> str:
    """Say in one line what went wrong; the file ``about`` is not named again."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture that Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        # If a file cannot be renamed, the new name is part of the message.
        name = error.filename if error.filename2 is None else error.filename2
        other = name is not None and str(name) != str(about)
        return f"{name}: {error.strerror}" if other else error.strerror
    text = " ".join(str(error).split())
    if isinstance(error, (OSError, ValueError)) and text:
        return text
    return f"{type(error).__name__}: {text}"


class _OneLineRecord(logging.LogRecord):
    """A log record whose message is one printable line."""

    def getMessage(self) -> str:
        return printable(" ".join(super().getMessage().split()))


@contextlib.contextmanager
def warnings_to(tell: Callable[[str], None]) -> Iterator[None]:
    """Have ``tell`` called with the text of each warning, on one line."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        tell("warning: " + " ".join(str(message).split()))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def one_line_each() -> Iterator[None]:
    """Have warnings and what libraries log printed as one printable line each.

    diffusers and transformers log the names of tensors, which come from a model's folder.
    """
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(_OneLineRecord)
    try:
        with warnings_to(lambda text: note(f"sdz: {text}")):
            yield
    finally:
        logging.setLogRecordFactory(before)
