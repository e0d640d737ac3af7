"""Images kept as the latents of an autoencoder: importing this adds `.sdz` to Pillow."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import SdzImagePlugin, options

if TYPE_CHECKING:
    from .latents import Latents, open_latents, save_latents
    from .models import register_model

__version__ = "0.1.0"

__all__ = [
    "Latents",
    "__version__",
    "open_latents",
    "options",
    "register",
    "register_model",
    "save_latents",
]


def __getattr__(name: str) -> Any:
    """Import numpy and the models' registry only when a name that needs them is asked for."""
    if name in ("Latents", "open_latents", "save_latents"):
        return getattr(import_module(".latents", __name__), name)
    if name == "register_model":
        return import_module(".models", __name__).register_model
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def register() -> None:
    """Add `.sdz` to Pillow.

    Importing this package does the same.  Call this function if a linter would remove the import,
    which otherwise looks unused.  A second call changes nothing.
    """
    SdzImagePlugin.register()
