"""Standard input and output in place of files, and standard streams that are closed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pillow_sdz.cli import main

pytestmark = pytest.mark.usefixtures("one_process")

posix_only = pytest.mark.skipif(os.name != "posix", reason="descriptors and pipes of POSIX")


@pytest.fixture(autouse=True)
def folder(photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a.png, x.sdz made of it, and a folder with a picture."""
    monkeypatch.chdir(tmp_path)
    photo.save("a.png")
    photo.save("x.sdz")
    Path("folder").mkdir()
    photo.save("folder/b.png")


def give(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Put these bytes into standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize("output", [[], ["-o", "-"]])
def test_encode(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes], output: list[str]
) -> None:
    """The file is the same as with names. Without -o, standard input goes to standard output."""
    give(monkeypatch, Path("a.png").read_bytes())
    assert main(["encode", "-", *output]) == 0
    assert capsysbinary.readouterr() == (Path("x.sdz").read_bytes(), b"")
    assert sorted(os.listdir()) == ["a.png", "folder", "x.sdz"]


@pytest.mark.parametrize(
    ("options", "format"), [([], "PNG"), (["--format", "webp"], "WEBP"), (["--strip"], "PNG")]
)
def test_decode(
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
    options: list[str],
    format: str,
) -> None:
    give(monkeypatch, Path("x.sdz").read_bytes())
    assert main(["decode", "-", "-o", "-", *options]) == 0
    with Image.open(io.BytesIO(capsysbinary.readouterr().out)) as image:
        assert (image.format, image.size) == (format, (61, 43))


