"""Which files belong together.  Each part of a cache becomes a file of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar, overload

from .origin import MAX_PARTS, LatentFile, Origin

S = TypeVar("S")
T = TypeVar("T")


class Lazily(Sequence[T], Generic[S, T]):
    """The results of a function for some things and their numbers, computed when asked for."""

    def __init__(self, things: Sequence[S], make: Callable[[int, S], T]) -> None:
        self._things, self._make = things, make

    def __len__(self) -> int:
        return len(self._things)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        numbers = range(len(self))[index]
        if isinstance(numbers, range):
            return Lazily(numbers, lambda _, number: self[number])
        return self._make(numbers, self._things[numbers])


def numbered(path: Path, parts: Sequence[LatentFile]) -> Sequence[LatentFile]:
    """The parts of a file.  Each one says which of how many it is, and of which cache."""
    if len(parts) == 1:
        return parts
    if len(parts) > MAX_PARTS:
        msg = f"{len(parts)} parts are more than {MAX_PARTS}"
        raise ValueError(msg)
    # The hash is also of the name, so that two caches with the same content stay two.
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(path.name.encode(errors="surrogateescape"))
    cache = digest.hexdigest()[:32]

    def with_number(number: int, part: LatentFile) -> LatentFile:
        origin = replace(part.origin, cache=cache, part=number, parts=len(parts))
        return replace(part, origin=origin)

    return Lazily(parts, with_number)


def targets(target: Path, parts: Sequence[LatentFile]) -> list[Path]:
    """The files for the parts of a cache: ``target``, and others beside it with other names.

    The names are for people.  The files themselves say what belongs together (`together`).
    """
    others = [part.name or part.origin.resolution[1:] or part.origin.key for part in parts[1:]]
    return [target, *(target.with_name(f"{target.stem}.{o}{target.suffix}") for o in others)]


def together(files: Iterable[tuple[Path, Origin | None]]) -> list[list[Path]]:
    """The files in lists: the parts of one cache are in one list, in their order.

    Files belong together if they are in the same folder and their origins say so.  Their names do
    not matter.  If there are two copies of a part, each belongs to a cache of its own.
    """
    lists: list[dict[int, Path]] = []
    of_cache: dict[tuple[Path, str], list[dict[int, Path]]] = {}
    for path, origin in files:
        if origin is None or not origin.cache:
            lists.append({0: path})
            continue
        begun = of_cache.setdefault((path.parent, origin.cache), [])
        parts = next((parts for parts in begun if origin.part not in parts), None)
        if parts is None:
            parts = {}
            begun.append(parts)
            lists.append(parts)
        parts[origin.part] = path
    return [[parts[number] for number in sorted(parts)] for parts in lists]
