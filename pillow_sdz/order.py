"""Which chunk may stand where, and how large it may be: docs/format.md, "Order" and "Limits"."""

from __future__ import annotations

from . import chunks
from .chunks import ALPHA, BANDS, CHANGES, CODED, DONE, EXACT, KINDS, MAX_METADATA
from .header import Header

MAX_CHUNKS = 1000  # not counting those of frames; libpng's limit for the chunks that it keeps
#: How many chunks an application may add: `MAX_CHUNKS` less HEAD, DONE and one of each known kind.
MAX_OTHERS = MAX_CHUNKS - len(KINDS) - 2
# How many bands all frames of a file may have together.  Chosen: opening a file visits all of them.
MAX_CODED = 65535
# How many DIFF a band may have in a row.  A reader must decode all of them to show the last one.
# Chosen: if nothing moves, the LATN before them takes more bytes than all of them together.
MAX_CHANGES = 255
# No coding needs more bytes for a latent.
MAX_BYTES_PER_LATENT = 8
# A greyscale PNG needs at most 2 bytes for a pixel: one for the pixel, and one for the row's filter
# if the picture has one column.
MAX_BYTES_PER_ALPHA = 2
# VP8L needs little more than 3 bytes for a pixel of noise.
MAX_BYTES_PER_EXACT = 4
SLACK = 1024  # bytes added to these limits, because even a tiny picture takes some.  Chosen.

MAX_LENGTH = (1 << 32) - 1  # of a chunk's data, what its varint may say


def bands(height: int, rows: int | None) -> list[slice]:
    """The rows of each band of a frame with ``height`` rows of latents.

    ``rows`` is the value of the BAND chunk, or None if there is no such chunk.
    """
    if rows is None:
        return [slice(0, height)]
    return [slice(top, min(top + rows, height)) for top in range(0, height, rows)]


class Rules:
    """Which chunk may stand where, and its size.  Reader and writer share the rules."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self._seen: set[bytes] = set()
        self._shape = header.latents
        self._cut(bands(self._shape[1], None))
        self._frame, self._band = 0, 0  # of the next latents
        self._alphas, self._has_alpha = 0, header.has_alpha
        self._exact = -1  # the frame whose exact regions were the last
        self._others = 0
        self.done = False

    def cut(self, data: bytes) -> str | None:
        """Cut frames into bands as a BAND chunk says.  Returns what is wrong with it, or None."""
        height = self._shape[1]
        try:
            rows = BANDS.parse(data, self._header)
        except OSError:
            return f"BAND has {len(data)} bytes"
        # Rows must be even, because a hyperlatent stands for two rows.  They must be fewer than the
        # height: a single band has no BAND, so that there is only one way to write it.
        if rows % 2 or not 0 < rows < height:
            return f"bands of {rows} rows in a picture of {height} rows of latents"
        self._cut(bands(height, rows))
        if (count := len(self.bands) * self._header.frames) > MAX_CODED:
            return f"{count} bands of all frames, more than the limit of {MAX_CODED}"
        return None

    def _cut(self, bands: list[slice]) -> None:
        self.bands = bands
        self._changes = [0] * len(bands)  # how many DIFF in a row each band has
        channels, _, columns = self._shape
        row = MAX_BYTES_PER_LATENT * channels * columns
        # The most bytes of a band's latents.  Only the last band may be smaller than the others.
        self._limits = [min(row * (band.stop - band.start) + SLACK, MAX_LENGTH) for band in bands]

    def complaint(self, type: bytes, length: int) -> str | None:
        """What is wrong with this chunk as the next one, or None."""
        if type in CODED and not self.done:
            return self._latents(type, length)
        if type == ALPHA and not self.done:
            return self._alpha(length)
        if type == EXACT and not self.done:
            return self._regions(length)
        if not chunks.is_type(type):
            return f"bad chunk type {type!r}"
        name = type.decode("ascii")
        if self.done:
            return f"{name} after DONE"
        if not chunks.is_known(type):
            if chunks.is_critical(type):
                return f"unknown critical chunk {name}, a newer version of pillow-sdz is needed"
        elif complaint := self._misplaced(type, name):
            return complaint
        limit = 0 if type == DONE else KINDS[type].limit if type in KINDS else MAX_METADATA
        if length > limit:
            return f"{name} has {length} bytes, more than the limit of {limit}"
        if self._others == MAX_CHUNKS:
            return f"more than {MAX_CHUNKS} chunks"
        self._others += 1
        self._seen.add(type)
        self.done = type == DONE
        return None

    def _latents(self, type: bytes, length: int) -> str | None:
        """What is wrong with latents as the next chunk, or None."""
        band = self._band
        if self._has_alpha and self._alphas < self._frame:
            return self._lacks_alpha(type)
        if self._frame == self._header.frames:
            return "more LATN than frames"
        if type == CHANGES:
            if not self._frame:
                return "DIFF in the first frame"
            if self._changes[band] == MAX_CHANGES:
                return f"more than {MAX_CHANGES} DIFF in a row"
        if length > self._limits[band]:
            name = type.decode("ascii")
            return f"{name} has {length} bytes, more than the limit of {self._limits[band]}"
        self._changes[band] = self._changes[band] + 1 if type == CHANGES else 0
        self._band += 1
        if self._band == len(self.bands):
            self._frame, self._band = self._frame + 1, 0
        return None

    def _alpha(self, length: int) -> str | None:
        """What is wrong with an alpha channel as the next chunk, or None."""
        if not self._has_alpha:
            return f"ALPH in a file of mode {self._header.mode}"
        if self._band or not self._frame:
            return "ALPH before LATN"
        if self._alphas == self._frame:
            return "second ALPH"
        if length > (limit := self._limit(MAX_BYTES_PER_ALPHA)):
            return f"ALPH has {length} bytes, more than the limit of {limit}"
        self._alphas += 1
        return None

    def _regions(self, length: int) -> str | None:
        """What is wrong with exact regions as the next chunk, or None."""
        if self._has_alpha and self._alphas < self._frame:
            return self._lacks_alpha(EXACT)
        if self._frame == self._header.frames:
            return "EXCT after the last frame"
        if self._band:
            return "EXCT within a frame"
        if self._exact == self._frame:
            return "second EXCT"
        if length > (limit := self._limit(MAX_BYTES_PER_EXACT)):
            return f"EXCT has {length} bytes, more than the limit of {limit}"
        self._exact = self._frame
        return None

    def _limit(self, bytes_per_pixel: int) -> int:
        """The most bytes of a chunk that may have this many bytes per pixel of the picture."""
        width, height = self._header.size
        return min(bytes_per_pixel * width * height + SLACK, MAX_LENGTH)

    def _lacks_alpha(self, type: bytes) -> str:
        name = type.decode("ascii")
        return f"{name} before ALPH, which every frame of mode {self._header.mode} needs"

    def _misplaced(self, type: bytes, name: str) -> str | None:
        """Why a chunk of this known type may not stand here."""
        if type == DONE:
            if self._has_alpha and self._alphas < self._frame:
                return self._lacks_alpha(type)
            if self._frame < self._header.frames:
                count = self._frame * len(self.bands) + self._band
                return f"DONE after {count} of {self._header.frames * len(self.bands)} LATN"
            return None
        if type in self._seen:
            return f"second {name}"
        if self._frame or self._band:
            return f"{name} after LATN"
        if self._exact >= 0:
            return f"{name} after EXCT"
        return None
