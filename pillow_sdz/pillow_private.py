"""All private names of Pillow that this package uses.

A new version of Pillow may change them.  Then only this file must change.
"""

from __future__ import annotations

from PIL import Image, ImageFile
from PIL._util import DeferredError as DeferredError  # replaces the file of a closed image


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
