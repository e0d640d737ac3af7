"""torch's `.pt` files of a dictionary, or of one tensor. No code that a pickle asks for is run.

A tensor alone has the name "".  Values that are no tensors, such as sizes, become metadata: the
text that Python prints for them.
"""

from __future__ import annotations

import ast
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from .contracts import Contents, Format, Stored
from .numpy_files import MAX_INFLATED, as_numpy
from .origin import NARROW, NUMBERS

ALONE = ""  # the name of a tensor that has none
_LONGEST = 65536  # characters of a value's text.  Chosen: paths and sizes have some hundreds.


@contextmanager
def _open(path: Path) -> Iterator[Contents]:
    yield contents(path, load(path))


def contents(path: Path, found: Any) -> Contents:
    """What torch has loaded from a file, or from a part of it; ValueError if it has no names.

    Values that are no tensors become metadata.
    """
    if hasattr(found, "detach"):
        found = {ALONE: found}
    elif not isinstance(found, dict) or not all(name and isinstance(name, str) for name in found):
        msg = (
            "a .pt file of latents must hold a tensor, or a dictionary of tensors by name: "
            "write it with torch.save({'latents': tensor}, FILE)"
        )
        raise ValueError(msg)
    arrays = {name: value for name, value in found.items() if hasattr(value, "detach")}
    values = {name: repr(value) for name, value in found.items() if name not in arrays}
    notes = [
        f"not kept: {name!r}, a {type(found[name]).__name__}"
        for name, text in values.items()
        if not _is_literal(text)
    ]
    kept = {name: text for name, text in values.items() if _is_literal(text)}
    return Contents(path, tuple(arrays), lambda name: stored(arrays[name]), kept, notes=notes)


def load(file: Path | IO[bytes]) -> Any:
    """What torch has saved, if it is tensors and plain values.

    OSError if the file is damaged, too large, or asks for anything else to be run.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            inflated = sum(member.file_size for member in archive.infolist())
            packed = sum(member.compress_size for member in archive.infolist())
        if inflated > max(MAX_INFLATED, packed):
            msg = f"its tensors would take {inflated} bytes, the limit is {MAX_INFLATED}"
            raise ValueError(msg)
        import torch

        if not isinstance(file, Path):
            file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as e:  # its text says how to run the pickle nevertheless
        msg = "no file of tensors alone: it is damaged, or has values of other classes"
        raise OSError(msg) from e
    except Exception as e:  # zipfile, pickle and torch raise many types
        msg = f"no file of tensors alone: {str(e).splitlines()[0] if str(e) else type(e).__name__}"
        raise OSError(msg) from e


def stored(tensor: Any) -> Stored:
    """A tensor as an array; ValueError for a type or a kind that numpy lacks."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in NARROW and dtype not in NUMBERS:
        msg = f"a tensor of {dtype} cannot be read"
        raise ValueError(msg)
    try:
        plain = tensor.float() if dtype in NARROW else tensor.contiguous()
        return Stored(plain.numpy(force=True), dtype)
    except (RuntimeError, TypeError) as e:  # such as sparse tensors
        msg = f"a tensor cannot be read: {e}"
        raise ValueError(msg) from e


def tensor(given: Stored) -> Any:
    """The inverse of `stored`."""
    import torch

    array = torch.from_numpy(np.array(as_numpy(given)))
    return array.to(getattr(torch, given.dtype)) if given.dtype in NARROW else array


def _is_literal(text: str) -> bool:
    if len(text) > _LONGEST:
        return False
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
    return True


def values(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The values that became metadata.  Texts that are not Python's are metadata of other tools."""
    return {
        name: ast.literal_eval(text) if _is_literal(text) else text
        for name, text in metadata.items()
    }


def _write(file: IO[bytes], arrays: Mapping[str, Stored], metadata: Mapping[str, str]) -> None:
    import torch

    tensors = {name: tensor(one) for name, one in arrays.items()}
    torch.save(tensors.get(ALONE, {**tensors, **values(metadata)}), file)


PT = Format(_open, _write, has_metadata=True)
