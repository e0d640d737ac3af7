"""Images kept as the latents of an autoencoder: importing this adds `.sdz` to Pillow."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

from PIL import Image

from .signature import FORMAT, SIGNATURE

if TYPE_CHECKING:
    from . import options
    from .latents import save_latents
    from .models import register_model
    from .opening import Latents, open_latents, open_latents_batch
    from .SdzImagePlugin import SdzImageFile

__version__ = "0.1.0"

__all__ = [
    "Latents",
    "__version__",
    "open_latents",
    "open_latents_batch",
    "options",
    "register",
    "register_model",
    "save_latents",
]

_PLACES = {
    "Latents": ".opening",
    "open_latents": ".opening",
    "open_latents_batch": ".opening",
    "options": ".options",
    "register_model": ".models",
    "save_latents": ".latents",
}


def __getattr__(name: str) -> Any:
    """Import numpy, the settings and the models' registry only when a name needs them."""
    if name not in _PLACES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module

    module = import_module(_PLACES[name], __name__)
    return module if name == "options" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(SIGNATURE)


def _open(fp: IO[bytes], filename: str | bytes) -> SdzImageFile:
    from .SdzImagePlugin import SdzImageFile

    Image.register_open(FORMAT, SdzImageFile, _accept)  # for the files after this one
    return SdzImageFile(fp, filename)


def _save(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    from . import saving

    saving.save(im, fp, filename)


def _save_all(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    from . import saving

    saving.save_all(im, fp, filename)


def register() -> None:
    """Add `.sdz` to Pillow.  The plugin is imported when a file is opened or saved.

    Importing this package does the same.  Call this function if a linter would remove the import,
    which otherwise looks unused.  A second call changes nothing.
    """
    Image.register_open(FORMAT, _open, _accept)
    Image.register_save(FORMAT, _save)
    Image.register_save_all(FORMAT, _save_all)
    Image.register_extension(FORMAT, ".sdz")
    Image.register_mime(FORMAT, "image/x-sdz")


register()
