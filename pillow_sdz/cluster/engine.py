"""The run on a cluster: Ray Data hands shards to workers, a second time if a worker dies."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Collection
from dataclasses import asdict
from typing import Any

import fsspec

from ..cli.encode import FOR_LATENTS, kind_of
from . import shards
from .plan import MANIFEST, SHARD_FORMATS, Settings, Shard, Source, plan, sources


def encode(
    source: str,
    target: str,
    *,
    count: int,
    format: str = "tar",
    settings: Settings | None = None,
    retry: bool = False,
    told: Callable[[dict[str, Any]], None] = lambda done: None,
) -> dict[str, Any]:
    """Encode the pictures or latents below ``source`` into ``count`` shards in ``target``.

    These are the files that `sdz encode` takes from a folder.  Sources that an earlier run has
    encoded are not encoded again, unless they were changed since.  So a run that was killed can go
    on.  With ``retry``, the sources that could not be encoded are tried again.  ``told`` is called
    for each shard that is done.

    Returns the numbers of this run: shards, items, those whose family was assumed, sources of which
    something is not kept ("warned"), errors, bytes before and after, and the workers' CPU seconds.
    "known_errors" is the number of the sources that an earlier run could not encode, and "left_out"
    that of the files in ``source`` that are not encoded.

    ValueError if nothing can be encoded with these settings, or if the target has shards of other
    sources or settings.  OSError if there is nothing to encode, if the model is not installed, or
    if the target cannot be written.
    """
    import ray

    from . import work

    if format not in SHARD_FORMATS:
        msg = f"format must be one of {', '.join(SHARD_FORMATS)}, not {format!r}"
        raise ValueError(msg)
    settings = settings or Settings()
    source_fs, folder = fsspec.url_to_fs(source)
    target_fs, place = fsspec.url_to_fs(target)
    found = sources(source_fs, folder, settings)
    if not found.files:
        msg = f"{source} has no {kind_of(settings.given(*FOR_LATENTS))}"
        raise FileNotFoundError(msg)
    work.check(settings, of_latents=found.of_latents)
    made = plan(found.files, place, count, format, settings)
    target_fs.makedirs(place, exist_ok=True)
    manifest = posixpath.join(place, MANIFEST)
    if target_fs.exists(manifest):
        if target_fs.cat_file(manifest) != made.manifest:
            msg = f"{target} has shards of other sources or settings: choose another target"
            raise ValueError(msg)
    else:
        target_fs.pipe_file(manifest, made.manifest)
    there = set(target_fs.find(place))
    for begun in there:
        if begun.endswith(".part"):  # of a run that was killed
            target_fs.rm_file(begun)
    names = "items", "assumed", "warned", "errors", "before", "after"
    total: dict[str, Any] = {**dict.fromkeys(names, 0), "seconds": 0.0, "known_errors": 0}
    total["left_out"] = found.left_out
    rows = []
    for shard in made.shards:
        failed = _failed(target_fs, shard, there)
        left = _left(target_fs, shard, there, failed if retry else ())
        total["known_errors"] += len(failed.difference(left))
        if left:
            paths, versions = map(list, zip(*shard.sources, strict=True))
            about = {"path": shard.path, "first": shard.first}
            rows.append({**about, "sources": paths, "versions": versions, "left": left})
    total["shards"] = len(rows)
    if rows:
        worker = _Worker(source, target, format, settings)
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(worker, num_cpus=1)
        for row in done.iter_rows():
            told(row)
            for name in (*names, "seconds"):
                total[name] += row[name]
    return total


def _failed(fs: Any, shard: Shard, there: Collection[str]) -> set[str]:
    """The sources of a shard that an earlier run could not encode."""
    if shard.errors not in there:
        return set()
    return {json.loads(line)["source"] for line in fs.cat_file(shard.errors).splitlines()}


def _left(fs: Any, shard: Shard, there: Collection[str], again: Collection[str]) -> list[str]:
    """The sources of a shard that must be encoded: new and changed ones, and those ``again``."""
    if not {shard.path, shard.versions} <= set(there):
        return [source.path for source in shard.sources]
    known = json.loads(fs.cat_file(shard.versions))
    return [
        source.path
        for source, version in zip(shard.sources, known, strict=True)
        if source.version != version or source.path in again
    ]


class _Worker:
    """A function for Ray.  Pickle carries it, with all that it needs, to other processes."""

    def __init__(self, source: str, target: str, format: str, settings: Settings) -> None:
        self._source, self._target, self._format = source, target, format
        self._settings = asdict(settings)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        from . import work

        source, _ = fsspec.url_to_fs(self._source)
        target, _ = fsspec.url_to_fs(self._target)
        paths, versions, left = (map(str, row[name]) for name in ("sources", "versions", "left"))
        sources = tuple(map(Source, paths, versions))
        shard = Shard(row["path"], int(row["first"]), sources)
        return work.do(source, target, shard, self._format, Settings(**self._settings), set(left))


def read(target: str) -> Any:
    """A dataset of Ray Data of the latents in shards: rows of key, source, model, kinds, latents.

    ``latents`` are float32 arrays as `open_latents` returns them.  ``kinds`` has the kind of each
    picture or clip, as `ShardedLatents` names them.
    """
    import ray

    fs, place = fsspec.url_to_fs(target)
    rows = [{"path": path} for path in shards.paths(fs, place)]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    return dataset.flat_map(_Reader(target))


class _Reader:
    """The rows of a shard."""

    def __init__(self, target: str) -> None:
        self._target = target

    def __call__(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        import numpy as np

        from ..latents import kinds_of

        fs, _ = fsspec.url_to_fs(self._target)
        found = []
        for item, opened in shards.opened(fs, row["path"]):
            array = opened.latents.astype(np.float32, copy=False)
            about = {"key": item.key, "source": item.source, "model": opened.model}
            found.append({**about, "kinds": kinds_of(opened), "latents": array})
        return found
