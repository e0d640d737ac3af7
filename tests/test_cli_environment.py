"""The command line in a wrong environment prints one clear line, and no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def folder(photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with x.sdz, and y.sdz of a model whose U-Net denoises."""
    monkeypatch.chdir(tmp_path)
    photo.save("x.sdz")
    photo.save("y.sdz", model="sd-mini", coding="palette")


def sdz(
    environment: dict[str, str], *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pillow_sdz", *arguments],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SDZ_DTYPE", "x"),
        ("SDZ_DENOISE", "1e-320"),
        ("SDZ_DENOISE", "nan"),
        ("SDZ_DENOISE_STEPS", "0"),
        ("SDZ_DEVICE", "a b"),
        ("SDZ_MEMORY_BUDGET", "9" * 5000),
        ("SDZ_ALLOW_DOWNLOADS", "\x1b[2J\nsdz: all is well"),
    ],
)
@pytest.mark.parametrize("command", [["info"], ["decode", "-o", "z.png"]])
def test_nonsense(environment: dict[str, str], command: list[str], name: str, text: str) -> None:
    done = sdz(environment, *command, "x.sdz", **{name: text})
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"sdz: the environment variable {name} must be ")
    assert line.isprintable()
    assert len(line) < 250
    assert not Path("z.png").exists()


def test_every_wrong_variable_is_named(environment: dict[str, str]) -> None:
    done = sdz(environment, "info", "x.sdz", SDZ_DTYPE="x", SDZ_DENOISE="y")
    assert [line.split()[4] for line in done.stderr.splitlines()] == ["SDZ_DTYPE", "SDZ_DENOISE"]


def test_help_is_there_in_any_environment(environment: dict[str, str]) -> None:
    assert sdz(environment, "--help", SDZ_DTYPE="x").returncode == 0


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SDZ_DECODER": "nonsense"}, "options.DECODER must be one of "),
        ({"SDZ_DECODER": "sd1"}, "options.DECODER is 'sd1', which decodes sd1 latents"),
    ],
)
def test_what_shows_only_when_it_is_used(
    environment: dict[str, str], variables: dict[str, str], message: str
) -> None:
    pytest.importorskip("diffusers", reason="needs the extra sd")
    done = sdz(environment, "decode", "y.sdz", "-o", "z.png", SDZ_DENOISE="1", **variables)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"sdz: y.sdz: {message}")
    assert len(line) < 600


def test_a_list_of_models_that_is_no_file(environment: dict[str, str]) -> None:
    done = sdz(environment, "models", "list", SDZ_MODELS=".")
    assert (done.returncode, done.stderr) == (1, "sdz: models: .: Is a directory\n")


@pytest.mark.slow
def test_a_device_that_torch_lacks(environment: dict[str, str], tmp_path: Path) -> None:
    """The package's own models always run on the CPU. Another model cannot be run then."""
    pytest.importorskip("diffusers", reason="needs the extra sd")
    import tiny_models

    tiny_models.autoencoder_tiny().save_pretrained("ours")
    variables = {"SDZ_DEVICE": "hpu", "SDZ_MODELS": str(tmp_path / "models.json")}
    assert sdz(environment, "models", "add", "ours", "ours", **variables).returncode == 0
    assert sdz(environment, "decode", "x.sdz", "-o", "x.png", **variables).returncode == 0
    done = sdz(environment, "encode", "x.png", "--model", "ours", "-o", "z.sdz", **variables)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    start = "sdz: x.png: options.DEVICE is 'hpu', but torch has no such device here: "
    assert line.startswith(start)
    assert not Path("z.sdz").exists()
