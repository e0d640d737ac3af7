"""Which source goes into which shard, and a manifest of that beside the shards.

The sources are sorted and cut into shards of neighbours.  So a second run with the same sources and
settings has the same plan, and does what the first one did not finish.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from PIL import Image

from .. import interchange
from ..interchange import FORMATS

MANIFEST = "manifest.json"
SHARD_FORMATS = ("tar", "parquet")


@dataclass(frozen=True)
class Settings:
    """How items are encoded; those that are None have the defaults of `save` and `save_latents`.

    ``model`` names the model of pictures, or the family of latents whose files do not say it.
    """

    model: str | None = None
    quality: float | None = None
    step: float | None = None
    lossless: bool | None = None
    effort: int | None = None
    factor: int | None = None
    size: tuple[int, int] | None = None

    def given(self, *names: str) -> dict[str, Any]:
        """Those of these settings that are not None."""
        return {name: v for name in names if (v := getattr(self, name)) is not None}


class Shard(NamedTuple):
    """A shard to be written: its path, and the numbers and paths of its sources."""

    path: str
    first: int
    sources: tuple[str, ...]

    @property
    def errors(self) -> str:
        """The path of the list of what could not be encoded."""
        return posixpath.splitext(self.path)[0] + ".errors.jsonl"

    @property
    def warnings(self) -> str:
        """The path of the list of what is not kept."""
        return posixpath.splitext(self.path)[0] + ".warnings.jsonl"


class Plan(NamedTuple):
    """All shards of a run, and what is written to the manifest."""

    shards: list[Shard]
    manifest: bytes


def sources(fs: Any, folder: str) -> list[str]:
    """The files below a folder that are pictures or latents, sorted; `.sdz` files are left out."""
    Image.init()
    known = {*Image.registered_extensions(), *filter(interchange.is_one_file, FORMATS)} - {".sdz"}
    found = [
        path
        for path in fs.find(folder)
        if posixpath.splitext(path)[1].lower() in known and not interchange.is_of_text(path)
    ]
    return sorted(found)


def plan(found: Sequence[str], target: str, count: int, format: str, settings: Settings) -> Plan:
    """Cut the sources into ``count`` shards, or into one for each source if they are fewer."""
    count = max(1, min(count, len(found)))
    bounds = [len(found) * number // count for number in range(count + 1)]
    shards = [
        Shard(
            posixpath.join(target, f"shard-{number:05}-of-{count:05}.{format}"),
            bounds[number],
            tuple(found[bounds[number] : bounds[number + 1]]),
        )
        for number in range(count)
    ]
    said = {
        "shards": count,
        "format": format,
        "items": len(found),
        "sources": hashlib.sha256("\n".join(found).encode()).hexdigest(),
        "settings": asdict(settings),
    }
    return Plan(shards, json.dumps(said, indent=2).encode() + b"\n")
