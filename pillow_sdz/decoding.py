"""The latents of a file's frames, decoded when they are asked for, for every coding alike."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import chunks, container, cores, models
from .arrays import CELL, Area, Latents, Quantisation
from .catalogue import ModelSpec
from .codings import CODINGS
from .codings.coding import Coding
from .codings.range_coder import DamagedPayload
from .header import Header
from .scaling import is_unscaled, scaled
from .spaces import CodingSpec
from .threads import one_blas_thread


def coder_of(model: ModelSpec, coding: CodingSpec) -> Coding:
    """The coding object for a model's latents.

    OSError if the coding needs the model's weights, and they are not on this computer.
    """
    network = models.load(model) if coding.needs_weights else None
    return CODINGS[coding](model, network)


class Frames:
    """The latents of a file's frames.  Each band is decoded when it is asked for.

    ``bands`` has the rows of each band, and ``frames`` says where their chunks lie in the file of
    ``reader``.  With a ``scale``, latents may lack channels that pictures at 1/scale of their size
    do not show.  OSError if the coding has no bands, if they are too large, or if the coding needs
    other weights than those on this computer.
    """

    def __init__(
        self,
        header: Header,
        model: ModelSpec,
        coding: CodingSpec,
        bands: Sequence[slice],
        frames: container.Frames,
        reader: container.Reader,
        scale: int = 1,
    ) -> None:
        rows, columns = bands[0].stop, header.latents[2]
        if coding.band_latents is not None and rows * columns > coding.band_latents:
            # Without a limit, a file of a few bytes could ask for any number of latents.
            msg = f"damaged SDZ file: bands of {rows}x{columns} latents, more than the limit"
            raise OSError(msg)
        if coding.needs_weights and header.digest != model.digest:
            msg = (
                f"this SDZ file needs the model {model.name!r} with the weights "
                f"{header.digest.hex()}, but the installed weights are {model.digest.hex()}"
            )
            raise OSError(msg)
        self.header, self.model, self.coding, self.bands = header, model, coding, bands
        self._frames, self._reader = frames, reader
        self._reading = Lock()  # of the file's position
        self.scale = scale
        self.coder = coder_of(model, coding).draft(scale)
        # For each band: the frame that was decoded last, its integers, and whether all chunks were
        # sound.  A DIFF chunk builds on these integers.
        self._latest: dict[int, tuple[int, Any, bool]] = {}

    def frame(self, number: int, *, lenient: bool = False) -> FrameLatents:
        """One frame.  With ``lenient``, damaged bands are 0 and listed in ``losses``."""
        return FrameLatents(self, number, lenient=lenient)

    def decode(self, number: int, band: int, *, complete: bool = True) -> Band:
        """The latents of a band as pipelines return them; OSError if it is damaged.

        If it need not be ``complete``, a damaged chunk is decoded as far as it goes.
        """
        integers = self._decoded(number, band, complete=complete)
        quantisation = self.header.quantisation
        latents = self.as_pipelines_have(self.coder.latents(integers, quantisation))
        return Band(latents, self.coder.cells(integers, quantisation))

    def as_pipelines_have(self, stored: NDArray[Any], axis: int = -1) -> Latents:
        """Stored latents, scaled and in float32; OSError if their scaling is not known.

        ``axis`` is that of the channels.
        """
        if not is_unscaled(self.coding, self.header.quantisation):
            return stored.astype(np.float32, copy=False)
        try:
            return scaled(stored, self.model, axis)
        except ValueError as e:
            msg = f"SDZ file of unscaled latents: {e}"
            raise OSError(msg) from e

    def decode_stored(self, number: int, band: int) -> NDArray[Any]:
        """As `decode`, but in the coding's dtype, and unscaled if the file has them unscaled."""
        return self.coder.latents(self._decoded(number, band), self.header.quantisation)

    def _decoded(self, number: int, band: int, *, complete: bool = True) -> Any:
        entry = self._frames.band(number, band)
        if entry is None:
            msg = "truncated SDZ file: it ends before the latents do"
            raise OSError(msg)
        rows = self.bands[band]
        shape = rows.stop - rows.start, self.header.latents[2]
        try:
            # Once for all DIFF in a row: entering takes as long as a small DIFF does.
            with one_blas_thread():
                return self._integers(number, band, shape, complete=complete)
        except DamagedPayload as e:
            msg = f"damaged SDZ file: {entry}: {e}"
            raise OSError(msg) from e

    def _integers(self, number: int, band: int, shape: tuple[int, int], *, complete: bool) -> Any:
        """The integers of a band.  For DIFF, the frames that it builds on are decoded first."""
        latest, integers, sound = self._latest.pop(band, (-1, None, True))
        if complete and not sound:
            latest = -1
        first = number  # in the end: the frame whose LATN all DIFF up to this one build on
        while first != latest and self._is_changes(first, band):
            first -= 1
        for frame in range(first + (first == latest), number + 1):
            before = integers if self._is_changes(frame, band) else None
            entry = self._frames.band(frame, band)
            assert entry is not None
            payload, sound = self._payload(entry, complete)
            try:
                integers = self.coder.decode(
                    payload, shape, self.header.quantisation, before, complete=sound
                )
            except DamagedPayload:
                if sound or before is None:
                    raise
                # If a chunk is damaged, its missing changes count as no change.
        # The integers are kept if this frame needs them when it is read again, or the next one
        # does.
        if any(self._is_changes(near, band) for near in (number, number + 1)):
            self._latest[band] = number, integers, complete
        return integers

    def _payload(self, entry: container.Entry, complete: bool) -> tuple[bytes, bool]:
        """The data of a chunk, and whether it is sound; OSError if it is not but must be.

        It must be if ``complete``.
        """
        with self._reading:
            try:
                return self._reader.data(entry), True
            except OSError:
                if complete:
                    raise
                return self._reader.unchecked(entry), False

    def _is_changes(self, number: int, band: int) -> bool:
        """Whether a band is stored as the difference from the frame before."""
        entry = self._frames.band(number, band)
        return entry is not None and entry.type == chunks.CHANGES


