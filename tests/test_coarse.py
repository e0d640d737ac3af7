"""Coarser levels of brightness and colour, for pages with noise."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pillow_sdz import coarse

FINE, ROUGH = coarse.Apart(2, 8), coarse.Apart(12, 24)


def noisy(picture: Image.Image, noise: float = 1) -> Image.Image:
    levels = np.asarray(picture, float)
    levels = levels + np.random.default_rng(3).normal(0, noise, levels.shape)
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def boxes(*colours: tuple[int, int, int]) -> Image.Image:
    """Boxes of 64x64 pixels, one beside the other."""
    picture = Image.new("RGB", (64 * len(colours), 64))
    for number, colour in enumerate(colours):
        picture.paste(colour, (64 * number, 0, 64 * number + 64, 64))
    return picture


@pytest.mark.parametrize("apart", coarse.APART.values())
@pytest.mark.parametrize("noise", [0, 1])
def test_flat_areas_keep_their_colours(apart: coarse.Apart, noise: float) -> None:
    picture = noisy(boxes((255, 255, 255), (228, 236, 246), (44, 160, 44), (250, 240, 190)), noise)
    off = np.asarray(coarse.coarser(picture, apart), float) - np.asarray(picture, float)
    for left in range(0, 256, 64):
        assert abs(off[:, left : left + 64].mean((0, 1))).max() <= 2


def test_noise_is_gone() -> None:
    shown = coarse.coarser(noisy(boxes((200, 190, 180), (90, 100, 120))), ROUGH)
    assert len(shown.getcolors() or []) == 2


@pytest.mark.parametrize("apart", [FINE, ROUGH])
def test_levels_are_at_most_so_far_apart(apart: coarse.Apart) -> None:
    """No pixel is further from its level than half of that, in brightness and in colour."""
    picture = noisy(boxes((230, 220, 210), (40, 60, 100)), 12)
    off = np.asarray(coarse.coarser(picture, apart), float) - np.asarray(picture, float)
    assert abs(off @ [0.299, 0.587, 0.114]).max() <= apart.brightness / 2 + 1
    colour = off[..., ::2] - off[..., 1:2]
    assert abs(colour).max() <= apart.colour / 2 + 1


def test_where_light_falls_off_few_values_are_levels() -> None:
    """All values are as frequent there, so noise is not kept by levels that are close."""
    light = np.linspace(250, 200, 640)[None, :, None] * np.ones((256, 1, 3))
    shown = coarse.coarser(noisy(Image.fromarray(light.astype(np.uint8)), 0.5), ROUGH)
    assert len(np.unique(np.asarray(shown)[..., 1])) <= 12


def test_grey_stays_grey_and_a_tall_picture_has_the_same_levels() -> None:
    grey = noisy(boxes((90, 90, 90), (200, 200, 200)).convert("L").convert("RGB"), 0)
    tall = Image.new("RGB", (128, 1100), (90, 90, 90))
    tall.paste(grey, (0, 0))
    tall.paste(grey, (0, 1030))
    shown = np.asarray(coarse.coarser(tall, ROUGH))
    assert (shown == np.asarray(tall)).all()
    assert coarse.coarser(Image.new("RGB", (1, 1), (3, 2, 1)), FINE).getpixel((0, 0)) == (3, 2, 1)


@pytest.mark.parametrize("apart", coarse.APART.values())
def test_bands(apart: coarse.Apart) -> None:
    """Gradients with coarser levels have bands. Letters with noise have none."""
    across, down = np.arange(240) / 240, np.arange(160)[:, None] / 160
    ramp = np.stack(
        [60 + 90 * across + 60 * down, 90 + 70 * down * across, 160 - 80 * across * down], -1
    )
    for levels, expected in ((ramp, True), (letters(), False)):
        noise = np.random.default_rng(1).normal(0, 1, levels.shape)
        picture = Image.fromarray(np.rint(levels + noise).clip(0, 255).astype(np.uint8))
        assert coarse.has_bands(picture, coarse.coarser(picture, apart), apart) == expected
        assert not coarse.has_bands(picture, picture, apart)


def letters() -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Dark text on paper (160, 240, 3)."""
    page = Image.new("RGB", (240, 160), (244, 244, 240))
    for top in range(4, 150, 14):
        ImageDraw.Draw(page).text((8, top), "the lamp of the ships and of the boats", (30, 30, 40))
    return np.asarray(page, np.float64)


def test_pictures_too_small_for_bands() -> None:
    small = Image.linear_gradient("L").resize((21, 40)).convert("RGB")
    apart = coarse.apart_at(20)
    assert not coarse.has_bands(small, coarse.coarser(small, apart), apart)


def test_bands_in_any_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large pictures take little memory."""
    ramp = Image.linear_gradient("L").resize((64, 300)).convert("RGB")
    apart = coarse.apart_at(20)
    levels = coarse.coarser(ramp, apart)
    assert coarse.has_bands(ramp, levels, apart)
    monkeypatch.setattr(coarse, "_ROWS", 96)
    assert coarse.has_bands(ramp, levels, apart)
