"""The lattice prior: latents without hyperlatents become a payload and come back exactly."""

from __future__ import annotations

import functools
import hashlib
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from pillow_sdz import weights
from pillow_sdz.arrays import Ints
from pillow_sdz.codings import lattice_network
from pillow_sdz.codings.integers import STEP_UNITS, logarithm
from pillow_sdz.codings.lattice import LatticePrior
from pillow_sdz.codings.quantize import Quantizer
from pillow_sdz.codings.range_coder import DamagedPayload, SymbolDecoder, Tables
from sample_latents import flipped, outputs_by_threads

GOLDEN = Path(__file__).parent.parent / "fixtures" / "lattice.safetensors"

Stage = list[tuple[int, int, int, int, int]]  # row, column, channel, mean, scale

SHAPES = [(1, 1), (1, 2), (2, 1), (1, 40), (3, 3), (5, 4), (9, 17), (16, 16), (33, 31), (64, 96)]
STEPS = [1, 51, 256, 512, 1024, 4096, 65535]  # in 1/1024; 51 is 0.05, 4096 is 4


def smooth_latents(height: int, width: int, seed: int = 0) -> NDArray[np.float64]:
    """Latents (h, w, 4) like those of a photo: waves, an edge and some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = []
    for _ in range(4):
        a, b, phase = rng.uniform(-0.15, 0.15, 3)
        wave = np.sin(a * y + b * x + 20 * phase)
        edge = rng.uniform(-1, 1) * (y * rng.uniform(-1, 1) + x > width / 2)
        planes.append(wave + edge + rng.normal(0, 0.1, (height, width)))
    return np.stack(planes, axis=2)


def encode(symbols: Ints, step: int) -> bytes:
    quantizer = Quantizer(Tables.shipped(), symbols.astype(np.float64), np.zeros(0, np.int64))
    coded = LatticePrior.shipped(weights.SD1_PRIOR).code(
        quantizer, symbols.shape[0], symbols.shape[1], step
    )
    assert np.array_equal(coded, symbols)
    return quantizer.bytes()


def decode(payload: bytes, height: int, width: int, step: int) -> Ints:
    decoder = SymbolDecoder(Tables.shipped(), payload)
    symbols = LatticePrior.shipped(weights.SD1_PRIOR).code(decoder, height, width, step)
    decoder.finish()
    return symbols


def quantised(latents: NDArray[np.float64], step: int) -> Ints:
    symbols: Ints = np.rint(latents * STEP_UNITS / step).astype(np.int64)
    return symbols


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_exact_round_trip(height: int, width: int, step: int) -> None:
    symbols = quantised(smooth_latents(height, width), step)
    assert np.array_equal(decode(encode(symbols, step), height, width, step), symbols)


def test_more_places_than_are_evaluated_at_once() -> None:
    # 300 * 250 / 2 places in the last pass. These are many pieces, whose context is computed anew.
    symbols = quantised(smooth_latents(300, 250), 512)
    assert np.array_equal(decode(encode(symbols, 512), 300, 250, 512), symbols)


@pytest.mark.parametrize("largest", [1, 300, 40_000, (1 << 19) - 1])
def test_integers_that_no_network_expects(largest: int) -> None:
    rng = np.random.default_rng(1)
    symbols = rng.integers(-largest, largest, (11, 13, 4), endpoint=True)
    assert np.array_equal(decode(encode(symbols, 1024), 11, 13, 1024), symbols)


@pytest.mark.parametrize(
    ("height", "width", "step"), [(0, 5, 9), (5, 0, 9), (5, 5, 0), (5, 5, 1 << 16)]
)
def test_sizes_and_steps_out_of_range_are_refused(height: int, width: int, step: int) -> None:
    with pytest.raises(ValueError, match="cannot code latents"):
        decode(b"", height, width, step)


def test_smooth_latents_take_fewer_bytes_than_their_histogram() -> None:
    for step in (256, 512, 1024):
        symbols = quantised(smooth_latents(64, 96), step)
        entropy = 0.0
        for channel in symbols.reshape(-1, 4).T:
            counts = np.unique(channel, return_counts=True)[1]
            entropy -= float((counts * np.log2(counts / len(channel))).sum())
        assert len(encode(symbols, step)) < 0.9 * entropy / 8


def test_hidden_layers_saturate() -> None:
    """Outputs are cut at the limit of docs/lattice.md, and rounded down.

    A last row of ones is for the bias.
    """
    layer = np.array([[-1.5, 0, 0.9, 1, 4094.9, 4095, 4096, 2**23]], np.float32)
    found = lattice_network._rectified(layer)
    assert found.tolist() == [[0, 0, 0, 1, 4094, 4095, 4095, 4095], [1] * 8]


def test_logarithm_is_exact_at_powers_of_two_and_monotone() -> None:
    powers = np.array([2.0**n for n in range(50)])
    assert np.array_equal(logarithm(powers), 256 * (np.arange(50) - 10))
    assert (np.diff(logarithm(np.arange(1.0, 5000.0))) >= 0).all()
    assert logarithm(np.array([1536.0])) == [128]  # linear between powers: half way is half


# Prints a digest of a payload and of what it decodes to.
CODE = """
import hashlib
from test_lattice import decode, encode, quantised, smooth_latents
payload = encode(quantised(smooth_latents(64, 96), 333), 333)
print(hashlib.sha256(payload + decode(payload, 64, 96, 333).tobytes()).hexdigest())
"""


def test_threads_do_not_change_a_bit() -> None:
    digests = outputs_by_threads(CODE)
    payload = encode(quantised(smooth_latents(64, 96), 333), 333)
    here = hashlib.sha256(payload + decode(payload, 64, 96, 333).tobytes()).hexdigest()
    assert digests == {here + "\n"}


def test_damaged_payloads_raise_nothing_but_damage() -> None:
    symbols = quantised(smooth_latents(17, 12), 512)
    payload = encode(symbols, 512)
    rng = np.random.default_rng(2)
    hostile = [payload[:n] for n in range(0, len(payload), 7)]
    hostile += [rng.bytes(n) for n in range(40)]
    hostile += [b"\xff" * 64, b"\xff" * 3, payload + b"\x01", payload + b"\0"]
    hostile += flipped(payload)
    refused = 0
    for words in hostile:
        try:
            decode(words, 17, 12, 512)
        except DamagedPayload:
            refused += 1
    # Not all damage can be noticed: any words decode to something. Checksums are in the container.
    assert refused > 0


def test_the_largest_symbols_do_not_overflow() -> None:
    class Extremes:
        """A coder that returns the largest symbols with alternating signs."""

        def code(self, volume: str, index: object, mean: Ints, scale: Ints) -> Ints:
            assert mean.dtype == scale.dtype == np.int64
            # The networks add a bounded number to the nearest values. An overflow is larger.
            assert np.abs(mean).max(initial=0) < 1 << 40
            assert np.abs(scale).max(initial=0) < 1 << 40
            return np.where(np.arange(len(mean)) % 2, 1 << 19, -(1 << 19))

    LatticePrior.shipped(weights.SD1_PRIOR).code(Extremes(), 20, 20, 65535)


def stages_by_the_specification(symbols: Ints, step: int) -> list[Stage]:
    """The stages of docs/lattice.md, computed one place after another."""
    height, width, channels = symbols.shape
    tensors = load_file(weights.SD1_PRIOR.path)
    coded = np.zeros(symbols.shape, bool)
    stages: list[Stage] = []

    def affine(name: str, *inputs: list[int]) -> list[int]:
        total = tensors[f"{name}.bias"].astype(np.int64)
        for i, x in enumerate(inputs):
            product = tensors[f"{name}.weight{i}"].astype(np.int64) @ np.array(x)
            total = total + product * tensors[f"{name}.multiplier{i}"]
        shift = int(tensors[f"{name}.shift"][0])
        return [(int(t) + (1 << (shift - 1))) >> shift for t in total]

    @functools.cache
    def layer_weights(name: str) -> list[tuple[list[int], int, int]]:
        """For each output: the weights of all inputs, the bias, and the shift."""
        kind = name.partition(".")[2]
        scale = Fraction(1, 2 ** int(tensors[f"{name}.shift"][0]))
        units = {"first": [4, 1], "second": [8], "output": [8, 4, 1]}[kind]
        found = []
        for j, bias in enumerate(tensors[f"{name}.bias"].tolist()):
            scaled = scale / (8 if kind != "output" else (4, 2)[j])
            weights: list[Fraction] = []
            for i, unit in enumerate(units):
                multiplier = int(tensors[f"{name}.multiplier{i}"][j])
                row = tensors[f"{name}.weight{i}"][j].tolist()
                weights += [w * multiplier * scaled * unit for w in row]
            largest = [4095] * len(weights)
            if kind != "second":
                largest[-4:] = [256] * 4
            offset = bias * scaled + Fraction(1, 2)

            def total(p: int) -> tuple[list[int], int, int]:
                # Fractions are rounded to the nearest integer, halves to the even one.
                whole = [round(w * 2**p) for w in weights]  # noqa: B023
                last = round(offset * 2**p)  # noqa: B023
                size = sum(abs(w) * x for w, x in zip(whole, largest, strict=True))  # noqa: B023
                return whole, last, size + abs(last)

            p = 0
            while p < 25 and total(p + 1)[2] < 1 << 24:
                p += 1
            found.append((*total(p)[:2], p))
        return found

    def layer(name: str, *inputs: list[int]) -> list[int]:
        x = [*chain(*inputs)]
        return [
            (sum(w * v for w, v in zip(weights, x, strict=True)) + bias) >> p
            for weights, bias, p in layer_weights(name)
        ]

    def log(x: int) -> int:
        e = x.bit_length() - 1
        return 256 * (e - 10) + 256 * (x - (1 << e)) // (1 << e)

    def clip(x: list[int], lowest: int = -4095) -> list[int]:
        return [max(lowest, min(4095, v)) for v in x]

    def rounded(mean: int, scale: int) -> int:
        r = min(max((scale >> 3) - 4, 0), 3)
        return mean + (2**r >> 1) >> r << r

    def signs(*offsets: tuple[int, int]) -> list[tuple[int, int]]:
        every = [(y * a, x * b) for y, x in offsets for a in (1, -1) for b in (1, -1)]
        return list(dict.fromkeys(every))

    def value(row: int, column: int, channel: int) -> int:
        known = coded[row, column, channel]
        v = int(symbols[row, column, channel]) * step >> 2
        return max(-(2**20), min(2**20, v)) if known else 0

    def mirrored(i: int, length: int) -> int:
        t = abs(i) % (2 * (length - 1)) if length > 1 else 0
        return min(t, 2 * (length - 1) - t) if length > 1 else 0

    def finish(stage: Stage) -> None:
        if stage:
            stages.append(stage)
        for row, column, channel, _, _ in stage:
            coded[row, column, channel] = True

    for c in range(channels):
        stage: Stage = []
        for row in range(0, height, 16):
            for column in range(0, width, 16):
                products = [int(symbols[row, column, b]) * step for b in range(c)]
                base = [max(-32767, min(32767, v)) for v in products]
                m, k = affine(f"base{c}", [log(step)], *([base] if c else []))
                k = k + 1 >> 1 << 1
                stage.append((row, column, c, rounded((16 * m + step) // (2 * step), k), k))
        finish(stage)
    for s in (8, 4, 2, 1):
        rows, columns = -(-height // s), -(-width // s)
        for name, kinds, known, before in (
            ("centre", [(1, 1)], signs((1, 1), (1, 3), (3, 1)), signs((0, 0), (0, 2), (2, 0))),
            (
                "between",
                [(0, 1), (1, 0)],
                signs((0, 1), (1, 0), (1, 2), (2, 1), (0, 3), (3, 0)),
                signs((0, 0), (1, 1), (0, 2), (2, 0)),
            ),
        ):
            earlier = coded.copy()
            for c in range(channels):
                stage = []
                for i, j in [
                    (i, j)
                    for y, x in kinds
                    for i in range(y, rows, 2)
                    for j in range(x, columns, 2)
                ]:

                    def at(offset: tuple[int, int], b: int, i: int = i, j: int = j) -> int:
                        row = mirrored(i + offset[0], rows) * s  # noqa: B023
                        return value(row, mirrored(j + offset[1], columns) * s, b)  # noqa: B023

                    now, coded = coded, earlier
                    v = [[at(t, b) for t in known] for b in range(channels)]
                    coded = now
                    mean = [(sum(near[:4]) + 2) >> 2 for near in v]
                    u = [[at(t, b) - mean[b] for t in before] for b in range(c)]
                    v = [[x - m for x in near] for near, m in zip(v, mean, strict=True)]
                    floor = (step >> 4) + 8
                    x = clip([*chain(*v), *mean, *chain(*u)])
                    logs = [log(sum(map(abs, near[:4])) + floor) + 512 for near in v]
                    logs += [log(abs(near[0]) + floor) + 512 for near in u] + [log(step)]
                    logs = [*clip(logs), *(256 * (s == t) for t in (8, 4, 2, 1))]
                    hidden = clip(layer(f"{name}{c}.first", x, logs), 0)
                    hidden = clip(layer(f"{name}{c}.second", hidden), 0)
                    m, q = layer(f"{name}{c}.output", hidden, x, logs)
                    m = (64 * (mean[c] + m) + step) // (2 * step)
                    stage.append((i * s, j * s, c, rounded(m, 2 * q), 2 * q))
                finish(stage)
    return stages


@pytest.mark.parametrize(("height", "width", "step"), [(11, 18, 512), (1, 9, 100), (2, 3, 3000)])
def test_the_specification_says_what_the_code_does(height: int, width: int, step: int) -> None:
    symbols = quantised(smooth_latents(height, width), step)
    stages: list[Stage] = []

    class Recorder:
        """A coder that returns the symbols and keeps what it was asked."""

        def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
            rows, columns, channel = index
            places = (rows, columns, np.full_like(rows, channel), mean, scale)
            stages.append(list(zip(*(p.tolist() for p in places), strict=True)))
            chosen: Ints = symbols[index]
            return chosen

    LatticePrior.shipped(weights.SD1_PRIOR).code(Recorder(), height, width, step)
    assert stages == stages_by_the_specification(symbols, step)


@pytest.mark.parametrize("case", ["photo", "odd", "single", "wild"])
def test_golden_payloads(case: str) -> None:
    """These payloads never change. If this fails, files written earlier cannot be read any more."""
    record = load_file(GOLDEN)
    symbols = record[f"{case}.symbols"].astype(np.int64)
    payload = record[f"{case}.payload"].tobytes()
    step = int(record[f"{case}.step"][0])
    assert np.array_equal(decode(payload, symbols.shape[0], symbols.shape[1], step), symbols)
    assert encode(symbols, step) == payload
