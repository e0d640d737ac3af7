"""Where the stages meet: image <-> latents <-> payload of the LATN chunk."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import float16, models, palette, quantize
from .adaptive import AdaptivePrior
from .entropy import DamagedPayload, Ints, SymbolDecoder, Tables
from .lattice import STEP_UNITS, LatticePrior
from .models.presets import PRESETS
from .quantize import Prior, Quantizer
from .threads import one_blas_thread

Latents = NDArray[np.float32]

LOWEST, HIGHEST = 100, 10000  # quality in hundredths

# The article's byte is 0.18215 of an unscaled latent: 0.18215^2 of a scaled one, 33.98 / 1024.
PALETTE_STEP = 34
PALETTE_ENTRIES = 256

# Of latents without hyperlatents.  Chosen: four times those of the public models.  The adaptive
# prior's time grows with their square: a single latent of 64 channels takes it 0.75 s.
MAX_CHANNELS = 64

# Above this effort `mini` takes seconds to encode, so that only a few qualities are tried for a
# size, until so much of it is used.  Chosen.
HIGHEST_QUICK_EFFORT = 4
SLOW_TRIES, NEAR_ENOUGH = 3, 0.98
# What the first try supposes: effort 9's bytes of effort 4's at the same quality.  Measured, seven
# photos held out from training.
REFINED = 0.93

# The header's quantisation of float16 latents that are kept as the VAE encodes them: scaling those
# would round them.
UNSCALED = 1

# The first byte of a payload of latents without hyperlatents says which prior coded it.
ADAPTIVE, SD1, SD_MINI = range(3)


class DoesNotFit(ValueError):
    """No quality fits; ``smallest`` is the smallest payload in bytes."""

    def __init__(self, smallest: int) -> None:
        self.smallest = smallest
        super().__init__(f"the smallest payload has {smallest} bytes")


@dataclass(frozen=True)
class EncodedLatents:
    """``payload`` is the data of the LATN chunk, ``quantisation`` the header's."""

    payload: bytes
    quantisation: int


def step_of(quality: float) -> int:
    """The quantisation step, in 1/1024 of the latents' unit, of a quality of 1 to 100.

    Chosen: 20 qualities halve the step, and 100 is an eighth of the unit.  What steps take of
    latents like Stable Diffusion 1's is in the README (benchmarks.latents).
    """
    return round(STEP_UNITS * 2 ** ((40 - quality) / 20))


def quantisation_of(quality: float, model: models.ModelSpec, effort: int) -> int:
    """What the header says of a quality of 1 to 100 in the coding "context"."""
    if has_hyperprior(model):
        return round(100 * quality)
    return quantize.equal_error(step_of(quality), effort)


def encode(
    image: Image.Image,
    *,
    model: models.ModelSpec,
    coding: str = "context",
    quality: float = 75,
    effort: int = 4,
    max_payload: int | None = None,
) -> EncodedLatents:
    """Encode an image of mode RGB.

    ``quality`` is 1..100 and counts in the coding "context" alone; a palette has the article's
    256 entries.  With ``max_payload``, in bytes, it is the highest quality that fits instead, or
    the largest palette; DoesNotFit where none does.
    """
    pixels = np.asarray(image)
    latents = models.load(model).encode(pixels)

    @functools.cache
    def prior() -> int | None:
        """The one that suits the picture, at any quality."""
        step = quantisation_of(quality, model, effort)
        return None if has_hyperprior(model) else _best_prior(latents, model, step)

    def context(hundredths: int, effort: int) -> EncodedLatents:
        quantisation = quantisation_of(hundredths / 100, model, effort)
        if has_hyperprior(model):
            payload = _hyper_payload(latents, model, quantisation, effort, pixels)
        else:
            payload = encode_latents(
                latents,
                model=model,
                coding=coding,
                quantisation=quantisation,
                effort=effort,
                prior=prior(),
            )
        return EncodedLatents(payload, quantisation)

    def of_entries(entries: int) -> EncodedLatents:
        with one_blas_thread():
            payload = palette.encode(latents, step=PALETTE_STEP, entries=entries)
        return EncodedLatents(payload, PALETTE_STEP)

    if coding == "float16":
        exact = encode_latents(latents, model=model, coding=coding, quantisation=0)
        if max_payload is not None and len(exact) > max_payload:
            raise DoesNotFit(len(exact))
        return EncodedLatents(exact, 0)
    if coding == "palette":
        if max_payload is None:
            return of_entries(PALETTE_ENTRIES)
        return _largest(of_entries, 1, palette.MAX_ENTRIES, max_payload)[1]
    if max_payload is None:
        return context(round(quality * 100), effort)
    if has_hyperprior(model) and effort > HIGHEST_QUICK_EFFORT:
        quick = functools.cache(lambda h: context(h, HIGHEST_QUICK_EFFORT))
        return _largest_of_slow(quick, lambda h: context(h, effort), max_payload)
    return _largest(lambda h: context(h, effort), LOWEST, HIGHEST, max_payload)[1]


