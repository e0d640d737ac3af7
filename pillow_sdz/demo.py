"""`sdz demo`: one photo as .sdz, JPEG and WebP of the same size, with figures and side by side."""

from __future__ import annotations

import io
import os
from importlib import resources
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .atomic import replacing
from .compare import Comparison, compare

# From the article of 2022, which compressed pictures of 512x512 pixels to about this size.
DEFAULT_TARGET_SIZE = 5000

_MARGIN = 8  # pixels around each picture of the sheet
_LABEL = 28  # height of the line above it


def photo() -> Image.Image:
    """The photo that comes with the package, 600x400 in RGB; see pictures/NOTICE.md."""
    file = resources.files(__package__) / "pictures" / "coffee.webp"
    with file.open("rb") as stream, Image.open(stream) as picture:
        return picture.convert("RGB")


def run(*, quality: float | None = None, target_size: int | None = None) -> Comparison:
    """Encode the photo as .sdz, and as JPEG and WebP in at most as many bytes.

    ``quality`` or ``target_size`` (in bytes) is for the .sdz file.  If neither is given, the target
    is 5000 bytes.
    ValueError if no .sdz is that small.
    """
    if quality is None and target_size is None:
        target_size = DEFAULT_TARGET_SIZE
    options = {"quality": quality, "target_size": target_size}
    given = {name: value for name, value in options.items() if value is not None}
    return compare(photo(), "coffee.webp", codecs=("JPEG", "WebP"), **given)


def sheet(comparison: Comparison) -> Image.Image:
    """The original and its versions in one picture, each under its name and size."""
    original = comparison.original
    labelled = [(f"original, {original.width}x{original.height}", original)]
    labelled += [(f"{v.codec}, {len(v.data):,} bytes", v.picture) for v in comparison.versions]
    width = original.width + 2 * _MARGIN
    height = original.height + _LABEL + _MARGIN
    result = Image.new("RGB", (2 * width, height * -(-len(labelled) // 2)), "white")
    draw = ImageDraw.Draw(result)
    font = ImageFont.load_default(size=18)
    for i, (label, picture) in enumerate(labelled):
        x, y = i % 2 * width + _MARGIN, i // 2 * height
        draw.text((x, y + _LABEL / 2), label, fill="black", font=font, anchor="lm")
        result.paste(picture, (x, y + _LABEL))
    return result


def check_free(folder: Path) -> None:
    """FileExistsError if the folder has a file that `write` would write."""
    for path in _paths(folder):
        if os.path.lexists(path):
            msg = f"{path} exists: name another folder with -o"
            raise FileExistsError(msg)


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the .sdz file and the sheet into the folder, and return their paths.

    FileExistsError if one of them exists.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_free(folder)
    png = io.BytesIO()
    sheet(comparison).save(png, "PNG", optimize=True)
    paths = _paths(folder)
    for path, data in zip(paths, (comparison.versions[0].data, png.getvalue()), strict=True):
        with replacing(path, exclusive=True) as file:
            file.write(data)
    return paths


def _paths(folder: Path) -> list[Path]:
    return [folder / "sdz-demo.sdz", folder / "sdz-demo.png"]
