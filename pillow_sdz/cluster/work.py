"""What a worker does: it encodes the items of a shard, and writes it completely or not at all."""

from __future__ import annotations

import io
import json
import posixpath
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from .. import interchange, latents, register
from ..cli.encode import FOR_LATENTS, check_for_picture, encoded_picture
from ..cli.reports import Report
from ..interchange import FORMATS
from . import shards
from .plan import Settings, Shard
from .shards import Item

register()


def encoded(data: bytes, path: str, settings: Settings) -> tuple[list[bytes], bool]:
    """The `.sdz` files of a source, and whether the family of its latents was only assumed.

    There is one file, or one for each array of latents in the source.  Pictures are turned upright.
    Warns of what is not kept.  OSError or ValueError if it cannot be encoded.
    """
    suffix = posixpath.splitext(path)[1].lower()
    if suffix in FORMATS:
        return _of_latents(data, posixpath.basename(path), settings)
    check_for_picture(settings.given(*FOR_LATENTS))
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


def do(fs: Any, target: Any, shard: Shard, format: str, settings: Settings) -> dict[str, Any]:
    """Encode a shard, and return its numbers of items, errors and bytes, and its CPU seconds.

    The number "assumed" is that of the items of which nothing says the family, and "warned" that of
    the sources of which something is not kept.

    ``fs`` is the sources' file system, and ``target`` the shard's, as fsspec has them.  A list
    beside the shard names the sources that cannot be encoded, and another one what is not kept.
    """
    begin = time.process_time()
    errors: list[dict[str, str]] = []
    warned: list[dict[str, str]] = []
    counts = {"items": 0, "assumed": 0, "warned": 0, "before": 0, "after": 0}

    def items() -> Iterator[Item]:
        for number, path in enumerate(shard.sources, shard.first):
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
    for name, lines in ((shard.errors, errors), (shard.warnings, warned)):
        if lines:
            target.pipe_file(name, "".join(json.dumps(one) + "\n" for one in lines).encode())
    target.mv(begun, shard.path)
    seconds = time.process_time() - begin
    return {"shard": shard.path, "errors": len(errors), "seconds": seconds, **counts}


def _text(message: object, path: str) -> str:
    """A warning without the name of the file, which may be that of a copy."""
    return str(message).rpartition(f"{posixpath.basename(path)}: ")[2]