def scaled(latents: NDArray[Any], model: models.ModelSpec) -> Latents:
    """Latents as pipelines hand them over, of latents as the model's VAE encodes them."""
    factor, shift = scaling(model)
    return (latents.astype(np.float32) - shift) * factor


def unscaled(latents: NDArray[Any], model: models.ModelSpec) -> Latents:
    """Latents as the model's VAE encodes them, of latents as pipelines hand them over."""
    factor, shift = scaling(model)
    return latents.astype(np.float32) / factor + shift


def scaling(model: models.ModelSpec) -> tuple[np.float32, np.float32]:
    """Scaling and shift; ValueError where the model's latents are not of a known space."""
    if model.latent_space == models.SD_MINI.latent_space:
        return np.float32(1), np.float32(0)
    preset = PRESETS.get(model.latent_space)
    if preset is None:
        msg = f"how latents of {model.latent_space} are scaled is not known"
        raise ValueError(msg)
    return np.float32(preset.scaling), np.float32(preset.shift)


def encode_latents(
    latents: NDArray[Any],
    *,
    model: models.ModelSpec,
    coding: str,
    quantisation: int,
    effort: int = 4,
    prior: int | None = None,
) -> bytes:
    """The payload of latents (h, w, C), quantised as the header's ``quantisation`` says.

    That is, in the coding "context", the step in 1/1024 of a latent, or `mini`'s quality in
    hundredths; in "palette" the step of the palette's bytes; in "float16" whether the latents are
    `UNSCALED`.  ``prior`` is its number, where it is known; otherwise the best is looked for.
    ValueError for more than `MAX_CHANNELS`.
    """
    _check_channels(model)
    with one_blas_thread():
        if coding == "float16":
            return float16.encode(latents.astype(np.float16))
        if coding == "palette":
            return palette.encode(latents, step=quantisation)
        if has_hyperprior(model):
            return _hyper_payload(latents, model, quantisation, effort)
        number = _best_prior(latents, model, quantisation) if prior is None else prior
        found = _prior(number, model.channels)
        return bytes([number]) + quantize.encode(found, latents, quantisation, effort)


def has_hyperprior(model: models.ModelSpec) -> bool:
    """Whether latents are coded with a prior of the model's own file: those of `mini` are."""
    return model.latent_space == models.MINI.latent_space


def _check_channels(model: models.ModelSpec) -> None:
    if model.channels > MAX_CHANNELS and not has_hyperprior(model):
        msg = f"latents of {model.channels} channels, more than the limit of {MAX_CHANNELS}"
        raise DamagedPayload(msg)


def _priors(model: models.ModelSpec) -> list[int]:
    """The priors worth trying on a model's latents."""
    trained = {"sd1": SD1, "sd-mini": SD_MINI}
    if model.latent_space in trained:
        return [trained[model.latent_space]]
    # Of four channels it may well be a relative of Stable Diffusion 1.
    return [ADAPTIVE, SD1] if model.channels == 4 else [ADAPTIVE]


def _best_prior(latents: NDArray[Any], model: models.ModelSpec, step: int) -> int:
    """The prior that codes rounded latents in the fewest bytes."""
    numbers = _priors(model)
    if len(numbers) == 1:
        return numbers[0]

    def size(number: int) -> int:
        return len(quantize.encode(_prior(number, model.channels), latents, step, effort=0))

    with one_blas_thread():
        return min(numbers, key=size)


def _prior(number: int, channels: int) -> Prior:
    """The prior that a payload's first byte names; DamagedPayload where there is none."""
    if number == ADAPTIVE:
        return AdaptivePrior(channels)
    if number in (SD1, SD_MINI) and channels == 4:
        return LatticePrior.sd1() if number == SD1 else LatticePrior.sd_mini()
    msg = f"no prior {number} for {channels} channels"
    raise DamagedPayload(msg)


def _hyper_payload(
    latents: NDArray[Any],
    model: models.ModelSpec,
    quality: int,
    effort: int,
    pixels: NDArray[np.uint8] | None = None,
) -> bytes:
    """Without the original's pixels, effort changes no latents."""
    network = models.load(model)
    steps, hyper = network.refine(pixels, latents * network.gain(quality), quality, effort)
    quantizer = Quantizer(Tables.shipped(), steps, hyper)
    with one_blas_thread():
        network.prior.code(quantizer, *steps.shape[:2], quality)
    return quantizer.bytes()


def _largest(
    coded: Callable[[int], EncodedLatents], low: int, high: int, limit: int
) -> tuple[int, EncodedLatents]:
    """The highest of ``low``..``high`` that is coded in at most ``limit`` bytes, and as what."""
    best = coded(low)
    if len(best.payload) > limit:
        raise DoesNotFit(len(best.payload))
    too_large = coded(high)
    if len(too_large.payload) <= limit:
        return high, too_large
    halve = False
    while high - low > 1:
        # The size grows about exponentially with a quality; halving every second time
        # bounds the number of tries where it does not.
        growth = len(too_large.payload) / len(best.payload)
        part = math.log(max(limit, 1) / len(best.payload)) / math.log(growth)
        middle = low + round((high - low) * (0.5 if halve else part))
        middle = min(max(middle, low + 1), high - 1)
        halve = not halve
        tried = coded(middle)
        if len(tried.payload) <= limit:
            low, best = middle, tried
        else:
            high, too_large = middle, tried
    return low, best


