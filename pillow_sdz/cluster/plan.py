"""Which source goes into which shard, and a manifest of that beside the shards.

The sources are sorted and cut into shards of neighbours.  So a second run with the same sources and
settings has the same plan.  It does what the first one did not finish, and encodes sources again
that were changed since.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from .. import interchange
from ..cli.encode import FOR_LATENTS, wanted_of
from ..cli.files import APPLE_DOUBLE
from ..cli.latents import is_of_latents

MANIFEST = "manifest.json"
SHARD_FORMATS = ("tar", "parquet")

# What fsspec says of a file that changes with it.  The first is that of local files, the others are
# those of s3fs, of gcsfs and adlfs, and of files in memory.
STAMPS = ("mtime", "ETag", "etag", "created")


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


class Source(NamedTuple):
    """A file to encode.  Its version is another one if the file was changed."""

    path: str
    version: str


class Sources(NamedTuple):
    """The files of a folder to encode, whether they are latents, and how many others there are."""

    files: list[Source]
    of_latents: bool
    left_out: int


class Shard(NamedTuple):
    """A shard to be written: its path, the number of its first source, and its sources."""

    path: str
    first: int
    sources: tuple[Source, ...]

    @property
    def errors(self) -> str:
        """The path of the list of what could not be encoded."""
        return posixpath.splitext(self.path)[0] + ".errors.jsonl"

    @property
    def warnings(self) -> str:
        """The path of the list of what is not kept."""
        return posixpath.splitext(self.path)[0] + ".warnings.jsonl"

    @property
    def versions(self) -> str:
        """The path of the list of the sources' versions.  Without it, the shard is not complete."""
        return posixpath.splitext(self.path)[0] + ".versions.json"


class Plan(NamedTuple):
    """All shards of a run, and what is written to the manifest."""

    shards: list[Shard]
    manifest: bytes


def sources(fs: Any, folder: str, settings: Settings) -> Sources:
    """The files below a folder that `sdz encode` takes from it, sorted by their paths.

    Caches of several files are left out.
    """
    infos = fs.find(folder, detail=True)
    names = [
        path
        for path, info in sorted(infos.items())
        # Pipes, devices and links to nothing are "other".  Reading a pipe might never end.
        if info["type"] != "other" and not posixpath.basename(path).startswith(APPLE_DOUBLE)
    ]
    found = wanted_of(names, of_latents=bool(settings.given(*FOR_LATENTS)))
    of_latents = bool(found) and is_of_latents(found[0])
    if of_latents:
        found = [path for path in found if interchange.is_one_file(suffix_of(path))]
    return Sources(
        [Source(path, _version(infos[path])) for path in found], of_latents, len(infos) - len(found)
    )


def suffix_of(path: str) -> str:
    """The suffix of a file's name, in small letters."""
    return posixpath.splitext(path)[1].lower()


def _version(info: Mapping[str, Any]) -> str:
    stamp = next((info[name] for name in STAMPS if name in info), None)
    return f"{info.get('size')} {stamp}"


def plan(found: Sequence[Source], target: str, count: int, format: str, settings: Settings) -> Plan:
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
        "sources": hashlib.sha256("\n".join(path for path, _ in found).encode()).hexdigest(),
        "settings": asdict(settings),
    }
    return Plan(shards, json.dumps(said, indent=2).encode() + b"\n")
