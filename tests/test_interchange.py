"""ComfyUI's, sd-scripts' and plain latent files: read as those tools write them, written likewise.

The files are made here by the calls that the tools themselves make: `np.savez` for sd-scripts'
caches, `safetensors.torch.save_file` with an empty marker tensor for ComfyUI's SaveLatent.
"""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from pillow_sdz import interchange, open_latents
from pillow_sdz.cli.files import LATENT_SUFFIXES
from pillow_sdz.interchange import LatentFile, Origin, numpy_files
from pillow_sdz.interchange.contracts import Contents, Layout, Stored
from pillow_sdz.latents import exported, imported

Array = NDArray[Any]


def latents(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 5, shape).astype(np.float32)


def kohya(resolution: str = "", h: int = 8, w: int = 6, *, seed: int = 0) -> dict[str, Array]:
    """The arrays that sd-scripts' save_latents_to_disk gives to np.savez, all optional ones too."""
    alpha = np.random.default_rng(seed).integers(0, 256, (8 * h, 8 * w))
    return {
        "latents" + resolution: latents(4, h, w, seed=seed),
        "original_size" + resolution: np.array((812, 1033)),
        "crop_ltrb" + resolution: np.array((0, 12, 48, 76)),
        "latents_flipped" + resolution: latents(4, h, w, seed=seed + 1),
        "alpha_mask" + resolution: alpha.astype(np.float32) / 255.0,
    }


def comfyui(path: Path, samples: torch.Tensor, *, marked: bool = True) -> dict[str, str]:
    """A file as SaveLatent writes it, and its metadata."""
    output = {"latent_tensor": samples}
    if marked:
        output["latent_format_version_0"] = torch.tensor([])
    metadata = {"prompt": json.dumps({"3": {"class_type": "KSampler"}}), "workflow": '{"v": "ä"}'}
    save_file(output, path, metadata=metadata)
    return metadata


def rewritten(path: Path, *, format: str | None = None) -> Path:
    """The file, read and written again."""
    parts = interchange.read(path)
    target = path.with_name("again" + (format or path.suffix))
    with target.open("wb") as file:
        interchange.write(file, target.suffix, parts)
    return target


def assert_same_npz(a: Path, b: Path) -> None:
    with np.load(a) as first, np.load(b) as second:
        assert second.files == first.files
        for key in first.files:
            assert second[key].dtype == first[key].dtype, key
            np.testing.assert_array_equal(second[key], first[key], key)


# kohya's sd-scripts


@pytest.mark.parametrize(
    "left_out", [(), ("alpha_mask",), ("latents_flipped",), ("latents_flipped", "alpha_mask")]
)
def test_kohya_key_by_key(tmp_path: Path, left_out: tuple[str, ...]) -> None:
    path = tmp_path / "photo_0048x0064_sd.npz"
    np.savez(path, **{k: v for k, v in kohya().items() if k not in left_out})  # type: ignore[arg-type]
    (part,) = interchange.read(path)
    assert part.origin.original_size == (812, 1033)
    assert part.origin.crop_ltrb == (0, 12, 48, 76)
    assert part.latents.shape == ((4, 8, 6) if "latents_flipped" in left_out else (2, 4, 8, 6))
    again = rewritten(path)
    assert_same_npz(path, again)
    with zipfile.ZipFile(again) as archive:  # np.savez does not compress either
        assert {m.compress_type for m in archive.infolist()} == {zipfile.ZIP_STORED}


