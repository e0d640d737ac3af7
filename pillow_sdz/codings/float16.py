"""Codes float16 latents bit for bit.

Neighbours predict only the first few of a latent's 16 bits.  So floats are sorted into cells of
equal width, much narrower than the error of a prediction.  `adaptive.AdaptivePrior` codes the
number of each latent's cell, as it codes quantised latents.  Then it is coded which float of its
cell the latent is; all are equally likely.  docs/float16.md specifies the payload.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints
from .adaptive import AdaptivePrior
from .coding import Frame
from .integers import STEP_LIMIT
from .range_coder import DamagedPayload, Prediction, SymbolDecoder, SymbolEncoder, Tables
from .target_size import DoesNotFit, EncodedLatents
from .whole_frames import WholeFrames

MANTISSA_BITS = 10  # of float16
LARGEST = 0x7FFF  # all bits but the sign: the NaN farthest from zero
UNIT_BITS = 24  # magnitudes are integers in 2 ** -24, the least magnitude of float16
LONGEST = 41  # how many bits the largest magnitude has
# At least 128 cells cover the magnitudes that all but 1 in 100 latents stay within.  Measured:
# docs/measurements.md#float16.
CELL_BITS = 7
EXCEEDED = 100


def encode(latents: NDArray[np.float16]) -> bytes:
    """The payload of float16 latents (h, w, C).  It keeps every bit, even those of NaNs."""
    bits = np.ascontiguousarray(latents).view(np.uint16).astype(np.int64)
    magnitudes, negative = _magnitudes(bits & LARGEST), bits >> 15 != 0
    precision = _precision(magnitudes)
    cell_bits = _cell_bits(magnitudes, precision)
    cells = _cells(magnitudes, precision, cell_bits)
    coder = _CellEncoder(np.where(negative, ~cells, cells))
    height, width, channels = latents.shape
    AdaptivePrior(channels).code(coder, height, width, _step(cell_bits))
    for selected, shift, count in _refinements(cells, precision, cell_bits):
        coder.encoder.uniform(magnitudes[selected] >> shift & ((1 << count) - 1), 1 << count)
    first = magnitudes[cells == 0]
    for bit in reversed(range(cell_bits)):
        ones = first >> bit & 1
        coder.encoder.uniform(ones, 2)
        if rest := min(bit, precision):
            low = first[ones == 1] >> (bit - rest) & ((1 << rest) - 1)
            coder.encoder.uniform(low, 1 << rest)
        first = first[ones == 0]
    return bytes([precision, cell_bits]) + coder.encoder.bytes()


def decode(payload: bytes, height: int, width: int, channels: int) -> NDArray[np.float16]:
    """Float16 latents (height, width, channels); DamagedPayload if the payload is damaged."""
    if len(payload) < 2:
        msg = "it ends before its words"
        raise DamagedPayload(msg)
    precision, cell_bits = payload[:2]
    if precision > MANTISSA_BITS or cell_bits + precision >= LONGEST:
        msg = f"no cells of {cell_bits} bits for mantissas of {precision}"
        raise DamagedPayload(msg)
    decoder = SymbolDecoder(Tables.shipped(), payload[2:])
    signed = AdaptivePrior(channels).code(decoder, height, width, _step(cell_bits))
    cells = np.where(signed < 0, ~signed, signed)
    last = (LONGEST - 1 - precision - cell_bits << precision) + (2 << precision) - 1
    if cells.max() > last:
        msg = "a cell is beyond all floats"
        raise DamagedPayload(msg)
    magnitudes = _first_magnitudes(cells, precision, cell_bits)
    for selected, shift, count in _refinements(cells, precision, cell_bits):
        numbers = decoder.uniform(int(selected.sum()), 1 << count)
        magnitudes[selected] |= numbers << shift
    (places,) = np.nonzero(cells.ravel() == 0)
    for bit in reversed(range(cell_bits)):
        ones = decoder.uniform(len(places), 2) == 1
        found = places[ones]
        magnitudes.flat[found] = 1 << bit
        if rest := min(bit, precision):
            magnitudes.flat[found] |= decoder.uniform(len(found), 1 << rest) << (bit - rest)
        places = places[~ones]
    decoder.finish()
    bits = _floats(magnitudes) | (signed < 0).astype(np.int64) << 15
    return bits.astype(np.uint16).view(np.float16)


class _CellEncoder:
    """A `range_coder.Coder` that writes the cells it was given."""

    def __init__(self, cells: Ints) -> None:
        self._cells = cells
        self.encoder = SymbolEncoder(Tables.shipped())

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        symbols: Ints = self._cells[index]
        self.encoder.encode(symbols, Prediction.of(mean, scale))
        return symbols


def _length(x: Ints) -> Ints:
    """How many bits integers have; they are from 0 and below 2 ** 53."""
    return np.frexp(x.astype(np.float64))[1].astype(np.int64)


def _magnitudes(floats: Ints) -> Ints:
    """The magnitudes of floats without their sign, in 2 ** -24.

    Infinities and NaNs continue the numbers upwards.
    """
    exponent = np.maximum(floats >> MANTISSA_BITS, 1) - 1
    magnitudes: Ints = floats - (exponent << MANTISSA_BITS) << exponent
    return magnitudes


def _floats(magnitudes: Ints) -> Ints:
    """The inverse of `_magnitudes`."""
    exponent = np.maximum(_length(magnitudes) - MANTISSA_BITS - 1, 0)
    floats: Ints = (exponent << MANTISSA_BITS) + (magnitudes >> exponent)
    return floats


def _precision(magnitudes: Ints) -> int:
    """The most mantissa bits that any number needs.  Numbers that were bfloat16 need 7."""
    trailing = _length(magnitudes & -magnitudes)  # zeros at the end, and the lowest one
    return max(int((_length(magnitudes) - trailing).max()), 0)


def _cell_bits(magnitudes: Ints, precision: int) -> int:
    """A cell's width is 2 ** this, in units of magnitudes."""
    rank = magnitudes.size - 1 - magnitudes.size // EXCEEDED
    high = int(np.partition(magnitudes, rank, axis=None)[rank]).bit_length()
    return min(max(high - 1 - min(precision, CELL_BITS), 0), LONGEST - 1 - precision)


