"""Bytes <-> chunks: the `.sdz` container, as specified in docs/format.md.

Nothing here knows of images, networks or what chunks mean, and no other module knows an offset.
Whatever the bytes, the only exception that leaves the reading side is an OSError that says what is
wrong and where.  The writing side raises ValueError for what may not be written.
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

MAX_CHUNKS = 1000  # besides those of the frames; libpng's limit of chunks it keeps
#: Chunks of an application that a file may hold: what `MAX_CHUNKS` leaves to HEAD, DONE and one of
#: each known kind.
MAX_OTHERS = MAX_CHUNKS - len(KINDS) - 2
# Frames in a row of which a band has no LATN, and all of which a reader that wants the last must
# decode.  Chosen: in a picture that stands still, its LATN is then most of the bytes.
MAX_CHANGES = 255
# No coding needs more for a latent, and a header may lie about anything but this product.
MAX_BYTES_PER_LATENT = 8
# Greyscale PNG needs at most 2 bytes per pixel: one and, in a picture of one column, the filter's.
MAX_BYTES_PER_ALPHA = 2
SLACK = 1024  # bytes beyond the two limits above, for the fixed cost of tiny pictures

_MAX_LENGTH = (1 << 32) - 1
_CRC_BYTES = 4
_TYPE_BYTES = 4


class TruncatedError(OSError):
    """The file ends before its DONE chunk does. What was read until then is sound."""


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
        """The offset of the byte after the chunk's last."""
        return self.start + self.length + _CRC_BYTES

    def __str__(self) -> str:
        return f"chunk {self.type.decode('ascii')} at byte {self.offset}"


class Frame(NamedTuple):
    """Where the chunks of a frame lie: the latents of its bands, and its alpha channel."""

    bands: list[Entry]
    alpha: list[Entry]  # one, or none


def frames(entries: Iterable[Entry], bands: int) -> list[Frame]:
    """The frames among the chunks of a file with so many bands; the last may be incomplete."""
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
    """The rows of each band of so many rows of latents; ``rows`` are a BAND chunk's, if any."""
    rows = rows or height
    return [slice(top, min(top + rows, height)) for top in range(0, height, rows)]


def size(file: Iterable[Chunk]) -> int:
    """The bytes of a file made of these chunks."""
    return len(SIGNATURE) + sum(chunk_size(len(chunk.data)) for chunk in file)


def chunk_size(length: int) -> int:
    """The bytes of a whole chunk with ``length`` bytes of data."""
    return len(_varint(length)) + _TYPE_BYTES + length + _CRC_BYTES


def assemble(
    header: Header, about: Iterable[Chunk], frames: Iterable[Iterable[Chunk]]
) -> list[Chunk]:
    """All chunks of a file, in their order: ``about`` it, then those of each frame."""
    coded = (chunk for frame in frames for chunk in frame)
    return [Chunk(HEAD, header.pack()), *about, *coded, Chunk(DONE, b"")]


def write(file: Iterable[Chunk]) -> bytes:
    """The file made of these chunks, in this order; ValueError where a rule forbids it."""
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
    """All chunks of a complete file, every rule and CRC checked; OSError otherwise."""
    reader = Reader(BytesIO(data))
    return [Chunk(entry.type, reader.data(entry)) for entry in reader]


class Reader:
    """Walks a file's chunks by seeking, so that what is not asked for is not read.

    The constructor reads and checks signature and header. Iterating yields every chunk's Entry in
    order, the header's included, as soon as the rules allow it to stand there, before it is known
    whether the chunk is complete. Iterating to the end checks that a sound DONE and nothing else
    ends the file. ``data`` reads one chunk and checks its CRC. ``bands`` are the rows of latents of
    each band of a frame, known once a chunk of latents has been met.
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
        """The data of a chunk; TruncatedError where it is incomplete, OSError by a wrong CRC."""
        self._check_complete(entry)
        self._fp.seek(entry.start)
        stored = self._read(entry.length + _CRC_BYTES)
        data, crc = stored[: entry.length], stored[entry.length :]
        if zlib.crc32(data, zlib.crc32(entry.type)).to_bytes(_CRC_BYTES, "big") != crc:
            msg = f"damaged SDZ file: {entry}: its CRC does not match"
            raise OSError(msg)
        return data

    def beginning(self, entry: Entry) -> bytes:
        """What a truncated file still has of the data of its last chunk, which no CRC checks."""
        self._fp.seek(entry.start)
        return self._read(entry.length)

    def _read(self, count: int) -> bytes:
        """So many bytes, or those up to the end; one read of a raw file may return fewer."""
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
    """Which chunk may stand where, and how large it may be; the same for reader and writer."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self._seen: set[bytes] = set()
        self.bands = bands(header.latents[1], None)
        self._coded = 0  # LATN and DIFF so far, of all frames
        self._changes = [0]  # of every band, how many DIFF in a row
        self._alphas = 0
        self._others = 0
        self.done = False

    def cut(self, data: bytes) -> str | None:
        """Cut the frames as a BAND chunk says; what is wrong with it, or None."""
        height = self._header.latents[1]
        try:
            rows = BANDS.parse(data, self._header)
        except OSError:
            return f"BAND has {len(data)} bytes"
        # Even, since hyperlatents stand for pairs; and a file has only one form.
        if rows % 2 or not 0 < rows < height:
            return f"bands of {rows} rows of {height}"
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
        """Why a chunk of this known type may not stand here."""
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
                return f"{name} where ALPH is missing, in a file of mode {mode}"
            return self._miscounted(type, name, frame, band)
        if type in self._seen:
            return f"second {name}"
        if self._coded:
            return f"{name} after LATN"
        return None

    def _miscounted(self, type: bytes, name: str, frame: int, band: int) -> str | None:
        """Why there may be no more latents, or none of this kind, or must be more."""
        frames = self._header.frames
        if type == DONE:
            expected = frames * len(self.bands)
            return None if frame == frames else f"DONE after {self._coded} LATN of {expected}"
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
    """Unsigned LEB128: seven bits a byte, lowest first; a set high bit says that more follow."""
    # Chosen over a fixed u32 because it saves 9 to 12 bytes, one in a hundred of a thumbnail.
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
