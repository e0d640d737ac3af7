"""Build ONNX graphs: networks without their weights, in float32 or with their CNN in int8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pillow_sdz.models.mini import borders

OPSET, IR_VERSION = 21, 10  # of ONNX; ONNX Runtime has read them since 1.18
TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # move the channels of (1, C, h, w), and back
END = 1 << 31  # as the end of a slice: larger than any picture

MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators
Tensors = Mapping[str, NDArray[Any]]
#: The order of a layer's outputs; None is that of its weights.
Order = NDArray[np.int64] | None


class Graph:
    """A graph that is being built.  Methods add nodes, and return the name of their result."""

    def __init__(
        self, tensors: Tensors, *, int8: bool, watched: bool = False, precise: bool = False
    ) -> None:
        #: Whether some numbers have 8 bits.
        self.int8 = int8
        self._precise = precise
        self.tensors, self._watched = tensors, watched
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._rounded: dict[str, str] = {}  # activations that are in 8 bits already
        #: What is between the two convolutions of each block, after the ReLU, with the channels
        #: first, or last in 8 bits.
        self.hidden: dict[str, str] = {}
        self.outputs: list[onnx.ValueInfoProto] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, [*inputs], [name], name, **attributes))
        return name

    def constant(self, values: Any, dtype: type) -> str:
        tensor = numpy_helper.from_array(np.array(values, dtype), f"c{len(self._initializers)}")
        self._initializers[tensor.name] = tensor
        return str(tensor.name)

    def weight(self, name: str, shape: tuple[int, ...], dtype: int = TensorProto.FLOAT) -> str:
        """A tensor whose values are filled in later."""
        tensor = TensorProto(name=name, data_type=dtype, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights")
        self._initializers[name] = tensor
        return name

    def dims(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.tensors[name].shape

    def conv_to(self, x: str, name: str, outputs: str, *, pad: int) -> str:
        """A convolution without a bias, to those output channels that ``outputs`` names."""
        weight = self.weight(f"{name}.weight", self.dims(f"{name}.weight"))
        return self.op("Conv", x, self.op("Gather", weight, outputs, axis=0), pads=[pad] * 4)

    def conv_of(self, x: str, channels: str, name: str, *, trimmed: int) -> str:
        """A convolution of those input channels that ``x`` has; the others are 0.

        The margins of ``x`` are ``trimmed`` first.
        """
        x = self.trim(x, "sides", trimmed)
        dims = self.dims(f"{name}.weight")
        weight = self.op("Gather", self.weight(f"{name}.weight", dims), channels, axis=1)
        given = [x, weight]
        if f"{name}.bias" in self.tensors:
            given.append(self.weight(f"{name}.bias", dims[:1]))
        return self.op("Conv", *given, pads=[1] * 4)

    def ordered(self, weight: str, order: Order, axis: int) -> str:
        """A weight whose values along an axis are in another order."""
        if order is None:
            return weight
        return self.op("Gather", weight, self.constant(order, np.int64), axis=axis)

    def conv(
        self, x: str, name: str, *, relu: bool = False, exact: bool = False, **keys: Any
    ) -> str:
        """A convolution.  In an int8 graph it has 8 bits, unless it is ``exact``."""
        dims = self.tensors[f"{name}.weight"].shape
        keys = {"pads": [keys.pop("pad", dims[2] // 2)] * 4, **keys}
        biased = f"{name}.bias" in self.tensors
        if not self.int8 or exact:
            given = [self.weight(f"{name}.weight", dims)]
            if biased:
                given.append(self.weight(f"{name}.bias", dims[:1]))
            y = self.op("Conv", x, *given, **keys)
            y = self.op("Relu", y) if relu else y
            if self._watched and not exact and not self._is_limited(name):
                self._watch(f"{name}.input", x)
                self._watch(f"{name}.output", y)
            return y
        x = self._rounded[x] if x in self._rounded else self._in_8_bits(x, f"{name}.input")
        given = []
        for part, size, dtype in (
            ("weight", dims, TensorProto.INT8),
            ("bias", dims[:1], TensorProto.INT32),
        ):
            scale = self.weight(f"{name}.{part}_scale", dims[:1])
            stored = self.weight(f"{name}.{part}", size, dtype)
            given.append(self.op("DequantizeLinear", stored, scale, axis=0))
        y = self.op("Conv", x, *given, **keys)
        y = self._in_8_bits(self.op("Relu", y) if relu else y, f"{name}.output")
        self._rounded[y] = y
        return y

    def _in_8_bits(self, x: str, name: str) -> str:
        scale, zero = self._range(name)
        rounded = self.op("QuantizeLinear", x, scale, zero)
        return self.op("DequantizeLinear", rounded, scale, zero)

    def _watch(self, name: str, x: str) -> None:
        for kind, which in (("ReduceMin", "least"), ("ReduceMax", "most")):
            y = self.op(kind, x, keepdims=0)
            self.output(y, f"{name}_{which}", TensorProto.FLOAT, ())

    def output(self, x: str, name: str, dtype: int, axes: tuple[str | int, ...]) -> None:
        """Make x an output of the graph, beside its result."""
        self._nodes.append(helper.make_node("Identity", [x], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, dtype, axes))

    def block(self, x: str, name: str) -> str:
        """x + conv(relu(conv(x))).  All is in float32.

        If the tensors have limits, it is `pillow_sdz.models.mini.network.LimitedBlock`.
        """
        if f"{name}.limits" not in self.tensors:
            y = self.conv(x, f"{name}.first", relu=True, exact=self.int8)
            return self.op("Add", x, self.conv(y, f"{name}.second", exact=self.int8))
        limits = self.weight(f"{name}.limits", (3,))
        zero = self.constant(0, np.float32)
        of_input, of_hidden, of_output = (
            self.op("Gather", limits, self.constant(i, np.int64)) for i in range(3)
        )
        y = self.op("Clip", x, self.op("Neg", of_input), of_input)
        y = self.op("Clip", self.conv(y, f"{name}.first", exact=self.int8), zero, of_hidden)
        self.hidden[name] = y
        y = self.conv(y, f"{name}.second", exact=self.int8)
        return self.op("Add", x, self.op("Clip", y, self.op("Neg", of_output), of_output))

    def _is_limited(self, layer: str) -> bool:
        """Whether a convolution is in a block with limits, which are its ranges."""
        return f"{layer.rpartition('.')[0]}.limits" in self.tensors

    def _block_in_8_bits(self, x: str, name: str) -> str:
        """As `block`, of x (1, h, w, C).  The limits are the ranges of the integers."""
        of_input = self._range(f"{name}.first.input")
        y = self.op("QuantizeLinear", x, *of_input)
        for part in ("first", "second"):
            layer = f"{name}.{part}"
            dims = self.dims(f"{layer}.weight")
            weight = self.weight(f"{layer}.weight", dims, TensorProto.INT8)
            scale = self.weight(f"{layer}.weight_scale", dims[:1])
            zero = self.constant(np.zeros(dims[0]), np.int8)
            bias = self.weight(f"{layer}.bias", dims[:1], TensorProto.INT32)
            of_output = self._range(f"{layer}.output")  # from 0 on, so it has the ReLU in it
            given = [y, *of_input, weight, scale, zero, *of_output, bias]
            keys = {"domain": MICROSOFT, "channels_last": 1, "pads": [1] * 4}
            y = self.op("QLinearConv", *given, **keys)
            self.hidden.setdefault(name, y)
            of_input = of_output
        return self.op("Add", x, self.op("DequantizeLinear", y, *of_input))

    def _range(self, name: str) -> tuple[str, str]:
        """The scale and the zero of integers of 8 bits."""
        scale = self.weight(f"{name}_scale", ())
        return scale, self.weight(f"{name}_zero", (), TensorProto.UINT8)

    def blocks(
        self, x: str, name: str, depth: int, *, last: bool = False, channels_last: bool = False
    ) -> str:
        """Blocks one after another.  The ``last`` stage of a precise graph is in float32.

        x is (1, C, h, w), or with ``channels_last`` (1, h, w, C), and so is the result.
        """
        # Convolutions in 8 bits have the channels last.  To move them for each sum takes time.
        in_8_bits = self.int8 and not (last and self._precise)
        if in_8_bits != channels_last:
            x = self.op("Transpose", x, perm=TO_LAST if in_8_bits else TO_FIRST)
        for number in range(depth):
            block = self._block_in_8_bits if in_8_bits else self.block
            x = block(x, f"{name}.{number}")
        if in_8_bits != channels_last:
            x = self.op("Transpose", x, perm=TO_FIRST if in_8_bits else TO_LAST)
        return x

    def shuffle(self, x: str, by: int) -> str:
        """The same as torch's pixel_shuffle."""
        return self.op("DepthToSpace", x, blocksize=by, mode="CRD")

    def unshuffle(self, x: str, by: int, channels: int = 3) -> str:
        """The same as torch's pixel_unshuffle."""
        y = self.op("SpaceToDepth", x, blocksize=by)
        order = np.arange(channels * by * by).reshape(by * by, channels).T.ravel()
        return self.op("Gather", y, self.constant(order, np.int64), axis=1)

    def trim(self, x: str, sides: str, by: int, axes: tuple[int, int] = (2, 3)) -> str:
        """Cut off the outermost ``by`` places on each side whose number in ``sides`` (4,) is 1."""
        if not by:
            return x
        first = self.op("Gather", sides, self.constant([0, 2], np.int64))
        last = self.op("Gather", sides, self.constant([1, 3], np.int64))
        start = self.op("Mul", first, self.constant([by], np.int64))
        length = self.op("Mul", last, self.constant([END + by], np.int64))
        stop = self.op("Sub", self.constant([END], np.int64), length)  # END, or -by
        return self.op("Slice", x, start, stop, self.constant(axes, np.int64))

    def beyond(self, x: str) -> str:
        """The same as `mini.network.beyond`, on all four sides."""
        half = borders.HALF
        mirrored = borders.mirrored()[::-1]  # from the first row to the border
        for axis in (2, 3):
            dims = (half, 1) if axis == 2 else (half,)
            first, last = (
                self.op(
                    "Slice",
                    x,
                    *(self.constant([v], np.int64) for v in (start, stop, axis, -1)),
                )
                for start, stop in ((half - 1, -END), (-1, -half - 1))
            )
            first = self.op("Mul", first, self.constant(mirrored.reshape(dims), np.float32))
            last = self.op("Mul", last, self.constant(-mirrored[::-1].reshape(dims), np.float32))
            x = self.op("Concat", first, x, last, axis=axis)
        return x

    def borders(self, x: str, scale: int) -> str:
        """The same as `mini.network.borders`, for a picture at 1/scale of its size."""
        first = borders.inside(scale)
        factors = []
        for axis in (2, 3):
            length = self.op("Shape", x, start=axis, end=axis + 1)
            length = self.op("Sub", length, self.constant([2 * len(first)], np.int64))
            factors.append(self.along(first, length))
        rows = self.op("Unsqueeze", factors[0], self.constant([1], np.int64))
        return self.op("Mul", x, self.op("Mul", rows, factors[1]))

    def along(self, first: NDArray[np.float32], length: str) -> str:
        """Factors from one border to the other, with ``length`` ones between the ends."""
        one = numpy_helper.from_array(np.ones(1, np.float32))
        middle = self.op("ConstantOfShape", length, value=one)
        top, bottom = (self.constant(values, np.float32) for values in (first, first[::-1]))
        return self.op("Concat", top, middle, bottom, axis=0)

    def crop(self, x: str, by: int) -> str:
        """Cut off the outermost ``by`` places on all sides."""
        places = ([by, by], [-by, -by], [2, 3])
        return self.op("Slice", x, *(self.constant(p, np.int64) for p in places))

    def from_pixels(self, x: str, scale: float, shift: float) -> str:
        """Turn levels (H, W, 3) into (1, 3, H, W), divided by ``scale`` and shifted."""
        y = self.op("Cast", self._first(x), to=TensorProto.FLOAT)
        y = self.op("Div", y, self.constant(scale, np.float32))
        return self.op("Sub", y, self.constant(shift, np.float32))

    def to_pixels(self, y: str, scale: float, shift: float) -> str:
        """Shift and multiply (1, 3, H, W), and turn it into levels (H, W, 3) in 0..255."""
        y = self.op("Add", y, self.constant(shift, np.float32))
        y = self.op("Mul", y, self.constant(scale, np.float32))
        limits = (self.constant(v, np.float32) for v in (0, 255))
        y = self.op("Cast", self.op("Clip", self.op("Round", y), *limits), to=TensorProto.UINT8)
        return self.last(y)

    def _first(self, x: str) -> str:
        x = self.op("Transpose", x, perm=[2, 0, 1])
        return self.op("Unsqueeze", x, self.constant([0], np.int64))

    first = _first

    def last(self, y: str) -> str:
        """Turn (1, C, h, w) into (h, w, C)."""
        y = self.op("Squeeze", y, self.constant([0], np.int64))
        return self.op("Transpose", y, perm=[1, 2, 0])

    def finish(
        self,
        result: str,
        inputs: Mapping[str, tuple[int, tuple[Any, ...]]],
        dtype: int,
        axes: tuple[str, ...] = ("h", "w", "c"),
    ) -> bytes:
        """The graph's file.  Its outputs are ``result``, with these axes, and `outputs`."""
        self._nodes.append(helper.make_node("Identity", [result], ["result"]))
        graph = helper.make_graph(
            self._nodes,
            "network",
            [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
            [helper.make_tensor_value_info("result", dtype, axes), *self.outputs],
            [*self._initializers.values()],
        )
        opset = [helper.make_opsetid("", OPSET)]
        if any(node.domain == MICROSOFT for node in self._nodes):
            opset.append(helper.make_opsetid(MICROSOFT, 1))
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
        return bytes(model.SerializeToString(deterministic=True))
