"""Which files a command reads, and what it calls the files that it writes."""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from .arguments import STREAM, Output, refuse
from .messages import complain, reason

# Files of latents: the keys of `interchange.FORMATS`, whose module imports numpy.
LATENT_SUFFIXES = frozenset((".latent", ".npz", ".npy", ".safetensors", ".pt", ".db"))

# On file systems that cannot keep its extra data of a file x, macOS writes them into ._x.
APPLE_DOUBLE = "._"

# Bytes that the name of a file may have.  Nearly all file systems take as many.
LONGEST_NAME = 255


@dataclass(frozen=True)
class Job:
    """A file to read, and the file to write.

    ``root`` is the folder that the user named; the target is in it, or further below. If several
    files are written together as one, ``others`` are those after the first. ``taken_by`` is an
    earlier source with the same target.
    """

    source: Path
    target: Path
    root: Path
    others: tuple[Path, ...] = ()
    taken_by: Path | None = None

    def __str__(self) -> str:
        return str(self.source)


@dataclass
class Found:
    """The files that the inputs of a command stand for.

    ``left_out`` counts the files in folders that the command does not take. ``complete`` is False
    if a folder could not be read, or had nothing in it. ``folders`` says whether there were any.
    """

    paths: list[tuple[Path, Path]] = field(default_factory=list)  # each with the input it is from
    left_out: int = 0
    complete: bool = True
    folders: bool = False


def find(inputs: list[Path], wanted: Callable[[list[Path]], list[Path]], kind: str) -> Found:
    """The files among the inputs, and in the folders among them those that are ``wanted``.

    ``kind`` is what these are called in a message.
    """
    found = Found()
    for source in inputs:
        if not is_folder(source):
            found.paths.append((source, source))
            continue
        found.folders = True
        files, others, readable = _files_below(source)
        chosen = wanted(files)
        found.left_out += others + len(files) - len(chosen)
        found.paths += [(path, source) for path in chosen]
        if readable and not chosen:
            complain(source, f"this folder has no {kind}")
        found.complete &= readable and bool(chosen)
    return found


def is_folder(path: Path) -> bool:
    """Whether this is a folder; False if the path cannot be looked at."""
    try:
        return path != STREAM and path.is_dir()
    except OSError:  # such as a name that is too long; reading the file will say so
        return False


def _files_below(folder: Path) -> tuple[list[Path], int, bool]:
    """The sorted files below a folder, the number of other things, and if all could be read."""
    readable = True

    def unreadable(error: OSError) -> None:
        nonlocal readable
        readable = False
        complain(error.filename, reason(error, error.filename))

    files, others = [], 0
    for parent, _, names in os.walk(folder, onerror=unreadable):
        for name in names:
            path = Path(parent, name)
            if not name.startswith(APPLE_DOUBLE) and is_regular(path):
                files.append(path)
            else:
                others += 1
    return sorted(files), others, readable


def is_regular(path: Path) -> bool:
    """Whether this is a real file, or a link to one; False for pipes, devices and lost links."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def readable(path: Path) -> Path | IO[bytes]:
    """What to read a file from: its path, or all of standard input in memory.

    OSError for pipes and devices: reading one might never end.
    """
    if path == STREAM:
        return io.BytesIO(sys.stdin.buffer.read())
    if not stat.S_ISREG(path.stat().st_mode):
        msg = "this is a pipe or a device, not a file (- reads from standard input)"
        raise OSError(msg)
    return path


def size_of(source: Path | IO[bytes]) -> int:
    """The bytes of what `readable` returned."""
    if isinstance(source, Path):
        return source.stat().st_size
    return source.seek(0, os.SEEK_END)


def open_sdz(source: Path | IO[bytes]) -> Image.Image:
    """An .sdz file, opened; OSError for files of other formats."""
    try:
        return Image.open(source, formats=["SDZ"])
    except UnidentifiedImageError as error:
        msg = "not an .sdz file"
        raise OSError(msg) from error


def sdz_files(paths: list[Path]) -> list[Path]:
    """Those of the paths that are called .sdz."""
    return [path for path in paths if path.suffix.lower() == ".sdz"]


def check_inputs(options: argparse.Namespace) -> None:
    """End the program if standard input is not the only input."""
    if STREAM in options.inputs and len(options.inputs) > 1:
        refuse(options, "- is standard input: give no other input with it")


def target_file(options: argparse.Namespace) -> Path | None:
    """The file that the result is written to, `STREAM` for standard output.

    None if there is a file for each input, in the folder -o or beside the input.
    """
    check_inputs(options)
    output: Output | None = options.output
    from_stream = options.inputs == [STREAM]
    one = len(options.inputs) == 1 and not is_folder(options.inputs[0])
    if output is None:
        target = STREAM if from_stream else None
    elif output.path == STREAM:
        if not one:
            refuse(options, "-o -: standard output takes the result of one file")
        target = STREAM
    else:
        target = output.path if _is_file(options, output, one=one) else None
        if target is None and from_stream:
            refuse(options, f"-o {output}: name a file, because standard input has no name")
    if target == STREAM and sys.stdout.isatty():
        refuse(options, "standard output is a terminal: name a file with -o")
    return target


def _is_file(options: argparse.Namespace, output: Output, *, one: bool) -> bool:
    """Whether -o names a file.  A name with the suffix of a picture or of latents is a file."""
    if output.is_folder or is_folder(output.path):
        return False
    suffix = output.path.suffix.lower()
    known = suffix in Image.registered_extensions() or suffix in LATENT_SUFFIXES
    if one and (known or output.path.exists()):
        return True
    if output.path.exists():
        refuse(options, f"-o {output} is not a folder")
    if known:
        refuse(options, f"-o {output} names one file, but there may be several inputs")
    if one and suffix[1:].isalpha():
        # x.pgn is probably a mistake, but v1.2 may be a folder.
        refuse(options, f"-o {output}: no format is called {suffix} here (x/ would be a folder)")
    return False


def jobs(
    options: argparse.Namespace,
    found: Found,
    suffix: str,
    target: Path | None,
) -> list[Job]:
    """A job for every file that was found.

    The result goes to ``target``, or gets the source's name with this suffix.
    """
    folder: Path | None = None if options.output is None else options.output.path
    planned = []
    for path, source in found.paths:
        if target is not None:
            planned.append(Job(path, target, target.parent))
            continue
        inside = path.parent.relative_to(source) if path != source else Path()
        root = folder or (path.parent if path == source else source)
        planned.append(Job(path, root / inside / named(path.stem, suffix), root))
    return planned


def named(stem: str, suffix: str) -> str:
    """The name of a file.  A stem that is too long is cut, and marked with a hash of the whole."""
    if len(os.fsencode(stem + suffix)) <= LONGEST_NAME:
        return stem + suffix
    end = f"~{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}{suffix}"
    while len(os.fsencode(stem + end)) > LONGEST_NAME:
        stem = stem[:-1]
    return stem + end


def without_clashes(planned: list[Job]) -> list[Job]:
    """The jobs; each that has the target of an earlier one is marked with it."""
    taken: dict[Path, Path] = {}
    checked = []
    for job in planned:
        first = taken.setdefault(job.target.absolute(), job.source)
        checked.append(job if first == job.source else replace(job, taken_by=first))
    return checked
