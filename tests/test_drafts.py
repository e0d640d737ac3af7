"""Small pictures are decoded from the first channels alone."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile

from pillow_sdz import catalogue, demo, models
from pillow_sdz.codings.range_coder import SymbolDecoder
from pillow_sdz.models.mini import CHANNELS, Mini
from sdz_files import encode

# The quality from which on there is a tail, and one below it.
QUALITIES = [30, 75]


@pytest.fixture(scope="module")
def real_photo() -> Image.Image:
    return demo.photo().crop((0, 0, 384, 256))


@pytest.fixture
def coded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of channels that each call decoded."""
    found: list[int] = []
    mini = models.load(catalogue.MINI)
    assert isinstance(mini, Mini)
    code = mini.prior.code

    def noted(*arguments: Any) -> Any:
        coded = code(*arguments)
        if isinstance(arguments[0], SymbolDecoder):
            found.append(coded.symbols.shape[2])
        return coded

    monkeypatch.setattr(mini.prior, "code", noted)
    return found


def draft(data: bytes, scale: int, frame: int = 0) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as im:
        im.seek(frame)
        im.draft(None, (im.width // scale, im.height // scale))
        return np.asarray(im)


def of_all_channels(
    decode: Callable[[], NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> NDArray[np.uint8]:
    with monkeypatch.context() as patch:
        patch.setattr("pillow_sdz.models.mini.SHOWN", {})
        return decode()


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    squares = (one.astype(np.float64) - other) ** 2
    return float(10 * np.log10(255**2 / squares.mean()))


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize(
    ("scale", "channels", "least"), [(2, CHANNELS, 99), (4, 112, 40), (8, 64, 40)]
)
def test_a_small_picture_needs_few_channels(
    real_photo: Image.Image,
    coded: list[int],
    monkeypatch: pytest.MonkeyPatch,
    quality: int,
    scale: int,
    channels: int,
    least: float,
) -> None:
    data = encode(real_photo, quality=quality)
    coded.clear()
    found = draft(data, scale)
    assert coded == [channels]
    expected = of_all_channels(lambda: draft(data, scale), monkeypatch)
    assert coded == [channels, CHANNELS]
    if (found != expected).any():
        assert psnr(found, expected) > least
    else:
        assert channels == CHANNELS or quality == 30


def test_a_frame_of_an_animation(
    real_photo: Image.Image, coded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The integers of the frames before it have as few channels."""
    frames = [real_photo.copy() for _ in range(3)]
    for n, frame in enumerate(frames):
        frame.paste((200, 30 * n, 0), (10 * n, 10, 10 * n + 40, 60))
    data = encode(frames[0], save_all=True, append_images=frames[1:], quality=60)
    assert b"DIFF" in data
    coded.clear()
    found = draft(data, 8, 2)
    assert set(coded) == {64}
    assert psnr(found, of_all_channels(lambda: draft(data, 8, 2), monkeypatch)) > 40
    with Image.open(io.BytesIO(data)) as im:  # in turn
        for n in range(3):
            im.seek(n)
            im.draft(None, (im.width // 8, im.height // 8))
            im.load()
        assert np.array_equal(np.asarray(im), found)
        im.seek(1)
        assert im.size == real_photo.size
        whole = np.asarray(im)
    with Image.open(io.BytesIO(data)) as im:
        im.seek(1)
        assert np.array_equal(np.asarray(im), whole)


def test_a_damaged_file(
    real_photo: Image.Image, coded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(encode(real_photo, quality=75))
    data[len(data) // 2] ^= 1
    with pytest.raises(OSError, match="CRC"):
        draft(bytes(data), 8)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.warns(UserWarning, match="guessed in part"):
        assert draft(bytes(data), 8).any()
