"""The contracts of `interchange`: `Layout` and `Format`, and `Contents` between them.

A format turns a file into arrays with names.  A layout knows what one tool means by the names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from .origin import Array, LatentFile, Origin

#: The kind of the latents of a picture or a video itself.
MAIN = "latents"

OpenFile = Callable[[str], AbstractContextManager[IO[bytes]]]


class Stored(NamedTuple):
    """An array, and the name of the type that it has in the file.

    Arrays of types that numpy lacks are float32 here: `origin.NARROW`.
    """

    array: Array
    dtype: str


@dataclass
class Contents:
    """The arrays of an open file.

    ``names`` has their names in the file's order, and ``metadata`` is the file's.  ``load`` reads
    an array.  It raises OSError if the array is damaged, or ValueError if it has no numbers.
    """

    path: Path
    names: Collection[str]
    load: Callable[[str], Stored]
    metadata: Mapping[str, str] = field(default_factory=dict)
    #: The names that a layout knows.  `read` warns of other names, because they are not kept.
    known: set[str] = field(default_factory=set)
    #: Other things that `read` warns of.
    notes: list[str] = field(default_factory=list)
    #: The items of a file that leads to many pictures.  Each is read when it is asked for.
    items: Sequence[Contents] = ()

    def take(self, name: str) -> Stored:
        """The array of this name, which must be there."""
        self.known.add(name)
        return self.load(name)

    def take_if_there(self, name: str) -> Stored | None:
        """The array of this name, or None."""
        return self.take(name) if name in self.names else None


@dataclass(frozen=True)
class Format:
    """A kind of file that holds arrays with names: a row of `interchange.FORMATS`."""

    #: Opens a file.  Inside of the context, every error is an OSError or a ValueError.
    open: Callable[[Path], AbstractContextManager[Contents]]
    #: Writes arrays and metadata.  None for a format of several files.
    write: Callable[[IO[bytes], Mapping[str, Stored], Mapping[str, str]], None] | None = None
    #: Writes a file of this name, and others beside it.  The function opens a file by its name.
    write_several: Callable[[OpenFile, str, Iterable[LatentFile]], None] | None = None
    #: Whether it has a place for metadata.
    has_metadata: bool = False
    #: The layout of latents that come from elsewhere.
    usual_layout: str = "plain"


@dataclass(frozen=True)
class Layout:
    """How one tool names and keeps its latents: a row of `interchange.LAYOUTS`."""

    #: Its name in `oRIG`, see docs/format.md.
    name: str
    #: The suffixes of its files, rows of `interchange.FORMATS`.
    formats: tuple[str, ...]
    #: Whether the tool has written this file.
    claims: Callable[[Contents], bool]
    #: Reads the parts of a file that it claims, or the one part of an item of the file.  ValueError
    #: if they are not latents.
    read: Callable[[Contents], list[LatentFile]]
    #: Returns the arrays of a file with these parts.  ValueError if one file cannot hold them.
    arrays: Callable[[Sequence[LatentFile]], Mapping[str, Stored]]
    #: Gets the name of a latent space, and the origin of a part.  Returns None if the latents are
    #: scaled and shifted as pipelines return them.  If not, they are what the VAE encodes, times
    #: the number that it returns.
    unit: Callable[[str, Origin], float | None]
    #: The family that a file itself says it is of, or None.  The catalogue need not know it.
    said: Callable[[Contents], str | None] = lambda contents: None
    #: The endings that the tool gives to the names of its files (before the suffix), and the family
    #: of latents that each ending stands for.
    families: Mapping[str, str] = field(default_factory=dict)
    #: Whether a file may have several parts.
    has_parts: bool = False
    #: Whether such a file is still of use if parts are missing.
    parts_alone: bool = False
    #: What kind of latents an array of this name has: see `interchange.kinds`.
    kind: Callable[[str], str] = lambda name: MAIN
    #: Whether latents that come from elsewhere are a batch, even if there is only one picture or
    #: clip.  Pictures of families of videos are then clips of one frame.
    batches: bool = False
    #: What it keeps besides latents and metadata: names of fields of `Origin` or `LatentFile`.
    keeps: frozenset[str] = frozenset()


def with_axes(part: LatentFile) -> Array:
    """The latents of a part with the axes of length 1 that its file had.

    They are a batch if the file had several arrays.  The latents stay as they are if their file had
    them in another order: then other axes would mix up their values.
    """
    shape, latents = part.origin.shape, part.latents
    if shape is None:
        return latents
    if part.origin.channels is not None:  # the other channels are a mask, and not here
        begin, end = part.origin.channels
        shape = (end - begin, *shape[1:])
    for wanted in (shape, (len(latents), *shape)):
        if _long(wanted) == _long(latents.shape):
            return latents.reshape(wanted)
    return latents


def _long(shape: tuple[int, ...]) -> list[int]:
    """The lengths of the axes, without those of length 1."""
    return [length for length in shape if length != 1]


def merged(parts: Iterable[Mapping[str, Stored]]) -> dict[str, Stored]:
    """The arrays of all parts of a file; ValueError if two have one name."""
    found: dict[str, Stored] = {}
    for part in parts:
        if twice := found.keys() & part.keys():
            msg = f"two arrays are called {min(twice)}"
            raise ValueError(msg)
        found |= part
    return found
