"""One array alone in a file, as diffusers' pipelines return it with ``output_type="latent"``."""

from __future__ import annotations

from collections.abc import Sequence

from .contracts import Contents, Layout, Stored, with_axes
from .origin import KEY, LatentFile, Origin, shown

LATENTS = "latents"


def _read(contents: Contents) -> list[LatentFile]:
    if LATENTS in contents.names:
        name = LATENTS
    elif len(contents.names) == 1:
        (name,) = contents.names
    else:
        msg = f"{len(contents.names)} arrays, and none is called {LATENTS}"
        raise ValueError(msg)
    array, dtype = contents.take(name)
    if name and not KEY.fullmatch(name):
        contents.notes.append(f"its array {shown(name)} is called {LATENTS!r} here")
        name = LATENTS
    # A video may have one frame: (C, 1, h, w).  The latents then come without that axis.
    has_time = array.ndim == 5 or (array.ndim == 4 and array.shape[1] == 1)
    origin = Origin(
        PLAIN.name,
        contents.path.suffix.lower(),
        dtype,
        key=name,
        batched=array.ndim == 4,
        shape=array.shape if has_time else None,
        metadata=contents.metadata,
    )
    return [LatentFile(array, origin)]


def _arrays(parts: Sequence[LatentFile]) -> dict[str, Stored]:
    (part,) = parts
    latents = with_axes(part)
    if part.origin.batched and latents.ndim == 3:
        latents = latents[None]
    return {part.origin.key: Stored(latents, part.origin.dtype)}


PLAIN = Layout(
    "plain",
    (".latent", ".npz", ".npy", ".safetensors", ".pt"),
    claims=lambda contents: True,
    read=_read,
    arrays=_arrays,
    unit=lambda space, origin: None,
)
