"""Nothing in a file, a name, a model's folder or the arguments commands the terminal.

Nor does it add a line to what is printed, which could pass for one of the program's own.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from model_registry import autoencoder_directory, hub_cache, no_network, registry
from pillow_sdz import save_latents
from pillow_sdz.cli import main
from pillow_sdz.cli.messages import one_line_each, printable

__all__ = ["hub_cache", "no_network", "registry"]

pytestmark = [
    pytest.mark.usefixtures("one_process"),
    pytest.mark.skipif(os.name != "posix", reason="other systems allow no such names"),
]

# Clears the screen, sets the title, and adds a line.
HOSTILE = "a\x1b[2J\x1b]0;title\x07\nsdz: all is well\r\x9b1m\u202e"
SHOWN = r"a\x1b[2J\x1b]0;title\x07\nsdz: all is well\r\x9b1m\u202e"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def assert_harmless(text: str) -> None:
    """Every line is printable, and none is that of the hostile name."""
    lines = text.split("\n")
    assert all(line.isprintable() for line in lines)
    assert "sdz: all is well" not in lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("Füße 足 🦶", "Füße 足 🦶"),
        (HOSTILE, SHOWN),
        ("\udcff", r"\udcff"),  # a byte in a name that is not UTF-8
        ("\x00\x7f\u2028", r"\x00\x7f\u2028"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("command", ["encode", "decode", "latents", "info", "compare"])
def test_the_name_of_a_file_that_cannot_be_read(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(f"{HOSTILE}.sdz").write_bytes(b"nothing")
    Path(f"{HOSTILE}.png").write_bytes(b"nothing")
    assert main([command, "."]) == 1
    assert main([command, f"{HOSTILE}.sdz", f"{HOSTILE}2.png"]) == 1
    out, err = capsys.readouterr()
    assert_harmless(out + err)
    assert SHOWN in err


def test_the_name_of_a_file_that_is_written(
    photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    photo.save(f"{HOSTILE}.png")
    assert main(["encode", f"{HOSTILE}.png", "-v"]) == 0
    assert main(["decode", f"{HOSTILE}.sdz", "-v", "-o", "x.png"]) == 0
    assert main(["latents", f"{HOSTILE}.sdz", "-v"]) == 0
    assert main(["info", f"{HOSTILE}.sdz"]) == 0
    assert main(["compare", f"{HOSTILE}.png"]) == 0
    out, err = capsys.readouterr()
    assert_harmless(out + err)
    assert f"{SHOWN}.png -> {SHOWN}.sdz: " in out


def test_json_keeps_the_name(photo: Image.Image, capsys: pytest.CaptureFixture[str]) -> None:
    photo.save(f"{HOSTILE}.sdz")
    assert main(["info", "--json", f"{HOSTILE}.sdz"]) == 0
    out = capsys.readouterr().out
    assert_harmless(out)
    assert json.loads(out)[0]["file"] == f"{HOSTILE}.sdz"


def test_texts_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    latents = np.zeros((4, 8, 6), np.float32)
    save_latents(latents, "x.sdz", model="sd1", prompt=HOSTILE, provenance={HOSTILE: HOSTILE})
    assert main(["info", "x.sdz"]) == 0
    assert_harmless(capsys.readouterr().out)


@pytest.mark.parametrize(
    "arguments",
    [
        [HOSTILE],
        ["encode", "a.png", f"--quality={HOSTILE}"],
        ["encode", "a.png", "b.png", "-o", f"{HOSTILE}.png"],
        ["encode", "a.png", "--coding", HOSTILE],
        ["encode", "a.png", "-q", HOSTILE],
        ["decode", "a.sdz", "--format", HOSTILE],
        ["models", HOSTILE],
    ],
)
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert_harmless(capsys.readouterr().err)


def test_names_of_tensors(capsys: pytest.CaptureFixture[str]) -> None:
    save_file({HOSTILE: np.zeros(3, np.int32)}, "x.safetensors")
    save_file({HOSTILE: np.zeros(3), "b": np.zeros(3)}, "y.safetensors")
    np.savez("z.npz", **{HOSTILE: np.zeros(3, np.int32)})
    assert main(["encode", "x.safetensors", "y.safetensors", "z.npz"]) == 1
    assert_harmless("".join(capsys.readouterr()))


def test_a_model_s_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """The folder's name and the contents of its files are harmless."""
    folders = {
        "good": autoencoder_directory(Path(HOSTILE).absolute() / "vae"),
        "class": autoencoder_directory(Path("class"), _class_name=HOSTILE),
        "json": autoencoder_directory(Path("json")),
        "unet": autoencoder_directory(Path("pipeline/vae")).parent,
    }
    (folders["json"] / "config.json").write_text(HOSTILE)
    autoencoder_directory(Path("pipeline/unet"), _class_name=HOSTILE)
    for name, directory in folders.items():
        main(["models", "add", name, str(directory)])
    main(["models", "add", HOSTILE, HOSTILE])
    main(["models", "add", "space", HOSTILE, "--latent-space", HOSTILE])
    for action in ("path", "verify", "fetch"):
        main(["models", action, "good"])
        main(["models", action, HOSTILE])
    main(["models", "list"])
    out, err = capsys.readouterr()
    assert SHOWN in out
    assert SHOWN in err
    assert_harmless(out + err)


def test_a_damaged_list_of_models(capsys: pytest.CaptureFixture[str]) -> None:
    Path("config").mkdir()
    Path("config/models.json").write_text(json.dumps({HOSTILE: 5}))
    assert main(["models", "list"]) == 1
    assert main(["models", "repair"]) == 0
    out, err = capsys.readouterr()
    assert f"{SHOWN}: left out" in out
    assert_harmless(out + err)


def test_warnings(
    monkeypatch: pytest.MonkeyPatch, photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    """Warnings about a file name it. There are other warnings, too."""

    def warning(*_: object, **__: object) -> list[str]:
        warnings.warn(HOSTILE, stacklevel=1)
        return []

    photo.save("x.png")
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", warning)
        main(["encode", "x.png"])
    with monkeypatch.context() as patch:
        patch.setattr("pillow_sdz.models.names", warning)
        main(["models", "fetch", "none"])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(r"sdz: x.png: warning: a\x1b[2J")
    assert any(line.startswith(r"sdz: warning: a\x1b[2J") for line in lines)
    assert_harmless("\n".join(lines))


def test_what_libraries_log(capsys: pytest.CaptureFixture[str]) -> None:
    """transformers logs the names of tensors that it does not expect."""
    logger = logging.getLogger("test_what_libraries_log")
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    try:
        with one_line_each():
            logger.warning("not used: %s", HOSTILE)
        logger.warning("as\nbefore")
    finally:
        logger.removeHandler(handler)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].isprintable()
    assert lines[0].startswith(r"not used: a\x1b[2J")
    assert lines[1:] == ["as", "before"]
