"""How the embedded networks are run: in which arithmetic, undisturbed by the caller's torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from .. import forks, options


def cnn_dtype() -> torch.dtype:
    """What the CNNs beside the linear paths compute in.

    Where the CPU multiplies matrices of bfloat16 (AMX), that is three times as fast as float32,
    and elsewhere slower.  It changes a value in 20 of a decoded picture, by one grey level
    (docs/speed.md).
    """
    # Older versions of torch do not say what the CPU has.
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
    """A property that is built when it is first asked for, once, whatever threads ask for it."""
    name = f"built{build.__name__}"

    def get(owner: Owner) -> Built:
        with _building:
            if name not in owner.__dict__:
                owner.__dict__[name] = build(owner)
            built: Built = owner.__dict__[name]
            return built

    return property(get)


Network = TypeVar("Network", bound=nn.Module)


class Computing(Generic[Network]):
    """An encoder or decoder in float32, and a copy whose CNN computes in bfloat16."""

    def __init__(self, network: Network) -> None:
        self.in_float32: Network = frozen(network)

    def __call__(self) -> Network:
        """The one whose CNN is in `cnn_dtype`; linear path and sum are in float32 in both."""
        return self.in_float32 if cnn_dtype() == torch.float32 else self._in_bfloat16

    @built_once
    @torch.inference_mode(False)
    @undisturbed()
    def _in_bfloat16(self) -> Network:
        other: Network = copy.deepcopy(self.in_float32)
        for name, part in other.named_children():
            if name != "linear":
                part.to(torch.bfloat16)
        return other


Module = TypeVar("Module", bound=nn.Module)


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
    """The module in float32, for inference, laid out as convolutions are fastest: by an eighth."""
    module.float().eval().requires_grad_(False)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module
