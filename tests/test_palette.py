"""The palette coding is exact and small. Damage raises only DamagedPayload."""

from __future__ import annotations

import hashlib
import itertools
import math
import sys
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray

from pillow_sdz.arrays import Ints
from pillow_sdz.codings import dithering, palette
from pillow_sdz.codings.coding import Frame
from pillow_sdz.codings.dithering import DitheredPalette, decode, encode
from pillow_sdz.codings.palette import Palette, pack, unpack
from pillow_sdz.codings.range_coder import DamagedPayload
from pillow_sdz.codings.target_size import EncodedLatents
from range_coder import RangeDecoder
from sample_latents import flipped, outputs_by_threads

STEP = 34  # as in the article
SHAPES = [(1, 1), (1, 2), (1, 7), (9, 1), (8, 8), (17, 33), (64, 64), (96, 64)]
ARTICLE = 4890  # 4.96 kB less about 70 bytes of the container


def photo_like(height: int, width: int, channels: int, seed: int = 0) -> NDArray[np.float32]:
    """Latents (h, w, C) as rough as a busy photo's: unit variance, correlation 0.8 in rows."""
    rng = np.random.default_rng(seed)
    latents = rng.normal(0, 1, (height, width, channels))
    for axis in (0, 1):
        latents = latents.swapaxes(0, axis)
        for i in range(1, len(latents)):
            latents[i] = 0.8 * latents[i - 1] + 0.6 * latents[i]
        latents = latents.swapaxes(0, axis)
    return latents.astype(np.float32)


def some_palette(entries: int, channels: int, shift: int, seed: int) -> Palette:
    rng = np.random.default_rng(seed)
    numbers = rng.normal(128 >> shift, 40 >> shift, (entries, channels))
    return Palette(np.unique(np.clip(numbers, 0, 255 >> shift).astype(np.int64), axis=0), shift)


def some_indices(height: int, width: int, entries: int, seed: int) -> Ints:
    """Some palettes that a model can learn, and some that it cannot."""
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.integers(-1, 2, (height, width)), axis=1) % entries
    noise = rng.integers(0, entries, (height, width))
    return np.where(rng.random((height, width)) < 0.1, noise, walk)


@pytest.mark.parametrize("channels", [1, 4, 16])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_exact_round_trip(height: int, width: int, channels: int) -> None:
    for entries, shift in ((1, 0), (2, 7), (5, 6), (60, 2), (256, 0)):
        colours = some_palette(min(entries, height * width), channels, shift, entries)
        indices = some_indices(height, width, len(colours.entries), entries)
        decoded, at = unpack(pack(colours, indices), height, width, channels)
        assert decoded.shift == shift
        assert np.array_equal(decoded.entries, colours.entries)
        assert np.array_equal(at, indices)


@pytest.mark.parametrize("channels", [1, 4, 16])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_latents_come_back_as_palette_entries(height: int, width: int, channels: int) -> None:
    latents = photo_like(height, width, channels)
    payload = encode(latents, step=STEP)
    decoded = decode(payload, height, width, channels, step=STEP)
    assert decoded.shape == latents.shape
    assert decoded.dtype == np.float32
    colours, indices = unpack(payload, height, width, channels)
    assert len(colours.entries) <= min(256, math.ceil(height * width / 4))
    assert np.array_equal(decoded, ((colours.bytes - 128) * STEP / 1024)[indices].astype("f4"))
    assert pack(colours, indices) == payload


def test_constant_latents_are_one_entry() -> None:
    latents = np.full((64, 64, 4), [0.5, -1, 2, 0], np.float32)
    payload = encode(latents, step=STEP)
    assert len(payload) < 16
    assert np.abs(decode(payload, 64, 64, 4, step=STEP) - latents).max() <= STEP / 1024 / 2


def test_what_is_on_the_bytes_grid_comes_back() -> None:
    """This includes values far from 0, where a step that is a little wrong would miss by a byte."""
    bytes = np.array([0, 1, 64, 127, 128, 200, 254, 255]).repeat(8).reshape(8, 8, 1)
    latents = ((bytes - 128) * STEP / 1024).astype(np.float32)
    payload = encode(latents, step=STEP, dither=False)
    assert np.array_equal(decode(payload, 8, 8, 1, step=STEP), latents)


