"""The registry of models: names, latent shapes and hashes, without loading anything heavy."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .embedded import Mini


@dataclass(frozen=True)
class ModelSpec:
    """What can be known of a model without its weights.

    ``factor`` is the number of pixels along one side of a latent, ``channels`` the
    latent channels, ``digest`` the first bytes of the sha256 of the weights' file.
    """

    name: str
    channels: int
    factor: int
    digest: bytes


MINI = ModelSpec("mini", channels=160, factor=16, digest=bytes.fromhex("1482f368"))

_REGISTRY = {MINI.name: MINI}


def names() -> list[str]:
    """The registered models' names, sorted."""
    return sorted(_REGISTRY)


def spec(name: str) -> ModelSpec:
    """The registered model called ``name``; KeyError where there is none."""
    return _REGISTRY[name]


_loaded: dict[str, Mini] = {}
_loading = threading.Lock()


def _unlock() -> None:
    """In a forked child: a thread that was loading in the parent does not exist here."""
    global _loading
    _loading = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


def load(spec: ModelSpec) -> Mini:
    """The model itself, loaded once per process; imports torch.

    OSError where the weights are missing, or are not those that the registry names.
    """
    with _loading:
        if spec.name not in _loaded:
            from .embedded import WEIGHTS, Mini

            digest = hashlib.sha256(WEIGHTS.read_bytes()).digest()
            if not digest.startswith(spec.digest):
                msg = f"{WEIGHTS} is damaged: its sha256 is {digest.hex()}"
                raise OSError(msg)
            _loaded[spec.name] = Mini(WEIGHTS)
        return _loaded[spec.name]
