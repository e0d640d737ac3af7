"""The results of a command: for each file, and for all of them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from .messages import StdoutError, reason, warnings_to

Item = TypeVar("Item")


@dataclass
class Report:
    """The result for one file: the lines to print about it, and what to count.

    ``before`` and ``after`` are the bytes read and written, ``metadata`` those of the bytes
    written that are EXIF, XMP and the like. ``result`` is for commands that collect something.
    """

    name: str
    lines: list[tuple[bool, str]] = field(default_factory=list)  # whether an error, and the line
    skipped: bool = False
    failed: bool = False
    before: int = 0
    after: int = 0
    metadata: int = 0
    result: Any = None

    def say(self, line: str) -> None:
        """Have a line of results printed."""
        self.lines.append((False, line))

    def say_written(self, target: Path, pixels: int) -> None:
        """Have a line printed about the file that was written for a picture of ``pixels``."""
        line = f"{self.name} -> {target}: {self.after:,} bytes"
        line += f", {8 * self.after / pixels:.3f} bits per pixel"
        if self.metadata:
            line += f", {self.metadata:,} bytes of it metadata"
        self.say(line)

    def warn(self, message: str) -> None:
        """Have a line about this file printed, once."""
        self.remark(f"{self.name}: {message}")

    def remark(self, message: str) -> None:
        """Have a line printed that is the same for many files, once for all of them."""
        line = (True, f"sdz: {message}")
        if line not in self.lines:
            self.lines.append(line)


Work = Callable[[Item, Report], None]


@dataclass
class Summary:
    """The results for all files of a command."""

    done: int = 0
    skipped: int = 0
    failed: int = 0
    before: int = 0
    after: int = 0
    metadata: int = 0
    results: list[Any] = field(default_factory=list)

    def add(self, report: Report) -> None:
        """Count one file."""
        self.failed += report.failed
        self.skipped += report.skipped
        self.done += not (report.failed or report.skipped)
        if not report.failed:
            self.before += report.before
            self.after += report.after
            self.metadata += report.metadata
        if report.result is not None:
            self.results.append(report.result)

    def line(self, left_out: int) -> str:
        """The closing line; ``left_out`` files of folders were not taken."""
        line = f"{self.done:,} done, {self.skipped:,} skipped, {self.failed:,} failed"
        if left_out:
            line += f", {left_out:,} other {'file' if left_out == 1 else 'files'} left out"
        if self.after:
            line += f": {self.before:,} bytes -> {self.after:,} bytes"
            if self.before > self.after:
                line += f", ratio {self.before / self.after:.2f}"
        if self.metadata:
            line += f", {self.metadata:,} bytes of it metadata"
        return line


def run(work: Work[Item], item: Item) -> Report:
    """Work on one item, and report its result."""
    report = Report(str(item))
    with warnings_to(report.warn):
        if not sys.warnoptions:
            # By default Python shows a warning once.  Here it is shown for each file.
            for category in (UserWarning, Image.DecompressionBombWarning):
                warnings.simplefilter("always", category)
        try:
            work(item, report)
        except (BrokenPipeError, StdoutError):
            raise  # this error ends the whole command
        except Exception as error:  # Pillow's plugins raise anything
            report.warn(reason(error, Path(report.name)))
            report.failed = True
    return report
