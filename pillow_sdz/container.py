"""Bytes <-> chunks: the `.sdz` container, as specified in docs/format.md.

This module knows no images, no networks and not what chunks mean.  No other module knows an offset.
For bad bytes, reading raises OSError and nothing else; the message says what is wrong, and where.
Writing raises ValueError for what the format forbids.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import IO, NamedTuple

from . import chunks
from .chunks import ALPHA, BANDS, CHANGES, CODED, DONE, HEAD, KINDS, MAX_METADATA
from .header import LONGEST, Header

SIGNATURE = b"\x8bSDZ\r\n\x1a\n"

MAX_CHUNKS = 1000  # without those of the frames; libpng's limit for the chunks that it keeps
#: How many chunks an application may add: `MAX_CHUNKS` less HEAD, DONE and one of each known kind.
MAX_OTHERS = MAX_CHUNKS - len(KINDS) - 2
# How many DIFF a band may have in a row.  A reader must decode all of them to show the last one.
# Chosen: if the picture stands still, the LATN before them takes more bytes than all of them.
MAX_CHANGES = 255
# No coding needs more bytes for a latent.
MAX_BYTES_PER_LATENT = 8
# A greyscale PNG needs at most 2 bytes for a pixel: its own, and the row's filter if the picture
# has one column.
MAX_BYTES_PER_ALPHA = 2
SLACK = 1024  # bytes added to both limits: what even a tiny picture takes.  Chosen.

_MAX_LENGTH = (1 << 32) - 1
_CRC_BYTES = 4
_TYPE_BYTES = 4


class TruncatedError(OSError):
    """The file ends before its DONE chunk does.  What was read so far is sound."""


class Chunk(NamedTuple):
    """A chunk as it is written: its type and its data."""

    type: bytes
    data: bytes


class Entry(NamedTuple):
    """Where a chunk lies: the offsets of its first byte and of its data, and the data's length."""

    type: bytes
    offset: int
    start: int
    length: int

    @property
    def end(self) -> int:
        """The offset of the first byte after the chunk."""
        return self.start + self.length + _CRC_BYTES

    def __str__(self) -> str:
        return f"chunk {self.type.decode('ascii')} at byte {self.offset}"


class Frame(NamedTuple):
    """Where the chunks of a frame lie: the latents of its bands, and its alpha channel."""

    bands: list[Entry]
    alpha: list[Entry]  # one, or none


def frames(entries: Iterable[Entry], bands: int) -> list[Frame]:
    """The frames that these chunks form, of ``bands`` bands each; the last may be incomplete."""
    found: list[Frame] = []
    for entry in entries:
        if entry.type in CODED:
            if not found or len(found[-1].bands) == bands:
                found.append(Frame([], []))
            found[-1].bands.append(entry)
        elif entry.type == ALPHA:
            found[-1].alpha.append(entry)
    return found


def bands(height: int, rows: int | None) -> list[slice]:
    """The rows of each band of a frame with ``height`` rows of latents.

    ``rows`` is the value of the BAND chunk, or None if there is no such chunk.
    """
    rows = rows or height
    return [slice(top, min(top + rows, height)) for top in range(0, height, rows)]


def size(file: Iterable[Chunk]) -> int:
    """How many bytes a file of these chunks has."""
    return len(SIGNATURE) + sum(chunk_size(len(chunk.data)) for chunk in file)


def chunk_size(length: int) -> int:
    """How many bytes a chunk with ``length`` bytes of data has."""
    return len(_varint(length)) + _TYPE_BYTES + length + _CRC_BYTES


def assemble(
    header: Header, about: Iterable[Chunk], frames: Iterable[Iterable[Chunk]]
) -> list[Chunk]:
    """All chunks of a file in their order: HEAD, ``about``, those of each frame, DONE."""
    coded = (chunk for frame in frames for chunk in frame)
    return [Chunk(HEAD, header.pack()), *about, *coded, Chunk(DONE, b"")]


def write(file: Iterable[Chunk]) -> bytes:
    """The bytes of a file with these chunks, in this order; ValueError if a rule forbids it."""
    rules: _Rules | None = None
    parts = [SIGNATURE]
    for chunk in file:
        if rules is None:
            if chunk.type != HEAD:
                msg = f"the first chunk must be HEAD, not {chunk.type!r}"
                raise ValueError(msg)
            rules = _Rules(Header.parse(chunk.data))
        if complaint := rules.complaint(chunk.type, len(chunk.data)):
            raise ValueError(complaint)
        if chunk.type == BANDS.type and (complaint := rules.cut(chunk.data)):
            raise ValueError(complaint)
        body = chunk.type + chunk.data
        parts += [_varint(len(chunk.data)), body, zlib.crc32(body).to_bytes(_CRC_BYTES, "big")]
    if rules is None or not rules.done:
        msg = "the last chunk must be DONE"
        raise ValueError(msg)
    return b"".join(parts)


