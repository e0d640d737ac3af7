"""Which files a command reads, and which it writes."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from ..atomic import replacing
from .arguments import refuse
from .messages import complain


@dataclass(frozen=True)
class Job:
    """A file to read, and the file to write.

    If several files are written together as one, ``others`` are those after the first.
    """

    source: Path
    target: Path
    others: tuple[Path, ...] = ()


class Targets:
    """The files that a command writes: each only once, and existing ones only if forced."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._force: bool = options.force
        self._skip: bool = options.skip_existing
        self._taken: dict[Path, Path] = {}  # what this command writes, and from what

    def wanted(self, job: Job) -> bool:
        """Say whether to write the target, before any work is done; False to skip it.

        OSError or ValueError if it may not be written.
        """
        other = self._taken.setdefault(job.target.absolute(), job.source)
        if other != job.source:
            msg = f"{job.target} is written from {other} already"
            raise FileExistsError(msg)
        if job.target.exists():
            if job.source.exists() and job.source.samefile(job.target):
                msg = "would overwrite itself"
                raise ValueError(msg)
            if self._skip:
                return False
            if not self._force:
                msg = f"{job.target} exists (--force replaces it, --skip-existing leaves it)"
                raise FileExistsError(msg)
        return True

    @contextlib.contextmanager
    def open(self, job: Job) -> Iterator[IO[bytes]]:
        """The target, in a folder made for it; it becomes visible when it is complete."""
        folder = Path(os.path.realpath(job.target)).parent
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(job.target) as file:
            yield file


def jobs(
    options: argparse.Namespace,
    wanted: Callable[[list[Path]], list[Path]],
    named: Callable[[Path], str],
    target: Path | None,
) -> tuple[list[Job], bool]:
    """A job for every input, and whether there was a folder with nothing in it.

    The result goes to ``target``, or gets the name that ``named`` makes of the source's.
    ``wanted`` picks from the files of a folder.
    """
    found: list[Job] = []
    missing = False
    for source in options.inputs:
        if not source.is_dir():
            folder = options.output or source.parent
            found.append(Job(source, target or folder / named(source)))
            continue
        paths = wanted(files_below(source))
        if not paths:
            complain(source, "nothing to convert in this folder")
            missing = True
        for path in paths:
            folder = (options.output or source) / path.parent.relative_to(source)
            found.append(Job(path, folder / named(path)))
    return found, missing


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and in the folders in it, sorted."""
    return sorted(Path(parent, name) for parent, _, names in os.walk(folder) for name in names)


def sdz_files(paths: list[Path]) -> list[Path]:
    """Those of the paths that are called .sdz."""
    return [path for path in paths if path.suffix.lower() == ".sdz"]


def output_file(options: argparse.Namespace, suffixes: Iterable[str] | None = None) -> Path | None:
    """What -o names, if that is a file and not a folder.

    It is a file if there is one input, which is no folder, and if its suffix is known: one of
    ``suffixes``, or else of a format of pictures.
    """
    output: Path | None = options.output
    if output is None:
        return None
    if len(options.inputs) != 1 or options.inputs[0].is_dir() or output.is_dir():
        if output.exists() and not output.is_dir():
            refuse(options, f"-o {output} is not a folder")
        return None
    if output.exists() or output.suffix.lower() in (suffixes or Image.registered_extensions()):
        return output
    if output.suffix[1:].isalpha():
        # Nobody wants a folder called x.pgn. But v1.2 is one.
        refuse(options, f"-o {output}: no format is called {output.suffix} here")
    return None


def open_sdz(path: Path) -> Image.Image:
    """The .sdz file, opened; OSError for files of other formats."""
    try:
        return Image.open(path, formats=["SDZ"])
    except UnidentifiedImageError as error:
        msg = "not an .sdz file"
        raise OSError(msg) from error
