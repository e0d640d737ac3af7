"""The run on a cluster: Ray Data hands shards to workers, a second time if a worker dies."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import fsspec

from . import shards
from .plan import MANIFEST, SHARD_FORMATS, Settings, Shard, plan, sources


def encode(
    source: str,
    target: str,
    *,
    count: int,
    format: str = "tar",
    settings: Settings | None = None,
    told: Callable[[dict[str, Any]], None] = lambda done: None,
) -> dict[str, Any]:
    """Encode all pictures or latents below ``source`` into ``count`` shards in ``target``.

    Shards that exist are not made again.  So a run that was killed can go on.  ``told`` is
    called for each shard that is done.  Returns the numbers of this run: shards, items, those whose
    family was assumed, sources of which something is not kept ("warned"), errors, bytes before and
    after, and the workers' CPU seconds.  The number "known_errors" is that of the sources that an
    earlier run could not encode.

    ValueError if the target has shards of other sources or settings.  OSError if there is nothing
    to encode, or if the target cannot be written.
    """
    import ray

    if format not in SHARD_FORMATS:
        msg = f"format must be one of {', '.join(SHARD_FORMATS)}, not {format!r}"
        raise ValueError(msg)
    settings = settings or Settings()
    source_fs, folder = fsspec.url_to_fs(source)
    target_fs, place = fsspec.url_to_fs(target)
    found = sources(source_fs, folder)
    if not found:
        msg = f"{source} has no pictures and no files of latents"
        raise FileNotFoundError(msg)
    made = plan(found, place, count, format, settings)
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
    left = [shard for shard in made.shards if shard.path not in there]
    lists = [shard.errors for shard in made.shards if {shard.path, shard.errors} <= there]
    known_errors = sum(target_fs.cat_file(path).count(b"\n") for path in lists)
    names = "items", "assumed", "warned", "errors", "before", "after"
    total: dict[str, Any] = {"shards": len(left), **dict.fromkeys(names, 0), "seconds": 0.0}
    total["known_errors"] = known_errors
    if left:
        rows = [{"path": s.path, "first": s.first, "sources": list(s.sources)} for s in left]
        work = _Worker(source, target, format, settings)
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(work, num_cpus=1)
        for row in done.iter_rows():
            told(row)
            for name in (*names, "seconds"):
                total[name] += row[name]
    return total


class _Worker:
    """A function for Ray.  Pickle carries it, with all that it needs, to other processes."""

    def __init__(self, source: str, target: str, format: str, settings: Settings) -> None:
        self._source, self._target, self._format = source, target, format
        self._settings = asdict(settings)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        from . import work

        source, _ = fsspec.url_to_fs(self._source)
        target, _ = fsspec.url_to_fs(self._target)
        shard = Shard(row["path"], int(row["first"]), tuple(map(str, row["sources"])))
        return work.do(source, target, shard, self._format, Settings(**self._settings))


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
