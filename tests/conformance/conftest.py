"""What all of these tools are given: the same photo, and the lines of the README about each."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdz_files import encode

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="session")
def data(photo: Image.Image) -> bytes:
    return encode(photo)


@pytest.fixture
def path(data: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "photo.sdz"
    path.write_bytes(data)
    return path


@pytest.fixture
def readme(
    photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], dict[str, Any]]:
    """Runs the README's lines about a tool, beside photo.jpg and photo.sdz; what they name."""
    monkeypatch.chdir(tmp_path)
    photo.save("photo.jpg")
    photo.save("photo.sdz")

    def run(tool: str) -> dict[str, Any]:
        blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
        [block] = (block for block in blocks if re.search(rf"^(from|import) {tool}", block, re.M))
        names: dict[str, Any] = {}
        exec(compile(block, f"README.md, {tool}", "exec"), names)
        return names

    return run
