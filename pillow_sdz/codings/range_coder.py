"""Integers <-> bytes: frequency tables, and constriction's range coder.

No floating-point arithmetic here depends on the machine.  A prior predicts a mean, in eighths of a
step, and the index of a scale for every symbol.  Both are integers.  They choose one of a few
hundred tables of 16-bit frequencies.  docs/format.md specifies all of it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import constriction
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from .. import weights
from ..arrays import Floats, Ints
from .integers import largest_magnitude

MEAN_UNITS = 8  # means are predicted in eighths of a quantisation step
SCALES = 96  # scale i is 2 ** (i / 8 - 5) quantisation steps
PHASED_SCALES = 64  # from this scale on, 8 steps, the fraction of the mean no longer matters
PHASES = MEAN_UNITS // 2 + 1
# A scale below `PHASED_SCALES` and this number means a normal distribution: its deviation is
# 2 ** (scale / 8 - 4) steps.  Chosen: no network's scale is as large.
NORMAL = 1 << 30
LOGISTIC_TABLES = PHASED_SCALES * PHASES + SCALES - PHASED_SCALES
TABLES = LOGISTIC_TABLES + PHASED_SCALES * PHASES
FREQUENCY_BITS = 16
CODER_BITS = 24  # constriction's default precision
MAX_ESCAPE_BITS = 20
# Tables with at most this many entries are decoded by lazy models.  Measured: with 6 to 10 entries,
# a symbol takes 10 to 24 instead of 21 to 26 ns, and with 12 or more it takes longer.
FEW_ENTRIES = 10
# The coder reads two words ahead, so the last 64 bits of a cut payload do not decode.
AHEAD = 64  # bits
SYMBOL_LIMIT = 1 << 19  # the largest magnitude of symbols and means; they are clipped


class DamagedPayload(ValueError):
    """No encoder makes this payload."""


class Tables:
    """The frequency tables.  Table t codes the residuals -reach[t]..reach[t] and an escape."""

    def __init__(self, frequencies: NDArray[np.uint16], reach: NDArray[np.uint16]) -> None:
        self.reach: Ints = reach.astype(np.int32)
        ends: Ints = np.cumsum(2 * self.reach + 2)
        if len(reach) != TABLES or ends[-1] != len(frequencies):
            msg = "the frequency tables do not have their specified shape"
            raise ValueError(msg)
        starts = ends - (2 * self.reach + 2)
        self._starts = starts
        self._frequencies = frequencies
        self._bits = FREQUENCY_BITS - np.log2(frequencies.astype(np.float64))
        self.models, self.decoding = [], []
        # A float32 holds these integers exactly.  constriction gives a symbol of weight w
        # floor(w * scale) + 1 counts, and chooses the scale so that they sum to 2 ** 24.  These
        # weights sum to 2 ** 24 less the number of symbols, so the scale is exactly 1.
        unit = 1 << (CODER_BITS - FREQUENCY_BITS)
        for start, end in zip(starts, ends, strict=True):
            counts = frequencies[start:end].astype(np.int64)
            if counts.min() < 1 or counts.sum() != 1 << FREQUENCY_BITS:
                msg = "a frequency table does not sum to 65536"
                raise ValueError(msg)
            weights = (counts * unit - 1).astype(np.float32)
            model = constriction.stream.model.Categorical(weights, lazy=False, perfect=False)
            self.models.append(model)
            # A lazy model is the same distribution.  It looks for a symbol one by one.
            if len(counts) <= FEW_ENTRIES:
                model = constriction.stream.model.Categorical(weights, lazy=True, perfect=False)
            self.decoding.append(model)

    @classmethod
    @functools.cache
    def shipped(cls) -> Tables:
        """The tables that the file format specifies, loaded once."""
        arrays = load_file(weights.TABLES.checked())
        return cls(arrays["frequencies"], arrays["reach"])

    def frequencies(self, table: int) -> NDArray[np.uint16]:
        """The frequencies of a table's entries, in 2 ** -16; the last one is the escape's."""
        start = int(self._starts[table])
        return self._frequencies[start : start + 2 * int(self.reach[table]) + 2]

    def entries(self, residual: Ints, table: NDArray[np.uint16]) -> Ints:
        """The entries of residuals in their tables; 2 reach + 1 is the escape."""
        reach = self.reach[table]
        return np.where(np.abs(residual) > reach, 2 * reach + 1, residual + reach)

    def bits(self, symbols: Ints, prediction: Prediction) -> Floats:
        """The bits that each symbol costs with this prediction."""
        residual = (symbols - prediction.centre) * prediction.mirror
        bits = self.bits_of(self.entries(residual, prediction.table), prediction.table)
        excess = np.abs(residual) - self.reach[prediction.table]
        escaped = excess > 0
        # `SymbolEncoder.encode` writes an escape so: a length below 32, the bits after the first
        # one, and a sign.
        bits[escaped] += 5 + np.floor(np.log2(excess[escaped])) + 1
        return bits

    def bits_of(self, entries: Ints, table: NDArray[np.uint16]) -> Floats:
        """The bits of entries of tables, without those after an escape."""
        bits: Floats = self._bits[self._starts[table] + entries]
        return bits


class Prediction(NamedTuple):
    """The distribution of a symbol: its table, its centre, and whether it is mirrored."""

    table: NDArray[np.uint16]
    centre: Ints
    mirror: Ints  # +1 or -1

    @classmethod
    def of(cls, mean: Ints, scale: Ints) -> Prediction:
        """The prediction for means in eighths and scale indices, both clipped to their range.

        Indices of normal distributions, with `NORMAL`, are not clipped.
        """
        normal = None
        if scale.max(initial=0) >= NORMAL:
            normal = scale >= NORMAL
            scale = np.where(normal, scale - NORMAL, scale)
        # A stage may have millions of symbols, so the numbers are kept in small types.
        scale = np.clip(scale, 0, SCALES - 1).astype(np.int16)
        limit = SYMBOL_LIMIT * MEAN_UNITS
        shifted = np.clip(mean, -limit, limit).astype(np.int32, copy=False) + MEAN_UNITS // 2
        phase = (shifted & (MEAN_UNITS - 1)).astype(np.int16)
        phase -= MEAN_UNITS // 2
        table = np.abs(phase)
        table += scale * np.int16(PHASES)
        if scale.max(initial=0) >= PHASED_SCALES:
            wide = scale >= PHASED_SCALES
            table[wide] = scale[wide] + PHASED_SCALES * (PHASES - 1)
        if normal is not None:
            table += normal * np.int16(LOGISTIC_TABLES)
        shifted >>= 3
        phase >>= 15  # -1 if it is negative, else 0
        phase |= 1
        return cls(table.view(np.uint16), shifted, phase)


@functools.cache
def _uniform(size: int) -> Any:
    return constriction.stream.model.Uniform(size)


def runs(table: NDArray[np.uint16]) -> tuple[Ints, list[int], list[int]]:
    """The places in the order of their tables; the tables in use, and how many places have each."""
    counts = np.bincount(table)
    # This is a radix sort.  Its time depends on how many bytes a number has.
    order = np.argsort(table.astype(np.min_scalar_type(len(counts))), kind="stable")
    (present,) = np.nonzero(counts)
    return order, present.tolist(), counts[present].tolist()


class Coder(Protocol):
    """Codes one stage of symbols.  With it, a prior is written once for both directions."""

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        """The symbols (n,) that ``index`` selects of ``volume``; ``mean`` and ``scale`` are (n,).

        A decoder reads them.  An encoder chooses and writes them.
        """
        ...


def sealed(encoder: constriction.stream.queue.RangeEncoder) -> bytes:
    """What an encoder has written, in as few bytes as possible."""
    words: NDArray[np.uint32] = encoder.get_compressed()
    emitted, (lower, width) = encoder.pos()
    payload = words.astype(">u4").tobytes()
    # constriction ends with whole words.  Any point of the final interval decodes to the same
    # symbols, and a decoder reads zeros after the payload.  So the shortest payload is the point
    # that ends in the most zeros.  If constriction's own point has changed earlier words by a
    # carry, that point is used.
    if int.from_bytes(payload[4 * emitted : 4 * emitted + 4], "big") >= lower >> 32:
        for zeros in range(64, -1, -8):
            point = -(-lower >> zeros) << zeros
            if point < min(lower + width, 1 << 64):
                payload = payload[: 4 * emitted] + point.to_bytes(8, "big")
                break
    return payload.rstrip(b"\0")


class SymbolEncoder:
    """Symbols to words."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._encoder = constriction.stream.queue.RangeEncoder()

    def encode(self, symbols: Ints, prediction: Prediction) -> None:
        residual = ((symbols - prediction.centre) * prediction.mirror).astype(np.int32)
        entry = self._tables.entries(residual, prediction.table)
        order, present, counts = runs(prediction.table)
        in_order = entry[order]
        bounds = itertools.pairwise(itertools.accumulate(counts, initial=0))
        for table, (start, stop) in zip(present, bounds, strict=True):
            self._encoder.encode(in_order[start:stop], self._tables.models[table])
        reach = self._tables.reach[prediction.table]
        for place in np.flatnonzero(entry > 2 * reach):
            excess = abs(int(residual[place])) - int(reach[place])  # >= 1
            bits = excess.bit_length() - 1
            low = (excess - (1 << bits)) * 2 + int(residual[place] < 0)
            self._encoder.encode(bits, _uniform(32))
            self._encoder.encode(low, _uniform(2 << bits))

    def uniform(self, numbers: Ints, size: int) -> None:
        """Write numbers below ``size``, 2 to 2 ** 24, all equally likely."""
        self._encoder.encode(numbers.astype(np.int32), _uniform(size))

    def bytes(self) -> bytes:
        """The words, big-endian, in as few bytes as possible."""
        return sealed(self._encoder)


