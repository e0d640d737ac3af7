"""The adaptive prior: latents of any model become a payload and come back exactly."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pillow_sdz.arrays import Ints
from pillow_sdz.codings.adaptive import FAR, WIDE, AdaptivePrior, solve
from pillow_sdz.codings.context import Context
from pillow_sdz.codings.float32 import BFloat16
from pillow_sdz.codings.integers import STEP_UNITS
from pillow_sdz.codings.priors import ADAPTIVE, ADAPTIVE_WIDE, WIDE_EFFORT
from pillow_sdz.codings.quantize import Quantizer
from pillow_sdz.codings.range_coder import DamagedPayload, SymbolDecoder, Tables
from sample_latents import correlated_latents, flipped, outputs_by_threads, pinned_symbols

Shape = tuple[int, int, int]
Stage = list[tuple[int, int, int, int, int]]  # row, column, channel, mean, scale

SHAPES = [(1, 1, 1), (1, 1, 4), (1, 9, 16), (9, 1, 4), (3, 5, 4), (2, 2, 20), (33, 31, 3)]
STEPS = [1, 51, 512, 4096, 65535]  # in 1/1024; 51 is 0.05, 4096 is 4


def encode(symbols: Ints, step: int, far: int = FAR) -> bytes:
    height, width, channels = symbols.shape
    quantizer = Quantizer(Tables.shipped(), symbols.astype(np.float64), np.zeros(0))
    coded = AdaptivePrior(channels, far).code(quantizer, height, width, step)
    assert np.array_equal(coded, symbols)
    return quantizer.bytes()


def decode(payload: bytes, shape: tuple[int, ...], step: int) -> Ints:
    decoder = SymbolDecoder(Tables.shipped(), payload)
    symbols = AdaptivePrior(shape[2]).code(decoder, shape[0], shape[1], step)
    decoder.finish()
    return symbols


def quantised(latents: NDArray[np.float64], step: int) -> Ints:
    symbols: Ints = np.rint(latents * STEP_UNITS / step).astype(np.int64)
    return symbols


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_exact_round_trip(shape: Shape, step: int) -> None:
    symbols = quantised(correlated_latents(*shape), step)
    assert np.array_equal(decode(encode(symbols, step), shape, step), symbols)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("largest", [0, 1, 300, 40_000, (1 << 19) - 1])
def test_integers_that_nothing_foretells(largest: int, channels: int) -> None:
    rng = np.random.default_rng(1)
    symbols = rng.integers(-largest, largest, (11, 13, channels), endpoint=True)
    assert np.array_equal(decode(encode(symbols, 1024), symbols.shape, 1024), symbols)


@pytest.mark.parametrize(
    ("height", "width", "step"), [(0, 5, 9), (5, 0, 9), (5, 5, 0), (5, 5, 1 << 16)]
)
def test_sizes_and_steps_out_of_range_are_refused(height: int, width: int, step: int) -> None:
    with pytest.raises(ValueError, match="cannot code latents"):
        decode(b"", (height, width, 4), step)


def entropy(symbols: Ints) -> float:
    """Bytes of each channel's integers with their histogram. The histogram costs nothing here."""
    bits = 0.0
    for channel in symbols.reshape(-1, symbols.shape[2]).T:
        counts = np.unique(channel, return_counts=True)[1]
        bits -= float((counts * np.log2(counts / len(channel))).sum())
    return bits / 8


@pytest.mark.parametrize("channels", [4, 16])
@pytest.mark.parametrize("unit", [0.1, 1, 30])
def test_whatever_the_latents_scale_their_neighbours_save_bytes(unit: float, channels: int) -> None:
    symbols = quantised(unit * correlated_latents(64, 64, channels), round(512 * unit))
    assert len(encode(symbols, 512)) < 0.8 * entropy(symbols)


@pytest.mark.slow
def test_channels_are_predicted_from_each_other() -> None:
    symbols = quantised(correlated_latents(48, 48, 16), 256)
    apart = sum(len(encode(symbols[:, :, c : c + 1], 256)) for c in range(16))
    assert len(encode(symbols, 256)) < 0.9 * apart


def test_more_channels_save_bytes() -> None:
    """With more effort, values are predicted from 31 earlier channels instead of 12."""
    rng = np.random.default_rng(4)
    mixed = correlated_latents(24, 24, 6) @ rng.normal(size=(6, 30))
    symbols = quantised(mixed + rng.normal(scale=0.1, size=mixed.shape), 256)

    assert len(encode(symbols, 256, WIDE)) < 0.97 * len(encode(symbols, 256))


