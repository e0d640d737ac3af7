"""Codes one band of latents, frame after frame, by itself or as changes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import chunks, order
from ..arrays import Latents
from ..container import Chunk
from . import changes, quality_map
from .hyperprior import Coded, HyperPrior
from .quantize import ThriftyQuantizer, rate_weights
from .range_coder import Tables


class BandEncoder:
    """Codes one band of the latents, frame after frame."""

    def __init__(self, prior: HyperPrior, quality: int, *, predict: bool) -> None:
        self._prior, self._quality, self._predict = prior, quality, predict
        self._before: Coded | None = None  # the band in the frame before
        self._changes = 0  # how many DIFF in a row there were up to it

    def encode(
        self,
        steps: Latents,
        hyper: Latents,
        offsets: NDArray[np.int32] | None,
        hidden: NDArray[np.bool_] | None = None,
    ) -> Chunk:
        """The chunk for the next frame's latents and hyperlatents, in steps and not rounded.

        Where cells are ``hidden``, the likeliest latents are coded.
        """
        tables, (height, width, _) = Tables.shipped(), steps.shape
        before = self._before if self._changes < order.MAX_CHANGES else None
        if before is not None and not same(before.offsets, offsets):
            before = None
        besides = quality_map.volumes(offsets) | self._prior.volumes(steps)
        cells = quality_map.qualities(self._quality, offsets)
        weights = rate_weights(self._prior.axis.places(cells))
        whole = ThriftyQuantizer(tables, steps, hyper, weights, besides=besides, hidden=hidden)
        counted = changes.Counted(whole, *hyper.shape[:2])
        coded = self._prior.code(whole if before is None else counted, height, width, self._quality)
        chunk = Chunk(chunks.LATENTS, whole.bytes())
        if before is not None:
            changed = changes.worth_their_bits(steps, before.symbols, coded.symbols, counted.bits)
            work = before.work + changes.work(changed)
            if not changed.all() and work <= changes.most_work(*changed.shape):
                left_out = self._prior.volumes(steps, changed)
                parts = ThriftyQuantizer(tables, steps, hyper, weights, changed, left_out)
                difference = self._prior.code(parts, height, width, self._quality, before)
                payload = parts.bytes()
                if len(payload) < len(chunk.data):
                    coded, chunk = difference, Chunk(chunks.CHANGES, payload)
        self._changes = self._changes + 1 if chunk.type == chunks.CHANGES else 0
        if self._predict:
            self._before = coded
        return chunk


def same(one: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    """Whether two maps are the same, or both are missing."""
    return one is other if one is None or other is None else np.array_equal(one, other)
