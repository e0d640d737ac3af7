"""All private names of Pillow that this package uses.

A new version of Pillow may change them.  Then only this file must change.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageFile
from PIL._util import DeferredError as DeferredError  # replaces the file of a closed image
from PIL._util import is_path

if TYPE_CHECKING:
    from PIL._imaging import PixelAccess as PixelAccess  # the result of `load`


def descriptor(fp: object) -> int | None:
    """The number of the operating system's file that a file object reads or writes, if any."""
    try:
        return fp.fileno()  # type: ignore[attr-defined,no-any-return]
    except (AttributeError, OSError, ValueError):  # not every file object has one
        return None


def is_read_from(image: Image.Image, target: Any) -> bool:
    """Whether a picture still reads the file ``target``, a path or an open file."""
    source = descriptor(getattr(image, "_fp", None) or getattr(image, "fp", None))
    written = target if is_path(target) else descriptor(target)
    if source is None or written is None:
        return False
    try:
        return os.path.samestat(os.fstat(source), os.stat(written))
    except OSError:
        return False


def check_pixels(size: tuple[int, int]) -> None:
    """Check the pixels against `Image.MAX_IMAGE_PIXELS`, as Pillow does.

    More pixels give a DecompressionBombWarning, and more than twice as many a
    DecompressionBombError.
    """
    Image._decompression_bomb_check(size)


def undecoded(size: tuple[int, int]) -> list[ImageFile._Tile]:
    """The value of `ImageFile.tile` until the pixels are decoded.

    There is no decoder of this name: the plugin's own `load` decodes.
    """
    return [ImageFile._Tile("sdz", (0, 0, *size), 0, None)]
