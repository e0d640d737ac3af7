"""mini's prior in integers: the same bytes and integers, in whatever way its sums are computed.

Each test goes both ways. The integers give the expected predictions and payload, and the payload
gives the integers.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from threadpoolctl import ThreadpoolController, threadpool_limits

from pillow_sdz import catalogue, cores, demo, models, weights
from pillow_sdz.arrays import Ints, Singles
from pillow_sdz.codings import dense, groups, hyperprior, quality_map
from pillow_sdz.codings.dense import EXACT, Dense, Product
from pillow_sdz.codings.groups import ACTIVATION_LIMIT
from pillow_sdz.codings.hyperprior import Coded, HyperPrior, Part
from pillow_sdz.codings.places import PARITIES
from pillow_sdz.codings.quantize import Quantizer
from pillow_sdz.codings.range_coder import DamagedPayload, Prediction, SymbolDecoder, Tables
from pillow_sdz.codings.rate_axis import APART, KNOTS, LAST, RateAxis
from pillow_sdz.models import runtime
from pillow_sdz.models.mini import Mini, predicting

TABLES = Tables.shipped()
Tensors = Mapping[str, NDArray[Any]]

# A photo's integers at two of the header's qualities, and integers that no network expects, whose
# quality is different in each cell.
LOW, HIGH = 1000, 10000
WILD = 200_000
CASES = ["low", "high", "wild"]


class Case(NamedTuple):
    """The integers of latents and hyperlatents, the quality, and the map of qualities."""

    symbols: Ints
    hyper: Ints
    quality: int
    offsets: Ints | None = None


def axis() -> RateAxis:
    return RateAxis(load_file(weights.MINI.path)["axis"])


@functools.cache
def shipped() -> Tensors:
    part = "prior."
    tensors = load_file(weights.MINI.path)
    return {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)}


def prior(tensors: Tensors) -> HyperPrior:
    return HyperPrior(tensors, axis())


@functools.cache
def case(name: str) -> Case:
    if name == "wild":
        rng = np.random.default_rng(1)
        base, tail_from = shipped()["tail"]
        symbols = rng.integers(-WILD, WILD, (15, 25, 384))
        hyper = rng.integers(-WILD, WILD, (8, 13, 32))
        offsets = rng.integers(-quality_map.LIMIT, quality_map.LIMIT, (8, 13), endpoint=True)
        places = axis().places(quality_map.qualities(5000, offsets))
        low = (places < tail_from).repeat(2, 0).repeat(2, 1)[:15, :25]
        assert low.any()
        assert not low.all()
        symbols[low, base:] = 0
        return Case(symbols, hyper, 5000, offsets)
    quality = LOW if name == "low" else HIGH
    network = models.load(catalogue.MINI)
    assert isinstance(network, Mini)
    steps = network.encode(np.asarray(demo.photo().crop((150, 100, 390, 308))), quality)
    steps = steps * network.gain(quality)
    symbols, hyper = (np.rint(x).astype(np.int64) for x in (steps, network.hyperlatents(steps)))
    return Case(symbols, hyper, quality)


class Noted(Quantizer):
    """A coder that keeps the means and scales. A payload shows less of them."""

    def __init__(self, case: Case) -> None:
        besides = quality_map.volumes(case.offsets) | prior(shipped()).volumes(case.symbols)
        super().__init__(TABLES, case.symbols.astype(np.float64), case.hyper, besides=besides)
        self.predictions: list[Ints] = []

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        self.predictions += [mean, scale]
        return super().code(volume, index, mean, scale)


def encoded(network: HyperPrior, name: str) -> tuple[bytes, Ints]:
    """Encode, and return the payload and all predictions."""
    quantizer = Noted(case(name))
    network.code(quantizer, *case(name).symbols.shape[:2], case(name).quality)
    return quantizer.bytes(), np.concatenate(quantizer.predictions)


def decoded(network: HyperPrior, payload: bytes, name: str) -> Ints:
    decoder = SymbolDecoder(TABLES, payload)
    found = network.code(decoder, *case(name).symbols.shape[:2], case(name).quality).symbols
    decoder.finish()
    return found


class InIntegers(Dense):
    """The specification with integers only, without floating point."""

    def __init__(
        self, tensors: Tensors, name: str, limits: NDArray[np.int64], taps: int = 1
    ) -> None:
        super().__init__(tensors, name, limits, taps)
        self._limits = limits
        self._integers = [
            tensors[f"{name}.{part}"].astype(np.int64) for part in ("weight", "bias", "shift")
        ]

    def __call__(self, inputs: Singles, product: Product = np.matmul) -> Singles:
        weight, bias, shift = self._integers
        x = inputs.astype(np.int64)
        assert np.array_equal(x, inputs)
        assert (np.abs(x) <= self._limits[: x.shape[1]]).all()
        total = x @ weight[:, : x.shape[1]].T + bias  # by numpy, without BLAS
        return (total >> shift).astype(np.float32)

    def around(self, values: Singles, places: Ints, product: Product = np.matmul) -> Singles:
        return self(values[places].reshape(len(places), -1), product)


@functools.cache
def expected(name: str) -> tuple[bytes, Ints]:
    """Like `encoded`, with integer arithmetic."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "Dense", InIntegers)
        return encoded(prior(shipped()), name)


