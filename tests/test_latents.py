"""Latents in and out: `save_latents` and `open_latents`."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import pillow_sdz
from pillow_sdz import (
    catalogue,
    chunks,
    container,
    decoding,
    models,
    open_latents,
    options,
    save_latents,
    scaling,
)
from pillow_sdz.codings import Context, DitheredPalette, Float16, adaptive
from pillow_sdz.codings.coding import Frame
from pillow_sdz.container import Chunk
from pillow_sdz.header import Header
from pillow_sdz.spaces import CONTEXT, FLOAT16, PALETTE, CodingSpec
from sdz_files import decode, encode, framed, replaced

Array = NDArray[Any]

# Latents of a picture of 48x64 pixels, like Stable Diffusion's: smooth, unit variance.
SHAPE = (4, 8, 6)


def latents(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape or SHAPE).astype(np.float32)


def saved(array: Any, **options: Any) -> BytesIO:
    file = BytesIO()
    save_latents(array, file, **{"model": "sd1", **options})
    file.seek(0)
    return file


def roundtrip(array: Any, **options: Any) -> Array:
    return open_latents(saved(array, **options)).latents


# precision


@pytest.mark.parametrize("step", [1 / 1024, 0.01, 0.3, 2])
def test_step_bounds_the_error(step: float) -> None:
    """The error is at most half of the stored step, and float32's rounding.

    Stored steps are multiples of 1/1024.
    """
    found = open_latents(saved(latents(), step=step))
    assert found.step == pytest.approx(step, abs=0.5 / 1024)
    assert found.step is not None
    assert np.abs(found.latents - latents()).max() <= found.step / 2 + 1e-6


def test_quality_is_that_of_pictures() -> None:
    """The default is 75. The step is 2 ** ((40 - quality) / 20) at any effort, as it is stored."""
    assert open_latents(saved(latents())).step == open_latents(saved(latents(), quality=75)).step
    for quality in (1, 40, 100):
        for effort in (0, 4):
            found = open_latents(saved(latents(), quality=quality, effort=effort))
            assert found.step == pytest.approx(2 ** ((40 - quality) / 20), abs=1e-3)


def test_a_step_is_a_promise_and_a_quality_none() -> None:
    """With a step and no effort, no value is off by more than half the step."""
    given = latents()
    exact = open_latents(saved(given, step=0.5))
    assert exact.step == 0.5
    assert np.abs(exact.latents - given).max() <= 0.25 + 1e-6
    weighed = open_latents(saved(given, step=0.5, effort=4))
    assert 0.25 + 1e-6 < np.abs(weighed.latents - given).max() <= 0.5


def test_finer_steps_take_more_bytes() -> None:
    sizes = [len(saved(latents(), step=step).getvalue()) for step in (2, 0.5, 0.1, 0.02)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 4


def test_latents_saved_again_are_the_same() -> None:
    """Saving again loses nothing: the values already are multiples of the step."""
    first = roundtrip(latents(), step=0.3)
    np.testing.assert_array_equal(roundtrip(first, step=0.3), first)


def test_the_articles_palette() -> None:
    """At most the article's 4.96 kB for a picture of 512x512, even if the latents are noise."""
    array = latents(4, 64, 64)
    file = saved(array, coding="palette")
    found = open_latents(file)
    assert len(file.getvalue()) <= 4960
    assert (found.coding, found.step, found.info) == ("palette", None, {"denoise": 0.04})
    # 256 colours of 4 channels are about four levels a channel, for a deviation of 1.
    assert np.abs(found.latents - array).mean() < 0.3


# lossless


def test_lossless_keeps_every_bit_of_float16() -> None:
    bits = np.random.default_rng(1).integers(0, 1 << 16, (4, 16, 16)).astype(np.uint16)
    array = bits.view(np.float16)
    kept = ~np.isnan(array)  # a processor may change the bits of a NaN
    array = np.where(kept, array, np.float16("nan"))
    found = roundtrip(array, lossless="float16")
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found[kept].view(np.uint16), array[kept].view(np.uint16))
    assert np.isnan(found[~kept]).all()


