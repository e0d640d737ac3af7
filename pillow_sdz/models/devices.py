"""Where the networks of other libraries run, and in which numbers."""

from __future__ import annotations

import torch

from .. import options


def device() -> torch.device:
    """Where networks run, as `options.DEVICE` says; ValueError if torch cannot run there."""
    if options.DEVICE is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.empty(0, device=options.DEVICE).device
    except (AssertionError, ImportError, NotImplementedError, RuntimeError) as e:
        msg = f"options.DEVICE is {options.DEVICE!r}, but torch has no such device here: {e}"
        raise ValueError(msg) from e


def dtype(device: torch.device) -> torch.dtype:
    """The type of a network's numbers there, as `options.DTYPE` says."""
    best = "float16" if device.type in ("cuda", "mps") else "float32"
    asked = None if options.DTYPE == "int8" else options.DTYPE  # only embedded models have int8
    found: torch.dtype = getattr(torch, asked or best)
    return found
