"""Every snippet in the documentation runs: Python as it is, `sdz` through the command line.

`NOT_RUN` lists the commands that do not run; `test_what_does_not_run` skips them with a reason.

Each page stands by itself. Its snippets run in the order of the page, in one namespace and one
folder, with a ``photo.jpg``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageShow

from model_registry import autoencoder_directory

ROOT = Path(__file__).parent.parent

BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
    if BLOCK.search(page.read_text())
)

# Pages for readers who have a pipeline of diffusers. Their snippets call it `pipe`.
WITH_PIPELINE = ("README.md", "docs/stable-diffusion.md")

# What a bash block may contain besides `sdz` and `python -m`, and why it does not run here.
NOT_RUN = {
    "pip": "would install into the environment that runs the tests",
    "pytest": "would run this test within itself",
    "sdz models fetch": "would download",
    "git": "would change the checkout",
    "cd": "leads into a checkout that was not made",
    ".": "activates an environment that was not made",
    "python -m venv": "would make an environment",
    "python -m build": "would write to the checkout",
    "bash .ci/run": "runs all tests, this one included",
    "ruff": "is a check of its own in .ci/run",
    "mypy": "is a check of its own in .ci/run",
    "python examples/server.py": "serves until it is stopped; tests/test_server.py has it",
    "curl": "asks the server that was not started",
}
# Commands that need more than the package: the module, and why.
NEEDS = {
    "sdz completion": ("shtab", "needs the extra shell"),
    "sdz manpage": ("argparse_manpage", "needs the extra shell"),
}

SHELL = ("|", "<", ">")  # what a command of `sdz` may have besides words

# tests/conformance runs Python blocks that import these, if they are installed.
OTHER_TOOLS = re.compile(r"^(from|import) (imageio|matplotlib|django|torchvision|datasets)", re.M)

# Commands of the checkout, in blocks or in a sentence.
MODULE = re.compile(r"python -m ((?:benchmarks|fuzz|pillow_sdz|training)[a-z0-9_.]*)")


def commands(text: str) -> list[list[str]]:
    """A bash block's commands as words, one command for each side of an `&&`."""
    lines = text.replace("\\\n", " ").splitlines()
    parts = (part for line in lines for part in line.split("&&"))
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def reason_not_to_run(words: list[str]) -> str | None:
    """Why a command does not run here; None if it does."""
    beginnings = [" ".join(words[:length]) for length in (1, 2, 3)]
    for name, (module, reason) in NEEDS.items():
        if name in beginnings and importlib.util.find_spec(module) is None:
            return reason
    return next((NOT_RUN[name] for name in beginnings if name in NOT_RUN), None)


