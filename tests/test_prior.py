"""mini's prior in integers: the same bytes and integers, in whatever way its sums are computed.

Each test goes both ways. The integers give the expected predictions and payload, and the payload
gives the integers.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from threadpoolctl import ThreadpoolController, threadpool_limits

from pillow_sdz import catalogue, demo, models, weights
from pillow_sdz.arrays import Ints
from pillow_sdz.codings import hyperprior
from pillow_sdz.codings.hyperprior import ACTIVATION_LIMIT, PARITIES, HyperPrior
from pillow_sdz.codings.integers import EXACT_SINGLE, Affine
from pillow_sdz.codings.quantize import Quantizer
from pillow_sdz.codings.range_coder import SYMBOL_LIMIT, SymbolDecoder, Tables

TABLES = Tables.shipped()
Tensors = Mapping[str, NDArray[Any]]

# A photo's integers at two of the header's qualities, and integers that no network expects. With
# the latter, sums do not fit float32. In float32 alone, a few predictions would differ.
LOW, HIGH = 1000, 10000
WILD = 200_000
CASES = ["low", "high", "wild"]


@functools.cache
def shipped() -> Tensors:
    part = "prior."
    tensors = load_file(weights.MINI.path)
    return {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)}


@functools.cache
def case(name: str) -> tuple[Ints, Ints, int]:
    """The integers of latents and hyperlatents, and the quality."""
    if name == "wild":
        rng = np.random.default_rng(1)
        shapes = ((15, 25, 160), (8, 13, 32))
        symbols, hyper = (rng.integers(-WILD, WILD, shape) for shape in shapes)
        return symbols, hyper, HIGH
    quality = LOW if name == "low" else HIGH
    network = models.load(catalogue.MINI)
    steps = network.encode(np.asarray(demo.photo().crop((150, 100, 390, 308))))
    steps = steps * network.gain(quality)
    symbols, hyper = (np.rint(x).astype(np.int64) for x in (steps, network.hyperlatents(steps)))
    return symbols, hyper, quality


class Noted(Quantizer):
    """A coder that keeps the means and scales. A payload shows less of them."""

    def __init__(self, symbols: Ints, hyper: Ints) -> None:
        super().__init__(TABLES, symbols.astype(np.float64), hyper)
        self.predictions: list[Ints] = []

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        self.predictions += [mean, scale]
        return super().code(volume, index, mean, scale)


def encoded(network: HyperPrior, name: str) -> tuple[bytes, Ints]:
    """Encode, and return the payload and all predictions."""
    symbols, hyper, quality = case(name)
    quantizer = Noted(symbols, hyper)
    network.code(quantizer, *symbols.shape[:2], quality)
    return quantizer.bytes(), np.concatenate(quantizer.predictions)


def decoded(network: HyperPrior, payload: bytes, name: str) -> Ints:
    symbols, _, quality = case(name)
    decoder = SymbolDecoder(TABLES, payload)
    found = network.code(decoder, *symbols.shape[:2], quality).symbols
    decoder.finish()
    return found


class InIntegers(Affine):
    """The specification with integers only, without floating point."""

    def __init__(self, tensors: Tensors, name: str, *limits: int) -> None:
        super().__init__(tensors, name, *limits)
        self._tensors = {k: v.astype(np.int64) for k, v in tensors.items() if k.startswith(name)}
        self._name = name

    def __call__(self, *inputs: NDArray[Any]) -> Ints:
        name, tensors = self._name, self._tensors
        shift = int(tensors[f"{name}.shift"][0])
        total: Ints = tensors[f"{name}.bias"] + (1 << (shift - 1))
        for i, x in enumerate(inputs):
            product = x.astype(np.int64) @ tensors[f"{name}.weight{i}"].T  # by numpy, without BLAS
            total = total + product * tensors[f"{name}.multiplier{i}"]
        return total >> shift


@functools.cache
def expected(name: str) -> tuple[bytes, Ints]:
    """Like `encoded`, with integer arithmetic."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hyperprior, "Affine", InIntegers)
        return encoded(HyperPrior(shipped()), name)


