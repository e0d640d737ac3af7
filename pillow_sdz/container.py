"""Bytes <-> chunks: the `.sdz` container, as specified in docs/format.md.

This module knows no images, no networks and not what chunks mean.  No other module knows an offset.
For bad bytes, reading raises OSError and nothing else; the message says what is wrong, and where.
Writing raises ValueError for what the format forbids.
"""

import os
import zlib
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import IO, NamedTuple

from . import chunks, order
from .chunks import ALPHA, BANDS, CODED, DONE, EXACT, HEAD
from .header import LONGEST, Header
from .order import MAX_LENGTH, Rules
from .signature import SIGNATURE as SIGNATURE

_CRC_BYTES = 4
_TYPE_BYTES = 4
_PREFIX = 5 + _TYPE_BYTES  # the longest length, and the type
# Bytes that are read at once after so many chunks in a row that were so short.  Chosen: files of
# thousands of frames in which nothing changes have ten bytes a frame.
_READ_AHEAD, _IN_A_ROW, _SHORT = 4096, 16, 32


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
    """Where the chunks of a frame lie: the latents of its bands, its alpha, its exact regions."""

    bands: list[Entry]
    alpha: list[Entry]  # one, or none
    exact: Entry | None = None


class Frames:
    """The frames that these chunks form, of ``bands`` bands each; the last may be incomplete."""

    def __init__(self, entries: Iterable[Entry], bands: int) -> None:
        self._bands = bands
        self._coded: list[Entry] = []
        self._alphas: list[Entry] = []
        self._exact: dict[int, Entry] = {}  # by frame
        for entry in entries:
            if entry.type in CODED:
                self._coded.append(entry)
            elif entry.type == ALPHA:
                self._alphas.append(entry)
            elif entry.type == EXACT:
                self._exact[len(self)] = entry

    def __len__(self) -> int:
        return -(-len(self._coded) // self._bands)

    def __getitem__(self, number: int, /) -> Frame:
        if not 0 <= number < len(self):
            raise IndexError(number)
        first = number * self._bands
        return Frame(
            self._coded[first : first + self._bands],
            self._alphas[number : number + 1],
            self._exact.get(number),
        )

    def has_exact(self, number: int) -> bool:
        """Whether a frame has exact regions."""
        return number in self._exact


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
    rules: Rules | None = None
    parts = [SIGNATURE]
    for chunk in file:
        if rules is None:
            if chunk.type != HEAD:
                msg = f"the first chunk must be HEAD, not {chunk.type!r}"
                raise ValueError(msg)
            rules = Rules(Header.parse(chunk.data))
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
        self._short = 0  # chunks in a row that were short
        fp.seek(0, os.SEEK_END)
        self.file_size = fp.tell()
        fp.seek(0)
        # What has been read, and where that begins.
        self._ahead, self._ahead_at = self._read(len(SIGNATURE) + _PREFIX), 0
        if not self._ahead.startswith(SIGNATURE):
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
        self.bands = order.bands(self.header.latents[1], None)

    def __iter__(self) -> Iterator[Entry]:
        rules = Rules(self.header)
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

    def unchecked(self, entry: Entry) -> bytes:
        """What the file has of a chunk's data, even if it is truncated or damaged."""
        self._fp.seek(entry.start)
        return self._read(entry.length)

    def _read(self, count: int) -> bytes:
        """``count`` bytes, or all up to the end; one `read` of a raw file may return fewer."""
        data = self._fp.read(count)
        if len(data) == count:
            return data
        parts = []
        while data:
            parts.append(data)
            count -= len(data)
            data = self._fp.read(count) if count else b""
        return b"".join(parts)

    def _check_complete(self, entry: Entry) -> None:
        if entry.end > self.file_size:
            msg = (
                f"truncated SDZ file: it ends at byte {self.file_size}, "
                f"{entry} would end at byte {entry.end}"
            )
            raise TruncatedError(msg)

    def _prefix(self, offset: int) -> bytes:
        """Length and type of the chunk that starts at ``offset``, and what may follow them."""
        at = offset - self._ahead_at
        if not 0 <= at <= len(self._ahead) - _PREFIX:
            # After many short chunks, what follows is read as well.
            near = 0 <= at <= len(self._ahead) + _SHORT
            self._short = self._short + 1 if near else 0
            count = _READ_AHEAD if self._short > _IN_A_ROW else _PREFIX
            self._fp.seek(offset)
            self._ahead, self._ahead_at, at = self._read(count), offset, 0
        return self._ahead[at : at + _PREFIX]

    def _entry(self, offset: int) -> Entry:
        """The chunk that starts at ``offset``."""
        prefix = self._prefix(offset)
        if len(prefix) == _PREFIX and prefix[0] < 0x80 and chunks.is_type(prefix[1:5]):  # most
            return Entry(prefix[1:5], offset, offset + 5, prefix[0])
        length = 0
        for n in range(1, 6):
            if len(prefix) < n:
                break
            byte = prefix[n - 1]
            length |= (byte & 0x7F) << (7 * (n - 1))
            if byte < 0x80:
                if length > MAX_LENGTH or (n > 1 and not byte):  # more bytes than it needs
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


def _varint(value: int) -> bytes:
    """Unsigned LEB128: seven bits a byte, the lowest first.  The high bit says that more follow."""
    # Chosen: a fixed u32 adds 9 to 12 bytes to a file, one in a hundred of a thumbnail.
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
