"""What the tests of Hugging Face datasets' Image feature check of a format, checked with `.sdz`.

Each test names those of datasets (5.2, tests/features/test_image.py) that check the same with JPEG.
There are further tests of what matters for a lossy format: when datasets encodes a picture again
that nobody has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdz_files import decode

datasets = pytest.importorskip("datasets", reason="needs datasets")

Dataset = datasets.Dataset
FEATURES = datasets.Features({"image": datasets.Image()})


@pytest.fixture(autouse=True)
def no_progress() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def stored(dataset: Any) -> dict[str, Any]:
    """What the only row of a dataset keeps of its picture: its bytes or its path."""
    [row] = dataset.cast_column("image", datasets.Image(decode=False))
    image: dict[str, Any] = row["image"]
    return image


EXAMPLES: dict[str, Callable[[str, bytes], Any]] = {
    "path": lambda path, data: path,
    "dict of the path": lambda path, data: {"path": path},
    "both": lambda path, data: {"path": path, "bytes": data},
    "dict of the bytes": lambda path, data: {"path": None, "bytes": data},
}


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_encode_and_decode_example(
    path: Path, data: bytes, example: Callable[[str, bytes], Any]
) -> None:
    """test_image_feature_encode_example, test_image_decode_example: nothing is encoded again."""
    feature = datasets.Image()
    encoded = feature.encode_example(example(str(path), data))
    assert encoded.keys() == {"path", "bytes"}
    # What lies in a file is not kept twice.
    assert encoded["bytes"] == (data if encoded["path"] is None else None)
    im = feature.decode_example(encoded)
    assert (im.format, im.mode, im.size) == ("SDZ", "RGB", (61, 43))
    assert im.tobytes() == decode(data).tobytes()


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_from_dict(path: Path, data: bytes, example: Callable[[str, bytes], Any]) -> None:
    """test_dataset_with_image_feature, test_dataset_cast_to_image_features: row, batch, column."""
    rows = {"image": [example(str(path), data)]}
    for dataset in (
        Dataset.from_dict(rows, features=FEATURES),
        Dataset.from_dict(rows).cast_column("image", datasets.Image()),
    ):
        for im in (dataset[0]["image"], dataset[:1]["image"][0], dataset["image"][0]):
            assert (im.format, im.size) == ("SDZ", (61, 43))


def test_undecoded(path: Path) -> None:
    """test_dataset_with_image_feature_undecoded"""
    features = datasets.Features({"image": datasets.Image(decode=False)})
    dataset = Dataset.from_dict({"image": [str(path)]}, features=features)
    assert dataset[0] == {"image": {"path": str(path), "bytes": None}}


@pytest.mark.parametrize(("format", "shape"), [("numpy", (43, 61, 3)), ("torch", (3, 43, 61))])
def test_formatted(path: Path, format: str, shape: tuple[int, ...]) -> None:
    """test_formatted_dataset_with_image_feature: arrays of bytes."""
    dataset = Dataset.from_dict({"image": [str(path)]}, features=FEATURES).with_format(format)
    array = np.asarray(dataset[0]["image"])
    assert (array.shape, array.dtype) == (shape, np.uint8)


def test_mode(path: Path) -> None:
    """The feature's own mode converts the decoded picture."""
    dataset = Dataset.from_dict({"image": [str(path)]})
    assert dataset.cast_column("image", datasets.Image(mode="L"))[0]["image"].mode == "L"


def test_orientation(photo: Image.Image, tmp_path: Path) -> None:
    """The feature turns pictures upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "turned.sdz", exif=exif)
    dataset = Dataset.from_dict({"image": [str(tmp_path / "turned.sdz")]}, features=FEATURES)
    assert dataset[0]["image"].size == photo.size[::-1]


def test_concatenated(path: Path, data: bytes) -> None:
    """test_dataset_concatenate_image_features: one has a path, one has bytes."""
    one = Dataset.from_dict({"image": [str(path)]}, features=FEATURES)
    other = Dataset.from_dict({"image": [{"bytes": data}]}, features=FEATURES)
    first, second = datasets.concatenate_datasets([one, other])["image"]
    assert first.tobytes() == second.tobytes()


def test_kept_on_disk(path: Path, data: bytes, tmp_path: Path) -> None:
    """save_to_disk takes the file's own bytes into the dataset."""
    Dataset.from_dict({"image": [str(path)]}, features=FEATURES).save_to_disk(tmp_path / "kept")
    path.unlink()
    dataset = datasets.load_from_disk(tmp_path / "kept")
    assert stored(dataset)["bytes"] == data
    assert dataset[0]["image"].size == (61, 43)


