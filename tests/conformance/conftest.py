"""What all of these tools are given: the same photo, as a file's bytes and as a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sdz_files import encode


@pytest.fixture(scope="session")
def data(photo: Image.Image) -> bytes:
    return encode(photo)


@pytest.fixture
def path(data: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "photo.sdz"
    path.write_bytes(data)
    return path