def test_entries_that_take_fewer_bits_are_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    latents = photo_like(32, 32, 4)
    weighed = len(encode(latents, step=STEP))
    monkeypatch.setattr(dithering, "RATE_WEIGHT", 0)
    assert weighed < len(encode(latents, step=STEP))


def test_as_many_entries_as_fit() -> None:
    """The least is one entry, which takes a few bytes."""
    frame = Frame(photo_like(16, 16, 4))
    sizes = {}
    for entries in (1, 2, 3):
        (chunk,) = DitheredPalette(4, entries).encoder(STEP, 4)(frame)
        sizes[entries] = chunk
    for entries, chunk in sizes.items():
        limit = EncodedLatents([[chunk]], STEP).size
        fitted = DitheredPalette(4).fit([frame], limit, 4)
        assert fitted.frames == [[chunk]], entries


def test_latents_beyond_the_bytes_are_clipped() -> None:
    latents = np.array([[[-50.0], [50.0]] * 4] * 4, np.float32)
    decoded = decode(encode(latents, step=STEP, dither=False), 4, 8, 1, step=STEP)
    assert decoded.min() == -128 * STEP / 1024
    assert decoded.max() == np.float32(127 * STEP / 1024)


@pytest.mark.parametrize("seed", range(3))
def test_a_512x512_picture_takes_no_more_than_the_articles_bytes(seed: int) -> None:
    latents = photo_like(64, 64, 4, seed)
    payload = encode(latents, step=STEP)
    assert len(payload) <= ARTICLE
    colours, indices = unpack(payload, 64, 64, 4)
    assert len(colours.entries) >= 250  # a grid's cells may hold two of 256
    article = colours.bytes.astype(np.uint8).tobytes() + indices.astype(np.uint8).tobytes()
    assert len(payload) < 0.85 * len(zlib.compress(article, 9))


def test_more_entries_take_more_bytes_and_come_nearer() -> None:
    latents = photo_like(64, 64, 4)
    sizes, errors = [], []
    for entries in (16, 64, 256, 512):
        payload = encode(latents, step=STEP, entries=entries)
        sizes.append(len(payload))
        errors.append(float(((decode(payload, 64, 64, 4, step=STEP) - latents) ** 2).mean()))
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)


def test_dithering_keeps_local_means() -> None:
    """Nine entries must show slopes.

    Means of 8x8 are off by at most a third. Borders do not count, because there are no entries
    beyond them to mix with.
    """
    y, x = np.mgrid[:64, :64] / 64
    latents = np.stack([x, y, x + y, x - y], axis=2).astype(np.float32)

    def error(dither: bool) -> float:
        payload = encode(latents, step=STEP, entries=9, dither=dither)
        missed = decode(payload, 64, 64, 4, step=STEP) - latents
        means = missed.reshape(8, 8, 8, 8, 4).mean((1, 3))
        return float(np.abs(means[1:-1, 1:-1]).mean())

    assert error(dither=True) < error(dither=False) / 3


def test_only_the_seed_changes_a_payload() -> None:
    latents = photo_like(32, 32, 4)
    assert encode(latents, step=STEP) == encode(latents, step=STEP, seed=0)
    assert encode(latents, step=STEP) != encode(latents, step=STEP, seed=1)


@pytest.mark.parametrize(
    ("channels", "entries"), [(257, 256), (4, 0), (4, -1), (4, palette.MAX_ENTRIES + 1)]
)
def test_what_has_no_palette_is_refused(channels: int, entries: int) -> None:
    with pytest.raises(ValueError, match="a palette cannot have"):
        encode(np.zeros((2, 2, channels), np.float32), step=STEP, entries=entries)