def check(network: HyperPrior, name: str) -> None:
    payload, predictions = expected(name)
    found, found_predictions = encoded(network, name)
    assert np.array_equal(found_predictions, predictions)
    assert found == payload
    assert np.array_equal(decoded(network, payload, name), case(name)[0])


@pytest.mark.parametrize("name", CASES)
def test_sums_are_those_of_integers(name: str) -> None:
    check(HyperPrior(shipped()), name)


@pytest.mark.parametrize("name", CASES)
def test_float64_alone_gives_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Affine, "exact_type", lambda *_: np.float64)
    check(HyperPrior(shipped()), name)


@pytest.mark.parametrize("name", ["low", "high"])
def test_of_a_photo_so_does_float32_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Affine, "exact_type", lambda *_: np.float32)
    check(HyperPrior(shipped()), name)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads: int) -> None:
    with threadpool_limits(threads, user_api="blas"):
        libraries = ThreadpoolController().select(user_api="blas").info()
        if {library["num_threads"] for library in libraries} != {threads}:
            pytest.skip(f"numpy's BLAS does not take {threads} threads")
        check(HyperPrior(shipped()), "wild")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_any_number_of_places_at_once(
    name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hyperprior, "BLOCK", block)
    check(HyperPrior(shipped()), name)


def shuffled(tensors: Tensors) -> Tensors:
    """The same networks with their inner units in another order, so sums have another order."""
    rng = np.random.default_rng(0)
    out = dict(tensors)

    def shuffle(layers: list[str], readers: list[str]) -> None:
        """What layers put out, and in the weights that read it, there at one or more places."""
        order = rng.permutation(len(out[f"{layers[0]}.bias"]))
        for name in out:
            layer, _, part = name.partition(".")
            if layer in layers and part != "shift":
                out[name] = out[name][order]
        for name in readers:
            places = out[name].reshape(len(out[name]), -1, len(order))
            out[name] = places[:, :, order].reshape(out[name].shape)

    groups = range(len(tensors["groups"]))
    shuffle([f"up{i}" for i in range(len(PARITIES))], ["features.weight0"])
    shuffle(["features"], [f"hidden{i}.weight0" for i in groups])
    shuffle(["context"], [f"hidden{i}.weight1" for i in groups])
    for i in groups:
        shuffle([f"hidden{i}"], [f"output{i}.weight0"])
    return out


@pytest.mark.parametrize("name", CASES)
def test_any_order_of_summation(name: str) -> None:
    check(HyperPrior(shuffled(shipped())), name)


def layer(*weights: list[int]) -> Affine:
    """One input of any values, with exact sums. The output is the sum."""
    tensors = {
        "layer.shift": np.array([1], np.int32),
        "layer.bias": np.zeros(len(weights), np.int64),
        "layer.weight0": np.array(weights, np.int8),
        "layer.multiplier0": np.full(len(weights), 2, np.int32),
    }
    return Affine(tensors, "layer", SYMBOL_LIMIT << 10)


@pytest.mark.parametrize("last", [-1, 0, 1])
def test_float32_is_left_where_its_integers_end(last: int) -> None:
    """2 ** 24 + 1 is not a float32, in whatever order it is summed."""
    summed = layer([1, 1, 1])
    halves = np.array([[EXACT_SINGLE // 2, EXACT_SINGLE // 2, last]], np.float32)
    assert summed(halves) == [[EXACT_SINGLE + last]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Affine, "exact_type", lambda *_: np.float32)
        assert (summed(halves) == [[EXACT_SINGLE + last]]) == (last < 1)


@pytest.mark.parametrize("largest", [100, ACTIVATION_LIMIT, SYMBOL_LIMIT])
def test_any_layout_in_memory(largest: int) -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 127, (30, 200), endpoint=True)
    summed = layer(*weights.tolist())
    values = rng.integers(-largest, largest, (50, 200), endpoint=True)
    truth = values @ weights.T
    x = values.astype(np.float32)
    assert np.array_equal(summed(x), truth)
    assert np.array_equal(summed(np.asfortranarray(x)), truth)
    assert np.array_equal(summed(x[::-1])[::-1], truth)
    assert np.array_equal(summed(np.repeat(x, 2, axis=1)[:, ::2]), truth)
    assert np.array_equal(np.concatenate([summed(row[None]) for row in x]), truth)
