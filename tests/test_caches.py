"""Caches of latents, there and back: what was one file is one again, with all that was in it.

`interchange` reads and writes the files that people have, `latents` the `.sdz` files between; the
command line calls both, file by file.
"""

from __future__ import annotations

import re
import shutil
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from pillow_sdz import alpha, container, interchange, latents, open_latents, save_latents
from pillow_sdz.chunks import MASK
from pillow_sdz.container import Chunk
from sdz_files import framed

Array = NDArray[Any]


@pytest.fixture(autouse=True)
def no_unexpected_warning() -> Iterator[None]:
    """A warning says that something is lost."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def halves(*shape: int, seed: int = 0) -> NDArray[np.float16]:
    return np.random.default_rng(seed).normal(0, 5, shape).astype(np.float16)


def kohya(ending: str = "", h: int = 8, w: int = 6, **others: Array) -> dict[str, Any]:
    """The arrays of one resolution, as sd-scripts keeps them, in float16 to be kept exactly."""
    arrays = {
        "latents": halves(4, h, w, seed=h),
        "original_size": np.array((812, 1033)),
        "crop_ltrb": np.array((0, 12, 48, 76)),
        **others,
    }
    return {key + ending: array for key, array in arrays.items()}


def encoded(path: Path, target: Path) -> list[Path]:
    """The `.sdz` files of a cache, written as `sdz encode --lossless` does."""
    parts = interchange.read(path)
    targets = interchange.targets(target, parts)
    for part, one in zip(parts, targets, strict=True):
        with one.open("xb") as file:  # none may be there
            latents.imported(part, file, model="sd1", lossless="float16")
    return targets


def written(paths: list[Path], target: Path) -> Path:
    """A file of the latents in these, written as `sdz latents` does."""
    parts = [latents.exported(path, target.suffix) for path in paths]
    with target.open("xb") as file:
        interchange.write(file, target.suffix, parts)
    return target


def there_and_back(path: Path) -> Path:
    (first, *others) = encoded(path, path.with_suffix(".sdz"))
    (group,) = latents.together([*others, first], path.suffix)  # in whatever order they come
    return written(group, path.with_name("again" + path.suffix))


def assert_same_npz(a: Path, b: Path) -> None:
    """The same arrays in the same order, of the same types."""
    with np.load(a) as first, np.load(b) as second:
        assert second.files == first.files
        for key in first.files:
            assert second[key].dtype == first[key].dtype, key
            np.testing.assert_array_equal(second[key], first[key], key)


# one file stays one file


@pytest.mark.parametrize(
    "endings",
    [("", "_8x6"), ("_8x6", ""), ("_8x6", "_12x4", "_4x4")],
    ids=["old and new keys", "new and old keys", "several resolutions"],
)
def test_a_cache_is_one_again(tmp_path: Path, endings: tuple[str, ...]) -> None:
    """A newer sd-scripts adds new keys to the old ones. Both are of one resolution."""
    path = tmp_path / "a_0048x0064_sd.npz"
    arrays: dict[str, Any] = {}
    for number, ending in enumerate(endings):
        arrays |= kohya(ending, 8 + number)
    np.savez(path, **arrays)
    assert_same_npz(path, there_and_back(path))


def test_names_like_resolutions_mean_nothing(tmp_path: Path) -> None:
    """Two caches stay two caches, whatever their names are."""
    for name, shape in (("wall.96x64", (12, 8)), ("wall.64x96", (8, 12))):
        np.savez(tmp_path / f"{name}.npz", **kohya("", *shape))
        encoded(tmp_path / f"{name}.npz", tmp_path / f"{name}.sdz")
    groups = latents.together(sorted(tmp_path.glob("*.sdz")), ".npz")
    assert [[path.name for path in group] for group in groups] == [
        ["wall.64x96.sdz"],
        ["wall.96x64.sdz"],
    ]


def test_a_cache_is_one_again_whatever_its_files_are_called(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **kohya("_8x6"), **kohya("_12x4", 12, 4))
    first, second = encoded(path, tmp_path / "a.sdz")
    renamed = [first.rename(tmp_path / "z.sdz"), second.rename(tmp_path / "b.24x8.sdz")]
    (group,) = latents.together(sorted(renamed), ".npz")
    assert group == renamed
    assert_same_npz(path, written(group, tmp_path / "again.npz"))


def test_copies_of_a_cache_stay_apart(tmp_path: Path) -> None:
    """There are two copies of a resolution, in one folder or in two. Neither replaces the other."""
    np.savez(tmp_path / "a.npz", **kohya("_8x6"), **kohya("_12x4", 12, 4))
    shutil.copy(tmp_path / "a.npz", tmp_path / "b.npz")
    a, b = (encoded(tmp_path / f"{n}.npz", tmp_path / f"{n}.sdz") for n in "ab")
    (tmp_path / "c").mkdir()
    c = [Path(shutil.copy(path, tmp_path / "c")) for path in a]
    again = Path(shutil.copy(a[0], tmp_path / "a again.sdz"))
    groups = latents.together([*a, *b, again, *c], ".npz")
    assert groups == [a, b, [again], c]


def test_targets_are_never_alike(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **kohya("_8x6"), **kohya(""), **kohya("_12x4", 12, 4))
    names = [target.name for target in interchange.targets(path, interchange.read(path))]
    assert names == ["a.npz", "a.latents.npz", "a.12x4.npz"]


def test_a_resolution_that_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **kohya("_8x6"), **kohya("_12x4", 12, 4))
    _, second = encoded(path, tmp_path / "a.sdz")
    with pytest.warns(UserWarning, match="only 1 of this cache's 2 parts are there"):
        again = written([second], tmp_path / "again.npz")
    with np.load(again) as arrays:
        assert set(arrays.files) == set(kohya("_12x4"))


def test_no_resolution_replaces_another(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **kohya())
    (part,) = interchange.read(path)
    with (
        (tmp_path / "b.npz").open("wb") as file,
        pytest.raises(ValueError, match="two arrays are called"),
    ):
        interchange.write(file, ".npz", [part, part])


def test_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    """numpy gives two members of an archive the same name, so one of them would be lost."""
    path = tmp_path / "a.npz"
    np.savez(path, latents=halves(4, 8, 6))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("latents", archive.read("latents.npy"))
    with pytest.raises(ValueError, match="two arrays have the same name"):
        interchange.read(path)


def test_damaged_and_foreign_files_are_alone(tmp_path: Path) -> None:
    """`together` only reads from where files come. `exported` says what is wrong with them."""
    path = tmp_path / "a.sdz"
    save_latents(halves(4, 8, 6), path, model="sd1", provenance={"layout": "kohya", "format": 5})
    paths = [path, tmp_path / "cut.sdz", tmp_path / "empty.sdz", tmp_path / "missing.sdz"]
    paths[1].write_bytes(path.read_bytes()[:60])
    paths[2].write_bytes(b"")
    assert latents.together(paths, ".npz") == [[path] for path in paths]


@pytest.mark.parametrize(
    "change",
    [
        {"cache": "../a"},
        {"cache": "A" * 32},
        {"cache": 5},
        {"part": 1},
        {"part": -1},
        {"parts": (1 << 20) + 1},
        {"parts": True},
        {"part": 0.0},
        {"layout": []},
        {"format": ".npy"},
        {"dtypes": []},
        {"dtypes": {"latents": "float32"}},
        {"dtypes": {"original_size": "object"}},
        {"dtypes": {"original_size": ["int32"]}},
    ],
)
def test_origins_of_caches_that_nobody_wrote(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not an origin of latents"):
        interchange.parse_origin({"layout": "kohya", "format": ".npz"} | change)


# what else is in a file


DTYPES = [
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "kind", ["plain.safetensors", "plain.latent", "comfyui.safetensors", "comfyui.latent"]
)
def test_safetensors_come_back(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    """All keys come back with every bit, and with their metadata."""
    layout, suffix = kind.split(".")
    path = tmp_path / f"a.{suffix}"
    # Exact in float16 and in bfloat16.
    array = torch.from_numpy(np.round(halves(2, 4, 8, 6)).astype(np.float32)).to(dtype)
    metadata = {"architecture": "sd1", "title": "Blick über die Förde"}
    tensors = {"z": array}
    if layout == "comfyui":
        tensors = {"latent_tensor": array, "latent_format_version_0": torch.tensor([])}
    save_file(tensors, path, metadata=metadata)
    again = there_and_back(path)
    with safe_open(again, "pt") as file:
        assert file.metadata() == metadata
        assert set(file.keys()) == tensors.keys()
        for key, tensor in tensors.items():
            found = file.get_tensor(key)
            assert found.dtype == tensor.dtype
            assert torch.equal(found.double(), tensor.double())


def test_latents_of_one_picture_are_a_batch_for_comfyui(tmp_path: Path) -> None:
    """This holds for all latents, because ComfyUI's LoadLatent takes nothing else."""
    array = halves(4, 8, 6)
    save_latents(array, tmp_path / "a.sdz", model="sd1", lossless="float16", scaled=False)
    again = written([tmp_path / "a.sdz"], tmp_path / "again.latent")
    with safe_open(again, "pt") as file:
        assert set(file.keys()) == {"latent_tensor", "latent_format_version_0"}
        np.testing.assert_array_equal(file.get_tensor("latent_tensor").numpy(), array[None])


