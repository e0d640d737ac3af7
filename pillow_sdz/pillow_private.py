"""All private names of Pillow that this package uses.

A new version of Pillow may change them.  Then only this file must change.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageFile
from PIL._util import DeferredError, is_path

if TYPE_CHECKING:
    from PIL._imaging import ImagingCore
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


class UndecodedFile(ImageFile.ImageFile):
    """An image file whose pixels its own `load` decodes, with the private names that this takes."""

    def _become(self, size: tuple[int, int], mode: str) -> None:
        """Have this size and mode, and no pixels until `load`."""
        self._size, self._mode = size, mode
        self._im = None
        # There is no decoder of this name: the plugin's own `load` decodes.
        self.tile = [ImageFile._Tile("sdz", (0, 0, *size), 0, None)]

    def _keep_open(self) -> None:
        """Keep the file open after `load`, for the next frames."""
        assert self.fp is not None
        self._close_exclusive_fp_after_loading = False
        self._fp = self.fp  # `load` sets fp to None.  Pillow's `close` closes _fp as well.

    def _leave_file(self) -> None:
        """Use the file no more for this frame.  Close it if nobody else needs it."""
        if self._exclusive_fp and self._close_exclusive_fp_after_loading:
            assert self.fp is not None
            self.fp.close()
        self.fp = None

    def _returns_to_file(self, frame: int) -> bool:
        """Use the file again, if this frame is not the present one; EOFError if there is none."""
        if not self._seek_check(frame):
            return False
        if isinstance(self._fp, DeferredError):
            raise self._fp.ex  # the image has been closed
        self.fp = self._fp
        return True

    def _with_pixels(self, core: ImagingCore) -> Image.Image:
        """A picture of these pixels, with this one's metadata."""
        return self._new(core)
