"""Latents to integers: what more effort saves, and that any choice of integers decodes."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pillow_sdz import weights
from pillow_sdz.arrays import Ints
from pillow_sdz.codings.integers import STEP_UNITS
from pillow_sdz.codings.lattice import LatticePrior
from pillow_sdz.codings.quantize import RATE_WEIGHT, Quantizer, RateDistortionQuantizer, encode
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
def outcome(step: int, effort: int) -> tuple[int, float]:
    """Bytes of the photo-like latents, and their squared error in squared steps."""
    latents = photo_like()
    payload = encode(PRIOR, latents, step, effort)
    error = decoded(payload, latents.shape, step) - latents * (STEP_UNITS / step)
    return len(payload), float((error**2).sum())


class Bits:
    """A coder of given symbols that counts the bits of an ideal code."""

    def __init__(self, symbols: Ints) -> None:
        self._symbols, self.bits = symbols, 0.0

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        symbols: Ints = self._symbols[index].ravel()
        self.bits += float(TABLES.bits(symbols, Prediction.of(mean, scale)).sum())
        return symbols


@functools.cache
def lagrangian(step: int, effort: int) -> float:
    """The value that the choice minimises.

    Whole bytes are too coarse to show what some efforts save.
    """
    latents = photo_like()
    symbols = decoded(encode(PRIOR, latents, step, effort), latents.shape, step)
    coder = Bits(symbols)
    PRIOR.code(coder, *latents.shape[:2], step)
    error = float(((symbols - latents * (STEP_UNITS / step)) ** 2).sum())
    return error + RATE_WEIGHT * coder.bits


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


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_the_more_effort_the_less_rate_and_distortion(step: int) -> None:
    costs = [lagrangian(step, effort) for effort in range(10)]
    assert all(later <= before for before, later in itertools.pairwise(costs))
    assert costs[0] > costs[3] > costs[6] > costs[9]


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_which_levels_of_effort_are_the_same(step: int) -> None:
    """Levels differ in three ways: rounding, one pass, and the number of rounds of alternatives."""
    outcomes = [outcome(step, effort) for effort in range(10)]
    assert len(set(outcomes[:3])) == len(set(outcomes[3:6])) == 1
    assert len(set(outcomes)) == 6


@pytest.mark.parametrize("effort", [4, 6])
def test_fewer_bytes_at_less_error_than_rounding(effort: int) -> None:
    # Rounding has a step of 0.5. A finer step makes up for the choices by rate.
    size, error = outcome(512, 0)
    chosen_size, chosen_error = outcome(448, effort)
    assert chosen_error * 448**2 < error * 512**2
    assert chosen_size < size


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


def test_no_weight_rounds() -> None:
    steps = photo_like().astype(np.float64) * 3
    rounding = Quantizer(TABLES, steps, np.zeros(0))
    weightless = RateDistortionQuantizer(TABLES, steps, 0)
    for quantizer in (rounding, weightless):
        PRIOR.code(quantizer, *steps.shape[:2], 341)
    assert weightless.bytes() == rounding.bytes()


@pytest.mark.parametrize("effort", [0, 3, 6])
@pytest.mark.parametrize("shape", [(1, 1, 4), (2, 1, 4), (3, 17, 4)])
def test_small_shapes(shape: tuple[int, int, int], effort: int) -> None:
    latents = photo_like()[: shape[0], : shape[1]]
    symbols = decoded(encode(PRIOR, latents, 300, effort), shape, 300)
    assert np.abs(symbols - latents * (STEP_UNITS / 300)).max() <= 1


@pytest.mark.parametrize("effort", [0, 4, 6])
@pytest.mark.parametrize("value", [0.0, 0.74, -3.0])
def test_constant_latents(value: float, effort: int) -> None:
    latents = np.full((24, 24, 4), value, np.float32)
    payload = encode(PRIOR, latents, 512, effort)
    rounded = encode(PRIOR, latents, 512, 0)
    symbols = decoded(payload, latents.shape, 512)
    costs = [
        float(((decoded(p, latents.shape, 512) - latents * 2) ** 2).sum())
        + RATE_WEIGHT * 8 * len(p)
        for p in (payload, rounded)
    ]
    assert costs[0] <= costs[1]
    if effort < 6 and value * 2 == round(value * 2):  # more effort may find what saves more bits
        assert (symbols == value * 2).all()


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
    # Nothing is predicted from anything, so one pass already finds the best.
    assert payload == encode(Grouped(), latents, 512, 4)
    assert np.abs(symbols - latents * 2).max() <= 1
