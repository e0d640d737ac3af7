"""Latents to integers: what more effort saves, and that any choice of integers decodes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pillow_sdz import weights
from pillow_sdz.arrays import Ints
from pillow_sdz.codings.integers import STEP_UNITS
from pillow_sdz.codings.lattice import LatticePrior
from pillow_sdz.codings.quantize import (
    Quantizer,
    RateDistortionQuantizer,
    ThriftyQuantizer,
    encode,
    rate_weights,
)
from pillow_sdz.codings.range_coder import (
    MEAN_UNITS,
    SCALES,
    SYMBOL_LIMIT,
    Prediction,
    SymbolDecoder,
    SymbolEncoder,
    Tables,
)

TABLES = Tables.shipped()
PRIOR = LatticePrior.shipped(weights.SD1_PRIOR)
STEPS = [256, 1024]  # in 1/1024


@functools.cache
def photo_like(height: int = 20, width: int = 28) -> NDArray[np.float32]:
    """Latents (h, w, 4) with edges, waves and noise. The noise is stronger in one half."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:height, :width]
    edge = np.where(x + 0.4 * y > width / 2, 0.8, -0.6)
    strength = np.where(y < height / 2, 0.05, 0.4)
    planes = [
        (1 - 0.3 * c) * edge
        + 0.5 * np.sin(0.2 * x * (c + 1) + 0.1 * y)
        + rng.normal(0, 1, (height, width)) * strength
        for c in range(4)
    ]
    return np.stack(planes, axis=2).astype(np.float32)


def decoded(payload: bytes, shape: tuple[int, ...], step: int) -> Ints:
    decoder = SymbolDecoder(TABLES, payload)
    symbols = PRIOR.code(decoder, shape[0], shape[1], step)
    decoder.finish()
    return symbols


@functools.cache
def outcome(step: int, effort: int) -> tuple[int, NDArray[np.float64]]:
    """Bytes of the photo-like latents, and their errors (h, w, C) in steps."""
    latents = photo_like()
    payload = encode(PRIOR, latents, step, effort)
    return len(payload), decoded(payload, latents.shape, step) - latents * (STEP_UNITS / step)


