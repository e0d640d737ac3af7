"""How each mode and each size is saved."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from PIL import Image, ImageChops, ImageStat

from pillow_sdz.saving import CONVERT_FIRST, SAVED_AS
from sdz_files import assert_similar, decode, encode, roundtrip

# Mean grey levels of difference per band at the default quality. A smooth picture loses much less.
# A swapped band, an inverted picture or a missing conversion would cost much more.
TOLERANCE = 8


def with_alpha(photo: Image.Image, alpha: Image.Image) -> Image.Image:
    im = photo.copy()
    im.putalpha(alpha.resize(im.size))
    return im


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA"])
def test_native_modes_round_trip(photo: Image.Image, mode: str) -> None:
    im = photo.convert(mode)
    reread = roundtrip(im)
    assert_similar(reread, im, TOLERANCE)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_exact(photo: Image.Image, mode: str) -> None:
    alpha = Image.effect_noise(photo.size, 100)
    im = photo.convert(mode)
    im.putalpha(alpha)
    assert roundtrip(im).getchannel("A").tobytes() == alpha.tobytes()


@pytest.mark.parametrize("level", [0, 1, 255])
def test_constant_alpha_takes_two_bytes(photo: Image.Image, level: int) -> None:
    im = photo.copy()
    im.putalpha(level)
    reread = roundtrip(im)
    assert reread.mode == "RGBA"
    assert reread.getchannel("A").getextrema() == (level, level)
    assert reread.info["sdz"]["bytes"]["alpha"] == 2


@pytest.mark.parametrize("mode", ["RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_converted_modes(photo: Image.Image, mode: str) -> None:
    im = photo.convert(mode)
    assert_similar(roundtrip(im), im.convert(SAVED_AS[mode]), TOLERANCE)


def test_palette(photo: Image.Image) -> None:
    im = photo.quantize(256, dither=Image.Dither.NONE)
    assert_similar(roundtrip(im), im.convert("RGB"), TOLERANCE)


def test_black_and_white() -> None:
    im = Image.new("1", (64, 64), 0)
    im.paste(1, (32, 0, 64, 64))
    assert_similar(roundtrip(im), im.convert("L"), TOLERANCE)


@pytest.mark.parametrize(("mode", "straight"), [("La", "LA"), ("RGBa", "RGBA")])
def test_premultiplied_alpha_is_divided_out(photo: Image.Image, mode: str, straight: str) -> None:
    im = photo.convert(straight)
    im.putalpha(128)
    reread = roundtrip(im.convert(mode))
    assert_similar(reread, im, TOLERANCE)


def test_palette_with_alpha(photo: Image.Image) -> None:
    # Fewer colours or dithering change the picture more than the codec does.
    im = photo.quantize(256, dither=Image.Dither.NONE).convert("PA")
    alpha = Image.linear_gradient("L").resize(im.size)
    im.putalpha(alpha)
    reread = roundtrip(im)
    assert_similar(reread, im.convert("RGBA"), TOLERANCE)
    assert reread.getchannel("A").tobytes() == alpha.tobytes()


def test_palette_with_transparent_index() -> None:
    im = Image.new("P", (8, 4), 0)
    im.putpalette([250, 10, 10, 10, 10, 250])
    im.paste(1, (4, 0, 8, 4))
    im.info["transparency"] = 1
    reread = roundtrip(im)
    assert reread.mode == "RGBA"
    assert [reread.getpixel((x, 0))[3] for x in (0, 7)] == [255, 0]  # type: ignore[index]


def test_palette_of_rgba() -> None:
    im = Image.new("P", (8, 4), 0)
    im.putpalette([250, 10, 10, 77], "RGBA")
    reread = roundtrip(im)
    assert reread.mode == "RGBA"
    assert reread.getchannel("A").getextrema() == (77, 77)


@pytest.mark.parametrize(
    ("mode", "ground", "hole", "saved_as"),
    [
        ("1", 255, 0, "LA"),
        ("L", 200, 10, "LA"),
        ("RGB", (200, 100, 50), (1, 2, 3), "RGBA"),
    ],
)
def test_transparent_colour_becomes_alpha(
    mode: str,
    ground: int | tuple[int, ...],
    hole: int | tuple[int, ...],
    saved_as: str,
) -> None:
    im = Image.new(mode, (8, 4), ground)
    im.paste(hole, (4, 0, 8, 4))
    im.info["transparency"] = hole
    reread = roundtrip(im)
    assert reread.mode == saved_as
    assert [reread.getchannel("A").getpixel((x, 0)) for x in (0, 7)] == [255, 0]


def test_senseless_transparency_is_refused(photo: Image.Image) -> None:
    im = photo.copy()
    im.info["transparency"] = b"\0\0"
    with pytest.raises(ValueError, match="cannot convert mode RGB to RGBA"):
        encode(im)


@pytest.mark.parametrize("mode", sorted(CONVERT_FIRST))
def test_deep_modes_are_refused_by_name(mode: str) -> None:
    with pytest.raises(ValueError, match=f"mode {mode} .* convert it to 'L'"):
        encode(Image.new(mode, (4, 4)))


def test_every_mode_of_pillow_is_decided() -> None:
    assert set(Image.MODES) <= {*SAVED_AS, *CONVERT_FIRST}


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (15, 17), (16, 16), (33, 1), (1, 300)])
@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_every_size(photo: Image.Image, size: tuple[int, int], mode: str) -> None:
    reread = roundtrip(photo.resize(size).convert(mode))
    assert (reread.mode, reread.size) == (mode, size)


@pytest.mark.parametrize("size", [(0, 0), (0, 1), (1, 0), (65536, 1), (1, 65536)])
def test_impossible_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="a side must have 1 to 65535 pixels"):
        encode(Image.new("L", size))


def test_the_picture_saved_is_not_changed(photo: Image.Image) -> None:
    im = photo.quantize(64)
    im.info["transparency"] = 3
    before: tuple[bytes, Mapping[str | tuple[int, int], object]] = (im.tobytes(), dict(im.info))
    encode(im)
    assert (im.mode, im.tobytes(), im.info) == ("P", *before)


def test_saving_again_what_was_opened(photo: Image.Image) -> None:
    once = roundtrip(photo)
    twice = decode(encode(once))
    assert_similar(twice, once, TOLERANCE)


# Colours that nobody sees


def cut_out(photo: Image.Image) -> Image.Image:
    """A disc of the photo. It is transparent around, but its colours are still there."""
    disc = Image.radial_gradient("L").resize(photo.size).point(lambda v: 255 * (v < 100))
    im = photo.convert("RGBA")
    im.putalpha(disc)
    return im


def test_colours_under_alpha_0_do_not_travel(photo: Image.Image) -> None:
    """Hidden colours cannot be seen again, and they take almost no bytes."""
    im = cut_out(photo)
    hidden = im.getchannel("A").point(lambda v: 255 * (v == 0))
    data, exact = encode(im), encode(im, exact=True)
    sizes = [decode(kept).info["sdz"]["bytes"]["latents"] for kept in (data, exact)]
    assert sizes[0] < 0.9 * sizes[1]
    means = []
    for kept in (data, exact):
        difference = ImageChops.difference(decode(kept).convert("RGB"), photo).convert("L")
        means.append(ImageStat.Stat(difference, hidden).mean[0])
    assert means[0] > 20
    assert means[1] < 10


def test_the_edge_stays_clean(photo: Image.Image) -> None:
    """Hidden colours of the other extreme do not change the visible ones."""
    seen = Image.radial_gradient("L").resize(photo.size).point(lambda v: 255 * (v < 100))
    im = Image.composite(
        Image.new("RGB", photo.size, (250, 240, 40)), Image.new("RGB", photo.size, 0), seen
    )
    im.putalpha(seen)
    errors = {}
    for exact in (False, True):
        difference = ImageChops.difference(
            decode(encode(im, exact=exact, regions=False)).convert("RGB"), im.convert("RGB")
        )
        errors[exact] = ImageStat.Stat(difference, seen).mean
    assert max(errors[False]) < 3 < max(errors[True])


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (16, 3)])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_all_of_it_transparent(size: tuple[int, int], mode: str) -> None:
    im = Image.new(mode, size, 0)
    assert roundtrip(im).getchannel("A").getextrema() == (0, 0)


def test_exact_is_a_boolean(photo: Image.Image) -> None:
    with pytest.raises(ValueError, match="exact must be True or False, not 'yes'"):
        encode(photo, exact="yes")