@pytest.mark.parametrize(
    "others",
    [
        {"original_size": np.array((812, 1033), np.int32)},
        {"crop_ltrb": np.array((0, 12, 48, 76), np.uint16)},
        {"alpha_mask": (np.arange(64 * 48).reshape(64, 48) % 256 / 255).astype(np.float16)},
        {"alpha_mask": np.arange(64 * 48).reshape(64, 48) % 256 / np.float64(255)},
        {"alpha_mask": np.eye(64, 48, dtype=bool)},
        {"alpha_mask": np.eye(64, 48, dtype=np.uint8)},
    ],
    ids=lambda others: "".join(f"{key} {array.dtype}" for key, array in others.items()),
)
def test_the_types_of_other_arrays_come_back(tmp_path: Path, others: dict[str, Array]) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **kohya("_8x6", **others))  # type: ignore[arg-type]
    (sdz,) = encoded(path, tmp_path / "a.sdz")
    again = written([sdz], tmp_path / "again.npz")
    with np.load(path) as first, np.load(again) as second:
        assert {k: second[k].dtype for k in second.files} == {
            k: first[k].dtype for k in first.files
        }
        for key in first.files:
            # A mask is kept as n/255 in float32.
            np.testing.assert_allclose(second[key], first[key], rtol=1e-7, err_msg=key)


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"latents": halves(4, 8, 6), "labels": np.arange(3), "caption": np.zeros(5)}, 2),
        (kohya() | {"text\x1b]0;title\x07": np.zeros(5)}, 1),
        (kohya("_8x6") | {"latents": halves(4, 2, 2)}, 1),  # without original_size
        ({"latents": halves(4, 8, 6)} | {f"more{n}": np.zeros(1) for n in range(20)}, 20),
        ({"latents": halves(4, 8, 6), "x" * 1_000: np.zeros(1)}, 1),
    ],
    ids=["plain", "control characters", "of no resolution", "many", "a long name"],
)
def test_arrays_that_are_not_kept_are_named(
    tmp_path: Path, arrays: dict[str, Any], named: int
) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.warns(UserWarning, match="not kept: ") as caught:
        interchange.read(path)
    (warning,) = caught
    text = str(warning.message)
    assert text.startswith(f"{path}: ")
    assert text.isprintable()
    assert len(text) < len(str(path)) + 400
    listed, _, more = text.partition(" and ")
    assert listed.count("'") == 2 * min(named, 8)
    assert more == (f"{named - 8} more" if named > 8 else "")
    assert warning.filename == __file__


