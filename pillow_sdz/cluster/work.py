"""What a worker does: it encodes the items of a shard, and writes it completely or not at all."""

from __future__ import annotations

import io
import json
import posixpath
import tempfile
import time
import uuid
import warnings
from collections.abc import Collection, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import catalogue, interchange, keywords, latents, register
from ..cli.encode import encoded_picture
from ..cli.reports import Report
from ..interchange import FORMATS
from . import shards
from .plan import Settings, Shard, suffix_of
from .shards import Item

register()


def encoded(data: bytes, path: str, settings: Settings) -> tuple[list[bytes], bool]:
    """The `.sdz` files of a source, and whether the family of its latents was only assumed.

    There is one file, or one for each array of latents in the source.  Pictures are turned upright.
    Warns of what is not kept.  OSError or ValueError if it cannot be encoded.
    """
    if suffix_of(path) in FORMATS:
        return _of_latents(data, posixpath.basename(path), settings)
    report = Report(path)
    options = settings.given("model", "quality", "effort")
    # A trainer reads the latents without EXIF, which would say how to turn the picture.
    file = encoded_picture(io.BytesIO(data), report, options, turned=True)
    for _, line in report.lines:
        warnings.warn(line, stacklevel=2)
    return [file], False


def _of_latents(data: bytes, name: str, settings: Settings) -> tuple[list[bytes], bool]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name  # the name of a file may say its family
        path.write_bytes(data)
        parts = interchange.read(path)
    found = []
    any_assumed = False
    for part in parts:
        model, is_assumed = latents.family_of(part, settings.model, settings.factor)
        any_assumed |= is_assumed
        file = io.BytesIO()
        options = settings.given("quality", "step", "lossless", "effort", "factor", "size")
        latents.imported(part, file, model=model, **options)
        found.append(file.getvalue())
    return found, any_assumed


def check(settings: Settings, *, of_latents: bool) -> None:
    """ValueError or OSError if nothing can be encoded with these settings.  A small trial shows it.

    Whether they fit a source can depend on the source, and is not known here.
    """
    if of_latents:
        model = settings.model or ("trial" if settings.factor else catalogue.DEFAULT_FAMILY)
        options = settings.given("quality", "step", "lossless", "effort", "factor")
        try:
            channels = keywords.model_named(model).channels
        except keywords.UnknownModelError:
            channels = 1
        latents.save_latents(np.zeros((channels, 1, 1)), io.BytesIO(), model=model, **options)
    else:
        options = settings.given("model", "quality", "effort")
        Image.new("RGB", (1, 1)).save(io.BytesIO(), "SDZ", **options)


def do(
    fs: Any,
    target: Any,
    shard: Shard,
    format: str,
    settings: Settings,
    left: Collection[str] | None = None,
) -> dict[str, Any]:
    """Encode a shard, and return its numbers of items, errors and bytes, and its CPU seconds.

    The number "assumed" is that of the items of which nothing says the family, and "warned" that of
    the sources of which something is not kept.

    ``fs`` is the sources' file system, and ``target`` the shard's, as fsspec has them.  A list
    beside the shard names the sources that cannot be encoded, and another one what is not kept.
    ``left`` are the sources to encode, by default all.  What the shard has of others, it keeps.
    """
    begin = time.process_time()
    paths = [source.path for source in shard.sources]
    left = set(paths if left is None else left)
    kept = groupby(_kept(target, shard, left), lambda item: item.source)
    errors, warned = (_others(target, name, left) for name in (shard.errors, shard.warnings))
    known_errors = len(errors)
    counts = {"items": 0, "assumed": 0, "warned": 0, "before": 0, "after": 0}

    def items() -> Iterator[Item]:
        old = next(kept, None)
        for number, path in enumerate(paths, shard.first):
            if old is not None and old[0] == path:
                yield from old[1]
                old = next(kept, None)
            if path not in left:
                continue
            try:
                data = fs.cat_file(path)
                with warnings.catch_warnings(record=True) as caught:
                    for category in (UserWarning, Image.DecompressionBombWarning):
                        warnings.simplefilter("always", category)
                    files, is_assumed = encoded(data, path, settings)
            except Exception as e:  # an error of any kind stops this file alone
                errors.append({"source": path, "error": f"{type(e).__name__}: {e}"})
                continue
            texts = [_text(each.message, path) for each in caught]
            warned.extend({"source": path, "warning": text} for text in texts)
            counts["warned"] += bool(texts)
            counts["items"] += 1
            counts["assumed"] += is_assumed
            counts["before"] += len(data)
            for part, sdz in enumerate(files):
                counts["after"] += len(sdz)
                key = f"{number:09}" if len(files) == 1 else f"{number:09}-{part}"
                yield Item(key, path, sdz)

    # If a worker was believed dead, two workers may make the same shard.  The later file replaces
    # the earlier one.
    begun = f"{shard.path}.{uuid.uuid4().hex}.part"
    with target.open(begun, "wb") as file:
        shards.write(file, format, items())
    target.mv(begun, shard.path)
    for name, lines in ((shard.errors, errors), (shard.warnings, warned)):
        if lines:
            target.pipe_file(name, "".join(json.dumps(one) + "\n" for one in lines).encode())
        elif target.exists(name):
            target.rm_file(name)
    versions = json.dumps([source.version for source in shard.sources])
    target.pipe_file(shard.versions, versions.encode())  # last, because now the shard is complete
    seconds = time.process_time() - begin
    failed = len(errors) - known_errors
    return {"shard": shard.path, "errors": failed, "seconds": seconds, **counts}


def _kept(fs: Any, shard: Shard, left: Collection[str]) -> Iterator[Item]:
    """The items that the shard has of sources that are not encoded again."""
    if len(left) < len(shard.sources):
        yield from (item for item in shards.read(fs, shard.path) if item.source not in left)


def _others(fs: Any, name: str, left: Collection[str]) -> list[dict[str, str]]:
    """What an earlier run has listed of sources that are not encoded again."""
    if not fs.exists(name):
        return []
    lines = map(json.loads, fs.cat_file(name).splitlines())
    return [line for line in lines if line["source"] not in left]


def _text(message: object, path: str) -> str:
    """A warning without the name of the file, which may be that of a copy."""
    return str(message).rpartition(f"{posixpath.basename(path)}: ")[2]
