"""Images kept as the latents of an autoencoder: importing this adds `.sdz` to Pillow."""

from __future__ import annotations

from . import SdzImagePlugin, options
from .models import register_model

__version__ = "0.1.0"

__all__ = ["__version__", "options", "register", "register_model"]


def register() -> None:
    """Add `.sdz` to Pillow.

    Importing this package has done so already; calling this as well keeps linters from removing an
    import that looks unused. Calling it again changes nothing.
    """
    SdzImagePlugin.register()
