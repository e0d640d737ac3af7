"""Writes files. Unless forced, no existing file is lost, and no symbolic link leads elsewhere."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..atomic import replacing
from .arguments import STREAM
from .files import Job
from .messages import write_data


@dataclass(frozen=True)
class Targets:
    """How a command writes its files: it replaces existing ones (``force``) or skips them."""

    force: bool
    skip: bool

    def wanted(self, job: Job) -> bool:
        """Say whether to write the target, before any work is done; False to skip it.

        OSError or ValueError if it may not be written.
        """
        if job.taken_by is not None:
            msg = f"{job.target} is already written from {job.taken_by}"
            raise FileExistsError(msg)
        if job.target == STREAM:
            return True
        if is_there(job.target):
            if _is_same(job.source, job.target):
                msg = "would overwrite itself"
                raise ValueError(msg)
            if self.skip:
                return False
            self._check_existing(job.target)
        elif not self.force:
            _check_folders(job)
        return True

    def _check_existing(self, target: Path) -> None:
        """OSError if what is there may not be replaced."""
        if not self.force:
            lost = target.is_symlink() and not target.exists()
            what = "is a symbolic link to nothing" if lost else "exists"
            msg = f"{target} {what} (--force replaces it, --skip-existing leaves it)"
            raise FileExistsError(msg)
        if target.exists() and not stat.S_ISREG(target.stat().st_mode):
            msg = f"{target} is not a file that can be replaced"
            raise FileExistsError(msg)

    def write(self, job: Job, data: bytes | memoryview) -> None:
        """Write the target, in a folder made for it; it becomes visible when it is complete."""
        if job.target == STREAM:
            write_data(data)
            return
        with self.opened(job.target) as file:
            file.write(data)

    @contextmanager
    def opened(self, target: Path) -> Iterator[IO[bytes]]:
        """A file that becomes the target when it is complete, in a folder made for it."""
        Path(os.path.realpath(target)).parent.mkdir(parents=True, exist_ok=True)
        with replacing(target, exclusive=not self.force) as file:
            yield file


def is_there(target: Path) -> bool:
    """Whether something has this name; OSError if the name is impossible, such as too long."""
    try:
        target.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _is_same(source: Path, target: Path) -> bool:
    return source != STREAM and target.exists() and source.exists() and source.samefile(target)


def lost_link(path: Path) -> Path | None:
    """The path, or the folder above it, that is a symbolic link to nothing; None if none is."""
    return next((p for p in (path, *path.parents) if p.is_symlink() and not p.exists()), None)


def _check_folders(job: Job) -> None:
    """OSError if a link would lead the target elsewhere.

    A link that the user named may lead to a folder, and one further below may not.
    """
    if (lost := lost_link(job.target.parent)) is not None:
        msg = f"{lost} is a symbolic link to nothing (--force makes a folder there)"
        raise OSError(msg)
    for folder in job.target.relative_to(job.root).parents:
        if (path := job.root / folder) != job.root and path.is_symlink():
            msg = f"{path} is a symbolic link (--force writes through it)"
            raise OSError(msg)
