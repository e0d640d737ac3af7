"""What ComfyUI's SaveLatent writes, read from its nodes.py.

The tensor `latent_tensor` is a batch of latents as the VAE encodes them.  Before ComfyUI wrote the
empty tensor `latent_format_version_0` beside it, the values were 0.18215 times these, whatever the
model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .contracts import Contents, Layout, Stored
from .origin import LatentFile, Origin

LATENTS = "latent_tensor"
MARKER = "latent_format_version_0"
LEGACY_SCALING = 0.18215


def _claims(contents: Contents) -> bool:
    return LATENTS in contents.names


def _read(contents: Contents) -> list[LatentFile]:
    array, dtype = contents.take(LATENTS)
    marked = MARKER in contents.names
    contents.known.add(MARKER)
    if not marked:
        array = array.astype(np.float32) * np.float32(1 / LEGACY_SCALING)
    format = contents.path.suffix.lower()
    origin = Origin(COMFYUI.name, format, dtype, marked=marked, metadata=contents.metadata)
    return [LatentFile(array, origin)]


def _arrays(parts: Sequence[LatentFile]) -> dict[str, Stored]:
    (part,) = parts
    latents = part.latents if part.latents.ndim == 4 else part.latents[None]
    if part.origin.marked:
        empty = Stored(np.zeros(0, np.float32), "float32")
        return {LATENTS: Stored(latents, part.origin.dtype), MARKER: empty}
    latents = latents.astype(np.float32) * np.float32(LEGACY_SCALING)
    return {LATENTS: Stored(latents, part.origin.dtype)}


COMFYUI = Layout(
    "comfyui",
    (".latent", ".safetensors"),
    claims=_claims,
    read=_read,
    arrays=_arrays,
    is_scaled=lambda space: False,
)
