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

    ``exclusive``: FileExistsError if there is something at the path by then.
    """
    # A symbolic link stays one; but nothing that should not exist is looked for behind it.
    target = path if exclusive else Path(os.path.realpath(path))
    # Short, because the target's own name may be as long as names can be.
    temporary = target.with_name(f".sdz-{secrets.token_hex(8)}.tmp")
    _unfinished.add(temporary)
    try:
        # tempfile makes files that nobody else may read. The permissions of this one follow the
        # umask.
        with temporary.open("x+b") as file:
            yield file
            # Without this, a power failure soon after may leave an empty file under the final name:
            # file systems may record a new name before the bytes.
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
        # Unlike renaming, it fails if there is something, even since a moment ago.
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
