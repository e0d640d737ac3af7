"""What commands take from folders, what they leave out, and what they say of it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pillow_sdz.cli import main

pytestmark = pytest.mark.usefixtures("one_process")

posix_only = pytest.mark.skipif(os.name != "posix", reason="pipes and links of POSIX")


@pytest.fixture(autouse=True)
def folder(photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with album/a.png, album/trip/b.jpg and things that are no pictures."""
    monkeypatch.chdir(tmp_path)
    Path("album/trip").mkdir(parents=True)
    photo.save("album/a.png")
    photo.save("album/trip/b.jpg")
    Path("album/notes.txt").write_text("no picture")


def files(folder: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*.*")}


def bytes_in(*paths: str) -> int:
    return sum(Path(path).stat().st_size for path in paths)


def test_the_closing_line(capsys: pytest.CaptureFixture[str]) -> None:
    """All files are done, skipped, failed or left out.

    The bytes are those of the files that were done.
    """
    Path("album/broken.png").write_bytes(b"no picture")
    Path("out").mkdir()
    Path("out/a.sdz").write_bytes(b"precious")
    assert main(["encode", "album", "-o", "out", "--skip-existing"]) == 1
    before, after = bytes_in("album/trip/b.jpg"), bytes_in("out/trip/b.sdz")
    assert capsys.readouterr() == (
        "1 done, 1 skipped, 1 failed, 1 other file left out: "
        f"{before:,} bytes -> {after:,} bytes, ratio {before / after:.2f}\n",
        "sdz: album/broken.png: not a picture that Pillow can read\n",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("encode", ""),
        ("decode", "album", ""),
        ("info", ""),
        ("compare", ""),
        ("encode", "album", "-o", ""),
        ("compare", "album", "--report", ""),
        ("models", "add", "ours", ""),
    ],
)
def test_an_empty_name_is_not_the_current_folder(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Scripts give one if a variable of theirs is not set."""
    before = files(".")
    with pytest.raises(SystemExit) as exit:
        main([*arguments])
    assert exit.value.code == 2
    assert capsys.readouterr().err.endswith(": it is empty\n")
    assert files(".") == before


@pytest.mark.parametrize("command", ["decode", "latents"])
def test_every_command_closes_with_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "album"]) == 0
    capsys.readouterr()
    assert main([command, "album", "-o", "out"]) == 0
    before = bytes_in("album/a.sdz", "album/trip/b.sdz")
    after = bytes_in(*(f"out/{name}" for name in files("out")))
    assert capsys.readouterr().out == (
        "2 done, 0 skipped, 0 failed, 3 other files left out: "
        f"{before:,} bytes -> {after:,} bytes\n"
    )


def test_info_of_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "album"]) == 0
    capsys.readouterr()
    assert main(["info", "album"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.endswith(".sdz")] == ["album/a.sdz", "album/trip/b.sdz"]
    assert lines[-1] == "2 done, 0 skipped, 0 failed, 3 other files left out"


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("encode", "pictures and no files of latents"),
        ("decode", ".sdz files"),
        ("latents", ".sdz files"),
        ("info", ".sdz files"),
        ("compare", "pictures"),
    ],
)
def test_a_folder_with_nothing_to_take(
    command: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("empty/notes.txt").write_text("nothing")
    assert main([command, "empty"]) == 1
    assert capsys.readouterr() == (
        "0 done, 0 skipped, 0 failed, 1 other file left out\n",
        f"sdz: empty: this folder has no {kind}\n",
    )


def test_info_json_of_a_folder_with_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json", "album"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == []
    assert err == "sdz: album: this folder has no .sdz files\n"


def test_compare_takes_the_pictures_of_folders(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "album", "--json"]) == 0
    compared = [figures["file"] for figures in json.loads(capsys.readouterr().out)]
    assert compared == [str(Path("album/a.png")), str(Path("album/trip/b.jpg"))]
    assert main(["compare", "album", "--report", "page.html"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "page.html",
        "2 done, 0 skipped, 0 failed, 1 other file left out",
    ]


def test_what_macos_keeps_beside_files_is_left_out(
    photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("album/._a.png").write_bytes(b"what macOS knows of a.png")
    np.savez("album/._b.npz", latents=np.zeros((4, 8, 6), np.float32))
    assert main(["encode", "album", "-o", "out"]) == 0
    assert files("out") == {"a.sdz", "trip/b.sdz"}
    assert "3 other files left out" in capsys.readouterr().out
    photo.save("._c.png")
    assert main(["encode", "._c.png"]) == 0  # somebody who names it wants it


@posix_only
def test_pipes_devices_and_lost_links_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Reading the first two might never end."""
    os.mkfifo("album/pipe.png")
    Path("album/device.png").symlink_to("/dev/zero")
    Path("album/lost.png").symlink_to("nothing")
    Path("album/linked.png").symlink_to("a.png")
    assert main(["encode", "album", "-o", "out"]) == 0
    assert files("out") == {"a.sdz", "linked.sdz", "trip/b.sdz"}
    assert "3 done, 0 skipped, 0 failed, 4 other files left out" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["encode", "decode", "latents", "info", "compare"])
def test_a_folder_that_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """The other folders are read, and the command fails."""
    assert main(["encode", "album"]) == 0
    capsys.readouterr()
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        # Permissions would not keep an administrator out, so the error is made here.
        if Path(path).name == "trip":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert main([command, "album", *([] if command in ("info", "compare") else ["-o", "out"])]) == 1
    out, err = capsys.readouterr()
    assert err == f"sdz: {Path('album/trip')}: Permission denied\n"
    assert "1 done, 0 skipped, 0 failed" in out


@posix_only
def test_names_as_long_as_they_can_be(
    photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    """They have 255 bytes.

    With a longer suffix they are cut. The user's own longer name is an error.
    """
    longest = "x" * 251
    photo.save(f"{longest}.png")
    assert main(["encode", f"{longest}.png"]) == 0
    assert main(["decode", f"{longest}.sdz", "--format", "gif"]) == 0
    assert main(["decode", f"{longest}.sdz", "--format", "webp"]) == 0
    (made,) = Path().glob("x*.webp")
    assert len(made.name) == 255
    assert re.fullmatch(r"x{241}~[0-9a-f]{8}\.webp", made.name)
    assert main(["encode", f"{longest}x.png"]) == 1
    assert capsys.readouterr().err == f"sdz: {longest}x.png: File name too long\n"


def test_a_name_that_is_too_long_for_an_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "album/a.png", "-o", "x" * 300 + ".sdz"]) == 1
    assert "File name too long" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["(1)", "+new", "-old", "~", "a"])
def test_a_folder_of_any_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    os.rename("album", name)
    assert main(["encode", "--", name]) == 0
    assert files(name) >= {"a.sdz", "trip/b.sdz"}
