"""What a fresh process imports for its first picture, and for commands that need none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

IMPORTED = (
    "import sys; print(*(n for n in ('torch', 'diffusers', 'onnxruntime') if n in sys.modules))"
)
LOAD = """
import sys
import pillow_sdz
from PIL import Image
with Image.open(sys.argv[1]) as im:
    im.draft(None, (im.width // int(sys.argv[2]), im.height // int(sys.argv[2])))
    im.load()
"""
COMMAND = """
import sys
from pillow_sdz.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print()
"""


def imported(environment: dict[str, str], code: str, *arguments: object) -> list[str]:
    """The heavy libraries that a fresh process has imported at its end."""
    command = [sys.executable, "-c", f"{code}\n{IMPORTED}", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize(
    ("keywords", "scale", "needed"),
    [
        ({}, 1, ["onnxruntime"]),
        ({}, 4, ["onnxruntime"]),
        ({}, 8, []),
        ({"tune": "perceptual"}, 1, ["onnxruntime"]),
        ({"model": "mini-half"}, 1, ["onnxruntime"]),
        ({"model": "mini-half"}, 2, ["onnxruntime"]),
        ({"model": "sd-mini"}, 1, ["onnxruntime"]),
    ],
)
def test_decoding_imports_no_torch(
    photo: Image.Image,
    tmp_path: Path,
    environment: dict[str, str],
    keywords: dict[str, str],
    scale: int,
    needed: list[str],
) -> None:
    path = tmp_path / "photo.sdz"
    photo.save(path, effort=0, **keywords)
    # The U-Net that `sd-mini` recommends runs in torch.
    assert imported({**environment, "SDZ_DENOISE": "0"}, LOAD, path, scale) == needed


def test_encoding_without_a_search_imports_no_torch(
    photo: Image.Image, tmp_path: Path, environment: dict[str, str]
) -> None:
    photo.save(tmp_path / "photo.png")
    code = """
import sys
import pillow_sdz
from PIL import Image
Image.open(sys.argv[1]).save(sys.argv[1] + ".sdz", effort=0)
"""
    assert imported(environment, code, tmp_path / "photo.png") == ["onnxruntime"]


@pytest.mark.parametrize("command", [["--help"], ["models", "list"], ["info"]])
def test_commands_that_need_no_pixels_import_no_runtime(
    photo: Image.Image, tmp_path: Path, environment: dict[str, str], command: list[str]
) -> None:
    if command == ["info"]:
        photo.save(tmp_path / "photo.sdz")
        command = [*command, str(tmp_path / "photo.sdz")]
    assert imported(environment, COMMAND, *command) == []