def test_latents(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    give(monkeypatch, Path("x.sdz").read_bytes())
    assert main(["latents", "-", "-o", "-", "--format", "npy"]) == 0
    assert np.load(io.BytesIO(capsysbinary.readouterr().out)).shape == (384, 3, 4)


def test_from_a_file_to_a_stream_and_back(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["encode", "a.png", "-o", "-"]) == 0
    give(monkeypatch, capsysbinary.readouterr().out)
    assert main(["decode", "-", "-o", "y.png"]) == 0
    with Image.open("y.png") as image, Image.open("x.sdz") as expected:
        assert image.tobytes() == expected.tobytes()


def test_info(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    give(monkeypatch, Path("x.sdz").read_bytes())
    assert main(["info", "--json", "-"]) == 0
    (from_stream,) = json.loads(capsys.readouterr().out)
    assert main(["info", "--json", "x.sdz"]) == 0
    (from_file,) = json.loads(capsys.readouterr().out)
    assert from_stream == {**from_file, "file": "-"}


def test_compare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    give(monkeypatch, Path("a.png").read_bytes())
    assert main(["compare", "-"]) == 0
    assert capsys.readouterr().out.startswith("-: 61x43\n")


def test_words_go_to_stderr_while_data_goes_to_stdout(
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    assert main(["encode", "a.png", "-o", "-", "-v"]) == 0
    out, err = capsysbinary.readouterr()
    assert out == Path("x.sdz").read_bytes()
    assert err.startswith(b"a.png -> -: ")


def test_a_stream_that_is_no_picture(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    give(monkeypatch, b"nothing")
    assert main(["encode", "-"]) == 1
    assert main(["decode", "-"]) == 1
    assert capsysbinary.readouterr() == (
        b"",
        b"sdz: -: not a picture that Pillow can read\nsdz: -: not an .sdz file\n",
    )


def test_a_file_that_is_called_like_the_stream(
    photo: Image.Image, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    photo.save("-", "PNG")
    assert main(["encode", "./-", "-o", "y.sdz"]) == 0
    assert Path("y.sdz").read_bytes() == Path("x.sdz").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "-", "a.png"], "- is standard input: give no other input with it"),
        (["info", "-", "x.sdz"], "- is standard input: give no other input with it"),
        (["compare", "-", "-"], "- is standard input: give no other input with it"),
        (["encode", "a.png", "x.sdz", "-o", "-"], "standard output takes the result of one file"),
        (["encode", "folder", "-o", "-"], "standard output takes the result of one file"),
        (["encode", "-", "-o", "folder"], "-o folder: name a file"),
        (["encode", "a.png", "x.sdz", "-o", "y.sdz"], "-o y.sdz names one file"),
        (["decode", "x.sdz", "x.sdz", "-o", "y.png"], "-o y.png names one file"),
        (["latents", "x.sdz", "x.sdz", "-o", "y.npz"], "-o y.npz names one file"),
        (["encode", "folder", "-o", "y.sdz"], "-o y.sdz names one file"),
    ],
)
def test_streams_and_names_are_for_one_file(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
    assert sorted(os.listdir()) == ["a.png", "folder", "x.sdz"]


def test_a_slash_at_the_end_is_that_of_a_folder() -> None:
    assert main(["encode", "a.png", "folder", "-o", "album.sdz/"]) == 0
    assert sorted(os.listdir("album.sdz")) == ["a.sdz", "b.sdz"]
    assert main(["encode", "a.png", "-o", "new.sdz/"]) == 0
    assert os.listdir("new.sdz") == ["a.sdz"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("arguments", [["encode", "-"], ["decode", "x.sdz", "-o", "-"]])
def test_no_data_goes_to_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "standard output is a terminal: name a file with -o" in capsys.readouterr().err


@posix_only
@pytest.mark.parametrize("command", ["encode", "decode", "info", "latents", "compare"])
def test_a_pipe_or_a_device_by_name_is_not_waited_for(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    os.mkfifo("pipe")
    assert main([command, "pipe"]) == 1
    assert main([command, "/dev/zero"]) == 1
    about = "this is a pipe or a device, not a file (- reads from standard input)"
    err = capsys.readouterr().err
    assert err.splitlines() == [f"sdz: pipe: {about}", f"sdz: /dev/zero: {about}"]


# Closed streams, with which a program starts if its caller has none: `<&-` in a shell.


def sdz(
    environment: dict[str, str], arguments: str, **streams: int
) -> subprocess.CompletedProcess[bytes]:
    command = f"exec {sys.executable} -m pillow_sdz {arguments}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run(["sh", "-c", command], env=environment, check=False, **pipes)


@posix_only
def test_closed_standard_input(environment: dict[str, str]) -> None:
    done = sdz(environment, "encode - -o y.sdz <&-")
    assert (done.returncode, done.stderr) == (1, b"sdz: -: not a picture that Pillow can read\n")
    assert sdz(environment, "encode a.png -o y.sdz <&-").returncode == 0


@pytest.mark.slow
@posix_only
def test_closed_standard_output(environment: dict[str, str]) -> None:
    """It is an error only if something has to be printed."""
    done = sdz(environment, "info x.sdz >&-")
    assert (done.returncode, done.stderr) == (1, b"sdz: standard output: Bad file descriptor\n")
    done = sdz(environment, "encode a.png -o - >&-")
    assert (done.returncode, done.stderr) == (1, b"sdz: standard output: Bad file descriptor\n")
    for what in ("--version", "--help", "info --help"):
        done = sdz(environment, f"{what} >&-")
        assert (done.returncode, done.stderr) == (1, b"sdz: standard output: Bad file descriptor\n")
    done = sdz(environment, "encode a.png >&-")
    assert (done.returncode, done.stderr) == (0, b"")
    # The file did not get the number of the closed stream, nor what was printed.
    assert Path("a.sdz").read_bytes() == Path("x.sdz").read_bytes()


@posix_only
def test_closed_standard_error(environment: dict[str, str]) -> None:
    done = sdz(environment, "info missing.sdz x.sdz 2>&-")
    assert done.returncode == 1
    assert done.stdout.startswith(b"x.sdz\n")


@posix_only
def test_all_streams_closed(environment: dict[str, str]) -> None:
    assert sdz(environment, "encode a.png <&- >&- 2>&-").returncode == 0
    assert Path("a.sdz").read_bytes() == Path("x.sdz").read_bytes()


@posix_only
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this device")
@pytest.mark.parametrize(
    "arguments", ["info x.sdz", "models list", "encode a.png -o -", "--version"]
)
def test_a_full_disk_behind_standard_output(environment: dict[str, str], arguments: str) -> None:
    done = sdz(environment, f"{arguments} >/dev/full")
    assert done.returncode == 1
    assert done.stderr == b"sdz: standard output: No space left on device\n"


@posix_only
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_went_away(environment: dict[str, str], stream: str) -> None:
    """Nothing is printed, and the status is that of a program that SIGPIPE killed."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        arguments = "info x.sdz" if stream == "stdout" else "info missing.sdz"
        done = sdz(environment, arguments, **{stream: writing})
    finally:
        os.close(writing)
    assert done.returncode == 141
    assert not done.stdout
    assert not done.stderr