_UNDECODABLE = "the words do not decode"


class Words:
    """Reads words, and encodes again all symbols that it reads, which costs little.

    A payload is sound if and only if an encoder makes the same payload from its symbols.
    """

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        padded = payload + b"\0" * (-len(payload) % 4)
        words = np.frombuffer(padded, ">u4").astype(np.uint32)
        self._decoder = constriction.stream.queue.RangeDecoder(words)
        self._again = constriction.stream.queue.RangeEncoder()

    def read(self, model: Any, *parameters: NDArray[np.float32], count: int = 0) -> Ints:
        """``count`` symbols of a model, or one for each row of a family's ``parameters``."""
        try:
            symbols = self._decoder.decode(model, *(parameters or (count,)))
        except AssertionError as e:  # constriction raises it for words that no encoder makes
            raise DamagedPayload(_UNDECODABLE) from e
        self._again.encode(symbols, model, *parameters)
        return np.asarray(symbols, np.int32)

    def read_one(self, model: Any) -> int:
        """One symbol of a model."""
        try:
            symbol = self._decoder.decode(model)
        except AssertionError as e:
            raise DamagedPayload(_UNDECODABLE) from e
        self._again.encode(symbol, model)
        return int(symbol)

    def read_runs(
        self, decoding: Sequence[Any], models: Sequence[Any], counts: Sequence[int]
    ) -> list[Ints]:
        """Runs of symbols.  Each has a model to decode, one to encode, and a number of symbols."""
        try:
            found = list(map(self._decoder.decode, decoding, counts))
        except AssertionError as e:
            raise DamagedPayload(_UNDECODABLE) from e
        for _ in map(self._again.encode, found, models):
            pass
        return found

    def finish(self) -> None:
        """DamagedPayload if the payload holds more than what has been read."""
        if sealed(self._again) != self._payload:
            msg = "the words do not end with the last symbol"
            raise DamagedPayload(msg)


