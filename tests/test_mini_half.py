"""`mini-half`: the model for few bits per pixel, and when it is chosen."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from pillow_sdz import (
    catalogue,
    demo,
    fidelity,
    models,
    open_latents,
    options,
    save_latents,
    weights,
)
from pillow_sdz.models import mini_half, runtime
from pillow_sdz.models.mini import memory as tile_memory
from pillow_sdz.models.ssimulacra2 import ssimulacra2
from sdz_files import decode, encode
from test_exact import page

sys.path.append(str(Path(__file__).parent.parent))

from training.half import Coded, Enlarger, loss_of, twice
from training.mini.data import to_tensor

HALF = "mini-half"


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """A part of a photo, with odd sides: 10x7 latents."""
    return demo.photo().crop((60, 30, 60 + 301, 30 + 211))


@pytest.fixture(scope="module")
def file(picture: Image.Image) -> bytes:
    return encode(picture, model=HALF, quality=60)


def said(data: bytes) -> dict[str, Any]:
    with Image.open(BytesIO(data)) as im:
        found: dict[str, Any] = im.info["sdz"]
        return found


def score(original: Image.Image, shown: Image.Image) -> float:
    a, b = (
        torch.from_numpy(np.array(im.convert("RGB"))).permute(2, 0, 1)[None] / 255 - 0.5
        for im in (shown, original)
    )
    return float(ssimulacra2(a, b))


def psnr(original: Image.Image, shown: Image.Image) -> float:
    return fidelity.psnr(*(np.asarray(im.convert("RGB")) for im in (original, shown)))


# The model


@pytest.mark.parametrize("size", [(1, 1), (2, 200), (33, 17), (64, 32), (65, 97)])
@pytest.mark.parametrize("effort", [0, 4])
def test_any_size(picture: Image.Image, size: tuple[int, int], effort: int) -> None:
    original = picture.resize(size)
    data = encode(original, model=HALF, quality=90, effort=effort, regions=False)
    shown = decode(data)
    assert said(data)["latents"] == (384, -(-size[1] // 32), -(-size[0] // 32))
    assert shown.size == size
    # A reduced photo has much detail, which half of the size does not show.
    smaller = original.resize([-(-side // 2) for side in size], Image.Resampling.LANCZOS)
    bicubic = smaller.resize(size, Image.Resampling.BICUBIC)
    assert psnr(original, shown) > min(psnr(original, bicubic), 38) - 1.5


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_any_mode(picture: Image.Image, mode: str) -> None:
    converted = picture.convert(mode.removesuffix("A"))
    if mode.endswith("A"):
        converted.putalpha(Image.linear_gradient("L").resize(picture.size))
    shown, same = (
        decode(encode(converted, quality=50, model=model, regions=False))
        for model in (HALF, "mini")
    )
    assert (shown.mode, shown.size) == (same.mode, same.size)
    if mode.endswith("A"):
        assert shown.getchannel("A").tobytes() == converted.getchannel("A").tobytes()


def test_all_qualities(picture: Image.Image) -> None:
    files = [encode(picture, model=HALF, quality=quality) for quality in (1, 20, 50, 75, 100)]
    assert [*map(len, files)] == sorted(map(len, files))
    values = [psnr(picture, decode(data)) for data in files]
    assert values == sorted(values)


@pytest.mark.slow
def test_a_search_for_better_latents(picture: Image.Image) -> None:
    quick, slow = (encode(picture, model=HALF, target_size=570, effort=e) for e in (4, 7))
    assert score(picture, decode(slow)) > score(picture, decode(quick))


@pytest.mark.parametrize("area", [(0, 0, 301, 211), (32, 64, 64, 96), (150, 3, 301, 211)])
@pytest.mark.parametrize("length", [300, 301])
def test_a_part_is_halved_as_the_whole(
    picture: Image.Image, area: tuple[int, int, int, int], length: int
) -> None:
    pixels = np.asarray(picture)[:, :length]
    left, top, right, bottom = (side // 2 for side in area)
    halved = mini_half.Halved(pixels)
    whole = halved[:1000, :1000]
    assert whole.shape == halved.shape == (106, -(-length // 2), 3)
    part = slice(top, bottom), slice(left, right)
    assert np.array_equal(halved[part], whole[part])


def test_a_part_is_decoded_as_the_whole(picture: Image.Image, file: bytes) -> None:
    whole = decode(file)
    for box in [(0, 0, 301, 211), (100, 60, 101, 61), (64, 96, 128, 160), (250, 150, 301, 211)]:
        with Image.open(BytesIO(file)) as im:
            assert im.crop(box).tobytes() == whole.crop(box).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_tiles_leave_no_seam(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, a sum in another order may change a value by one grey level."""
    file = encode(demo.photo().resize((1301, 211)), model=HALF, quality=30, effort=0)
    with options.override(DTYPE=dtype):
        whole = np.asarray(decode(file)).astype(int)
        monkeypatch.setattr(mini_half, "tile_side", lambda *_, **__: 3)
        assert np.abs(np.asarray(decode(file)) - whole).max() <= 1
        monkeypatch.setattr(tile_memory, "LARGEST_TILE", 14)  # `mini` needs a margin of 13
        assert np.abs(np.asarray(decode(file)) - whole).max() <= 1


