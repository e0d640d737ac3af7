"""The adaptive prior: latents of any model become a payload and come back exactly."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pillow_sdz.arrays import Ints
from pillow_sdz.codings.adaptive import AdaptivePrior, solve
from pillow_sdz.codings.integers import STEP_UNITS
from pillow_sdz.codings.quantize import Quantizer
from pillow_sdz.codings.range_coder import DamagedPayload, SymbolDecoder, Tables
from sample_latents import correlated_latents, flipped, outputs_by_threads, pinned_symbols

Shape = tuple[int, int, int]
Stage = list[tuple[int, int, int, int, int]]  # row, column, channel, mean, scale

SHAPES = [(1, 1, 1), (1, 1, 4), (1, 9, 16), (9, 1, 4), (3, 5, 4), (2, 2, 20), (33, 31, 3)]
STEPS = [1, 51, 512, 4096, 65535]  # in 1/1024; 51 is 0.05, 4096 is 4


def encode(symbols: Ints, step: int) -> bytes:
    height, width, channels = symbols.shape
    quantizer = Quantizer(Tables.shipped(), symbols.astype(np.float64), np.zeros(0))
    coded = AdaptivePrior(channels).code(quantizer, height, width, step)
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


def test_channels_are_predicted_from_each_other() -> None:
    symbols = quantised(correlated_latents(48, 48, 16), 256)
    apart = sum(len(encode(symbols[:, :, c : c + 1], 256)) for c in range(16))
    assert len(encode(symbols, 256)) < 0.9 * apart


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


def test_least_squares_in_integers_are_least_squares() -> None:
    rng = np.random.default_rng(3)
    # Inputs of very different sizes, and one that almost equals another.
    inputs = rng.normal(0, 1, (500, 12)) * 10.0 ** rng.uniform(1, 5, 12)
    inputs[:, 1] = inputs[:, 0] + rng.normal(0, 10, 500)
    weights = rng.uniform(-2, 2, 12)
    samples = np.rint(np.column_stack([inputs, inputs @ weights])).astype(np.int64)
    moments = samples.T @ samples
    # `solve` adds something to the diagonal. That is part of the problem, not an error.
    softened = moments + np.diag((np.diag(moments) >> 10) + 4096)
    expected = np.linalg.solve(softened[:-1, :-1].astype(float), softened[:-1, -1].astype(float))
    found = solve(moments[None])[0] / 65536
    predicted, exact = samples[:, :-1] @ found, samples[:, :-1] @ expected
    assert np.abs(predicted - exact).max() < 1e-3 * np.abs(exact).max()


class Regression:
    """docs/adaptive.md with integers of any size."""

    def __init__(self, first: list[int]) -> None:
        self.weights = first
        k = len(first)
        self.a = [[(1 << 17) * (i == j) for j in range(k + 1)] for i in range(k + 1)]
        for i, weight in enumerate(first):
            self.a[i][k] = self.a[k][i] = (1 << 17) * weight >> 16
        self.changed = True

    def predict(self, inputs: list[int]) -> int:
        return sum(w * x for w, x in zip(self.weights, inputs, strict=True))

    def learn(self, samples: list[list[int]]) -> None:
        size = range(len(self.a))
        for i in size:
            for j in size:
                self.a[i][j] += sum(g[i] * g[j] for g in samples) - (self.a[i][j] >> 5)
        self.changed = True

    def refit(self) -> None:
        if not self.changed:  # the same matrix has the same weights
            return
        self.changed = False
        k = len(self.weights)
        a = [row.copy() for row in self.a]
        for i in range(k + 1):
            a[i][i] += (a[i][i] >> 10) + 4096
            assert a[i][i] < 1 << 63
        g = [(int(float(a[i][i])).bit_length() + 1) // 2 for i in range(k + 1)]

        def shifted(x: int, by: int) -> int:
            return x << by if by >= 0 else x >> -by

        a = [[shifted(a[i][j], 30 - g[i] - g[j]) for j in range(k + 1)] for i in range(k + 1)]
        for i in range(k):
            assert a[i][i] > 1 << 17
            for j in range(i + 1, k):
                f = (a[j][i] << 24) // a[i][i]
                for m in range(i + 1, k + 1):
                    a[j][m] -= f * a[i][m] >> 24
        u = [0] * k
        for i in reversed(range(k)):
            rest = (a[i][k] << 16) - sum(a[i][j] * u[j] for j in range(i + 1, k))
            u[i] = rest // a[i][i]
            assert abs(u[i]) < 1 << 23
        self.weights = [max(-(1 << 20), min(1 << 20, shifted(u[i], g[k] - g[i]))) for i in range(k)]


OWN = [(0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0), (-1, -2), (-2, -1)]
LIMIT = (1 << 18) - 1


def limit(x: int) -> int:
    return max(-LIMIT, min(LIMIT, x))


def log(x: int) -> int:
    e = x.bit_length() - 1
    return 256 * (e - 10) + 256 * (x - (1 << e)) // (1 << e)


def stages_by_the_specification(symbols: Ints, n: int) -> list[Stage]:
    """docs/adaptive.md, one place after another."""
    h, w, channels = symbols.shape
    near, far = min(3, channels - 1), min(15, channels - 1)
    a, b = min(65536 // n, LIMIT), min(19648 // n, LIMIT)
    others = 5 * near + far - near
    means = [Regression([32768] * 2 + [0] * (6 + others + 1)) for _ in range(channels)]
    errors_of = [Regression([6553] * 8 + [0] * others + [16384]) for _ in range(channels)]
    values: dict[tuple[int, int, int], int] = {}
    errors: dict[tuple[int, int, int], int] = {}
    stages: list[Stage] = []

    def own(known: dict[tuple[int, int, int], int], y: int, x: int, c: int, i: int) -> int:
        r, q = max(y + OWN[i][0], 0), min(max(x + OWN[i][1], 0), w - 1)
        if r == y and q >= x:
            q = x - 1
        if q < 0:
            r, q = r - 1, 0
        return known[r, q, c] if r >= 0 else 0

    def error(y: int, x: int, c: int) -> int:
        return errors[min(max(y, 0), h - 1), min(max(x, 0), w - 1), c] if c >= 0 else 0

    for t in range((w - 1) + 2 * (h - 1) + 3 * (channels - 1) + 1):
        stage: Stage = []
        learned = defaultdict(list)
        for c in range(channels):
            for y in range(h):
                x = t - 3 * c - 2 * y
                if not 0 <= x < w:
                    continue
                before = [
                    error(y + dy, x + dx, c - k)
                    for k in range(1, near + 1)
                    for dy, dx in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))
                ]
                before += [error(y, x, c - k) for k in range(near + 1, far + 1)]
                xs = [*(own(values, y, x, c, i) for i in range(8)), *before, a]
                zs = [abs(z) for z in (*(own(errors, y, x, c, i) for i in range(8)), *before, b)]
                m = means[c].predict(xs)
                d = min(max(errors_of[c].predict(zs), 10 << 16), LIMIT << 16)
                stage.append((y, x, c, (m + (1 << 18)) >> 19, (log(d >> 12) + 1171) >> 5))
                s = int(symbols[y, x, c])
                v, e = limit(64 * s), limit(64 * s - (m + (1 << 15) >> 16))
                weight = (1 << 26) // ((d >> 16) + max(64, b))
                learned[c].append(
                    (
                        (y, x, c),
                        v,
                        e,
                        [value * weight >> 20 for value in (*xs, v)],
                        [value * weight >> 20 for value in (*zs, abs(e))],
                    )
                )
        for c, samples in learned.items():
            for place, v, e, _, _ in samples:
                values[place], errors[place] = v, e
            means[c].learn([g for *_, g, _ in samples])
            errors_of[c].learn([g for *_, g in samples])
        if t % min(4, 1 + t // 32) == 0:
            for regression in (*means, *errors_of):
                regression.refit()
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


@pytest.mark.parametrize(
    ("shape", "step", "kind"),
    [
        ((7, 18, 3), 512, latents),
        ((9, 1, 2), 100, latents),
        ((40, 2, 1), 3000, latents),
        ((1, 2, 18), 256, latents),
        ((6, 7, 2), 1, extremes),
        ((6, 7, 2), 65535, extremes),
        ((9, 13, 2), 65535, sparse),
    ],
)
def test_the_specification_says_what_the_code_does(
    shape: Shape, step: int, kind: Callable[[Shape, int], Ints]
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

    AdaptivePrior(shape[2]).code(Recorder(), shape[0], shape[1], step)
    assert stages == stages_by_the_specification(symbols, step)


@pytest.mark.parametrize(
    ("shape", "largest", "step", "size", "digest"),
    [
        (
            (64, 48, 4),
            2,
            512,
            5922,
            "3327ad7a2f920d47c2112abe94018ff77841dbe6a200a81bd65b4b6424988776",
        ),
        (
            (19, 33, 16),
            5,
            256,
            6377,
            "f04dfe006b9db90c8b3b86288fa60b654e1b64ca5cd4bc86e3e9bab87a4dbe07",
        ),
        (
            (1, 40, 3),
            900,
            8,
            252,
            "731f45ac70eb4f0e826a1a4c5e79765c9f04d2515588212e114fb1b98bd2d4a9",
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
    """Made once, never again. If this fails, files written earlier cannot be read any more."""
    payload = encode(pinned_symbols(*shape, largest), step)
    assert len(payload) == size
    assert hashlib.sha256(payload).hexdigest() == digest
