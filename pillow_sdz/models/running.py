"""Runs the embedded networks in the right number format, whatever the caller has set in torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from .. import forks, options


def cnn_dtype() -> torch.dtype:
    """The number format of the CNNs beside the linear paths.

    It is bfloat16 if the CPU multiplies such matrices (AMX).  Otherwise bfloat16 is slower than
    float32.  Measured: docs/speed.md#bfloat16-and-the-pixels.
    """
    # Older versions of torch do not know what the CPU has.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    best = "bfloat16" if capabilities.get("amx_bf16") else "float32"
    return torch.bfloat16 if (options.DTYPE or best) == "bfloat16" else torch.float32


@contextmanager
def undisturbed() -> Iterator[None]:
    """For networks: without the default device and autocast that the caller has set for its own.

    The caller's default dtype stays, since it is one for all threads: what runs in here names the
    dtype of each tensor that it makes.  Memory that runs out is an OSError.
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
    """Whether that is what torch says with this error."""
    # What MPS and the CPU raise has no type of its own.
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(
        text in str(error)
        for text in ("out of memory", "can't allocate memory", "not enough memory")
    )


_building = forks.Lock()

Owner = TypeVar("Owner")
Built = TypeVar("Built")


def built_once(build: Callable[[Owner], Built]) -> property:
    """A property that is built once, when a thread first asks for it."""
    name = f"built{build.__name__}"

    def get(owner: Owner) -> Built:
        with _building:
            if name not in owner.__dict__:
                owner.__dict__[name] = build(owner)
            built: Built = owner.__dict__[name]
            return built

    return property(get)


Module = TypeVar("Module", bound=nn.Module)


class Computing(Generic[Module]):
    """An encoder or decoder in float32, and a copy of it whose CNN computes in bfloat16."""

    def __init__(self, network: Module) -> None:
        self.in_float32: Module = frozen(network)

    def __call__(self) -> Module:
        """The one whose CNN is in `cnn_dtype`.  In both, linear path and sum are in float32."""
        return self.in_float32 if cnn_dtype() == torch.float32 else self._in_bfloat16

    @built_once
    @torch.inference_mode(False)
    @undisturbed()
    def _in_bfloat16(self) -> Module:
        other: Module = copy.deepcopy(self.in_float32)
        for name, part in other.named_children():
            if name != "linear":
                part.to(torch.bfloat16)
        return other


def built(network: Callable[[], Module], tensors: Mapping[str, Tensor]) -> Module:
    """The network with these weights, `frozen`.

    Its own first weights are never made: they would be of the caller's default dtype, and random,
    of the caller's random numbers.
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
