"""Float16 latents to a payload and back, bit for bit."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from pillow_sdz import weights
from pillow_sdz.arrays import Ints
from pillow_sdz.codings import float16
from pillow_sdz.codings.adaptive import AdaptivePrior
from pillow_sdz.codings.range_coder import DamagedPayload, Prediction, Tables
from range_coder import RangeDecoder
from sample_latents import correlated_latents, flipped, pinned_symbols

Halves = NDArray[np.float16]

EVERY = np.arange(1 << 16).astype(np.uint16).view(np.float16)


def of_bits(bits: Any) -> Halves:
    return np.asarray(bits).astype(np.uint16).view(np.float16)


def bits_of(latents: Halves) -> NDArray[np.uint16]:
    return np.ascontiguousarray(latents).view(np.uint16)  # NaNs are not equal to themselves


def encode(latents: Halves) -> bytes:
    return float16.encode(latents, AdaptivePrior(latents.shape[2]))


def decode(payload: bytes, height: int, width: int, channels: int) -> Halves:
    return float16.decode([payload], (height, width), AdaptivePrior(channels))[0]


def round_trip(latents: Halves) -> bytes:
    payload = encode(latents)
    decoded = decode(payload, *latents.shape)
    assert decoded.dtype == np.float16
    assert np.array_equal(bits_of(decoded), bits_of(latents))
    return payload


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 1, 4), (1, 9, 4), (9, 1, 2), (3, 5, 16), (33, 31, 4)]
)
def test_exact_round_trip(shape: tuple[int, int, int]) -> None:
    round_trip(correlated_latents(*shape).astype(np.float16))


def test_a_view_of_any_layout() -> None:
    latents = correlated_latents(12, 14, 4).astype(np.float16)
    assert round_trip(latents.transpose(1, 0, 2)[::-1]) == round_trip(
        latents.transpose(1, 0, 2)[::-1].copy()
    )


@pytest.mark.parametrize("order", ["sorted", "mixed"])
def test_every_float16_there_is(order: str) -> None:
    # Among these are signed zeros, subnormals, infinities and each NaN.
    values = EVERY if order == "sorted" else EVERY[np.arange(1 << 16) * 40503 % (1 << 16)]
    round_trip(values.reshape(64, 256, 4))


@pytest.mark.parametrize(
    "bits", [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0x7BFF, 0x7C00, 0xFC00, 0x7C01, 0xFFFF]
)
def test_nothing_but_one_value(bits: int) -> None:
    assert len(round_trip(of_bits(np.full((6, 7, 4), bits)))) < 2 * 6 * 7 * 4


@pytest.mark.parametrize("bits", [0x0000, 0x8001, 0x7C00, 0x7E01])
def test_values_apart_from_all_others(bits: int) -> None:
    latents = correlated_latents(16, 16, 4).astype(np.float16)
    latents[3::5, 1::4] = of_bits([bits])
    round_trip(latents)


def test_smaller_than_numpys_archive() -> None:
    latents = correlated_latents(64, 64, 4).astype(np.float16)
    archive = io.BytesIO()
    np.savez_compressed(archive, latents=latents)
    assert len(encode(latents)) < 0.93 * len(archive.getvalue())


def test_what_was_bfloat16_takes_three_bits_less() -> None:
    latents = correlated_latents(64, 64, 4)
    brain = (latents.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    full, less = round_trip(latents.astype(np.float16)), round_trip(brain.astype(np.float16))
    # float16 has fewer bits for |x| < 2^-14. These values are rare.
    assert 8 * (len(full) - len(less)) / latents.size == pytest.approx(3, abs=0.1)


@pytest.mark.slow
def test_damaged_payloads_raise_nothing_but_damage() -> None:
    latents = correlated_latents(4, 6, 3).astype(np.float16)
    payload = encode(latents)
    rng = np.random.default_rng(2)
    hostile = [payload[:n] for n in range(0, len(payload), 3)]
    hostile += [payload[:2] + rng.bytes(n) for n in range(0, 60, 5)]
    hostile += [bytes([p, k]) + payload[2:] for p in (0, 7, 10, 11, 255) for k in (0, 30, 31, 255)]
    hostile += [payload + b"\x01", payload + b"\0", payload[:2] + b"\xff" * 99]
    hostile += flipped(payload, every=2)
    refused = 0
    for words in hostile:
        try:
            decoded = decode(words, *latents.shape)
        except DamagedPayload:
            refused += 1
        else:
            # Not all damage can be noticed: any words decode to something.
            assert decoded.shape == latents.shape
    assert refused > 0


@pytest.mark.parametrize(
    "header", [b"", b"\x0a", b"\x0b\x00", b"\x0a\x1f", b"\x00\x29", b"\xff\xff"]
)
def test_no_header(header: bytes) -> None:
    with pytest.raises(DamagedPayload):
        decode(header, 2, 2, 1)


def floats_by_the_specification(payload: bytes, shape: tuple[int, int, int]) -> Ints:
    """The bits (h, w, C) of a payload, by docs/float16.md, one number after another."""
    height, width, channels = shape
    p, k = payload[:2]
    words = RangeDecoder(payload[2:])
    reach = Tables.shipped().reach.tolist()
    ends = np.cumsum([2 * r + 2 for r in reach])
    tables = np.split(load_file(weights.TABLES.path)["frequencies"].astype(np.int64), ends[:-1])

    def uniform(size: int) -> int:
        return words.decode([2**24 // size] * size)

    class Reader:
        """The symbols of docs/format.md, one after another."""

        def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
            table, centre, mirror = (part.tolist() for part in Prediction.of(mean, scale))
            residuals = [0] * len(table)
            for i in sorted(range(len(table)), key=lambda i: (table[i], i)):
                counts = [256 * f for f in tables[table[i]].tolist()]
                residuals[i] = words.decode(counts) - reach[table[i]]
            for i, residual in enumerate(residuals):
                if residual == reach[table[i]] + 1:
                    bits = uniform(32)
                    low = uniform(2 << bits)
                    excess = reach[table[i]] + (1 << bits) + (low >> 1)
                    residuals[i] = -excess if low & 1 else excess
            symbols: Ints = np.array(residuals) * mirror + centre
            return symbols

    n = min(2 ** max(k - 14, 0), 65535)
    symbols = AdaptivePrior(channels).code(Reader(), height, width, n)
    cells = [c if c >= 0 else -1 - c for c in symbols.ravel().tolist()]
    magnitudes = []
    for c in cells:
        o = max(0, (c >> p) - 1)
        magnitudes.append((c - (o << p)) << (k + o))
    for digits in range(1, p + 1):
        r = min(k, p + 1 - digits)
        for i, c in enumerate(cells):
            if r and c.bit_length() == digits:
                magnitudes[i] += uniform(2**r) << (k - r)
    rest = [i for i, c in enumerate(cells) if not c]
    for b in reversed(range(k)):
        ones = [i for i in rest if uniform(2)]
        r = min(b, p)
        for i in ones:
            magnitudes[i] = 2**b
        for i in ones if r else []:
            magnitudes[i] += uniform(2**r) << (b - r)
        rest = [i for i in rest if i not in ones]
    bits = []
    for v, s in zip(magnitudes, symbols.ravel().tolist(), strict=True):
        e = max(v.bit_length() - 10, 0)
        bits.append((v if not e else e << 10 | (v >> (e - 1)) & 1023) | (0x8000 if s < 0 else 0))
    return np.array(bits).reshape(shape)


@pytest.mark.parametrize("kind", ["latents", "bfloat16", "near zero", "large"])
def test_the_specification_says_what_the_code_does(kind: str) -> None:
    latents = correlated_latents(7, 6, 2)
    if kind == "near zero":
        latents[1::3] *= 1e-5
    if kind == "large":
        latents[2::3, ::4] *= 50
    halves = latents.astype(np.float16)
    if kind == "bfloat16":
        halves = of_bits(bits_of(halves) & 0xFFF8)
    found = floats_by_the_specification(encode(halves), halves.shape)
    assert np.array_equal(found, bits_of(halves))


@pytest.mark.parametrize(
    ("shape", "scale", "size", "digest"),
    [
        (
            (32, 40, 4),
            2.0**-20,
            8463,
            "461e9ffec6977fd7bbc03d062a08a6cb51a85acb2e9cc99d70b815267a0e086b",
        ),
        (
            (3, 5, 16),
            2.0**-12,
            456,
            "5328362488a5130959e1bb31fb5d943ddbe0f9d7ca917c13aecec1d70b1ceef5",
        ),
        (
            (1, 9, 1),
            2.0**-38,
            11,
            "41bed9ebfd662d0ac5f6b48159884628f535af83628bd920e6996699dcd3ba26",
        ),
    ],
)
def test_golden_payloads(shape: tuple[int, int, int], scale: float, size: int, digest: str) -> None:
    """These payloads never change. If this fails, files written earlier cannot be read any more."""
    # Half of these integers, times a power of two and 1365, is exact in float64.
    latents = (pinned_symbols(*shape, 200) * 1365 * scale).astype(np.float16)
    payload = round_trip(latents)
    assert len(payload) == size
    assert hashlib.sha256(payload).hexdigest() == digest
