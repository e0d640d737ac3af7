"""Quantises all latents with one step, and codes them with a prior that predicts each of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..catalogue import ModelSpec
from ..spaces import HIGHEST_QUALITY, LOWEST_QUALITY
from ..threads import one_blas_thread
from . import priors, quantize
from .coding import Frame
from .frame_coders import FrameDecoders
from .integers import STEP_UNITS
from .lenient import decoder_of
from .range_coder import SYMBOL_LIMIT
from .target_size import EncodedLatents, largest
from .whole_frames import WholeFrames

# `fit` chooses the prior of a frame once, at this quality.  Chosen: the default quality, because
# the best prior hardly depends on the quality.
TRIAL_QUALITY = 75


def step_of(quality: float) -> int:
    """The quantisation step for a quality of 1 to 100, in 1/1024 of the latents' unit.

    Chosen: 20 points of quality halve the step, and 100 is an eighth of the unit.
    docs/stable-diffusion.md has the rates of some steps (benchmarks.latents).
    """
    return round(STEP_UNITS * 2 ** ((40 - quality) / 20))


class Context(WholeFrames):
    """The coding.  A payload is the number of a prior, and the words of the range coder."""

    def __init__(self, channels: int, numbers: Sequence[int]) -> None:
        """``numbers`` are the priors that are tried for each frame.  All priors are decoded."""
        super().__init__(channels)
        self._numbers = numbers

    @classmethod
    def of(cls, model: ModelSpec) -> Context:
        """The coding with the priors that are worth trying on a model's latents."""
        return cls(model.channels, priors.worth_trying(model))

    def quantisation(self, quality: float) -> int:
        return step_of(quality)

    def prepare(self, latents: NDArray[Any], quantisation: int) -> NDArray[Any]:
        found = super().prepare(latents, quantisation)
        highest = float(np.abs(found).max(initial=0))
        if highest * STEP_UNITS > SYMBOL_LIMIT * quantisation:
            msg = (
                f"latents of {highest:g} are more than {SYMBOL_LIMIT} steps from 0: "
                "take a larger step"
            )
            raise ValueError(msg)
        return found

    def payload(self, latents: NDArray[Any], quantisation: int, effort: int) -> bytes:
        rounded = self._rounded(latents, quantisation)
        number = self._best(rounded, effort)
        if effort not in quantize.PASSES:
            return rounded(number)
        return self._payload(number, latents, quantisation, effort)

    def fit(
        self, frames: Sequence[Frame], limit: int, effort: int, *, predict: bool = False
    ) -> EncodedLatents:
        trial = self.quantisation(TRIAL_QUALITY)
        with one_blas_thread():
            best = [self._best(self._rounded(f.latents, trial), effort) for f in frames]

        def tried(hundredths: int) -> EncodedLatents:
            quantisation = self.quantisation(hundredths / 100)
            coded = [
                Context(self._channels, [number]).encoder(quantisation, effort)(frame)
                for number, frame in zip(best, frames, strict=True)
            ]
            return EncodedLatents(coded, quantisation)

        return largest(tried, LOWEST_QUALITY, HIGHEST_QUALITY, limit)[1]

    def learns(self, payload: bytes) -> bool:
        return priors.learns(payload)

    def stored(
        self, payloads: Sequence[bytes], shape: tuple[int, int], quantisations: Sequence[int]
    ) -> list[NDArray[Any]]:
        def decoded(number: int, these: list[int]) -> list[NDArray[Any]]:
            prior = priors.of(number, self._channels)
            decoders = FrameDecoders([payloads[at][1:] for at in these])
            steps = [quantisations[at] for at in these]
            symbols = prior.code_frames(decoders, *shape, steps)
            decoders.finish()
            return [*map(_latents, symbols, steps)]

        return priors.decode_each(payloads, decoded)

    def begun(self, payload: bytes, shape: tuple[int, int], quantisation: int) -> NDArray[Any]:
        prior = priors.of(priors.number_of(payload), self._channels)
        decoder = decoder_of(payload[1:], complete=False)
        return _latents(prior.code(decoder, *shape, quantisation), quantisation)

    def _best(self, rounded: Callable[[int], bytes], effort: int) -> int:
        """The number of the prior that is best for the rounded latents."""
        return priors.best(priors.at_effort(self._numbers, self._channels, effort), rounded)

    def _rounded(self, latents: NDArray[Any], quantisation: int) -> Callable[[int], bytes]:
        """The payload of rounded latents, by the number of the prior."""
        return functools.cache(
            lambda number: self._payload(number, latents, quantisation, effort=0)
        )

    def _payload(self, number: int, latents: NDArray[Any], quantisation: int, effort: int) -> bytes:
        prior = priors.of(number, self._channels)
        return bytes([number]) + quantize.encode(prior, latents, quantisation, effort)


def _latents(symbols: NDArray[Any], quantisation: int) -> NDArray[np.float32]:
    return (symbols * (quantisation / STEP_UNITS)).astype(np.float32)
