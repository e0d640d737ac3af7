"""The `.npz` caches of kohya's sd-scripts, read from its library/strategy_*.py.

A file has the arrays of one picture, perhaps at several resolutions. They are latents as the VAE
returns them, the picture's size and crop, the latents of the mirrored picture, and a mask.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from .contracts import Contents, Layout, Stored, merged
from .numpy_files import as_numpy
from .origin import KOHYA_TYPES, NUMBERS, RESOLUTION, LatentFile, Origin, are_integers

# How the names of the caches end, and the family of their latents.  Lumina has the autoencoder of
# FLUX.1, and Anima has that of Qwen-Image.  The catalogue does not know all of these families.
# Older caches end in `.npz` alone.  They are of Stable Diffusion 1, 2 and XL, the only models that
# sd-scripts trained at that time.
FAMILIES = {
    "_sd": "sd1",
    "_sdxl": "sdxl",
    "_sd3": "sd3",
    "_flux": "flux",
    "_lumina": "flux",
    "_anima": "qwen-image",
    "_hi": "hunyuan-image",
}
# The latent spaces whose latents sd-scripts scales and shifts.
SCALED = frozenset(("flux", "qwen-image"))

_LATENTS = re.compile(rf"latents({RESOLUTION.pattern})")


def _resolutions(contents: Contents) -> list[str]:
    """The endings of the arrays' names, such as "_64x48"; none if sd-scripts did not write them."""
    endings = [match[1] for name in contents.names if (match := _LATENTS.fullmatch(name))]
    # sd-scripts always writes the size. Somebody's own np.savez(latents=...) has none.
    return [ending for ending in endings if "original_size" + ending in contents.names]


def _claims(contents: Contents) -> bool:
    return bool(_resolutions(contents))


def _read(contents: Contents) -> list[LatentFile]:
    return [_part(contents, ending) for ending in _resolutions(contents)]


def _part(contents: Contents, ending: str) -> LatentFile:
    latents, dtype = contents.take("latents" + ending)
    # Autoencoders of videos have an axis of time. Here it has one picture.
    shape = latents.shape if latents.ndim == 4 and latents.shape[1] == 1 else None
    flipped = contents.take_if_there("latents_flipped" + ending)
    if flipped is not None:
        same = (flipped.array.shape, flipped.dtype) == (latents.shape, dtype)
        if (latents.ndim != 3 and shape is None) or not same:
            msg = f"latents_flipped{ending} does not match latents{ending}"
            raise ValueError(msg)
        latents = np.stack([latents, flipped.array])
    elif latents.ndim != 3 and shape is None:
        msg = f"latents{ending} has the shape {latents.shape}, not (C, h, w)"
        raise ValueError(msg)
    if shape is not None:
        latents = latents[..., 0, :, :]
    found = {name: contents.take_if_there(name + ending) for name in KOHYA_TYPES}
    others = {name: stored for name, stored in found.items() if stored is not None}
    for name, stored in others.items():
        if stored.dtype not in NUMBERS:
            msg = f"{name}{ending} is an array of {stored.dtype}"
            raise ValueError(msg)
    origin = Origin(
        KOHYA.name,
        ".npz",
        dtype,
        resolution=ending,
        original_size=_integers(others, "original_size", 2, ending),
        crop_ltrb=_integers(others, "crop_ltrb", 4, ending),
        flipped=flipped is not None,
        shape=shape,
        dtypes={n: stored.dtype for n, stored in others.items() if stored.dtype != KOHYA_TYPES[n]},
    )
    mask = others.get("alpha_mask")
    return LatentFile(latents, origin, None if mask is None else mask.array)


def _integers(
    others: Mapping[str, Stored], name: str, count: int, ending: str
) -> tuple[int, ...] | None:
    """The integers in one of the other arrays, or None if it is not there."""
    if name not in others:
        return None
    array = others[name].array
    values = tuple(array.tolist()) if array.shape == (count,) else ()
    if not are_integers(values, count):
        msg = f"{name}{ending} is not {count} integers below 2^31"
        raise ValueError(msg)
    return values


def _arrays(parts: Sequence[LatentFile]) -> dict[str, Stored]:
    return merged(map(_arrays_of, parts))


def _arrays_of(part: LatentFile) -> dict[str, Stored]:
    """The arrays of one resolution, in sd-scripts' order."""
    origin = part.origin
    latents = as_numpy(Stored(part.latents, origin.dtype))
    if latents.ndim != (4 if origin.flipped else 3) or (origin.flipped and len(latents) != 2):
        msg = f"latents of the shape {latents.shape} do not fit their origin, {origin.json()}"
        raise ValueError(msg)
    pictures = latents if origin.flipped else latents[None]
    if origin.shape is not None:
        pictures = pictures.reshape(-1, *origin.shape)
    arrays = {"latents": pictures[0]}
    if origin.original_size is not None:
        arrays["original_size"] = np.array(origin.original_size, np.int64)
    if origin.crop_ltrb is not None:
        arrays["crop_ltrb"] = np.array(origin.crop_ltrb, np.int64)
    if origin.flipped:
        arrays["latents_flipped"] = pictures[1]
    if part.alpha_mask is not None:
        arrays["alpha_mask"] = part.alpha_mask
    types = KOHYA_TYPES | dict(origin.dtypes)
    return {
        name + origin.resolution: Stored(array, types.get(name, origin.dtype))
        for name, array in arrays.items()
    }


KOHYA = Layout(
    "kohya",
    (".npz",),
    claims=_claims,
    read=_read,
    arrays=_arrays,
    unit=lambda space, origin: None if space in SCALED else 1,
    families=FAMILIES,
    has_parts=True,
    parts_alone=True,
    keeps=frozenset(KOHYA_TYPES),
)
