"""Every snippet in the README runs: Python as it stands, `sdz` lines through the command line."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageShow

README = Path(__file__).parent.parent / "README.md"

# What a bash block may hold besides `sdz`, and why it is not run here.
NOT_RUN = {
    "pip": "would install into the environment that runs the tests",
    "pytest": "would run this test within itself",
    "cd": "goes with the above",
    "git": "needs the network",
    "python": "benchmarks and training take hours and data that is not in the tree",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """The bash blocks' commands, as words, one for each side of an `&&`."""
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    lines = (line.removeprefix("$ ").strip() for line in text.splitlines())
    parts = (part for line in lines for part in line.split("&&"))
    return [words for part in parts if (words := shlex.split(part, comments=True))]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, photo: Image.Image) -> Path:
    """Where the README's reader stands: a folder with a photo in it."""
    directory = tmp_path_factory.mktemp("readme")
    exif = Image.Exif()
    exif[274] = 1
    photo.resize((128, 96)).save(directory / "photo.jpg", exif=exif)
    return directory


def test_python_blocks(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory)
    monkeypatch.setattr(ImageShow, "show", lambda *args, **options: True)
    snippets = blocks("python")
    assert snippets
    # One after the other, as they are read: a later one may use what an earlier one made.
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, snippet in enumerate(snippets, 1):
        exec(compile(snippet, f"README.md, Python block {number}", "exec"), namespace)


def test_bash_blocks(directory: Path, environment: dict[str, str]) -> None:
    ran = 0
    for words in commands():
        if words[0] in NOT_RUN:
            continue
        assert words[0] == "sdz", f"no rule for {shlex.join(words)}"
        run = subprocess.run(
            [sys.executable, "-m", "pillow_sdz", *words[1:]],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, f"{shlex.join(words)}: {run.stderr}"
        ran += 1
    assert ran
