"""Importing and opening are cheap. Nothing heavy is imported before pixels are needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sdz_files import CountingFile, encode

HEAVY = ["torch", "numpy", "diffusers", "transformers", "constriction", "safetensors"]
# The modules of this package that only decoding, encoding and latents need.
LATER = [f"pillow_sdz.{name}" for name in ("models", "saving", "latents", "codec", "codings")]

# The modules that only files need. Importing the package adds the format to Pillow, and no more.
FOR_FILES = ["SdzImagePlugin", "catalogue", "chunks", "container", "header", "layers", "options"]

SCRIPT = f"""
import json, sys
from PIL import Image
import pillow_sdz
early = [name for name in {FOR_FILES} if "pillow_sdz." + name in sys.modules]
with Image.open(sys.argv[1]) as im:
    seen = [im.size, im.mode, sorted(im.info), dict(im.getexif())]
    im.verify()
heavy = [name for name in {HEAVY + LATER} if name in sys.modules]
print(json.dumps([seen, heavy, early]))
"""


def test_open_imports_nothing_heavy(
    photo: Image.Image, tmp_path: Path, environment: dict[str, str]
) -> None:
    path = tmp_path / "photo.sdz"
    exif = Image.Exif()
    exif[274] = 6
    photo.save(path, exif=exif)
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    seen, heavy, early = json.loads(run.stdout)
    assert seen == [list(photo.size), "RGB", ["exif", "sdz"], {"274": 6}]
    assert heavy == []
    assert early == []


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_open_reads_only_headers_and_metadata(photo: Image.Image, mode: str) -> None:
    im = photo.convert(mode)
    if mode == "RGBA":
        im.putalpha(Image.effect_noise(im.size, 50))
    plain = CountingFile(encode(im))
    rich = CountingFile(encode(im, xmp=bytes(1000)))
    with Image.open(plain), Image.open(rich):
        pass
    # Pillow reads 16 bytes to recognise the format. A framing is read as 9 bytes.
    assert plain.count <= 120
    assert rich.count <= plain.count + 1000 + 32
