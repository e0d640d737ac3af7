"""Images kept as the latents of an autoencoder: importing this adds `.sdz` to Pillow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .registration import register

if TYPE_CHECKING:
    from . import options
    from .latents import save_latents
    from .models import register_model
    from .opening import Latents, open_latents, open_latents_batch

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
    "register_model": ".models",
    "save_latents": ".latents",
}


def __getattr__(name: str) -> Any:
    """Import numpy, the settings and the models' registry only when a name needs them."""
    from importlib import import_module

    if name == "options":
        return import_module(".options", __name__)
    if name in _PLACES:
        return getattr(import_module(_PLACES[name], __name__), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
