"""The range coder: symbols to words and back, exactly. Damage raises only DamagedPayload."""

from __future__ import annotations

import contextlib
import hashlib
import math
import random

import constriction
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from pillow_sdz import weights
from pillow_sdz.arrays import Ints
from pillow_sdz.codings.range_coder import (
    MEAN_UNITS,
    NORMAL,
    PHASED_SCALES,
    PHASES,
    SCALES,
    SYMBOL_LIMIT,
    DamagedPayload,
    Prediction,
    SymbolDecoder,
    SymbolEncoder,
    Tables,
)
from range_coder import RangeDecoder

TABLES = Tables.shipped()


def some_symbols(count: int, seed: int) -> tuple[Ints, Ints, Ints]:
    """Symbols with means and scales that fit them, and some that do not fit."""
    rng = np.random.default_rng(seed)
    scale = rng.integers(-3, SCALES + 3, count)
    normal = rng.random(count) < 0.3
    scale[normal] = NORMAL + rng.integers(0, PHASED_SCALES, int(normal.sum()))
    mean = rng.normal(0, 40, count).astype(np.int64)
    spread = 2.0 ** (np.clip(scale & ~NORMAL, 0, SCALES - 1) / 8 - 5)
    symbols = np.rint(mean / MEAN_UNITS + rng.logistic(0, spread)).astype(np.int64)
    surprising = rng.random(count) < 0.01
    symbols[surprising] += rng.integers(-300_000, 300_000, int(surprising.sum()))
    return symbols, mean, scale


def tables() -> list[NDArray[np.int64]]:
    """The frequencies of each table."""
    ends = np.cumsum(2 * TABLES.reach + 2)
    return np.split(load_file(weights.TABLES.path)["frequencies"].astype(np.int64), ends[:-1])


def encoded(symbols: Ints, mean: Ints, scale: Ints) -> bytes:
    encoder = SymbolEncoder(TABLES)
    encoder.encode(symbols, Prediction.of(mean, scale))
    return encoder.bytes()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 1000, 20_000])
def test_round_trip(count: int) -> None:
    symbols, mean, scale = some_symbols(count, count)
    decoder = SymbolDecoder(TABLES, encoded(symbols, mean, scale))
    assert np.array_equal(decoder.code("any", (), mean, scale), symbols)
    decoder.finish()


@pytest.mark.parametrize("count", [1, 2, 500])
@pytest.mark.parametrize("scale", [0, 40, 95])
def test_a_stage_with_one_table(count: int, scale: int) -> None:
    """Some symbols are beyond the table."""
    rng = np.random.default_rng(count + scale)
    scales = np.full(count, scale)
    symbols = np.rint(rng.logistic(0, 2.0 ** (scale / 8 - 5), count)).astype(np.int64)
    symbols[::7] = rng.integers(-300_000, 300_000, len(symbols[::7]))
    mean = 8 * rng.integers(-20, 20, count)
    decoder = SymbolDecoder(TABLES, encoded(symbols, mean, scales))
    assert np.array_equal(decoder.code("any", (), mean, scales), symbols)
    decoder.finish()


@pytest.mark.parametrize("seed", range(300))
def test_no_byte_too_many(seed: int) -> None:
    """Every payload decodes. Without its last byte it is the payload of other symbols."""
    symbols, mean, scale = some_symbols(seed % 60 + 1, seed)
    payload = encoded(symbols, mean, scale)
    decoder = SymbolDecoder(TABLES, payload)
    assert np.array_equal(decoder.code("any", (), mean, scale), symbols)
    decoder.finish()
    shorter = payload[:-1].rstrip(b"\0")
    with contextlib.suppress(DamagedPayload):
        assert not np.array_equal(SymbolDecoder(TABLES, shorter).code("", (), mean, scale), symbols)


def test_largest_symbols_round_trip() -> None:
    symbols = np.array([SYMBOL_LIMIT, -SYMBOL_LIMIT, SYMBOL_LIMIT, -SYMBOL_LIMIT])
    mean = np.array([0, 0, -SYMBOL_LIMIT * 8, 10**12])
    scale = np.zeros(4, np.int64)
    decoder = SymbolDecoder(TABLES, encoded(symbols, mean, scale))
    assert np.array_equal(decoder.code("any", (), mean, scale), symbols)


def test_tables_of_record() -> None:
    digest = "37f1a526bda6e21a946a4045a94cfc4de8b164b1fbc25a78b98bf7ef6dbb6c90"
    assert hashlib.sha256(weights.TABLES.path.read_bytes()).hexdigest() == digest


def test_golden_words() -> None:
    symbols = np.array([0, 1, -1, 3, 0, 0, -7, 900, 2])
    mean = np.array([0, 8, -3, 20, 1, -1, -50, 0, 100])
    scale = np.array([0, 20, 40, 44, 8, 8, 60, 30, 95])
    assert encoded(symbols, mean, scale).hex() == "f07a3fd1086c6c"


def test_every_table_is_a_distribution() -> None:
    """16-bit frequencies of at least 1 with a sum of 65536. Tables checks this when it loads."""
    assert len(TABLES.models) == 2 * PHASED_SCALES * PHASES + SCALES - PHASED_SCALES
    for frequencies in tables():
        assert frequencies.min() >= 1
        assert frequencies.sum() == 65536


def test_every_entry_is_decoded() -> None:
    """Models that decode and those that encode are the same distributions."""
    rng = np.random.default_rng(0)
    for models, frequencies in zip(
        zip(TABLES.models, TABLES.decoding, strict=True), tables(), strict=True
    ):
        entries = rng.integers(0, len(frequencies), 300).astype(np.int32)
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode(entries, models[0])
        decoder = constriction.stream.queue.RangeDecoder(encoder.get_compressed())
        assert np.array_equal(decoder.decode(models[1], len(entries)), entries)


