"""Training of the second generation: its transform, its beginning, and going on."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file

from pillow_sdz import demo
from pillow_sdz.arrays import Ints
from pillow_sdz.codings import occupancy, quality_map
from pillow_sdz.codings.hyperprior import HyperPrior
from pillow_sdz.codings.quantize import Quantizer
from pillow_sdz.codings.range_coder import MEAN_UNITS, Tables
from pillow_sdz.codings.rate_axis import LAST, RateAxis
from pillow_sdz.models import runtime
from pillow_sdz.models.mini.network import LimitedBlock, beyond, borders
from pillow_sdz.models.mini.rate import logistic_bits
from pillow_sdz.models.mini.shape import BASE
from pillow_sdz.weights import MINI

pytest.importorskip("ssimulacra2", reason="the training loss takes its constants from ssimulacra2")
pytest.importorskip("matplotlib", reason="charts are among the training pictures")
# Training is no part of the installed package, so that only the checkout has it.
sys.path.append(str(Path(__file__).parent.parent))
from benchmarks import metrics
from training.mini import compressed, train
from training.mini.data import Crops, Pack, Writer, to_tensor
from training.mini.eight_bits import round_blocks, rounded
from training.mini.export import in_steps
from training.mini.lapped import block_weight, lapped_transform
from training.mini.model import TAIL_FROM, Model, begin, fit_magnitudes
from training.mini.ms_ssim import ms_ssim
from training.mini.pairs import paired
from training.mini.prior import BASE_GROUPS, GROUPS, ScaleOfMagnitude, centres, even
from training.mini.quantise import calibrate, integers

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model() -> Model:
    """A model at the beginning of its training, but fitted to fewer photos."""
    model, photo = Model(), np.asarray(demo.photo())
    photos = [photo[:320, :320], photo[-320:, -320:], photo[:320, -320:], photo[-320:, :320]]
    begin(model, load_file(MINI.path), photos)
    fit_magnitudes(model, photos)
    return model


@torch.no_grad()
def decoded(model: Model, image: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    picture = model(image, rate, hard=True).picture
    assert isinstance(picture, torch.Tensor)
    return picture


def test_borders_can_be_extended_without_a_loss() -> None:
    basis = lapped_transform(16)
    transform = torch.einsum("rc,in,jm->rijcnm", torch.eye(3), basis, basis).flatten(0, 2)
    weight = block_weight(transform)
    image = torch.rand(1, 3, 96, 48) - 0.5
    latents = F.conv2d(F.pixel_unshuffle(beyond(image), 16), weight)
    assert latents.shape == (1, 768, 6, 3)
    back = F.conv2d(latents, weight.flip(2, 3).transpose(0, 1), padding=1)
    again = borders(F.pixel_shuffle(back, 16)[..., 8:-8, 8:-8])
    assert torch.allclose(again, image, atol=1e-5)


def test_the_linear_transform_alone_is_precise(model: Model) -> None:
    image = to_tensor(np.asarray(demo.photo().crop((0, 0, 128, 128))))
    rate = torch.ones(1, 1, 1, 1)  # no CNN adds anything there before the training
    with torch.no_grad():
        picture = model.autoencoder.decoder(model.autoencoder.encoder(image, rate), rate)
    assert ((picture - image) ** 2).mean() < 10**-4.5


def test_a_map_gives_each_cell_its_rate(model: Model) -> None:
    image = to_tensor(np.asarray(demo.photo().crop((0, 0, 256, 128))))
    low, high = (torch.full((1, 1, 4, 8), value) for value in (0.2, 0.7))
    mixed = low.clone()
    mixed[..., :4] = 0.7
    error = [
        ((decoded(model, image, rate) - image) ** 2)[..., :64].mean() for rate in (low, mixed, high)
    ]
    assert error[1] == pytest.approx(error[2].item(), rel=0.1)
    assert error[1] < error[0] / 2


def test_low_rates_have_no_tail(model: Model) -> None:
    image = to_tensor(np.asarray(demo.photo().crop((0, 0, 128, 128))))
    with torch.no_grad():
        low, high = (
            model(image, torch.full((1, 1, 1, 1), t), hard=True) for t in (TAIL_FROM - 0.1, 0.9)
        )
    assert low.tail.item() == 0 < high.tail.item()


def test_fitted_magnitudes_save_bits(model: Model) -> None:
    image = to_tensor(np.asarray(demo.photo().crop((128, 0, 384, 256))))
    plain = Model()
    plain.load_state_dict(model.state_dict())
    for prediction in plain.prior.magnitudes:
        torch.nn.init.zeros_(prediction.weight)
    rate = torch.full((1, 1, 1, 1), 0.6)
    with torch.no_grad():
        fitted, unfitted = (m(image, rate, hard=True) for m in (model, plain))
    assert fitted.base + fitted.tail < 0.9 * (unfitted.base + unfitted.tail)


def test_scales_give_back_the_magnitude_they_were_asked_for() -> None:
    asked = torch.tensor([0.01, 0.1, 1.0, 10.0])
    log_scale = ScaleOfMagnitude()(asked)
    symbols = torch.arange(-400, 401).float()[:, None]
    mass = 2 ** -logistic_bits(symbols, torch.zeros(4), log_scale)
    assert torch.allclose((mass * symbols.abs()).sum(0), asked, rtol=0.02)


def test_weak_channels_are_pulled_to_an_integer() -> None:
    mean = torch.tensor([0.3, 1.4, 0.3, -0.6])
    scale = torch.tensor([0.05, 0.1, 2.0, 0.325])
    found = centres(mean, scale.log())
    assert found.tolist() == pytest.approx([0.0, 1.0, 0.3, -0.8])


class Predicted(Quantizer):
    """A coder that keeps what is predicted of latents (h, w, C), in the coder's units."""

    def __init__(self, latents: NDArray[np.float32], hyper: NDArray[np.float32]) -> None:
        besides = quality_map.volumes(None) | {"left out": np.zeros(1)}
        besides["occupied"] = occupancy.patches(np.ones((*latents.shape[:2], 9), bool))
        super().__init__(Tables.shipped(), latents, hyper, besides=besides)
        self.mean, self.scale = (np.zeros(latents.shape, np.int32) for _ in range(2))

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        if volume == "latents":
            for whole, part in ((self.mean, mean), (self.scale, scale)):
                whole[index] = part.reshape(-1, index[2].stop - index[2].start)
        return super().code(volume, index, mean, scale)