class Band(NamedTuple):
    """Latents (h, w, C), and the quantisation: one for all, or one for each cell of 2x2 latents."""

    latents: Latents
    cells: Quantisation


class Loss(NamedTuple):
    """Damaged rows of latents in a frame, the reason, and whether a part of them is shown."""

    rows: slice
    reason: str
    shown: bool


class FrameLatents:
    """The latents (h, w, C) of one frame.  Slicing an area decodes the bands that it needs.

    Bands above the last area are forgotten, so areas are best asked for from top to bottom.
    """

    def __init__(self, frames: Frames, number: int, *, lenient: bool) -> None:
        self.header, self.model = frames.header, frames.model
        self._frames, self._number, self._lenient = frames, number, lenient
        channels, height, width = frames.header.latents
        self.shape = height, width, channels
        self.losses: list[Loss] = []
        self._decoded: dict[int, Band] = {}

    def __getitem__(self, area: Area) -> Latents:
        rows, columns = area
        top, bottom, _ = rows.indices(self.shape[0])
        needed = []
        for number, band in enumerate(self._frames.bands):
            if band.stop <= top:
                self._decoded.pop(number, None)  # nobody asks for it again
            elif band.start < bottom:
                needed.append((number, slice(max(top - band.start, 0), bottom - band.start)))
        self._decode([number for number, _ in needed])
        parts = [self._decoded[number].latents[here, columns] for number, here in needed]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def quantisation(self, area: Area) -> int | NDArray[np.int32]:
        """The quantisation of an area: one for each latent (h, w), or one for all of them."""
        rows, columns = area
        parts: list[NDArray[np.int32]] = []
        for number, band in enumerate(self._frames.bands):
            start, stop = max(rows.start, band.start), min(rows.stop, band.stop)
            if start < stop:
                cells = np.atleast_2d(np.asarray(self._band(number).cells, np.int32))
                down, right = (
                    np.arange(start, stop) - band.start,
                    np.arange(*columns.indices(self.shape[1])),
                )
                if cells.size == 1:
                    parts.append(np.full((len(down), len(right)), cells[0, 0]))
                else:
                    parts.append(cells[down[:, None] // CELL, right // CELL])
        found = np.concatenate(parts)
        one = int(found[0, 0])
        return one if (found == one).all() else found

    def _band(self, number: int) -> Band:
        self._decode([number])
        return self._decoded[number]

    def _decode(self, numbers: Sequence[int]) -> None:
        """Decode the bands that are not decoded yet, several at once."""
        missing = [number for number in numbers if number not in self._decoded]
        workers = min(len(missing), cores.threads())
        for number, band in zip(missing, cores.at_once(self._tried, missing, workers), strict=True):
            if isinstance(band, OSError):
                if not self._lenient:
                    raise band
                band = self._rescued(number, band)
            self._decoded[number] = band

    def _tried(self, number: int) -> Band | OSError:
        try:
            return self._frames.decode(self._number, number)
        except OSError as e:
            return e

    def _rescued(self, number: int, error: OSError) -> Band:
        """The part of a damaged band that can be decoded; zeros if nothing can."""
        rows = self._frames.bands[number]
        with suppress(OSError):
            begun = self._frames.decode(self._number, number, complete=False)
            self.losses.append(Loss(rows, str(error), shown=True))
            return begun
        self.losses.append(Loss(rows, str(error), shown=False))
        nothing = np.zeros((rows.stop - rows.start, *self.shape[1:]), np.float32)
        return Band(nothing, self.header.quantisation)
