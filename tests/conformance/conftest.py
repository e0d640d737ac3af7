"""What all these tools get: the same photo, and the lines about each tool in docs/tools.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdz_files import encode

PAGE = Path(__file__).parents[2] / "docs" / "tools.md"


@pytest.fixture(scope="session")
def data(photo: Image.Image) -> bytes:
    return encode(photo)


@pytest.fixture
def path(data: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "photo.sdz"
    path.write_bytes(data)
    return path


@pytest.fixture
def snippet(
    photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], dict[str, Any]]:
    """Run a tool's lines of docs/tools.md beside photo.jpg and photo.sdz. Return the names."""
    monkeypatch.chdir(tmp_path)
    photo.save("photo.jpg")
    photo.save("photo.sdz")

    def run(tool: str) -> dict[str, Any]:
        blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
        [block] = (block for block in blocks if re.search(rf"^(from|import) {tool}", block, re.M))
        names: dict[str, Any] = {}
        exec(compile(block, f"docs/tools.md, {tool}", "exec"), names)
        return names

    return run
