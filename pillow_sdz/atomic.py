"""Writes files completely or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# Temporary files that are being written.
_unfinished: set[Path] = set()


def remove_unfinished() -> None:
    """Remove what is being written, for a process that ends at once."""
    for temporary in [*_unfinished]:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path, *, exclusive: bool = False) -> Iterator[IO[bytes]]:
    """A file that takes the path's place once it is complete, and leaves no trace otherwise.

    ``exclusive``: FileExistsError if there is something at the path by then.  A pipe or a device
    stays in its place, and is written to.
    """
    if path.exists() and not (exclusive or path.is_file() or path.is_dir()):
        with path.open("wb") as file:
            yield file
        return
    # A symbolic link stays a link, and the file that it names is replaced.  If the path must be
    # free, any link there is an error, so links are not followed.
    target = path if exclusive else Path(os.path.realpath(path))
    # This name is short, because the target's name may be as long as the file system allows.
    temporary = target.with_name(f".sdz-{secrets.token_hex(8)}.tmp")
    _unfinished.add(temporary)
    try:
        # tempfile makes files that nobody else may read. The permissions of this one follow the
        # umask.
        with temporary.open("x+b") as file:
            yield file
            # File systems may record the new name before the bytes.  Without this, a power failure
            # soon after could leave an empty file under the final name.
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            _move_to_free_name(temporary, target)
        else:
            temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        _unfinished.discard(temporary)


def _move_to_free_name(file: Path, target: Path) -> None:
    """Rename a file; FileExistsError if there is one of the new name."""
    try:
        # Renaming would replace a file that somebody has just made.  A hard link fails instead.
        target.hardlink_to(file)
    except FileExistsError:
        raise
    except OSError as error:  # a file system without hard links, such as FAT
        if os.path.lexists(target):
            msg = f"{target} exists"
            raise FileExistsError(msg) from error
        file.replace(target)
    else:
        file.unlink()
