"""What ComfyUI's SaveLatent writes, read from its nodes.py.

The tensor `latent_tensor` is a batch of latents as ComfyUI's VAE encodes them, with an axis of time
for videos, and without an axis of rows for sounds.  Nodes may write other tensors beside it, such
as `noise_mask`.  Older versions of ComfyUI multiplied the values by 0.18215, for every model. Newer
versions do not, and write the empty tensor `latent_format_version_0` beside them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .contracts import Contents, Layout, Stored, with_axes
from .origin import LatentFile, Origin
from .tensors import others_of, small_others

LATENTS = "latent_tensor"
MARKER = "latent_format_version_0"
LEGACY_SCALING = 0.18215
# The latent space whose scaling that is.
LEGACY_SPACE = "sd1"
# The latent spaces whose autoencoders scale the latents themselves in ComfyUI.
NORMALISED = frozenset(("flux2-patches", "ltx"))


def _claims(contents: Contents) -> bool:
    return LATENTS in contents.names


def _read(contents: Contents) -> list[LatentFile]:
    array, dtype = contents.take(LATENTS)
    marked = MARKER in contents.names
    contents.known.add(MARKER)
    format = contents.path.suffix.lower()
    shape = None if array.ndim == 4 else array.shape
    origin = Origin(
        COMFYUI.name, format, dtype, marked=marked, shape=shape, metadata=contents.metadata
    )
    return [LatentFile(array, origin).with_others(small_others(contents))]


def _arrays(parts: Sequence[LatentFile]) -> dict[str, Stored]:
    (part,) = parts
    # Files of other tools have other axes, and other arrays under names of their own.
    is_own = part.origin.layout == COMFYUI.name
    latents = with_axes(part) if is_own else part.latents
    if latents.ndim == 3 and not (is_own and part.origin.shape == latents.shape):
        latents = latents[None]
    others = others_of(part.origin) if is_own else {}
    if part.origin.marked:
        empty = Stored(np.zeros(0, np.float32), "float32")
        return {LATENTS: Stored(latents, part.origin.dtype), MARKER: empty, **others}
    return {LATENTS: Stored(latents, part.origin.dtype), **others}


def _unit(space: str, origin: Origin) -> float | None:
    if not origin.marked:
        return None if space == LEGACY_SPACE else LEGACY_SCALING
    return None if space in NORMALISED else 1


COMFYUI = Layout(
    "comfyui",
    (".latent", ".safetensors"),
    claims=_claims,
    read=_read,
    arrays=_arrays,
    unit=_unit,
    batches=True,
)