@torch.no_grad()
@pytest.mark.parametrize("place", [0.3, 0.7])
def test_integers_predict_what_the_floats_do(
    model: Model, place: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, photo = copy.deepcopy(model), np.asarray(demo.photo())
    monkeypatch.setattr("training.mini.model.RIDGE", 0.01)  # for large sums there is no room
    fit_magnitudes(model, [photo[:320, :320], photo[-320:, -320:], photo[:320, -320:]])
    model.prior.analysis[-1].weight *= 8  # hyperlatents of a size that training gives them
    for layer in model.prior.last:  # they are zero at first
        torch.nn.init.normal_(layer.weight, std=0.05)
    # An odd number of rows, so that half of a cell is empty.
    part = photo[50:274, 100:356]
    samples = [in_steps(model, part, p) for p in (0.0, place, 1.0)]
    tensors = integers(model.prior, calibrate(model.prior, samples))
    prior = HyperPrior(tensors, RateAxis(np.linspace(0, LAST, 101)))
    latents, rate = in_steps(model, part, place)
    hyper = model.prior.analysis(even(latents[:, :BASE]))
    coder = Predicted(*(x[0].permute(1, 2, 0).numpy() for x in (latents, hyper)))
    size = latents.shape[2:]
    prior.code(coder, *size, round(place * LAST))
    features = model.prior.features(torch.round(hyper))[..., : size[0], : size[1]]
    groups = len(GROUPS) if place >= TAIL_FROM else BASE_GROUPS
    expected = model.prior.parameters_of(features, torch.round(latents), rate, groups)
    mean, log_scale = (x[0].permute(1, 2, 0).numpy() for x in expected)
    scale = 8 * log_scale / math.log(2) + 40  # as an index of the coder's tables
    count = mean.shape[2]
    # Half a unit is rounding.  A scale is less exact where its magnitude is a small difference.
    for found, wanted in (
        (coder.mean[..., :count], MEAN_UNITS * mean),
        (coder.scale[..., :count].clip(0), scale.clip(0)),
    ):
        assert np.quantile(np.abs(found - wanted), 0.9) < 1 < wanted.std()


@torch.no_grad()
@pytest.mark.parametrize("place", [0.1, 0.7])
def test_latents_as_a_file_has_them(place: float) -> None:
    """With the shipped prior: some latents are not the nearest integers, more at high rates."""
    model = Model()
    state = load_file(ROOT / "training/mini_state.safetensors")
    model.load_state_dict({k: v.float() for k, v in state.items()})
    image, rate = to_tensor(np.asarray(demo.photo())[:256, :256]), torch.full((1, 1, 1, 1), place)
    steps, _, active = model.in_steps(image, rate)
    *_, symbols = model.prior(steps, active, rate, hard=True, whole=bool(active.any()))
    torch.testing.assert_close(symbols, torch.round(symbols), atol=1e-3, rtol=0)
    error = (symbols - steps).abs()
    assert error.max() <= 1.001
    coded = torch.round(steps) != 0
    changed = (error > 0.501)[coded].double().mean().item()
    assert (0.0 < changed < 0.05) if place == 0.1 else (0.05 < changed < 0.3)


@torch.no_grad()
@pytest.mark.parametrize("alike", [False, True], ids=["random", "largest"])
def test_blocks_are_rounded_in_training_as_the_package_does_it(*, alike: bool) -> None:
    """If all channels are alike, and as large as can be, sums of neighbours are the largest."""
    onnx = pytest.importorskip("onnx", reason='graphs need pip install ".[train]"')
    from training.graph import Graph

    torch.manual_seed(0)
    blocks = torch.nn.Sequential(LimitedBlock(8))
    for parameter in blocks.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2)
    blocks[0].limits.copy_(torch.tensor([2.0, 1.0, 1.5]))
    x = torch.randn(1, 8, 12, 12)
    if alike:
        x = 2 * x[:, :1].sign().expand(1, 8, -1, -1)
        for layer in (blocks[0].first, blocks[0].second):
            layer.weight.copy_(0.02 * layer.weight[:, :1].sign().expand_as(layer.weight))
    plain = blocks(x)

    tensors = {f"blocks.{k}": v.numpy() for k, v in blocks.state_dict().items()}
    graph = Graph(tensors, int8=True)
    result = graph.blocks("x", "blocks", 1)
    given = {"x": (onnx.TensorProto.FLOAT, (1, 8, 12, 12))}
    file = graph.finish(result, given, onnx.TensorProto.FLOAT, (1, 8, 12, 12))
    integers = runtime.quantised(file, tensors, runtime.ranges_of_limits(tensors))
    (found,) = runtime.session(file, integers).run(["result"], {"x": x.numpy()})

    round_blocks(blocks)
    error = (blocks(x) - torch.from_numpy(found)).abs()
    step = 1.5 / 127  # of the output
    assert error.mean() < 0.01 * step  # a sum at the middle of two steps may go either way
    assert error.max() < 1.1 * step
    assert (plain - torch.from_numpy(found)).abs().mean() > 0.2 * step


