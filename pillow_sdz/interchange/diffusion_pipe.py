"""The caches of diffusion-pipe, read from its utils/cache.py and utils/dataset.py.

A cache is a folder, `cache/MODEL/cache_BUCKET/latents`.  Its shards, `shard_N.bin`, are items one
after another, and each item is what torch saves of a dictionary: the latents of one picture or
video, a mask in pixels or None, the picture's path, and its captions.  The database `metadata.db`
says where each item is, in the order of the dataset.  It also has the fingerprint of the dataset.
If the dataset has another fingerprint, the trainer makes the cache again.  Other folders beside it
have such caches of the results of text encoders.
"""

from __future__ import annotations

import io
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from . import tensors, torch_files
from .contracts import Contents, Format, Layout, OpenFile, Stored
from .numpy_files import as_numpy
from .origin import FINGERPRINT, MAX_PARTS, NARROW, LatentFile, Origin
from .parts import Lazily

# The families of the models' names.  The latents of all models are scaled and shifted.
FAMILIES = {
    "sdxl": "sdxl",
    "auraflow": "sdxl",
    "sd3": "sd3",
    "flux": "flux",
    "chroma": "flux",
    "lumina_2": "flux",
    "hidream": "flux",
    "omnigen2": "flux",
    "z_image": "flux",
    "flux2": "flux2",
    "flux2_klein_4b": "flux2",
    "flux2_klein_9b": "flux2",
    "ernie_image": "flux2",
    "ideogram4": "flux2",
    "qwen_image": "qwen-image",
    "krea2": "qwen-image",
    "anima": "qwen-image",
    "cosmos_predict2": "wan21",
    "skyreels_v2": "wan21",
    "skyreels_v2_i2v": "wan21",
    "wan": "wan21",
    "wan_i2v": "wan21",
    "wan_flf2v": "wan21",
    "wan2.2_i2v": "wan21",
    "wan2.2_5b": "wan22",
    "hunyuan-video": "hunyuan-video",
    "hunyuan_video_1.5": "hunyuan-video-1.5",
    "hunyuan_image": "hunyuan-image",
    "ltx-video": "ltx",
}
LATENTS = "latents"
# Other tensors that may have the shape of the latents: the latents of a picture before it was
# edited, and of a video's first picture.
COMPANIONS = ("control_latents", "y")
MASK, SPEC = "mask", "image_spec"

# Chosen: a million items have 30 MB.
_MAX_DATABASE = 256 << 20
# Steps of sqlite's machine.  Measured: a row takes 10.  A hostile query may be endless.
_MAX_STEPS = 64 * MAX_PARTS
_SHARD = re.compile(r"shard_(\d{1,6})")
_BLANK = re.compile(r"[^\w.-]+")


class _Place(NamedTuple):
    """Where an item is."""

    shard: int
    offset: int
    size: int


@dataclass
class _Item(Contents):
    """An item of the cache, the number of its shard, and the cache's fingerprint."""

    shard: int = 0
    fingerprint: str = ""


# Reading


