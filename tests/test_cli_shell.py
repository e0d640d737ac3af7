"""Completion for shells, and the page for `man`. Libraries make both from the parser."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pillow_sdz.cli import main

COMMANDS = ["encode", "decode", "latents", "info", "compare", "models", "demo"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("shtab", reason="needs the extra shell")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS)
    assert "target-size" in script
    if found := shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([found, "-n", tmp_path / "script"], check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Commands, options, the values of options, and files."""
    pytest.importorskip("shtab", reason="needs the extra shell")
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "photo.jpg").touch()

    def completed(*words: str) -> set[str]:
        program = (
            'source ./script; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1));'
            '_shtab_sdz; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "-c", program, "bash", "sdz", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return set(done.stdout.split())

    assert completed("enc") == {"encode"}
    assert completed("models", "re") == {"repair"}
    assert "--target-size" in completed("encode", "--ta")
    assert completed("encode", "--tune", "") == {"psnr", "perceptual"}
    assert "photo.jpg" in completed("encode", "pho")


def test_manpage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("argparse_manpage", reason="needs the extra shell")
    assert main(["manpage"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(".TH SDZ ")
    assert all(f"sdz {command}" in page.replace("\\-", "-") for command in COMMANDS)
    assert "--target-size" in page.replace("\\-", "-")
    if man := shutil.which("man"):
        (tmp_path / "sdz.1").write_text(page)
        subprocess.run(
            [man, "--warnings", "-l", tmp_path / "sdz.1"], capture_output=True, check=True
        )


@pytest.mark.parametrize(
    ("command", "module", "package"),
    [("completion bash", "shtab", "shtab"), ("manpage", "argparse_manpage", "argparse-manpage")],
)
def test_without_the_extra(
    command: str,
    module: str,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "argparse_manpage.manpage", None)
    assert main(command.split()) == 1
    name = command.split()[0]
    assert capsys.readouterr().err == (
        f'sdz: {name}: needs {package}: run pip install "pillow-sdz[shell]"\n'
    )