def test_another_order_of_hidden_channels() -> None:
    """Blocks compute the same, and the scales of their weights are smaller."""
    torch.manual_seed(0)
    block = LimitedBlock(16)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2)
    block.limits.copy_(torch.tensor([4.0, 8.0, 8.0]))
    tensors = {f"block.{k}": v.detach() for k, v in block.state_dict().items()}
    found, x = paired(tensors), torch.randn(1, 16, 12, 12)
    other = LimitedBlock(16)
    other.load_state_dict({k.removeprefix("block."): v for k, v in found.items()})
    assert torch.allclose(block(x), other(x), atol=1e-4)
    assert found.keys() == tensors.keys()
    before, after = (
        runtime.scale_of_weights(v["block.second.weight"].numpy()).mean() for v in (tensors, found)
    )
    assert after < 0.95 * before


def test_rounding_has_the_gradient_of_the_identity() -> None:
    x = torch.linspace(-1, 1, 7, requires_grad=True)
    y = rounded(x, torch.tensor(0.5))
    y.sum().backward()
    assert y.tolist() == [-1.0, -0.5, -0.5, 0.0, 0.5, 0.5, 1.0]
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones(7))


@pytest.mark.parametrize("side", [32, 320])
def test_ms_ssim_is_that_of_the_benchmarks(side: int) -> None:
    photo = np.asarray(demo.photo())[:side, :side]
    noise = np.random.default_rng(0).normal(0, 8, photo.shape)
    noisy = np.clip(photo + noise, 0, 255).round().astype(np.uint8)
    found = ms_ssim(to_tensor(noisy), to_tensor(photo))
    if side == 320:
        assert found.item() == pytest.approx(metrics.ms_ssim(photo, noisy), abs=1e-5)
    assert 0.5 < found.item() < 1
    assert ms_ssim(to_tensor(photo), to_tensor(photo)).item() == pytest.approx(1)


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


