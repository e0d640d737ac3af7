"""What torchvision's tests of its image folders check of a format, checked with `.sdz`.

Each test names torchvision's tests (0.28, test/test_datasets.py, TestDatasetFolder) that check the
same with PNG. `torchvision.io` is left out. Its decoders of JPEG, PNG, WebP and others are compiled
in, and no format can be added.

This file needs its own process. torchvision's wheels are built for CUDA, and their import fails
with a CPU build of torch. transformers then fails too, because it imports torchvision if it finds
it. So .ci/run installs torchvision where only the run of this file looks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from sdz_files import decode, encode

try:
    pytest.importorskip("torchvision", reason="needs torchvision", exc_type=ModuleNotFoundError)
except RuntimeError:
    # The compiled operators are missing, so the import stops when it describes one of them to
    # torch. With these two declared, the import is complete, though the operators do not exist.
    # Folders, loaders and transforms use neither.
    for operator in ("nms", "qnms"):
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define(f"torchvision::{operator}", schema)

from torchvision.datasets import DatasetFolder, ImageFolder
from torchvision.datasets.folder import default_loader, pil_loader
from torchvision.transforms import v2


def is_sdz(path: str) -> bool:
    return path.endswith(".sdz")


@pytest.fixture
def folder(photo: Image.Image, tmp_path: Path) -> Path:
    """Two classes with two pictures each, and a file that is not a picture."""
    for name, angle in (("cat", 0), ("dog", 90)):
        (tmp_path / name).mkdir()
        for number in range(2):
            photo.rotate(angle, expand=True).save(tmp_path / name / f"{number}.sdz")
        (tmp_path / name / "notes.txt").write_text("no picture")
    return tmp_path


@pytest.mark.parametrize("loader", [pil_loader, default_loader])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_loader(
    photo: Image.Image, tmp_path: Path, mode: str, loader: Callable[[Path], Image.Image]
) -> None:
    """ImageFolder's loader: it opens any picture as RGB, and closes the file."""
    data = encode(photo.convert(mode))
    (tmp_path / "photo.sdz").write_bytes(data)
    im = loader(tmp_path / "photo.sdz")
    assert (im.mode, im.size) == ("RGB", (61, 43))
    assert im.tobytes() == decode(data).convert("RGB").tobytes()


def test_fixed_extensions(folder: Path) -> None:
    """test_is_valid_file without that function: only the extensions that torchvision lists."""
    with pytest.raises(FileNotFoundError, match="Found no valid file"):
        ImageFolder(folder)


def test_is_valid_file(folder: Path) -> None:
    """test_is_valid_file, test_classes: the caller says which files are pictures."""
    dataset = ImageFolder(folder, is_valid_file=is_sdz)
    assert dataset.classes == ["cat", "dog"]
    assert [Path(path).name for path, _ in dataset.samples] == ["0.sdz", "1.sdz"] * 2
    assert [(im.size, target) for im, target in dataset] == [((61, 43), 0)] * 2 + [
        ((43, 61), 1)
    ] * 2


def test_extensions(folder: Path) -> None:
    """DatasetFolder takes a list of extensions instead."""
    dataset = DatasetFolder(str(folder), pil_loader, extensions=(".sdz",))
    assert dataset.samples == ImageFolder(folder, is_valid_file=is_sdz).samples


def test_damaged_file(folder: Path) -> None:
    """A file is opened only when it is its turn. Then Pillow raises its error."""
    path = folder / "cat" / "0.sdz"
    path.write_bytes(path.read_bytes()[:-30])
    (folder / "cat" / "1.sdz").write_bytes(b"not a picture")
    dataset = ImageFolder(folder, is_valid_file=is_sdz)
    with pytest.raises(OSError, match="truncated SDZ file"):
        dataset[0]
    with pytest.raises(UnidentifiedImageError):
        dataset[1]
    assert dataset[2][0].size == (43, 61)


def test_transforms(folder: Path) -> None:
    """The transforms of a training loop, from the file to a batch."""
    transform = v2.Compose(
        [v2.ToImage(), v2.Resize((32, 32)), v2.ToDtype(torch.float32, scale=True)]
    )
    dataset = ImageFolder(folder, transform=transform, is_valid_file=is_sdz)
    images, targets = next(iter(torch.utils.data.DataLoader(dataset, batch_size=4)))
    assert (images.shape, images.dtype) == ((4, 3, 32, 32), torch.float32)
    assert targets.tolist() == [0, 0, 1, 1]


def test_to_tensor(path: Path) -> None:
    """PILToTensor of a picture that is not loaded yet: exactly its pixels."""
    with Image.open(path) as im:
        tensor = v2.PILToTensor()(im)
        np.testing.assert_array_equal(tensor.permute(1, 2, 0).numpy(), np.asarray(im))


def test_snippet(photo: Image.Image, snippet: Callable[[str], dict[str, Any]]) -> None:
    """The line of docs/tools.md does what the page says."""
    for name in ("album/summer", "album/winter"):
        Path(name).mkdir(parents=True)
        photo.save(f"{name}/photo.sdz")
    folder = snippet("torchvision")["folder"]
    assert folder.classes == ["summer", "winter"]
    assert [target for _, target in folder] == [0, 1]