def check(network: HyperPrior, name: str) -> None:
    payload, predictions = expected(name)
    found, found_predictions = encoded(network, name)
    assert np.array_equal(found_predictions, predictions)
    assert found == payload
    assert np.array_equal(decoded(network, payload, name), case(name).symbols)


@pytest.mark.parametrize("name", CASES)
def test_sums_are_those_of_integers(name: str) -> None:
    check(prior(shipped()), name)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads: int) -> None:
    with threadpool_limits(threads, user_api="blas"):
        libraries = ThreadpoolController().select(user_api="blas").info()
        if {library["num_threads"] for library in libraries} != {threads}:
            pytest.skip(f"numpy's BLAS does not take {threads} threads")
        check(prior(shipped()), "wild")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_any_number_of_places_at_once(
    name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hyperprior, "BLOCK", block)
    check(prior(shipped()), name)


def test_a_small_picture_needs_few_layers() -> None:
    payload, _ = expected("low")
    first = int(shipped()["groups"][0])
    of_others = re.compile(r"\w+[1-9]\b(?<!up[1-3])")
    few = prior({k: v for k, v in shipped().items() if not of_others.match(k)})
    whole, decoder = case("low"), SymbolDecoder(TABLES, payload)
    found = few.code(decoder, *whole.symbols.shape[:2], whole.quality, part=Part(first))
    assert np.array_equal(found.symbols, whole.symbols[..., :first])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_runtime_has_the_same_sums(
    name: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "threads", lambda: threads)
    monkeypatch.setattr(hyperprior, "LEAST_BLOCK", 1)
    of_channels = functools.partial(Part, predict=predicting.predict, threads=True)
    check(HyperPrior(shipped(), axis(), of_channels), name)


def test_sums_of_bytes_are_exact_in_the_runtime() -> None:
    """This holds for the largest sums, too, and on every CPU."""
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (70, 1000)).astype(np.uint8)
    low = rng.integers(-64, 64, (1000, 48)).astype(np.int8)
    high = np.zeros_like(low)
    levels[0], low[:, 0], low[:, 1] = 255, 63, -64
    high[:5, 2:] = rng.integers(-64, 64, (5, 46))  # more would lead to sums of 2 ** 24
    weights = 128 * high.astype(np.int64) + low
    inputs = {name: np.zeros(shape, np.float32) for name, shape in NO_STAGE.items()}
    inputs |= {
        "levels": levels,
        "digits0": high,
        "digits1": low,
        "around_unit": np.full(48, 2.0**-16, np.float32),
        "around_bias": np.full(48, 1000, np.float32),
        "around_columns": np.eye(48, dtype=np.float32),
        "known": np.zeros((70, 1), np.float32),
        "sizes": np.zeros((70, 1), np.float32),
        "output_columns": np.eye(48, dtype=np.float32),
    }
    network = runtime.Network(predicting.GRAPHS[2, False], {})
    expected = np.clip((levels.astype(np.int64) @ weights >> 16) + 1000, 0, ACTIVATION_LIMIT)
    assert np.array_equal(network(**inputs), expected)