class Malice:
    """What a pickle runs when it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_pickled_arrays_are_not_unpickled(tmp_path: Path, suffix: str) -> None:
    array = np.array([Malice(tmp_path / "touched")], object)
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    else:
        np.savez(path, latents=array)
    with pytest.raises((OSError, ValueError)):
        interchange.read(path)
    assert not (tmp_path / "touched").exists()


def test_kohya_with_several_resolutions(tmp_path: Path) -> None:
    path = tmp_path / "photo_1024x1024_flux.npz"
    arrays = kohya("_8x6") | kohya("_12x4", 12, 4, seed=5) | {"latents": latents(4, 2, 2)}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="not kept: 'latents'$"):
        parts = interchange.read(path)
    assert [part.origin.resolution for part in parts] == ["_8x6", "_12x4"]
    del arrays["latents"]  # which without an original_size is none of sd-scripts'
    np.savez(path, **arrays)  # type: ignore[arg-type]
    assert_same_npz(path, rewritten(path))


def test_someone_elses_npz_is_plain(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, latents=latents(3, 4, 8, 6), labels=np.arange(3))
    with pytest.warns(UserWarning, match="not kept: 'labels'$"):
        (part,) = interchange.read(path)
    assert part.origin == Origin("plain", ".npz", batched=True)
    assert part.latents.shape == (3, 4, 8, 6)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"latents": latents(1, 4, 8, 6)}, "not \\(C, h, w\\)"),
        ({"latents": np.zeros((4, 8, 6), np.int64)}, "array of int64"),
        ({"latents": np.zeros((4, 0, 6), np.float32)}, "of the shape"),
        ({"latents_flipped": latents(4, 8, 5)}, "does not match"),
        ({"original_size": np.array([1.5, 2])}, "is not 2 integers"),
        ({"crop_ltrb": np.array([1, 2])}, "is not 4 integers"),
        ({"crop_ltrb": np.array([[1, 2], [3, 4]])}, "is not 4 integers"),
        ({"original_size": np.array([1 << 31, 2])}, "is not 2 integers below 2\\^31"),
        ({"original_size": np.array([True, False])}, "is not 2 integers"),
        ({"original_size": np.array(["8", "6"])}, "original_size is an array of str"),
        ({"alpha_mask": np.zeros((64, 48), complex)}, "alpha_mask is an array of complex128"),
    ],
)
def test_kohya_of_other_shapes(tmp_path: Path, change: dict[str, Array], complaint: str) -> None:
    path = tmp_path / "x.npz"
    arrays = {k: v for k, v in kohya().items() if k != "latents_flipped"} | change
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=complaint):
        interchange.read(path)


# ComfyUI


@pytest.mark.parametrize("shape", [(1, 4, 8, 6), (3, 16, 8, 6)])
def test_comfyui_key_by_key(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "ComfyUI_00001_.latent"
    samples = torch.from_numpy(latents(*shape))
    metadata = comfyui(path, samples)
    (part,) = interchange.read(path)
    np.testing.assert_array_equal(part.latents, samples.numpy())
    again = rewritten(path)
    tensors = load_file(again)
    assert set(tensors) == {"latent_tensor", "latent_format_version_0"}
    assert torch.equal(tensors["latent_tensor"], samples)
    assert (tensors["latent_format_version_0"].dtype, tensors["latent_format_version_0"].shape) == (
        torch.float32,
        (0,),
    )
    assert interchange.read(again)[0].origin.metadata == metadata


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_comfyui_without_the_marker(tmp_path: Path, dtype: torch.dtype) -> None:
    """ComfyUI's LoadLatent multiplies such values by 1 / 0.18215.

    So they are the latents of Stable Diffusion 1, scaled, and come back bit for bit.
    """
    path = tmp_path / "old.latent"
    samples = torch.from_numpy(latents(1, 4, 8, 6)).to(dtype)
    comfyui(path, samples, marked=False)
    (part,) = interchange.read(path)
    file = io.BytesIO()
    imported(part, file, model="sd1", lossless=True)
    file.seek(0)
    found = open_latents(file)
    assert torch.equal(found.torch().float(), samples[0].float())
    expected = samples[0].double().numpy() / 0.18215
    np.testing.assert_allclose(found.unscaled(), expected, rtol=1e-6)
    file.seek(0)
    with (tmp_path / "again.latent").open("wb") as again:
        interchange.write(again, ".latent", [exported(file, ".latent")])
    tensors = load_file(tmp_path / "again.latent")
    assert set(tensors) == {"latent_tensor"}
    assert tensors["latent_tensor"].dtype == dtype
    assert torch.equal(tensors["latent_tensor"], samples)


def test_comfyui_without_the_marker_of_another_family(tmp_path: Path) -> None:
    """Its values are divided by 0.18215.  Not all float32 values survive that."""
    path = tmp_path / "old.latent"
    samples = torch.from_numpy(latents(1, 4, 8, 6))
    comfyui(path, samples, marked=False)
    (part,) = interchange.read(path)
    with pytest.raises(ValueError, match="sdxl latents of this file cannot come back exactly"):
        imported(part, io.BytesIO(), model="sdxl", lossless=True)
    file = io.BytesIO()
    imported(part, file, model="sdxl", step=0.1)
    file.seek(0)
    own = open_latents(file).unscaled()
    assert np.abs(own - samples.numpy() / 0.18215).max() <= 0.0501
    file.seek(0)
    back = exported(file, ".latent").latents
    np.testing.assert_allclose(back, own * np.float32(0.18215), rtol=1e-6)
    comfyui(path, samples.half(), marked=False)
    (part,) = interchange.read(path)
    file = io.BytesIO()
    imported(part, file, model="sdxl", lossless=True)
    file.seek(0)
    back = exported(file, ".latent").latents.astype(np.float16)
    np.testing.assert_array_equal(back, samples[0].half().numpy())


def test_comfyui_latents_in_half_precision(tmp_path: Path) -> None:
    samples = torch.from_numpy(latents(1, 4, 8, 6))
    for dtype in (torch.float16, torch.bfloat16):
        path = tmp_path / f"{dtype}.latent"
        comfyui(path, samples.to(dtype))
        (part,) = interchange.read(path)
        np.testing.assert_array_equal(part.latents, samples.to(dtype).float().numpy())
    assert load_file(rewritten(tmp_path / "torch.float16.latent"))["latent_tensor"].dtype == (
        torch.float16
    )


# plain arrays


@pytest.mark.parametrize("format", [".npz", ".npy", ".safetensors"])
@pytest.mark.parametrize("shape", [(4, 8, 6), (1, 4, 8, 6), (2, 16, 3, 5)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_plain_arrays(tmp_path: Path, format: str, shape: tuple[int, ...], dtype: type) -> None:
    path = tmp_path / ("x" + format)
    array = latents(*shape).astype(dtype)
    if format == ".npz":
        np.savez_compressed(path, z=array)
    elif format == ".npy":
        np.save(path, array)
    else:
        save_file({"z": torch.from_numpy(array)}, path)
    again = interchange.read(rewritten(path))
    (part,) = interchange.read(path)
    assert again[0].origin == part.origin
    assert again[0].latents.dtype == array.dtype
    np.testing.assert_array_equal(again[0].latents, array)
    np.testing.assert_array_equal(part.latents, array)


@pytest.mark.parametrize("key", ["file", "args", "kwds", "allow_pickle"])
def test_arrays_of_any_name(tmp_path: Path, key: str) -> None:
    """This includes the names of the parameters of `np.savez`."""
    path, array = tmp_path / "x.npz", latents(4, 8, 6)
    with zipfile.ZipFile(path, "w") as archive:
        buffer = io.BytesIO()
        np.save(buffer, array)
        archive.writestr(f"{key}.npy", buffer.getvalue())
    with np.load(rewritten(path)) as again:
        assert again.files == [key]
        np.testing.assert_array_equal(again[key], array)


def test_a_batch_of_one_stays_a_batch(tmp_path: Path) -> None:
    """This holds even if `open_latents` returns its latents without the axis of the batch."""
    origin = Origin("plain", ".npy", batched=True)
    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        interchange.write(file, ".npy", [LatentFile(latents(4, 8, 6), origin)])
    assert np.load(path).shape == (1, 4, 8, 6)


def test_numpys_second_version(tmp_path: Path) -> None:
    """It is for headers of more than 64 KiB. A shorter header in it is valid, too."""
    path, array = tmp_path / "x.npy", latents(4, 8, 6)
    with path.open("wb") as file:
        np.lib.format.write_array(file, array, version=(2, 0))
    (part,) = interchange.read(path)
    np.testing.assert_array_equal(part.latents, array)


def test_big_endian_and_fortran_order(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    array = latents(4, 8, 6)
    np.save(path, np.asfortranarray(array.astype(">f4")))
    (part,) = interchange.read(path)
    assert part.latents.dtype == np.dtype("=f4")
    np.testing.assert_array_equal(part.latents, array)


@pytest.mark.filterwarnings("ignore:.*has no place for:UserWarning")
def test_one_format_to_another(tmp_path: Path) -> None:
    """Whatever the other layout has no place for is left out (test_caches.py: and named)."""
    path = tmp_path / "x.npz"
    arrays = kohya()
    np.savez(path, **arrays)  # type: ignore[arg-type]
    both = np.stack([arrays["latents"], arrays["latents_flipped"]])
    (part,) = interchange.read(rewritten(path, format=".latent"))
    assert (part.origin.layout, part.origin.marked) == ("comfyui", True)
    np.testing.assert_array_equal(part.latents, both)
    (part,) = interchange.read(rewritten(path, format=".safetensors"))
    assert part.origin == Origin("plain", ".safetensors", batched=True)


# conventions


@pytest.mark.parametrize(
    ("layout", "model", "scaled"),
    [
        ("plain", "sd1", True),
        ("comfyui", "flux", False),
        ("kohya", "sd1", False),
        ("kohya", "sd3", False),
        ("kohya", "flux", True),
        ("kohya", "qwen-image", True),
        ("kohya", "hunyuan-image", False),
    ],
)
def test_which_values_are_scaled(layout: str, model: str, scaled: bool) -> None:
    origin = Origin(layout, ".npz")
    assert interchange.unit(layout, model, origin) == (None if scaled else 1)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("a_0512x0512_sd.npz", "sd1"),
        ("a_1024x1024_sdxl.npz", "sdxl"),
        ("a_1024x1024_sd3.npz", "sd3"),
        ("a_1024x1024_flux.npz", "flux"),
        ("a_1024x1024_lumina.npz", "flux"),
        ("a_1024x1024_anima.npz", "qwen-image"),
        ("a_1024x1024_hi.npz", "hunyuan-image"),
        ("flux.npz", None),
        ("a.npz", None),
        ("a_sdxl.latent", None),
    ],
)
def test_models_that_names_tell(name: str, model: str | None) -> None:
    assert interchange.model_named_by(Path(name)) == model


# another tool's layout: a row


def test_a_layout_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy tool keeps several latents of one picture in a file, under names of its own."""

    def read(contents: Contents) -> list[LatentFile]:
        origins = (Origin("toy", ".safetensors", key=name) for name in sorted(contents.names))
        return [LatentFile(contents.take(origin.key).array, origin) for origin in origins]

    toy = Layout(
        "toy",
        (".safetensors",),
        claims=lambda contents: contents.metadata.get("tool") == "toy",
        read=read,
        arrays=lambda parts: {p.origin.key: Stored(p.latents, "float32") for p in parts},
        unit=lambda space, origin: 2 if space == "sd1" else None,
        families={"_toy": "sdxl"},
        has_parts=True,
    )
    monkeypatch.setattr(interchange, "LAYOUTS", (toy, *interchange.LAYOUTS))
    path = tmp_path / "x_toy.safetensors"
    tensors = {name: torch.from_numpy(latents(4, 8, 6)) for name in ("mode", "deviation")}
    save_file(tensors, path, metadata={"tool": "toy"})
    parts = interchange.read(path)
    assert [(p.origin.key, p.origin.part, p.origin.parts) for p in parts] == [
        ("deviation", 0, 2),
        ("mode", 1, 2),
    ]
    assert interchange.parse_origin(parts[1].origin.json()) == parts[1].origin
    again = load_file(rewritten(path))
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert interchange.unit("toy", "sd1", parts[0].origin) == 2
    assert interchange.model_named_by(path) == "sdxl"
    # Files of others are still theirs.
    comfyui(tmp_path / "x.safetensors", torch.zeros(1, 4, 8, 6))
    assert interchange.read(tmp_path / "x.safetensors")[0].origin.layout == "comfyui"


