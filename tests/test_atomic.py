"""Files that are there complete or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pillow_sdz.atomic import replacing

LONGEST_NAME = 255  # bytes that a name can have on nearly every file system

posix_only = pytest.mark.skipif(os.name != "posix", reason="links and names of POSIX")


def write(path: Path, data: bytes, *, exclusive: bool = False) -> None:
    with replacing(path, exclusive=exclusive) as file:
        file.write(data)


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    with replacing(tmp_path / "new") as file:
        file.write(b"complete")
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "new").read_bytes() == b"complete"
    assert os.listdir(tmp_path) == ["new"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"precious")

    def interrupted() -> None:
        with replacing(tmp_path / "old") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "old").read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["old"]


@posix_only
def test_a_pipe_stays_in_its_place(tmp_path: Path) -> None:
    """Somebody who may write to /dev could replace /dev/null.

    Then no program would work any more.
    """
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write(path, b"data")
        assert os.read(reader, 100) == b"data"
    finally:
        os.close(reader)
    assert path.is_fifo()
    with pytest.raises(FileExistsError):
        write(path, b"data", exclusive=True)
    assert os.listdir(tmp_path) == ["pipe"]


@posix_only
@pytest.mark.parametrize("exclusive", [False, True])
def test_the_longest_name(tmp_path: Path, exclusive: bool) -> None:
    path = tmp_path / ("x" * LONGEST_NAME)
    write(path, b"data", exclusive=exclusive)
    assert path.read_bytes() == b"data"


@posix_only
def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    write(tmp_path / "link", b"data")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"data"


@posix_only
@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("there", ["file", "dangling link"])
def test_exclusive_never_replaces_what_appeared_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str, links: bool
) -> None:
    """This also holds on file systems without hard links."""
    path = tmp_path / "new"
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", _no_hard_links)

    def overtaken() -> None:
        with replacing(path, exclusive=True) as file:
            file.write(b"mine")
            if there == "file":
                path.write_bytes(b"theirs")
            else:
                path.symlink_to("elsewhere")

    with pytest.raises(FileExistsError):
        overtaken()
    assert os.listdir(tmp_path) == ["new"]
    assert not path.exists() or path.read_bytes() == b"theirs"


def test_exclusive_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "hardlink_to", _no_hard_links)
    write(tmp_path / "new", b"data", exclusive=True)
    assert (tmp_path / "new").read_bytes() == b"data"
    assert os.listdir(tmp_path) == ["new"]


def _no_hard_links(self: Path, target: Path) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")