@pytest.mark.parametrize("coding", [Context, BFloat16])
def test_with_effort_more_channels_are_used(coding: Callable[..., Any]) -> None:
    latents = quantised(correlated_latents(5, 6, FAR + 2), 256) / np.float32(4)
    many = coding(FAR + 2, [ADAPTIVE])
    for effort, number in ((WIDE_EFFORT - 1, ADAPTIVE), (WIDE_EFFORT, ADAPTIVE_WIDE)):
        payload = many.payload(latents, 256, effort)
        assert payload[0] == number
        assert np.abs(many.decode(payload, (5, 6), 256) - latents).max() < 0.3
    few = coding(FAR + 1, [ADAPTIVE])
    assert few.payload(latents[..., 1:], 256, WIDE_EFFORT)[0] == ADAPTIVE
    with pytest.raises(DamagedPayload, match="no prior 3 for 13 channels"):
        few.decode(bytes([ADAPTIVE_WIDE, 1]), (2, 2), 256)


# Prints a digest of a payload and of what it decodes to.
CODE = """
import hashlib
from sample_latents import correlated_latents
from test_adaptive import decode, encode, quantised
symbols = quantised(correlated_latents(64, 48, 8), 333)
payload = encode(symbols, 333)
print(hashlib.sha256(payload + decode(payload, symbols.shape, 333).tobytes()).hexdigest())
"""


def test_threads_do_not_change_a_bit() -> None:
    digests = outputs_by_threads(CODE)
    assert len(digests) == 1


def test_damaged_payloads_raise_nothing_but_damage() -> None:
    symbols = quantised(correlated_latents(5, 7, 3), 512)
    payload = encode(symbols, 512)
    rng = np.random.default_rng(2)
    hostile = [payload[:n] for n in range(0, len(payload), 5)]
    hostile += [rng.bytes(n) for n in range(0, 40, 3)]
    hostile += [b"\xff" * 64, b"\xff" * 3, payload + b"\x01", payload + b"\0"]
    hostile += flipped(payload)
    refused = 0
    for words in hostile:
        try:
            decode(words, symbols.shape, 512)
        except DamagedPayload:
            refused += 1
    # Not all damage can be noticed: any words decode to something. Checksums are in the container.
    assert refused > 0


def test_least_squares_are_those_of_the_library() -> None:
    rng = np.random.default_rng(3)
    # Inputs of very different sizes, and one that almost equals another.
    inputs = rng.normal(0, 1, (500, 12)) * 10.0 ** rng.uniform(1, 5, 12)
    inputs[:, 1] = inputs[:, 0] + rng.normal(0, 10, 500)
    weights = rng.uniform(-2, 2, 12)
    samples = np.rint(np.column_stack([inputs, inputs @ weights]))
    moments = samples.T @ samples
    # `solve` adds something to the diagonal. That is part of the problem, not an error.
    softened = moments + np.diag(np.diag(moments) / 1024 + 4096)
    expected = np.linalg.solve(softened[:-1, :-1], softened[:-1, -1])
    found = solve(moments[None])[0] / 65536
    predicted, exact = samples[:, :-1] @ found, samples[:, :-1] @ expected
    assert np.abs(predicted - exact).max() < 1e-3 * np.abs(exact).max()


class Regression:
    """The regression of docs/adaptive.md, computed one number after another in Python's float64."""

    def __init__(self, first: list[int]) -> None:
        self.weights = first
        k = len(first)
        self.a = [[float((1 << 17) * (i == j)) for j in range(k + 1)] for i in range(k + 1)]
        for i, weight in enumerate(first):
            self.a[i][k] = self.a[k][i] = float((1 << 17) * weight >> 16)
        self.samples: list[list[int]] = []

    def predict(self, inputs: list[int]) -> int:
        return sum(w * x for w, x in zip(self.weights, inputs, strict=True))

    def refit(self, kept: int) -> None:
        if not self.samples:
            return
        k = len(self.weights)
        for i in range(k + 1):
            for j in range(k + 1):
                total = sum(g[i] * g[j] for g in self.samples)
                assert abs(total) < 1 << 53
                self.a[i][j] = self.a[i][j] * (kept / 65536) + total
        self.samples = []
        a = [row.copy() for row in self.a]
        for i in range(k + 1):
            a[i][i] = a[i][i] + (a[i][i] * 2.0**-10 + 4096)
        for i in range(k):
            assert a[i][i] > 0
            for j in range(i + 1, k):
                f = a[j][i] / a[i][i]
                for m in range(i + 1, k + 1):
                    a[j][m] = a[j][m] - f * a[i][m]
        u = [0.0] * k
        for i in reversed(range(k)):
            u[i] = a[i][k] / a[i][i]
            for j in range(i):
                a[j][k] = a[j][k] - a[j][i] * u[i]
        self.weights = [max(-(1 << 20), min(1 << 20, math.floor(x * 65536 + 0.5))) for x in u]


OWN = [(0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0), (-1, -2), (-2, -1), (-2, -2)]
LIMIT = (1 << 18) - 1