def test_bands_leave_no_seam(picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pillow_sdz.codings.quantize.AXIS_WEIGHTS", (1e-12, 1e-12))
    whole = decode(encode(picture, quality=60, model=HALF))
    monkeypatch.setattr("pillow_sdz.codings.banded.BAND_ROWS", 2)
    banded = encode(picture, quality=60, model=HALF)
    assert banded.count(b"LATN") == 4
    assert decode(banded).tobytes() == whole.tobytes()


@pytest.mark.parametrize("tune", ["psnr", "perceptual"])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_drafts(picture: Image.Image, scale: int, tune: str) -> None:
    with Image.open(BytesIO(encode(picture, model=HALF, quality=75, tune=tune))) as im:
        im.draft(None, (im.width // scale, im.height // scale))
        shown = im.convert("RGB")
    assert shown.size == tuple(-(-side // scale) for side in picture.size)
    smaller = picture.resize(shown.size, Image.Resampling.BOX)
    assert psnr(smaller, shown) > 22


def test_both_decoders(picture: Image.Image) -> None:
    plain, tuned = (encode(picture, model=HALF, quality=30, tune=t) for t in (None, "perceptual"))
    assert decode(plain).tobytes() != decode(tuned).tobytes()
    with options.override(DECODER="mini-half-perceptual"):
        assert decode(plain).tobytes() == decode(tuned).tobytes()
    with (
        options.override(DECODER="mini-perceptual"),
        pytest.raises(OSError, match="decodes mini latents"),
    ):
        decode(plain)


def test_latents(file: bytes) -> None:
    found = open_latents(BytesIO(file))
    assert (found.model, found.factor, found.latents.shape) == (HALF, 32, (384, 7, 10))
    again = BytesIO()
    save_latents(found.latents, again, model=HALF, size=found.size, quality=60)
    assert decode(again.getvalue()).tobytes() == decode(file).tobytes()


@torch.inference_mode()
def test_the_graph_computes_what_training_does() -> None:
    network = Enlarger()
    network.load_state_dict({k: v.float() for k, v in load_file(weights.MINI_HALF.path).items()})
    pixels = np.array(demo.photo().resize((96, 64)))
    larger, place = mini_half.twice(pixels), np.array(0.3, np.float32)
    added = network.added(to_tensor(pixels), torch.full((1, 1, 1, 1), 0.3))
    expected = larger + 255 * added[0].permute(1, 2, 0).numpy()
    graph = runtime.Network("mini_half_enlarger", network.state_dict())
    for sides in np.eye(4, dtype=np.int64):
        found = graph(pixels=pixels, larger=larger, place=place, sides=sides)
        top, bottom, left, right = 32 * mini_half.MARGIN * sides
        part = expected[top : 128 - bottom, left : 192 - right].round().clip(0, 255)
        assert np.abs(found - part).max() <= 1  # a sum in another order


def test_the_filter_is_that_of_training() -> None:
    """Pillow rounds and limits after each direction."""
    pixels = np.array(demo.photo().resize((96, 64)))
    filtered = twice(to_tensor(pixels))[0].permute(1, 2, 0).numpy()
    levels = ((filtered + 0.5) * 255).clip(0, 255)
    difference = np.abs(mini_half.twice(pixels) - levels)
    assert difference.mean() < 0.5
    assert (difference > 1.5).mean() < 0.02


def test_what_the_training_learns_from(picture: Image.Image) -> None:
    photo = np.array(picture.resize((128, 64)))
    half, place = Coded()(photo, 60)
    assert half.shape == (1, 3, 32, 64)
    assert 0.4 < place < 0.6
    filtered, original = twice(half), to_tensor(photo)
    assert loss_of(original, original) < loss_of(filtered, original) < loss_of(-original, original)


# What varies over a picture


def errors(picture: Image.Image, data: bytes) -> NDArray[np.float64]:
    return np.abs(np.asarray(decode(data), float) - np.asarray(picture)).mean(2)


def test_what_is_protected_is_better(picture: Image.Image) -> None:
    box = 100, 64, 160, 140
    plain = encode(picture, model=HALF, quality=20)
    data = encode(picture, model=HALF, quality=20, protect=[box])
    left, top, right, bottom = box
    here = slice(top, bottom), slice(left, right)
    assert errors(picture, data)[here].mean() < 0.9 * errors(picture, plain)[here].mean()
    # Cells have 64 pixels along a side.
    away = slice(0, bottom), slice(256, None)
    assert errors(picture, data)[away].mean() > 0.95 * errors(picture, plain)[away].mean()


def with_text(picture: Image.Image) -> Image.Image:
    joint = Image.new("RGB", (picture.width, 400), (250, 250, 245))
    joint.paste(page().crop((0, 0, 300, 180)), (0, 0))
    joint.paste(picture, (0, 189))
    return joint


def test_exact_regions(picture: Image.Image) -> None:
    """They have the size of the picture, not that of the latents."""
    joint = with_text(picture)
    data = encode(joint, model=HALF, quality=75)
    assert 0.3 < said(data)["exact"] < 0.7
    text = 0, 0, 300, 180
    assert decode(data).crop(text).tobytes() == joint.crop(text).tobytes()
    rest = 0, 200, 301, 400
    assert psnr(joint.crop(rest), decode(data).crop(rest)) > 24


def test_frames(picture: Image.Image) -> None:
    frames = [picture.copy() for _ in range(3)]
    for number, frame in enumerate(frames):
        frame.paste((200, 30, 0), (10 * number, 10, 10 * number + 40, 60))
    data = encode(frames[0], save_all=True, append_images=frames[1:], quality=60, model=HALF)
    assert b"DIFF" in data
    with Image.open(BytesIO(data)) as im:
        for number in (2, 0, 1):
            im.seek(number)
            assert psnr(frames[number], im) > 24


# The choice


def size_for(picture: Image.Image, rate: float) -> int:
    return int(picture.width * picture.height * rate / 8)


def test_few_bits_per_pixel() -> None:
    """Where both models fit, the pictures of the one that is chosen are much better."""
    photo = demo.photo()
    chosen = encode(photo, target_size=size_for(photo, 0.05))
    other = encode(photo, target_size=size_for(photo, 0.05), model="mini")
    assert (said(chosen)["model"], said(other)["model"]) == (HALF, "mini")
    assert len(chosen) <= size_for(photo, 0.05)
    assert score(photo, decode(chosen)) > score(photo, decode(other)) + 3


def test_more_bits_per_pixel() -> None:
    photo = demo.photo()
    size = size_for(photo, 0.25)
    data = encode(photo, target_size=size)
    assert said(data)["model"] == "mini"
    assert data == encode(photo, target_size=size, model="mini")


def test_what_looks_real_stays_fine_with_fewer_bits() -> None:
    """The second decoder invents details, so its model is better down to a lower quality."""
    photo = demo.photo()
    data = encode(photo, quality=7, effort=0)
    for tune, model in (("psnr", HALF), ("perceptual", "mini")):
        found = said(encode(photo, target_size=len(data) + 20, tune=tune, effort=0))
        assert found["model"] == model
    smallest = len(encode(photo, quality=1, effort=0))
    data = encode(photo, target_size=smallest + 20, tune="perceptual", effort=0)
    assert said(data)["model"] == HALF


def test_what_only_one_model_reaches() -> None:
    photo = demo.photo()
    smallest = len(encode(photo, quality=1))
    assert len(encode(photo, quality=1, model=HALF)) < 0.7 * smallest
    with pytest.raises(ValueError, match=f"smallest file has {smallest} bytes"):
        encode(photo, target_size=smallest - 1, model="mini")
    data = encode(photo, target_size=smallest - 1)
    assert said(data)["model"] == HALF
    assert len(data) < smallest


@pytest.mark.parametrize("size", [2_000, 20_000])
def test_a_model_that_is_asked_for_stays(picture: Image.Image, size: int) -> None:
    for model in ("mini", HALF):
        assert said(encode(picture, target_size=size, model=model))["model"] == model


def test_exact_pixels_stay() -> None:
    """Although few bits per pixel are enough for them."""
    picture = page((1200, 900), 4)
    data = encode(picture, target_size=size_for(picture, 0.06))
    assert said(data)["exact"] == 1
    assert said(data)["model"] == "mini"
    assert decode(data).convert("RGB").tobytes() == picture.tobytes()


def test_a_still_animation_keeps_its_quality(picture: Image.Image) -> None:
    """A frame that does not change takes few bits, whatever its quality."""
    frames = [picture] * 12
    size = 12 * size_for(picture, 0.05)
    data = encode(picture, save_all=True, append_images=frames[1:], target_size=size)
    assert said(data)["model"] == "mini"
    assert said(data)["quality"] > 40


def test_a_coarser_model_is_for_the_same_pictures() -> None:
    """Whatever an option of a save may be, both models can have it."""
    for spec in catalogue.EMBEDDED.values():
        for name in spec.coarser:
            coarser = models.spec(name)
            assert coarser.encodes
            assert coarser.coarser == ()
            assert coarser.factor > spec.factor
            for field in ("codings", "tunes", "regions", "quality_map", "denoising"):
                assert getattr(coarser.space, field) == getattr(spec.space, field)
