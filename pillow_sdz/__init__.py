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
    """What takes numpy or the models' registry, which are imported when it is first asked for."""
    if name in ("Latents", "open_latents", "save_latents"):
        return getattr(import_module(".latents", __name__), name)
    if name == "register_model":
        return import_module(".models", __name__).register_model
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def register() -> None:
    """Add `.sdz` to Pillow.

    Importing this package has done so already; calling this as well keeps linters from removing an
    import that looks unused. Calling it again changes nothing.
    """
    SdzImagePlugin.register()
