"""The source that `register_model` gets: a directory, or a loaded autoencoder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import weights
from . import sources
from .sources import DenoiserParts, Folder

if TYPE_CHECKING:
    from .any_autoencoder import Conventions


class Described(NamedTuple):
    """An autoencoder, the sha256 of its weights, and the channels and factor of its latents."""

    network: Any
    sha256: str
    shape: tuple[int, int]
    parts: DenoiserParts | None = None
    how: Conventions | None = None


def described(source: Any, conventions: Mapping[str, Any]) -> Described:
    """What is known of an autoencoder.  ``conventions`` are those of `register_model`.

    ValueError if it does not take them, OSError if it cannot be used.
    """
    if sources.is_any(source):
        from . import any_autoencoder

        how = any_autoencoder.conventions(source, conventions)
        sha256 = any_autoencoder.weights_digest(source)
        return Described(source, sha256, (how.channels, how.factor), how=how)
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
