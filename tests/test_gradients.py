"""Gradients under text are latents, and what stands on them is exact."""

from __future__ import annotations

import random
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

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


def on_a_photo(size: tuple[int, int] = (480, 320), *, lines: int = 7) -> Image.Image:
    """White text on a blurred photo."""
    picture = demo.photo().resize(size).filter(ImageFilter.GaussianBlur(8))
    draw = ImageDraw.Draw(picture)
    for line in range(lines):
        text = "lamp and ships, ships and lamp"
        draw.text((30, 20 + 40 * line), text, (255, 255, 255), font_size=22)
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
        assert gradients.are_likely(graphics.Picture(on_a_photo()))
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


@pytest.mark.parametrize("quality", [50, 75])
def test_text_on_a_blurred_photo(quality: int) -> None:
    """The letters are exact, and the photo is latents."""
    picture = on_a_photo()
    shown = decode(encode(picture, quality=quality))
    off = np.abs(np.asarray(shown, float) - np.asarray(picture, float))
    assert off[letters(picture)].mean() < 2
    assert 0 < shown.info["sdz"]["exact"] < 0.1


@pytest.mark.parametrize("lines", [2, 7])
@pytest.mark.parametrize("quality", [50, 75, 90])
def test_a_blurred_photo_gets_no_coarser_levels(quality: int, lines: int) -> None:
    """They show bands, so a JPEG of text on it is latents: better, and in fewer bytes."""
    file = BytesIO()
    on_a_photo(lines=lines).save(file, "JPEG", quality=90)
    jpeg = Image.open(file).convert("RGB")
    data = encode(jpeg, quality=quality)
    assert decode(data).info["sdz"]["exact"] < 0.1
    assert len(data) < 1.1 * len(encode(jpeg, quality=quality, regions=False))


@pytest.mark.parametrize("quality", [30, 50, 75])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_photo_with_a_sky_in_a_page_is_latents(mode: str, quality: int) -> None:
    """The page takes little more than its text and its photo alone."""
    photo = demo.photo().resize((240, 180))
    dark = photo.convert("L").filter(ImageFilter.GaussianBlur(2)).point(lambda v: 255 * (v < 110))
    photo = Image.composite(photo, ramp(photo.size, dithered=True), dark).convert(mode)
    page = Image.new(mode, (480, 400), "white")
    draw, chance = ImageDraw.Draw(page), random.Random(5)
    for y in range(8, 390, 18):
        letters = 66 if y > 205 else 30
        text = "".join(chance.choice("abcdefgh ijklmnop") for _ in range(letters))
        draw.text((8, y), text, "black")
    page.paste("white", (231, 11, 471, 191))
    both = page.copy()
    both.paste(photo, (231, 11))
    alone = sum(len(encode(picture, quality=quality)) for picture in (page, photo))
    assert len(encode(both, quality=quality)) < 1.3 * alone


@pytest.mark.parametrize("is_grey", [False, True])
def test_what_is_beside_gradients_in_a_photo(is_grey: bool) -> None:
    """Letters are found beside gradients, and other parts of a photo are not."""
    soft = demo.photo().resize((480, 320)).filter(ImageFilter.GaussianBlur(1))
    for picture, expected in ((titled((480, 320)), 0), (soft, 0.9)):
        shown = picture.convert("L").convert("RGB") if is_grey else picture
        found = gradients.in_photos(graphics.Picture(shown), gradients.find(shown))
        beside = graphics.Picture(shown).contrast >= graphics.CONTRAST
        assert abs(found[beside].mean() - expected) <= 0.1
