"""The encoder's look at its own result: which cells get more quality, and which less."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pillow_sdz import demo
from pillow_sdz.codings import allocation, quality_map
from pillow_sdz.codings.allocation import MOST
from pillow_sdz.codings.target_size import ONE_IN
from sdz_files import encode

STEP = 0.08
SIDE = 16  # samples along a side of a cell, at half the size


@pytest.fixture(scope="module")
def plane() -> np.ndarray:
    """The luma of 256x384 pixels, at half their size: 8x12 cells."""
    return np.asarray(demo.photo().convert("L").resize((192, 128)))


def blurred(plane: np.ndarray, left: int, right: int) -> np.ndarray:
    """A plane that is worse from one column to another."""
    worse = plane.copy()
    soft = np.asarray(Image.fromarray(plane).filter(ImageFilter.GaussianBlur(3)))
    worse[:, left:right] = soft[:, left:right]
    return worse


def magnitudes(value: float = 40) -> np.ndarray:
    return np.full((16, 24), value)


def test_what_looks_worse_gets_more(plane: np.ndarray) -> None:
    found = allocation.offsets(plane, blurred(plane, 0, 96), magnitudes(), STEP, SIDE)
    assert found.shape == (8, 12)
    assert np.abs(found).max() <= MOST
    assert found[:, :6].mean() > found[:, 6:].mean() + 2


def test_nothing_to_see_takes_no_map(plane: np.ndarray) -> None:
    assert not allocation.offsets(plane, plane, magnitudes(), STEP, SIDE).any()


def test_a_map_must_be_worth_its_bits(plane: np.ndarray) -> None:
    """The same picture is used twice: its latents take few bits, or many."""
    few, many = (
        allocation.offsets(plane, blurred(plane, 90, 102), magnitudes(value), STEP, SIDE)
        for value in (0.02, 40)
    )
    assert not few.any()
    assert many.any()


def test_latents_without_bits_take_no_map(plane: np.ndarray) -> None:
    assert not allocation.offsets(plane, blurred(plane, 0, 96), magnitudes(0), STEP, SIDE).any()


@pytest.mark.parametrize("size", [(1, 1), (33, 17), (2, 40), (70, 129)])
@pytest.mark.parametrize("factor", [16, 32])
def test_any_size(size: tuple[int, int], factor: int) -> None:
    """Lumas are half the picture's size, rounded up, and a cell may be cut."""
    width, height = size
    random = np.random.default_rng(0)
    original, shown = random.integers(0, 256, (2, -(-height // 2), -(-width // 2)), np.uint8)
    latents = np.full((-(-height // factor), -(-width // factor)), 40.0)
    found = allocation.offsets(original, shown, latents, STEP, factor)
    assert found.shape == (-(-height // (2 * factor)), -(-width // (2 * factor)))


def test_the_best_of_all_maps() -> None:
    """Of all maps of 2x2 cells with few values, none is worth more after its own bits."""
    values = np.arange(-2, 3)
    random = np.random.default_rng(1)
    for _ in range(5):
        worth = np.full((2, 2, 2 * MOST + 1), -1e6)
        worth[..., MOST - 2 : MOST + 3] = random.normal(0, 40, (2, 2, 5))
        worth[..., MOST] = 0

        def total(offsets: np.ndarray, worth: np.ndarray = worth) -> float:
            cells = np.take_along_axis(worth, (offsets + MOST)[..., None], 2)
            jumps = np.abs(np.diff(offsets, axis=0, prepend=0)).ravel()
            return cells.sum() - min(
                quality_map.bits(jumps, scale).sum() for scale in quality_map.SCALES
            )

        grid = np.stack(np.meshgrid(*[values] * 4), -1).reshape(-1, 2, 2)
        best = max(map(total, grid))
        if best > quality_map.BITS_BESIDES:
            assert total(allocation._best(worth)) == pytest.approx(best)


def test_effort_turns_it_on() -> None:
    """The photo is half sharp and half soft. It has a map by default, and none with less effort."""
    photo = demo.photo().resize((384, 256))
    by_default, without = encode(photo, quality=60), encode(photo, quality=60, effort=3)
    assert by_default != without
    assert encode(photo, quality=60, effort=0) == without


def test_the_same_file_by_its_quality_and_by_its_size() -> None:
    photo = demo.photo().resize((384, 256))
    data = encode(photo, target_size=9000)
    assert 8800 < len(data) <= 9000
    with Image.open(BytesIO(data)) as im:
        quality = im.info["sdz"]["quality"]
    assert encode(photo, quality=quality) == data
    # The search ends when less than one in `ONE_IN` bytes is left.
    again = encode(photo, target_size=len(data))
    assert 0 <= len(data) - len(again) < len(data) // ONE_IN


@pytest.mark.slow
def test_what_is_protected_gets_less_where_little_fits() -> None:
    """The smallest size that fits is the same with and without protection."""
    photo = demo.photo().resize((384, 256))
    everything = [(0, 0, 300, 256)]
    smallest = len(encode(photo, quality=1))
    assert len(encode(photo, quality=1, protect=everything)) > 1.1 * smallest
    fitted = encode(photo, target_size=smallest, protect=everything, model="mini")
    assert len(fitted) <= smallest
    with pytest.raises(ValueError, match=f"smallest file has {smallest} bytes"):
        encode(photo, target_size=smallest - 1, protect=everything, model="mini")