class TestMap:
    """test_dataset_with_image_feature_map, ..._change_image, and what is encoded again."""

    def test_a_path_stays_a_path(self, path: Path) -> None:
        """As in their test: a picture that was looked at is still stored as its file."""
        dataset = Dataset.from_dict({"image": [str(path)]}, features=FEATURES)
        mapped = dataset.map(lambda row: {"mode": row["image"].mode})
        assert mapped[0]["mode"] == "RGB"
        assert stored(mapped) == {"path": str(path), "bytes": None}

    @pytest.fixture(params=["from_dict", "load_from_disk"])
    def of_bytes(self, request: pytest.FixtureRequest, data: bytes, tmp_path: Path) -> Any:
        """A data set that keeps the picture's bytes, which were given or are those of its file."""
        if request.param == "from_dict":
            return Dataset.from_dict({"image": [{"bytes": data}]}, features=FEATURES)
        (tmp_path / "photo.sdz").write_bytes(data)
        rows = {"image": [str(tmp_path / "photo.sdz")]}
        Dataset.from_dict(rows, features=FEATURES).save_to_disk(tmp_path / "kept")
        return datasets.load_from_disk(tmp_path / "kept")

    def test_bytes_are_encoded_again(self, of_bytes: Any, data: bytes) -> None:
        """A picture that is kept as bytes is encoded again if it was looked at.

        Unless it is as small as this one, this is a second loss.
        """
        mapped = of_bytes.map(lambda row: {"mode": row["image"].mode})
        again = stored(mapped)["bytes"]
        assert decode(again).format == "SDZ"
        assert again != data

    def test_the_bytes_stay(self, of_bytes: Any, data: bytes) -> None:
        """What docs/tools.md recommends instead."""
        mapped = of_bytes.map(lambda image: {"mode": image.mode}, input_columns="image")
        assert mapped[0]["mode"] == "RGB"
        assert stored(mapped)["bytes"] == data
        undecoded = of_bytes.cast_column("image", datasets.Image(decode=False))
        mapped = undecoded.map(lambda row: {"length": len(row["image"]["bytes"])})
        assert mapped[0] == {"image": undecoded[0]["image"], "length": len(data)}

    def test_changed_pictures_are_png(self, path: Path) -> None:
        """As in their test with JPEG: a picture without a file is kept without further loss."""
        dataset = Dataset.from_dict({"image": [str(path)]}, features=FEATURES)
        mapped = dataset.map(lambda row: {"image": row["image"].resize((30, 20))})
        im = mapped[0]["image"]
        assert (im.format, im.size) == ("PNG", (30, 20))
        with Image.open(path) as original:
            assert im.tobytes() == original.resize((30, 20)).tobytes()


def test_from_pictures(path: Path, data: bytes) -> None:
    """test_dataset_with_image_feature_from_pil_image: stored as its file if it has one.

    Otherwise it is encoded again in its own format, which is a second loss unless the picture is
    as small as this one. A copy has no format, and becomes PNG.
    """

    def kept(im: Image.Image) -> dict[str, Any]:
        return stored(Dataset.from_dict({"image": [im]}, features=FEATURES))

    with Image.open(path) as im:
        assert kept(im) == {"path": str(path), "bytes": None}
    with Image.open(BytesIO(data)) as im:
        again = kept(im)["bytes"]
        assert decode(again).format == "SDZ"
        assert again != data
        assert decode(kept(im.copy())["bytes"]).tobytes() == im.tobytes()


def test_imagefolder(photo: Image.Image, data: bytes, tmp_path: Path) -> None:
    """load_dataset("imagefolder") uses a fixed list of extensions, which does not have `.sdz`."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "photo.sdz").write_bytes(data)
    photo.save(folder / "photo.png")
    dataset = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert [im.format for im in dataset["image"]] == ["PNG"]


def test_snippet(snippet: Callable[[str], dict[str, Any]]) -> None:
    """The lines of docs/tools.md do what the page says."""
    names = snippet("datasets")
    assert names["photos"][0]["image"].format == "SDZ"
    assert names["widths"]["width"][0] == 61