def test_lossless_takes_float32_that_is_exact_in_float16() -> None:
    array = latents().astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(roundtrip(array, lossless="float16"), array)


@pytest.mark.parametrize("value", [0.1, 1e6, 1e-9])
def test_lossless_refuses_what_float16_would_round(value: float) -> None:
    array = np.full(SHAPE, value, np.float32)
    with pytest.raises(ValueError, match="not exact in float16: convert them to float16"):
        saved(array, lossless="float16")


def test_lossless_of_unscaled_latents_is_exact_too() -> None:
    """Values are stored as they are. After scaling by 0.18215, float16 could not hold them."""
    array = (5 * latents()).astype(np.float16)
    found = open_latents(saved(array, lossless="float16", scaled=False))
    np.testing.assert_allclose(found.latents, array.astype(np.float32) * 0.18215, rtol=1e-6)
    assert found.unscaled().dtype == np.float16
    np.testing.assert_array_equal(found.unscaled(), array)


@pytest.mark.parametrize("model", ["sd1", "sd3", "sd-mini"])
def test_unscaled_latents_without_loss_keep_every_bit(model: str) -> None:
    """Scaling and scaling back would change bits: a shift loses the sign of zero."""
    channels = models.spec(model).channels
    bits = np.random.default_rng(3).integers(0, 1 << 16, (channels, 8, 6)).astype(np.uint16)
    bits[np.isnan(bits.view(np.float16))] = 0x8000  # -0
    file = saved(bits.view(np.float16), model=model, lossless="float16", scaled=False)
    np.testing.assert_array_equal(open_latents(file).unscaled().view(np.uint16), bits)


@pytest.mark.parametrize("model", ["sd1", "sdxl", "sd3", "flux"])
def test_scaling_there_and_back_is_exact_for_all_float16(model: str) -> None:
    bits = np.arange(1 << 16).astype(np.uint16)
    values = bits.view(np.float16)
    values = values[np.isfinite(values)]
    spec = models.spec(model)
    back = scaling.unscaled(scaling.scaled(values, spec), spec).astype(np.float16)
    np.testing.assert_array_equal(back, values)


def test_latents_of_an_unknown_model_are_not_unscaled() -> None:
    file = BytesIO()
    save_latents(np.zeros((4, 2, 2), np.float32), file, model="own", factor=8)
    with pytest.raises(ValueError, match=r"the scaling of own latents is not known here$"):
        open_latents(file).unscaled()


