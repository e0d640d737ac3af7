"""Quantises all latents with one step, and codes them with a prior that predicts each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import weights
from ..catalogue import HIGHEST_QUALITY, LOWEST_QUALITY, ModelSpec
from ..threads import one_blas_thread
from ..weights import Weights
from . import quantize
from .adaptive import AdaptivePrior
from .coding import Frame
from .integers import STEP_UNITS
from .lattice import LatticePrior
from .quantize import Prior
from .range_coder import SYMBOL_LIMIT, DamagedPayload, decoder_of
from .target_size import EncodedLatents, largest
from .whole_frames import WholeFrames


class _Trained(NamedTuple):
    """A prior that was trained on latents of ``space``, which have ``channels`` channels."""

    space: str
    channels: int
    weights: Weights


# The first byte of a payload is the number of its prior: 0 for the one that learns while it codes,
# otherwise one of these.
ADAPTIVE = 0
TRAINED: dict[int, _Trained] = {
    1: _Trained("sd1", 4, weights.SD1_PRIOR),
    2: _Trained("sd-mini", 4, weights.SD_MINI_PRIOR),
}
# Unknown latents of 4 channels may be related to Stable Diffusion 1's: its prior is tried.
RELATIVE = 1

# `fit` chooses the prior of each frame once, at the default quality.  Chosen: the best prior hardly
# depends on the quality.
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
        trained = [n for n, row in TRAINED.items() if row.space == model.space.prior]
        relatives = [ADAPTIVE, RELATIVE] if model.channels == 4 else [ADAPTIVE]
        return cls(model.channels, trained or relatives)

    def quantisation(self, quality: float, effort: int) -> int:
        return quantize.equal_error(step_of(quality), effort)

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
        number = self._best(latents, quantisation)
        return self._payload(number, latents, quantisation, effort)

    def fit(
        self, frames: Sequence[Frame], limit: int, effort: int, *, predict: bool = False
    ) -> EncodedLatents:
        trial = self.quantisation(TRIAL_QUALITY, effort)
        with one_blas_thread():
            best = [self._best(frame.latents, trial) for frame in frames]

        def tried(hundredths: int) -> EncodedLatents:
            quantisation = self.quantisation(hundredths / 100, effort)
            coded = [
                Context(self._channels, [number]).encoder(quantisation, effort)(frame)
                for number, frame in zip(best, frames, strict=True)
            ]
            return EncodedLatents(coded, quantisation)

        return largest(tried, LOWEST_QUALITY, HIGHEST_QUALITY, limit)[1]

    def learns(self, payload: bytes) -> bool:
        return payload[:1] == bytes([ADAPTIVE])

    def stored(self, payload: bytes, shape: tuple[int, int], quantisation: int) -> NDArray[Any]:
        return self._decoded(payload, shape, quantisation, complete=True)

    def begun(self, payload: bytes, shape: tuple[int, int], quantisation: int) -> NDArray[Any]:
        return self._decoded(payload, shape, quantisation, complete=False)

    def _decoded(
        self, payload: bytes, shape: tuple[int, int], quantisation: int, *, complete: bool
    ) -> NDArray[Any]:
        if not payload:
            msg = "it is empty"
            raise DamagedPayload(msg)
        prior = self._prior(payload[0])
        decoder = decoder_of(payload[1:], complete=complete)
        symbols = prior.code(decoder, *shape, quantisation)
        decoder.finish()
        return (symbols * (quantisation / STEP_UNITS)).astype(np.float32)

    def _best(self, latents: NDArray[Any], quantisation: int) -> int:
        """The number of the prior that codes the rounded latents in the fewest bytes."""
        if len(self._numbers) == 1:
            return self._numbers[0]
        return min(
            self._numbers,
            key=lambda number: len(self._payload(number, latents, quantisation, effort=0)),
        )

    def _payload(self, number: int, latents: NDArray[Any], quantisation: int, effort: int) -> bytes:
        coded = quantize.encode(self._prior(number), latents, quantisation, effort)
        return bytes([number]) + coded

    def _prior(self, number: int) -> Prior:
        """The prior of a number; DamagedPayload if there is none for these channels."""
        if number == ADAPTIVE:
            return AdaptivePrior(self._channels)
        row = TRAINED.get(number)
        if row is None or row.channels != self._channels:
            msg = f"there is no prior {number} for {self._channels} channels"
            raise DamagedPayload(msg)
        return LatticePrior.shipped(row.weights)
