"""SSIMULACRA2 as a loss: it equals the reference metric, and it has a gradient."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pillow_sdz import demo
from pillow_sdz.models.ssimulacra2 import (
    WEIGHTS,
    B,
    Reference,
    Weights,
    X,
    Y,
    _linear,
    _pooled,
    _scales,
    _xyb,
)
from pillow_sdz.models.ssimulacra2 import ssimulacra2 as score

reference = pytest.importorskip("ssimulacra2", reason="the extra 'bench' is not installed")


def tensor(image: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    return pixels.float() / 255 - 0.5


def test_weights_are_the_references_that_matter() -> None:
    """Weights are by channel, scale, norm and map. Those that are left out add up to 0.02."""
    theirs = np.asarray(reference.ssimulacra2.weights).reshape(3, 6, 2, 3)
    ours = np.zeros_like(theirs)
    for scale, channels in enumerate(WEIGHTS):
        for channel, weights in channels.items():
            ours[channel, scale] = np.array(weights).T
    assert np.array_equal(ours, np.where(theirs > 0.01, theirs, 0))
    assert (theirs - ours).sum() < 0.02
    assert Weights()._fields == ("ssim", "ringing", "blur")


def test_colours_are_the_metrics() -> None:
    """The colours are corners, edges and inner points of the RGB cube, in XYB."""
    colours = np.array([*itertools.product([0, 10, 128, 255], repeat=3)], np.uint8)
    theirs = reference.ssimulacra2
    linear = theirs.srgb_to_linear(colours[None].copy())
    expected = theirs.make_positive_xyb(theirs.linear_rgb_to_xyb(linear).transpose(1, 0, 2))[0]
    pictures = _linear(tensor(Image.fromarray(colours[None])))
    for channels in ([X, Y, B], [X, Y], [Y]):
        ours = _xyb(pictures, channels)[0, :, 0].T.numpy()
        assert ours == pytest.approx(expected[:, channels], abs=2e-5)


def test_norms_of_a_map() -> None:
    """They are the mean, and the fourth root of the mean of fourth powers, each with its weight."""
    map = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]]])
    fourth = ((0 + 1 + 16 + 81) / 4) ** 0.25
    assert _pooled(map, (1, 0)).tolist() == pytest.approx([1.5, 1])
    assert _pooled(map, (0, 1)).tolist() == pytest.approx([fourth, 1])
    assert _pooled(map, (2, 3)).tolist() == pytest.approx([2 * 1.5 + 3 * fourth, 5])


def test_scores_are_the_metrics(tmp_path: Path) -> None:
    """They are within 5 points.

    The loss mirrors the picture at its borders, and the metric does not.
    """
    photo = demo.photo().crop((150, 50, 406, 306))
    scores = []
    for side in (32, 64, 128):
        blurred = photo.resize((side, side)).resize(photo.size, Image.Resampling.BICUBIC)
        photo.save(tmp_path / "a.png")
        blurred.save(tmp_path / "b.png")
        expected = reference.compute_ssimulacra2(tmp_path / "a.png", tmp_path / "b.png")
        ours = score(tensor(blurred), tensor(photo)).item()
        scores.append(ours)
        assert ours == pytest.approx(expected, abs=5)
    assert scores == sorted(scores)


def test_identical_pictures_have_the_highest_score() -> None:
    """Rounding may change it: variances are differences of almost equal numbers."""
    photo = tensor(demo.photo().crop((150, 50, 278, 178)))
    assert score(photo, photo).item() == pytest.approx(100, abs=1)


def test_each_picture_of_a_batch_has_its_own() -> None:
    photo = demo.photo()
    originals = [tensor(photo.crop((x, 50, x + 64, 146))) for x in (0, 150, 300)]
    pictures = [v + 0.03 * torch.randn(v.shape, generator=torch.Generator()) for v in originals]
    alone = [score(a, b).item() for a, b in zip(pictures, originals, strict=True)]
    together = Reference(torch.cat(originals)).score(torch.cat(pictures))
    assert together.tolist() == pytest.approx(alone, abs=1e-3)


@pytest.mark.parametrize(
    ("side", "scales"),
    [(8, 1), (15, 1), (16, 2), (31, 2), (32, 3), (63, 3), (64, 4), (128, 5), (256, 6)],
)
def test_a_scale_has_eight_pixels_a_side(side: int, scales: int) -> None:
    """As in the metric, the shorter side must have eight pixels. Seven are not enough."""
    for shape in ((side, side), (side, 999), (999, side)):
        assert _scales(torch.zeros(1, 3, *shape)) == scales


@pytest.mark.parametrize("size", [(8, 8), (9, 40), (33, 17)])
def test_small_pictures_have_fewer_scales(size: tuple[int, int]) -> None:
    original = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) - 0.5
    worse = (original + 0.2 * torch.sign(original)).clamp(-0.5, 0.5)
    assert score(worse, original) < score(original, original)


def test_a_step_along_the_gradient_is_an_improvement() -> None:
    photo = demo.photo().crop((150, 50, 278, 178))
    blurred = tensor(photo.resize((32, 32)).resize(photo.size, Image.Resampling.BICUBIC))
    picture = blurred.clone().requires_grad_()
    before = Reference(tensor(photo)).score(picture)[0]
    (gradient,) = torch.autograd.grad(before, picture)
    assert torch.isfinite(gradient).all()
    better = picture.detach() + 0.5 * gradient / gradient.norm()
    assert score(better, tensor(photo)).item() > before.item() + 1


def test_scores_without_gradients_do_not_hinder_later_ones() -> None:
    photo = tensor(demo.photo().crop((150, 50, 150 + 73, 50 + 59)))
    with torch.inference_mode():
        score(photo, photo)
    picture = (photo * 0.9).requires_grad_()
    score(picture, photo).sum().backward()
    assert picture.grad is not None
    assert picture.grad.abs().sum() > 0


def test_black_white_and_saturated_pixels_have_finite_gradients() -> None:
    corners = torch.tensor([[-0.5, 0.5, 0.5], [-0.5, -0.5, 0.5], [-0.5, 0.5, -0.5]])
    picture = corners.T[:, :, None].expand(3, 3, 16).repeat(1, 6, 2)[None].clone()
    picture.requires_grad_()
    score(picture, torch.zeros(picture.shape)).sum().backward()
    assert picture.grad is not None
    assert torch.isfinite(picture.grad).all()
