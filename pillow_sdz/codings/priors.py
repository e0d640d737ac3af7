"""The priors of latents without hyperlatents, by the number that payloads have for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from .. import weights
from ..arrays import Ints
from ..catalogue import ModelSpec
from ..weights import Weights
from .adaptive import FAR, WIDE, AdaptivePrior
from .frame_coders import FrameCoder
from .lattice import LatticePrior
from .range_coder import Coder, DamagedPayload
from .wave_prior import WavePrior


class Prior(Protocol):
    """Predicts latents (h, w, C) of any quantisation step, without hyperlatents."""

    def code(self, coder: Coder, height: int, width: int, step: int) -> Ints:
        """Code the integers of latents; see `lattice.LatticePrior.code`."""
        ...

    def code_frames(self, coder: FrameCoder, height: int, width: int, steps: Sequence[int]) -> Ints:
        """Code the integers of several frames, as `code` does for each."""
        ...


class _Trained(NamedTuple):
    """A prior that was trained on latents of ``space``, which have ``channels`` channels.

    ``load`` makes it of its weights.  If it is ``quick``, it reads several times as fast as the
    adaptive prior, which is then not tried on its latents.
    """

    space: str
    channels: int
    weights: Weights
    load: Callable[[Weights], Prior]
    quick: bool = True


# The first byte of a payload is the number of its prior.  Prior 0 learns while it codes.  Prior 3,
# the wide one, does so from more channels.  The others are in `TRAINED`.
ADAPTIVE, ADAPTIVE_WIDE = 0, 3
LEARNING = {ADAPTIVE: FAR, ADAPTIVE_WIDE: WIDE}
FLUX2, FLUX2_NARROW = 4, 5
# From this effort on, wide priors are used instead of narrow ones.  Chosen: caches of latents are
# read often, and their default effort is 0.  An effort of 2 still rounds latents to the nearest
# step.
WIDE_EFFORT = 2
WIDER = {ADAPTIVE: ADAPTIVE_WIDE, FLUX2_NARROW: FLUX2}
TRAINED: dict[int, _Trained] = {
    1: _Trained("sd1", 4, weights.SD1_PRIOR, LatticePrior.shipped),
    2: _Trained("sd-mini", 4, weights.SD_MINI_PRIOR, LatticePrior.shipped),
    FLUX2: _Trained("flux2", 32, weights.FLUX2_PRIOR, WavePrior.shipped, quick=False),
    FLUX2_NARROW: _Trained("flux2", 32, weights.FLUX2_NARROW_PRIOR, WavePrior.shipped, quick=False),
}
# Unknown latents of 4 channels may be related to Stable Diffusion 1's: its prior is tried.
RELATIVE = 1
# The adaptive prior takes three times as long to read, so it must save more than this part of the
# bytes.  Chosen.
WORTH_LEARNING = 0.01


def worth_trying(model: ModelSpec) -> list[int]:
    """The numbers of the priors that are worth trying on a model's latents, with little effort."""
    of_space = [number for number, row in TRAINED.items() if row.space == model.space.prior]
    trained = [number for number in of_space if number not in WIDER.values()]
    if any(TRAINED[number].quick for number in trained):
        return trained
    return [ADAPTIVE, *trained, *([RELATIVE] if model.channels == 4 else [])]


def at_effort(numbers: Sequence[int], channels: int, effort: int) -> list[int]:
    """The numbers of the priors to try with an effort; wide ones only if they may save bytes."""
    if effort < WIDE_EFFORT:
        return [*numbers]
    few = channels <= FAR + 1
    return [n if n == ADAPTIVE and few else WIDER.get(n, n) for n in numbers]


def best(numbers: Sequence[int], payload: Callable[[int], bytes]) -> int:
    """The number of the prior with the smallest payload; one that learns must save enough."""
    if len(numbers) == 1:
        return numbers[0]

    def cost(number: int) -> float:
        return len(payload(number)) * (1 + WORTH_LEARNING * (number in LEARNING))

    return min(numbers, key=cost)


def learns(payload: bytes) -> bool:
    """Whether a payload has a prior that takes as long as the adaptive one, for any bytes."""
    if not payload:
        return False
    row = TRAINED.get(payload[0])
    return payload[0] in LEARNING or (row is not None and not row.quick)


def of(number: int, channels: int) -> Prior:
    """The prior of a number; DamagedPayload if there is none for these channels."""
    if number == ADAPTIVE or (number == ADAPTIVE_WIDE and channels > FAR + 1):
        return AdaptivePrior(channels, LEARNING[number])
    row = TRAINED.get(number)
    if row is None or row.channels != channels:
        msg = f"there is no prior {number} for {channels} channels"
        raise DamagedPayload(msg)
    return row.load(row.weights)


def decode_each(
    payloads: Sequence[bytes],
    decode: Callable[[int, list[int]], Iterable[NDArray[Any]]],
) -> list[NDArray[Any]]:
    """Decode payloads.  ``decode`` is called with a prior, and the places of its payloads.

    DamagedPayload if a payload is empty, and whatever ``decode`` raises.
    """
    numbers = [number_of(payload) for payload in payloads]
    found: dict[int, NDArray[Any]] = {}
    for number in sorted(set(numbers)):
        these = [at for at, other in enumerate(numbers) if other == number]
        found |= zip(these, decode(number, these), strict=True)
    return [found[at] for at in range(len(payloads))]


def number_of(payload: bytes) -> int:
    """The number of a payload's prior; DamagedPayload if the payload is empty."""
    if not payload:
        msg = "it is empty"
        raise DamagedPayload(msg)
    return payload[0]