def limit(x: int) -> int:
    return max(-LIMIT, min(LIMIT, x))


def log(x: int) -> int:
    e = x.bit_length() - 1
    return 256 * (e - 10) + 256 * (x - (1 << e)) // (1 << e)


def sample(x: int, m: int) -> int:
    return math.floor(float(np.float32(math.ldexp(x * m, -20))))


def frequency(table: int, r: int) -> int:
    tables = Tables.shipped()
    reach, counts = int(tables.reach[table]), tables.frequencies(table).tolist()
    if abs(r) < 7:
        return counts[r + reach] if abs(r) <= reach else 1
    beyond = [count for at, count in enumerate(counts[:-1], -reach) if abs(at) >= 7 and at * r > 0]
    return 1 + sum(beyond) + counts[-1]


@functools.cache
def costs(normal: bool) -> tuple[list[list[int]], list[list[list[int]]]]:
    """The first sums of costs by B and scale, and the costs by scale, phase and residual + 7.

    They are those of docs/adaptive.md, or those of docs/waves.md, which has normal distributions.
    """
    cells = [(phase, r) for phase in range(5) for r in range(-7, 8)]
    of_scales = []
    counts = []
    for u in range(64):
        row = [frequency(352 * normal + 5 * u + phase, r) for phase, r in cells]
        exact = [256 * (16 - math.log2(count)) for count in row]
        assert all(abs(cost % 1 - 0.5) > 1e-6 for cost in exact)
        counts.append(row)
        of_scales.append([round(cost) for cost in exact])
    first = []
    for usual in range(-2, 62) if normal else range(0, 64, 2):
        likely = counts[max(usual, 14)]
        weighted = [(1, 2, 2, 2, 1)[at // 15] * count for at, count in enumerate(likely)]
        sums = [sum(n * cost for n, cost in zip(weighted, row, strict=True)) for row in of_scales]
        first.append([32 * total >> 19 for total in sums])
    return first, [[row[15 * phase : 15 * phase + 15] for phase in range(5)] for row in of_scales]


class Scales:
    def __init__(self, normal: bool = False) -> None:
        first, self.costs = costs(normal)
        self.sums = [row.copy() for row in first]
        self.new: list[tuple[int, int, int]] = []
        self.before = 0
        self.choose()

    def choose(self) -> None:
        self.of = [row.index(min(row[14:]), 14) for row in self.sums]

    def learn(self, wave: list[tuple[int, int, int]]) -> None:
        """Symbols with their B and their mean q."""
        self.new += wave
        if 4 * len(self.new) < self.before:
            return
        for b, q, s in self.new:
            m = q + 4 >> 3
            g = q - 8 * m
            r = max(-7, min(7, m - s if g < 0 else s - m))
            if b < len(self.sums):
                for u in range(64):
                    self.sums[b][u] += self.costs[u][abs(g)][r + 7]
        self.before += len(self.new)
        self.new = []
        self.choose()


def stages_by_the_specification(symbols: Ints, n: int, widest: int) -> list[Stage]:
    """The stages of docs/adaptive.md, computed one place after another."""
    h, w, channels = symbols.shape
    near = min(3 if channels <= 8 else 1, channels - 1)
    far = min(widest, channels - 1)
    scales = Scales()
    a, b = min(65536 // n, LIMIT), min(19648 // n, LIMIT)
    others = 5 * near + far - near
    means = [Regression([32768] * 2 + [0] * (7 + others + 1)) for _ in range(channels)]
    errors_of = [Regression([6553] * 9 + [0] * (2 * near + 1) + [16384]) for _ in range(channels)]
    known: dict[tuple[int, int, int], tuple[int, int]] = {}  # values and errors
    stages: list[Stage] = []

    def value(y: int, x: int, c: int) -> int:
        return known.get((y, x, c), (0, 0))[0]

    def error(y: int, x: int, c: int) -> int:
        return known.get((y, x, c), (0, 0))[1]

    waves = 0
    for t in range((w - 1) + 2 * (h - 1) + 3 * (channels - 1) + 1):
        stage: Stage = []
        learned, coded = [], []
        for c in range(channels):
            for y in range(h):
                x = t - 3 * c - 2 * y
                if not 0 <= x < w:
                    continue
                around = [
                    [
                        error(y + dy, x + dx, c - k)
                        for dy, dx in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))
                    ]
                    for k in range(1, near + 1)
                ]
                rest = [error(y, x, c - k) for k in range(near + 1, far + 1)]
                xs = [value(y + dy, x + dx, c) for dy, dx in OWN]
                xs += [*(e for five in around for e in five), *rest, a]
                zs = [abs(error(y + dy, x + dx, c)) for dy, dx in OWN]
                for five in around:
                    zs += [abs(five[0]), limit(sum(map(abs, five[1:])))]
                zs += [limit(sum(map(abs, rest))), b]
                m = means[c].predict(xs)
                d = min(max(errors_of[c].predict(zs), 4 << 16), LIMIT << 16)
                bin = log(d >> 12) + 1187 >> 6
                scale = scales.of[bin] if bin < 32 else 2 * bin
                r = min(max((scale >> 3) - 4, 0), 3)
                q = (m + (1 << 18)) >> 19
                mean = q + (2**r >> 1) >> r << r
                stage.append((y, x, c, mean, scale))
                s = int(symbols[y, x, c])
                coded.append((bin, q, s))
                v, e = limit(64 * s), limit(64 * s - (m + (1 << 15) >> 16))
                weight = (1 << 26) // ((d >> 16) + max(64, b))
                learned.append(((y, x, c), v, e))
                means[c].samples.append([sample(i, weight) for i in (*xs, v)])
                errors_of[c].samples.append([sample(i, weight) for i in (*zs, abs(e))])
        if coded:
            scales.learn(coded)
        for (y, x, c), v, e in learned:
            places = [(y, x)]
            places += [(y + 1, -1), (y + 1, -2)] if x == 0 else []
            places += [(y, w)] if x == w - 1 else []
            places += [(h, x)] if y == h - 1 else []
            places += [(-1, x + 2), (-2, x + 2)] if y == 0 else []
            known |= {(*place, c): (v, e) for place in places}
        waves += bool(learned)
        if waves >= max(1, min(8, 1 + t // 24, 8192 // h)):
            kept = 65536
            for _ in range(waves):
                kept -= kept >> 5
            for regression in (*means, *errors_of):
                regression.refit(kept)
            waves = 0
        if stage:
            stages.append(stage)
    return stages


def latents(shape: Shape, step: int) -> Ints:
    return quantised(correlated_latents(*shape), step)


def extremes(shape: Shape, step: int) -> Ints:
    """The largest symbols with alternating signs. Nothing may overflow."""
    return np.where(np.indices(shape).sum(0) % 2, 1 << 19, -(1 << 19))


def sparse(shape: Shape, step: int) -> Ints:
    """Only a few large numbers."""
    place = np.arange(np.prod(shape)).reshape(shape)
    symbols: Ints = np.where(place % 11 == 3, place * 997 % 4001 - 2000, 0)
    return symbols


@pytest.mark.parametrize("widest", [FAR, WIDE])
@pytest.mark.parametrize(
    ("shape", "step", "kind"),
    [
        ((7, 18, 3), 512, latents),
        ((9, 1, 2), 100, latents),
        ((40, 2, 1), 3000, latents),
        ((1, 2, 18), 256, latents),
        ((3, 4, 35), 256, latents),
        ((6, 7, 2), 1, extremes),
        ((6, 7, 2), 65535, extremes),
        ((9, 13, 2), 65535, sparse),
    ],
)
def test_the_specification_says_what_the_code_does(
    shape: Shape, step: int, kind: Callable[[Shape, int], Ints], widest: int
) -> None:
    symbols = kind(shape, step)
    stages: list[Stage] = []

    class Recorder:
        """A coder that returns the symbols and keeps what it was asked."""

        def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
            assert mean.dtype == scale.dtype == np.int64
            stages.append(list(zip(*(p.tolist() for p in (*index, mean, scale)), strict=True)))
            chosen: Ints = symbols[index]
            return chosen

    AdaptivePrior(shape[2], widest).code(Recorder(), shape[0], shape[1], step)
    assert stages == stages_by_the_specification(symbols, step, widest)


@pytest.mark.parametrize(
    ("shape", "largest", "step", "size", "digest"),
    [
        (
            (64, 48, 4),
            2,
            512,
            5867,
            "d1509cba5791dcc4a6e382081341dd9d4d6e7bfdaccb75f105e9b3a1447ba9f2",
        ),
        (
            (19, 33, 16),
            5,
            256,
            6292,
            "7af525dc6939c87cb929b008c3acc515279971d3138156f120c11aab1a49c7bd",
        ),
        (
            (1, 40, 3),
            900,
            8,
            242,
            "21c953b93a1651e8616a6ba80488264bc5cb1edd4460c9a832a9d1ccb5f79121",
        ),
        (
            (5, 1, 1),
            0,
            65535,
            1,
            "e7cf46a078fed4fafd0b5e3aff144802b853f8ae459a4f0c14add3314b7cc3a6",
        ),
    ],
)
def test_golden_payloads(shape: Shape, largest: int, step: int, size: int, digest: str) -> None:
    """These payloads never change. If this fails, files written earlier cannot be read any more."""
    payload = encode(pinned_symbols(*shape, largest), step)
    assert len(payload) == size
    assert hashlib.sha256(payload).hexdigest() == digest