@pytest.mark.parametrize("index", [14, 23, 40, 63])
@pytest.mark.parametrize("phase", [0, 3])
def test_normal_tables(index: int, phase: int) -> None:
    """The scale asks for one. Its deviation is 2 ** (index / 8 - 4), and its mean is the phase."""
    prediction = Prediction.of(np.array([phase]), np.array([NORMAL + index]))
    assert prediction.table.tolist() == [352 + 5 * index + phase]
    counts = tables()[prediction.table[0]][:-1]
    residuals = np.arange(len(counts)) - len(counts) // 2
    mean = np.average(residuals, weights=counts)
    # A number that is rounded has a twelfth of a step more variance.
    variance = np.average((residuals - mean) ** 2, weights=counts) - 1 / 12
    deviation = 2 ** (index / 8 - 4)
    if deviation > 0.7:
        assert mean == pytest.approx(phase / 8, abs=0.01)
        assert variance == pytest.approx(deviation**2, rel=0.02)
    beyond = math.erfc((0.5 - phase / 8) / deviation / math.sqrt(2)) / 2
    assert counts[residuals > 0].sum() / 65536 == pytest.approx(beyond, rel=0.02)


def test_tables_that_do_not_sum_are_refused() -> None:
    reach = TABLES.reach.astype(np.uint16)
    with pytest.raises(ValueError, match="65536"):
        Tables(np.ones(int((2 * TABLES.reach + 2).sum()), np.uint16), reach)
    with pytest.raises(ValueError, match="shape"):
        Tables(np.ones(3, np.uint16), reach)


def test_specification_decodes_the_same() -> None:
    """A second decoder, written from docs/format.md, reads what the package writes."""
    symbols, mean, scale = some_symbols(400, 5)
    prediction = Prediction.of(mean, scale)
    payload = encoded(symbols, mean, scale)
    all_frequencies = tables()

    decoder = RangeDecoder(payload)
    residuals = [0] * len(symbols)
    order = sorted(range(len(symbols)), key=lambda i: (prediction.table[i], i))
    for i in order:
        table = prediction.table[i]
        counts = [256 * int(f) for f in all_frequencies[table]]
        residuals[i] = decoder.decode(counts) - int(TABLES.reach[table])
    for i in range(len(symbols)):
        reach = int(TABLES.reach[prediction.table[i]])
        if residuals[i] == reach + 1:
            bits = decoder.decode([1 << 19] * 32)
            low = decoder.decode([1 << (23 - bits)] * (2 << bits))
            residuals[i] = (reach + (1 << bits) + (low >> 1)) * (-1 if low & 1 else 1)
    decoded = np.array(residuals) * prediction.mirror + prediction.centre
    assert np.array_equal(decoded, symbols)


@pytest.mark.parametrize("seed", range(200))
def test_damage_is_damage(seed: int) -> None:
    """This tests the coder alone, with valid framing.

    If words decode, encoding gives the same words.
    """
    rng = random.Random(seed)
    symbols, mean, scale = some_symbols(500, seed)
    payload = bytearray(encoded(symbols, mean, scale))
    for _ in range(rng.randint(1, 4)):
        payload[rng.randrange(len(payload))] = rng.randrange(1, 256)
    del payload[rng.randint(1, len(payload)) :]
    try:
        decoder = SymbolDecoder(TABLES, bytes(payload))
        decoded = decoder.code("any", (), mean, scale)
        decoder.finish()
    except DamagedPayload:
        return
    assert decoded.dtype == np.int64
    assert np.abs(decoded).max() <= SYMBOL_LIMIT
    assert encoded(decoded, mean, scale) == payload


@pytest.mark.parametrize("extra", [b"\0", b"\0\0\0\0", b"\1", b"more words than needed"])
def test_a_longer_payload_is_refused(extra: bytes) -> None:
    symbols, mean, scale = some_symbols(50, 1)
    decoder = SymbolDecoder(TABLES, encoded(symbols, mean, scale) + extra)
    decoder.code("any", (), mean, scale)
    with pytest.raises(DamagedPayload, match="do not end"):
        decoder.finish()


def test_other_words_of_the_same_symbols_are_refused() -> None:
    """Words above and below the encoder's are tried. Each list of symbols has one payload."""
    found = {"above": 0, "below": 0}
    for seed in range(40):
        symbols, mean, scale = some_symbols(20, seed)
        payload = encoded(symbols, mean, scale)
        below = (int.from_bytes(payload, "big") - 1).to_bytes(len(payload), "big") + b"\xff"
        for where, words in (("above", payload + b"\1"), ("below", below)):
            decoder = SymbolDecoder(TABLES, words)
            with contextlib.suppress(DamagedPayload):  # they may be words of other symbols
                if np.array_equal(decoder.code("any", (), mean, scale), symbols):
                    found[where] += 1
                    with pytest.raises(DamagedPayload, match="do not end"):
                        decoder.finish()
    assert min(found.values()) > 10


def test_a_payload_holds_one_list_of_symbols() -> None:
    """Each payload of two bytes is refused, or encoding its symbols gives the same payload."""
    _, mean, scale = some_symbols(12, 3)
    sound = 0
    for payload in (n.to_bytes(2, "big") for n in range(0, 65536, 37)):
        decoder = SymbolDecoder(TABLES, payload)
        try:
            symbols = decoder.code("any", (), mean, scale)
            decoder.finish()
        except DamagedPayload:
            continue
        assert encoded(symbols, mean, scale) == payload
        sound += 1
    assert sound > 0
