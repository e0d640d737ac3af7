"""Everything that this package takes from Pillow's private names, in one place.

A new version of Pillow may change them: this file is then the only one to mend.
"""

from __future__ import annotations

from PIL import Image, ImageFile
from PIL._util import DeferredError as DeferredError

#: The error of an image that has been closed stands in for its file.


def check_pixels(size: tuple[int, int]) -> None:
    """Warn of, or refuse, more pixels than `Image.MAX_IMAGE_PIXELS` allows, as Pillow does."""
    Image._decompression_bomb_check(size)


def undecoded(size: tuple[int, int]) -> list[ImageFile._Tile]:
    """What `ImageFile.tile` holds while the pixels are still to come.

    No decoder of this name is registered: `load` is overridden.
    """
    return [ImageFile._Tile("sdz", (0, 0, *size), 0, None)]