@pytest.mark.parametrize(
    ("origin", "kinds"),
    [
        (None, ["latents"] * 2),
        (Origin("plain", ".npy", key="z"), ["latents"] * 2),
        (Origin("kohya", ".npz"), ["latents"]),
        (Origin("kohya", ".npz", flipped=True), ["latents", "flipped"]),
        (Origin("musubi", ".safetensors", key="latents_3x8x6_float32"), ["latents"]),
        (
            Origin("musubi", ".safetensors", key="latents_control_1_8x6_float32"),
            ["latents_control_1"],
        ),
        (Origin("ai-toolkit", ".safetensors", key="latent"), ["latents"]),
        (Origin("ai-toolkit", ".safetensors", key="first_frame_latent"), ["first_frame_latent"]),
        (Origin("onetrainer", ".pt", key="latent_image"), ["latents"]),
        (
            Origin("onetrainer", ".pt", key="latent_conditioning_image"),
            ["latent_conditioning_image"],
        ),
        (
            Origin("diffusion-pipe", ".db", stacked=("latents", "control_latents")),
            ["latents", "control_latents"],
        ),
    ],
)
def test_kinds_of_latents(origin: Origin | None, kinds: list[str]) -> None:
    assert interchange.kinds(origin, len(kinds)) == kinds


