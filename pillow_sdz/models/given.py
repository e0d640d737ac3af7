"""The source that `register_model` gets: a directory, or a loaded autoencoder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import weights
from . import sources
from .sources import DenoiserParts, Folder, Shape

if TYPE_CHECKING:
    from .any_autoencoder import Conventions


class Described(NamedTuple):
    """An autoencoder, the sha256 of its weights, and what is known of its latents."""

    network: Any
    sha256: str
    shape: Shape
    parts: DenoiserParts | None = None
    how: Conventions | None = None


def described(source: Any, conventions: Mapping[str, Any]) -> Described:
    """What is known of an autoencoder.  ``conventions`` are those of `register_model`.

    ValueError if it is a class, or does not take them.  OSError if it cannot be used.
    """
    if isinstance(source, type):
        msg = f"{source.__name__} is a class: register an object of it"
        raise ValueError(msg)
    if sources.is_any(source):
        from . import any_autoencoder

        how = any_autoencoder.conventions(source, conventions)
        sha256 = any_autoencoder.weights_digest(source)
        shape = Shape(how.channels, how.factor, how.scaling, how.shift)
        return Described(source, sha256, shape, how=how)
    if conventions:
        msg = f"{min(conventions)} is for loaded autoencoders of other classes, not for this one"
        raise ValueError(msg)
    if isinstance(source, (str, os.PathLike)):
        directory = Path(source).absolute()
        folder = sources.autoencoder_folder(directory)
        pinned = Folder(folder, weights.sha256(sources.weights_file(folder)))
        assert pinned.sha256 is not None
        parts = sources.denoiser_parts(directory)
        return Described(pinned, pinned.sha256, sources.shape(pinned), parts)
    shape = sources.shape(source)  # refuses other objects before they are hashed
    from .stable_diffusion import digest

    return Described(source, digest(source), shape)