# The shapes of what `test_sums_of_bytes_are_exact_in_the_runtime` leaves at 0.
NO_STAGE = {
    "known_columns": (1, 48),
    "hidden_bias": (48,),
    "output_bias": (48,),
    "magnitude_columns": (1, 1),
    "magnitude_bias": (1,),
}


@pytest.mark.parametrize(("largest", "digits"), [(63, 1), (4000, 2), (1 << 15, 3)])
def test_weights_in_digits(largest: int, digits: int) -> None:
    weights = np.random.default_rng(0).integers(-largest, largest + 1, (8, 30))
    found = layer(weights.tolist(), 16).digits
    assert len(found) == digits
    assert all(digit.min() >= -64 and digit.max() < 64 for digit in found)
    total = sum(128**i * digit.astype(np.int64) for i, digit in enumerate(reversed(found)))
    assert np.array_equal(np.asarray(total).T, weights)


def shuffled(tensors: Tensors) -> Tensors:
    """The same networks with their inner units in another order, so sums have another order."""
    rng = np.random.default_rng(0)
    out = dict(tensors)

    def shuffle(layers: list[str], readers: Mapping[str, int]) -> None:
        """Reorder the outputs of layers from an input on, and the weights that read them."""
        count = len(out[f"{layers[0]}.bias"])
        order = rng.permutation(count)
        for name in layers:
            for part in ("weight", "bias", "shift"):
                out[f"{name}.{part}"] = out[f"{name}.{part}"][order]
        for name, first in readers.items():
            weight = out[f"{name}.weight"].copy()
            for start in range(first, weight.shape[1] if first == 0 else first + 1, count):
                weight[:, start : start + count] = weight[:, start : start + count][:, order]
            out[f"{name}.weight"] = weight

    groups = [int(g) for g in tensors["groups"]]
    shuffle(["synthesis"], {f"up{i}": 0 for i in range(len(PARITIES))})
    features = len(out["up0.bias"])
    # A hidden layer's inputs: features, knots, symbols, around, context.
    for i, before in enumerate(itertools.accumulate(groups[:-1], initial=0)):
        at = features + KNOTS + before
        if i:
            shuffle([f"around{i}"], {f"hidden{i}": at})
            at += len(out[f"around{i}.bias"])
        shuffle([f"context{i}"], {f"hidden{i}": at})
        shuffle([f"hidden{i}"], {f"output{i}": 0})
    return out


@pytest.mark.parametrize("name", CASES)
def test_any_order_of_summation(name: str) -> None:
    check(prior(shuffled(shipped())), name)


def layer(weight: list[list[int]], largest: int, taps: int = 1) -> Dense:
    """Exact sums of inputs of at most this magnitude."""
    tensors = {
        "layer.weight": np.array(weight, np.int16),
        "layer.bias": np.zeros(len(weight), np.int32),
        "layer.shift": np.zeros(len(weight), np.uint8),
    }
    return Dense(tensors, "layer", np.full(len(weight[0]), largest), taps)


def test_sums_that_float32_cannot_hold_are_refused() -> None:
    half = EXACT // 2
    assert layer([[1, 1]], half - 1)(np.full((1, 2), half - 1, np.float32)) == [[EXACT - 2]]
    with pytest.raises(ValueError, match="sums of layer may not be exact"):
        layer([[1, 1]], half)
    with pytest.raises(ValueError, match="sums of layer may not be exact"):
        layer([[1, -1]], half)  # in another order than that of the sum


