"""Numpy's `.npy` and `.npz` files, read within limits whatever their bytes are."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from .contracts import Contents, Format, Stored
from .origin import Array, held_as

#: Bytes that the arrays of an archive may take.  They may take the size of the file if that is
#: more.  Chosen: the float32 latents of 4096x4096 pixels in 16 channels are 16 MiB, their alpha
#: mask 64 MiB.
MAX_INFLATED = 256 << 20


@contextmanager
def _open_npy(path: Path) -> Iterator[Contents]:
    with _errors(), path.open("rb") as file:
        yield Contents(path, ("latents",), lambda _: _stored(file, path.stat().st_size))


@contextmanager
def _open_npz(path: Path) -> Iterator[Contents]:
    with _errors(), zipfile.ZipFile(path) as archive:
        members = _members(archive, path.stat().st_size)

        def load(name: str) -> Stored:
            with archive.open(members[name]) as file:
                return _stored(file, members[name].file_size)

        yield Contents(path, members.keys(), load)


def _write_npy(file: IO[bytes], arrays: Mapping[str, Stored], metadata: Mapping[str, str]) -> None:
    (stored,) = arrays.values()
    np.save(file, as_numpy(stored), allow_pickle=False)


def _write_npz(file: IO[bytes], arrays: Mapping[str, Stored], metadata: Mapping[str, str]) -> None:
    """Write what `np.savez` writes, which refuses names such as its own parameter, ``file``."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, stored in arrays.items():
            with archive.open(name + ".npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, as_numpy(stored), allow_pickle=False)


def as_numpy(stored: Stored) -> Array:
    """The array in its type, or in float32 if numpy lacks it."""
    return stored.array.astype(held_as(stored.dtype), copy=False)


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The arrays of an archive by name; ValueError if they would inflate to too much."""
    members = archive.infolist()
    inflated = sum(member.file_size for member in members)
    if inflated > max(MAX_INFLATED, size):
        msg = f"its arrays would take {inflated} bytes, the limit is {MAX_INFLATED}"
        raise ValueError(msg)
    named = {member.filename.removesuffix(".npy"): member for member in members}
    if len(named) < len(members):
        msg = "two arrays have the same name"
        raise ValueError(msg)
    return named


def _stored(file: IO[bytes], size: int) -> Stored:
    """The array in an .npy stream of ``size`` bytes.  Nothing is allocated before it is checked."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in readers:
        msg = f"an .npy stream of version {version} cannot be read"
        raise ValueError(msg)
    shape, _, dtype = readers[version](file)
    count = 1
    for length in shape:
        count *= length
    if dtype.hasobject:
        msg = f"an array of {dtype} could run code when it is read"
        raise ValueError(msg)
    if min(shape, default=0) < 0 or file.tell() + count * dtype.itemsize != size:
        msg = f"an array of {dtype} and of the shape {shape} does not fill {size} bytes"
        raise ValueError(msg)
    file.seek(0)
    array: Array = np.lib.format.read_array(file, allow_pickle=False)
    array = array.astype(dtype.newbyteorder("="), copy=False)  # this machine's byte order
    return Stored(array, array.dtype.name)


@contextmanager
def _errors() -> Iterator[None]:
    """Turns whatever numpy and zipfile raise for hostile bytes into OSError or ValueError."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as e:
        kinds = (zipfile.BadZipFile, zlib.error, struct.error, EOFError)
        text = f"{e}" if isinstance(e, kinds) and str(e) else f"{type(e).__name__}: {e}"
        msg = f"damaged numpy file: {text}"
        raise OSError(msg) from e


NPY = Format(_open_npy, _write_npy)
NPZ = Format(_open_npz, _write_npz)
