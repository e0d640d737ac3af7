"""Shards as files: tar files as WebDataset has them, or Parquet.

An item of a tar file is `000000042.sdz`, and beside it `000000042.json` with the name of its
source.  A Parquet file has the columns `key`, `source` and `sdz`.
"""

from __future__ import annotations

import io
import json
import posixpath
import tarfile
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, Any, NamedTuple

from ..opening import TOGETHER, Latents, open_latents, open_latents_batch

_END = 1024  # zeros at the end of a tar file


class Item(NamedTuple):
    """An `.sdz` file in a shard; ``source`` is the path that it was made of."""

    key: str
    source: str
    sdz: bytes


def write(file: IO[bytes], format: str, items: Iterable[Item]) -> int:
    """Write a shard, and return how many items it has."""
    return {"tar": _write_tar, "parquet": _write_parquet}[format](file, items)


def _write_tar(file: IO[bytes], items: Iterable[Item]) -> int:
    count = 0
    with tarfile.open(fileobj=file, mode="w|") as archive:
        for count, item in enumerate(items, 1):  # noqa: B007  # the number of the last one
            about = json.dumps({"source": item.source}).encode()
            for suffix, data in ((".sdz", item.sdz), (".json", about)):
                member = tarfile.TarInfo(item.key + suffix)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return count


def _write_parquet(file: IO[bytes], items: Iterable[Item]) -> int:
    import pyarrow
    import pyarrow.parquet

    found = list(items)
    columns = {name: [getattr(item, name) for item in found] for name in Item._fields}
    types = {"key": pyarrow.string(), "source": pyarrow.string(), "sdz": pyarrow.binary()}
    table = pyarrow.table({name: pyarrow.array(columns[name], types[name]) for name in types})
    # The files inside are packed already.
    pyarrow.parquet.write_table(table, file, compression="none")
    return len(found)


def paths(fs: Any, folder: str) -> list[str]:
    """The shards in a folder, sorted; OSError if there are none."""
    found = sorted(
        path
        for path in fs.ls(folder, detail=False)
        if posixpath.basename(path).startswith("shard-") and path.endswith((".tar", ".parquet"))
    )
    if not found:
        msg = f"{folder} has no shards"
        raise FileNotFoundError(msg)
    return found


def read(fs: Any, path: str) -> Iterator[Item]:
    """The items of a shard, one after another; OSError if it is damaged."""
    with fs.open(path, "rb") as file:
        yield from (_read_tar if path.endswith(".tar") else _read_parquet)(file)


def opened(fs: Any, path: str) -> Iterator[tuple[Item, Latents]]:
    """The items of a shard and their latents.  Those that are alike are decoded together.

    OSError if the shard is damaged, or if an item is, or has no latents; it names the item.
    """
    items = read(fs, path)
    while some := [*islice(items, TOGETHER)]:
        try:
            found = [*open_latents_batch(io.BytesIO(item.sdz) for item in some)]
        except OSError as e:
            for item in some:
                _check(item)
            msg = f"{path}: {e}"
            raise OSError(msg) from e
        yield from zip(some, found, strict=True)


def _check(item: Item) -> None:
    """OSError if an item has no latents that can be decoded."""
    try:
        open_latents(io.BytesIO(item.sdz))
    except OSError as e:
        msg = f"item {item.key}, of {item.source}: {e}"
        raise OSError(msg) from e


def _read_tar(file: IO[bytes]) -> Iterator[Item]:
    # A tar file ends in two blocks of zeros.  The library does not check that they are there.
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _END))
    if file.read() != bytes(_END):
        msg = "damaged shard: it is truncated"
        raise OSError(msg)
    file.seek(0)
    key, sdz = "", b""
    try:
        with tarfile.open(fileobj=file, mode="r|") as archive:
            for member in archive:
                name, suffix = posixpath.splitext(member.name)
                data = archive.extractfile(member)
                if data is None:
                    continue
                if suffix == ".sdz":
                    key, sdz = name, data.read()
                elif suffix == ".json" and name == key:
                    yield Item(key, str(json.loads(data.read())["source"]), sdz)
    except (tarfile.TarError, ValueError, KeyError) as e:
        msg = f"damaged shard: {e}"
        raise OSError(msg) from e


def _read_parquet(file: IO[bytes]) -> Iterator[Item]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(64):
            for row in batch.to_pylist():
                yield Item(row["key"], row["source"], row["sdz"])
    except (pyarrow.ArrowException, KeyError) as e:
        msg = f"damaged shard: {e}"
        raise OSError(msg) from e