class SymbolDecoder:
    """Words to symbols."""

    def __init__(self, tables: Tables, payload: bytes) -> None:
        self._tables = tables
        self.words = Words(payload)

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        prediction = Prediction.of(mean, scale)
        residual, escaped = self._residuals(prediction)
        self.read_escapes(residual, prediction.table, escaped)
        return symbols_of(residual, prediction)

    def read_escapes(self, residual: Ints, table: NDArray[np.uint16], escaped: Ints) -> None:
        """Read the residuals beyond the reach of their tables, into the ``escaped`` places."""
        for at in escaped.tolist():
            bits = self._number(32)
            if bits > MAX_ESCAPE_BITS:
                msg = f"an escaped symbol of {bits} bits, more than the limit of {MAX_ESCAPE_BITS}"
                raise DamagedPayload(msg)
            low = self._number(2 << bits)
            excess = int(self._tables.reach[table[at]]) + (1 << bits) + (low >> 1)
            residual[at] = -excess if low & 1 else excess

    def _number(self, size: int) -> int:
        """Read a number below ``size``, as `uniform` does."""
        return self.words.read_one(_uniform(size))

    def _residuals(self, prediction: Prediction) -> tuple[Ints, Ints]:
        """As `read_residuals`, for one frame."""
        table = prediction.table
        if not len(table) or table[0] != table[-1] or np.any(table != table[0]):
            residual, escaped = read_residuals([self.words], self._tables, table[None])
            return residual[0], escaped
        # A stage with one table, such as a row of a map, is in order.
        tables, number, count = self._tables, int(table[0]), len(table)
        (found,) = self.words.read_runs([tables.decoding[number]], [tables.models[number]], [count])
        reach = int(tables.reach[number])
        of_one_table = found - reach
        return of_one_table, np.flatnonzero(of_one_table > reach)

    def uniform(self, count: int, size: int) -> Ints:
        """Read ``count`` numbers below ``size``, 2 to 2 ** 24, all equally likely."""
        numbers: Ints = self.words.read(_uniform(size), count=count).astype(np.int64)
        return numbers

    def finish(self) -> None:
        """DamagedPayload if the payload holds more than what has been read."""
        self.words.finish()


