"""Latents of today's families, as pipelines and trainers hand them over."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pillow_sdz import (
    Latents,
    catalogue,
    chunks,
    container,
    keywords,
    open_latents,
    presets,
    save_latents,
    scaling,
    shapes,
)
from sample_latents import correlated_latents
from sdz_files import replaced

Array = NDArray[Any]


def latents(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def saved(array: Any, **options: Any) -> BytesIO:
    file = BytesIO()
    save_latents(array, file, **options)
    file.seek(0)
    return file


def exact(array: Any, **options: Any) -> Latents:
    """Save the latents without loss, and open them again."""
    return open_latents(saved(array, lossless="float32", **options))


def framed(array: Any, name: str, size: Any = None) -> shapes.Frames:
    return shapes.frames(array, name, None, size)


# Any name


@pytest.mark.parametrize("channels", [1, 3, 65, 200])
def test_a_family_that_nobody_knows(channels: int) -> None:
    array = latents(channels, 3, 5)
    found = exact(array, model="features-of-tomorrow", factor=14)
    assert (found.model, found.factor, found.size) == ("features-of-tomorrow", 14, (70, 42))
    np.testing.assert_array_equal(found.latents, array)


@pytest.mark.slow
def test_the_widest_latents_in_steps() -> None:
    array = correlated_latents(3, 4, 768).transpose(2, 0, 1)
    found = open_latents(saved(array, model="features", factor=16, step=0.5))
    assert np.abs(found.latents - array).max() <= 0.25 + 1e-6


@pytest.mark.parametrize(
    "name", [n for n, space in catalogue.all_spaces().items() if not space.is_own]
)
def test_every_family(name: str) -> None:
    space = catalogue.all_spaces()[name]
    array = latents(space.channels, 4, 2)
    found = exact(array, model=name)
    assert (found.factor, found.size) == (space.factor, (2 * space.factor, 4 * space.factor))
    np.testing.assert_array_equal(found.latents, array)


# The README's table


def rows_of_readme() -> dict[str, list[str]]:
    """The other columns of the table in the README, by the names in its first column."""
    text = (Path(__file__).parent.parent / "README.md").read_text()
    table = text.split("| latents | saved | exact |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    return {name: rest for first, *rest in rows for name in re.findall("`([^`]+)`", first)}


def test_the_table_of_families_is_complete() -> None:
    rows = rows_of_readme()
    own = {name for name, space in catalogue.all_spaces().items() if space.is_own}
    # "factor" is of any other family.
    assert rows.keys() - {"factor"} == catalogue.names() - own - {"sd-mini"}


@pytest.mark.parametrize("name", sorted(rows_of_readme().keys() - {"factor"}))
def test_the_table_of_families_is_right(name: str) -> None:
    saved_as, exact_too, shown, pinned = rows_of_readme()[name]
    spec = keywords.model_named(name)
    space, preset = spec.space, presets.PRESETS.get(name)
    assert saved_as == ("yes, all time steps" if space.video else "yes")
    shape = (space.channels, 2, 4, 2) if space.video else (space.channels, 4, 2)
    if space.time_first:
        shape = (2, space.channels, 4, 2)
    array = latents(*shape)
    found = exact(array[None], model=name)
    assert exact_too == "yes"
    again = found.latents.swapaxes(0, 1) if space.time_first else found.latents
    np.testing.assert_array_equal(again.reshape(shape), array)
    assert shown.startswith("from the hub" if preset else "from memory")
    assert shown.endswith("the first time step") == space.video
    weights = preset.autoencoder if preset else None
    if weights is not None and weights.revision and all(f.sha256 for f in weights.files[-1:]):
        assert pinned == "yes"
        assert re.fullmatch("[0-9a-f]{40}", weights.revision)
        assert re.fullmatch("[0-9a-f]{64}", str(weights.files[-1].sha256))
    else:
        assert pinned == ("by you" if preset else "no")


# Names


def test_taef2_has_the_latents_of_flux2() -> None:
    array = latents(2, 32, 4, 2)
    found = exact(array, model="taef2")
    assert (found.model, found.factor, found.size) == ("taef2", 8, (16, 32))
    np.testing.assert_array_equal(found.latents, array)
    found = open_latents(saved(array, model="taef2", scaled=False, step=0.1))
    assert np.abs(found.unscaled() - array).max() <= 0.0501
    assert saved(array, model="taef2").getbuffer().nbytes == pytest.approx(
        saved(array, model="flux2").getbuffer().nbytes, abs=1
    )  # with the same prior


@pytest.mark.parametrize("name", ["taef2", "flux2", "taesd"])
def test_known_names_are_of_their_own_latents(name: str) -> None:
    """Readers expect these latents under this name."""
    from pillow_sdz.models import specs

    family = catalogue.known(name)
    assert family is not None
    shape = specs.Shape(family.channels, family.factor, 1, 0)
    digest = "00" * 32
    for given in (None, family.latent_space):
        spec = specs.new(name, shape, None, digest, given, {})
        assert spec.latent_space == family.latent_space
    with pytest.raises(ValueError, match=f"'{name}' is a known model with other"):
        specs.new(name, specs.Shape(16, 8, 1, 0), None, digest, "flux", {})


@pytest.mark.parametrize(
    ("shape", "size", "fit"),
    [
        ((4, 8, 6), None, "sd-mini, sd1, sdxl, taesd, taesdxl"),
        ((2, 32, 8, 6), None, "flux2, hunyuan-video-1.5, sana, taef2"),
        ((1, 48, 3, 8, 6), None, "wan22"),
        ((48, 3, 8, 6), None, "wan22"),
        ((1, 3, 16, 8, 6), None, "cogvideox"),
        ((1, 12, 64), (48, 64), "flux, qwen-image, qwen-image-2, taef1"),
        ((1, 12, 128), (48, 64), "flux2-patches, ltx"),
    ],
)
def test_an_unknown_name(shape: tuple[int, ...], size: Any, fit: str) -> None:
    """The message begins with the families whose latents have this shape."""
    with pytest.raises(ValueError, match="not 'tomorrow'; for latents of another") as e:
        saved(latents(*shape), model="tomorrow", size=size)
    text = str(e.value)
    assert f"model must be one of {fit} (for latents of this shape), or of " in text
    rest = text.split(" or of ")[1].split(", not ")[0].split(", ")
    assert catalogue.names() - {*fit.split(", ")} <= {*rest}
    assert not {*fit.split(", ")} & {*rest}


@pytest.mark.parametrize("factor", [None, 8])
@pytest.mark.parametrize(
    ("name", "channels", "family"),
    [
        ("chroma", 16, "flux"),
        ("z-image", 16, "flux"),
        ("lumina2", 16, "flux"),
        ("hidream", 16, "flux"),
        ("krea-2", 16, "qwen-image"),
        ("Anima", 16, "qwen-image"),
        ("omnigen2", 16, "flux"),
        ("ernie-image", 128, "flux2"),
        ("flux.1", 16, "flux"),
        ("sd1.5", 4, "sd1"),
        ("sd2", 4, "sd1"),
        ("sd3.5", 16, "sd3"),
        ("qwen-image-2512", 16, "qwen-image"),
    ],
)
def test_models_with_the_latents_of_a_family(
    name: str, channels: int, family: str, factor: int | None
) -> None:
    """They are saved as those of the family, whose scaling and packing are known."""
    text = f"{name} has the latents of {family}: give model='{family}'"
    with pytest.raises(ValueError, match=text):
        saved(latents(channels, 8, 6), model=name, factor=factor)
    if name.islower():  # latents of this name that have another shape are another model's
        found = exact(latents(24, 8, 6), model=name, factor=8)
        assert found.model == name


@pytest.mark.parametrize("factor", [None, 16])
@pytest.mark.parametrize(
    ("name", "shape", "family"),
    [
        ("black-forest-labs/FLUX.2-dev", (128, 4, 3), "flux2"),
        ("black-forest-labs/FLUX.2-dev", (32, 8, 6), "flux2"),
        ("FLUX", (16, 8, 6), "flux"),
        ("Tongyi-MAI/Z-Image-Turbo", (16, 8, 6), "flux"),
        ("Qwen/Qwen-Image-Edit", (16, 8, 6), "qwen-image"),
        ("Wan-AI/Wan2.2-TI2V-5B", (48, 3, 8, 6), "wan22"),
        ("black-forest-labs/FLUX.1-dev", (16, 8, 6), "flux"),
        ("stabilityai/sd3.5-large", (16, 8, 6), "sd3"),
        ("Lightricks/LTX-Video-0.9.7", (128, 4, 3), "ltx"),
    ],
)
def test_names_of_repositories(
    name: str, shape: tuple[int, ...], family: str, factor: int | None
) -> None:
    with pytest.raises(ValueError, match="seems to be") as e:
        saved(latents(*shape), model=name, factor=factor)
    assert f"'{family}'" in str(e.value)
    assert f"not '{name}'" in str(e.value)
    assert ("give its factor" in str(e.value)) == (factor is None)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("Lightricks/LTX-2", (128, 4, 3)),
        ("ltx-2.3", (128, 4, 3)),
        ("org/FLUX.3-dev", (16, 8, 6)),
        ("Qwen/Qwen-Image-2.5", (64, 4, 3)),
        ("hunyuan-video-2", (16, 8, 6)),
    ],
)
def test_other_versions_of_a_model(name: str, shape: tuple[int, ...]) -> None:
    """They may have other latents, so no family is proposed."""
    with pytest.raises(ValueError, match="give its factor") as e:
        saved(latents(*shape), model=name)
    assert "seems to be" not in str(e.value)


@pytest.mark.parametrize("name", ["", "hub name", "black-forest-labs/FLUX.2-dev", "a" * 33, 7])
def test_names_that_no_file_can_have(name: Any) -> None:
    """No family has 24 channels, so none is proposed."""
    text = "model must be a family that is known here, or another name of 1 to 32 characters of a-z"
    with pytest.raises(ValueError, match=text):
        saved(latents(24, 8, 6), model=name, factor=8)


@pytest.mark.parametrize("shape", [(1, 64, 64), (1, 64, 128), (2, 12, 64), (4, 256, 64)])
def test_sequences_of_unknown_families(shape: tuple[int, ...]) -> None:
    """Nobody knows how they are packed. Only a size says that they are pictures."""
    count, rows, columns = shape
    for size in (None, (256, 256)):
        with pytest.raises(ValueError, match="seems to be a packed sequence") as e:
            saved(latents(*shape), model="tomorrow", factor=32, size=size)
        assert f"of {count} channels, give size=({32 * columns}, {32 * rows})" in str(e.value)
    array = latents(*shape)
    found = exact(array, model="tomorrow", factor=32, size=(32 * columns, 32 * rows))
    np.testing.assert_array_equal(found.latents, array)
    found = exact(array[None], model="tomorrow", factor=32)  # a batch is no sequence
    np.testing.assert_array_equal(found.latents, array)


def test_an_unknown_name_that_none_fits() -> None:
    with pytest.raises(ValueError, match="model must be one of cogvideox, flux, flux2,"):
        saved(latents(24, 8, 6), model="tomorrow")


def test_a_second_decoder_has_no_latents() -> None:
    for factor in (None, 16):
        with pytest.raises(ValueError, match="'mini-perceptual' only decodes"):
            saved(latents(384, 2, 2), model="mini-perceptual", factor=factor)


# Scaling


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n for n, s in catalogue.all_spaces().items() if s.scaling is not None]
)
def test_unscaled_latents_of_every_family(name: str) -> None:
    """Scaling is that of pipelines, (x - shift) * scaling, channel by channel."""
    space = catalogue.all_spaces()[name]
    array = latents(2, space.channels, 4, 2)
    found = open_latents(saved(array, model=name, scaled=False, step=0.05))
    scaling, shift = (
        np.broadcast_to(np.array(each, np.float32), space.channels)[:, None, None]
        for each in (space.scaling, space.shift)
    )
    # A step of unscaled latents is in their own unit.
    assert np.abs(found.unscaled() - array).max() <= 0.0251
    assert (np.abs(found.latents - (array - shift) * scaling) <= 0.0251 * scaling).all()
    kept = exact(array, model=name, scaled=False).unscaled()
    np.testing.assert_array_equal(kept, array)


def test_statistics_are_those_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers", reason="needs the extra sd")
    import inspect

    for name, kind in (
        ("qwen-image", diffusers.AutoencoderKLQwenImage),
        ("wan21", diffusers.AutoencoderKLWan),
        ("mochi", diffusers.AutoencoderKLMochi),
        ("qwen-image-2", diffusers.AutoencoderKLQwenImage21),
    ):
        defaults = inspect.signature(kind).parameters
        space = catalogue.all_spaces()[name]
        std = defaults["latents_std"].default
        np.testing.assert_allclose(space.scaling, 1 / np.array(std), rtol=1e-6)
        np.testing.assert_allclose(space.shift, defaults["latents_mean"].default, rtol=1e-6)


def test_statistics_of_flux2() -> None:
    """Its autoencoder normalises with the variances of a batch norm. The epsilon is 0.0001."""
    scaling = catalogue.all_spaces()["flux2-patches"].scaling
    assert isinstance(scaling, tuple)
    assert len(scaling) == 128
    # The first variance is 3.250212, and the last one 3.0729201.
    assert (1 / scaling[0], 1 / scaling[-1]) == pytest.approx((1.8028622, 1.7530032), rel=1e-7)


# Sequences, as diffusers' pipelines pack them


def packed_patches(array: Array) -> Array:
    """Latents (B, C, h, w) packed as by `FluxPipeline._pack_latents`, but in loops."""
    batch, channels, height, width = array.shape
    found = np.empty((batch, height * width // 4, 4 * channels), array.dtype)
    for y in range(height):
        for x in range(width):
            place = y // 2 * (width // 2) + x // 2
            for c in range(channels):
                found[:, place, 4 * c + 2 * (y % 2) + x % 2] = array[:, c, y, x]
    return found


def packed_places(array: Array) -> Array:
    return array.reshape(*array.shape[:2], -1).transpose(0, 2, 1)


@pytest.mark.parametrize("name", ["flux", "qwen-image"])
def test_packed_patches(name: str) -> None:
    array = latents(3, 16, 6, 4)
    # Pipelines round the size down to whole patches.
    for size in ((32, 48), (47, 63)):
        given = framed(packed_patches(array), name, size)
        np.testing.assert_array_equal(given.latents, array)
        assert shapes.checked_size(size, given) == (32, 48)
    found = exact(packed_patches(array), model=name, size=(32, 48))
    np.testing.assert_array_equal(found.latents, array)


def test_packed_patches_are_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers", reason="needs the extra sd")
    array = latents(2, 16, 6, 4)
    packed = diffusers.FluxPipeline._pack_latents(torch.from_numpy(array), 2, 16, 6, 4).numpy()
    np.testing.assert_array_equal(packed, packed_patches(array))
    array = latents(2, 32, 6, 4)
    patches = diffusers.Flux2Pipeline._patchify_latents(torch.from_numpy(array)).numpy()
    places = diffusers.Flux2Pipeline._pack_latents(torch.from_numpy(patches)).numpy()
    np.testing.assert_array_equal(places, packed_places(patches))
    for one, found in zip(array, patches, strict=True):
        back = scaling.unpatched(found.transpose(1, 2, 0)).transpose(2, 0, 1)
        np.testing.assert_array_equal(back, one)


def test_flux2_is_told_by_its_channels() -> None:
    patches = latents(2, 128, 3, 2)
    for given, size in ((patches, None), (packed_places(patches), (32, 48))):
        found = framed(given, "flux2", size)
        assert (found.model.name, found.model.factor) == ("flux2-patches", 16)
        np.testing.assert_array_equal(found.latents, patches)
    own = framed(latents(32, 6, 4), "flux2")
    assert (own.model.name, own.model.factor) == ("flux2", 8)
    assert shapes.checked_size(None, own) == (32, 48)
    assert exact(patches[0, :, :1], model="flux2").model == "flux2-patches"


@pytest.mark.parametrize(
    ("shape", "size", "name"),
    [
        ((128, 32, 32), None, "flux2-patches"),  # 512x512: as wide as the others are deep
        ((32, 64, 64), None, "flux2"),
        ((32, 96, 128), None, "flux2"),  # 1024 pixels wide
        ((32, 96, 128), (1024, 768), "flux2"),
        ((32, 1024, 128), (512, 512), "flux2-patches"),  # a batch of 32 sequences
        ((128, 128, 128), None, "flux2-patches"),
        ((2, 1024, 128), (512, 512), "flux2-patches"),
        ((1, 32, 32, 32), None, "flux2"),
        ((1, 128, 32, 32), None, "flux2-patches"),
    ],
)
def test_flux2_of_shapes_that_look_alike(
    shape: tuple[int, ...], size: tuple[int, int] | None, name: str
) -> None:
    assert framed(np.zeros(shape, np.float32), "flux2", size).model.name == name
    with pytest.raises(ValueError, match="packed sequence of flux2-patches latents"):
        framed(np.zeros((32, 1024, 128), np.float32), "flux2")


def test_even_places() -> None:
    array = latents(2, 64, 4, 2)
    found = framed(packed_places(array), "qwen-image-2", (50, 65))
    np.testing.assert_array_equal(found.latents, array)
    np.testing.assert_array_equal(shapes.packed(found), packed_places(array))


def test_packing_is_undone_exactly() -> None:
    sequence = latents(3, 6, 64)
    np.testing.assert_array_equal(shapes.packed(framed(sequence, "flux", (32, 48))), sequence)
    sequence = latents(2, 30, 128)  # 5 time steps
    np.testing.assert_array_equal(shapes.packed(framed(sequence, "ltx", (64, 96))), sequence)
    with pytest.raises(ValueError, match="sd1 latents are never packed"):
        shapes.packed(framed(latents(4, 8, 6), "sd1"))


def test_packed_clips() -> None:
    array = latents(2, 128, 5, 3, 2)
    found = framed(array.reshape(2, 128, -1).transpose(0, 2, 1), "ltx", (64, 96))
    assert found.steps == 5
    np.testing.assert_array_equal(shapes.clips(found.latents, 5), array)


@pytest.mark.parametrize(
    ("shape", "size", "complaint"),
    [
        ((16, 1024, 64), None, r"packed sequence of flux latents: give size"),
        ((1, 1024, 64), None, r"packed sequence of flux latents: give size"),
        ((2, 24, 64), (512, 512), "a sequence of 24 places is not a picture of 512x512"),
        ((2, 24, 64), (8, 8), "a sequence of 24 places is not a picture of 8x8"),
        ((2, 24, 64), 5, "size must be"),
    ],
)
def test_sequences_that_cannot_be_unpacked(
    shape: tuple[int, ...], size: Any, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        saved(latents(*shape), model="flux", size=size)


def test_planes_that_look_like_sequences() -> None:
    """The most frequent shape is not taken for a sequence: 512x512 pixels of FLUX.1.

    Only the size says that it is a batch of 16 sequences, of 128x128 pixels.
    """
    array = latents(16, 64, 64)
    for size in (None, (512, 512), (509, 505)):
        np.testing.assert_array_equal(framed(array, "flux", size).latents[0], array)
    assert framed(array, "flux", (128, 128)).latents.shape == (16, 16, 16, 16)
    packed = latents(16, 1024, 64)
    assert framed(packed, "flux", (512, 512)).latents.shape == (16, 16, 64, 64)
    assert framed(packed, "flux", (512, 8192)).latents.shape == (1, 16, 1024, 64)


# Clips


@pytest.mark.parametrize("name", ["wan21", "cogvideox", "mochi"])
def test_clips(name: str) -> None:
    channels = catalogue.all_spaces()[name].channels
    array = latents(2, channels, 3, 4, 5)
    given = array.swapaxes(1, 2) if name == "cogvideox" else array
    file = saved(given, model=name, lossless="float32")
    found = open_latents(file)
    assert (found.steps, found.latents.shape) == (3, array.shape)
    np.testing.assert_array_equal(found.latents, array)
    np.testing.assert_array_equal(exact(array[0], model=name).latents, array[0])
    file.seek(0)
    with Image.open(file) as im:
        assert im.n_frames == 6  # type: ignore[attr-defined]
        im.seek(4)
        with pytest.raises(OSError, match="frame 4 is a time step of a clip"):
            im.load()


def test_one_frame_is_a_picture() -> None:
    array = latents(2, 16, 1, 4, 5)
    found = exact(array, model="qwen-image")
    assert found.steps == 1
    np.testing.assert_array_equal(found.latents, array[:, :, 0])


def test_unscaled_clips() -> None:
    array = latents(2, 16, 3, 4, 5)
    np.testing.assert_array_equal(exact(array, model="wan21", scaled=False).unscaled(), array)
    found = open_latents(saved(array, model="wan21", scaled=False, step=0.1))
    assert np.abs(found.unscaled() - array).max() <= 0.0501


@pytest.mark.parametrize("data", [b"", b"\0\0", b"\0\1", b"\0\4", b"\0\3\0"])
def test_damaged_clips(data: bytes) -> None:
    file = saved(latents(2, 16, 3, 4, 5), model="wan21").getvalue()
    damaged = replaced(file, chunks.CLIP.type, data)
    for read in (open_latents, Image.open):
        with pytest.raises(OSError, match=r"chunk cLIP has . time steps for 6 frames"):
            read(BytesIO(damaged))
    assert chunks.CLIP.type in [chunk.type for chunk in container.read(file)]


# Without loss


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tensors_without_loss(dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(latents(16, 8, 6)).to(dtype)
    tensor[0, 0, 0], tensor[0, 0, 1], tensor[0, 0, 2] = 0.0, -0.0, 1e-6
    name = str(dtype).removeprefix("torch.")
    for given in (tensor, tensor * 0, tensor * 1e-3, tensor.float()):
        found = open_latents(saved(given, model="flux", lossless=name))
        assert found.dtype == name
        assert found.torch().dtype == dtype
        assert torch.equal(found.torch(), given.to(dtype))
        assert torch.equal(found.torch().signbit(), given.signbit())


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_every_float_comes_back(name: str) -> None:
    """This includes infinities, NaNs, and the smallest and largest numbers."""
    bits = np.random.default_rng(2).integers(0, 1 << 32, (4, 16, 16)).astype(np.uint32)
    bits[0, 0, :6] = [0, 1 << 31, 1, 0x7F800000, 0xFF800000, 0x7FC00000]
    bits[0, 1, :3] = [0x7F7FFFFF, 0x00800000, 0x807FFFFF]
    if name == "bfloat16":
        bits &= np.uint32(0xFFFF0000)
    found = open_latents(saved(bits.view(np.float32), model="sd1", lossless=name)).latents
    np.testing.assert_array_equal(found.view(np.uint32), bits)


@pytest.mark.parametrize("exponent", [-140, -100, -30, 0, 40, 120])
def test_floats_of_any_unit(exponent: int) -> None:
    array = np.ldexp(latents(4, 16, 16), exponent).astype(np.float32)
    array[0, 0, 0], array[0, 0, 1] = 1e-45, 3e38
    np.testing.assert_array_equal(exact(array, model="sd1").latents, array)


def test_exceptions_are_few_and_damage_is_found() -> None:
    from pillow_sdz.codings import float32
    from pillow_sdz.codings.adaptive import AdaptivePrior
    from pillow_sdz.codings.range_coder import DamagedPayload

    array, prior = latents(8, 8, 4), AdaptivePrior(4)
    payload = float32.encode(array, prior)
    assert payload[4:8] == bytes(4)
    np.testing.assert_array_equal(float32.decode([payload], (8, 8, 4), prior)[0], array)
    array[3, 3, 3], array[7, 7, 3] = np.inf, np.nan
    payload = float32.encode(array, prior)
    assert payload[4:8] == bytes([0, 0, 0, 2])
    for damaged in (
        payload[:5],
        payload[:12],
        b"\x18" + payload[1:],
        payload[:1] + b"\x3c" + payload[2:],
        payload[:8] + b"\0" + payload[9:],
        payload[:8] + b"\xff" * 6 + payload[12:],
        payload[:9] + b"\xff\x7f" + payload[11:],
        payload[:2] + b"\x70\0" + payload[4:],
    ):
        with pytest.raises(DamagedPayload):
            float32.decode([damaged], (8, 8, 4), prior)
    with pytest.raises(DamagedPayload, match=r"mantissas of 23 bits cannot have cells of"):
        float32.decode([payload], (8, 8, 4), prior, 7)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(4, 8, 6).to_sparse(), torch.zeros(4, 8, 6, device="meta")]
)
def test_tensors_that_numpy_lacks(tensor: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="latents cannot be read: "):
        saved(tensor, model="sd1")
