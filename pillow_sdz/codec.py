"""Where the stages meet: image <-> latents <-> payload of the LATN chunk."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from . import models
from .entropy import DamagedPayload, SymbolDecoder, Tables
from .quantize import Quantizer
from .threads import one_blas_thread

LOWEST, HIGHEST = 100, 10000  # quality in hundredths, as the header stores it


class DoesNotFit(ValueError):
    """No quality fits; ``smallest`` is the smallest payload in bytes."""

    def __init__(self, smallest: int) -> None:
        self.smallest = smallest
        super().__init__(f"the smallest payload has {smallest} bytes")


@dataclass(frozen=True)
class EncodedLatents:
    """``payload`` is the data of the LATN chunk, ``quality`` the header's, in hundredths."""

    payload: bytes
    quality: int


def encode(
    image: Image.Image,
    *,
    model: models.ModelSpec,
    quality: float = 75,
    max_payload: int | None = None,
) -> EncodedLatents:
    """Encode an image of mode RGB.

    ``quality`` is 1..100.  With ``max_payload``, in bytes, it is the highest quality that
    fits instead; DoesNotFit where none does.
    """
    network = models.load(model)
    latents = network.encode(np.asarray(image))
    tables = Tables.shipped()

    def payload(hundredths: int) -> bytes:
        steps = latents * network.gain(hundredths)
        quantizer = Quantizer(tables, steps, network.hyperlatents(steps))
        rows, columns, _ = steps.shape
        with one_blas_thread():
            network.prior.code(quantizer, rows, columns, hundredths)
        return quantizer.bytes()

    if max_payload is None:
        hundredths = round(quality * 100)
        return EncodedLatents(payload(hundredths), hundredths)
    return _largest(payload, max_payload)


def _largest(payload: Callable[[int], bytes], limit: int) -> EncodedLatents:
    """The highest quality, to a hundredth, whose payload has at most ``limit`` bytes."""
    low, high = LOWEST, HIGHEST
    best = payload(low)
    if len(best) > limit:
        raise DoesNotFit(len(best))
    too_large = payload(high)
    if len(too_large) <= limit:
        return EncodedLatents(too_large, high)
    halve = False
    while high - low > 1:
        # The size grows about exponentially with the quality; halving every second time
        # bounds the number of tries where it does not.
        part = math.log(max(limit, 1) / len(best)) / math.log(len(too_large) / len(best))
        middle = low + round((high - low) * (0.5 if halve else part))
        middle = min(max(middle, low + 1), high - 1)
        halve = not halve
        tried = payload(middle)
        if len(tried) <= limit:
            low, best = middle, tried
        else:
            high, too_large = middle, tried
    return EncodedLatents(best, low)


def decode(
    payload: bytes, *, model: models.ModelSpec, size: tuple[int, int], quality: int
) -> Image.Image:
    """The image of mode RGB and ``size`` (width, height); OSError for a damaged payload."""
    network = models.load(model)
    width, height = size
    try:
        decoder = SymbolDecoder(Tables.shipped(), payload)
        rows, columns = -(-height // model.factor), -(-width // model.factor)
        with one_blas_thread():
            symbols = network.prior.code(decoder, rows, columns, quality)
        decoder.finish()
    except DamagedPayload as e:
        msg = f"damaged SDZ file: chunk LATN: {e}"
        raise OSError(msg) from e
    latents = symbols / network.gain(quality)
    return Image.fromarray(network.decode(latents, quality)[:height, :width])