def test_unscaled_latents_need_a_known_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lossless file keeps them unscaled, but it needs the scaling too, to show a picture."""
    tiny_models = pytest.importorskip("tiny_models", reason="needs the extra sd")
    monkeypatch.setattr(models, "_registered", {})
    pillow_sdz.register_model("own", tiny_models.autoencoder_kl())
    for precision in ({"step": 0.3}, {"lossless": "float16"}):
        with pytest.raises(ValueError, match="the scaling of own latents is not known here: scale"):
            saved(np.zeros(SHAPE, np.float16), model="own", scaled=False, **precision)


def test_unscaled_latents_without_loss_need_a_scaling_that_all_know(tiny: str) -> None:
    """Only this process knows that tiny has sd1's latents.

    With a step, they are scaled when saved.
    """
    array = np.zeros(SHAPE, np.float16)
    with pytest.raises(ValueError, match="other computers do not know the scaling of tiny"):
        saved(array, model=tiny, lossless="float16", scaled=False)
    assert not roundtrip(array, model=tiny, step=0.3, scaled=False).any()


# conventions, shapes, dtypes


@pytest.mark.parametrize(
    ("model", "scaling", "shift"),
    [("sd1", 0.18215, 0), ("taesd", 0.18215, 0), ("sdxl", 0.13025, 0), ("sd3", 1.5305, 0.0609)],
)
def test_unscaled_latents_are_scaled(model: str, scaling: float, shift: float) -> None:
    """Scaling is that of pipelines, (x - shift) * scaling. taesd shares the latents of sd1."""
    channels = models.spec(model).channels
    array = latents(channels, 8, 6)
    found = open_latents(saved(array, model=model, scaled=False, step=0.01))
    np.testing.assert_allclose(found.latents, (array - shift) * scaling, atol=0.0051 * scaling)
    np.testing.assert_allclose(found.unscaled(), array, atol=0.0051)


def test_a_batch_becomes_frames() -> None:
    batch = latents(3, *SHAPE)
    file = saved(batch, step=0.01)
    np.testing.assert_allclose(open_latents(file).latents, batch, atol=0.006)
    with Image.open(file) as image:
        assert (image.n_frames, image.size) == (3, (48, 64))


def test_one_latent_of_a_batch_comes_back_alone() -> None:
    assert roundtrip(latents(1, *SHAPE)).shape == SHAPE


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_of_any_type(dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(latents()).to(dtype).requires_grad_()
    expected = roundtrip(tensor.detach().float().numpy(), step=0.01)
    np.testing.assert_array_equal(roundtrip(tensor, step=0.01), expected)


def test_tensors_of_half_precision_without_loss() -> None:
    tensor = torch.from_numpy(latents())
    for half in (tensor.half(), tensor.bfloat16()):
        found = open_latents(saved(half, lossless="float16"))
        assert torch.equal(found.torch().float(), half.float())


def test_arrays_however_they_lie_in_memory() -> None:
    array = np.moveaxis(latents(8, 6, 4), -1, 0)[:, ::-1]
    np.testing.assert_allclose(roundtrip(array.astype(">f4"), step=0.01), array, atol=0.006)


def test_size_is_kept() -> None:
    """The last latents may reach beyond the picture."""
    found = open_latents(saved(latents(), size=(41, 64)))
    assert (found.size, found.factor, found.latents.shape) == ((41, 64), 8, SHAPE)
    assert open_latents(saved(latents())).size == (48, 64)


def test_what_is_told_about_a_file() -> None:
    found = open_latents(saved(latents(), step=0.25))
    assert (found.model, found.coding, found.step, found.info) == ("sd1", "context", 0.25, {})
    found = open_latents(saved(latents().astype(np.float16), lossless="float16"))
    assert (found.coding, found.step) == ("float16", None)


def test_mini_in_its_own_units() -> None:
    """The quality scales the latents of mini, so they have no step, and no other coding."""
    ramp = Image.linear_gradient("L")
    picture = Image.merge("RGB", (ramp, ramp.rotate(90), ramp))
    # Without a map of qualities, since `save_latents` makes none.
    data = encode(picture, quality=60, effort=3, regions=False)
    found = open_latents(BytesIO(data))
    assert found.latents.shape == (384, 16, 16)
    again = saved(found.latents, model="mini", quality=60).getvalue()
    assert decode(again).tobytes() == decode(data).tobytes()
    for wrong in ({"step": 0.3}, {"lossless": "float16"}, {"coding": "palette"}):
        with pytest.raises(ValueError, match="mini"):
            saved(found.latents, model="mini", **wrong)


# files


def test_paths_and_files(tmp_path: Path) -> None:
    save_latents(latents(), tmp_path / "a.sdz", model="sd1")
    save_latents(latents(), str(tmp_path / "b.sdz"), model="sd1")
    data = (tmp_path / "a.sdz").read_bytes()
    assert (tmp_path / "b.sdz").read_bytes() == data == saved(latents()).getvalue()
    for fp in (tmp_path / "a.sdz", str(tmp_path / "a.sdz"), BytesIO(data)):
        assert open_latents(fp).size == (48, 64)


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.sdz"
    path.write_bytes(b"precious")
    with pytest.raises(ValueError, match="not a number"):
        save_latents(np.full(SHAPE, np.nan, np.float32), path, model="sd1")
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_info_is_what_save_latents_takes() -> None:
    exif = Image.Exif()
    exif[274] = 6
    mask = np.random.default_rng(2).integers(0, 256, (64, 48)).astype(np.float32) / 255
    file = saved(
        latents(),
        prompt="ein Leuchtturm im Sturm, Öl auf Holz",
        denoise=0.05,
        exif=exif,
        icc_profile=b"profile",
        xmp="<x/>",
        provenance={"made": {"by": ["hand", 1.5, None]}},
        alpha_mask=mask,
    )
    info = open_latents(file).info
    assert set(info) == {
        "prompt",
        "denoise",
        "exif",
        "icc_profile",
        "xmp",
        "provenance",
        "alpha_mask",
    }
    assert info["provenance"] == {"made": {"by": ["hand", 1.5, None]}}
    np.testing.assert_array_equal(info["alpha_mask"], mask)
    assert saved(latents(), **info).getvalue() == file.getvalue()
    with Image.open(file) as image:
        assert image.getexif()[274] == 6
        assert image.info["sdz"]["prompt"] == info["prompt"]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a registered autoencoder for sd1's latents: tiny, with random weights."""
    tiny_models = pytest.importorskip("tiny_models", reason="needs the extra sd")
    monkeypatch.setattr(models, "_registered", {})
    pillow_sdz.register_model("tiny", tiny_models.autoencoder_kl(), latent_space="sd1")
    return "tiny"


