"""Caches of today's trainers, there and back. They are written here as the tools' sources do."""

from __future__ import annotations

import json
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pillow_sdz import interchange, latents, open_latents, save_latents
from pillow_sdz.cli import main
from pillow_sdz.interchange import torch_files


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def converted(path: Path, *options: str) -> list[Path]:
    """The `.sdz` files that `sdz encode` makes of a cache, in a folder beside it."""
    folder = path.parent / "sdz"
    assert main(["encode", str(path), "-o", str(folder), "--lossless", *options]) == 0
    return sorted(folder.rglob("*.sdz"))


def back(path: Path) -> Path:
    """The file that `sdz latents` makes of what `converted` has made."""
    folder = path.parent / "back"
    source = str(path.parent / "sdz")
    assert main(["latents", source, "-o", str(folder), "--format", path.suffix[1:]]) == 0
    (found,) = folder.rglob("*" + path.suffix)
    return found


def assert_same_tensors(path: Path, again: Path) -> None:
    """The same names, dtypes, shapes, bits and metadata."""
    with safe_open(path, "pt") as one, safe_open(again, "pt") as other:
        assert one.metadata() == other.metadata()
    expected, found = load_file(path), load_file(again)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name], tensor), name


# musubi-tuner


def musubi(
    folder: Path, architecture: str, short: str, tensors: dict[str, Tensor], **more: str
) -> Path:
    """A cache as save_latent_cache_common writes it, with the name of get_latent_cache_path."""
    metadata = {"architecture": architecture, "width": "0048", "height": "64"}
    path = folder / f"photo_0048x0064_{short}.safetensors"
    save_file(tensors, path, metadata=metadata | {"format_version": "1.0.1"} | more)
    return path


BF16 = torch.bfloat16


def with_mask(latents: Tensor, channels: int, *, last: bool = False) -> Tensor:
    """The latents of a video's first picture, and a mask that says which frames are given."""
    mask = torch.zeros(channels, *latents.shape[1:], dtype=latents.dtype)
    mask[:, 0] = 1
    return torch.cat([latents, mask] if last else [mask, latents])


