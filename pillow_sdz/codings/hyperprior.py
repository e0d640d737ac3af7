"""The prior of latents with hyperlatents: integer networks that predict every symbol.

All weights and activations are integers; see `dense`.  docs/format.md specifies the prior.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import cores, forks
from ..arrays import Ints, Singles
from . import changes, occupancy, quality_map
from .dense import Product
from .groups import Group, activations, layer, rectified
from .known import Known, Pass
from .places import PARITIES, SQUARE, Grid, Volume, blocks, dilated, doubled, quadrant
from .predicting import Predict, Stage, in_numpy
from .range_coder import Coder, DamagedPayload
from .rate_axis import RateAxis

# The constants are measured or chosen: docs/measurements.md#hyperprior.

HYPER_LIMIT = 255  # hyperlatents are clipped to this before they enter the networks
# Predicted magnitudes are in 1/16384.
MAGNITUDE_BITS = 14
# A magnitude's exponent and the first bits after it choose its scale from a table.
MANTISSA_BITS = 5
SCALE_UNITS = 16  # the table, and what is added to it, are in 1/16 of an index of scales
# log2(1 + a magnitude) is in sixteenths.
LEVEL_UNITS = 16

# The scale of the number of groups that are left out.  Chosen: about 4 bits for any number.
LEFT_OUT_SCALE = 56
# An encoder sets the last groups to 0 if each has at most one symbol that is not 0 for this many
# places.  Chosen: such a symbol takes 11 bits or more, which is more than its error is worth.
LEFT_OUT_PLACES = 64

# Places that are computed at once.  Chosen: 10 MB for the layer with the most inputs.
BLOCK = 1024
# Fewer places are not worth another thread.  Chosen.
LEAST_BLOCK = 128

# Without it, each of the first threads would make the groups for itself.
_building = forks.Lock()


class Coded(NamedTuple):
    """The integers of latents: symbols (h, w, C), and hyperlatents (ceil(h/2), ceil(w/2), Z).

    ``work`` is that of all changes since the last frame that was coded by itself; see
    `changes.work`.  ``offsets`` is the map of `quality_map`, or None.
    """

    symbols: Ints
    hyper: Ints
    work: int = 0
    offsets: Ints | None = None


class Part(NamedTuple):
    """The number of first channels to code, and the functions that compute for them.

    With ``threads``, several threads may predict at once.
    """

    channels: int
    product: Product = np.matmul
    predict: Predict = in_numpy
    threads: bool = False


class HyperPrior:
    """Codes hyperlatents at half the resolution, then the latents, group by group of channels.

    The places of a group are coded in a checkerboard of two passes.  A place's distribution is
    predicted from the hyperlatents, the rate, and the earlier groups at this place and around it.
    The second pass also uses the results of the first pass around the place.  The groups from
    ``base`` on are the tail.  They are coded only at places with a high rate, and are 0 elsewhere.
    The last groups may be left out.  Then they are 0 everywhere, and take no time.  Of the others,
    most are coded only in the patches that `occupancy` finds.
    """

    def __init__(
        self,
        tensors: Mapping[str, NDArray[Any]],
        axis: RateAxis,
        of_channels: Callable[[int], Part] = Part,
    ) -> None:
        self.axis = axis
        self._starts = [0, *itertools.accumulate(int(g) for g in tensors["groups"])]
        self.channels = self._starts[-1]
        self.first_group = self._starts[1]  # its number of channels
        self._whole = of_channels(self.channels)
        base, self._tail_from = (int(x) for x in tensors["tail"])
        self._base_groups = self._starts.index(base)
        self._hyper_scale = tensors["hyper_scale"].astype(np.int64)  # (2, Z)
        self.hyper_channels = self._hyper_scale.shape[1]
        self._largest = tensors["largest"].astype(np.float32)  # (C,): inputs are clipped to these
        # Levels are small numbers, so they are kept in few bits.
        self._levels = tensors["levels"].astype(np.min_scalar_type(tensors["levels"].max()))
        self._scales = tensors["scales"].astype(np.float32) + SCALE_UNITS // 2  # to be rounded
        hyper = np.full(self.hyper_channels, HYPER_LIMIT)
        self._synthesis = layer(tensors, "synthesis", hyper, taps=len(SQUARE))
        near = activations(self._synthesis.outputs)
        self._up = [
            layer(tensors, f"up{i}", near, taps=len(quadrant(*parity)))
            for i, parity in enumerate(PARITIES)
        ]
        features = self._up[0].outputs
        self._make_group = functools.partial(Group, tensors, self._starts, base, features)
        self._groups: dict[int, Group] = {}

    def _group(self, number: int) -> Group:
        """A group of channels.  It is made when it is needed: small pictures need few groups."""
        with _building:
            if number not in self._groups:
                self._groups[number] = self._make_group(number)
            return self._groups[number]

    def hyper_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """The shape of the hyperlatents for latents (height, width)."""
        return (height + 1) // 2, (width + 1) // 2, self.hyper_channels

    def counts(self, steps: NDArray[Any]) -> Ints:
        """How many symbols of each group are not 0, for latents in steps (..., C)."""
        used = np.count_nonzero(np.rint(steps), axis=tuple(range(steps.ndim - 1)))
        found: Ints = np.add.reduceat(used, self._starts[:-1])
        return found

    def worth_coding(self, counts: Ints, places: int) -> int:
        """How many of the first channels an encoder should keep of a frame.

        ``counts`` are those of all ``places`` of the frame.  The other channels should be set to 0.
        """
        (kept,) = np.nonzero(counts > places // LEFT_OUT_PLACES)
        return self._starts[max(kept, default=-1) + 1]

    def volumes(
        self, steps: NDArray[Any], changed: NDArray[np.bool_] | None = None
    ) -> dict[str, NDArray[Any]]:
        """What the coder knows besides latents in steps (h, w, C): which groups are 0, and where.

        ``changed`` are the cells that are coded; None means all of them.
        """
        used = np.rint(steps) != 0
        if changed is not None:
            used &= doubled(changed, *steps.shape[:2])[..., None]
        occupied = occupancy.patches(np.logical_or.reduceat(used, self._starts[:-1], 2))
        (kept,) = np.nonzero(occupied.any((0, 1)))
        left_out = len(self._starts) - 2 - max(kept, default=-1)
        return {"left out": np.array([left_out]), "occupied": occupied}

    def code(
        self,
        coder: Coder,
        height: int,
        width: int,
        quality: int,
        before: Coded | None = None,
        part: Part | None = None,
    ) -> Coded:
        """Code hyperlatents and latents (height, width, C), and return them.

        ``quality`` is the header's, in hundredths.  The map of the cells' qualities is coded first.
        ``before`` has the integers of the same band in the frame before.  With it, a map of the
        cells that change is coded instead, then these cells.  All others stay as in ``before``.
        With a ``part``, only its channels are coded.  ``before`` has the same channels, and the
        payload goes on after the last symbol.  The coder knows the values of `volumes`, too.
        """
        hyper_shape = self.hyper_shape(height, width)
        part = part or self._whole
        if before is None:
            offsets = quality_map.code(coder, *hyper_shape[:2])
            changed, work = np.ones(hyper_shape[:2], bool), 0
            symbols = np.zeros((height, width, part.channels), np.int32)
            hyper = np.zeros(hyper_shape, np.int32)
        else:
            changed = changes.code(coder, *hyper_shape[:2])
            if not changed.any():
                return before
            work = before.work + changes.work(changed)
            if work > changes.most_work(*hyper_shape[:2]):
                msg = "more changes in a row of DIFF than the limit"
                raise DamagedPayload(msg)
            symbols, hyper = before.symbols.copy(), before.hyper.copy()
            offsets = before.offsets

        qualities = quality_map.qualities(quality, offsets)
        rates = np.broadcast_to(self.axis.places(qualities), hyper_shape[:2])
        rows, columns = np.nonzero(changed)
        scales = (self._hyper_scale[0] + self._hyper_scale[1] * rates[rows, columns, None]) >> 16
        index: tuple[Any, ...] = (rows, columns, slice(None))
        found = coder.code("hyper", index, np.zeros(scales.size, np.int32), scales.ravel())
        hyper[index] = found.reshape(len(rows), -1)
        zero = np.zeros(1, np.int32)
        left_out = int(coder.code("left out", (0,), zero, zero + LEFT_OUT_SCALE)[0])
        if not 0 <= left_out < len(self._starts):
            left_out = 0  # a payload without bytes has such a symbol
        starts = self._starts[: len(self._starts) - left_out]
        symbols[doubled(changed, height, width)] = 0  # where nothing is coded, they stay so
        with cores.Share(cores.threads() if part.threads else 1) as share:
            self._code_latents(coder, symbols, hyper, changed, rates, starts, part, share)
        return Coded(symbols, hyper, work, offsets)

    def _features(self, hyper: Ints, cells: NDArray[np.bool_], product: Product) -> Singles:
        """Turn hyperlatents (hz, wz, Z) into features (2 hz, 2 wz, F), right only in ``cells``."""
        height, width, channels = hyper.shape
        grid = Grid(height, width)
        volume, near = Volume(grid, channels, np.float32), dilated(cells)
        volume.values[:] = np.clip(hyper, -HYPER_LIMIT, HYPER_LIMIT)
        wanted = grid.at(*np.nonzero(near))
        sources, found = grid.compact(grid.around(wanted, SQUARE))
        known = volume.at(sources, slice(None))
        inside = np.zeros((len(wanted) + 1, self._synthesis.outputs), np.float32)
        inside[:-1] = rectified(self._synthesis.around(known, found, product))
        rows, columns = np.nonzero(cells)
        places = grid.at(rows, columns)
        features = np.zeros((2 * height, 2 * width, self._up[0].outputs), np.float32)
        for (down, right), up in zip(PARITIES, self._up, strict=True):
            found = grid.found(places, quadrant(down, right), wanted)
            features[2 * rows + down, 2 * columns + right] = rectified(
                up.around(inside, found, product)
            )
        return features

    def _code_latents(
        self,
        coder: Coder,
        symbols: Ints,
        hyper: Ints,
        changed: NDArray[np.bool_],
        rates: Ints,
        starts: Sequence[int],
        part: Part,
        share: cores.Share,
    ) -> None:
        """Code the groups that begin at ``starts``, whose last number is where they end."""
        height, width, channels = symbols.shape
        product = part.product
        of_latents = functools.partial(doubled, height=height, width=width)
        if len(starts) == 1:
            return
        features = self._features(hyper, changed, product)
        everywhere = of_latents(changed)
        given = np.concatenate([features[:height, :width], of_latents(self.axis.knots(rates))], 2)
        known = Known(symbols, of_latents(dilated(changed)), self._largest, self._levels)
        cells, passes = np.zeros_like(changed), list[Pass]()
        for i, (start, end) in enumerate(itertools.pairwise(starts)):
            wanted = changed if i < self._base_groups else changed & (rates >= self._tail_from)
            if start >= channels or not wanted.any():
                break
            if start:
                before = slice(starts[i - 1], start)
                known.sum_around(before, everywhere)
            if i >= occupancy.FIRST:
                sizes = known.magnitudes.values[..., before].sum(2, np.int32)
                wanted = occupancy.code(coder, i, wanted, sizes)
            if not wanted.any():
                continue
            if not np.array_equal(wanted, cells):
                cells = wanted
                passes = [Pass.of(known.grid, of_latents(cells), given, n) for n in (0, 1)]
            group = self._group(i)
            for second, places in enumerate(passes):
                stage = Stage(group, known, places.numbers, places.given, second)
                mean, scale = self._predicted(stage, share, part)
                index = (places.rows, places.columns, slice(start, end))
                found = coder.code("latents", index, mean.ravel(), scale.ravel())
                symbols[index] = chosen = found.reshape(mean.shape)
                known.note(chosen, places.numbers, slice(start, end))

    def _predicted(
        self, stage: Stage, share: cores.Share, part: Part
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The means and the scales (n, G) of a stage."""
        count = len(stage.numbers)
        size = min(BLOCK, max(LEAST_BLOCK, -(-count // share.workers)))
        found = share(part.predict, [stage.of(block) for block in blocks(count, size)])
        mean, scale = (np.empty((count, stage.group.channels), np.int32) for _ in range(2))
        for block, (parameters, magnitudes) in zip(blocks(count, size), found, strict=True):
            mean[block], corrected = np.split(parameters, 2, 1)
            corrected += self._scale_of(magnitudes)
            corrected *= 1 / SCALE_UNITS
            scale[block] = np.floor(corrected, out=corrected)
        return mean, scale

    def _scale_of(self, magnitudes: Singles) -> Singles:
        """The scales that belong to mean magnitudes, and a half, in `SCALE_UNITS`."""
        # A float32 of at least 1 has 23 bits of mantissa below its exponent, 127 + n.
        bits = np.maximum(magnitudes, 1).view(np.int32)
        bits >>= 23 - MANTISSA_BITS
        bits -= 127 << MANTISSA_BITS
        scales: Singles = self._scales.take(bits, mode="clip")  # its default mode takes longer
        return scales