def test_the_same_latents_as_a_picture(tiny: str) -> None:
    """`Image.open` decodes them if the model is installed."""
    batch = latents(2, *SHAPE)
    with Image.open(saved(batch, model=tiny, size=(47, 61))) as image:
        first = image.convert("RGB")
        image.seek(1)
        second = image.convert("RGB")
    assert first.size == (47, 61)
    assert first.tobytes() != second.tobytes()
    alone = decode(saved(batch[1], model=tiny, size=(47, 61)).getvalue())
    assert alone.tobytes() == second.tobytes()


def test_unscaled_latents_are_the_same_picture(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    array = (5 * latents()).astype(np.float16)
    monkeypatch.setattr(options, "DECODER", tiny)
    unscaled = saved(array, lossless="float16", scaled=False)
    scaled = saved(array.astype(np.float32) * 0.18215, step=1 / 1024)
    pictures = [np.asarray(decode(file.getvalue()), np.int16) for file in (unscaled, scaled)]
    # The rest comes from the step. The network multiplies it by some hundred levels.
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_no_model_and_no_torch_are_needed(tmp_path: Path, environment: dict[str, str]) -> None:
    """Saving and opening latents need neither, even if nobody here knows the model."""
    known = saved(latents()).getvalue()
    header = Header.parse(container.read(known)[0].data)
    stranger = header._replace(model="strange-1", digest=b"1234")
    path = tmp_path / "x.sdz"
    path.write_bytes(replaced(known, chunks.HEAD, stranger.pack()))
    script = """
import sys, numpy, pillow_sdz
found = pillow_sdz.open_latents(sys.argv[1])
pillow_sdz.save_latents(found.latents, sys.argv[2], model="sd1", step=found.step)
print(found.model, found.latents.shape, *{"torch", "diffusers"} & sys.modules.keys())
"""
    command = [sys.executable, "-c", script, str(path), str(tmp_path / "y.sdz")]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.strip() == "strange-1 (4, 8, 6)"
    np.testing.assert_array_equal(
        open_latents(tmp_path / "y.sdz").latents, open_latents(path).latents
    )


# what may not be written


@pytest.mark.parametrize(
    ("array", "options", "complaint"),
    [
        (latents(), {"model": "nothing"}, "model must be one of"),
        (latents(8, 6), {}, "shape"),
        (latents(1, 1, *SHAPE), {}, "4 channels, not 1"),
        (latents(1, 1, 1, *SHAPE), {}, "shape"),
        (
            latents(),
            {"model": "a family", "factor": 8},
            "another name of 1 to 32 characters of a-z",
        ),
        (latents(), {"model": "a-family"}, "give its factor"),
        (latents(), {"model": "a-family", "factor": 0}, "factor must be a whole number"),
        (latents(), {"model": "a-family", "factor": 8.0}, "factor must be a whole number"),
        (latents(), {"model": "a-family", "factor": 8, "scaled": False}, "scaling .* not known"),
        (latents(), {"factor": 16}, "a factor of 8, not 16"),
        (latents(), {"scaled": False, "step": 0.001}, "too fine"),
        (latents(4, 0, 6), {}, "shape"),
        (latents(0, *SHAPE), {}, "shape"),
        (latents(16, 8, 6), {}, "4 channels, not 16"),
        (np.zeros(SHAPE, np.int32), {}, "floating point values, not int32"),
        (torch.zeros(SHAPE, dtype=torch.int16), {}, "floating point values, not int16"),
        (np.zeros(SHAPE, complex), {}, "floating point values, not complex"),
        ([["a"]], {}, "floating point values"),
        (np.full(SHAPE, np.nan), {}, "not a number"),
        (np.full(SHAPE, -np.inf), {}, "infinite"),
        (np.full(SHAPE, 1e60), {}, "infinite"),
        (np.full(SHAPE, 600.0), {"step": 1 / 1024}, "steps from 0"),
        (latents(), {"size": (64, 48)}, "picture of 48x64"),
        (latents(), {"size": (40, 64)}, "picture of 48x64"),
        (latents(), {"size": 48}, "size must be"),
        (latents(), {"size": (48, "x")}, "size must be"),
        (latents(), {"size": (47.9, 64)}, "size must be"),
        (latents(), {"quality": 0}, "quality must be"),
        (latents(), {"quality": 101}, "quality must be"),
        (latents(), {"quality": "high"}, "quality must be"),
        (latents(), {"step": 0}, "step must be"),
        (latents(), {"step": 0.0004}, "step must be"),
        (latents(), {"step": 64}, "step must be"),
        (latents(), {"step": float("nan")}, "step must be"),
        (latents(), {"step": True}, "step must be"),
        (latents(), {"step": 0.3, "quality": 75}, "quality and step exclude each other"),
        (latents(), {"step": 0.3, "lossless": "float16"}, "step and lossless exclude"),
        (latents(), {"lossless": "float64"}, "lossless must be 'float16' or 'bfloat16' or"),
        (latents(), {"lossless": "bfloat16"}, "not exact in bfloat16"),
        (np.full(SHAPE, 0.1), {"lossless": "float32"}, "not exact in float32"),
        (latents(), {"lossless": "float16", "coding": "palette"}, "exclude each other"),
        (latents(), {"coding": "palette", "step": 0.3}, "leave out step"),
        (latents(), {"coding": "nonsense"}, "coding must be one of"),
        (latents(), {"effort": 10}, "effort must be"),
        (latents(), {"prompt": 5}, "prompt must be"),
        (latents(), {"xmp": 5}, "xmp must be"),
        (latents(), {"provenance": {"a": object()}}, "JSON"),
        (latents(), {"provenance": {"a": float("nan")}}, "JSON"),
        (latents(), {"provenance": {"a": "x" * (9 << 20)}}, "provenance has"),
        (latents(), {"alpha_mask": np.zeros((48, 64))}, "alpha_mask must have the picture's shape"),
        (latents(), {"alpha_mask": np.full((64, 48), 0.3)}, "must have values n/255"),
        (latents(), {"alpha_mask": np.full((64, 48), 2.0)}, "must have values n/255"),
        (latents(), {"alpha_mask": np.full((64, 48), np.nan)}, "must have values n/255"),
        (latents(), {"alpha_mask": np.full((64, 48), "x")}, "must have values n/255"),
    ],
)
def test_what_may_not_be_written(
    array: Any, options: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.sdz"
    with pytest.raises(ValueError, match=complaint):
        save_latents(array, path, **{"model": "sd1", **options})
    assert list(tmp_path.iterdir()) == []


def test_too_many_latents_for_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["pillow_sdz.latents"], "MAX_VALUES", 200)
    with pytest.raises(ValueError, match="too many for one file"):
        saved(latents(2, *SHAPE))


# damaged and hostile files


def test_other_files() -> None:
    with pytest.raises(OSError, match="not an SDZ file"):
        open_latents(BytesIO(b"something else"))


def test_every_truncation_is_refused() -> None:
    data = saved(latents(4, 2, 2), provenance={"a": 1}).getvalue()
    for length in range(len(data)):
        with pytest.raises(OSError, match=r"SDZ"):
            open_latents(BytesIO(data[:length]))


def test_flipped_bits_are_refused() -> None:
    data = saved(latents(4, 2, 2), prompt="x").getvalue()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(OSError, match=r"SDZ"):
            open_latents(BytesIO(damaged))


@pytest.mark.parametrize(
    ("type", "data"),
    [
        (chunks.PROVENANCE.type, b"no zlib"),
        (chunks.PROVENANCE.type, zlib.compress(b"no JSON")),
        (chunks.PROVENANCE.type, zlib.compress(b"[1, 2]")),
        (chunks.PROVENANCE.type, zlib.compress(b"{}") + b"more"),
        (chunks.PROVENANCE.type, zlib.compress(b"{}")[:-1]),
        (chunks.PROVENANCE.type, zlib.compress(b'{"a":' * 100_000)),
        (chunks.PROVENANCE.type, zlib.compress(b'{"a": ' + b" " * (8 << 20) + b"1}")),
        (chunks.MASK.type, b""),
        (chunks.MASK.type, b"\0"),
        (chunks.MASK.type, b"\1PNG"),
        (chunks.PROMPT.type, b"\xff"),
        (chunks.DENOISING.type, b"\0"),
    ],
)
def test_damage_behind_a_sound_framing(type: bytes, data: bytes) -> None:
    head, *rest = container.read(saved(latents()).getvalue())
    with pytest.raises(OSError, match=f"chunk {type.decode()}"):
        open_latents(BytesIO(framed([head, Chunk(type, data), *rest])))


def test_a_header_may_not_ask_for_gigabytes() -> None:
    data = saved(latents()).getvalue()
    for change in ({"size": (65535, 65535), "frames": 2}, {"size": (8192, 8192), "frames": 500}):
        with pytest.raises(OSError, match="more than the limit"):
            open_latents(relabelled(data, **change))


def relabelled(data: bytes, **change: Any) -> BytesIO:
    """The file with other values in its header, and as many frames as the header says."""
    head, *_, latn, done = container.read(data)
    header = Header.parse(head.data)._replace(**change)
    return BytesIO(framed([Chunk(chunks.HEAD, header.pack()), *[latn] * header.frames, done]))


@pytest.mark.parametrize("channels", [1025, 65535])
@pytest.mark.parametrize(("coding", "quantisation"), [(CONTEXT, 300), (PALETTE, 34), (FLOAT16, 0)])
def test_channels_are_limited(
    channels: int, coding: CodingSpec, quantisation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small header may ask for many channels."""
    monkeypatch.setattr(sys.modules["pillow_sdz.opening"], "FREE_WORK", 1 << 60)
    for one in (Context, DitheredPalette, Float16):
        monkeypatch.setattr(one, "stored", None)  # no work begins
    data = replaced(saved(latents(4, 1, 1)).getvalue(), chunks.LATENTS, b"\0")
    header = {"channels": channels, "coding": coding.number, "quantisation": quantisation}
    with pytest.raises(OSError, match=f"{channels} channels, more than the limit of 1024"):
        open_latents(relabelled(data, model="strange-1", **header))


def test_channels_are_limited_for_writers() -> None:
    wide = catalogue.ModelSpec("wide", 1025, 8, catalogue.NOT_NAMED, latent_space="wide")
    for coding in (CONTEXT, PALETTE, FLOAT16):
        encode = decoding.coder_of(wide, coding).encoder(34, effort=4)
        with pytest.raises(ValueError, match="1025 channels, more than the limit of 1024"):
            encode(Frame(np.zeros((1, 1, 1025), np.float32)))


@pytest.mark.parametrize(
    "change",
    [
        {"size": (8, 8), "frames": 2000},  # many waves with almost nothing in them
        {"size": (65535, 1), "channels": 1023},
        {"size": (1500, 1500)},
    ],
)
def test_time_is_limited_by_the_bytes_of_a_file(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in (Context, DitheredPalette, Float16):
        monkeypatch.setattr(one, "stored", None)  # no work begins
    data = replaced(saved(latents(4, 1, 1)).getvalue(), chunks.LATENTS, b"\0")
    header = {"model": "strange-1", "factor": 1, "quantisation": 300, **change}
    with pytest.raises(OSError, match=r"frames of latents .* in \d+ bytes are too many"):
        open_latents(relabelled(data, **header))


@pytest.mark.parametrize(("coding", "quantisation"), [(CONTEXT, 300), (FLOAT16, 0)])
def test_a_frame_is_limited_by_its_bytes(
    coding: CodingSpec, quantisation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit holds for the writer and the reader, and for all codings that learn."""
    strange = catalogue.ModelSpec("strange", 5, 8, catalogue.NOT_NAMED, latent_space="strange")
    coder = decoding.coder_of(strange, coding)
    frame = Frame(np.zeros((64, 64, 5), np.float16))
    (chunk,) = coder.encoder(quantisation, effort=4)(frame)
    coder.decode(chunk.data, (64, 64), quantisation)
    monkeypatch.setattr(adaptive, "FREE_WORK", 0)
    monkeypatch.setattr(adaptive, "WORK_PER_BYTE", 1)
    with pytest.raises(ValueError, match="bytes are too many"):
        coder.encoder(quantisation, effort=4)(frame)
    with pytest.raises(ValueError, match="bytes are too many"):
        coder.decode(chunk.data, (64, 64), quantisation)


@pytest.mark.slow
def test_what_nothing_happens_in_is_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents of zeros have the most values in a byte. All that can be written can be read."""
    monkeypatch.setattr(sys.modules["pillow_sdz.opening"], "FREE_WORK", 1 << 15)
    assert not roundtrip(np.zeros((16, 64, 64), np.float16), model="sd3", step=0.3).any()
    assert not roundtrip(np.zeros((100, *SHAPE), np.float16)).any()
    monkeypatch.setattr(sys.modules["pillow_sdz.opening"], "WORK_PER_BYTE", 1)
    with pytest.raises(ValueError, match="bytes are too many"):
        saved(np.zeros((16, 64, 64), np.float16), model="sd3")


def test_pictures_too_large_for_pillow_have_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Image.MAX_IMAGE_PIXELS` is for pixels, and no pixels are decoded here."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert roundtrip(latents()).shape == SHAPE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "options", "most"),
    [  # measured: 8.5, 7.5, 7.5, 3.8 and 7.9 MB; the results have 0.98, 0.26, 0.13, 0.26 and 0.59
        ((60, 4, 32, 32), {"model": "sd1"}, 11e6),
        ((4, 128, 128), {"model": "sd1"}, 11e6),
        ((4, 128, 128), {"model": "sd1", "lossless": "float16"}, 11e6),
        ((4, 128, 128), {"model": "sd1", "coding": "palette"}, 5e6),
        ((16, 96, 96), {"model": "flux"}, 12e6),
    ],
)
def test_memory_to_read(shape: tuple[int, ...], options: dict[str, Any], most: float) -> None:
    """Up to 16 small frames are decoded together.  More take little more than the result."""
    file = BytesIO()
    values = np.random.default_rng(0).normal(0, 1, shape).astype(np.float16)
    save_latents(values, file, **options)
    open_latents(file)  # loads tables and priors
    tracemalloc.start()
    try:
        open_latents(file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most