def read(data: bytes) -> list[Chunk]:
    """All chunks of a complete file; OSError if a rule is broken or a CRC is wrong."""
    reader = Reader(BytesIO(data))
    return [Chunk(entry.type, reader.data(entry)) for entry in reader]


class Reader:
    """Walks a file's chunks by seeking, and reads only the data that is asked for.

    The constructor reads and checks the signature and the header.  Iterating yields the Entry of
    every chunk in order, HEAD included.  It checks that the chunk may stand there, but not yet that
    it is complete.  The end of the iteration checks that the file ends with a sound DONE.  ``data``
    reads one chunk and checks its CRC.  ``bands`` has the rows of latents of each band of a frame.
    It is final once the first chunk of latents has been yielded.
    """

    def __init__(self, fp: IO[bytes]) -> None:
        self._fp = fp
        fp.seek(0, os.SEEK_END)
        self.file_size = fp.tell()
        fp.seek(0)
        if self._read(len(SIGNATURE)) != SIGNATURE:
            msg = "not an SDZ file"
            raise OSError(msg)
        self._head = self._entry(len(SIGNATURE))
        if self._head.type != HEAD:
            msg = f"damaged SDZ file: {self._head} instead of HEAD"
            raise OSError(msg)
        if self._head.length > LONGEST:
            msg = f"damaged SDZ file: {self._head} has {self._head.length} bytes"
            raise OSError(msg)
        self.header = Header.parse(self.data(self._head))
        self.bands = bands(self.header.latents[1], None)

    def __iter__(self) -> Iterator[Entry]:
        rules = _Rules(self.header)
        entry = self._head
        while True:
            if complaint := rules.complaint(entry.type, entry.length):
                msg = f"damaged SDZ file: {entry}: {complaint}"
                raise OSError(msg)
            if entry.type == BANDS.type:
                rows = self.data(entry)
                if complaint := rules.cut(rows):
                    msg = f"damaged SDZ file: {entry}: {complaint}"
                    raise OSError(msg)
                self.bands = rules.bands
            yield entry
            self._check_complete(entry)
            if rules.done:
                self.data(entry)
                break
            entry = self._entry(entry.end)
        if self.file_size > entry.end:
            extra = self.file_size - entry.end
            msg = f"damaged SDZ file: {extra} bytes after its end at byte {entry.end}"
            raise OSError(msg)

    def data(self, entry: Entry) -> bytes:
        """The data of a chunk; TruncatedError if it is incomplete, OSError if its CRC is wrong."""
        self._check_complete(entry)
        self._fp.seek(entry.start)
        stored = self._read(entry.length + _CRC_BYTES)
        data, crc = stored[: entry.length], stored[entry.length :]
        if zlib.crc32(data, zlib.crc32(entry.type)).to_bytes(_CRC_BYTES, "big") != crc:
            msg = f"damaged SDZ file: {entry}: its CRC does not match"
            raise OSError(msg)
        return data

    def beginning(self, entry: Entry) -> bytes:
        """The data that a truncated file has of its last chunk.  No CRC checks it."""
        self._fp.seek(entry.start)
        return self._read(entry.length)

    def _read(self, count: int) -> bytes:
        """``count`` bytes, or all up to the end; one `read` of a raw file may return fewer."""
        parts = []
        while count and (part := self._fp.read(count)):
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _check_complete(self, entry: Entry) -> None:
        if entry.end > self.file_size:
            msg = (
                f"truncated SDZ file: it ends at byte {self.file_size}, "
                f"{entry} would end at byte {entry.end}"
            )
            raise TruncatedError(msg)

    def _entry(self, offset: int) -> Entry:
        """The chunk that starts at ``offset``."""
        self._fp.seek(offset)
        prefix = self._read(5 + _TYPE_BYTES)
        length = 0
        for n in range(1, 6):
            if len(prefix) < n:
                break
            byte = prefix[n - 1]
            length |= (byte & 0x7F) << (7 * (n - 1))
            if byte < 0x80:
                if length > _MAX_LENGTH or len(_varint(length)) != n:
                    msg = f"damaged SDZ file: bad chunk length at byte {offset}"
                    raise OSError(msg)
                type = prefix[n : n + _TYPE_BYTES]
                if len(type) < _TYPE_BYTES:
                    break
                if not chunks.is_type(type):
                    msg = f"damaged SDZ file: bad chunk type {type!r} at byte {offset + n}"
                    raise OSError(msg)
                return Entry(type, offset, offset + n + _TYPE_BYTES, length)
        else:
            msg = f"damaged SDZ file: bad chunk length at byte {offset}"
            raise OSError(msg)
        msg = f"truncated SDZ file: it ends at byte {self.file_size}, before its DONE chunk"
        raise TruncatedError(msg)


