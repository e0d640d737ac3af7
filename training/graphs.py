"""Make the ONNX graphs that the embedded networks run as, and the ranges of their 8-bit numbers.

    python -m training.graphs --photos DIR

A graph has no weights: their names and shapes stand in it, and `pillow_sdz.models.runtime` fills
them in from the safetensors files.  Every network has a graph in float32 and one with its CNN in
int8, `NAME.onnx` and `NAME_int8.onnx`.  The ranges of activations are those of eight training
photos; they go into `ranges.safetensors`.  Prints the sha256 of each file for
`pillow_sdz/weights.py`.

A new network costs a function that writes its layers down, and a row in `NETWORKS`.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import load_file, save_file

from evaluation.photos import photo_paths
from pillow_sdz import weights
from pillow_sdz.models import runtime
from pillow_sdz.models import sd_mini as sd_shape
from pillow_sdz.models.mini import Mini, rate_features, shape, tensors_of_decoders

OPSET, IR_VERSION = 21, 10  # of ONNX; ONNX Runtime has read them since 1.18
END = 1 << 31  # a slice's end beyond any picture
PHOTOS = 8  # for the ranges.  Chosen: more of them widen no range by more than a tenth.
RATES = (100, 3000, 6000, 10000)

Tensors = Mapping[str, NDArray[Any]]
Ends = Mapping[str, tuple[str, ...]]  # names of inputs and outputs


class Graph:
    """A graph under construction: each method adds nodes, and returns the name of their result."""

    def __init__(self, tensors: Tensors, *, int8: bool, watched: bool = False) -> None:
        self._tensors, self._int8, self._watched = tensors, int8, watched
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._rounded: dict[str, str] = {}  # activations in 8 bits, and the conv that they enter
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
        """A tensor that is filled in later."""
        tensor = TensorProto(name=name, data_type=dtype, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights")
        self._initializers[name] = tensor
        return name

    def conv(
        self, x: str, name: str, *, relu: bool = False, exact: bool = False, **keys: Any
    ) -> str:
        """A convolution, in 8 bits in a graph of int8, unless it has to be ``exact``."""
        dims = self._tensors[f"{name}.weight"].shape
        keys = {"pads": [keys.pop("pad", dims[2] // 2)] * 4, **keys}
        biased = f"{name}.bias" in self._tensors
        if not self._int8 or exact:
            given = [self.weight(f"{name}.weight", dims)]
            if biased:
                given.append(self.weight(f"{name}.bias", dims[:1]))
            y = self.op("Conv", x, *given, **keys)
            y = self.op("Relu", y) if relu else y
            if self._watched and not exact:
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
        scale, zero = self.weight(f"{name}_scale", ()), f"{name}_zero"
        self.weight(zero, (), TensorProto.UINT8)
        rounded = self.op("QuantizeLinear", x, scale, zero)
        return self.op("DequantizeLinear", rounded, scale, zero)

    def _watch(self, name: str, x: str) -> None:
        for kind, which in (("ReduceMin", "least"), ("ReduceMax", "most")):
            y = self.op(kind, x, keepdims=0)
            self._nodes.append(helper.make_node("Identity", [y], [f"{name}_{which}"]))
            value = helper.make_tensor_value_info(f"{name}_{which}", TensorProto.FLOAT, ())
            self.outputs.append(value)

    def block(self, x: str, name: str) -> str:
        """x + conv(relu(conv(x))); the sum is in float32."""
        return self.op(
            "Add", x, self.conv(self.conv(x, f"{name}.first", relu=True), f"{name}.second")
        )

    def blocks(self, x: str, name: str, depth: int) -> str:
        for number in range(depth):
            x = self.block(x, f"{name}.{number}")
        return x

    def shuffle(self, x: str, by: int) -> str:
        """As torch's pixel_shuffle."""
        return self.op("DepthToSpace", x, blocksize=by, mode="CRD")

    def unshuffle(self, x: str, by: int, channels: int = 3) -> str:
        """As torch's pixel_unshuffle."""
        y = self.op("SpaceToDepth", x, blocksize=by)
        order = np.arange(channels * by * by).reshape(by * by, channels).T.ravel()
        return self.op("Gather", y, self.constant(order, np.int64), axis=1)

    def trim(self, x: str, sides: str, by: int) -> str:
        """Without the outermost ``by`` on the ``sides`` (4,) where they are 1."""
        if not by:
            return x
        first = self.op("Gather", sides, self.constant([0, 2], np.int64))
        last = self.op("Gather", sides, self.constant([1, 3], np.int64))
        start = self.op("Mul", first, self.constant([by], np.int64))
        length = self.op("Mul", last, self.constant([END + by], np.int64))
        stop = self.op("Sub", self.constant([END], np.int64), length)  # END, or -by
        return self.op("Slice", x, start, stop, self.constant([2, 3], np.int64))

    def crop(self, x: str, by: int) -> str:
        """Without the outermost ``by`` on all sides."""
        places = ([by, by], [-by, -by], [2, 3])
        return self.op("Slice", x, *(self.constant(p, np.int64) for p in places))

    def from_pixels(self, x: str, scale: float, shift: float) -> str:
        """Levels (H, W, 3) to (1, 3, H, W), divided and shifted."""
        y = self.op("Cast", self._first(x), to=TensorProto.FLOAT)
        y = self.op("Div", y, self.constant(scale, np.float32))
        return self.op("Sub", y, self.constant(shift, np.float32))

    def to_pixels(self, y: str, scale: float, shift: float) -> str:
        """(1, 3, H, W), shifted and multiplied, to levels (H, W, 3) in 0..255."""
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
        """(1, C, h, w) to (h, w, C)."""
        y = self.op("Squeeze", y, self.constant([0], np.int64))
        return self.op("Transpose", y, perm=[1, 2, 0])

    def finish(
        self, result: str, inputs: Mapping[str, tuple[int, tuple[Any, ...]]], dtype: int
    ) -> bytes:
        """The file; ``result`` (h, w, C) is its only output beside those that are watched."""
        self._nodes.append(helper.make_node("Identity", [result], ["result"]))
        graph = helper.make_graph(
            self._nodes,
            "network",
            [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
            [helper.make_tensor_value_info("result", dtype, ("h", "w", "c")), *self.outputs],
            [*self._initializers.values()],
        )
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
        return bytes(model.SerializeToString(deterministic=True))


Build = Callable[[Graph], bytes]
PIXELS = {"pixels": (TensorProto.UINT8, ("h", "w", 3)), "sides": (TensorProto.INT64, (4,))}


def latents_in(channels: int) -> dict[str, tuple[int, tuple[Any, ...]]]:
    return {
        "latents": (TensorProto.FLOAT, ("h", "w", channels)),
        "sides": (TensorProto.INT64, (4,)),
    }


RATE = {"rate": (TensorProto.FLOAT, (1, shape.RATE_FEATURES))}


def mini_encoder(g: Graph) -> bytes:
    """`mini.network.Encoder`, a tile without its margin."""
    d4, d8, d16 = shape.DEPTHS_ENCODER
    m, m8, m16 = shape.ENCODER_MARGIN, shape.ENCODER_MARGIN_8, shape.ENCODER_MARGIN_16
    x = g.from_pixels("pixels", 255, 0.5)
    near = g.trim(x, "sides", (m - 1) * shape.FACTOR)
    near = g.op("Pad", near, g.constant([0, 0, 8, 8, 0, 0, 8, 8], np.int64), mode="edge")
    latents = g.conv(g.unshuffle(near, shape.FACTOR), "encoder.linear", pad=0, exact=True)
    y = g.conv(g.unshuffle(x, 4), "encoder.enter")
    y = g.conv(g.blocks(y, "encoder.at4", d4), "encoder.down8", strides=[2, 2], pad=1)
    y = g.blocks(g.trim(y, "sides", 2 * (m - m8)), "encoder.at8", d8)
    y = g.trim(g.conv(y, "encoder.down16", strides=[2, 2], pad=1), "sides", m8 - m16)
    y = g.trim(g.conv(g.blocks(y, "encoder.at16", d16), "encoder.leave", exact=True), "sides", m16)
    latents = g.op("Add", g.trim(latents, "sides", 1), y)
    return g.finish(g.last(latents), PIXELS, TensorProto.FLOAT)


def mini_decoder(g: Graph, scale: int = 1) -> bytes:
    """`mini.network.Decoder`, or `mini.reduced.Reducing` with a scale of 2 or 4."""
    d16, (d8, d4, margins) = shape.DEPTHS_DECODER[2], shape.DECODERS[scale]
    m, m8, m4 = margins
    side = shape.FACTOR // scale
    latents = g.first("latents")

    def with_rate(y: str, number: int) -> str:
        name, channels = f"decoder.rate.{number}", shape.WIDTHS[::-1][number]
        weight = g.weight(f"{name}.weight", (channels, shape.RATE_FEATURES))
        bias = g.weight(f"{name}.bias", (channels,))
        rate = g.op("Gemm", "rate", weight, bias, transB=1)
        return g.op("Add", y, g.op("Unsqueeze", rate, g.constant([2, 3], np.int64)))

    y = g.blocks(with_rate(g.conv(latents, "decoder.enter"), 0), "decoder.at16", d16)
    y = g.shuffle(g.conv(g.trim(y, "sides", m - m8), "decoder.up8"), 2)
    y = g.blocks(with_rate(y, 1), "decoder.at8", d8)
    if d4:
        y = g.shuffle(g.conv(g.trim(y, "sides", 2 * (m8 - m4)), "decoder.up4"), 2)
        y = g.blocks(with_rate(y, 2), "decoder.at4", d4)
    leave, spread = ("decoder.leave", 4) if scale == 1 else (f"{scale}.head", 2)
    y = g.shuffle(g.trim(g.conv(y, leave, exact=True), "sides", side // spread * m4), spread)
    linear = "decoder.linear" if scale == 1 else f"{scale}.linear"
    image = g.conv(g.trim(latents, "sides", m - 1), linear, pad=1, exact=True)
    image = g.trim(g.crop(g.shuffle(image, side), side // 2), "sides", side)
    result = g.to_pixels(g.op("Add", image, y), 255, 0.5)
    return g.finish(result, {**latents_in(shape.CHANNELS), **RATE}, TensorProto.UINT8)


def mini_analysis(g: Graph) -> bytes:
    """`mini.network.HyperAnalysis`: latents in steps, h and w even, to hyperlatents."""
    y = g.op("Relu", g.conv(g.first("latents"), "analysis.0", exact=True))
    y = g.op("Relu", g.conv(y, "analysis.2", exact=True, strides=[2, 2], pad=1))
    inputs = {"latents": (TensorProto.FLOAT, ("h", "w", shape.CHANNELS))}
    return g.finish(g.last(g.conv(y, "analysis.4", exact=True)), inputs, TensorProto.FLOAT)


def sd_mini_encoder(g: Graph) -> bytes:
    """`sd_mini.network.Encoder`, a tile without its margin."""
    (d4, d8), m, m8 = sd_shape.ENCODER_DEPTHS, sd_shape.ENCODER_MARGIN, sd_shape.ENCODER_MARGIN_8
    y = g.conv(g.unshuffle(g.from_pixels("pixels", 127.5, 1), 4), "encoder.enter")
    y = g.conv(g.blocks(y, "encoder.at4", d4), "encoder.down8", strides=[2, 2], pad=1)
    y = g.blocks(g.trim(y, "sides", m - m8), "encoder.at8", d8)
    y = g.trim(g.conv(y, "encoder.leave", exact=True), "sides", m8)
    return g.finish(g.last(y), PIXELS, TensorProto.FLOAT)


def sd_mini_decoder(g: Graph) -> bytes:
    """`sd_mini.network.Decoder`, a tile without its margin."""
    (d4, d8), m, m4 = sd_shape.DECODER_DEPTHS, sd_shape.DECODER_MARGIN, sd_shape.DECODER_MARGIN_4
    y = g.blocks(g.conv(g.first("latents"), "decoder.enter", exact=True), "decoder.at8", d8)
    y = g.shuffle(g.conv(g.trim(y, "sides", m - m4), "decoder.up4"), 2)
    y = g.trim(g.conv(g.blocks(y, "decoder.at4", d4), "decoder.leave", exact=True), "sides", 2 * m4)
    result = g.to_pixels(g.shuffle(y, 4), 127.5, 1)
    return g.finish(result, latents_in(sd_shape.CHANNELS), TensorProto.UINT8)


class Model(NamedTuple):
    """A model's networks by the names of their graphs, and what they are shown for the ranges."""

    tensors: Tensors
    networks: Mapping[str, Build]
    inputs: Callable[[str, NDArray[np.uint8]], Iterator[dict[str, NDArray[Any]]]]


WHOLE = np.zeros(4, np.int64)
MINI_DECODERS: dict[str, Build] = {
    "mini_decoder": mini_decoder,
    "mini_decoder2": functools.partial(mini_decoder, scale=2),
    "mini_decoder4": functools.partial(mini_decoder, scale=4),
}


def models() -> dict[str, Model]:
    """All of them, by the names of their ranges."""
    mini = Mini(weights.MINI.path)
    heads = load_file(weights.MINI_REDUCED.path)
    perceptual = load_file(weights.MINI_PERCEPTUAL.path)
    sd_mini = load_file(weights.SD_MINI.path)
    encoders = {
        name: exact(build, tensors)
        for name, build, tensors in (
            ("mini", mini_encoder, mini.tensors),
            ("sd_mini", sd_mini_encoder, sd_mini),
        )
    }

    def of_mini(name: str, pixels: NDArray[np.uint8]) -> Iterator[dict[str, NDArray[Any]]]:
        if name == "mini_encoder":
            yield {"pixels": pixels, "sides": WHOLE}
            return
        latents = encoders["mini"](pixels)
        for quality in RATES:
            gain = mini.gain(quality)
            rounded = np.rint(latents * gain) / gain
            yield {"latents": rounded, "rate": rate_features(quality), "sides": WHOLE}

    def of_sd_mini(name: str, pixels: NDArray[np.uint8]) -> Iterator[dict[str, NDArray[Any]]]:
        if name == "sd_mini_encoder":
            yield {"pixels": pixels, "sides": WHOLE}
        else:
            yield {"latents": encoders["sd_mini"](pixels), "sides": WHOLE}

    all_of_mini = {**mini.tensors, **tensors_of_decoders(mini.tensors, heads)}
    return {
        "mini": Model(
            all_of_mini,
            {"mini_encoder": mini_encoder, "mini_analysis": mini_analysis, **MINI_DECODERS},
            of_mini,
        ),
        "mini_perceptual": Model(perceptual, {"mini_decoder": mini_decoder}, of_mini),
        "sd_mini": Model(
            sd_mini,
            {"sd_mini_encoder": sd_mini_encoder, "sd_mini_decoder": sd_mini_decoder},
            of_sd_mini,
        ),
    }


def exact(build: Build, tensors: Tensors) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """An encoder in float32: pixels to latents."""
    session = runtime.session(build(Graph(tensors, int8=False)), tensors)

    def latents(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        (result,) = session.run(["result"], {"pixels": pixels, "sides": WHOLE})
        found: NDArray[np.float32] = result
        return found

    return latents


def ranges(model: Model, photos: list[NDArray[np.uint8]]) -> dict[str, NDArray[Any]]:
    """The scales and zeros of a model's activations, by name."""
    least: dict[str, float] = {}
    most: dict[str, float] = {}
    for name, build in model.networks.items():
        graph = Graph(model.tensors, int8=False, watched=True)
        session = runtime.session(build(graph), model.tensors)
        if not graph.outputs:
            continue
        names = [value.name for value in graph.outputs]
        for photo in photos:
            for inputs in model.inputs(name, photo):
                for key, value in zip(names, session.run(names, inputs), strict=True):
                    activation, _, kind = key.rpartition("_")
                    if kind == "least":
                        least[activation] = min(least.get(activation, 0), float(value))
                    else:
                        most[activation] = max(most.get(activation, 0), float(value))
    found: dict[str, NDArray[Any]] = {}
    for activation, low in least.items():
        # Some layers are never more than 0.
        scale = np.float32((most[activation] - low) / 255) or np.float32(1)
        found[f"{activation}_scale"] = np.array(scale, np.float32)
        found[f"{activation}_zero"] = np.array(np.rint(-low / scale), np.uint8)
    return found


def photos_of(folder: Path) -> list[NDArray[np.uint8]]:
    """Photos that the networks were trained on, cut to what needs no padding."""
    paths = photo_paths(folder, held_out=False)
    found = []
    for path in paths[:: len(paths) // PHOTOS][:PHOTOS]:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        height, width = (n // 32 * 32 for n in pixels.shape[:2])
        found.append(np.ascontiguousarray(pixels[:height, :width]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path(weights.FOLDER))
    options = parser.parse_args()
    photos = photos_of(options.photos)
    files: dict[str, bytes] = {}
    all_ranges: dict[str, NDArray[Any]] = {}
    for key, model in models().items():
        found = ranges(model, photos)
        all_ranges |= {f"{key}/{name}": values for name, values in found.items()}
        for name, build in model.networks.items():
            files[f"graphs/{name}.onnx"] = build(Graph(model.tensors, int8=False))
            files[f"graphs/{name}_int8.onnx"] = build(Graph(model.tensors, int8=True))
    del files["graphs/mini_analysis_int8.onnx"]  # all of it is exact
    del files["graphs/sd_mini_decoder_int8.onnx"]  # `SdMini` decodes in float32
    for name, data in files.items():
        path = options.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    save_file(all_ranges, options.output / weights.RANGES.name)
    for name in (*files, weights.RANGES.name):
        sha256 = hashlib.sha256((options.output / name).read_bytes()).hexdigest()
        print(f"{name}: {sha256}")


if __name__ == "__main__":
    main()
