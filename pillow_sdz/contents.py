"""Reads and judges where the chunks of a file lie, and what the chunks before the latents say."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from . import catalogue, chunks
from .catalogue import ModelSpec
from .chunks import Kind
from .reading import Entry, Reader
from .spaces import CodingSpec


class Contents(NamedTuple):
    """What is in a file.  ``values`` has, by keyword, what the chunks before the latents say."""

    model: ModelSpec
    coding: CodingSpec
    entries: list[Entry]
    values: dict[str, Any]


def contents(reader: Reader, kinds: Collection[Kind]) -> Contents:
    """Walk over a complete file, and read the chunks of some kinds; OSError if it is damaged."""
    model, coding = catalogue.judge(reader.header)
    entries: list[Entry] = []
    values: dict[str, Any] = {}
    for entry in reader:
        entries.append(entry)
        kind = chunks.KINDS.get(entry.type)
        if kind is not None and kind in kinds:
            values[kind.keyword] = kind.parse(reader.data(entry), reader.header)
    catalogue.judge_chunks(model, coding, {entry.type for entry in entries})
    return Contents(model, coding, entries, values)
