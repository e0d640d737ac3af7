"""Gradients under text are latents, and what stands on them is exact."""

from __future__ import annotations

import random
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pillow_sdz import demo, gradients, graphics, regions
from sdz_files import decode, encode


def ramp(size: tuple[int, int], *, dithered: bool = False) -> Image.Image:
    """A ramp from one colour to another, from left to right and down."""
    width, height = size
    part = (np.arange(width) / width + np.arange(height)[:, None] / height)[..., None] / 2
    levels = np.array([20, 60, 160]) + part * np.array([170, 90, -40])
    if dithered:
        levels += np.random.default_rng(1).uniform(-0.5, 0.5, levels.shape[:2])[..., None]
    return Image.fromarray(np.rint(levels).astype(np.uint8))


def titled(size: tuple[int, int] = (400, 320), *, dithered: bool = True) -> Image.Image:
    """White text on a ramp."""
    picture = ramp(size, dithered=dithered)
    draw, chance = ImageDraw.Draw(picture), random.Random(2)
    for y in range(8, size[1] - 24, 26):
        text = "".join(chance.choice("abcdefgh ijklmnop") for _ in range(size[0] // 13))
        draw.text((10, y), text, (255, 255, 255), font_size=20)
    return picture


def letters(picture: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    return np.asarray(picture).min(2) == 255


class TestFound:
    @pytest.mark.parametrize("size", [(64, 48), (300, 1200), (1, 400), (400, 1)])
    @pytest.mark.parametrize("dithered", [False, True])
    def test_a_ramp(self, size: tuple[int, int], dithered: bool) -> None:
        assert gradients.find(ramp(size, dithered=dithered)).all()

    def test_neither_flat_areas_nor_small_ones(self) -> None:
        assert not gradients.find(Image.new("RGB", (200, 100), (30, 90, 60))).any()
        assert not gradients.find(ramp((15, 15))).any()

    def test_not_flat_areas_that_were_resized(self) -> None:
        """Resizing leaves shades that differ by some levels at edges."""
        large = Image.new("RGB", (800, 600), (250, 230, 180))
        ImageDraw.Draw(large).rectangle((200, 200, 500, 400), (90, 180, 60), (0, 0, 0), 6)
        small = large.resize((400, 300), Image.Resampling.LANCZOS)
        assert not gradients.find(small).any()

    def test_not_what_stands_on_them(self) -> None:
        picture = titled()
        found = gradients.find(picture)
        white = letters(picture)
        assert white.mean() > 0.05
        assert not found[white].any()
        plain = (np.asarray(picture) == np.asarray(ramp(picture.size, dithered=True))).all(2)
        assert found[plain].mean() > 0.95

    def test_a_strip_of_rows_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Large pictures take little memory."""
        whole = gradients.find(titled())
        monkeypatch.setattr(gradients, "_ROWS", 96)
        assert (gradients.find(titled()) == whole).mean() > 0.99

    def test_photos_have_no_graphics_on_them(self) -> None:
        assert gradients.are_likely(graphics.Picture(titled()))
        assert not gradients.are_likely(graphics.Picture(demo.photo()))
        assert not gradients.are_likely(graphics.Picture(ramp((200, 200))))


@pytest.mark.parametrize("quality", [20, 30, 75])
def test_text_on_a_gradient(quality: int) -> None:
    """Letters stay as they are, and the gradient takes next to nothing."""
    picture = titled()
    data, webp = encode(picture, quality=quality), BytesIO()
    picture.save(webp, "WEBP", lossless=True)
    assert len(data) < 0.5 * webp.tell()
    off = abs(np.asarray(decode(data)).astype(int) - np.asarray(picture))
    assert off[letters(picture)].mean() < (1 if quality == 75 else 4)
    assert off.mean() < 3


def test_a_gradient_that_costs_little_stays_exact() -> None:
    """Each row has one colour, so lossless coding takes few bytes for it."""
    levels = np.linspace(30, 220, 320)[:, None, None] * np.ones((1, 400, 3))
    picture = Image.fromarray(np.rint(levels).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((40, 40, 360, 280), (250, 250, 250), (0, 0, 0))
    for y in range(50, 260, 20):
        draw.text((60, y), "the settings of the account", (0, 0, 0))
    assert decode(encode(picture)).tobytes() == picture.tobytes()


def test_frames_of_animations_keep_their_colours() -> None:
    frame = regions.found(titled(), None, 55, keeps_colours=True)
    assert frame is not None
    shown = np.asarray(frame.colours.convert("RGB"))
    assert (shown == np.asarray(titled())).all()


def test_below_quality_60_gradients_have_twice_the_quality() -> None:
    """Latents show them in few bytes, so more quality costs little."""
    for quality, higher in ((20, 20), (45, 15), (75, 0)):
        frame = regions.found(titled(), None, quality)
        assert frame is not None
        assert frame.picture is not None
        assert frame.higher == higher


@pytest.mark.parametrize("quality", [30, 75])
def test_gradients_get_no_coarser_levels(quality: int) -> None:
    """Bands would be seen, although their error is small."""
    shown = decode(encode(titled(), quality=quality))
    off = np.abs(np.asarray(shown, float) - np.asarray(titled(), float))
    assert off.mean() < 2