MUSUBI = {
    "z_image": (
        "zi",
        {"latents_1x8x6_bfloat16": normal(16, 8, 6, dtype=BF16)},
        "flux",
        (16, 8, 6),
    ),
    "flux_2_klein_4b": (
        "f2k4b",
        {
            "latents_4x3_bfloat16": normal(128, 4, 3, dtype=BF16),
            "latents_control_0_4x4_bfloat16": normal(128, 4, 4, dtype=BF16, seed=1),
            "latents_control_1_2x3_bfloat16": normal(128, 2, 3, dtype=BF16, seed=2),
        },
        "flux2-patches",
        (128, 4, 3),
    ),
    "qwen_image": (
        "qi",
        {"latents_1x8x6_float32": normal(16, 1, 8, 6)},
        "qwen-image",
        (16, 8, 6),
    ),
    "qwen_image_layered": (
        "qil",
        {"latents_3x8x6_float32": normal(16, 3, 8, 6)},
        "qwen-image",
        (16, 3, 8, 6),
    ),
    "wan": (
        "wan",
        {
            "latents_5x4x3_bfloat16": normal(16, 5, 4, 3, dtype=BF16),
            "latents_image_5x4x3_bfloat16": with_mask(normal(16, 5, 4, 3, dtype=BF16, seed=1), 4),
            "latents_control_5x4x3_bfloat16": normal(16, 5, 4, 3, dtype=BF16, seed=2),
            "clip_bfloat16": normal(7, 9, dtype=torch.float16),
        },
        "wan21",
        (16, 5, 4, 3),
    ),
    "wan, one frame": (
        "wan",
        {
            "latents_3x4x3_bfloat16": normal(16, 3, 4, 3, dtype=BF16),
            "latents_image_3x4x3_bfloat16": with_mask(normal(16, 3, 4, 3, dtype=BF16, seed=1), 4),
            "f_indices_int32": torch.tensor([0, 4, 8], dtype=torch.int32),
            "clip_bfloat16": normal(2, 7, 9, dtype=torch.float16),
        },
        "wan21",
        (16, 3, 4, 3),
    ),
    "wan, any mask": (
        "wan",
        {
            "latents_2x4x3_bfloat16": normal(16, 2, 4, 3, dtype=BF16),
            "latents_image_2x4x3_bfloat16": normal(20, 2, 4, 3, dtype=BF16, seed=1),
        },
        "wan21",
        (16, 2, 4, 3),
    ),
    "hunyuan_video": (
        "hv",
        {"latents_2x4x3_float16": normal(16, 2, 4, 3, dtype=torch.float16)},
        "hunyuan-video",
        (16, 2, 4, 3),
    ),
    "hunyuan_video_1_5": (
        "hv15",
        {
            "latents_2x4x3_float16": normal(32, 2, 4, 3, dtype=torch.float16),
            "latents_image_2x4x3_float32": with_mask(normal(32, 2, 4, 3, seed=1), 1, last=True),
            "siglip_float16": normal(7, 9, dtype=torch.float16),
        },
        "hunyuan-video-1.5",
        (32, 2, 4, 3),
    ),
    "framepack": (
        "fp",
        {
            "latents_9x4x3_float16": normal(16, 9, 4, 3, dtype=torch.float16),
            "latents_clean_9x4x3_float16": normal(16, 2, 4, 3, dtype=torch.float16, seed=1),
            "latents_clean_2x_9x4x3_float16": normal(16, 2, 4, 3, dtype=torch.float16, seed=2),
            "latents_clean_4x_9x4x3_float16": normal(16, 16, 4, 3, dtype=torch.float16, seed=3) * 0,
            "latent_indices_int64": torch.arange(9) + 1,
            "clean_latent_indices_int64": torch.tensor([0, 10]),
            "clean_latent_2x_indices_int64": torch.tensor([11, 12]),
            "clean_latent_4x_indices_int64": torch.arange(16) + 13,
            "image_embeddings_float16": normal(7, 9, dtype=torch.float16),
        },
        "hunyuan-video",
        (16, 9, 4, 3),
    ),
    "framepack, one frame": (
        "fp",
        {
            "latents_1x4x3_float16": normal(16, 1, 4, 3, dtype=torch.float16),
            "latents_clean_1x4x3_float16": normal(16, 2, 4, 3, dtype=torch.float16, seed=1),
            "latent_indices_int64": torch.tensor([9]),
            "clean_latent_indices_int64": torch.tensor([0, 10]),
            "image_embeddings_float16": normal(7, 9, dtype=torch.float16),
        },
        "hunyuan-video",
        (16, 4, 3),
    ),
    "kandinsky5": (
        "k5",
        {
            "latents_3x4x3_float16": normal(16, 3, 4, 3, dtype=torch.float16),
            "latents_image_2x4x3_float16": normal(16, 2, 4, 3, dtype=torch.float16, seed=1),
        },
        "hunyuan-video",
        (16, 3, 4, 3),
    ),
    "krea2": ("kr2", {"latents_1x8x6_float32": normal(16, 1, 8, 6)}, "qwen-image", (16, 8, 6)),
    "qwen_image_edit": (
        "qie",
        {
            "latents_1x8x6_float32": normal(16, 1, 8, 6),
            "latents_control_0_1x4x4_float32": normal(16, 1, 4, 4, seed=1),
            "latents_control_1_1x2x6_float32": normal(16, 1, 2, 6, seed=2),
        },
        "qwen-image",
        (16, 8, 6),
    ),
    "flux_kontext": (
        "fk",
        {
            "latents_1x8x6_bfloat16": normal(16, 8, 6, dtype=BF16),
            "latents_control_1x4x4_bfloat16": normal(16, 4, 4, dtype=BF16),
        },
        "flux",
        (16, 8, 6),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", MUSUBI)
def test_musubi_tuner(architecture: str, tmp_path: Path) -> None:
    short, tensors, model, shape = MUSUBI[architecture]
    more = {"frame_count": "17"} if architecture == "wan" else {}
    path = musubi(tmp_path, architecture.split(",")[0], short, tensors, **more)
    files = converted(path)
    assert len(files) == sum(name.startswith("latents") for name in tensors)
    found = [open_latents(file) for file in files]
    assert {one.model for one in found} == {model}
    assert shape in [one.latents.shape for one in found]
    assert_same_tensors(path, back(path))


@pytest.mark.parametrize("architecture", ["wan", "hunyuan_video_1_5"])
def test_masks_of_musubi_are_exact_at_any_step(architecture: str, tmp_path: Path) -> None:
    """They are no latents: 1 stays 1."""
    short, tensors, *_ = MUSUBI[architecture]
    path = musubi(tmp_path, architecture, short, tensors)
    folder = tmp_path / "sdz"
    assert main(["encode", str(path), "-o", f"{folder}/", "--step", "0.3"]) == 0
    found = load_file(back(path))
    for name, tensor in tensors.items():
        if name.startswith("latents_image"):
            mask = slice(4) if architecture == "wan" else slice(32, None)
            assert torch.equal(found[name][mask], tensor[mask])
            assert not torch.equal(found[name], tensor)
            np.testing.assert_allclose(found[name].float(), tensor.float(), atol=0.17)


@pytest.mark.parametrize("format", ["npz", "latent"])
def test_masks_and_indices_have_no_place_in_another_format(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for architecture in ("wan", "framepack"):
        short, tensors, *_ = MUSUBI[architecture]
        converted(musubi(tmp_path, architecture, short, tensors))
    capsys.readouterr()
    folder = tmp_path / "sdz"
    assert main(["latents", f"{folder}", "-o", f"{tmp_path}/o/", "--format", format]) == 0
    told = capsys.readouterr().err
    mask = next(name for name in MUSUBI["wan"][1] if name.startswith("latents_image"))
    assert f"has no place for the mask in {mask}" in told
    assert "clean_latent_2x_indices_int64" in told


def test_ideogram4_needs_a_factor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has FLUX.2's autoencoder, but neither its scaling nor its order of channels."""
    tensors = {"latents_1x4x3_bfloat16": normal(128, 4, 3, dtype=BF16)}
    path = musubi(tmp_path, "ideogram4", "i4", tensors)
    assert main(["encode", str(path)]) == 1
    assert "of 'ideogram4', which is not known here: give the model" in capsys.readouterr().err
    (file,) = converted(path, "--factor", "16")
    assert (open_latents(file).model, open_latents(file).size) == ("ideogram4", (48, 64))
    assert_same_tensors(path, back(path))


def test_a_refused_cache_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither of the parts is written if one of them is refused."""
    tensors = {
        "latents_5x4x3_bfloat16": normal(16, 5, 4, 3, dtype=BF16),
        "latents_image_5x4x3_bfloat16": normal(24, 5, 4, 3, dtype=BF16),
    }
    path = musubi(tmp_path, "wan", "wan", tensors)
    assert main(["encode", str(path), "-o", f"{tmp_path}/sdz/"]) == 1
    assert "model wan21 has latents of 16 channels, not 24" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.sdz"))


def test_a_part_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The trainer cannot use such a cache, so it is not written."""
    path = musubi(tmp_path, "flux_kontext", "fk", MUSUBI["flux_kontext"][1])
    converted(path)[1].unlink()
    command = ["latents", f"{tmp_path}/sdz", "-o", f"{tmp_path}/back", "--format", "safetensors"]
    assert main(command) == 1
    assert "only 1 of this cache's 2 parts are there" in capsys.readouterr().err
    assert not list((tmp_path / "back").rglob("*.safetensors"))


def test_which_of_musubis_are_scaled(tmp_path: Path) -> None:
    """Latents of Z-Image and FLUX.1 Kontext are of one family, but only Kontext's are scaled."""
    values = {}
    for architecture in ("z_image", "flux_kontext"):
        (tmp_path / architecture).mkdir()
        tensors = {"latents_1x8x6_float32": normal(16, 8, 6)}
        path = musubi(tmp_path / architecture, architecture, "x", tensors)
        values[architecture] = open_latents(*converted(path)).latents
    own = normal(16, 8, 6).numpy()
    np.testing.assert_array_equal(values["flux_kontext"], own)
    np.testing.assert_allclose(values["z_image"], (own - 0.1159) * 0.3611, atol=1e-5)


def test_musubis_text_and_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    musubi(tmp_path, "z_image", "zi", {"latents_1x8x6_float32": normal(16, 8, 6)})
    save_file({"varlen_float32": normal(7, 5)}, tmp_path / "photo_zi_te.safetensors")
    assert main(["encode", str(tmp_path), "-o", str(tmp_path / "sdz")]) == 0
    assert [p.name for p in (tmp_path / "sdz").rglob("*.sdz")] == ["photo_0048x0064_zi.sdz"]
    path = musubi(tmp_path, "hidream_o1_image", "ho1", {"latents_1x2x2_float32": normal(2, 2, 9)})
    assert main(["encode", str(path)]) == 1
    assert "'hidream_o1_image' has no latents, but patches of pixels" in capsys.readouterr().err


# ai-toolkit


def ai_toolkit(folder: Path, version: str, tensors: dict[str, Tensor]) -> Path:
    """A cache as _cache_one_latent writes it, with the metadata of get_meta_for_safetensors."""
    info = OrderedDict[str, Any](
        filename="photo é.jpg",
        scale_to_width=48,
        scale_to_height=64,
        crop_x=0,
        crop_y=3,
        crop_width=48,
        crop_height=64,
        latent_space_version=version,
        latent_version=1,
        flip_x=True,
        software={"name": "ai-toolkit", "version": "0.7"},
    )
    metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in info.items()}
    (folder / "_latent_cache").mkdir()
    path = folder / "_latent_cache" / "photo_yRkO3n-aT5a_0hQe0c1mYg.safetensors"
    save_file(tensors, path, metadata=metadata | {"format": "pt"})
    return path


@pytest.mark.parametrize(
    ("version", "shape", "model"),
    [
        ("sd1", (4, 8, 6), "sd1"),
        ("sdxl", (4, 8, 6), "sdxl"),
        ("flux1", (16, 8, 6), "flux"),
        ("flux2", (128, 4, 3), "flux2-patches"),
        ("qwen_image", (16, 1, 8, 6), "qwen-image"),
        ("zimage", (16, 8, 6), "flux"),
        ("wan21", (16, 3, 8, 6), "wan21"),
        ("sd2", (4, 8, 6), "sd1"),
        ("vega", (4, 8, 6), "sdxl"),
        ("omnigen2", (16, 8, 6), "flux"),
        ("boogu_image_edit", (16, 8, 6), "flux"),
        ("ernie_image", (128, 4, 3), "flux2-patches"),
        ("nucleus_image", (16, 8, 6), "qwen-image"),
    ],
)
def test_ai_toolkit(version: str, shape: tuple[int, ...], model: str, tmp_path: Path) -> None:
    tensors = {"latent": normal(*shape, dtype=BF16)}
    if len(shape) == 4:
        tensors["num_frames"] = torch.tensor(9, dtype=torch.int32)
        tensors["first_frame_latent"] = normal(16, 1, 8, 6, dtype=BF16, seed=1)
    path = ai_toolkit(tmp_path, version, tensors)
    assert {open_latents(file).model for file in converted(path)} == {model}
    assert_same_tensors(path, back(path))


def test_ai_toolkits_text_is_left_out(tmp_path: Path) -> None:
    ai_toolkit(tmp_path, "flux1", {"latent": normal(16, 8, 6)})
    (tmp_path / "_t_e_cache").mkdir()
    save_file({"text_embeds": normal(7, 5)}, tmp_path / "_t_e_cache" / "photo_x.safetensors")
    assert main(["encode", str(tmp_path), "-o", str(tmp_path / "sdz")]) == 0
    assert len(list((tmp_path / "sdz").rglob("*.sdz"))) == 1


# What a file says of its family


@pytest.mark.parametrize(
    ("version", "channels"),
    [
        ("tomorrow_v2", 16),
        # These have the shape of a known family, but other statistics, or another autoencoder.
        ("ideogram4", 128),
        ("mageflow", 128),
        ("ltx2_v2", 128),
        ("cogview4", 16),
    ],
)
def test_a_family_that_nobody_knows(
    version: str, channels: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ai_toolkit(tmp_path, version, {"latent": normal(channels, 8, 6)})
    assert main(["encode", str(path)]) == 1
    assert f"its latents are of '{version}', which is not known" in capsys.readouterr().err
    (file,) = converted(path, "--factor", "14")
    assert (open_latents(file).model, open_latents(file).factor) == (version, 14)
    assert_same_tensors(path, back(path))


@pytest.mark.parametrize("shape", [(1, 24, 8, 6), (24, 8, 6)])
@pytest.mark.parametrize("suffix", [".safetensors", ".latent"])
def test_latents_of_an_unknown_family(shape: tuple[int, ...], suffix: str, tmp_path: Path) -> None:
    """What nobody knows how to scale is kept as it is."""
    path = tmp_path / f"a{suffix}"
    if suffix == ".latent":
        tensors = {"latent_tensor": normal(1, 24, 8, 6)}
        tensors["latent_format_version_0"] = torch.tensor([])
    else:
        tensors = {"mine": normal(*shape)}
    save_file(tensors, path)
    (file,) = converted(path, "--model", "new", "--factor", "8", "--size", "45x64")
    found = open_latents(file)
    assert (found.model, found.size) == ("new", (45, 64))
    assert_same_tensors(path, back(path))


@pytest.mark.parametrize("model", ["flux", "qwen-image"])
def test_packed_sequences_in_files(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"latents": normal(2, 12, 64, dtype=BF16)}, path)
    assert main(["encode", str(path), "--model", model]) == 1
    assert "is a packed sequence" in capsys.readouterr().err
    (file,) = converted(path, "--model", model, "--size", "48x64")
    assert open_latents(file).latents.shape == (2, 16, 8, 6)
    assert_same_tensors(path, back(path))


def test_files_that_do_not_say_their_family(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message has the families that may have made them."""
    for channels, names in ((32, "flux2, hunyuan-video-1.5, sana, taef2"), (48, "wan22")):
        path = tmp_path / f"{channels}.npy"
        np.save(path, np.zeros((channels, 4, 3), np.float32))
        assert main(["encode", str(path)]) == 1
        assert f"give --model, such as {names}; " in capsys.readouterr().err
    np.save(tmp_path / "24.npy", np.zeros((24, 4, 3), np.float32))
    assert main(["encode", str(tmp_path / "24.npy")]) == 1
    message = capsys.readouterr().err
    assert "no family that is known here has such latents: give --model with a name of" in message
    assert "and --factor" in message


@pytest.mark.parametrize("model", ["sd3", "wan21", "tomorrow"])
def test_a_contradiction(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = ai_toolkit(tmp_path, "flux1", {"latent": normal(16, 8, 6)})
    assert main(["encode", str(path), "--model", model]) == 1
    assert f"says that its latents are of flux, not of {model}" in capsys.readouterr().err
    assert main(["encode", str(path), "--model", "taef1"]) == 0  # of the same family


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16])
def test_what_a_step_changes(dtype: torch.dtype, tmp_path: Path) -> None:
    """Half a step at most, and the rounding of the type: half the distance to the next value."""
    tensor = (20 * normal(16, 24, 20)).to(dtype)
    path = ai_toolkit(tmp_path, "flux1", {"latent": tensor})
    assert main(["encode", str(path), "-o", f"{path.parent}/sdz/", "--step", "0.1"]) == 0
    found = load_file(back(path))["latent"]
    assert found.dtype == dtype
    error = (found.double() - tensor.double()).abs()
    distance = torch.finfo(dtype).eps * 2 ** torch.floor(torch.log2(found.double().abs()))
    assert (error <= 0.05 + distance / 2).all()
    # The values of bfloat16 are up to 0.5 apart here, and those of float16 up to 0.06.
    assert (error > 0.05).any() == (dtype != torch.float32)


# OneTrainer


def one_trainer(folder: Path, latent: Tensor, **more: Any) -> Path:
    """A cache as mgds' DiskCache writes split items."""
    folder = folder / "image" / "3f2a" / "variation-0"
    folder.mkdir(parents=True)
    item = {
        "latent_image": latent,
        "original_resolution": (1033, 812),
        "crop_offset": (0, 12),
        **more,
    }
    torch.save(item, folder / "0.pt")
    aggregate = [{"crop_resolution": (64, 48), "image_path": "/photos/a.jpg"}]
    torch.save(aggregate, folder / "aggregate.pt")
    return folder / "0.pt"


@pytest.mark.parametrize(
    ("shape", "model"),
    [
        ((4, 8, 6), "sdxl"),
        ((16, 8, 6), "flux"),
        ((32, 8, 6), "flux2"),
        ((16, 1, 8, 6), "qwen-image"),
    ],
)
def test_one_trainer(shape: tuple[int, ...], model: str, tmp_path: Path) -> None:
    latent = normal(*shape, dtype=BF16)
    mask = (normal(1, 8, 6) > 0).float()
    path = one_trainer(tmp_path, latent, latent_mask=mask)
    converted(path, "--model", model)
    again = torch.load(back(path), weights_only=True)
    expected = torch.load(path, weights_only=True)
    assert again.keys() == expected.keys()
    assert again["original_resolution"] == (1033, 812)
    assert again["crop_offset"] == (0, 12)
    for name in ("latent_image", "latent_mask"):
        assert again[name].dtype == expected[name].dtype
        assert torch.equal(again[name], expected[name])


def test_one_trainers_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_trainer(tmp_path, normal(4, 8, 6))
    text = tmp_path / "text" / "3f2a" / "variation-0"
    text.mkdir(parents=True)
    torch.save({"tokens": torch.arange(77)}, text / "0.pt")
    assert main(["encode", str(tmp_path), "-o", str(tmp_path / "sdz")]) == 0
    assert "assumed to be of sd1" in capsys.readouterr().err
    assert len(list((tmp_path / "sdz").rglob("*.sdz"))) == 1


@pytest.mark.parametrize(
    ("path", "of_text"),
    [
        ("cache/text/3f2a/variation-0/0.pt", True),
        ("text/variation-12/9c.pt", True),
        ("cache/image/3f2a/variation-0/aggregate.pt", True),
        ("text/image/3f2a/variation-0/0.pt", False),
        ("text/cache/image/3f2a/variation-0/0.pt", False),
        ("text/0.pt", False),
        ("text/latents/0.pt", False),
        ("context/3f2a/variation-0/0.pt", False),
        ("aggregate.pt", False),
        ("photo_sdxl_te.npz", True),
        ("photo_te_outputs.npz", True),
        ("photo_z_image_te.safetensors", True),
        ("photo_te.npy", False),
        ("_t_e_cache/photo.safetensors", True),
        ("_t_e_cache/_latent_cache/photo.safetensors", False),
    ],
)
def test_which_files_are_of_text_encoders(path: str, of_text: bool) -> None:
    assert interchange.is_of_text(path) == of_text
    assert interchange.is_of_text(f"/data/{path}") == of_text


def test_pickles_run_nothing(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "0.pt"
    torch.save({"latent_image": normal(4, 8, 6), "x": Hostile()}, path)
    with pytest.raises(OSError, match=r"alone: it is damaged, or has values of other classes$"):
        interchange.read(path)
    path.write_bytes(b"\x80\x04nonsense")
    with pytest.raises(OSError, match="no file of tensors alone"):
        interchange.read(path)
    assert not (tmp_path / "ran").exists()


def test_a_bomb_is_counted_in_all_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these tensors alone is below the limit."""
    monkeypatch.setattr(torch_files, "MAX_INFLATED", 1 << 20)
    stored, packed = tmp_path / "stored.pt", tmp_path / "packed.pt"
    torch.save([torch.zeros(600_000, dtype=torch.uint8) for _ in range(2)], stored)
    with (
        zipfile.ZipFile(stored) as archive,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as z,
    ):
        for name in archive.namelist():
            z.writestr(name, archive.read(name))
    with pytest.raises(OSError, match=r"its tensors would take 12\d+ bytes, the limit is 1048576"):
        torch_files.load(packed)
    assert len(torch_files.load(stored)) == 2  # as large, but nothing that inflates


# sd-scripts: Anima's autoencoder leaves an axis of time


def test_anima(tmp_path: Path) -> None:
    path = tmp_path / "photo_0048x0064_anima.npz"
    arrays = {
        "latents_8x6": normal(16, 1, 8, 6).numpy(),
        "original_size_8x6": np.array([812, 1033]),
        "crop_ltrb_8x6": np.array([0, 12, 48, 76]),
        "latents_flipped_8x6": normal(16, 1, 8, 6, seed=1).numpy(),
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]
    (file,) = converted(path)
    assert open_latents(file).model == "qwen-image"
    with np.load(back(path)) as again:
        assert again.files == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(again[name], array)


@pytest.mark.parametrize(
    ("ending", "channels", "model"),
    [
        ("sd", 4, "sd1"),
        ("sdxl", 4, "sdxl"),
        ("sd3", 16, "sd3"),
        ("flux", 16, "flux"),
        ("lumina", 16, "flux"),
        ("hi", 64, "hunyuan-image"),
    ],
)
def test_all_endings_of_sd_scripts(ending: str, channels: int, model: str, tmp_path: Path) -> None:
    path = tmp_path / f"photo_0048x0064_{ending}.npz"
    key = "" if ending in ("sd", "sdxl") else "_4x3"
    arrays = {
        "latents" + key: normal(channels, 4, 3).numpy(),
        "original_size" + key: np.array([48, 64]),
        "crop_ltrb" + key: np.array([0, 0, 48, 64]),
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]
    np.savez(tmp_path / f"photo_{ending}_te.npz", hidden=np.zeros((77, 9)))
    assert main(["encode", str(tmp_path), "-o", str(tmp_path / "sdz"), "--lossless"]) == 0
    (file,) = (tmp_path / "sdz").rglob("*.sdz")
    assert open_latents(file).model == model
    with np.load(back(path)) as again:
        for name, array in arrays.items():
            np.testing.assert_array_equal(again[name], array)


@pytest.mark.parametrize("ending", ["sd", "sdxl", "sd3", "flux", "lumina", "anima", "hi"])
@pytest.mark.parametrize("suffix", [".latent", ".npy", ".safetensors", ".pt"])
def test_flipped_latents_of_sd_scripts_in_other_formats(
    ending: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are a batch of two: the picture's latents, and those of the mirrored picture."""
    channels = {"sd": 4, "sdxl": 4, "hi": 64}.get(ending, 16)
    shape = (channels, 1, 4, 3) if ending == "anima" else (channels, 4, 3)
    pixels = 32 if ending == "hi" else 8
    one, other = normal(*shape).numpy(), normal(*shape, seed=1).numpy()
    path = tmp_path / f"photo_{ending}.npz"
    np.savez(
        path,
        latents_4x3=one,
        original_size_4x3=np.array([48, 64]),
        crop_ltrb_4x3=np.array([0, 0, 48, 64]),
        latents_flipped_4x3=other,
        alpha_mask_4x3=np.ones((4 * pixels, 3 * pixels), np.float32),
    )
    converted(path)
    folder = tmp_path / "other"
    options = ["-o", str(folder), "--format", suffix[1:]]
    assert main(["latents", str(tmp_path / "sdz"), *options]) == 0
    assert "has no place for original_size, crop_ltrb, alpha_mask" in capsys.readouterr().err
    (found,) = folder.rglob("*" + suffix)
    (part,) = interchange.read(found)
    assert part.latents.shape == (2, *shape)
    # ComfyUI's are what the VAE encodes, and plain files have what pipelines return.
    (file,) = (tmp_path / "sdz").rglob("*.sdz")
    expected = open_latents(file)
    values = expected.unscaled() if suffix == ".latent" else expected.latents
    np.testing.assert_array_equal(part.latents, values.reshape(2, *shape))


@pytest.mark.parametrize(
    ("model", "shape", "options"),
    [
        ("flux", (2, 12, 64), ["--size", "48x64"]),
        ("cogvideox", (2, 3, 16, 8, 6), []),
        ("cogvideox", (2, 16, 3, 8, 6), []),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".latent"])
def test_order_in_other_formats(
    model: str, shape: tuple[int, ...], options: list[str], suffix: str, tmp_path: Path
) -> None:
    """Packed sequences and clips. They keep their order only in a file of their own layout."""
    path = tmp_path / "a.npy"
    array = normal(*shape).numpy()
    np.save(path, array)
    (file,) = converted(path, "--model", model, *options)
    command = ["latents", str(file), "-o", f"{tmp_path}/o/", "--format", suffix[1:]]
    assert main(command) == 0
    (found,) = (tmp_path / "o").rglob("*" + suffix)
    (part,) = interchange.read(found)
    if suffix == ".npy":
        np.testing.assert_array_equal(part.latents, array)
    else:
        np.testing.assert_array_equal(part.latents, open_latents(file).unscaled())


# ComfyUI


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("sd1", (3, 4, 8, 6)),
        ("flux2", (1, 128, 4, 3)),
        ("qwen-image", (2, 16, 1, 8, 6)),
        ("wan21", (1, 16, 5, 8, 6)),
    ],
)
def test_comfyui(model: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """A file as SaveLatent writes it, and one with the noise mask that nodes add."""
    path = tmp_path / "ComfyUI_00001_.latent"
    tensors = {
        "latent_tensor": normal(*shape),
        "latent_format_version_0": torch.tensor([]),
        "noise_mask": torch.ones(1, 1, 64, 48),
    }
    workflow = {"prompt": json.dumps({"3": {"class_type": "KSampler"}}), "workflow": "{}"}
    save_file(tensors, path, metadata=workflow)
    (file,) = converted(path, "--model", model)
    found = open_latents(file)
    assert found.model == ("flux2-patches" if model == "flux2" else model)
    if model in ("flux2",):  # whose latents ComfyUI keeps as pipelines have them
        np.testing.assert_array_equal(found.latents, tensors["latent_tensor"][0])
    assert_same_tensors(path, back(path))


@pytest.mark.parametrize(
    ("version", "shape", "wanted"),
    [
        ("flux1", (16, 8, 6), (1, 16, 8, 6)),
        ("ernie_image", (128, 4, 3), (1, 128, 4, 3)),
        ("wan21", (16, 5, 8, 6), (1, 16, 5, 8, 6)),
        ("wan22_5b", (48, 5, 4, 3), (1, 48, 5, 4, 3)),
        ("qwen_image", (16, 1, 8, 6), (1, 16, 1, 8, 6)),
    ],
)
def test_latents_of_trainers_are_a_batch_for_comfyui(
    version: str, shape: tuple[int, ...], wanted: tuple[int, ...], tmp_path: Path
) -> None:
    """ComfyUI takes the first axis for that of the batch, whatever it is."""
    (file,) = converted(ai_toolkit(tmp_path, version, {"latent": normal(*shape)}))
    opened = open_latents(file)
    # ComfyUI has FLUX.2's patches as pipelines have them, and others as the VAE encodes them.
    values = opened.latents if version == "ernie_image" else opened.unscaled()
    for part in (interchange.read(_as_latent(file))[0], latents.exported(file, ".latent")):
        found = interchange.arrays_of(part, "comfyui")["latent_tensor"]
        assert found.shape == wanted
        np.testing.assert_array_equal(found, values.reshape(wanted))


def _as_latent(file: Path) -> Path:
    assert main(["latents", str(file), "-o", str(file.with_suffix(".latent"))]) == 0
    return file.with_suffix(".latent")


@pytest.mark.parametrize(
    ("model", "shape", "wanted"),
    [
        ("sd1", (4, 8, 6), (1, 4, 8, 6)),
        ("flux", (2, 16, 8, 6), (2, 16, 8, 6)),
        ("wan21", (1, 16, 5, 8, 6), (1, 16, 5, 8, 6)),
        ("wan21", (2, 16, 5, 8, 6), (2, 16, 5, 8, 6)),
        ("wan21", (16, 8, 6), (1, 16, 1, 8, 6)),
        ("ltx", (1, 128, 4, 4, 3), (1, 128, 4, 4, 3)),
        ("cogvideox", (1, 3, 16, 8, 6), (1, 16, 3, 8, 6)),
    ],
)
def test_saved_latents_are_a_batch_for_comfyui(
    model: str, shape: tuple[int, ...], wanted: tuple[int, ...], tmp_path: Path
) -> None:
    file = tmp_path / "a.sdz"
    save_latents(normal(*shape), file, model=model, lossless=True)
    (part,) = interchange.read(_as_latent(file))
    assert part.latents.shape == wanted


def test_other_arrays_of_trainers_are_not_in_comfyuis_files(tmp_path: Path) -> None:
    short, tensors, *_ = MUSUBI["framepack"]
    files = converted(musubi(tmp_path, "framepack", short, tensors))
    for file in files:
        with safe_open(_as_latent(file), "pt") as found:
            assert set(found.keys()) == {"latent_tensor", "latent_format_version_0"}


@pytest.mark.parametrize("rows", [1, 8])
def test_comfyuis_latents_of_three_axes(rows: int, tmp_path: Path) -> None:
    """Latents of sounds have no axis of rows.  They come back with the axes that they had."""
    path = tmp_path / "ComfyUI_00001_.latent"
    tensors = {
        "latent_tensor": normal(rows, 12, 50),
        "latent_format_version_0": torch.tensor([]),
    }
    save_file(tensors, path)
    converted(path, "--model", "sounds", "--factor", "8")
    assert_same_tensors(path, back(path))


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_a_tensor_alone_in_a_pt_file(dtype: torch.dtype, tmp_path: Path) -> None:
    """It comes back alone.  Other formats need a name for it."""
    path = tmp_path / "a.pt"
    tensor = normal(2, 4, 8, 6, dtype=dtype)
    torch.save(torch.nn.Parameter(tensor), path)
    (file,) = converted(path, "--model", "sd1")
    again = torch.load(back(path), weights_only=True)
    assert again.dtype == dtype
    assert torch.equal(again, tensor)
    assert main(["latents", str(file), "-o", str(tmp_path / "a.npz")]) == 0
    with np.load(tmp_path / "a.npz") as arrays:
        np.testing.assert_array_equal(arrays["latents"], tensor.float())


@pytest.mark.parametrize("suffix", [".NPY", ".PT", ".Safetensors"])
def test_suffixes_in_large_letters(suffix: str, tmp_path: Path) -> None:
    path, tensor = tmp_path / f"a{suffix}", normal(4, 8, 6)
    if suffix == ".NPY":
        with path.open("wb") as file:
            np.save(file, tensor.numpy())
    elif suffix == ".PT":
        torch.save(tensor, path)
    else:
        save_file({"latents": tensor}, path)
    (file,) = converted(path)
    assert torch.equal(open_latents(file).torch(), tensor)


@pytest.mark.parametrize("shape", [(16, 1, 8, 6), (1, 16, 8, 6), (2, 16, 1, 8, 6), (16, 3, 8, 6)])
def test_clips_of_your_own(shape: tuple[int, ...], tmp_path: Path) -> None:
    """The axes come back, also if a clip has only one frame."""
    path = tmp_path / "a.safetensors"
    save_file({"latents": normal(*shape)}, path)
    converted(path, "--model", "wan21")
    assert_same_tensors(path, back(path))


@pytest.mark.parametrize("value", [[torch.zeros(4, 8, 6)], {"": torch.zeros(4, 8, 6)}, {3: 4}, 5])
def test_other_values_in_a_pt_file(value: Any, tmp_path: Path) -> None:
    """The message says how to write the file."""
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"write it with torch\.save\(\{'latents': tensor\}"):
        interchange.read(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "value", [torch.zeros(4, 8, 6).to_sparse(), torch.zeros(4, 8, 6, device="meta")]
)
def test_tensors_that_numpy_lacks(value: Tensor, tmp_path: Path) -> None:
    torch.save({"latents": value}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="a tensor cannot be read: "):
        interchange.read(tmp_path / "a.pt")


def test_metadata_of_other_tools_in_a_pt_file(tmp_path: Path) -> None:
    """Texts that are no literals of Python, such as ComfyUI's JSON, stay texts."""
    path = tmp_path / "ComfyUI_00001_.latent"
    workflow = {"prompt": '{"3": {"a": true}}', "workflow": "{}", "note": "a cat"}
    save_file({"latent_tensor": normal(1, 4, 8, 6)}, path, metadata=workflow)
    (file,) = converted(path, "--model", "sd1")
    assert main(["latents", str(file), "-o", str(tmp_path / "a.pt")]) == 0
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    assert (found["prompt"], found["note"]) == (workflow["prompt"], "a cat")
    np.testing.assert_array_equal(found["latents"], open_latents(file).latents)


def test_a_cache_is_not_put_together_for_another_format(tmp_path: Path) -> None:
    path = musubi(tmp_path, "flux_kontext", "fk", MUSUBI["flux_kontext"][1])
    files = converted(path)
    assert len(latents.together(files, ".safetensors")) == 1
    assert len(latents.together(files, ".npz")) == 2


MASK = interchange.kept(np.ones((4, 1, 1), np.float32))
LIES: list[dict[str, Any]] = [
    {"channels": [4, 20]},
    {"channels": [4, 20], "shape": [20, 2, 8, 6]},
    {"channels": [4, 5], "shape": [20, 8, 6], "others": {"latents": MASK}},
    {"channels": [-1, 15], "shape": [20, 8, 6], "others": {"latents": MASK}},
    {"channels": [9, 25], "shape": [20, 8, 6], "others": {"latents": MASK}},
    {"channels": [4, 20], "shape": [99, 8, 6], "others": {"latents": MASK}},
]


@pytest.mark.parametrize("lie", LIES)
def test_masks_that_lie(
    lie: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anyone may have made the file that says where its masks are."""
    origin = {"layout": "musubi", "format": ".safetensors", **lie}
    origin["metadata"] = {"architecture": "wan"}
    latents_of_wan = normal(16, 8, 6).numpy()
    save_latents(latents_of_wan, tmp_path / "a.sdz", model="wan21", provenance=origin)
    assert main(["latents", str(tmp_path / "a.sdz"), "--format", "safetensors"]) == 1
    assert capsys.readouterr().err.startswith("sdz: ")
    assert not (tmp_path / "a.safetensors").exists()
