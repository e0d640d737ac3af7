"""Runs networks in torch, whatever settings of torch the caller has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run networks without the caller's default device and autocast.

    The caller's default dtype stays, because all threads share it.  So code that runs in here names
    the dtype of each tensor that it makes.  The precision of products stays for the same reason:
    with "medium", pixels differ by a level.  If memory runs out, this is an OSError.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        try:
            yield
        except RuntimeError as e:
            if not is_out_of_memory(e):
                raise
            msg = f"the model needs more memory than there is: {e}"
            raise OSError(msg) from e


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch means with this error that memory ran out."""
    # MPS and the CPU have no type of their own for it.
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(
        text in str(error)
        for text in ("out of memory", "can't allocate memory", "not enough memory")
    )


Module = TypeVar("Module", bound=nn.Module)


def built(network: Callable[[], Module], tensors: Mapping[str, Tensor]) -> Module:
    """The network with these weights, `frozen`.

    Its first, random weights are never made.  They would have the caller's default dtype, and would
    use up the caller's random numbers.
    """
    with torch.device("meta"):
        module = network()
    module.load_state_dict(tensors, assign=True)
    return frozen(module)


def frozen(module: Module) -> Module:
    """The module in float32, for inference."""
    module.float().eval().requires_grad_(False)
    # Measured: docs/measurements.md#running.
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module
