"""Adds the format to Pillow's registry.  The plugin is imported when a file is opened or saved."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from PIL import Image

from .signature import FORMAT, SIGNATURE

if TYPE_CHECKING:
    from .SdzImagePlugin import SdzImageFile


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(SIGNATURE)


def _open(fp: IO[bytes], filename: str | bytes) -> SdzImageFile:
    from .SdzImagePlugin import SdzImageFile

    return SdzImageFile(fp, filename)


def _save(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    from . import saving

    saving.save(im, fp, filename)


def _save_all(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    from . import saving

    saving.save_all(im, fp, filename)


def register() -> None:
    """Add `.sdz` to Pillow.

    Importing this package does the same.  Call this function if a linter would remove the import,
    which otherwise looks unused.  A second call changes nothing.
    """
    Image.register_open(FORMAT, _open, _accept)
    Image.register_save(FORMAT, _save)
    Image.register_save_all(FORMAT, _save_all)
    Image.register_extension(FORMAT, ".sdz")
    Image.register_mime(FORMAT, "image/x-sdz")
