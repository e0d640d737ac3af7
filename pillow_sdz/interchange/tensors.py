"""Files of several tensors, some of which are latents: read and written by their names.

Each tensor of latents is a part.  Small tensors of other kinds, such as indices, are kept in the
origin of the first part.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence

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


def read(
    contents: Contents, layout: str, is_latents: Callable[[str], bool], *, clips: bool = True
) -> list[LatentFile]:
    """The parts of a file.  Arrays of four axes are clips (C, T, h, w) if ``clips``, or batches."""
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
        )
        found = array[None] if clips and array.ndim == 4 else array
        parts.append(LatentFile(found, origin))
    if not parts:
        msg = "no latents in it"
        raise ValueError(msg)
    first, *rest = parts
    return [first.with_others(small_others(contents)), *rest]


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
    """An array as an origin keeps it; ``dtype`` is its own, unless it is bfloat16."""
    dtype = dtype or array.dtype.name
    return dtype, array.shape, base64.b64encode(as_bits(array, dtype)).decode("ascii")


def arrays(parts: Sequence[LatentFile]) -> dict[str, Stored]:
    """The arrays of a file with these parts."""
    return merged(map(_arrays_of, parts))


def _arrays_of(part: LatentFile) -> dict[str, Stored]:
    origin = part.origin
    array = part.latents if origin.shape is None else part.latents.reshape(origin.shape)
    return {origin.key: Stored(array, origin.dtype), **others_of(origin)}


def others_of(origin: Origin) -> dict[str, Stored]:
    """The small arrays that an origin keeps."""
    return {
        name: Stored(from_bits(base64.b64decode(text), dtype).reshape(shape), dtype)
        for name, (dtype, shape, text) in origin.others.items()
    }