def means(values: NDArray[np.float64], side: int = 4) -> NDArray[np.float64]:
    """The means of squares of places, which lie side by side."""
    height, width, channels = (values.shape[0] // side, values.shape[1] // side, values.shape[2])
    cut = values[: height * side, : width * side]
    return cut.reshape(height, side, width, side, channels).mean((1, 3))


@pytest.mark.parametrize("mean", [-37, 0, 3, 4, 5 * MEAN_UNITS])
@pytest.mark.parametrize("scale", [0, 20, 63, 64, SCALES - 1])
@pytest.mark.parametrize("symbol", [-SYMBOL_LIMIT, -4000, -300, -2, 0, 5, 6, 70, SYMBOL_LIMIT])
def test_bits_are_those_that_an_encoder_takes(symbol: int, mean: int, scale: int) -> None:
    count = 99
    symbols = np.resize([symbol, 7, -1], count)
    prediction = Prediction.of(np.full(count, mean), np.full(count, scale))
    encoder = SymbolEncoder(TABLES)
    encoder.encode(symbols, prediction)
    bits = TABLES.bits(symbols, prediction)
    # The coder writes whole bytes, and ends at the shortest point of its last interval.
    assert 8 * len(encoder.bytes()) == pytest.approx(bits.sum(), abs=16)


@pytest.mark.parametrize("effort", [0, 1, 2])
def test_low_effort_rounds(effort: int) -> None:
    latents = photo_like()
    symbols = decoded(encode(PRIOR, latents, 512, effort), latents.shape, 512)
    assert np.array_equal(symbols, np.rint(latents * 2))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("effort", [4, 6])
def test_no_latent_moves_farther_than_to_its_other_neighbour(step: int, effort: int) -> None:
    latents = photo_like()
    symbols = decoded(encode(PRIOR, latents, step, effort), latents.shape, step)
    assert np.abs(symbols - latents * (STEP_UNITS / step)).max() <= 1


@pytest.mark.parametrize("step", STEPS)
def test_which_levels_of_effort_are_the_same(step: int) -> None:
    """Levels round, or go over the latents once or three times."""
    payloads = [encode(PRIOR, photo_like(), step, effort) for effort in range(10)]
    assert [payloads.index(payload) for payload in payloads] == [0, 0, 0, 3, 3, 3, 6, 6, 6, 6]


@pytest.mark.parametrize("effort", [4, 6])
def test_errors_of_neighbours_make_up_for_each_other(effort: int) -> None:
    (rounded_size, rounded), (size, chosen) = outcome(256, 0), outcome(256, effort)
    assert size < rounded_size
    assert (means(chosen) ** 2).mean() < 0.8 * (means(rounded) ** 2).mean()


@pytest.mark.parametrize("effort", [4, 6])
def test_coarse_steps_save_more_bytes(effort: int) -> None:
    (rounded_size, rounded), (size, chosen) = outcome(1024, 0), outcome(1024, effort)
    assert size < 0.9 * rounded_size
    assert (means(chosen) ** 2).mean() < 1.1 * (means(rounded) ** 2).mean()


@pytest.mark.parametrize("effort", [4, 6])
def test_a_slope_keeps_its_height(effort: int) -> None:
    """The prior expects what was before, so rate alone would make steps of a slope."""
    y, x = np.mgrid[:32, :48]
    slope = np.stack([0.02 * x, 0.02 * y, -0.02 * x, 0.01 * (x + y)], axis=2).astype(np.float32)
    errors = [
        decoded(encode(PRIOR, slope, 512, e), slope.shape, 512) - slope * 2 for e in (0, effort)
    ]
    assert np.abs(means(errors[1])).mean() <= np.abs(means(errors[0])).mean()
    assert abs(errors[1].mean()) < 0.02


def test_one_pass_weighs_each_symbol_alone() -> None:
    # 0.6 steps lie between 0 and 1. Taking 0 costs 0.6 ** 2 - 0.4 ** 2 = 0.2 squared steps.
    latents, mean, scale = np.full((1, 1, 1), 0.6), np.zeros(1, np.int64), np.full(1, 30)
    prediction = Prediction.of(mean, scale)
    saved = TABLES.bits(np.ones(1, np.int64), prediction) - TABLES.bits(
        np.zeros(1, np.int64), prediction
    )
    index = (0, 0, slice(0, 1))
    for weight, symbol in ((0.19 / saved[0], 1), (0.21 / saved[0], 0)):
        quantizer = RateDistortionQuantizer(TABLES, latents, weight)
        assert quantizer.code("latents", index, mean, scale) == [symbol]


class TestThrift:
    """Of latents on an axis of rates, those whose second nearest integer saves enough bits."""

    MEAN = np.array([0, 0, 0, MEAN_UNITS, MEAN_UNITS])
    # The third one is the likeliest integer already.  The last one has 3 for its second nearest.
    LATENTS = np.array([0.6, -0.6, 0.4, 0.4, 2.4]).reshape(1, 5, 1)

    def chosen(self, weights: NDArray[np.float64], volume: str = "latents") -> list[int]:
        hyper = np.array([0.6, -0.6, 2.4]).reshape(1, 3, 1)
        quantizer = ThriftyQuantizer(TABLES, self.LATENTS, hyper, weights)
        index = np.zeros(len(self.MEAN), int), np.arange(len(self.MEAN)), slice(0, 1)
        if volume == "hyper":
            index = np.zeros(3, int), np.arange(3), slice(0, 1)
        mean = self.MEAN[: len(index[0])]
        return list(quantizer.code(volume, index, mean, np.full(len(mean), 20)))

    def test_without_a_weight_all_are_rounded(self) -> None:
        assert self.chosen(np.zeros(())) == [1, -1, 0, 0, 2]

    def test_with_a_large_weight_all_are_as_likely_as_they_can_be(self) -> None:
        assert self.chosen(np.array(1e9)) == [0, 0, 0, 1, 2]

    def test_each_cell_has_its_weight(self) -> None:
        assert self.chosen(np.array([[1.0, 0.0, 0.0]])) == [0, 0, 0, 0, 2]
        assert self.chosen(np.array([[0.0, 1.0, 0.0]])) == [1, -1, 0, 1, 2]

    def test_hyperlatents_are_rounded(self) -> None:
        assert self.chosen(np.array(1e9), "hyper") == [1, -1, 2]

    def test_the_weight_is_lambda(self) -> None:
        """The distance of 0.6 from 0 and from 1 differs by 0.2 squared steps."""
        prediction = Prediction.of(self.MEAN[:1], np.full(1, 20))
        bits = [TABLES.bits(np.full(1, symbol), prediction)[0] for symbol in (0, 1)]
        enough = 0.2 / (bits[1] - bits[0])
        assert self.chosen(np.array(0.99 * enough))[0] == 1
        assert self.chosen(np.array(1.01 * enough))[0] == 0

    def test_it_saves_bits(self) -> None:
        latents = np.random.default_rng(3).laplace(0, 1, (8, 8, 12))
        sizes = []
        for kind, extra in ((Quantizer, ()), (ThriftyQuantizer, (np.array(0.1),))):
            quantizer = kind(TABLES, latents, np.zeros((4, 4, 1)), *extra)
            count = latents.size
            rows, columns = np.indices((8, 8)).reshape(2, -1)
            index = (rows, columns, slice(0, 12))
            quantizer.code("latents", index, np.zeros(count, int), np.full(count, 36))
            sizes.append(len(quantizer.bytes()))
        assert sizes[1] < 0.98 * sizes[0]

    def test_weights_grow_along_the_axis(self) -> None:
        """A reader of low rates would miss what little there is."""
        weights = rate_weights(np.array([[0, 2000], [4000, 10_000]]))
        assert weights.shape == (2, 2)
        assert list(weights.ravel()) == sorted(weights.ravel())
        assert weights[0, 0] < 0.01 < weights[1, 1]


def test_an_error_before_moves_the_target() -> None:
    # The first symbol is 0.4 too small. The next latent, 0.3, is then better off as 1.
    latents = np.array([0.4, 0.3]).reshape(1, 2, 1)
    quantizer = RateDistortionQuantizer(TABLES, latents, 0)
    symbols = [
        int(quantizer.code("latents", (0, x, slice(0, 1)), np.zeros(1, int), np.full(1, 30))[0])
        for x in (0, 1)
    ]
    assert symbols == [0, 1]


def test_a_pass_before_tells_the_errors_after() -> None:
    # In the pass before, the second symbol was 0.4 too large. So 0.6 becomes 0.
    latents = np.array([0.6, 0.6]).reshape(1, 2, 1)
    quantizer = RateDistortionQuantizer(TABLES, latents, 0, np.ones((1, 2, 1), np.int64))
    first = quantizer.code("latents", (0, 0, slice(0, 1)), np.zeros(1, int), np.full(1, 30))
    assert first == [0]


@pytest.mark.parametrize("effort", [0, 3, 6])
@pytest.mark.parametrize("shape", [(1, 1, 4), (2, 1, 4), (3, 17, 4)])
def test_small_shapes(shape: tuple[int, int, int], effort: int) -> None:
    latents = photo_like()[: shape[0], : shape[1]]
    symbols = decoded(encode(PRIOR, latents, 300, effort), shape, 300)
    assert np.abs(symbols - latents * (STEP_UNITS / 300)).max() <= 1


@pytest.mark.parametrize("effort", [0, 4, 6])
@pytest.mark.parametrize("value", [0.0, 0.74, -3.0])
def test_constant_latents(value: float, effort: int) -> None:
    """A constant that lies between two steps becomes a pattern with the same mean, if that pays."""
    latents = np.full((24, 24, 4), value, np.float32)
    symbols = decoded(encode(PRIOR, latents, 512, effort), latents.shape, 512)
    if value * 2 == round(value * 2):
        assert (symbols == value * 2).all()
    assert abs(symbols.mean() - value * 2) <= abs(round(value * 2) - value * 2) + 1e-6


@pytest.mark.parametrize("effort", [0, 4, 6])
@pytest.mark.parametrize("step", [1, 65535])
@pytest.mark.parametrize("largest", [0.01, 1.0, 500.0, 1e6, 3e38])
def test_extremes(largest: float, step: int, effort: int) -> None:
    latents = (photo_like()[:11, :13] * (largest / 3)).astype(np.float32)
    symbols = decoded(encode(PRIOR, latents, step, effort), latents.shape, step)
    limited = np.clip(latents.astype(np.float64) * (STEP_UNITS / step), -SYMBOL_LIMIT, SYMBOL_LIMIT)
    assert np.abs(symbols - limited).max() <= 1


class Grouped:
    """A prior with two stages. Each has all channels of half of the places."""

    def code(self, coder: Any, height: int, width: int, step: int) -> Ints:
        symbols = np.zeros((height, width, 3), np.int64)
        for half in (slice(0, None, 2), slice(1, None, 2)):
            index = (slice(None), half, slice(None))
            zeros = np.zeros(symbols[index].size, np.int64)
            symbols[index] = coder.code("latents", index, zeros, zeros + 24).reshape(
                symbols[index].shape
            )
        return symbols


def test_any_prior_of_the_interface() -> None:
    latents = photo_like()[:, :, :3]
    payload = encode(Grouped(), latents, 512, 8)
    decoder = SymbolDecoder(TABLES, payload)
    symbols = Grouped().code(decoder, *latents.shape[:2], 512)
    decoder.finish()
    assert np.abs(symbols - latents * 2).max() <= 1
