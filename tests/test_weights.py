"""Weight files that are damaged, swapped or no numbers: refused before they decode anything.

`tests/test_stable_diffusion.py` has what is wrong within one file of diffusers' layout, and what
leads to files that nobody checked.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import tiny_models as tiny
from model_registry import no_network, registry
from pillow_sdz import catalogue, models, register_model, weights
from pillow_sdz.codings.lattice import LatticePrior
from pillow_sdz.codings.range_coder import Tables
from pillow_sdz.codings.wave_prior import WavePrior
from pillow_sdz.models import recorded
from pillow_sdz.models.mini import Mini

__all__ = ["no_network", "registry"]

FOLDER = Path(weights.FOLDER)


def damaged(path: Path) -> None:
    """Weights with one wrong bit in the last number. The file can be read as before."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def swapped(path: Path) -> None:
    """Another file of the package under the name of this one. The file itself is sound."""
    other = weights.TABLES if path.name == weights.SD1_PRIOR.name else weights.SD1_PRIOR
    shutil.copyfile(FOLDER / other.name, path)


def no_numbers(path: Path) -> None:
    tensors = load_file(path)
    name = next(name for name, values in tensors.items() if values.is_floating_point())
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, path)


def harmed(
    name: str, harm: Callable[[Path], None], folder: Path, patch: pytest.MonkeyPatch
) -> Path:
    """A damaged copy of a file of weights, which the package now reads."""
    patch.setattr(weights, "FOLDER", folder)
    path = folder / getattr(weights, name).name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(FOLDER / getattr(weights, name).name, path)
    harm(path)
    return path


def test_all_weights_together_stay_small() -> None:
    """The package is to be installed quickly: at most 35 MB of weights."""
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.safetensors")) < 35e6


# The models that have weights of their own.
OWN = [
    spec
    for spec in catalogue.EMBEDDED.values()
    if hasattr(weights, spec.name.replace("-", "_").upper())
]


@pytest.mark.parametrize("harm", [damaged, swapped, no_numbers])
@pytest.mark.parametrize("spec", OWN, ids=lambda spec: spec.name)
def test_embedded_autoencoders(
    harm: Callable[[Path], None],
    spec: catalogue.ModelSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models.load(catalogue.MINI)  # which the perceptual decoder shares
    name = spec.name.replace("-", "_").upper()
    path = harmed(name, harm, tmp_path, monkeypatch)
    monkeypatch.delitem(models._loaded, spec, raising=False)
    with pytest.raises(OSError, match=f"{path} is damaged: its sha256 is .* instead of"):
        models.load(spec)


def load_again(kind: type[LatticePrior | WavePrior], file: weights.Weights) -> None:
    """Load a prior, whether it is loaded or not."""
    kind.shipped.__wrapped__(kind, file)


def load_reduced() -> None:
    mini = Mini(FOLDER / weights.MINI.name)
    list(mini.decode(np.zeros((1, 1, catalogue.MINI.channels)), 5000, scale=8))


@pytest.mark.parametrize("harm", [damaged, swapped])
@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("SD1_PRIOR", lambda: load_again(LatticePrior, weights.SD1_PRIOR)),
        ("SD_MINI_PRIOR", lambda: load_again(LatticePrior, weights.SD_MINI_PRIOR)),
        ("FLUX2_PRIOR", lambda: load_again(WavePrior, weights.FLUX2_PRIOR)),
        ("FLUX2_NARROW_PRIOR", lambda: load_again(WavePrior, weights.FLUX2_NARROW_PRIOR)),
        ("TABLES", lambda: Tables.shipped.__wrapped__(Tables)),
        ("MINI_REDUCED", load_reduced),
    ],
)
def test_what_embedded_models_have_besides(
    harm: Callable[[Path], None],
    name: str,
    load: Callable[[], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Priors and tables hold integers. Any integers would decode to something."""
    Tables.shipped()  # other tests do not decide whether they are loaded
    path = harmed(name, harm, tmp_path, monkeypatch)
    with pytest.raises(OSError, match=f"{path} is damaged: its sha256 is .* instead of"):
        load()


# directories


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return tiny.save_pipeline(tmp_path / "pipeline")


def weights_in(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def use(spec: catalogue.ModelSpec, part: str) -> None:
    if part == "vae":
        models.load(spec)
        return
    embed = models.load_denoiser(spec).embed
    assert embed is not None
    embed("a")


def register(pipeline: Path) -> catalogue.ModelSpec:
    return register_model("ours", pipeline)


def record(pipeline: Path) -> catalogue.ModelSpec:
    return models.record_model("ours", pipeline)


PARTS = ["vae", "unet", "text_encoder"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("known", [register, record])
def test_a_part_that_has_changed_since_it_was_made_known(
    part: str, known: Callable[[Path], catalogue.ModelSpec], pipeline: Path
) -> None:
    spec = known(pipeline)
    use(spec, part)
    models._loaded.clear()
    models._denoisers.clear()
    damaged(weights_in(pipeline / part))
    with pytest.raises(OSError, match=f"{weights_in(pipeline / part)} is damaged: its sha256 is"):
        use(spec, part)


@pytest.mark.parametrize("part", PARTS)
def test_weights_of_another_part(part: str, pipeline: Path) -> None:
    """They are swapped before they are recorded, so no hash shows it.

    Names or shapes of tensors do.
    """
    other = PARTS[(PARTS.index(part) + 1) % len(PARTS)]
    shutil.copyfile(weights_in(pipeline / other), weights_in(pipeline / part))
    with pytest.raises(OSError, match=rf"pipeline/{part}.*(lacks|could not be loaded)"):
        use(register(pipeline), part)


@pytest.mark.parametrize("part", PARTS)
def test_weights_that_are_no_numbers(part: str, pipeline: Path) -> None:
    no_numbers(weights_in(pipeline / part))
    with pytest.raises(OSError, match=f"{weights_in(pipeline / part)} is damaged: .*not a number"):
        use(register(pipeline), part)


@pytest.mark.parametrize(
    ("part", "message"), [("unet", "this U-Net"), ("text_encoder", "this text encoder")]
)
def test_loaded_modules_that_are_no_numbers(part: str, message: str, tmp_path: Path) -> None:
    parts = tiny.pipeline_parts(tmp_path)
    next(parts[part].parameters()).data.view(-1)[0] = float("nan")
    used = {name: parts[name] for name in ("unet", "scheduler", "text_encoder", "tokenizer")}
    with pytest.raises(OSError, match=f"{message} is damaged: .*not a number"):
        use(register_model("ours", parts["vae"], **used), part)


def test_a_damaged_scheduler(pipeline: Path) -> None:
    path = pipeline / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("0.012", '"steep"'))
    with pytest.raises(OSError, match="the field 'beta_end' must be a number above 0"):
        use(register(pipeline), "unet")


def test_records_without_hashes_of_the_parts(pipeline: Path) -> None:
    """Records were made like this before. Only the autoencoder is checked."""
    spec = record(pipeline)
    entry = recorded.read()["ours"]
    assert isinstance(entry, recorded.Directory)
    recorded.write("ours", dataclasses.replace(entry, unet="", text_encoder=""))
    damaged(weights_in(pipeline / "unet"))
    use(spec, "unet")