@functools.cache
def help_of(module: str) -> str:
    """The output of ``python -m module --help``."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [module, "--help"])
        patch.setattr(sys, "path", [*sys.path, str(ROOT)])
        patch.setenv("COLUMNS", "100")
        patch.delitem(sys.modules, module, raising=False)  # it runs as __main__, not twice
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__")
    assert ended.value.code in (None, 0)
    return printed.getvalue()


def run(words: list[str], environment: dict[str, str]) -> None:
    """Run the command. If it cannot run here, check as much of it as possible."""
    while re.match("[A-Z_]+=", words[0]):
        name, _, value = words[0].partition("=")
        words, environment = words[1:], {**environment, name: value}
    if reason_not_to_run(words) is not None:
        return
    if words[:3] == ["python", "-m", "pytest"]:
        missing = [
            word
            for word in words[3:]
            if word.startswith("tests/") and not (ROOT / word.partition("::")[0]).exists()
        ]
        assert not missing, shlex.join(words)
        return
    if words[:2] == ["python", "-m"]:
        # Benchmarks take long and need photos that are not in the tree. Check only that they exist.
        known = help_of(words[2])
        unknown = [word for word in words[3:] if word.startswith("--") and word not in known]
        assert not unknown, f"{shlex.join(words)}: no {unknown} in its help"
        return
    assert words[0] == "sdz", f"no rule for {shlex.join(words)}"
    # A shell runs it, because of pipes and redirections.
    line = " ".join(
        word if word in SHELL or word[:1] == "~" else shlex.quote(word) for word in words
    )
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'sdz() {{ "$PYTHON" -m pillow_sdz "$@"; }}; {line}'],
        env={**environment, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"


def pipeline(folder: Path) -> functools.partial[object]:
    """The reader's own pipeline, with small sizes and settings that make it quick.

    It is also in ``folder``/my-pipeline.
    """
    tiny_models = pytest.importorskip("tiny_models", reason="needs the extra sd")
    pipe = tiny_models.diffusers.StableDiffusionPipeline(
        **tiny_models.pipeline_parts(folder / "parts")
    )
    pipe.set_progress_bar_config(disable=True)
    quick = functools.partial(pipe, height=64, width=64, num_inference_steps=2)
    vars(quick).update(pipe.components)
    tiny_models.save_pipeline(folder / "my-pipeline")
    return quick


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_snippets(
    page: str,
    photo: Image.Image,
    tmp_path: Path,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    if page in WITH_PIPELINE:
        namespace["pipe"] = pipeline(tmp_path)
    else:  # enough to be recorded
        autoencoder_directory(tmp_path / "my-pipeline" / "vae")
    monkeypatch.setenv("SDZ_MODELS", str(tmp_path / "models.json"))
    environment = {
        **environment,
        "SDZ_MODELS": str(tmp_path / "models.json"),
        "HOME": str(tmp_path / "home"),
    }
    for folder in (".local/share/bash-completion/completions", ".zfunc", ".local/share/man/man1"):
        (tmp_path / "home" / folder).mkdir(parents=True)

    monkeypatch.chdir(tmp_path)
    # A viewer would show and close the file, so do the same.
    monkeypatch.setattr(ImageShow, "show", lambda image, *args: bool(image.load()))
    # What the reader has: a photo, a folder of photos, and a cache of latents.
    photo.resize((128, 96)).save("photo.jpg")
    Path("photos").mkdir()
    photo.save("photos/one.jpg")
    Path("cache").mkdir()
    latents = np.random.default_rng(0).normal(size=(4, 8, 8)).astype(np.float32)
    np.savez("cache/a_sd.npz", latents=latents, original_size=(64, 64))

    for number, (language, text) in enumerate(BLOCK.findall((ROOT / page).read_text()), 1):
        if language == "python" and OTHER_TOOLS.search(text):
            continue
        if language == "python":
            exec(compile(text, f"{page}, snippet {number}", "exec"), namespace)
        else:
            for words in commands(text):
                run(words, environment)


@pytest.mark.parametrize(
    ("page", "command"),
    [
        (page, command)
        for page in PAGES
        for language, text in BLOCK.findall((ROOT / page).read_text())
        if language != "python"
        for words in commands(text)
        if reason_not_to_run(words) is not None
        for command in [shlex.join(words)]
    ],
)
def test_what_does_not_run(page: str, command: str) -> None:
    pytest.skip(f"{page}: {command}: {reason_not_to_run(shlex.split(command))}")


def test_pages() -> None:
    """The pages for newcomers have snippets, so the tests above include them."""
    names = (
        "command-line",
        "saving",
        "quality",
        "speed",
        "large",
        "tools",
        "stable-diffusion",
        "many",
        "security",
    )
    assert {"README.md", "CONTRIBUTING.md", *(f"docs/{name}.md" for name in names)} <= set(PAGES)


def test_modules() -> None:
    """Every ``python -m ...`` that a page names exists in the checkout."""
    pages = (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "training" / "README.md")
    for page in pages:
        for module in MODULE.findall(page.read_text()):
            path = ROOT / module.rstrip(".").replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), (
                f"{page.name} has python -m {module}"
            )
