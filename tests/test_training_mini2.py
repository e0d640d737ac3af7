"""Training of the second generation: its transform, its beginning, and going on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pillow_sdz import demo

pytest.importorskip("ssimulacra2", reason="the training loss takes its constants from ssimulacra2")
pytest.importorskip("matplotlib", reason="charts are among the training pictures")
# Training is no part of the installed package, so that only the checkout has it.
sys.path.append(str(Path(__file__).parent.parent))
from training import mini
from training.mini2.data import Crops, Writer, to_tensor
from training.mini2.model import STRETCH, Model, begin_details, take_over
from training.mini2.network import LappedTransform

ROOT = Path(__file__).parent.parent


def test_details_are_complete_and_orthogonal() -> None:
    torch.manual_seed(0)
    transform, image = LappedTransform(), torch.randn(2, 3, 64, 48)
    coefficients = transform(image)
    assert coefficients.shape == (2, 192, 8, 6)
    assert torch.allclose(transform.inverse(coefficients), image, atol=1e-5)
    assert (coefficients**2).sum() == pytest.approx((image**2).sum().item(), rel=1e-5)


def test_begins_where_the_first_generation_ends() -> None:
    first, second = mini.Model(), Model()
    weights = {k: v.float() for k, v in mini.shipped().items()}
    first.load_state_dict(weights)
    take_over(second, weights)
    begin_details(second)
    image = to_tensor(np.asarray(demo.photo().crop((0, 0, 128, 128))))
    place = 0.2  # a knot: between knots both only come near each other
    with torch.no_grad():
        expected, _ = first(image, torch.tensor([place * STRETCH]), hard=True)
        rate = torch.full((1, 1, 1, 1), place)
        coded = second(image, rate, details=False, hard=True)
    assert coded.detail.item() == 0
    assert torch.allclose(coded.picture, expected, atol=1e-3)


def test_a_map_gives_each_cell_its_rate() -> None:
    model = Model()
    take_over(model, mini.shipped())
    begin_details(model)
    image = to_tensor(np.asarray(demo.photo().crop((0, 0, 256, 128))))
    low, high = (torch.full((1, 1, 4, 8), value) for value in (0.2, 0.7))
    mixed = low.clone()
    mixed[..., :4] = 0.7
    with torch.no_grad():
        error = []
        for rate in (low, mixed, high):
            picture = model(image, rate, details=True, hard=True).picture
            error.append(((picture - image) ** 2)[..., :64].mean())
    assert error[1] == pytest.approx(error[2].item(), rel=0.1)
    assert error[1] < error[0] / 2


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    writer, photo = Writer(folder), np.asarray(demo.photo())
    for i in range(2):
        writer.add(photo[i * 8 :, i * 8 :], "photos")
    writer.add(photo[:300, :300], "graphics")
    assert "2 photos" in writer.close()
    return folder


def test_crops_come_from_packs(pack: Path) -> None:
    import random

    crops = Crops([pack], random.Random(0)).batch(4, 64)
    assert crops.shape == (4, 3, 64, 64)
    assert crops.abs().max() <= 0.5


def train(pack: Path, run: Path, minutes: float) -> int:
    """Train so long in all; the steps made."""
    arguments = ["--packs", pack, "--validation", pack, "--run", run, "--minutes", minutes]
    command = [sys.executable, "-m", "training.mini2.train", *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    step = torch.load(run / "checkpoint.pt", weights_only=True)["step"]
    assert isinstance(step, int)
    return step


def test_resumes_from_its_checkpoint(pack: Path, tmp_path: Path) -> None:
    first = train(pack, tmp_path, 0.01)
    assert first > 0
    assert train(pack, tmp_path, 0.1) > first
    weights = load_file(tmp_path / "averaged.safetensors")
    assert all(torch.isfinite(v).all() for v in weights.values())
    assert {v.dtype for v in weights.values()} == {torch.float16}