@contextmanager
def _open(path: Path) -> Iterator[Contents]:
    if path.stat().st_size > _MAX_DATABASE:
        msg = f"a database of more than {_MAX_DATABASE} bytes is not read"
        raise ValueError(msg)
    try:
        with closing(sqlite3.connect(":memory:")) as database:
            # This writes nothing, and leaves no lock beside a cache that a trainer may be using.
            database.deserialize(path.read_bytes())
            steps = iter(range(_MAX_STEPS // 1024))
            database.set_progress_handler(lambda: next(steps, None) is None, 1024)
            database.execute("PRAGMA trusted_schema = OFF")
            fingerprint, places = _places(database)
    except sqlite3.Error as e:
        msg = f"no database of a cache: {e}"
        raise OSError(msg) from e
    items: Lazily[_Place, Contents] = Lazily(
        places, lambda number, place: _item(path, number, place, fingerprint)
    )
    yield Contents(path, (), _no_array, items=items)


def _no_array(name: str) -> Stored:
    raise KeyError(name)  # a database has no names of arrays


def _places(database: sqlite3.Connection) -> tuple[str, list[_Place]]:
    """The fingerprint, and where the items are; ValueError if this is no cache."""
    tables = {
        str(name)
        for name, sql in database.execute("SELECT name, sql FROM sqlite_master WHERE type='table'")
        if str(sql).upper().startswith("CREATE TABLE")
    }
    if not {"fingerprint", "items"} <= tables:
        msg = "no cache of diffusion-pipe: it lacks the tables fingerprint and items"
        raise ValueError(msg)
    (fingerprint,) = database.execute("SELECT value FROM fingerprint").fetchone() or ("",)
    if not isinstance(fingerprint, str) or not FINGERPRINT.fullmatch(fingerprint):
        msg = "its fingerprint is not a short text"
        raise ValueError(msg)
    rows = {
        int(match[1]): _integers(database, match[0], "offset", "size")
        for match in map(_SHARD.fullmatch, tables)
        if match
    }
    found: list[_Place] = []
    counts = dict.fromkeys(rows, 0)
    for shard, index in _integers(database, "items", "shard", "shard_index"):
        # The tool appends items to the last shard.  Only such a cache can be written again.
        if index != counts.get(shard) or index >= len(rows[shard]):
            msg = f"item {len(found)} is not where diffusion-pipe would have put it"
            raise ValueError(msg)
        counts[shard] += 1
        place = _Place(shard, *rows[shard][index])
        if min(place) < 0:
            msg = f"item {len(found)} has no place in its shard"
            raise ValueError(msg)
        found.append(place)
    if not found:
        msg = "no items in it"
        raise ValueError(msg)
    return fingerprint, found


def _integers(database: sqlite3.Connection, table: str, *columns: str) -> list[tuple[int, int]]:
    """Two columns of a table; -1 stands for other values than integers, however large they are."""
    values = ", ".join(f"iif(typeof({name}) = 'integer', {name}, -1)" for name in columns)
    return database.execute(f'SELECT {values} FROM "{table}"').fetchmany(MAX_PARTS)


def _item(path: Path, number: int, place: _Place, fingerprint: str) -> _Item:
    """The arrays of an item."""
    shard = path.with_name(f"shard_{place.shard}.bin")
    with shard.open("rb") as file:
        # This is checked before anything is allocated.
        if place.offset + place.size > file.seek(0, io.SEEK_END):
            msg = f"{shard} ends before item {number}"
            raise OSError(msg)
        file.seek(place.offset)
        data = file.read(place.size)
    found = torch_files.contents(path, torch_files.load(io.BytesIO(data)))
    return _Item(**vars(found), shard=place.shard, fingerprint=fingerprint)


def _read(item: Contents) -> list[LatentFile]:
    assert isinstance(item, _Item)
    if LATENTS not in item.names:
        msg = "an item has no latents"
        raise ValueError(msg)
    latents, dtype = item.take(LATENTS)
    names, stacked = [LATENTS], [latents]
    for name in COMPANIONS:
        if name in item.names:
            other = item.load(name)
            if (other.array.shape, other.dtype) == (latents.shape, dtype):
                item.known.add(name)
                names.append(name)
                stacked.append(other.array)
    mask = _mask(item, latents.shape)
    several = len(names) > 1 or latents.ndim == 4  # (C, T, h, w)
    origin = Origin(
        DIFFUSION_PIPE.name,
        item.path.suffix.lower(),
        dtype,
        shape=latents.shape,
        metadata=item.metadata,
        dtypes={} if mask is None else {"alpha_mask": mask.dtype},
        stacked=tuple(names) if len(names) > 1 else (),
        shard=item.shard,
        fingerprint=item.fingerprint,
        others=tensors.small_others(item),
    )
    found = np.stack(stacked) if several else latents
    return [LatentFile(found, origin, None if mask is None else mask.array, name=_name(item))]


def _mask(item: Contents, latents: tuple[int, ...]) -> Stored | None:
    """The mask, if it has the picture's size and 256 levels.  Other masks are kept as arrays."""
    if MASK not in item.names:
        return None
    mask = item.load(MASK)
    sides = [divmod(m, side) for m, side in zip(mask.array.shape, latents[-2:], strict=False)]
    if mask.array.ndim != 2 or sides[0] != sides[1] or sides[0][1] or mask.dtype in NARROW:
        return None
    with np.errstate(invalid="ignore"):
        levels = np.rint(mask.array.astype(np.float32) * 255).clip(0, 255)
    again = (levels / np.float32(255)).astype(mask.array.dtype)
    if again.tobytes() != mask.array.tobytes():
        return None
    item.known.add(MASK)
    return mask


def _name(item: Contents) -> str:
    """The picture's name, for people."""
    spec = torch_files.values({"spec": item.metadata.get(SPEC, "None")})["spec"]
    path = spec[-1] if isinstance(spec, (list, tuple)) and spec else spec
    return _BLANK.sub("_", Path(path).stem)[:64] if isinstance(path, str) else ""


def _said(contents: Contents) -> str | None:
    """The family of the model whose name the folder has."""
    parts = contents.path.absolute().parts
    if parts[-2] != LATENTS or len(parts) < 4 or not parts[-3].startswith("cache_"):
        return None
    return FAMILIES.get(parts[-4], parts[-4])


# Writing


def _write(file: OpenFile, name: str, parts: Iterable[LatentFile]) -> None:
    """Write the shards one after another, and then the database."""
    rows: dict[int, list[tuple[int, int]]] = {}
    items: list[tuple[int, int]] = []
    fingerprint = None
    for shard, some in _by_shard(parts):
        if shard in rows:
            msg = f"the items of shard {shard} are not one after another"
            raise ValueError(msg)
        rows[shard] = []
        with file(f"shard_{shard}.bin") as written:
            for part in some:
                fingerprint = part.origin.fingerprint
                data = _saved(part)
                rows[shard].append((written.tell(), len(data)))
                written.write(data)
        items += [(shard, index) for index in range(len(rows[shard]))]
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE fingerprint(value)")
        database.execute("INSERT INTO fingerprint VALUES(?)", (fingerprint,))
        database.execute("CREATE TABLE items(shard, shard_index)")
        database.executemany("INSERT INTO items VALUES(?, ?)", items)
        for shard, places in rows.items():
            database.execute(f"CREATE TABLE shard_{shard}(offset, size)")
            database.executemany(f"INSERT INTO shard_{shard} VALUES (?, ?)", places)
        database.commit()
        with file(name) as written:
            written.write(database.serialize())


def _by_shard(parts: Iterable[LatentFile]) -> Iterator[tuple[int, Iterator[LatentFile]]]:
    """The parts of each shard, with its number."""
    waiting = iter(parts)
    part = next(waiting, None)

    def of(shard: int) -> Iterator[LatentFile]:
        nonlocal part
        while part is not None and part.origin.shard == shard:
            yield part
            part = next(waiting, None)

    while part is not None:
        yield part.origin.shard, of(part.origin.shard)


def _saved(part: LatentFile) -> bytes:
    """An item as torch saves it."""
    import torch

    found = {name: torch_files.tensor(stored) for name, stored in _arrays([part]).items()}
    buffer = io.BytesIO()
    torch.save({**found, **torch_files.values(part.origin.metadata)}, buffer)
    return buffer.getvalue()


def _arrays(parts: Sequence[LatentFile]) -> Mapping[str, Stored]:
    (part,) = parts
    origin = part.origin
    if origin.shape is None:
        msg = "only what was a cache of diffusion-pipe is written as one"
        raise ValueError(msg)
    names = origin.stacked or (origin.key,)
    latents = part.latents.reshape(len(names), *origin.shape)
    arrays: dict[str, Stored] = {
        name: Stored(one, origin.dtype) for name, one in zip(names, latents, strict=True)
    }
    if part.alpha_mask is not None:
        dtype = origin.dtypes.get("alpha_mask", "float16")
        arrays[MASK] = Stored(as_numpy(Stored(part.alpha_mask, dtype)), dtype)
    return arrays | tensors.others_of(origin)


def is_cache(path: PurePath) -> bool:
    """Whether a database of this name may belong to a cache of latents."""
    return path.name == "metadata.db" and "text_embeddings_" not in path.parent.name


DATABASE = Format(
    _open,
    has_metadata=True,
    usual_layout="diffusion-pipe",
    write_several=_write,
)
DIFFUSION_PIPE = Layout(
    "diffusion-pipe",
    (".db",),
    claims=lambda contents: True,
    read=_read,
    arrays=_arrays,
    unit=lambda space, origin: None,
    said=_said,
    has_parts=True,
    keeps=frozenset(("alpha_mask",)),
)