def _step(cell_bits: int) -> int:
    """A cell's width in 1/1024, as `AdaptivePrior` takes it."""
    return min(1 << max(cell_bits - UNIT_BITS + 10, 0), STEP_LIMIT - 1)


def _cells(magnitudes: Ints, precision: int, cell_bits: int) -> Ints:
    """The numbers of the cells.  Floats that are farther apart than a cell have a cell each."""
    apart = np.maximum(_length(magnitudes) - 1 - precision - cell_bits, 0)
    cells: Ints = (apart << precision) + (magnitudes >> (cell_bits + apart))
    return cells


def _first_magnitudes(cells: Ints, precision: int, cell_bits: int) -> Ints:
    """The least magnitude of each cell."""
    apart = np.maximum((cells >> precision) - 1, 0)
    magnitudes: Ints = cells - (apart << precision) << (cell_bits + apart)
    return magnitudes


def _refinements(
    cells: Ints, precision: int, cell_bits: int
) -> Iterator[tuple[NDArray[np.bool_], int, int]]:
    """The cells, except 0, that hold 2 ** count floats, 2 ** shift apart: mask, shift, count."""
    lengths = _length(cells)
    for length in range(1, precision + 1):
        count = min(cell_bits, precision + 1 - length)
        if count:
            yield lengths == length, cell_bits - count, count


class Float16(WholeFrames):
    """The coding.  Its quantisation is 0, or 1 for latents that are stored unscaled."""

    def quantisation(self, quality: float, effort: int) -> int:
        return 0

    def prepare(self, latents: NDArray[Any], quantisation: int) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            halves = latents.astype(np.float16)
        if not np.array_equal(halves.astype(latents.dtype), latents, equal_nan=True):
            msg = (
                f"these {latents.dtype} latents are not exact in float16: convert them to float16 "
                "first if that is precise enough, or give a step instead"
            )
            raise ValueError(msg)
        return halves

    def payload(self, latents: NDArray[Any], quantisation: int, effort: int) -> bytes:
        return encode(latents.astype(np.float16))

    def fit(
        self, frames: Sequence[Frame], limit: int, effort: int, *, predict: bool = False
    ) -> EncodedLatents:
        exact = EncodedLatents([*map(self.encoder(0, effort), frames)], 0)
        if exact.size > limit:
            raise DoesNotFit(exact.size)
        return exact

    def stored(self, payload: bytes, shape: tuple[int, int], quantisation: int) -> NDArray[Any]:
        return decode(payload, *shape, self._channels)