def test_kinds_of_another_number_of_pictures() -> None:
    origin = Origin("diffusion-pipe", ".db", stacked=("latents", "control_latents"))
    with pytest.raises(ValueError, match="3 pictures are not those of latents, control_latents"):
        interchange.kinds(origin, 3)


def test_rows_fit_together() -> None:
    """The formats of each layout are known. The last layout takes all files with one part."""
    *others, last = interchange.LAYOUTS
    assert set(last.formats) == set(filter(interchange.is_one_file, interchange.FORMATS))
    assert set(interchange.FORMATS) == LATENT_SUFFIXES
    for layout in others:
        assert set(layout.formats) <= set(interchange.FORMATS)
    for suffix, format in interchange.FORMATS.items():
        (usual,) = (one for one in interchange.LAYOUTS if one.name == format.usual_layout)
        assert suffix in usual.formats


# origins, which come back out of files that anyone may have made


def test_an_origin_survives_json() -> None:
    origin = Origin(
        "kohya", ".npz", resolution="_8x6", original_size=(3, 4), crop_ltrb=(0, 0, 1, 1)
    )
    assert interchange.parse_origin(json.loads(json.dumps(origin.json()))) == origin
    assert Origin("plain", ".npy").json() == {"layout": "plain", "format": ".npy"}


