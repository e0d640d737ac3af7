"""Runs the embedded networks on ONNX Runtime: arrays in, an array out; without torch.

`training.graphs` makes the graphs.  Their weights are the model's, in float32, or in int8 with one
scale for each output channel.  The ranges of 8-bit activations are in `weights.RANGES`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from .. import forks, options, weights
from ..arrays import Singles

Tensors = Mapping[str, NDArray[Any]]

LARGEST_INT8 = 127
# `digits` splits numbers in two: a high digit is worth this many of a low one.
DIGIT = 128
# Weights for the channels from this one on have the high digit alone.  Measured on one photo: the
# linear path is off by 0.06 (quality 30) to 0.09 grey levels (90).
PRECISE_CHANNELS = 64

_building = forks.Lock()
# The memory arena of a session has a lock.  Without this gate, 8 of 120 forked children waited for
# the lock for ever.  Without the arena, encoding takes 5 to 13 % more time, and fragmented memory
# 40 to 110 % more.
_running = forks.Gate()

Owner = TypeVar("Owner")
Built = TypeVar("Built")


@contextmanager
def _ort() -> Iterator[None]:
    """Let ONNX Runtime work.  OSError if memory runs out."""
    try:
        with _running:
            yield
    except Exception as e:  # ONNX Runtime has several types, and none is documented
        if isinstance(e, MemoryError) or "alloc" not in str(e):
            raise
        msg = f"the model needs more memory than there is: {e}"
        raise OSError(msg) from e


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


def int8() -> bool:
    """Whether the embedded networks compute in int8: they do, unless `options.DTYPE` forbids it."""
    return options.DTYPE in (None, "int8")


class Network:
    """A network of the package.

    ``graph`` is the name of its graph, and ``tensors`` are its weights, in any float type.  It
    computes in int8 if it has a graph for that, and if `int8` says so.  It may also have a graph
    that is more precise than that in int8.
    """

    def __init__(self, graph: str, tensors: Tensors) -> None:
        self._graph, self._tensors = graph, tensors

    def __call__(self, *, precise: bool = False, **inputs: NDArray[Any]) -> NDArray[Any]:
        """The result (h, w, C) for these inputs, by the ``precise`` graph if there is one.

        OSError if memory runs out.
        """
        (result,) = self.several("result", precise=precise, **inputs)
        return result

    def several(
        self, *outputs: str, precise: bool = False, **inputs: NDArray[Any]
    ) -> list[NDArray[Any]]:
        """As a call, with these outputs of the graph."""
        session = self._session(precise)
        with _ort():
            found: list[NDArray[Any]] = session.run([*outputs], inputs)
        return found

    def _session(self, precise: bool) -> Any:
        if not int8():
            return self._session_float32
        if precise and f"{self._graph}_precise" in weights.GRAPHS:
            return self._session_precise
        if f"{self._graph}_int8" in weights.GRAPHS:
            return self._session_int8
        return self._session_float32

    @built_once
    def _session_float32(self) -> Any:
        return session(weights.graph(self._graph).checked().read_bytes(), self._tensors)

    @built_once
    def _session_int8(self) -> Any:
        return self._quantised("int8")

    @built_once
    def _session_precise(self) -> Any:
        return self._quantised("precise")

    def _quantised(self, kind: str) -> Any:
        graph = weights.graph(f"{self._graph}_{kind}").checked().read_bytes()
        ranges = _ranges(self._graph) | ranges_of_limits(self._tensors)
        return session(graph, quantised(graph, self._tensors, ranges))


def is_loaded() -> bool:
    """Whether ONNX Runtime is imported, which takes 0.1 s."""
    return "onnxruntime" in sys.modules


_product = Network("product", {})


def product(rows: Singles, columns: Singles) -> Singles:
    """The product of two matrices: a `codings.dense.Product`.

    It takes half of numpy's time if OpenBLAS does not know the CPU
    (docs/speed.md#where-the-time-goes).
    """
    return _product(rows=rows, columns=columns)


def session(graph: bytes, tensors: Tensors) -> Any:
    """The graph with these tensors, loaded.  It runs on the thread that calls it, and no other."""
    import onnxruntime  # here, because this takes 0.1 s, and a picture at 1/8 does not need it

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 3  # errors
    # Pictures have all sizes, so a memory plan for one picture does not help with the next.
    settings.enable_mem_pattern = False
    names, values = [], []
    for name, tensor in tensors.items():
        if not _names(graph, name):
            continue  # ONNX Runtime refuses tensors that the graph lacks
        wide = tensor.astype(np.float32) if tensor.dtype == np.float16 else tensor
        names.append(name)
        values.append(onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(wide, order="C")))
    settings.add_external_initializers(names, values)
    with _ort():
        return onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])


def _names(graph: bytes, tensor: str) -> bool:
    """Whether a graph has a tensor of this name: field 8 of a TensorProto, a string."""
    return b"\x42" + bytes([len(tensor)]) + tensor.encode() in graph


def _ranges(graph: str) -> dict[str, NDArray[Any]]:
    found = load_file(weights.RANGES.checked())
    return {
        name.removeprefix(f"{graph}/"): values
        for name, values in found.items()
        if name.startswith(f"{graph}/")
    }


def ranges_of_limits(tensors: Tensors) -> dict[str, NDArray[Any]]:
    """The ranges of blocks that limit their numbers (`mini.network.LimitedBlock`)."""
    found: dict[str, NDArray[Any]] = {}
    for name, limits in tensors.items():
        block, _, part = name.rpartition(".")
        if part != "limits":
            continue
        of_input, of_hidden, of_output = limits.astype(np.float32)
        signed, positive = (np.float32(LARGEST_INT8), 128), (np.float32(255), 0)
        for key, limit, (steps, zero) in (
            ("first.input", of_input, signed),
            ("first.output", of_hidden, positive),
            ("second.input", of_hidden, positive),
            ("second.output", of_output, signed),
        ):
            found[f"{block}.{key}_scale"] = np.array(limit / steps)
            found[f"{block}.{key}_zero"] = np.array(zero, np.uint8)
    return found


def scale_of_weights(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """What 1 of the integers is worth for the weights (outputs, C, k, k) of each output channel.

    CPUs without VNNI multiply two neighbouring inputs, and add the two products in 16 bits.  With
    inputs up to 255, the sum of two weights of the same sign may be 128 at most.  Rounding adds up
    to 1 to the sum.
    """
    even, odd = weights[:, ::2], weights[:, 1::2]
    largest = np.maximum(
        (np.maximum(even, 0) + np.maximum(odd, 0)).max((1, 2, 3)),
        -(np.minimum(even, 0) + np.minimum(odd, 0)).min((1, 2, 3)),
    )
    scale: NDArray[np.float32] = np.maximum(largest / LARGEST_INT8, np.float32(1e-12))
    return scale


def quantised(graph: bytes, tensors: Tensors, ranges: Tensors) -> dict[str, NDArray[Any]]:
    """The tensors of a graph in int8: `ranges` names its convolutions' inputs and outputs."""
    found = {**ranges, **digits(graph, tensors)}
    for name, values in tensors.items():
        layer, _, part = name.rpartition(".")
        if not _names(graph, f"{layer}.weight_scale"):
            found[name] = values
        elif part == "weight":
            wide = values.astype(np.float32)
            scale = scale_of_weights(wide)
            found[f"{layer}.weight_scale"] = scale
            found[name] = np.rint(wide / scale[:, None, None, None]).astype(np.int8)
            if f"{layer}.bias" not in tensors:
                # A layer of an adjoint: the unit of its outputs follows that of its inputs.  The
                # outputs for inputs of one size, but of any sign, are larger by this factor.
                growth = np.sqrt(np.square(wide).sum((1, 2, 3)).max())
                found[f"{layer}.growth"] = np.array(growth, np.float32)
                continue
            of_bias = scale * ranges[f"{layer}.input_scale"]
            bias = tensors[f"{layer}.bias"].astype(np.float32)
            found[f"{layer}.bias_scale"] = of_bias.astype(np.float32)
            found[f"{layer}.bias"] = np.rint(bias / of_bias).astype(np.int32)
    return found


def digits(graph: bytes, tensors: Tensors) -> dict[str, NDArray[Any]]:
    """The weights (outputs, C, k, k) of a graph's layers whose inputs have two digits of 8 bits.

    ``NAME.high`` and ``NAME.low`` (k * k, C, outputs) are the digits of the layer NAME.  For each
    output, ``NAME.high_scale`` is what 1 of a high digit is worth.
    """
    found: dict[str, NDArray[Any]] = {}
    for name, values in tensors.items():
        layer, _, part = name.rpartition(".")
        if part != "weight" or not _names(graph, f"{layer}.high"):
            continue
        wide = values.astype(np.float32).transpose(2, 3, 1, 0)
        wide = wide.reshape(-1, *wide.shape[2:])
        scale = np.maximum(np.abs(wide).max((0, 1)) / (DIGIT * LARGEST_INT8), 1e-12)
        high = np.rint(wide / (DIGIT * scale))
        few = slice(PRECISE_CHANNELS)
        low = np.rint(wide[:, few] / scale - DIGIT * high[:, few])
        found[f"{layer}.high"], found[f"{layer}.low"] = high.astype(np.int8), low.astype(np.int8)
        found[f"{layer}.high_scale"] = DIGIT * scale
    return found
