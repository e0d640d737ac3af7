"""Latents <-> a palette and an index for each latent, as in the article of 2022.

k-means finds the palette.  Error diffusion among the latents (Floyd and Steinberg 1976) chooses an
entry for each.  `palette` codes both.  docs/palette.md specifies the payload.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Floats, Ints
from .coding import Frame
from .integers import STEP_UNITS
from .palette import (
    BYTE_BITS,
    MAX_CHANNELS,
    MAX_ENTRIES,
    ZERO,
    Palette,
    pack_choices,
    unpack,
)
from .target_size import EncodedLatents, largest
from .whole_frames import WholeFrames

# In the article, a byte is 0.18215 of an unscaled latent: 0.18215^2 of a scaled one, 33.98 / 1024.
STEP = 34
ENTRIES = 256  # as in the article

# The measured constants: docs/measurements.md#dithering.
ITERATIONS = 20  # of k-means.  Measured.
MAX_SAMPLE = 1 << 16  # the most latents that k-means sees.  Chosen: 256 for each of 256 entries.
PLACES_PER_ENTRY = 4  # or more.  Chosen: a small picture's palette must not need most of the bytes.
# The share of the error that is passed on, as in Atkinson's dither.  Measured.
DIFFUSED = 0.75
# The weight of code length against distortion.  1 is the slope that theory has for fine
# quantisation, 6 dB a bit.  Measured.
RATE_WEIGHT = 0.5


def _start(points: Floats, count: int, random: np.random.Generator) -> Floats:
    """Choose up to ``count`` points of (n, C), far from each other: k-means++ (Arthur 2007)."""
    centres = [points[random.integers(len(points))]]
    distances = ((points - centres[0]) ** 2).sum(1)
    while len(centres) < count and distances.any():
        sums = np.cumsum(distances)
        chosen = np.searchsorted(sums, random.uniform(0, sums[-1]), "right")
        centres.append(points[chosen])
        distances = np.minimum(distances, ((points - points[chosen]) ** 2).sum(1))
    return np.array(centres)


def _quantise(wanted: Floats, entries: int, seed: int) -> tuple[Palette, float]:
    """A palette for bytes (h, w, C) that are not rounded, and its squared error per channel."""
    try:
        from scipy.cluster.vq import kmeans2, vq
    except ImportError as e:
        msg = 'coding="palette" needs scipy: run pip install "pillow-sdz[sd]"'
        raise OSError(msg) from e
    points = wanted.reshape(-1, wanted.shape[2])
    random = np.random.default_rng(seed)
    if len(points) > MAX_SAMPLE:
        points = points[random.choice(len(points), MAX_SAMPLE, replace=False)]
    centres = _start(points, entries, random)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty cluster keeps its entry
        centres, _ = kmeans2(points, centres, iter=ITERATIONS, minit="matrix")
    error = float((vq(points, centres)[1] ** 2).mean()) / points.shape[1]
    # This is the coarsest grid that is finer than the error.  Measured:
    # docs/measurements.md#dithering.
    shift = 0
    while shift < BYTE_BITS - 1 and 4 ** (shift + 1) <= error:
        shift += 1
    grid = np.floor((centres - ((1 << shift) >> 1)) / (1 << shift) + 0.5).astype(np.int64)
    grid = np.clip(grid, 0, ((1 << BYTE_BITS) >> shift) - 1)
    return Palette(np.unique(grid, axis=0), shift), error


class _Diffusion:
    """Chooses entries by distance and code length, and passes errors on to later places."""

    def __init__(self, wanted: Floats, palette: Palette, share: float, weight: float) -> None:
        # Errors that go beyond the border are lost.
        self._wanted = np.pad(wanted, ((0, 1), (1, 1), (0, 0)))
        self._palette = palette.bytes.astype(np.float64)
        self._squares = (self._palette**2).sum(1)
        self._share = share / 16
        self._weight = weight

    def choose(self, rows: Ints, columns: Ints, counts: NDArray[np.float32]) -> Ints:
        wanted = self._wanted[rows, columns + 1]
        cost = self._squares - 2 * (wanted @ self._palette.T) - self._weight * np.log2(counts + 1)
        entries: Ints = cost.argmin(1)
        error = self._share * (wanted - self._palette[entries])
        self._wanted[rows, columns + 2] += 7 * error
        self._wanted[rows + 1, columns] += 3 * error
        self._wanted[rows + 1, columns + 1] += 5 * error
        self._wanted[rows + 1, columns + 2] += error
        return entries


def encode(
    latents: NDArray[Any],
    *,
    step: int,
    entries: int = 256,
    dither: bool = True,
    seed: int = 0,
) -> bytes:
    """The payload of latents (h, w, C), C at most 256.

    ``step`` is one step of a byte, in 1/1024 of a latent; 34 is the article's.  Latents beyond 128
    steps are clipped.  A small picture gets fewer ``entries``: one for 4 places.
    """
    height, width, channels = latents.shape
    if channels > MAX_CHANNELS or not 0 < entries <= MAX_ENTRIES:
        msg = (
            f"a palette cannot have {entries} entries of {channels} channels: it has at most "
            f"{MAX_ENTRIES} of {MAX_CHANNELS}"
        )
        raise ValueError(msg)
    wanted = np.clip(latents.astype(np.float64) * (STEP_UNITS / step) + ZERO, 0, 255)
    places = height * width
    palette, error = _quantise(wanted, min(entries, -(-places // PLACES_PER_ENTRY)), seed)
    weight = RATE_WEIGHT * 2 * np.log(2) * error
    diffusion = _Diffusion(wanted, palette, DIFFUSED if dither else 0, weight)
    return pack_choices(palette, diffusion.choose, (height, width, channels))


def decode(
    payload: bytes, height: int, width: int, channels: int, *, step: int, complete: bool = True
) -> NDArray[np.float32]:
    """The latents (h, w, C) of a payload; `DamagedPayload` if it is damaged.  See `unpack`."""
    palette, indices = unpack(payload, height, width, channels, complete=complete)
    latents = (palette.bytes - ZERO) * (step / STEP_UNITS)
    return latents.astype(np.float32)[indices]


class DitheredPalette(WholeFrames):
    """The coding.  A palette has ``entries`` entries; `fit` takes as many as fit."""

    def __init__(self, channels: int, entries: int = ENTRIES) -> None:
        super().__init__(channels)
        self._entries = entries

    def quantisation(self, quality: float) -> int:
        return STEP

    def payload(self, latents: NDArray[Any], quantisation: int, effort: int) -> bytes:
        return encode(latents, step=quantisation, entries=self._entries)

    def fit(
        self, frames: Sequence[Frame], limit: int, effort: int, *, predict: bool = False
    ) -> EncodedLatents:
        def tried(entries: int) -> EncodedLatents:
            encode = DitheredPalette(self._channels, entries).encoder(STEP, effort)
            return EncodedLatents([*map(encode, frames)], STEP)

        return largest(tried, 1, MAX_ENTRIES, limit)[1]

    def learns(self, payload: bytes) -> bool:
        return False

    def stored(
        self, payloads: Sequence[bytes], shape: tuple[int, int], quantisations: Sequence[int]
    ) -> list[NDArray[Any]]:
        return [
            decode(payload, *shape, self._channels, step=step)
            for payload, step in zip(payloads, quantisations, strict=True)
        ]

    def begun(self, payload: bytes, shape: tuple[int, int], quantisation: int) -> NDArray[Any]:
        return decode(payload, *shape, self._channels, step=quantisation, complete=False)
