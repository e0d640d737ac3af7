"""Files of several tensors, some of which are latents: read and written by their names.

Each tensor of latents is a part.  Small tensors of other kinds, such as indices, are kept in the
origin of the first part.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from .contracts import Contents, Stored, merged
from .origin import (
    FLOATS,
    KEY,
    MAX_OTHER,
    NUMBERS,
    Array,
    LatentFile,
    Origin,
    Other,
    as_bits,
    from_bits,
)


def _all(name: str, array: Array) -> tuple[int, int] | None:
    return None


def read(
    contents: Contents,
    layout: str,
    is_latents: Callable[[str], bool],
    *,
    clips: bool = True,
    channels: Callable[[str, Array], tuple[int, int] | None] = _all,
) -> list[LatentFile]:
    """The parts of a file.  Arrays of four axes are clips (C, T, h, w) if ``clips``, or batches.

    ``channels`` says which channels of an array are latents: the first, and the one after the last;
    None if all are.  The others are a mask, which the origin keeps.
    """
    parts = []
    for name in sorted(filter(is_latents, contents.names)):
        array, dtype = contents.take(name)
        origin = Origin(
            layout,
            contents.path.suffix.lower(),
            dtype,
            key=name,
            shape=array.shape,
            metadata=contents.metadata,
            channels=channels(name, array),
        )
        part = LatentFile(array, origin)
        if origin.channels is not None:
            part = _without_mask(part, origin.channels)
        if clips and array.ndim == 4:
            part = replace(part, latents=part.latents[None])
        parts.append(part)
    if not parts:
        msg = "no latents in it"
        raise ValueError(msg)
    first, *rest = parts
    others = {**first.origin.others, **small_others(contents)}
    return [first.with_others(others), *rest]


def _without_mask(part: LatentFile, channels: tuple[int, int]) -> LatentFile:
    """The part with its latents alone.  Its origin keeps the mask; ValueError if that is large."""
    begin, end = channels
    array, origin = part.latents, part.origin
    mask = _folded(np.concatenate([array[:begin], array[end:]]))
    if mask.nbytes > MAX_OTHER:
        msg = f"the mask in {origin.key} has {mask.nbytes} bytes, the limit is {MAX_OTHER}"
        raise ValueError(msg)
    others = {origin.key: kept(mask, origin.dtype)}
    return replace(part, latents=array[begin:end]).with_others(others)


def _with_mask(latents: Array, mask: Array, channels: tuple[int, int]) -> Array:
    """The inverse of `_without_mask`; ValueError if they do not fit together."""
    begin, end = channels
    if end - begin != len(latents) or not 0 <= begin <= len(mask) <= len(latents):
        msg = f"channels {begin} to {end} are not those of {len(latents)}, beside a mask"
        raise ValueError(msg)
    mask = np.broadcast_to(mask, (len(mask), *latents.shape[1:]))
    return np.concatenate([mask[:begin], latents, mask[begin:]])


def _folded(array: Array) -> Array:
    """The array with the length 1 along all axes but the first along which it does not change."""
    for axis in range(1, array.ndim):
        first = array.take([0], axis)
        if np.broadcast_to(first, array.shape).tobytes() == array.tobytes():
            array = first
    return array


def family_in(key: str, families: Mapping[str, str]) -> Callable[[Contents], str]:
    """Which family a file's metadata names at ``key``; the name itself if it is not known."""

    def said(contents: Contents) -> str:
        name = contents.metadata[key]
        return families.get(name, name)

    return said


def small_others(contents: Contents) -> dict[str, Other]:
    """The arrays that nobody has taken yet, if they are small: an origin can keep them."""
    others = {}
    for name in sorted(set(contents.names) - contents.known):
        try:
            array, dtype = contents.load(name)
        except ValueError:
            continue  # a type that numpy lacks
        if array.nbytes <= MAX_OTHER and dtype in FLOATS | NUMBERS and KEY.fullmatch(name):
            contents.known.add(name)
            others[name] = kept(array, dtype)
    return others


def kept(array: Array, dtype: str | None = None) -> Other:
    """An array as an origin keeps it; ``dtype`` is its own, if numpy has that."""
    dtype = dtype or array.dtype.name
    return dtype, array.shape, base64.b64encode(as_bits(array, dtype)).decode("ascii")


def arrays(parts: Sequence[LatentFile]) -> dict[str, Stored]:
    """The arrays of a file with these parts."""
    return merged(map(_arrays_of, parts))


def _arrays_of(part: LatentFile) -> dict[str, Stored]:
    origin, array = part.origin, part.latents
    others = others_of(origin)
    if origin.channels is not None:
        if origin.shape is None or origin.key not in others:
            msg = f"the mask in {origin.key} is missing"
            raise ValueError(msg)
        begin, end = origin.channels
        array = array.reshape(end - begin, *origin.shape[1:])
        array = _with_mask(array, others.pop(origin.key).array, origin.channels)
    if origin.shape is not None:
        array = array.reshape(origin.shape)
    return {origin.key: Stored(array, origin.dtype), **others}


def others_of(origin: Origin) -> dict[str, Stored]:
    """The small arrays that an origin keeps."""
    return {
        name: Stored(from_bits(base64.b64decode(text), dtype).reshape(shape), dtype)
        for name, (dtype, shape, text) in origin.others.items()
    }
