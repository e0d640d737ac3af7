"""docs/format.md#arithmetic: pictures in int8 are close to those in float32, for every model."""

from __future__ import annotations

import functools
from io import BytesIO
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pillow_sdz import catalogue, demo, fidelity, options
from pillow_sdz.models import ssimulacra2

# The most that int8 may lose, in one picture and on average over qualities, and the most grey
# levels by which a value may differ.
PSNR, SSIMULACRA2, AVERAGE = 0.05, 0.5, 0.3
LEVELS = {
    "mini": 8,
    "mini-half": 8,
    "mini-half-perceptual": 16,
    "mini-perceptual": 16,
    "sd-mini": 16,
}

Pixels = NDArray[np.uint8]


class Pair(NamedTuple):
    """The same file in both arithmetics, and what was saved."""

    original: Pixels
    exact: Pixels
    close: Pixels


def flat_colours() -> Image.Image:
    picture = Image.new("RGB", (256, 192), (255, 0, 0))
    picture.paste((0, 0, 255), (64, 0, 256, 96))
    picture.paste((0, 255, 0), (96, 80, 200, 160))
    return picture


def of_squares() -> Image.Image:
    """Squares of 8x8 pixels, black or white."""
    values = np.random.default_rng(0).integers(0, 2, (24, 32), np.uint8) * 255
    return Image.fromarray(values).resize((256, 192), Image.Resampling.NEAREST).convert("RGB")


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (192, 256, 3), np.uint8))


PICTURES = {"photo": demo.photo, "flat": flat_colours, "squares": of_squares, "noise": noise}


@functools.cache
def pair(name: str, quality: int, of: str = "photo") -> Pair:
    """A picture of a model's latents, shown by the model's decoder."""
    picture = PICTURES[of]()
    file = BytesIO()
    writer = catalogue.EMBEDDED[name].latent_space  # the model that all of its decoders share
    with options.override(DTYPE="float32"):
        picture.save(file, "SDZ", model=writer, quality=quality, effort=0, regions=False)
    shown = []
    for dtype in ("float32", "int8"):
        with options.override(DTYPE=dtype, DECODER=name, DENOISE=False), Image.open(file) as im:
            shown.append(np.asarray(im.convert("RGB")))
    return Pair(np.asarray(picture), *shown)


def score(original: Pixels, picture: Pixels) -> float:
    a, b = (
        torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255 - 0.5
        for pixels in (picture, original)
    )
    return float(ssimulacra2.ssimulacra2(a, b))


QUALITIES = (30, 75, 100)
MODELS = pytest.mark.parametrize("name", catalogue.EMBEDDED)


@MODELS
def test_int8_is_close_to_the_original(name: str) -> None:
    lost = []
    for quality in QUALITIES:
        original, exact, close = pair(name, quality)
        assert fidelity.psnr(original, close) >= fidelity.psnr(original, exact) - PSNR
        lost.append(score(original, exact) - score(original, close))
    assert max(lost) <= SSIMULACRA2
    assert sum(lost) / len(lost) <= AVERAGE


@pytest.mark.slow
@MODELS
@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("of", PICTURES)
def test_no_value_is_far_from_that_of_float32(name: str, quality: int, of: str) -> None:
    """Not in pictures either that lead to other numbers than photos do."""
    original, exact, close = pair(name, quality, of)
    assert np.abs(exact.astype(int) - close).max() <= LEVELS[name]
    assert fidelity.psnr(original, close) >= fidelity.psnr(original, exact) - PSNR


@pytest.mark.parametrize("name", sorted({m.latent_space for m in catalogue.EMBEDDED.values()}))
def test_latents_of_an_encoder_in_int8_show_the_same(name: str) -> None:
    picture, shown = demo.photo(), []
    for dtype in ("float32", "int8"):
        file = BytesIO()
        with options.override(DTYPE=dtype):
            picture.save(file, "SDZ", model=name, quality=75, effort=0, regions=False)
        with options.override(DTYPE="float32", DENOISE=False), Image.open(file) as im:
            shown.append(np.asarray(im.convert("RGB")))
    exact, close = (fidelity.psnr(np.asarray(picture), pixels) for pixels in shown)
    assert close >= exact - PSNR


def test_the_bounds_can_fail() -> None:
    """The bounds refuse a picture that is a little worse."""
    original, exact, _ = pair("mini", 75)
    noise = np.random.default_rng(0).integers(-3, 4, exact.shape)
    worse = np.clip(exact.astype(int) + noise, 0, 255).astype(np.uint8)
    assert fidelity.psnr(original, worse) < fidelity.psnr(original, exact) - PSNR
    assert score(original, worse) < score(original, exact) - SSIMULACRA2
