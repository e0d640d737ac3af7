"""Files that are there complete or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the path's place once it is complete, and leaves no trace otherwise."""
    target = Path(os.path.realpath(path))  # a symbolic link stays one
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        # Not tempfile, whose files nobody else may read: this one's permissions follow the umask.
        with temporary.open("x+b") as file:
            yield file
            # Without it a power failure soon after may leave an empty file under the final name:
            # file systems may write a renaming down before the bytes.
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
