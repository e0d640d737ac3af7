"""Files of safetensors: `.safetensors`, and ComfyUI's `.latent`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from . import torch_files
from .contracts import Contents, Format, Stored
from .numpy_files import as_numpy
from .origin import NARROW

# What the file format calls the types that arrays may have.
_TYPES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "BOOL": "bool",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
}


@contextmanager
def _open(path: Path) -> Iterator[Contents]:
    from safetensors import SafetensorError, safe_open

    # The library checks that the sizes in the header are those of the file, so nothing inflates.
    try:
        with safe_open(path, "numpy") as file:

            def load(name: str) -> Stored:
                dtype = file.get_slice(name).get_dtype()
                if dtype not in _TYPES:
                    msg = f"a tensor of {dtype} cannot be read"
                    raise ValueError(msg)
                if _TYPES[dtype] not in NARROW:
                    return Stored(file.get_tensor(name), _TYPES[dtype])
                with safe_open(path, "pt") as with_torch:
                    tensor = with_torch.get_tensor(name)
                    return Stored(tensor.float().numpy(), _TYPES[dtype])

            yield Contents(path, tuple(file.keys()), load, file.metadata() or {})
    except SafetensorError as e:
        msg = f"damaged safetensors file: {e}"
        raise OSError(msg) from e


def _write(file: IO[bytes], arrays: Mapping[str, Stored], metadata: Mapping[str, str]) -> None:
    if not any(stored.dtype in NARROW for stored in arrays.values()):
        from safetensors.numpy import save

        contiguous = {name: np.asarray(as_numpy(one), order="C") for name, one in arrays.items()}
        file.write(save(contiguous, dict(metadata) or None))
        return
    from safetensors.torch import save as save_torch

    tensors = {name: torch_files.tensor(one).contiguous() for name, one in arrays.items()}
    file.write(save_torch(tensors, dict(metadata) or None))


SAFETENSORS = Format(_open, _write, has_metadata=True)
#: A file of safetensors by another name.
LATENT = Format(_open, _write, has_metadata=True, usual_layout="comfyui")