@pytest.mark.parametrize("entries", [[[2, 1], [1, 2]], [[1, 1], [1, 1]], [[0, 1], [0, 0]]])
def test_a_palette_out_of_order_is_refused(entries: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        pack(Palette(np.array(entries), 0), np.zeros((2, 2), np.int64))


def test_without_scipy_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.cluster.vq", None)
    with pytest.raises(OSError, match=r'pip install "pillow-sdz\[sd\]"'):
        encode(np.zeros((2, 2, 4), np.float32), step=STEP)
    assert decode(GOLDEN, 4, 5, 2, step=STEP).shape == (4, 5, 2)  # a reader does not need it


def test_damaged_payloads_raise_nothing_but_damage() -> None:
    payload = encode(photo_like(12, 9, 3), step=STEP)
    rng = np.random.default_rng(0)
    hostile = [payload[:n] for n in range(len(payload))]
    hostile += [rng.bytes(n) for n in range(200)]
    hostile += [b"\xff" * 64, b"\xff" * 3, payload + b"\1", payload + b"\0"]
    hostile += flipped(payload)
    refused = 0
    for words in hostile:
        try:
            decode(words, 12, 9, 3, step=STEP)
        except DamagedPayload:
            refused += 1
    # Not all damage can be noticed. Checksums are in the container.
    assert refused > len(hostile) / 2
    for words in (payload[:-1], payload + b"\0", payload + b"\1"):
        with pytest.raises(DamagedPayload):
            decode(words, 12, 9, 3, step=STEP)


def test_more_entries_than_places_are_damage() -> None:
    payload = pack(some_palette(60, 4, 0, 0), some_indices(8, 8, 60, 0))
    with pytest.raises(DamagedPayload, match="60 palette entries for 49 places"):
        unpack(payload, 7, 7, 4)


@pytest.mark.parametrize("channels", [0, 257, 65535])
def test_other_channels_are_damage(channels: int) -> None:
    with pytest.raises(DamagedPayload, match="channels"):
        unpack(b"", 8, 8, channels)


def test_the_largest_distances_do_not_overflow() -> None:
    corners = np.array(list(itertools.product([0, 255], repeat=3)), np.int64)
    entries = np.repeat(corners, 85, axis=1)  # 255 channels
    indices = some_indices(20, 90, len(entries), 3)
    decoded, at = unpack(pack(Palette(entries, 0), indices), 20, 90, 255)
    assert np.array_equal(decoded.entries, entries)
    assert np.array_equal(at, indices)


# Prints a digest of a payload and of what it decodes to.
CODE = """
import hashlib
from test_palette import STEP, decode, encode, photo_like
payload = encode(photo_like(64, 64, 4), step=STEP)
print(hashlib.sha256(payload + decode(payload, 64, 64, 4, step=STEP).tobytes()).hexdigest())
"""


def test_threads_do_not_change_a_bit() -> None:
    digests = outputs_by_threads(CODE)
    payload = encode(photo_like(64, 64, 4), step=STEP)
    here = hashlib.sha256(payload + decode(payload, 64, 64, 4, step=STEP).tobytes()).hexdigest()
    assert digests == {here + "\n"}


def read_by_the_specification(
    payload: bytes, height: int, width: int, channels: int
) -> tuple[list[list[int]], int, list[list[int]]]:
    """Read a payload by docs/palette.md, one symbol after another: entries, shift and indices."""
    coder = RangeDecoder(payload)

    def counts_of(weights: list[int]) -> list[int]:
        free = (1 << 24) - len(weights)
        counts = [1 + w * free // sum(weights) for w in weights]
        counts[-1] += (1 << 24) - sum(counts)
        return counts

    shift = coder.decode(counts_of([1] * 8))
    size = 1 + coder.decode(counts_of([1] * 1024))
    levels = 256 >> shift
    entries = [[0] * channels for _ in range(size)]

    def divide(a: int, b: int, c: int, low: int, high: int, first: int) -> None:
        if high - low == 1:
            for k in range(a, b):
                entries[k][c] = low
            if c + 1 < channels:
                divide(a, b, c + 1, 0, levels, a)
            return
        middle, n = (low + high) // 2, b - a

        def parameter(start: int, stop: int) -> int:
            near = [abs(entries[k][c] - v) <= 2 for k in range(first) for v in range(start, stop)]
            return 1 + sum(near) // 5

        p, q = parameter(low, middle), parameter(middle, high)
        weights = [math.comb(p + j - 1, j) * math.comb(q + n - j - 1, n - j) for j in range(n + 1)]
        below = coder.decode(counts_of(weights))
        if below:
            divide(a, a + below, c, low, middle, first)
        if below < n:
            divide(a + below, b, c, middle, high, first)

    divide(0, size, 0, 0, levels, 0)
    indices = [[0] * width for _ in range(height)]
    if size == 1:
        return entries, shift, indices

    def distance(i: int | None, k: int | None) -> int:
        if i is None or k is None:
            return 0
        return sum((x - y) ** 2 for x, y in zip(entries[i], entries[k], strict=True))

    def log(x: int) -> int:
        e = x.bit_length() - 1
        return 256 * e + 256 * (x - (1 << e)) // (1 << e)

    nearest = [min(distance(i, k) for i in range(size) if i != k) for k in range(size)]
    spacing = sum(nearest) // size

    def octave(activity: int) -> int:
        return max((spacing * (2 * activity + spacing)).bit_length() - 1 - 5, 0) >> 1

    weight, bias = [1 << 15] * 6, [0] * size
    for t in range(2 * (height - 1) + width):
        wave = [(row, t - 2 * row) for row in range(height) if 0 <= t - 2 * row < width]
        slopes, surprises, found = [0] * 6, [0] * size, []
        for row, column in wave:
            around: list[int | None] = []
            for dy, dx in ((0, -1), (-1, 0), (-1, 1), (0, -2), (-2, 0), (-1, -1)):
                y, x = row + dy, column + dx
                around.append(indices[y][x] if y >= 0 and 0 <= x < width else None)
            left, above, corner = around[0], around[1], around[5]
            activity = distance(left, above) + distance(left, corner) + distance(above, corner)
            o = octave(0) + min(octave(activity) - octave(0), 5)
            potentials = [
                [0 if i is None else log((1 << o) + distance(i, k)) - 256 * o for i in around]
                for k in range(size)
            ]
            x_of = [
                (b - sum(w * p for w, p in zip(weight, ps, strict=True))) >> 16
                for b, ps in zip(bias, potentials, strict=True)
            ]
            drops = [min(max(x_of) - x, 4096) for x in x_of]
            counts = counts_of([(512 - d % 256) << (16 - d // 256) for d in drops])
            entry = coder.decode(counts)
            found.append(entry)
            for j in range(6):
                slopes[j] += sum(c * ps[j] for c, ps in zip(counts, potentials, strict=True))
                slopes[j] -= potentials[entry][j] << 24
            for k in range(size):
                surprises[k] += ((k == entry) << 24) - counts[k]
        n = len(wave)
        if n > 32:
            slopes = [32 * g // n for g in slopes]
            surprises = [32 * s // n for s in surprises]
        for (row, column), entry in zip(wave, found, strict=True):
            indices[row][column] = entry
        weight = [
            max(-(1 << 20), min(1 << 20, w + (g >> 22)))
            for w, g in zip(weight, slopes, strict=True)
        ]
        bias = [
            max(-(1 << 28), min(1 << 28, b + (s >> 2)))
            for b, s in zip(bias, surprises, strict=True)
        ]
    return entries, shift, indices


@pytest.mark.parametrize(
    ("height", "width", "channels", "entries", "shift"),
    [(11, 18, 4, 40, 2), (1, 9, 1, 5, 0), (7, 1, 16, 7, 5), (2, 3, 2, 1, 7), (40, 80, 2, 9, 0)],
)
def test_the_specification_says_what_the_code_does(
    height: int, width: int, channels: int, entries: int, shift: int
) -> None:
    # 40x80 has waves of more than 32 places.
    colours = some_palette(entries, channels, shift, 7)
    indices = some_indices(height, width, len(colours.entries), 7)
    read = read_by_the_specification(pack(colours, indices), height, width, channels)
    assert read == (colours.entries.tolist(), shift, indices.tolist())


GOLDEN_PALETTE = Palette(np.array([[3, 40], [10, 9], [31, 30], [31, 33], [50, 12]]), 2)
GOLDEN_INDICES = np.array([[0, 0, 1, 1, 2], [0, 3, 3, 2, 2], [4, 4, 3, 2, 1], [4, 0, 1, 2, 3]])
GOLDEN = bytes.fromhex("4026010df6637f90ce67ad2d034008d5e8")


def test_golden_payload() -> None:
    """This payload never changes. If this fails, files written earlier cannot be read any more."""
    assert pack(GOLDEN_PALETTE, GOLDEN_INDICES) == GOLDEN
    decoded, indices = unpack(GOLDEN, 4, 5, 2)
    assert np.array_equal(decoded.bytes, GOLDEN_PALETTE.entries * 4 + 2)
    assert np.array_equal(indices, GOLDEN_INDICES)
