"""Exact float32 and bfloat16, whose numbers are float32 with 7 bits of mantissa.

Their magnitudes do not fit 64 bits, but the magnitudes of latents nearly always fit a window of 60
bits.  Values outside of the window, such as infinities, are listed at the start of the payload.
docs/float16.md specifies the payload.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints
from . import cells
from .cells import CELL_BITS, EXCEEDED, Cells, length
from .float16 import Lossless
from .priors import Prior
from .range_coder import DamagedPayload

MANTISSA_BITS = 23  # of float32
BFLOAT16_BITS = 7
INFINITY = 0xFF << MANTISSA_BITS
BIAS = 127  # of the exponent
# Bits of the largest and of the usual magnitudes in a window.  Chosen: with 50 bits for the usual
# ones, float32 keeps all bits of numbers that are 2 ** 26 times smaller, and there are cells for
# numbers that are 2 ** 10 times larger.
LONGEST = 60
USUAL = 50

_HEAD = Struct(">BBhI")  # precision, cell bits, exponent of the unit, exceptions


def encode(latents: NDArray[np.float32], prior: Prior) -> bytes:
    """The payload of float32 latents (h, w, C).  It keeps every bit, even those of NaNs."""
    bits = np.ascontiguousarray(latents).view(np.uint32).astype(np.int64)
    floats = bits & 0x7FFFFFFF
    unit = _unit(floats)
    magnitudes, fits = _magnitudes(floats, unit)
    if 2 * np.count_nonzero(fits) < fits.size:  # random bits rather than latents
        magnitudes, fits = np.zeros_like(magnitudes), np.zeros_like(fits)
    negative = (bits >> 31 != 0) & fits
    precision = cells.precision(magnitudes)
    cell_bits = USUAL - 1 - min(precision, CELL_BITS)
    cut = Cells(precision, cell_bits, LONGEST, -unit)
    (places,) = np.nonzero(~fits.ravel())
    gaps = b"".join(map(_varint, np.diff(places, prepend=-1).tolist()))
    others = bits.ravel()[places].astype(">u4").tobytes()
    head = _HEAD.pack(precision, cell_bits, unit, len(places))
    return head + gaps + others + cells.encode(magnitudes, negative, cut, prior)


class _Parts(NamedTuple):
    """A payload: how it is cut into cells, its exceptions and their places, and its words."""

    unit: int
    cut: Cells
    places: Ints
    others: Ints
    words: bytes


def decode(
    payloads: Sequence[bytes],
    shape: tuple[int, int, int],
    prior: Prior,
    mantissa_bits: int = MANTISSA_BITS,
) -> list[NDArray[np.float32]]:
    """Float32 latents (h, w, C) of each payload.

    Their mantissas have at most ``mantissa_bits`` bits.  DamagedPayload if a payload is damaged.
    """
    parts = [_parts(payload, math.prod(shape), mantissa_bits) for payload in payloads]
    words, cuts = [part.words for part in parts], [part.cut for part in parts]
    found = []
    for part, read in zip(parts, cells.decode(words, shape[:2], cuts, prior), strict=True):
        magnitudes, negative = read
        bits = _floats(magnitudes, part.unit) | negative.astype(np.int64) << 31
        bits.flat[part.places] = part.others
        found.append(bits.astype(np.uint32).view(np.float32))
    return found


def _parts(payload: bytes, size: int, mantissa_bits: int) -> _Parts:
    """The parts of a payload for ``size`` latents; DamagedPayload if it is damaged."""
    if len(payload) < _HEAD.size:
        msg = "it ends before its first word"
        raise DamagedPayload(msg)
    precision, cell_bits, unit, count = _HEAD.unpack_from(payload)
    if precision > mantissa_bits or cell_bits >= LONGEST:
        msg = f"mantissas of {precision} bits cannot have cells of {cell_bits}"
        raise DamagedPayload(msg)
    places, start = _places(payload, count, size)
    end = start + 4 * count
    if len(payload) < end:
        msg = f"it ends before its {count} exceptions do"
        raise DamagedPayload(msg)
    others = np.frombuffer(payload[start:end], ">u4").astype(np.int64)
    if (others & ((1 << MANTISSA_BITS - mantissa_bits) - 1)).any():
        msg = f"an exception has more than {mantissa_bits} bits of mantissa"
        raise DamagedPayload(msg)
    cut = Cells(precision, cell_bits, LONGEST, -unit)
    return _Parts(unit, cut, places, others, payload[end:])


def _varint(number: int) -> bytes:
    """An unsigned LEB128 number."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def _places(payload: bytes, count: int, size: int) -> tuple[Ints, int]:
    """Where the exceptions are among ``size`` latents, and where in the payload their list ends."""
    places, place, at = [], -1, _HEAD.size
    for _ in range(count):
        gap = shift = 0
        while True:
            if at == len(payload) or shift > 28:
                msg = f"its list of {count} exceptions is damaged"
                raise DamagedPayload(msg)
            byte = payload[at]
            at += 1
            gap |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        place += gap
        if gap == 0 or place >= size:
            msg = f"an exception has the place {place}, but there are {size} latents"
            raise DamagedPayload(msg)
        places.append(place)
    return np.array(places, np.int64), at


