"""Images kept as the latents of an autoencoder: importing this adds `.sdz` to Pillow."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import SdzImagePlugin, options
from .models import register_model

if TYPE_CHECKING:
    from .latents import Latents, open_latents, save_latents

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
    """What takes numpy, which is imported when it is first asked for."""
    if name not in ("Latents", "open_latents", "save_latents"):
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(".latents", __name__), name)


def register() -> None:
    """Add `.sdz` to Pillow.

    Importing this package has done so already; calling this as well keeps linters from removing an
    import that looks unused. Calling it again changes nothing.
    """
    SdzImagePlugin.register()