def _largest_of_slow(
    quick: Callable[[int], EncodedLatents], slow: Callable[[int], EncodedLatents], limit: int
) -> EncodedLatents:
    """About the highest quality that ``slow``, which takes long, codes in ``limit`` bytes.

    The part of ``quick``'s bytes that it takes changes little from one quality to the next.
    """
    part = REFINED
    best = None
    for _ in range(SLOW_TRIES):
        try:
            quality, mark = _largest(quick, LOWEST, HIGHEST, round(limit / part))
        except DoesNotFit:
            quality, mark = LOWEST, quick(LOWEST)
        tried = slow(quality)
        size = len(tried.payload)
        if size <= limit:
            if best is None or size > len(best.payload):
                best = tried
            if size >= NEAR_ENOUGH * limit or quality == HIGHEST:
                break
        elif quality == LOWEST:
            raise DoesNotFit(size)
        # A little more than it seems, since a miss costs another try.
        part = 1.003 * size / len(mark.payload)
    return best or _largest(quick, LOWEST, HIGHEST, limit)[1]


def decode(
    payload: bytes,
    *,
    model: models.ModelSpec,
    size: tuple[int, int],
    coding: str = "context",
    quantisation: int,
    decoder: models.ModelSpec | None = None,
    refine: Callable[[Latents], Latents] | None = None,
) -> Image.Image:
    """The image of mode RGB and ``size`` (width, height); OSError for a damaged payload.

    ``decoder`` is another model of the same latent space that turns the latents into pixels,
    ``refine`` what is done to them before, both (h, w, C).
    """
    width, height = size
    rows, columns = -(-height // model.factor), -(-width // model.factor)
    network = models.load(decoder or model)  # before work that would be vain without it
    latents = decode_latents(
        payload, model=model, shape=(rows, columns), coding=coding, quantisation=quantisation
    )
    if has_hyperprior(model):
        pixels = network.decode(latents, quantisation)
    else:
        pixels = network.decode(refine(latents) if refine else latents)
    return Image.fromarray(pixels[:height, :width])


def decode_latents(
    payload: bytes,
    *,
    model: models.ModelSpec,
    shape: tuple[int, int],
    coding: str,
    quantisation: int,
) -> Latents:
    """Latents (h, w, C) of ``shape`` (h, w); OSError for a damaged payload.

    No weights are needed beyond this package's own.
    """
    stored = decode_stored(
        payload, model=model, shape=shape, coding=coding, quantisation=quantisation
    )
    return as_pipelines_have(stored, model, coding, quantisation)


def as_pipelines_have(
    stored: Latents, model: models.ModelSpec, coding: str, quantisation: int
) -> Latents:
    """The latents, scaled, of what `decode_stored` found; OSError where how is not known."""
    if coding != "float16" or quantisation != UNSCALED:
        return stored
    try:
        return scaled(stored, model)
    except ValueError as e:
        msg = f"SDZ file of unscaled latents: {e}"
        raise OSError(msg) from e


def decode_stored(
    payload: bytes,
    *,
    model: models.ModelSpec,
    shape: tuple[int, int],
    coding: str,
    quantisation: int,
) -> Latents:
    """As `decode_latents`, but those that are stored `UNSCALED` as the VAE encodes them."""
    try:
        _check_channels(model)
        with one_blas_thread():
            return _decode_latents(payload, model, shape, coding, quantisation)
    except DamagedPayload as e:
        msg = f"damaged SDZ file: chunk LATN: {e}"
        raise OSError(msg) from e


def _decode_latents(
    payload: bytes,
    model: models.ModelSpec,
    shape: tuple[int, int],
    coding: str,
    quantisation: int,
) -> Latents:
    if coding == "float16":
        return float16.decode(payload, *shape, model.channels).astype(np.float32)
    if coding == "palette":
        return palette.decode(payload, *shape, model.channels, step=quantisation)
    if has_hyperprior(model):
        network = models.load(model)
        decoder = SymbolDecoder(Tables.shipped(), payload)
        symbols: Ints = network.prior.code(decoder, *shape, quantisation)
        decoder.finish()
        gain: Latents = network.gain(quantisation)
        return (symbols / gain).astype(np.float32)
    if not payload:
        msg = "it is empty"
        raise DamagedPayload(msg)
    prior = _prior(payload[0], model.channels)
    decoder = SymbolDecoder(Tables.shipped(), payload[1:])
    symbols = prior.code(decoder, *shape, quantisation)
    decoder.finish()
    return (symbols * (quantisation / STEP_UNITS)).astype(np.float32)
