"""Floats as cells of equal width, and what is left within the cells: exact to the last bit.

The first bits of a float can be predicted from its neighbours, and the last ones are noise.  So the
number of a float's cell is coded like a quantised latent, and the rest as uniform numbers.
docs/float16.md specifies the payload; `float16` and `float32` turn floats into magnitudes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints
from .frame_coders import FrameDecoders
from .integers import STEP_LIMIT
from .priors import Prior
from .range_coder import DamagedPayload, Prediction, SymbolDecoder, SymbolEncoder, Tables

# 99 of 100 latents lie within the first cells, at least 128 of them.  Measured:
# docs/measurements.md#float16.
CELL_BITS = 7
EXCEEDED = 100


class Cells(NamedTuple):
    """How magnitudes are cut into cells.

    A magnitude has at most ``precision`` + 1 significant bits, and at most ``longest`` bits.  Cells
    are 2 ** ``bits`` wide.  A latent's unit is 2 ** ``unit_bits``.
    """

    precision: int
    bits: int
    longest: int
    unit_bits: int

    @property
    def step(self) -> int:
        """A cell's width in 1/1024 of a latent's unit, as priors take it."""
        return min(1 << min(max(self.bits - self.unit_bits + 10, 0), 16), STEP_LIMIT - 1)

    @property
    def last(self) -> int:
        """The highest number of a cell."""
        beyond = self.longest - 1 - self.precision - self.bits
        if beyond < 0:
            return (1 << self.longest - self.bits) - 1
        return (beyond << self.precision) + (2 << self.precision) - 1

    def of(self, magnitudes: Ints) -> Ints:
        """The numbers of the cells.  Floats that are farther apart than a cell have a cell each."""
        apart = np.maximum(length(magnitudes) - 1 - self.precision - self.bits, 0)
        cells: Ints = (apart << self.precision) + (magnitudes >> (self.bits + apart))
        return cells

    def first(self, cells: Ints) -> Ints:
        """The least magnitude of each cell."""
        apart = np.maximum((cells >> self.precision) - 1, 0)
        magnitudes: Ints = cells - (apart << self.precision) << (self.bits + apart)
        return magnitudes

    def refinements(self, cells: Ints) -> Iterator[tuple[NDArray[np.bool_], int, int]]:
        """(mask, shift, count): the cells in the mask hold 2 ** count floats, 2 ** shift apart.

        Cell 0 is in no mask.
        """
        lengths = length(cells)
        for digits in range(1, self.precision + 1):
            count = min(self.bits, self.precision + 1 - digits)
            if count:
                yield lengths == digits, self.bits - count, count


def encode(magnitudes: Ints, negative: NDArray[np.bool_], cut: Cells, prior: Prior) -> bytes:
    """The words for magnitudes (h, w, C) and their signs."""
    cells = cut.of(magnitudes)
    coder = _CellEncoder(np.where(negative, ~cells, cells))
    height, width, _ = magnitudes.shape
    prior.code(coder, height, width, cut.step)
    for selected, shift, count in cut.refinements(cells):
        coder.encoder.uniform(magnitudes[selected] >> shift & ((1 << count) - 1), 1 << count)
    first = magnitudes[cells == 0]
    for bit in reversed(range(cut.bits)):
        ones = first >> bit & 1
        coder.encoder.uniform(ones, 2)
        if rest := min(bit, cut.precision):
            low = first[ones == 1] >> (bit - rest) & ((1 << rest) - 1)
            coder.encoder.uniform(low, 1 << rest)
        first = first[ones == 0]
    return coder.encoder.bytes()


def decode(
    words: Sequence[bytes], shape: tuple[int, int], cuts: Sequence[Cells], prior: Prior
) -> list[tuple[Ints, NDArray[np.bool_]]]:
    """The magnitudes (h, w, C) of frames and their signs; DamagedPayload if words are damaged."""
    decoders = FrameDecoders(words)
    signed = prior.code_frames(decoders, *shape, [cut.step for cut in cuts])
    found = [
        (_refined(decoder, np.where(s < 0, ~s, s), cut), s < 0)
        for decoder, s, cut in zip(decoders.decoders, signed, cuts, strict=True)
    ]
    decoders.finish()
    return found


def _refined(decoder: SymbolDecoder, cells: Ints, cut: Cells) -> Ints:
    """The magnitudes in cells, after the numbers of the cells have been read."""
    if cells.max() > cut.last:
        msg = "a cell is larger than any float"
        raise DamagedPayload(msg)
    magnitudes = cut.first(cells)
    for selected, shift, count in cut.refinements(cells):
        numbers = decoder.uniform(int(selected.sum()), 1 << count)
        magnitudes[selected] |= numbers << shift
    (places,) = np.nonzero(cells.ravel() == 0)
    for bit in reversed(range(cut.bits)):
        ones = decoder.uniform(len(places), 2) == 1
        found = places[ones]
        magnitudes.flat[found] = 1 << bit
        if rest := min(bit, cut.precision):
            magnitudes.flat[found] |= decoder.uniform(len(found), 1 << rest) << (bit - rest)
        places = places[~ones]
    return magnitudes


class _CellEncoder:
    """A `range_coder.Coder` that writes the cells it was given."""

    def __init__(self, cells: Ints) -> None:
        self._cells = cells
        self.encoder = SymbolEncoder(Tables.shipped())

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        symbols: Ints = self._cells[index]
        self.encoder.encode(symbols, Prediction.of(mean, scale))
        return symbols


def length(x: Ints) -> Ints:
    """How many bits integers have; they are from 0 and have at most 53 bits in a row."""
    return np.frexp(x.astype(np.float64))[1].astype(np.int64)


def precision(magnitudes: Ints) -> int:
    """How many mantissa bits the numbers need.  Numbers that were bfloat16 need 7."""
    trailing = length(magnitudes & -magnitudes)  # the zeros at the end, and the 1 before them
    return max(int((length(magnitudes) - trailing).max()), 0)


def usual_length(magnitudes: Ints) -> int:
    """The number of bits that only 1 in `EXCEEDED` magnitudes exceeds."""
    rank = magnitudes.size - 1 - magnitudes.size // EXCEEDED
    return int(np.partition(magnitudes, rank, axis=None)[rank]).bit_length()
