"""The training program: one command starts it, and it goes on after an interruption."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pillow_sdz import demo

pytest.importorskip("ssimulacra2", reason="the training loss takes its constants from ssimulacra2")

# Training is not part of the installed package. Only the checkout has it.
sys.path.append(str(Path(__file__).parent.parent))


from training.data import to_tensor
from training.mini import Model, shipped

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    photo = demo.photo()
    for i in range(3):
        photo.crop((100 * i, 50 * i, 100 * i + 160, 50 * i + 128)).save(folder / f"{i}.png")
    return folder


def train(photos: Path, run: Path, minutes: float) -> int:
    """Train until this many minutes in all. Return the steps."""
    arguments = ["--photos", photos, "--run", run, "--minutes", minutes, "--crop", 32, 16]
    arguments += ["--perceptual", 0.3, "--hard", "--threads", 1]
    command = [sys.executable, "-m", "training.mini", *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    step = torch.load(run / "checkpoint.pt", weights_only=True)["step"]
    assert isinstance(step, int)
    return step


@pytest.mark.slow
def test_resumes_from_its_checkpoint(photos: Path, tmp_path: Path) -> None:
    first = train(photos, tmp_path, 0.03)
    assert first > 0
    assert train(photos, tmp_path, 0.03) == first  # nothing is left to do
    assert train(photos, tmp_path, 0.06) > first
    weights = load_file(tmp_path / "averaged.safetensors")
    assert all(torch.isfinite(v).all() for v in weights.values())
    assert {v.dtype for v in weights.values()} == {torch.float16}


def test_goes_on_from_the_weights_that_ship() -> None:
    model = Model()
    model.load_state_dict({k: v.float() for k, v in shipped().items()})
    image = to_tensor(np.asarray(demo.photo().crop((0, 0, 256, 256))))
    with torch.no_grad():
        reconstruction, bits_per_pixel = model(image, torch.tensor([0.5]), hard=True)
    real = io.BytesIO()
    demo.photo().crop((0, 0, 256, 256)).save(real, "SDZ", quality=50.5, effort=0)
    # Framing, and the percent that the integer prior may cost.
    assert 8 * (real.tell() - 60) / 256**2 == pytest.approx(bits_per_pixel.item(), rel=0.02)
    assert torch.isfinite(reconstruction).all()