def test_outputs_are_rounded_down() -> None:
    tensors = {
        "layer.weight": np.array([[1], [-1]], np.int16),
        "layer.bias": np.array([2, 2], np.int32),
        "layer.shift": np.array([2, 2], np.uint8),
    }
    found = Dense(tensors, "layer", np.array([9]))(np.array([[5], [6]], np.float32))
    assert np.array_equal(found, [[7 >> 2, -3 >> 2], [8 >> 2, -4 >> 2]])


def test_any_layout_in_memory() -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 127, (30, 200), endpoint=True)
    summed = layer(weights.tolist(), 600)
    values = rng.integers(-600, 600, (50, 200), endpoint=True)
    truth = values @ weights.T
    x = values.astype(np.float32)
    assert np.array_equal(summed(x), truth)
    assert np.array_equal(summed(np.asfortranarray(x)), truth)
    assert np.array_equal(summed(x[::-1])[::-1], truth)
    assert np.array_equal(summed(np.repeat(x, 2, axis=1)[:, ::2]), truth)
    assert np.array_equal(np.concatenate([summed(row[None]) for row in x]), truth)


@pytest.mark.parametrize("moved", [1, 1000, 1 << 20])
@pytest.mark.parametrize("count", [0, 3, 40])
@pytest.mark.parametrize("inputs", [6, 9])
def test_values_around_places_are_inputs_tap_by_tap(
    moved: int, count: int, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds for any number of places, of taps at once, and of inputs for 8 outputs."""
    monkeypatch.setattr(dense, "MOVED", moved)
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 127, (8, 5 * inputs), endpoint=True)
    values = rng.integers(-600, 600, (30, inputs), endpoint=True).astype(np.float32)
    places = rng.integers(0, 30, (count, 5))
    found = layer(weights.tolist(), 600, taps=5).around(values, places)
    assert np.array_equal(found, values[places].reshape(count, 5 * inputs) @ weights.T)


def test_inputs_that_are_left_out_are_zero() -> None:
    summed = layer([[1, 2, 3]], 9)
    assert summed(np.array([[5, 7]], np.float32)) == [[19]]


def test_places_are_linear_between_whole_qualities() -> None:
    table = np.array([0, 100, 350], np.int32)
    assert RateAxis(table).places(np.array([0, 50, 100, 101, 150, 200])).tolist() == [
        0,
        50,
        100,
        103,  # 102.5
        225,
        350,
    ]
    assert axis().places(10_000) == LAST
    assert (np.diff(axis().places(np.arange(100, 10_001))) >= 0).all()


def test_knots_sum_to_the_distance_between_them() -> None:
    knots = RateAxis.knots(np.array([0, 250, 3000, 9999, LAST]))
    assert knots.shape == (5, KNOTS)
    assert (knots.sum(1) == APART).all()
    assert knots[1, :2].tolist() == [750, 250]
    assert knots[2, 3] == knots[4, 10] == APART


class Written(Quantizer):
    """Codes a map of qualities alone, of any values."""

    def __init__(self, values: list[list[int]], mapped: int = 1, scale: int = 0) -> None:
        volumes = {"map": np.array(values, np.float32)}
        volumes |= {"mapped": np.full(1, mapped, np.float32)}
        volumes |= {"map scale": np.full(1, scale, np.float32)}
        super().__init__(TABLES, np.zeros(0), np.zeros(0), besides=volumes)


def read(payload: bytes, height: int, width: int) -> Ints | None:
    return quality_map.code(SymbolDecoder(TABLES, payload), height, width)


def test_a_map_of_qualities_comes_back() -> None:
    offsets = np.array([[0, 0, 50], [-50, 3, 50]], np.int32)
    volumes = quality_map.volumes(offsets)
    coder = Quantizer(TABLES, np.zeros(0), np.zeros(0), besides=volumes)
    quality_map.code(coder, 2, 3)
    found = read(coder.bytes(), 2, 3)
    assert found is not None
    assert np.array_equal(found, offsets)
    qualities = quality_map.qualities(5000, found)
    assert np.array_equal(qualities, [[5000, 5000, 10000], [100, 5600, 10000]])


@pytest.mark.parametrize("offsets", [None, np.zeros((2, 3), np.int32)])
def test_without_a_map_there_is_a_thousandth_of_a_bit(offsets: Ints | None) -> None:
    volumes = quality_map.volumes(offsets)
    coder = Quantizer(TABLES, np.zeros(0), np.zeros(0), besides=volumes)
    assert quality_map.code(coder, 2, 3) is None
    zero = np.zeros(1, np.int32)
    flag = Prediction.of(zero, zero + quality_map.FLAG_SCALE)
    assert TABLES.bits(zero, flag).item() < 0.001
    assert quality_map.qualities(5000, None) == 5000


@pytest.mark.parametrize(
    "coder", [Written([[51]]), Written([[0]], scale=-1), Written([[0]], scale=6)]
)
def test_a_map_that_no_encoder_writes_is_damage(coder: Written) -> None:
    with pytest.raises(DamagedPayload):
        quality_map.code(coder, 1, 1)
    with pytest.raises(DamagedPayload):
        read(coder.bytes(), 1, 1)


def payload_of(
    symbols: Ints,
    hyper: Ints,
    left_out: int,
    changed: NDArray[np.bool_] | None = None,
    before: Coded | None = None,
) -> bytes:
    """The payload of changes or of everything at a quality of 100; some groups are left out."""
    besides = quality_map.volumes(None) | prior(shipped()).volumes(symbols, changed)
    besides["left out"] = np.array([left_out])
    quantizer = Quantizer(TABLES, symbols.astype(np.float64), hyper, changed, besides)
    if changed is not None and before is None:
        before = Coded(np.ones_like(symbols), hyper)
    prior(shipped()).code(quantizer, *symbols.shape[:2], HIGH, before)
    return quantizer.bytes()


def read_whole(
    payload: bytes, before: Coded | None = None, size: tuple[int, int] = (16, 16)
) -> Ints:
    decoder = SymbolDecoder(TABLES, payload)
    found = prior(shipped()).code(decoder, *size, HIGH, before).symbols
    decoder.finish()
    return found


class TestGroupsThatAreLeftOut:
    groups = (*shipped()["groups"].tolist(),)
    hyper = np.zeros((8, 8, 32), np.int32)

    def symbols(self, *used: int) -> Ints:
        """Latents 16x16 whose last group has symbols at so many places, the one before it too..."""
        found = np.zeros((16, 16, sum(self.groups)), np.int32)
        end = found.shape[2]
        for count, group in zip(used, self.groups[::-1], strict=False):
            found[..., end - group].flat[:count] = 1
            end -= group
        return found

    @pytest.mark.parametrize(
        ("used", "groups"),
        [((0, 5), 8), ((4, 5), 8), ((5, 0), 9), ((0, 4, 5), 7), ((), 0), ((0,) * 8 + (5,), 1)],
    )
    def test_groups_that_are_nearly_empty_are_not_worth_coding(
        self, used: tuple[int, ...], groups: int
    ) -> None:
        """A 64th of 256 places is 4."""
        network = prior(shipped())
        kept = network.worth_coding(network.counts(self.symbols(*used) + 0.4), 256)
        assert kept == sum(self.groups[:groups])

    @pytest.mark.parametrize(("used", "left_out"), [((0, 1), 1), ((1, 0), 0), ((), 9)])
    def test_groups_without_symbols_are_left_out(
        self, used: tuple[int, ...], left_out: int
    ) -> None:
        found = prior(shipped()).volumes(self.symbols(*used) + 0.4)
        assert found["left out"].tolist() == [left_out]

    def test_only_cells_that_change_count(self) -> None:
        changed = np.zeros((8, 8), bool)
        changed[4:] = True  # the symbols are in the rows above
        found = prior(shipped()).volumes(self.symbols(100, 100), changed)
        assert found["left out"].tolist() == [9]

    @pytest.mark.parametrize("left_out", [0, 1, 2, 9])
    def test_their_symbols_are_zero(self, left_out: int) -> None:
        symbols = self.symbols(*[9] * 9)
        expected = symbols.copy()
        expected[..., sum(self.groups[: 9 - left_out]) :] = 0
        assert np.array_equal(read_whole(payload_of(symbols, self.hyper, left_out)), expected)

    def test_in_a_cell_that_changes_they_become_zero(self) -> None:
        changed = np.zeros((8, 8), bool)
        changed[2, 3] = True
        symbols = self.symbols(*[9] * 9)
        payload = payload_of(symbols, self.hyper, 3, changed)
        expected = np.ones_like(symbols)
        end = sum(self.groups[:6])
        expected[4:6, 6:8, :end] = symbols[4:6, 6:8, :end]
        expected[4:6, 6:8, end:] = 0
        before = Coded(np.ones_like(symbols), self.hyper)
        assert np.array_equal(read_whole(payload, before), expected)

    @pytest.mark.parametrize("left_out", [-1, 10])
    def test_any_other_number_is_zero(self, left_out: int) -> None:
        symbols = self.symbols(9)
        payload = payload_of(symbols, self.hyper, left_out)
        assert np.array_equal(read_whole(payload), symbols)


FIRST_WITH_MAP = 4


class MapsOnly:
    """A coder of zeros that keeps the stages of maps, and counts the latents of each group."""

    def __init__(self, occupied: int = 1, magnitude: int = 0) -> None:
        self._of_maps, self._of_latents = occupied, magnitude
        self.maps: list[tuple[Any, Ints, Ints]] = []
        self.latents: dict[int, int] = {}  # by the first channel

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        if volume == "occupied":
            self.maps.append((index, mean, scale))
        if volume == "latents":
            start = index[2].start
            self.latents[start] = self.latents.get(start, 0) + len(mean)
        values = {"occupied": self._of_maps, "latents": self._of_latents}
        return np.full(len(mean), values.get(volume, 0), np.int32)


class TestPatches:
    """A patch has 2x2 cells, which are 4x4 latents."""

    groups = (*shipped()["groups"].tolist(),)
    starts = (*itertools.accumulate(groups, initial=0),)

    def sparse(self, height: int, width: int, seed: int = 0) -> Ints:
        """Latents of which one in 30 patches has a symbol of a group."""
        rng = np.random.default_rng(seed)
        found = np.zeros((height, width, self.starts[-1]), np.int32)
        for start, end in itertools.pairwise(self.starts):
            places = rng.random((height, width)) < 1 / 480
            found[places, rng.integers(start, end)] = rng.choice([-3, -1, 1, 40])
        found[-1, -1, -1] = 1
        return found

    def hyper(self, height: int, width: int) -> Ints:
        return np.zeros((-(-height // 2), -(-width // 2), 32), np.int32)

    @pytest.mark.parametrize("size", [(1, 1), (3, 5), (16, 16), (33, 18)])
    def test_symbols_come_back(self, size: tuple[int, int]) -> None:
        symbols = self.sparse(*size)
        payload = payload_of(symbols, self.hyper(*size), 0)
        assert np.array_equal(read_whole(payload, size=size), symbols)

    @pytest.mark.parametrize("size", [(3, 5), (16, 16), (33, 18)])
    def test_symbols_of_changes_come_back(self, size: tuple[int, int]) -> None:
        """A patch may have cells that change, and others that stay as they were."""
        hyper, symbols = self.hyper(*size), self.sparse(*size)
        before = Coded(self.sparse(*size, seed=1), hyper)
        changed = np.random.default_rng(2).random(hyper.shape[:2]) < 0.3
        changed[-1, -1] = True
        payload = payload_of(symbols, hyper, 0, changed, before)
        of_latents = changed.repeat(2, 0).repeat(2, 1)[: size[0], : size[1], None]
        expected = np.where(of_latents, symbols, before.symbols)
        assert np.array_equal(read_whole(payload, before, size), expected)

    def test_an_encoder_knows_the_patches_with_symbols(self) -> None:
        steps = np.zeros((6, 9, self.starts[-1]))
        steps[5, 8, self.starts[4]] = 0.6
        steps[2, 5, self.starts[5] - 1] = -1
        steps[0, 0, self.starts[5]] = 0.4  # this is rounded to 0
        found = prior(shipped()).volumes(steps)["occupied"]
        assert np.argwhere(found).tolist() == [[0, 1, 4], [1, 2, 4]]
        changed = np.zeros((3, 5), bool)
        changed[2, 4] = True
        found = prior(shipped()).volumes(steps, changed)["occupied"]
        assert np.argwhere(found).tolist() == [[1, 2, 4]]

    def test_only_later_groups_have_a_map(self) -> None:
        coder = MapsOnly()
        prior(shipped()).code(coder, 6, 9, HIGH)
        assert [index[2] for index, *_ in coder.maps] == [4, 5, 6, 7, 8]
        for (rows, columns, _), _, scale in coder.maps:
            assert list(zip(rows, columns, strict=True)) == [*np.ndindex(2, 3)]
            assert (scale == 12).all()

    @pytest.mark.parametrize("symbol", [0, 2, -1])
    def test_a_patch_without_symbols_has_no_stages(self, symbol: int) -> None:
        """Only a 1 says that a patch has symbols."""
        coder = MapsOnly(symbol, magnitude=1)
        found = prior(shipped()).code(coder, 6, 9, HIGH).symbols
        assert [*coder.latents] == [*self.starts[:FIRST_WITH_MAP]]
        assert found[..., : self.starts[FIRST_WITH_MAP]].all()
        assert not found[..., self.starts[FIRST_WITH_MAP] :].any()

    def test_only_patches_with_symbols_have_stages(self) -> None:
        symbols = np.ones((16, 16, self.starts[-1]), np.int32)
        symbols[4:, :, self.starts[-2] :] = 0
        symbols[:, 12:, self.starts[-2] :] = 0  # 4x12 latents are left
        quantizer = Noted(Case(symbols, self.hyper(16, 16), HIGH))
        prior(shipped()).code(quantizer, 16, 16, HIGH)
        assert sum(map(len, quantizer.predictions[-4:])) == 2 * 48 * self.groups[-1]

    @pytest.mark.parametrize("magnitude", [0, 1, 3, 100])
    @pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 2)])
    def test_the_mean_is_a_logarithm(self, magnitude: int, height: int, width: int) -> None:
        """It depends on the magnitudes of the group before.  They are at most 60."""
        coder = MapsOnly(magnitude=magnitude)
        prior(shipped()).code(coder, height, width, HIGH)
        for (_, mean, _), size, bias in zip(
            coder.maps, self.groups[3:], (328, 824, 632, 696, 232), strict=False
        ):
            total = 1 + height * width * size * min(magnitude, 60)
            octave = total.bit_length() - 1
            logarithm = 256 * octave + (total * 256 >> octave) - 256
            assert mean.tolist() == [min(logarithm + bias >> 8, 8)]

    @pytest.mark.parametrize("used", [0, 1])
    def test_a_map_may_say_anything(self, used: int) -> None:
        """Then a patch loses its symbols, or has symbols that are all 0."""
        symbols, hyper = self.sparse(16, 16), self.hyper(16, 16)
        besides = quality_map.volumes(None) | {"left out": np.zeros(1)}
        besides["occupied"] = np.full((4, 4, len(self.groups)), used, np.float32)
        quantizer = Quantizer(TABLES, symbols.astype(np.float64), hyper, besides=besides)
        prior(shipped()).code(quantizer, 16, 16, HIGH)
        expected = symbols.copy()
        if not used:
            expected[..., self.starts[FIRST_WITH_MAP] :] = 0
        assert np.array_equal(read_whole(quantizer.bytes()), expected)
