"""Every snippet in the README runs: Python as it stands, `sdz` lines through the command line."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageShow

README = Path(__file__).parent.parent / "README.md"

# What a bash block may hold besides `sdz`, and why it is not run here.
NOT_RUN = {
    "pip": "would install into the environment that runs the tests",
    "pytest": "would run this test within itself",
    "sdz models fetch": "would download",
}

# Python blocks with an import of these are run by tests/conformance, where these are installed.
OTHER_TOOLS = re.compile(r"^(from|import) (imageio|matplotlib|django|torchvision|datasets)", re.M)

BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """A bash block's commands as words, one for each side of an `&&`."""
    lines = (line.removeprefix("$ ") for line in text.replace("\\\n", " ").splitlines())
    parts = (part for line in lines for part in line.split("&&"))
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def run(words: list[str], environment: dict[str, str]) -> None:
    if words[0] in NOT_RUN or " ".join(words[:3]) in NOT_RUN:
        return
    if words[:2] == ["python", "-m"]:
        # Benchmarks take long, and photos that are not in the tree: shown to be there.
        subprocess.run(
            [sys.executable, "-m", words[2], "--help"],
            cwd=README.parent,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return
    assert words[0] == "sdz", f"no rule for {shlex.join(words)}"
    done = subprocess.run(
        [sys.executable, "-m", "pillow_sdz", *words[1:]],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"


@pytest.mark.slow
def test_snippets(
    photo: Image.Image,
    tmp_path: Path,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The reader's own pipeline, of the sizes and with the settings that make it quick.
    tiny_models = pytest.importorskip("tiny_models", reason="needs the extra sd")
    parts = tiny_models.pipeline_parts(tmp_path / "parts")
    pipe = tiny_models.diffusers.StableDiffusionPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    quick = functools.partial(pipe, height=64, width=64, num_inference_steps=2)
    vars(quick).update(pipe.components)
    tiny_models.save_pipeline(tmp_path / "my-pipeline")
    (tmp_path / "cache").mkdir()
    cached = np.random.default_rng(0).normal(size=(4, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "cache" / "a_sd.npz", latents=cached, original_size=(64, 64))
    monkeypatch.setenv("SDZ_MODELS", str(tmp_path / "models.json"))
    environment = {**environment, "SDZ_MODELS": str(tmp_path / "models.json")}

    monkeypatch.chdir(tmp_path)
    # As a viewer does, which also closes the file.
    monkeypatch.setattr(ImageShow, "show", lambda image, *args: bool(image.load()))
    photo.resize((128, 96)).save("photo.jpg")

    snippets = BLOCK.findall(README.read_text())
    assert {language for language, _ in snippets} == {"python", "bash"}
    # In the order in which they are read: a later one may use what an earlier one made.
    namespace: dict[str, object] = {"__name__": "__main__", "pipe": quick}
    for number, (language, text) in enumerate(snippets, 1):
        if language == "python" and OTHER_TOOLS.search(text):
            continue
        if language == "python":
            exec(compile(text, f"README.md, snippet {number}", "exec"), namespace)
        else:
            for words in commands(text):
                run(words, environment)