def test_tensors_that_are_not_kept_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.latent"
    tensors = {"latent_tensor": torch.zeros(1, 4, 8, 6), "noise_mask": torch.zeros(2048, 1024)}
    save_file(tensors | {"latent_format_version_0": torch.tensor([])}, path)
    with pytest.warns(UserWarning, match="a.latent: not kept: 'noise_mask'$"):
        interchange.read(path)


def test_a_name_that_cannot_be_kept_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **{"vae/latents": halves(4, 8, 6)})  # type: ignore[arg-type]
    message = r"its array 'vae/latents' is called 'latents' here"
    with pytest.warns(UserWarning, match=message) as caught:
        interchange.read(path)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("format", "named"),
    [
        (".latent", "original_size, crop_ltrb, alpha_mask"),
        (".npy", "original_size, crop_ltrb, alpha_mask"),
    ],
)
def test_what_another_format_has_no_place_for_is_named(
    tmp_path: Path, format: str, named: str
) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **kohya(alpha_mask=np.ones((64, 48), np.float32)))
    sdz = encoded(path, tmp_path / "a.sdz")
    with pytest.warns(UserWarning, match=f"a {format} file has no place for {named}$"):
        written(sdz, tmp_path / f"again{format}")


def test_metadata_that_numpys_files_have_no_place_for_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"z": torch.zeros(4, 8, 6)}, path, metadata={"title": "wall"})
    sdz = encoded(path, tmp_path / "a.sdz")
    with pytest.warns(UserWarning, match=r"a \.npz file has no place for metadata$"):
        written(sdz, tmp_path / "again.npz")
    assert there_and_back(path.rename(tmp_path / "b.safetensors")).suffix == ".safetensors"