def test_what_an_origin_leaves_out() -> None:
    """docs/format.md has the same values."""
    assert vars(interchange.parse_origin({"layout": "kohya", "format": ".npz"})) == {
        "layout": "kohya",
        "format": ".npz",
        "dtype": "float32",
        "batched": False,
        "key": "latents",
        "resolution": "",
        "original_size": None,
        "crop_ltrb": None,
        "flipped": False,
        "marked": True,
        "metadata": {},
        "dtypes": {},
        "cache": "",
        "part": 0,
        "parts": 1,
        "shape": None,
        "others": {},
        "stacked": (),
        "shard": 0,
        "fingerprint": "",
        "channels": None,
    }


def test_sizes_that_are_null_are_not_there() -> None:
    """docs/format.md allows this for two fields, and for no others."""
    origin = {"layout": "kohya", "format": ".npz"}
    null = {"original_size": None, "crop_ltrb": None}
    assert interchange.parse_origin(origin | null) == interchange.parse_origin(origin)
    for name in ("key", "metadata", "cache", "part", "dtypes"):
        with pytest.raises(ValueError, match="not an origin of latents"):
            interchange.parse_origin(origin | {name: None})


@pytest.mark.parametrize(
    "change",
    [
        {"layout": "mine"},
        {"format": ".pkl"},
        {"format": []},
        {"dtype": "object"},
        {"key": "../evil"},
        {"resolution": "_8x6/.."},
        {"original_size": [1, 2, 3]},
        {"original_size": 5},
        {"crop_ltrb": [0, 0, 1, "x"]},
        {"crop_ltrb": [0, 0, 1, 1 << 80]},
        {"flipped": 1},
        {"metadata": {"prompt": 5}},
        {"metadata": []},
        {"unheard": "of"},
        {"stacked": "latents"},
        {"stacked": ["y", "y"]},
        {"stacked": ["../evil"]},
        {"shard": -1},
        {"shard": 0.5},
        {"fingerprint": "x" * 65},
        {"fingerprint": "\n"},
    ],
)
def test_origins_that_nobody_wrote(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not an origin of latents"):
        interchange.parse_origin({"layout": "kohya", "format": ".npz"} | change)


def test_a_complaint_about_an_origin_is_short() -> None:
    for field in ({"layout": "x" * 1_000_000}, {"x" * 1_000_000: 5}):
        with pytest.raises(ValueError, match="not an origin of latents") as caught:
            interchange.parse_origin({"layout": "kohya", "format": ".npz"} | field)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("field", [{"\x1b]0;title\x07": 1}, {"dtype": "\x1b[2J"}])
def test_no_terminal_acts_on_a_complaint_about_an_origin(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not an origin of latents") as caught:
        interchange.parse_origin({"layout": "kohya", "format": ".npz"} | field)
    assert str(caught.value).isprintable()


# damaged and hostile files


def npy(header: str, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def patched(archive: bytes, field: int, value: int) -> bytes:
    """An archive of one member with another u16 in both its headers, counted from the flags."""
    data = bytearray(archive)
    for start in (data.index(b"PK\3\4") + 6, data.index(b"PK\1\2") + 8):
        struct.pack_into("<H", data, start + field, value)
    return bytes(data)


def saved(save: Callable[..., None], *arrays: Any, **named: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()


FLOATS = "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 1000000, 1000000)}"
HOSTILE = {
    "empty.npz": b"",
    "empty.npy": b"",
    "empty.latent": b"",
    "text.npz": b"no archive",
    "text.npy": b"no array",
    "text.safetensors": b"no tensors" * 10,
    "lying.npy": npy(FLOATS, bytes(64)),
    "lying.npz": zipped({"latents.npy": npy(FLOATS, bytes(64))}),
    "longer.npy": npy(FLOATS.replace("4, 1000000, 1000000", "4, 1, 1"), bytes(17)),
    "negative.npy": npy(FLOATS.replace("4, 1000000, 1000000", "-4, -1, 1"), bytes(16)),
    "pickle.npy": saved(np.save, np.array([{}], dtype=object)),
    "pickle.npz": saved(np.savez, latents=np.array([{}], dtype=object)),
    "nested.npy": npy("(" * 5000),
    "no_header.npy": npy("[]"),
    "version.npy": npy("{}", version=b"\3\0"),
    "nothing.npz": zipped({}),
    "two.npz": saved(np.savez, a=np.zeros(3), b=np.zeros(3)),
    "flat.npy": saved(np.save, np.zeros(3, np.float32)),
    "video.npy": saved(np.save, np.zeros((1, 1, 16, 5, 8, 8), np.float32)),
    "integers.npy": saved(np.save, np.zeros((4, 8, 8), np.int8)),
    "text_in.npz": zipped({"latents.npy": b"hello"}),
    "method.npz": patched(zipped({"latents.npy": bytes(99)}), 2, 99),
    "encrypted.npz": patched(zipped({"latents.npy": bytes(99)}), 0, 1),
    "huge_header.latent": struct.pack("<Q", 1 << 60) + b"{}",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(HOSTILE[name])
    with pytest.raises((OSError, ValueError)) as caught:
        interchange.read(path)
    assert str(caught.value)


def test_an_error_of_the_library_is_named(tmp_path: Path) -> None:
    """The message has the kind of the error, unless its own text is about files."""
    for name, complaint in (
        ("method.npz", "damaged numpy file: NotImplementedError: "),
        ("text.npz", "damaged numpy file: File is not a zip file"),
    ):
        path = tmp_path / name
        path.write_bytes(HOSTILE[name])
        with pytest.raises(OSError, match=complaint):
            interchange.read(path)


def test_a_bomb_is_refused_by_its_declared_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numpy_files, "MAX_INFLATED", 1 << 20)
    path = tmp_path / "bomb.npz"
    array = np.zeros((4, 512, 512), np.float32)
    np.savez_compressed(path, latents=array)
    with pytest.raises(ValueError, match="the limit is 1048576"):
        interchange.read(path)
    # The limit is for all arrays together, also for those that are not read.
    half = np.zeros((4, 256, 250), np.float16)
    np.savez_compressed(path, latents=half, more=half)
    with pytest.warns(UserWarning, match="not kept: 'more'"):
        assert interchange.read(path)[0].latents.shape == half.shape
    np.savez_compressed(path, latents=half, more=half, another=half)
    with pytest.raises(ValueError, match="the limit is 1048576"):
        interchange.read(path)
    np.savez(path, latents=array)  # as large, but nothing that inflates
    assert interchange.read(path)[0].latents.shape == array.shape


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".latent"])
def test_every_truncation_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / ("x" + suffix)
    if suffix == ".latent":
        comfyui(path, torch.zeros(1, 4, 2, 2))
    elif suffix == ".npz":
        np.savez(path, **kohya(h=1, w=1))  # type: ignore[arg-type]
    else:
        np.save(path, latents(4, 2, 2))
    data = path.read_bytes()
    for length in range(0, len(data), 17):
        path.write_bytes(data[:length])
        with pytest.raises((OSError, ValueError)):
            interchange.read(path)


@pytest.mark.filterwarnings("ignore:.*not kept:UserWarning")  # by names with other bits
@pytest.mark.parametrize("suffix", [".npz", ".npy", ".latent"])
def test_flipped_bits_end_in_an_error_or_in_latents(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / ("x" + suffix)
    if suffix == ".latent":
        comfyui(path, torch.zeros(1, 4, 2, 2))
    elif suffix == ".npz":
        np.savez_compressed(path, **kohya(h=1, w=1))  # type: ignore[arg-type]
    else:
        np.save(path, latents(4, 2, 2))
    data = path.read_bytes()
    rng = np.random.default_rng(7)
    refused = 0
    for _ in range(100):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            parts = interchange.read(path)
        except (OSError, ValueError) as e:
            assert str(e)  # noqa: PT017
            refused += 1
            continue
        assert all(part.latents.ndim in (3, 4) for part in parts)
    assert 0 < refused < 100


def test_other_suffixes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="latents are read from"):
        interchange.read(tmp_path / "x.bin")


@pytest.mark.parametrize(
    ("parts", "part", "field"), [(0, 0, "parts"), (-1, 0, "parts"), (2, 2, "part"), (2, -1, "part")]
)
def test_parts_that_a_cache_cannot_have(parts: int, part: int, field: str) -> None:
    fields = {"layout": "kohya", "format": ".npz", "parts": parts, "part": part}
    with pytest.raises(ValueError, match=f"not an origin of latents: {field} is "):
        interchange.parse_origin(fields)


def test_what_is_read_cannot_be_changed(tmp_path: Path) -> None:
    """The parts of one file share data, so changing one would change the others."""
    np.save(tmp_path / "x.npy", np.zeros((4, 8, 8), np.float32))
    (found,) = interchange.read(tmp_path / "x.npy")
    for value, field in ((found, "latents"), (found.origin, "layout")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, None)


def test_a_warning_names_the_callers_line(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 8, 8), np.float32))
    (part,) = interchange.read(tmp_path / "x.npy")
    sized = dataclasses.replace(
        part, origin=dataclasses.replace(part.origin, original_size=(64, 64))
    )
    with pytest.warns(UserWarning, match="has no place for original_size") as caught:
        interchange.write(io.BytesIO(), ".npy", [sized])
    assert caught[0].filename == __file__
    several = dataclasses.replace(
        part.origin, layout="kohya", format=".npz", cache="0" * 32, parts=2
    )
    with pytest.warns(UserWarning, match="only 1 of this cache's 2 parts") as caught:
        interchange.write(io.BytesIO(), ".npz", [dataclasses.replace(part, origin=several)])
    assert caught[0].filename == __file__