class _Rules:
    """Which chunk may stand where, and its size.  Reader and writer share the rules."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self._seen: set[bytes] = set()
        self.bands = bands(header.latents[1], None)
        self._coded = 0  # LATN and DIFF so far, of all frames
        self._changes = [0]  # for each band, how many DIFF in a row so far
        self._alphas = 0
        self._others = 0
        self.done = False

    def cut(self, data: bytes) -> str | None:
        """Cut frames into bands as a BAND chunk says.  Returns what is wrong with it, or None."""
        height = self._header.latents[1]
        try:
            rows = BANDS.parse(data, self._header)
        except OSError:
            return f"BAND has {len(data)} bytes"
        # Even, because a hyperlatent stands for two rows.  Below the height, because a single band
        # needs no BAND: there is one way only to write it.
        if rows % 2 or not 0 < rows < height:
            return f"bands of {rows} rows in a picture of {height} rows of latents"
        self.bands = bands(height, rows)
        self._changes = [0] * len(self.bands)
        return None

    def complaint(self, type: bytes, length: int) -> str | None:
        """What is wrong with this chunk as the next one, or None."""
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
        if length > (limit := self._limit(type)):
            return f"{name} has {length} bytes, more than the limit of {limit}"
        if type in CODED:
            band = self._coded % len(self.bands)
            self._changes[band] = self._changes[band] + 1 if type == CHANGES else 0
            self._coded += 1
        elif type == ALPHA:
            self._alphas += 1
        else:
            if self._others == MAX_CHUNKS:
                return f"more than {MAX_CHUNKS} chunks"
            self._others += 1
            self._seen.add(type)
        self.done = type == DONE
        return None

    def _misplaced(self, type: bytes, name: str) -> str | None:
        """Why a chunk of this known type may not stand here, or None."""
        mode = self._header.mode
        frame, band = divmod(self._coded, len(self.bands))  # of the next latents
        lacks_alpha = self._header.has_alpha and self._alphas < frame
        if type == ALPHA:
            if not self._header.has_alpha:
                return f"ALPH in a file of mode {mode}"
            if band or not frame:
                return "ALPH before LATN"
            return None if lacks_alpha else "second ALPH"
        if type in CODED or type == DONE:
            if lacks_alpha:
                return f"{name} before ALPH, which every frame of mode {mode} needs"
            return self._miscounted(type, name, frame, band)
        if type in self._seen:
            return f"second {name}"
        if self._coded:
            return f"{name} after LATN"
        return None

    def _miscounted(self, type: bytes, name: str, frame: int, band: int) -> str | None:
        """Why this chunk makes too many or too few LATN and DIFF, or None."""
        frames = self._header.frames
        if type == DONE:
            expected = frames * len(self.bands)
            return None if frame == frames else f"DONE after {self._coded} of {expected} LATN"
        if frame == frames:
            return "more LATN than frames"
        if type == CHANGES and not frame:
            return f"{name} in the first frame"
        if type == CHANGES and self._changes[band] == MAX_CHANGES:
            return f"more than {MAX_CHANGES} {name} in a row"
        return None

    def _limit(self, type: bytes) -> int:
        width, height = self._header.size
        channels, _, columns = self._header.latents
        if type == DONE:
            return 0
        if type in KINDS:
            return KINDS[type].limit
        if type in CODED:
            band = self.bands[self._coded % len(self.bands)]
            latents: int = channels * (band.stop - band.start) * columns
            return min(MAX_BYTES_PER_LATENT * latents + SLACK, _MAX_LENGTH)
        if type == ALPHA:
            return min(MAX_BYTES_PER_ALPHA * width * height + SLACK, _MAX_LENGTH)
        return MAX_METADATA


def _varint(value: int) -> bytes:
    """Unsigned LEB128: seven bits a byte, the lowest first.  The high bit says that more follow."""
    # Chosen: a fixed u32 adds 9 to 12 bytes to a file, one in a hundred of a thumbnail.
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
