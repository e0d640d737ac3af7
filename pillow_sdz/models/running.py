"""Runs the embedded networks in the right number format, whatever the caller has set in torch."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import nn

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
    def _in_bfloat16(self) -> Module:
        other: Module = copy.deepcopy(self.in_float32)
        for name, part in other.named_children():
            if name != "linear":
                part.to(torch.bfloat16)
        return other


def frozen(module: Module) -> Module:
    """The module in float32, for inference."""
    module.float().eval().requires_grad_(False)
    # Measured: docs/measurements.md#running.
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


Method = TypeVar("Method", bound=Callable[..., Any])


def undisturbed(method: Method) -> Method:
    """The method, on the CPU and without autocast, whatever the caller has set."""

    @functools.wraps(method)
    def calling(*args: Any, **keywords: Any) -> Any:
        with torch.device("cpu"), torch.autocast("cpu", enabled=False):
            return method(*args, **keywords)

    return calling  # type: ignore[return-value]
