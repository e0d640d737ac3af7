"""What Pillow's own tests check of crop, checked with an `.sdz` picture that is not loaded.

Then crop decodes only what the part needs. The result must not show that. Each test names Pillow's
tests (13.0.0, Tests/test_image_crop.py) that check the same with loaded pictures.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageChops

from pillow_sdz import chunks, container, demo
from sdz_files import decode, encode

SIZE = (141, 263)

# Inside, at each side and corner, and beyond them. Also a pixel, a row and a column.
BOXES = [
    (0, 0, *SIZE),
    (50, 100, 120, 200),
    (37, 41, 38, 42),
    (0, 130, 141, 131),
    (70, 0, 71, 263),
    (-25, 0, 25, 50),
    (0, -25, 50, 25),
    (116, 0, 166, 50),
    (0, 238, 50, 288),
    (-25, 100, 166, 150),
    (60, -25, 110, 288),
    (-25, -25, 25, 25),
    (116, -25, 166, 25),
    (116, 238, 166, 288),
    (-25, 238, 25, 288),
    (-25, -25, 166, 288),
    (400, 400, 410, 420),
    (-30, -30, -10, -20),
    (141, 0, 151, 10),
    (50, 50, 50, 60),
    (50, 50, 50, 50),
    (0.9, 1.1, 4.2, 5.8),
    (49.5, 100.5, 121.5, 202.5),
]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """A photo by mode, with odd sides, in bands of 64 rows of pixels, which are five bands."""
    photo = demo.photo().crop((150, 100, 150 + SIZE[0], 100 + SIZE[1]))
    photo.putalpha(Image.linear_gradient("L").resize(SIZE))
    with pytest.MonkeyPatch.context() as context:
        context.setattr("pillow_sdz.codings.banded.BAND_ROWS", 4)
        return {mode: encode(photo.convert(mode), effort=0) for mode in ("L", "RGB", "RGBA")}


def assert_same_but_for_rounding(a: Image.Image, b: Image.Image) -> None:
    """Equal to one grey level, because floating-point sums may be grouped differently."""
    assert (a.mode, a.size) == (b.mode, b.size)
    difference = np.asarray(ImageChops.difference(a, b))
    assert difference.max(initial=0) <= 1


def test_bands(files: dict[str, bytes]) -> None:
    """What the other tests assume."""
    for data in files.values():
        assert [chunk.type for chunk in container.read(data)].count(chunks.LATENTS) == 5


@pytest.mark.parametrize("mode", ["L", pytest.param("RGBA", marks=pytest.mark.slow)])
def test_like_a_loaded_picture(files: dict[str, bytes], mode: str) -> None:
    """test_crop, test_wide_crop, test_crop_float, test_crop_zero"""
    loaded = decode(files[mode])
    for box in BOXES:
        with Image.open(BytesIO(files[mode])) as im:
            assert_same_but_for_rounding(im.crop(box), loaded.crop(box))


def test_everything(files: dict[str, bytes]) -> None:
    """test_crop: without a box it is a copy."""
    with Image.open(BytesIO(files["RGB"])) as im:
        assert im.crop().tobytes() == decode(files["RGB"]).tobytes()


@pytest.mark.parametrize("box", [(8, 2, 2, 8), (2, 8, 8, 2), (8, 8, 2, 2)])
def test_negative_crop(files: dict[str, bytes], box: tuple[int, int, int, int]) -> None:
    """test_negative_crop: a right edge left of the left edge is an error, as in any picture."""
    with Image.open(BytesIO(files["RGB"])) as im, pytest.raises(ValueError, match="is less than"):
        im.crop(box)


def test_the_picture_is_what_it_was(files: dict[str, bytes]) -> None:
    """test_crop_crash: take parts in any order, and then the whole picture."""
    whole = decode(files["RGB"])
    with Image.open(BytesIO(files["RGB"])) as im:
        parts = [im.crop((left, 100, left + 50, 150)) for left in (200, 0, 100)]
        assert im.size == SIZE
        assert im.tobytes() == whole.tobytes()
    for part, left in zip(parts, (200, 0, 100), strict=True):
        part.load()  # the file is closed, and the part has its own pixels
        assert_same_but_for_rounding(part, whole.crop((left, 100, left + 50, 150)))
        assert part.info == whole.info


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_of_a_draft(files: dict[str, bytes], scale: int) -> None:
    """If a picture will be decoded at a scale, the box counts pixels at that scale."""
    with Image.open(BytesIO(files["RGB"])) as drafted, Image.open(BytesIO(files["RGB"])) as im:
        for picture in (drafted, im):
            picture.draft(None, (SIZE[0] // scale, SIZE[1] // scale))
        drafted.load()
        for box in ((3, 2, 20, 25), (-2, 5, drafted.width + 3, 9), (0, 0, *drafted.size)):
            assert_same_but_for_rounding(im.crop(box), drafted.crop(box))


def test_damage(files: dict[str, bytes]) -> None:
    """A truncated file raises its error for each part."""
    with Image.open(BytesIO(files["RGB"][:-30])) as im:
        for _ in range(2):
            with pytest.raises(OSError, match="truncated SDZ file"):
                im.crop((0, 0, 10, 10))
