"""A palette of latents and an index for each latent <-> the payload, without loss.

The article of 2022 packs both with zlib.  Here the palette is coded as a set, without an order.  An
index is coded by the distances from its entry to the entries around it, with weights that are
learned from the picture.  Decoders compute in integers.  docs/palette.md specifies the payload.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import constriction
import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints
from .integers import LOG_UNITS, logarithm
from .range_coder import AHEAD, CODER_BITS, DamagedPayload, Words, sealed

MAX_CHANNELS = 256  # no squared distance is then above 2 ** 24
MAX_ENTRIES = 1024  # chosen: more than 256 are useful (benchmarks.palette), but tables grow
BYTE_BITS = 8
ZERO = 128  # the byte of a latent of 0

_TOTAL = 1 << CODER_BITS


# Integers and their weights -> words


def _counts(weights: NDArray[Any]) -> NDArray[np.float32]:
    """The counts of integer weights (n, m), less one, as the range coder takes them.

    The counts of a row sum to 2 ** 24.  The last symbol of a row gets what rounding leaves over.
    float32 holds these integers exactly.  `range_coder.Tables` says how constriction uses them.
    """
    free = _TOTAL - weights.shape[1]
    counts = weights * free // weights.sum(1, keepdims=True)
    counts[:, -1] += free - counts.sum(1)
    exact: NDArray[np.float32] = counts.astype(np.float32)
    return exact


@functools.cache
def _uniform(size: int) -> NDArray[np.float32]:
    return _counts(np.ones((1, size), np.int64))


_CATEGORICAL = constriction.stream.model.Categorical(perfect=False)


class _Coder(Protocol):
    """Codes symbols (n,) with `_counts` (n, m).  So both directions share the rest of the code."""

    def code(self, symbols: Ints, counts: NDArray[np.float32]) -> Ints:
        """An encoder writes the symbols.  A decoder ignores them, and returns what it reads."""
        ...


class _Encoder:
    def __init__(self) -> None:
        self._encoder = constriction.stream.queue.RangeEncoder()

    def code(self, symbols: Ints, counts: NDArray[np.float32]) -> Ints:
        self._encoder.encode(symbols.astype(np.int32), _CATEGORICAL, counts)
        return symbols

    def bytes(self) -> bytes:
        return sealed(self._encoder)


class _Decoder:
    def __init__(self, payload: bytes) -> None:
        self._words = Words(payload)

    def code(self, symbols: Ints, counts: NDArray[np.float32]) -> Ints:
        return self._words.read(_CATEGORICAL, counts).astype(np.int64)

    def finish(self) -> None:
        self._words.finish()


class _LenientDecoder(_Decoder):
    """As `lenient.LenientDecoder`: missing symbols become the likeliest ones."""

    def __init__(self, payload: bytes) -> None:
        super().__init__(payload)
        self._left = float(8 * len(payload) - AHEAD)  # bits

    def code(self, symbols: Ints, counts: NDArray[np.float32]) -> Ints:
        found: Ints = counts.argmax(1)
        if self._left > 0:
            try:
                read = super().code(symbols, counts)
            except DamagedPayload:
                self._left = 0
                return found
            spent = np.cumsum(CODER_BITS - np.log2(counts[np.arange(len(read)), read] + 1))
            known = int(np.searchsorted(spent, self._left, "right"))
            found[:known] = read[:known]
            self._left -= spent[-1]
        return found

    def finish(self) -> None:
        """Check nothing: the words may be cut or damaged."""


# The palette

# An entry counts for SPREAD levels, with its own in the middle.  Measured:
# docs/measurements.md#palette.
SPREAD = 5


class Palette(NamedTuple):
    """Different entries (K, C) in ascending order, integers on a grid of ``1 << shift`` bytes."""

    entries: Ints
    shift: int

    @property
    def bytes(self) -> Ints:
        """The entries as bytes: the middles of their cells of the grid."""
        return (self.entries << self.shift) + ((1 << self.shift) >> 1)


def _rising(first: int, count: int) -> list[int]:
    """The binomial coefficients (first + i - 1 over i) for i up to ``count``."""
    values = [1]
    for i in range(1, count + 1):
        values.append(values[-1] * (first + i - 1) // i)
    return values


@functools.lru_cache(1 << 12)
def _split_counts(points: int, below: int, above: int) -> NDArray[np.float32]:
    """`_counts` for how many of ``points`` lie below: beta-binomial with these parameters."""
    lower, upper = _rising(below, points), _rising(above, points)
    weights = [a * b for a, b in zip(lower, reversed(upper), strict=True)]
    return _counts(np.array([weights], dtype=object))


def _code_palette(coder: _Coder, palette: Palette | None, places: int, channels: int) -> Palette:
    """Code a palette for ``places`` places.  A decoder passes None.

    The range of the first channel is halved again and again.  Each time, the number of entries in
    the lower half is coded.  Entries that are equal in one channel are told apart in the next.  So
    no order is coded, which would cost log2 K! bits.
    """
    count, shift = (len(palette.entries), palette.shift) if palette else (1, 0)

    def number(symbol: int, counts: NDArray[np.float32]) -> int:
        return int(coder.code(np.array([symbol]), counts)[0])

    shift = number(shift, _uniform(BYTE_BITS))
    count = 1 + number(count - 1, _uniform(MAX_ENTRIES))
    if count > places:
        msg = f"{count} palette entries for {places} places"
        raise DamagedPayload(msg)
    entries = palette.entries.copy() if palette else np.zeros((count, channels), np.int64)
    levels = (1 << BYTE_BITS) >> shift
    # A cell: the entries start..stop are equal in the channels before, and lie in low..high.
    cells = [(0, count, 0, 0, levels, [0] * (levels + 1))]
    while cells:
        start, stop, channel, low, high, before = cells.pop()
        part = entries[start:stop, channel]
        if high - low > 1:
            middle = (low + high) // 2
            lower, upper = before[middle] - before[low], before[high] - before[middle]
            counts = _split_counts(stop - start, 1 + lower // SPREAD, 1 + upper // SPREAD)
            below = start + number(int(np.count_nonzero(part < middle)), counts)
            if below < stop:
                cells.append((below, stop, channel, middle, high, before))
            if start < below:
                cells.append((start, below, channel, low, middle, before))
            continue
        part[:] = low
        if channel + 1 < channels:
            # How many earlier entries lie below each level.  Each entry is spread over SPREAD
            # levels.
            frequency = np.bincount(entries[:start, channel + 1], minlength=levels)
            spread = np.convolve(frequency, np.ones(SPREAD, np.int64))[SPREAD // 2 :][:levels]
            before = [0, *np.cumsum(spread).tolist()]
            cells.append((start, stop, channel + 1, 0, levels, before))
        elif stop - start > 1:
            msg = "the palette has equal entries"
            raise DamagedPayload(msg)
    return Palette(entries, shift)


# The indices.  The measured constants: docs/measurements.md#palette.

NEIGHBOURS = [(0, -1), (-1, 0), (-1, 1), (0, -2), (-2, 0), (-1, -1)]  # (row, column)
WEIGHT_BITS = 16
FIRST_WEIGHT = 1 << (WEIGHT_BITS - 1)  # all weights begin with 1/2.  Measured.
WEIGHT_LIMIT = 1 << 20  # 16.  Chosen.
BIAS_LIMIT = 1 << 28  # 16 octaves.  Chosen.
OCTAVES = 6  # how many scales there are, an octave apart.  Measured.
# How fast weights and biases are learned, as shifts.  Measured.
WEIGHT_RATE = 22
BIAS_RATE = 2
LEARNED_AT_ONCE = 32  # places in a wave of 512x512 pixels.  A longer wave counts as much.
# 2 ** -x for x in 1/256 octaves, linear between the octaves as in `integers.logarithm`.
_POWERS = np.array(
    [(512 - x % 256) << (16 - x // 256) for x in range(16 * LOG_UNITS + 1)], np.int64
)


def _waves(height: int, width: int) -> Iterator[tuple[Ints, Ints]]:
    """Rows and columns of the places 2 row + column = 0, 1, ...

    The places above a place, to its left, and above with one to the right, lie in earlier waves.
    So error diffusion and context coding take a whole wave at once.
    """
    for wave in range(2 * (height - 1) + width):
        rows = np.arange(max(0, (wave - width + 2) // 2), min(height - 1, wave // 2) + 1)
        yield rows, wave - 2 * rows


class _IndexModel:
    """Learns, wave by wave, how likely each entry is beside the entries around it.

    The likelihood of an entry is a product of (1 + d / s) ** -w over the neighbours.  d is the
    squared distance between the two entries.  s is a scale that grows with the distances among the
    neighbours.  w is the neighbour's weight.  The weights, and a bias for each entry, follow the
    gradient of the code length, as in the mixing of PAQ (Mahoney 2005).
    """

    def __init__(self, entries: Ints, height: int, width: int) -> None:
        count = len(entries)
        self._nowhere = count  # the entry of places outside; its distance to all others is 0
        points = entries.astype(np.float64)
        squares = (points**2).sum(1)
        distances = squares[:, None] + squares - 2 * (points @ points.T)
        nearest = (distances + np.diag(np.full(count, np.inf))).min(1)
        self._spacing = int(nearest.sum()) // count
        self._first_octave = int(self._octave(np.zeros(1, np.int64))[0])
        self._potentials = np.zeros((OCTAVES, count + 1, count), np.int16)
        for octave, potentials in enumerate(self._potentials):
            scale = np.ldexp(np.ones((1, 1)), octave + self._first_octave)
            potentials[:count] = logarithm(scale + distances) - logarithm(scale)
        self._distances = np.zeros((count + 1, count + 1), np.int64)
        self._distances[:count, :count] = distances
        self._weights = np.full(len(NEIGHBOURS), FIRST_WEIGHT, np.int64)
        self._bias = np.zeros(count, np.int64)
        # Two rows above, two columns to the left, one to the right.
        self._indices = np.full((height + 2, width + 3), self._nowhere, np.int64)

    def _octave(self, activity: Ints) -> Ints:
        """log2 of the scale: the mean of log2 of spacing and of activity, less 2 or 3 octaves.

        Measured: docs/measurements.md#palette.
        """
        product = self._spacing * (2 * activity + self._spacing)
        _, exponents = np.frexp(product.astype(np.float64))
        octaves: Ints = np.maximum(exponents.astype(np.int64) - 6, 0) >> 1
        return octaves

    def predict(self, rows: Ints, columns: Ints) -> NDArray[np.float32]:
        """`_counts` (n, K) of all entries at the places of a wave."""
        around = np.stack([self._indices[rows + 2 + y, columns + 2 + x] for y, x in NEIGHBOURS])
        left, above, corner = around[0], around[1], around[-1]
        activity = self._distances[left, above]
        activity += self._distances[left, corner] + self._distances[above, corner]
        octave = np.minimum(self._octave(activity) - self._first_octave, OCTAVES - 1)
        self._around = self._potentials[octave[:, None], around.T].astype(np.float64)
        potential = self._bias - self._weights.astype(np.float64) @ self._around
        potential = np.floor(np.ldexp(potential, -WEIGHT_BITS))
        drop = potential.max(1, keepdims=True) - potential
        weights = _POWERS[np.minimum(drop, len(_POWERS) - 1).astype(np.int64)]
        return _counts(weights)

    def learn(self, rows: Ints, columns: Ints, counts: NDArray[np.float32], entries: Ints) -> None:
        """Learn from the entries of the wave that was predicted last."""
        self._indices[rows + 2, columns + 2] = entries
        likely = counts.astype(np.float64) + 1
        expected = (self._around @ likely[:, :, None]).sum((0, 2))
        actual = self._around[np.arange(len(rows)), :, entries].sum(0)
        slope = (expected - _TOTAL * actual).astype(np.int64)
        self._weights += self._limited(slope, len(rows)) >> WEIGHT_RATE
        np.clip(self._weights, -WEIGHT_LIMIT, WEIGHT_LIMIT, out=self._weights)
        frequency = np.bincount(entries, minlength=self._nowhere)
        surprise = _TOTAL * frequency - likely.sum(0).astype(np.int64)
        self._bias += self._limited(surprise, len(rows)) >> BIAS_RATE
        np.clip(self._bias, -BIAS_LIMIT, BIAS_LIMIT, out=self._bias)

    @staticmethod
    def _limited(total: Ints, places: int) -> Ints:
        """A sum over a wave.  If the wave has more than `LEARNED_AT_ONCE` places, it is reduced."""
        return total * LEARNED_AT_ONCE // places if places > LEARNED_AT_ONCE else total


# Payloads

Choose = Callable[[Ints, Ints, NDArray[np.float32]], Ints]


def _code(
    coder: _Coder, palette: Palette | None, choose: Choose, shape: tuple[int, int, int]
) -> tuple[Palette, Ints]:
    """Code a palette and its indices; ``choose`` returns entries for rows, columns and counts."""
    height, width, channels = shape
    palette = _code_palette(coder, palette, height * width, channels)
    indices = np.zeros((height, width), np.int64)
    if len(palette.entries) > 1:
        model = _IndexModel(palette.entries, height, width)
        for rows, columns in _waves(height, width):
            counts = model.predict(rows, columns)
            entries = coder.code(choose(rows, columns, counts), counts)
            model.learn(rows, columns, counts, entries)
            indices[rows, columns] = entries
    return palette, indices


def pack(palette: Palette, indices: Ints) -> bytes:
    """The payload of a palette and the indices (h, w) of its entries, without loss."""
    ascending = np.unique(palette.entries, axis=0)
    if not np.array_equal(ascending, palette.entries):
        msg = "the palette's entries must be different and in ascending order"
        raise ValueError(msg)
    shape = (*indices.shape, palette.entries.shape[1])
    return pack_choices(palette, lambda rows, columns, _: indices[rows, columns], shape)


def pack_choices(palette: Palette, choose: Choose, shape: tuple[int, int, int]) -> bytes:
    """As `pack`, with indices that ``choose`` chooses wave by wave."""
    coder = _Encoder()
    _code(coder, palette, choose, shape)
    return coder.bytes()


def unpack(
    payload: bytes, height: int, width: int, channels: int, *, complete: bool = True
) -> tuple[Palette, Ints]:
    """The palette and the indices (h, w) of a payload; `DamagedPayload` if it is damaged.

    If it need not be ``complete``, it may be cut or damaged after the palette.
    """
    if not 1 <= channels <= MAX_CHANNELS:
        msg = f"a palette cannot have {channels} channels, only 1 to {MAX_CHANNELS}"
        raise DamagedPayload(msg)
    coder = (_Decoder if complete else _LenientDecoder)(payload)
    palette, indices = _code(
        coder, None, lambda rows, *_: np.zeros_like(rows), (height, width, channels)
    )
    coder.finish()
    return palette, indices
