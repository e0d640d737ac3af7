"""Exact float16: the magnitudes of all of its numbers are integers of at most 41 bits.

docs/float16.md specifies the payload.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints
from ..catalogue import ModelSpec
from . import cells, priors
from .cells import CELL_BITS, Cells, length
from .coding import Frame
from .priors import Prior
from .range_coder import DamagedPayload
from .target_size import DoesNotFit, EncodedLatents
from .whole_frames import WholeFrames

MANTISSA_BITS = 10  # of float16
LARGEST = 0x7FFF  # all bits except the sign: the NaN farthest from zero
UNIT_BITS = 24  # magnitudes are integers in 2 ** -24, the least magnitude of float16
LONGEST = 41  # how many bits the largest magnitude has


def encode(latents: NDArray[np.float16], prior: Prior) -> bytes:
    """The payload of float16 latents (h, w, C).  It keeps every bit, even those of NaNs."""
    bits = np.ascontiguousarray(latents).view(np.uint16).astype(np.int64)
    magnitudes, negative = _magnitudes(bits & LARGEST), bits >> 15 != 0
    precision = cells.precision(magnitudes)
    high = cells.usual_length(magnitudes)
    cell_bits = min(max(high - 1 - min(precision, CELL_BITS), 0), LONGEST - 1 - precision)
    cut = Cells(precision, cell_bits, LONGEST, UNIT_BITS)
    return bytes([precision, cell_bits]) + cells.encode(magnitudes, negative, cut, prior)


def decode(
    payloads: Sequence[bytes], shape: tuple[int, int], prior: Prior
) -> list[NDArray[np.float16]]:
    """Float16 latents (h, w, C) of each payload; DamagedPayload if one is damaged."""
    cuts = [_cut(payload) for payload in payloads]
    found = cells.decode([payload[2:] for payload in payloads], shape, cuts, prior)
    return [
        (_floats(magnitudes) | negative.astype(np.int64) << 15).astype(np.uint16).view(np.float16)
        for magnitudes, negative in found
    ]


def _cut(payload: bytes) -> Cells:
    """What a payload says of its cells; DamagedPayload if they are not possible."""
    if len(payload) < 2:
        msg = "it ends before its first word"
        raise DamagedPayload(msg)
    precision, cell_bits = payload[:2]
    if precision > MANTISSA_BITS or cell_bits + precision >= LONGEST:
        msg = f"mantissas of {precision} bits cannot have cells of {cell_bits}"
        raise DamagedPayload(msg)
    return Cells(precision, cell_bits, LONGEST, UNIT_BITS)


def _magnitudes(floats: Ints) -> Ints:
    """The magnitudes of floats without their sign, in 2 ** -24.

    Infinities and NaNs continue the numbers upwards.
    """
    exponent = np.maximum(floats >> MANTISSA_BITS, 1) - 1
    magnitudes: Ints = floats - (exponent << MANTISSA_BITS) << exponent
    return magnitudes


def _floats(magnitudes: Ints) -> Ints:
    """The inverse of `_magnitudes`."""
    exponent = np.maximum(length(magnitudes) - MANTISSA_BITS - 1, 0)
    floats: Ints = (exponent << MANTISSA_BITS) + (magnitudes >> exponent)
    return floats


class Lossless(WholeFrames):
    """The common part of the codings that keep latents of one dtype bit for bit.

    The quantisation is 0, or 1 for latents that are stored unscaled.
    """

    def __init__(self, channels: int, numbers: Sequence[int]) -> None:
        """``numbers`` are the priors that are tried for each frame.  All priors are decoded."""
        super().__init__(channels)
        self._numbers = numbers

    @classmethod
    def of(cls, model: ModelSpec) -> Self:
        """The coding with the priors that are worth trying on a model's latents."""
        return cls(model.channels, priors.worth_trying(model))

    def exactly(self, latents: NDArray[Any], prior: Prior) -> bytes:
        """The payload of latents (h, w, C) without the number of its prior."""
        raise NotImplementedError

    def exact_latents(
        self, payloads: Sequence[bytes], shape: tuple[int, int], prior: Prior
    ) -> Sequence[NDArray[Any]]:
        """The latents (h, w, C) of payloads without the number of their prior."""
        raise NotImplementedError

    def payload(self, latents: NDArray[Any], quantisation: int, effort: int) -> bytes:
        @functools.cache
        def of_prior(number: int) -> bytes:
            return bytes([number]) + self.exactly(latents, priors.of(number, self._channels))

        numbers = priors.at_effort(self._numbers, self._channels, effort)
        return of_prior(priors.best(numbers, of_prior))

    def stored(
        self, payloads: Sequence[bytes], shape: tuple[int, int], quantisations: Sequence[int]
    ) -> list[NDArray[Any]]:
        return priors.decode_each(
            payloads,
            lambda number, these: self.exact_latents(
                [payloads[at][1:] for at in these], shape, priors.of(number, self._channels)
            ),
        )

    def learns(self, payload: bytes) -> bool:
        return priors.learns(payload)

    def quantisation(self, quality: float) -> int:
        return 0

    def exact(self, latents: NDArray[Any], name: str, rounded: NDArray[Any]) -> NDArray[Any]:
        """``rounded``, the latents in a dtype; ValueError if they differ from the latents."""
        if not np.array_equal(rounded.astype(latents.dtype), latents, equal_nan=True):
            msg = (
                f"these {latents.dtype} latents are not exact in {name}: convert them to {name} "
                "first if that is precise enough, or give another dtype or a step instead"
            )
            raise ValueError(msg)
        return rounded

    def fit(
        self, frames: Sequence[Frame], limit: int, effort: int, *, predict: bool = False
    ) -> EncodedLatents:
        exact = EncodedLatents([*map(self.encoder(0, effort), frames)], 0)
        if exact.size > limit:
            raise DoesNotFit(exact.size)
        return exact


class Float16(Lossless):
    """The coding of float16 latents."""

    def prepare(self, latents: NDArray[Any], quantisation: int) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            return self.exact(latents, "float16", latents.astype(np.float16))

    def exactly(self, latents: NDArray[Any], prior: Prior) -> bytes:
        return encode(latents.astype(np.float16), prior)

    def exact_latents(
        self, payloads: Sequence[bytes], shape: tuple[int, int], prior: Prior
    ) -> Sequence[NDArray[Any]]:
        return decode(payloads, shape, prior)