# masks

LEVELS = np.arange(64 * 48).reshape(64, 48) % 256


@pytest.mark.parametrize(
    "mask",
    [
        (LEVELS / 255).astype(np.float16),
        LEVELS.astype(np.float16) * np.float16(1 / 255),  # rounded twice
        (LEVELS / 255).astype(np.float32),
        LEVELS.astype(np.float32) * np.float32(1 / 255),
        LEVELS / np.float64(255),
        (LEVELS / 255).astype(np.longdouble),
        torch.from_numpy(LEVELS / 255).half(),
        torch.from_numpy(LEVELS / 255).bfloat16(),
        torch.from_numpy(LEVELS / 255).float().requires_grad_(),
    ],
    ids=lambda mask: f"{type(mask).__name__} {mask.dtype}",
)
def test_masks_of_any_floats_are_their_levels(mask: Any, tmp_path: Path) -> None:
    save_latents(halves(4, 8, 6), tmp_path / "a.sdz", model="sd1", alpha_mask=mask)
    found = open_latents(tmp_path / "a.sdz").info["alpha_mask"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, LEVELS.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("off", [0.3, -0.3, 0.5])
def test_masks_with_values_between_levels_are_refused(off: float, tmp_path: Path) -> None:
    """A single such value is enough, because rounding would lose it."""
    mask = LEVELS / 255
    mask[5, 7] = (100 + off) / 255
    with pytest.raises(ValueError, match="must have values n/255"):
        save_latents(halves(4, 8, 6), tmp_path / "a.sdz", model="sd1", alpha_mask=mask)
    mask[5, 7] = (100 + off / 2) / 255
    save_latents(halves(4, 8, 6), tmp_path / "a.sdz", model="sd1", alpha_mask=mask)


@pytest.mark.parametrize("shape", [(64, 48), (65, 48), (64, 55), (71, 55)])
@pytest.mark.parametrize("constant", [False, True])
def test_masks_of_pictures_that_were_rounded_down(
    shape: tuple[int, int], constant: bool, tmp_path: Path
) -> None:
    """An autoencoder makes 8x6 latents of 71x55 pixels. The mask has and keeps all 71x55 pixels."""
    mask = np.random.default_rng(1).integers(0, 2, shape).astype(np.float32)
    if constant:
        mask[:] = 1
    path = tmp_path / "a.npz"
    np.savez(path, **kohya(alpha_mask=mask))
    assert_same_npz(path, there_and_back(path))
    assert open_latents(tmp_path / "a.sdz").size == (48, 64)


@pytest.mark.parametrize("shape", [(63, 48), (72, 48), (64, 47), (64, 56), (48, 64), (64,)])
def test_masks_of_other_pictures_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    complaint = rf"must have the picture's shape \(64, 48\), not {re.escape(str(shape))}"
    with pytest.raises(ValueError, match=complaint):
        save_latents(
            halves(4, 8, 6), tmp_path / "a.sdz", model="sd1", alpha_mask=np.ones(shape, np.float32)
        )


@pytest.mark.parametrize("size", [(56, 64), (48, 72), (40, 64), (65535, 65535), (0, 0)])
def test_masks_in_files_that_say_another_size_are_refused(size: tuple[int, int]) -> None:
    """They are refused because of the size in their PNG, before pixels of that size exist."""
    file = BytesIO()
    save_latents(halves(4, 8, 6), file, model="sd1")
    head, *rest = container.read(file.getvalue())
    png = bytearray(alpha.png(Image.new("L", (48, 64))))
    png[17:25] = struct.pack(">II", *size)
    png[30:34] = struct.pack(">I", zlib.crc32(png[13:30]))
    data = framed([head, Chunk(MASK.type, bytes(png)), *rest])
    with pytest.raises(OSError, match="chunk mASK is not an alpha channel of the picture's size"):
        open_latents(BytesIO(data))


def test_a_mask_of_a_picture_that_is_rounded_up(tmp_path: Path) -> None:
    """The latents reach beyond the picture, as those of this package do."""
    mask = np.random.default_rng(1).integers(0, 2, (61, 43)).astype(np.float32)
    path = tmp_path / "a.sdz"
    save_latents(halves(4, 8, 6), path, model="sd1", size=(43, 61), alpha_mask=mask)
    np.testing.assert_array_equal(open_latents(path).info["alpha_mask"], mask)