def test_compressed_crops_are_cut_as_they_were_drawn(pack: Path, tmp_path: Path) -> None:
    compressed.write(Pack(pack), 0, [0, 1, 2], tmp_path / "0", 10, compressed.LOSSLESS)
    crops = compressed.Crops([tmp_path / "0"], [1], "cpu", 0)
    assert len(crops) == 3
    places, _ = crops.draw(1, 32, 1)
    offset, width, top, left, *_ = places[0].tolist()
    height = {384: 384, 300: 300}[width]
    picture = crops.pixels[offset : offset + height * width * 3].view(height, width, 3)
    original = picture[top : top + 32, left : left + 32].permute(2, 0, 1)
    for flipped, turned in ((0, 0), (1, 0), (0, 1), (1, 1)):
        places[0, 4:] = torch.tensor([flipped, turned])
        expected = original.transpose(1, 2) if turned else original
        expected = expected.flip(2) if flipped else expected
        cut = crops.cut(places, torch.eye(3)[None], 32)[0]
        assert torch.equal(torch.round((cut + 0.5) * 255).byte(), expected)
    swapped = crops.cut(places, torch.eye(3)[[2, 0, 1]][None], 32)[0]
    assert torch.equal(swapped, cut[[2, 0, 1]])


def test_precise_folders_and_weights_decide_what_is_drawn(pack: Path, tmp_path: Path) -> None:
    for number, picture in enumerate((0, 1)):  # both are photos
        folder = tmp_path / str(number)
        compressed.write(Pack(pack), 0, [picture], folder, 10, compressed.LOSSLESS)
    crops = compressed.Crops([tmp_path / "0", tmp_path / "1"], [1, 3], "cpu", 0)
    assert set(crops.draw(50, 64, 1)[0][:, 0].tolist()) == {0}
    second = (crops.draw(4000, 64, 2)[0][:, 0] > 0).float().mean().item()
    assert second == pytest.approx(0.75, abs=0.03)


@pytest.mark.slow
def test_trains_on_crops_in_memory(pack: Path, tmp_path: Path) -> None:
    """The command for a GPU, on the CPU: the averaged weights have moved, and all are finite."""
    compressed.write(Pack(pack), 0, [0, 1, 2], tmp_path / "0", 10, compressed.LOSSLESS)
    command = [sys.executable, "-m", "training.mini.gpu", "--crops", tmp_path / "0"]
    command += ["--weights", 1, "--precise", 1, "--state", "training/mini_state.safetensors"]
    command += ["--output", tmp_path / "new", "--seconds", 1, "--pixels", 16384, "--device", "cpu"]
    command += ["--learning-rate", 10]  # after a single step, averages of 16 bits are others
    subprocess.run([str(c) for c in command], cwd=ROOT, check=True, capture_output=True)
    new = {k: v for f in (tmp_path / "new").iterdir() for k, v in load_file(f).items()}
    old = load_file(ROOT / "training/mini_state.safetensors")
    assert new.keys() == {k for k in old if old[k].is_floating_point()}
    assert all(torch.isfinite(v).all() for v in new.values())
    assert any(not torch.equal(new[k].half(), old[k].half()) for k in new)


def trained(pack: Path, run: Path, minutes: float) -> tuple[int, float]:
    """Train until this many minutes in all.  Return the number of steps, and the minutes.

    A step has four crops, and one quality is scored: the command has more of both.
    """
    arguments = ["--packs", pack, "--validation", pack, "--run", run, "--minutes", minutes]
    arguments += ["--threads", torch.get_num_threads(), "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["training.mini.train", *map(str, arguments)])
        patch.setattr(train, "SIZES", (64,))
        patch.setattr(train, "PIXELS", 4 * 64**2)
        patch.setattr(train, "SCORED", (0.25,))
        train.main()
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    return state["step"], state["spent"] / 60


@pytest.mark.slow
def test_resumes_from_its_checkpoint(pack: Path, tmp_path: Path) -> None:
    # Each run ends after its current step.
    first, minutes = trained(pack, tmp_path, 1e-9)
    assert first == 1
    assert trained(pack, tmp_path, minutes + 1e-9)[0] == 2
    weights = load_file(tmp_path / "averaged.safetensors")
    assert all(torch.isfinite(v).all() for v in weights.values())
    assert {v.dtype for v in weights.values()} == {torch.float16}