def read_residuals(
    words: Sequence[Words], tables: Tables, table: NDArray[np.uint16]
) -> tuple[Ints, Ints]:
    """The residuals (F, n) of a stage of F frames, from the words of each; ``table`` is (F, n).

    Those of the places that come second, in flat order, are escaped, and are read later.
    """
    count = len(tables.models)
    residual = np.empty(table.size, np.int32)
    if table.size == 0:
        return residual.reshape(table.shape), np.zeros(0, np.int64)
    narrow = np.min_scalar_type(len(words) * count)
    number = table.astype(narrow, copy=False)
    if len(words) > 1:
        number = number + np.arange(len(words), dtype=narrow)[:, None] * narrow.type(count)
    order, present, counts = runs(number.ravel())
    # In this order the frames stay apart, and each has the same runs as if it were alone.
    bounds = np.searchsorted(present, np.arange(len(words) + 1) * count)
    models = [tables.models[at % count] for at in present]
    decoding = [tables.decoding[at % count] for at in present]
    found = []
    for frame, (start, stop) in zip(words, itertools.pairwise(bounds.tolist()), strict=True):
        run = slice(start, stop)
        found += frame.read_runs(decoding[run], models[run], counts[run])
    # There are few tables and many places, so as much as possible is done before places are sorted.
    reach = np.repeat(tables.reach[np.array(present) % count], counts)
    in_order = np.concatenate(found)
    in_order -= reach
    residual[order] = in_order
    return residual.reshape(table.shape), np.sort(order[in_order > reach])


def symbols_of(residual: Ints, prediction: Prediction) -> Ints:
    """The symbols with these residuals; DamagedPayload if one is out of range."""
    symbols: Ints = residual * prediction.mirror
    symbols += prediction.centre
    if largest_magnitude(symbols) > SYMBOL_LIMIT:
        msg = f"a symbol is out of range: its magnitude is above {SYMBOL_LIMIT}"
        raise DamagedPayload(msg)
    return symbols
