"""Without --force, no command writes over existing files or through a symbolic link."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from PIL import Image

from pillow_sdz.cli import main

pytestmark = [
    pytest.mark.usefixtures("one_process"),
    pytest.mark.skipif(os.name != "posix", reason="symbolic links of POSIX"),
]

SOURCES = {"encode": "a.png", "decode": "x.sdz", "latents": "x.sdz"}


@pytest.fixture(autouse=True)
def folder(photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a.png, x.sdz and album/trip/b.png, and a folder elsewhere."""
    (tmp_path / "here" / "album" / "trip").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    photo.save("a.png")
    photo.save("x.sdz")
    photo.save("album/trip/b.png")


@pytest.mark.parametrize(
    ("command", "target"), [("encode", "new.sdz"), ("decode", "new.png"), ("latents", "new.npz")]
)
def test_a_link_to_nothing(command: str, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    there = Path("../elsewhere") / target
    Path(target).symlink_to(there)
    arguments = [command, SOURCES[command], "-o", target]
    assert main(arguments) == 1
    assert capsys.readouterr().err == (
        f"sdz: {SOURCES[command]}: {target} is a symbolic link to nothing"
        " (--force replaces it, --skip-existing leaves it)\n"
    )
    assert main([*arguments, "--skip-existing"]) == 0
    assert not there.exists()
    assert main([*arguments, "--force"]) == 0
    assert there.exists()
    assert Path(target).is_symlink()


def test_a_folder_that_is_a_link_below_the_one_that_was_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Somebody else may have made the link, for example by an archive that was unpacked there."""
    Path("out").mkdir()
    Path("out/trip").symlink_to(Path("../../elsewhere"))
    assert main(["encode", "album", "-o", "out"]) == 1
    assert capsys.readouterr().err == (
        "sdz: album/trip/b.png: out/trip is a symbolic link (--force writes through it)\n"
    )
    assert os.listdir("../elsewhere") == []
    assert main(["encode", "album", "-o", "out", "--force"]) == 0
    assert os.listdir("../elsewhere") == ["b.sdz"]


@pytest.mark.parametrize("output", ["out", "out/", "out/deep/"])
@pytest.mark.parametrize("command", ["encode", "decode", "latents"])
def test_a_folder_that_is_a_link_to_nothing(
    command: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").symlink_to("../elsewhere/new")
    arguments = [command, SOURCES[command], "-o", output]
    assert main(arguments) == 1
    assert capsys.readouterr().err == (
        f"sdz: {SOURCES[command]}: out is a symbolic link to nothing"
        " (--force makes a folder there)\n"
    )
    assert os.listdir("../elsewhere") == []
    assert main([*arguments, "--force"]) == 0
    assert os.listdir("../elsewhere") == ["new"]


def test_a_link_that_was_named_is_meant() -> None:
    Path("out").symlink_to("../elsewhere")
    assert main(["encode", "album", "-o", "out"]) == 0
    assert os.listdir("../elsewhere/trip") == ["b.sdz"]


def test_a_file_that_appears_while_another_is_made_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = Image.Image.save

    def slowly(image: Image.Image, *arguments: object, **options: object) -> None:
        Path("a.sdz").write_bytes(b"precious")
        save(image, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "save", slowly)
    assert main(["encode", "a.png"]) == 1
    assert Path("a.sdz").read_bytes() == b"precious"
    assert "File exists" in capsys.readouterr().err


def test_a_pipe_is_not_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe.sdz")
    assert main(["encode", "a.png", "-o", "pipe.sdz", "--force"]) == 1
    assert capsys.readouterr().err == ("sdz: a.png: pipe.sdz is not a file that can be replaced\n")
    assert Path("pipe.sdz").is_fifo()


def test_the_page_of_a_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    there = Path("../elsewhere/page.html")
    Path("page.html").symlink_to(there)
    with pytest.raises(SystemExit) as exit:
        main(["compare", "a.png", "--report", "page.html"])
    assert exit.value.code == 2
    assert "--report page.html is a symbolic link (--force writes through it)" in (
        capsys.readouterr().err
    )
    assert not there.exists()
    assert main(["compare", "a.png", "--report", "page.html", "--force"]) == 0
    assert there.exists()


@pytest.mark.parametrize("command", [["demo", "-o"], ["compare", "a.png", "--report"]])
def test_no_folder_is_made_through_a_link_to_nothing(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").symlink_to("../elsewhere/new")
    with contextlib.suppress(SystemExit):
        assert main([*command, "out/page.html"]) == 1
    assert "out" in capsys.readouterr().err
    assert os.listdir("../elsewhere") == []


@pytest.mark.parametrize("name", ["sdz-demo.sdz", "sdz-demo.png"])
@pytest.mark.parametrize("kind", ["file", "link to nothing"])
def test_demo_overwrites_nothing(name: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    if kind == "file":
        Path("out", name).write_bytes(b"precious")
    else:
        Path("out", name).symlink_to("../../elsewhere/demo")
    assert main(["demo", "-o", "out"]) == 1
    path = Path("out", name)
    assert capsys.readouterr() == (
        "",
        f"sdz: demo: {path} exists: name another folder with -o\n",
    )
    assert os.listdir("out") == [name]
    assert os.listdir("../elsewhere") == []
    assert kind != "file" or path.read_bytes() == b"precious"
