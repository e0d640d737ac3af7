"""Without a home directory, as in containers and services: all but the models that were added."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_models as tiny
from model_registry import no_network, registry
from pillow_sdz import catalogue, demo, models, presets
from pillow_sdz.models import recorded

__all__ = ["no_network", "registry"]

USING = """
import io, sys, warnings
warnings.simplefilter("error")
from PIL import Image
import pillow_sdz
from pillow_sdz import models

def unknown(_):
    raise KeyError("uid not found")

home, photo, *pipeline = sys.argv[1:]
if home == "nobody":
    import pwd
    pwd.getpwuid = unknown
kinds = [{}, {"tune": "perceptual"}, {"model": "sd-mini", "denoise": 0.1}]
if pipeline:
    pillow_sdz.register_model("ours", *pipeline, latent_space="sd1")
    kinds.append({"model": "ours", "denoise": 0.1})
for keywords in kinds:
    file = io.BytesIO()
    Image.open(photo).convert("RGB").save(file, "SDZ", **keywords)
    Image.open(file).load()
    pillow_sdz.open_latents(file)
try:
    models.load(models.spec("sd1"))
except OSError as e:
    print(e)
print("sd1" in models.names())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("home", "parts"), [("/dev/null", ()), ("nobody", ("pipeline",))])
def test_what_needs_no_added_models_works(
    tmp_path: Path, environment: dict[str, str], home: str, parts: tuple[str, ...]
) -> None:
    """This runs in new processes, because importing torch or diffusers may look for a home, too."""
    pytest.importorskip("pwd", reason="Windows has homes of another kind")
    demo.photo().resize((64, 48)).save(tmp_path / "photo.png")
    if parts:
        tiny.save_pipeline(tmp_path / "pipeline", conditional=False)
    homes = ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "HF_HOME", "SDZ_MODELS")
    kept = {name: value for name, value in environment.items() if name not in homes}
    if home != "nobody":
        kept["HOME"] = home
    done = subprocess.run(
        [sys.executable, "-c", USING, home, "photo.png", *parts],
        cwd=tmp_path,
        env=kept,
        capture_output=True,
        text=True,
        check=False,
    )
    first, *others = done.stdout.splitlines() or [done.stderr]
    assert "run 'sdz models fetch sd1'" in first
    assert others == ["True"]


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, os.strerror(errno.EACCES), "models.json"),
        NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), "models.json"),
        OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "models.json"),
        recorded.Homeless("Could not determine home directory."),
    ],
)
def test_added_models_that_cannot_be_known(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Lists leave them out. A request for one is an error that says why it is not there."""

    def read() -> dict[str, recorded.Record]:
        raise error

    monkeypatch.setattr(recorded, "read", read)
    assert models.names() == sorted({*catalogue.EMBEDDED, *presets.PRESETS})
    assert models.spec("sd1").channels == 4
    with pytest.raises(
        OSError, match=r"a model 'ours', and the list of added models cannot be read: "
    ) as caught:
        models.spec("ours")
    assert str(error) in str(caught.value)


def test_a_damaged_list_is_still_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDZ_MODELS", str(tmp_path / "models.json"))
    (tmp_path / "models.json").write_text("{")
    for ask in (models.names, lambda: models.spec("sd1")):
        with pytest.raises(OSError, match="is damaged"):
            ask()