def _unit(floats: Ints) -> int:
    """The exponent of the window's unit: the usual magnitudes then have `USUAL` bits."""
    rank = floats.size - 1 - floats.size // EXCEEDED
    usual = int(np.partition(floats, rank, axis=None)[rank])
    return max(usual >> MANTISSA_BITS, 1) - BIAS - USUAL + 1


def _magnitudes(floats: Ints, unit: int) -> tuple[Ints, NDArray[np.bool_]]:
    """The magnitudes of floats without their sign, in 2 ** unit, and which of them fit."""
    exponent = np.maximum(floats >> MANTISSA_BITS, 1)
    digits = floats - (exponent - 1 << MANTISSA_BITS)
    by = exponent - BIAS - MANTISSA_BITS - unit
    low = np.minimum(np.maximum(-by, 0), MANTISSA_BITS + 1)
    fits = (digits & ((1 << low) - 1) == 0) & (length(digits) + by <= LONGEST)
    fits &= floats < INFINITY
    fits &= (by > -(MANTISSA_BITS + 1)) | (digits == 0)
    by = np.where(fits, by, 0)
    magnitudes = (digits << np.clip(by, 0, LONGEST)) >> low
    return np.where(fits, magnitudes, 0), fits


def _floats(magnitudes: Ints, unit: int) -> Ints:
    """The inverse of `_magnitudes`; DamagedPayload if a magnitude is not that of a float32."""
    lengths = length(magnitudes)
    exponent = np.maximum(lengths + unit + BIAS - 1, 1)
    by = exponent - BIAS - MANTISSA_BITS - unit
    digits = np.where(by >= 0, magnitudes >> np.clip(by, 0, 62), magnitudes << np.clip(-by, 0, 62))
    floats: Ints = digits + (exponent - 1 << MANTISSA_BITS)
    beyond = (exponent > 2 * BIAS) & (magnitudes > 0)
    if beyond.any():
        msg = "a magnitude is larger than any float"
        raise DamagedPayload(msg)
    return np.where(magnitudes > 0, floats, 0)


def _rounded(latents: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest bfloat16, in float32; of two that are equally near, the even one."""
    bits = np.ascontiguousarray(latents).view(np.uint32)
    near = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(latents), near, bits & np.uint32(0xFFFF0000)).view(np.float32)


class Float32(Lossless):
    """The coding of float32 latents."""

    def prepare(self, latents: NDArray[Any], quantisation: int) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            return self.exact(latents, "float32", latents.astype(np.float32))

    def exactly(self, latents: NDArray[Any], prior: Prior) -> bytes:
        return encode(latents.astype(np.float32), prior)

    def exact_latents(
        self, payloads: Sequence[bytes], shape: tuple[int, int], prior: Prior
    ) -> Sequence[NDArray[Any]]:
        return decode(payloads, (*shape, self._channels), prior)


class BFloat16(Float32):
    """The coding of bfloat16 latents, which numpy knows as float32."""

    def prepare(self, latents: NDArray[Any], quantisation: int) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            return self.exact(latents, "bfloat16", _rounded(latents.astype(np.float32)))

    def exactly(self, latents: NDArray[Any], prior: Prior) -> bytes:
        return encode(_rounded(latents.astype(np.float32)), prior)

    def exact_latents(
        self, payloads: Sequence[bytes], shape: tuple[int, int], prior: Prior
    ) -> Sequence[NDArray[Any]]:
        return decode(payloads, (*shape, self._channels), prior, BFLOAT16_BITS)
