"""Opening pictures of any format: formats of other packages, 16 bits a channel, frames."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import IO, Any

from PIL import Image

from .metadata import metadata
from .reports import Report

# The suffixes that commands take from a folder, if Pillow can read them. Pillow knows more, but a
# film or a PostScript file in a folder of photos is no photo.
# fmt: off
PICTURE_SUFFIXES = frozenset((
    ".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".j2k",
    ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".jxl", ".pbm", ".pgm", ".png", ".pnm",
    ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp",
))
# fmt: on

# Packages that add formats to Pillow, and the function to call, if the import alone is not enough.
PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_jxl": None}

# Formats whose frames are shown one after another. In other formats several frames may be the
# pages of a document, or what a telephone stores besides the photo.
ANIMATIONS = frozenset(("AVIF", "GIF", "PNG", "WEBP"))

# Formats in which Pillow's mode I has 16 bits. In others, TIFF above all, it has 32.
SIXTEEN_BITS_AS_I = frozenset(("PNG", "PPM"))

DEEPEST = (1 << 16) - 1  # the largest value of 16 bits


@functools.cache
def register_plugins() -> None:
    """Add HEIC and JPEG XL to Pillow's formats, if the packages that can are installed."""
    for name, function in PLUGINS.items():
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if function is not None:
            getattr(module, function)()


def is_picture(path: str | Path) -> bool:
    """Whether the suffix is that of a picture that can be read here."""
    register_plugins()
    suffix = PurePath(path).suffix.lower()
    return suffix in PICTURE_SUFFIXES and suffix in Image.registered_extensions()


def open_picture(source: Path | IO[bytes]) -> Image.Image:
    """A picture of any format that can be read here, opened."""
    register_plugins()
    return Image.open(source)


def needs_scaling(image: Image.Image, report: Report) -> bool:
    """Whether a picture that is not loaded yet has to be `scaled` to 8 bits a channel.

    The report says that it has 16 bits, also if Pillow scales them itself, as it does for RGB.
    """
    deep = image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in SIXTEEN_BITS_AS_I
    )
    if deep or _is_read_from_16_bits(image):
        report.warn("its 16 bits a channel are scaled to 8")
    return deep


def _is_read_from_16_bits(image: Image.Image) -> bool:
    """Whether Pillow scales the channels when it loads the picture."""
    for tile in image.tile if hasattr(image, "tile") else ():
        arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if any(isinstance(a, str) and ";16" in a for a in arguments):
            return True
        # For a PPM, this is the largest value.
        if tile.codec_name.startswith("ppm") and any(
            isinstance(a, int) and a > 255 for a in arguments
        ):
            return True
    return False


def scaled(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits in 8, its transparent value as an alpha channel."""
    import numpy as np  # here, because other pictures do not need it

    values = np.asarray(image).astype(np.uint32)
    levels = ((values * 255 + DEEPEST // 2) // DEEPEST).astype(np.uint8)
    found = Image.fromarray(levels)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        found.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    found.info = {name: value for name, value in image.info.items() if name != "transparency"}
    found.info.update(metadata(image))  # a TIFF has its metadata in its tags
    return found


def is_animation(image: Image.Image) -> bool:
    """Whether the picture has frames that are shown one after another."""
    return image.format in ANIMATIONS and frame_count(image) > 1


def frame_count(image: Image.Image) -> int:
    """How many frames the picture has."""
    count: int = getattr(image, "n_frames", 1)
    return count


def warn_of_frames(image: Image.Image, report: Report) -> None:
    """Say so if only the first of several frames is used."""
    if (frames := frame_count(image)) > 1:
        report.warn(f"only the first of its {frames} frames is kept")


def changed_frames(
    image: Image.Image, change: Callable[[Image.Image], Image.Image]
) -> tuple[Image.Image, dict[str, Any]]:
    """The first frame, changed, and options that append the others, changed as well."""

    def others() -> Iterator[Image.Image]:
        for number in range(1, frame_count(image)):
            image.seek(number)
            yield change(image.copy())

    image.seek(0)
    return change(image.copy()), {"append_images": others()}
