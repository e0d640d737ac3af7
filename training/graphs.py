"""Make the ONNX graphs of the embedded networks, and the ranges of their 8-bit numbers.

    python -m training.graphs --pack PACKS/train

A graph has the names and shapes of the weights, but not their values: `pillow_sdz.models.runtime`
takes the values from the safetensors files.  `NAME.onnx` is in float32.  Most networks have another
graph, `NAME_int8.onnx`, with their CNN in int8.  In `NAME_precise.onnx`, the last stage is in
float32.  Blocks with limits have the ranges of their numbers in the weights.  Other ranges are
measured on eight training photos, and written to `ranges.safetensors`.  The command prints the
sha256 of each file for `pillow_sdz/weights.py`.

A new network needs a function that writes its layers down, and a row in `networks`.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from safetensors.numpy import load_file, save_file

from pillow_sdz import weights
from pillow_sdz.codings.rate_axis import KNOTS
from pillow_sdz.models import mini_half as half_shape
from pillow_sdz.models import runtime
from pillow_sdz.models import sd_mini as sd_shape
from pillow_sdz.models.mini import shape
from pillow_sdz.models.mini.tensors import adjoint_of_decoder, encoder_of_base, tensors_of_decoders
from training import adjoint, channels_last, digits, prior_graphs
from training.graph import Graph, Tensors
from training.mini.data import corner, photos

LARGEST = 512  # of each photo, a part with sides of at most this many pixels is used.  Chosen.
PHOTOS = 8  # for the ranges.  Chosen: more of them widen no range by more than a tenth.

Build = Callable[[Graph], bytes]
PIXELS = {"pixels": (TensorProto.UINT8, ("h", "w", 3)), "sides": (TensorProto.INT64, (4,))}


def latents_in(channels: int) -> dict[str, tuple[int, tuple[Any, ...]]]:
    return {
        "latents": (TensorProto.FLOAT, ("h", "w", channels)),
        "sides": (TensorProto.INT64, (4,)),
    }


RATE = {"rate": (TensorProto.FLOAT, ("rh", "rw", KNOTS))}


class Rate:
    """The weights of the knots for the rate, (h, w, KNOTS); h and w may be 1.

    Values that are computed from them are trimmed and repeated only along axes longer than 1.
    """

    def __init__(self, g: Graph) -> None:
        self._g, self._weights = g, g.first("rate")
        shape = g.op("Shape", "rate", end=2)
        one = g.constant([1], np.int64)
        self._longer = g.op("Min", g.op("Sub", shape, one), one)  # (2,), 0 or 1
        each = g.op("Gather", self._longer, g.constant([0, 0, 1, 1], np.int64))
        self._sides = g.op("Mul", "sides", each)

    def added(self, name: str, trimmed: int, factor: int) -> str:
        """What the layer ``name`` adds, at ``factor`` places for each latent along a side."""
        return self._spread(self._g.conv(self._weights, name, exact=True), trimmed, factor)

    def gate(self, name: str, trimmed: int, factor: int) -> str:
        dims = self._g.dims(f"{name}.weight")
        y = self._g.op("MatMul", "rate", self._g.weight(f"{name}.weight", dims))
        return self._spread(self._g.first(y), trimmed, factor)

    def _spread(self, y: str, trimmed: int, factor: int) -> str:
        g = self._g
        y = g.trim(y, self._sides, trimmed)
        if factor == 1:
            return y
        more = g.op("Mul", self._longer, g.constant([factor - 1], np.int64))
        factors = g.op("Add", more, g.constant([1], np.int64))
        whole = g.op("Concat", g.constant([1, 1], np.int64), factors, axis=0)
        scales = g.op("Cast", whole, to=TensorProto.FLOAT)
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
        return g.op("Resize", y, "", scales, nearest_mode="floor", **how)


def mini_encoder(g: Graph) -> bytes:
    """`mini.network.Encoder`, a tile without its margin."""
    d4, d8, d16 = shape.DEPTHS_ENCODER
    m, m8, m16 = shape.ENCODER_MARGIN, shape.ENCODER_MARGIN_8, shape.ENCODER_MARGIN_16
    rate = Rate(g)
    x = g.from_pixels("pixels", 255, 0.5)
    near = g.beyond(g.trim(x, "sides", (m - 1) * shape.FACTOR))
    latents = g.conv(g.unshuffle(near, shape.FACTOR), "encoder.linear", pad=0, exact=True)
    # In 8 bits, what these convolutions between the stages find beyond the ranges of photos would
    # be lost: 7 dB of a picture of black and white squares at a quality of 87 (measured).
    y = g.conv(g.unshuffle(x, 4), "encoder.enter", exact=True)
    y = g.blocks(g.op("Add", y, rate.added("encoder.rate.0", 0, 4)), "encoder.at4", d4)
    y = g.conv(y, "encoder.down8", exact=True, strides=[2, 2], pad=1)
    y = g.op("Add", g.trim(y, "sides", 2 * (m - m8)), rate.added("encoder.rate.1", m - m8, 2))
    y = g.blocks(y, "encoder.at8", d8)
    y = g.conv(y, "encoder.down16", exact=True, strides=[2, 2], pad=1)
    y = g.op("Add", g.trim(y, "sides", m8 - m16), rate.added("encoder.rate.2", m - m16, 1))
    y = g.conv(g.blocks(y, "encoder.at16", d16), "encoder.leave", exact=True)
    y = g.op("Mul", g.trim(y, "sides", m16), rate.gate("encoder.gate", m, 1))
    latents = g.op("Add", g.trim(latents, "sides", 1), y)
    return g.finish(g.last(latents), {**PIXELS, **RATE}, TensorProto.FLOAT)


# ``latents`` have the channels that ``channels`` names.
SOME_LATENTS = {**digits.INPUTS, "sides": (TensorProto.INT64, (4,)), **RATE}


def mini_decoder(g: Graph, scale: int = 1) -> bytes:
    """`mini.network.Decoder`, or `training.reduced.Reducing` with a scale of 2 or 4."""
    return g.finish(decoded(g, scale), SOME_LATENTS, TensorProto.UINT8)


def mini_look(g: Graph) -> bytes:
    """`training.adjoint.change` of a tile without its margin, and the decoded pixels ``shown``."""
    m, _, m4 = shape.DECODERS[1][2]
    shown = decoded(g, 1)
    change = adjoint.change(g, shown, Rate(g).gate("decoder.gate", m, 4), trimmed=m, m4=m4)
    shown = g.trim(shown, "sides", shape.FACTOR * shape.ADJOINT_MARGIN, (0, 1))
    more = {
        "pixels": (TensorProto.UINT8, ("H", "W", 3)),
        "changed": (TensorProto.INT64, ("n",)),
    }
    g.output(shown, "shown", TensorProto.UINT8, ("a", "b", 3))
    return g.finish(change, {**SOME_LATENTS, **more}, TensorProto.FLOAT, ("r", "s", "n"))


def decoded(g: Graph, scale: int) -> str:
    """The levels (H, W, 3) of a tile without its margin."""
    if g.int8:
        return channels_last.decoder(g, scale)
    d16, (d8, d4, (m, m8, m4)) = shape.DEPTHS_DECODER[2], shape.DECODERS[scale]
    side, rate = shape.FACTOR // scale, Rate(g)
    conv = functools.partial(g.conv_of, g.first("latents"), "channels")
    # Channels that are 0 in all of a tile are left out: at a quality of 50, more than half of them.
    # The first convolution is exact: the latents of some channels are a hundred times those of
    # others, so with 8 bits PSNR is 0.1 dB lower at high rates (measured).  The convolutions
    # between the stages are exact too.  They are small, and all results of earlier stages pass
    # through them: with 8 bits, SSIMULACRA2 is half a point lower (measured).
    y = conv("decoder.enter", trimmed=0)
    y = g.op("Add", y, rate.added("decoder.rate.0", 0, 1))
    y = g.trim(g.blocks(y, "decoder.at16", d16), "sides", m - m8)
    y = g.shuffle(g.conv(y, "decoder.up8", exact=True), 2)
    y = g.op("Add", y, rate.added("decoder.rate.1", m - m8, 2))
    y = g.trim(g.blocks(y, "decoder.at8", d8), "sides", 2 * (m8 - m4))
    if d4:
        y = g.shuffle(g.conv(y, "decoder.up4", exact=True), 2)
        y = g.op("Add", y, rate.added("decoder.rate.2", m - m4, 4))
        y = g.blocks(y, "decoder.at4", d4, last=True)
    leave, gate, spread = "decoder.leave", "decoder.gate", 4
    if scale > 1:
        leave, gate, spread = f"{scale}.head", f"{scale}.gate", 2
    places = side // spread  # of the last stage for each latent along a side
    y = g.trim(g.conv(y, leave, exact=True), "sides", places * m4)
    y = g.shuffle(g.op("Mul", y, rate.gate(gate, m, places)), spread)
    linear = "decoder.linear" if scale == 1 else f"{scale}.linear"
    image = conv(linear, trimmed=m - 1)
    image = g.borders(g.crop(g.shuffle(image, side), side // 2), scale)
    return g.to_pixels(g.op("Add", g.trim(image, "sides", side), y), 255, 0.5)


def mini_analysis(g: Graph) -> bytes:
    """`mini.network.Analysis`: base latents in steps, h and w even, to hyperlatents."""
    y = g.op("Relu", g.conv(g.first("latents"), "analysis.0", exact=True))
    y = g.op("Relu", g.conv(y, "analysis.2", exact=True, strides=[2, 2], pad=1))
    inputs = {"latents": (TensorProto.FLOAT, ("h", "w", shape.BASE))}
    return g.finish(g.last(g.conv(y, "analysis.4", exact=True)), inputs, TensorProto.FLOAT)


def product(g: Graph) -> bytes:
    """The product of two matrices."""
    axes = {"rows": ("n", "k"), "columns": ("k", "m")}
    inputs = {name: (TensorProto.FLOAT, of_input) for name, of_input in axes.items()}
    return g.finish(g.op("MatMul", *inputs), inputs, TensorProto.FLOAT, ("n", "m"))


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


def mini_half_enlarger(g: Graph) -> bytes:
    """`training.half.Enlarger`, a tile without its margin.

    ``larger`` has the pixels at twice their height and width, by the filter alone.
    """
    inputs = {
        "pixels": (TensorProto.UINT8, ("h", "w", 3)),
        "larger": (TensorProto.UINT8, ("2h", "2w", 3)),
        "place": (TensorProto.FLOAT, ()),
        "sides": (TensorProto.INT64, (4,)),
    }
    x = g.from_pixels("pixels", 255, 0.5)
    around = half_shape.AROUND // 2
    pads = g.constant([0, 0, around, around] * 2, np.int64)
    mean = g.op("AveragePool", g.op("Pad", x, pads, mode="edge"), kernel_shape=[2 * around + 1] * 2)
    y = g.unshuffle(g.op("Sub", x, mean), 2)
    size = g.op("Shape", y, start=2)
    plane = g.op("Expand", "place", g.op("Concat", g.constant([1, 1], np.int64), size, axis=0))
    y = g.conv(g.op("Concat", y, plane, axis=1), "enter")
    for number in range(half_shape.DEPTH):
        first = g.conv(g.op("Relu", y), f"blocks.{number}.first", relu=True)
        y = g.op("Add", y, g.conv(first, f"blocks.{number}.second"))
    y = g.shuffle(g.conv(g.op("Relu", y), "leave"), 4)
    y = g.op("Add", g.from_pixels("larger", 255, 0.5), y)
    y = g.trim(y, "sides", 2 * shape.FACTOR * half_shape.MARGIN)
    return g.finish(g.to_pixels(y, 255, 0.5), inputs, TensorProto.UINT8)


# Those of which nothing is rounded, and two decoders' networks that run in float32.
FLOAT32_ALONE = {
    "mini_analysis",
    "mini_half_enlarger",
    "product",
    *prior_graphs.STAGES,
    "sd_mini_decoder",
}
# Those that also have a graph with their last stage in float32.
PRECISE = {"mini_decoder", "mini_decoder2"}


def networks() -> dict[str, tuple[Build, Tensors]]:
    """The code of each network by the name of its graph, and the shapes of its tensors."""
    mini = load_file(weights.MINI.path)
    mini = {name.removeprefix("autoencoder."): values for name, values in mini.items()}
    mini |= tensors_of_decoders(mini, load_file(weights.MINI_REDUCED.path))
    sd_mini = load_file(weights.SD_MINI.path)
    return {
        "mini_encoder": (mini_encoder, mini),
        "mini_encoder_base": (mini_encoder, encoder_of_base(mini)),
        "mini_decoder": (mini_decoder, mini),
        "mini_decoder2": (functools.partial(mini_decoder, scale=2), mini),
        "mini_decoder4": (functools.partial(mini_decoder, scale=4), mini),
        "mini_look": (mini_look, mini | adjoint_of_decoder(mini)),
        "mini_analysis": (mini_analysis, mini),
        "mini_half_enlarger": (mini_half_enlarger, load_file(weights.MINI_HALF.path)),
        "product": (product, {}),  # of the prior's layers
        **{name: (build, {}) for name, build in prior_graphs.STAGES.items()},
        "sd_mini_encoder": (sd_mini_encoder, sd_mini),
        "sd_mini_decoder": (sd_mini_decoder, sd_mini),
    }


def ranges(
    build: Build, tensors: Tensors, inputs: list[dict[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """The scales and zeros of a network's activations, by name."""
    graph = Graph(tensors, int8=False, watched=True)
    session = runtime.session(build(graph), tensors)
    names = [value.name for value in graph.outputs]
    least: dict[str, float] = defaultdict(float)
    most: dict[str, float] = defaultdict(float)
    for given in inputs:
        for key, value in zip(names, session.run(names, given), strict=True):
            activation, _, kind = key.rpartition("_")
            if kind == "least":
                least[activation] = min(least[activation], float(value))
            else:
                most[activation] = max(most[activation], float(value))
    found: dict[str, NDArray[Any]] = {}
    for activation, low in least.items():
        # The outputs of some layers are never above 0.
        scale = np.float32((most[activation] - low) / 255) or np.float32(1)
        found[f"{activation}_scale"] = np.array(scale, np.float32)
        found[f"{activation}_zero"] = np.array(np.rint(-low / scale), np.uint8)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pack", type=Path, required=True, help="training photos")
    parser.add_argument("--output", type=Path, default=Path(weights.FOLDER))
    options = parser.parse_args()
    taken = [np.ascontiguousarray(corner(photo, LARGEST)) for photo in photos(options.pack, PHOTOS)]
    files: dict[str, bytes] = {}
    for name, (build, tensors) in networks().items():
        files[f"graphs/{name}.onnx"] = build(Graph(tensors, int8=False))
        if name not in FLOAT32_ALONE:
            files[f"graphs/{name}_int8.onnx"] = build(Graph(tensors, int8=True))
        if name in PRECISE:
            files[f"graphs/{name}_precise.onnx"] = build(Graph(tensors, int8=True, precise=True))
    for name, data in files.items():
        path = options.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    build, tensors = networks()["sd_mini_encoder"]
    found = ranges(build, tensors, [{"pixels": p, "sides": np.zeros(4, np.int64)} for p in taken])
    all_ranges = {f"sd_mini_encoder/{name}": values for name, values in found.items()}
    save_file(all_ranges, options.output / weights.RANGES.name)
    for name in (*files, weights.RANGES.name):
        sha256 = hashlib.sha256((options.output / name).read_bytes()).hexdigest()
        print(f"{name}: {sha256}")


if __name__ == "__main__":
    main()
