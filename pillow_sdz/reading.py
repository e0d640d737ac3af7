"""Bytes -> chunks: reads the `.sdz` container, as specified in docs/format.md.

This module knows no images, no networks and not what chunks mean.  `container` writes, and no third
module knows an offset.  For bad bytes, reading raises OSError and nothing else; the message says
what is wrong, and where.
"""

# Without `from __future__ import annotations`: header.py says why.

import os
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

from . import chunks, order
from .chunks import ALPHA, BANDS, CODED, EXACT, HEAD
from .header import LONGEST, Header
from .order import MAX_LENGTH, Rules
from .signature import SIGNATURE

CRC_BYTES = 4
TYPE_BYTES = 4
_PREFIX = 5 + TYPE_BYTES  # the longest length, and the type
# After _IN_A_ROW chunks of at most _SHORT bytes, the reader reads _READ_AHEAD bytes at once.
# Chosen: files of thousands of frames in which nothing changes have ten bytes a frame.
_READ_AHEAD, _IN_A_ROW, _SHORT = 4096, 16, 32
# So many bytes are read first.  Chosen: the signature, HEAD and the next chunk's prefix take 50.
_START = 64


class TruncatedError(OSError):
    """The file ends before its DONE chunk does.  What was read so far is sound."""


class Entry(NamedTuple):
    """Where a chunk lies: the offsets of its first byte and of its data, and the data's length."""

    type: bytes
    offset: int
    start: int
    length: int

    @property
    def end(self) -> int:
        """The offset of the first byte after the chunk."""
        return self.start + self.length + CRC_BYTES

    def __str__(self) -> str:
        return f"chunk {self.type.decode('ascii')} at byte {self.offset}"


class Frames:
    """Where the chunks of each frame lie.

    ``entries`` are the chunks of a file, and a frame has ``bands`` bands.  The last frame may be
    incomplete.
    """

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

    def bands(self, number: int) -> list[Entry]:
        """The latents of a frame's bands; fewer if the file is truncated."""
        first = number * self._bands
        return self._coded[first : first + self._bands]

    def band(self, number: int, band: int) -> Entry | None:
        """The latents of a band of a frame; None if the file is truncated."""
        place = number * self._bands + band
        return self._coded[place] if place < len(self._coded) else None

    def alpha(self, number: int) -> Entry | None:
        """The alpha channel of a frame, if it has one."""
        return self._alphas[number] if number < len(self._alphas) else None

    def exact(self, number: int) -> Entry | None:
        """The exact regions of a frame, if it has some."""
        return self._exact.get(number)


def read(fp: IO[bytes], count: int) -> bytes:
    """``count`` bytes, or fewer at the end.

    One `read` of a raw file may return too few.  Some file objects return a bytearray.
    """
    data = bytes(fp.read(count))
    if len(data) == count:
        return data
    parts = []
    while data:
        parts.append(data)
        count -= len(data)
        data = bytes(fp.read(count)) if count else b""
    return b"".join(parts)


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
        # The bytes that have been read, and their offset.
        self._ahead, self._ahead_at = read(fp, _START), 0
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
            if rules.done:
                self.data(entry)
                break
            if (end := entry.end) > self.file_size:
                raise self._incomplete(entry)
            entry = self._entry(end)
        if self.file_size > entry.end:
            extra = self.file_size - entry.end
            msg = f"damaged SDZ file: {extra} bytes after its end at byte {entry.end}"
            raise OSError(msg)

    def data(self, entry: Entry) -> bytes:
        """The data of a chunk; TruncatedError if it is incomplete, OSError if its CRC is wrong."""
        if entry.end > self.file_size:
            raise self._incomplete(entry)
        stored = self._bytes(entry.start, entry.length + CRC_BYTES)
        data, crc = stored[: entry.length], stored[entry.length :]
        if zlib.crc32(data, zlib.crc32(entry.type)).to_bytes(CRC_BYTES, "big") != crc:
            msg = f"damaged SDZ file: {entry}: its CRC does not match"
            raise OSError(msg)
        return data

    def unchecked(self, entry: Entry) -> bytes:
        """What the file has of a chunk's data, even if it is truncated or damaged."""
        return self._bytes(entry.start, entry.length)

    def _bytes(self, offset: int, count: int) -> bytes:
        """``count`` bytes from ``offset`` on, or fewer at the end of the file."""
        at = offset - self._ahead_at
        if 0 <= at <= len(self._ahead) - count:
            return self._ahead[at : at + count]
        self._fp.seek(offset)
        return read(self._fp, count)

    def _incomplete(self, entry: Entry) -> TruncatedError:
        return TruncatedError(
            f"truncated SDZ file: it ends at byte {self.file_size}, "
            f"{entry} would end at byte {entry.end}"
        )

    def _prefix(self, offset: int) -> bytes:
        """Length and type of the chunk that starts at ``offset``, and what may follow them."""
        at = offset - self._ahead_at
        if not 0 <= at <= len(self._ahead) - _PREFIX:
            # After many short chunks, what follows is read as well.
            near = 0 <= at <= len(self._ahead) + _SHORT
            self._short = self._short + 1 if near else 0
            count = _READ_AHEAD if self._short > _IN_A_ROW else _PREFIX
            self._fp.seek(offset)
            self._ahead, self._ahead_at, at = read(self._fp, count), offset, 0
        return self._ahead[at : at + _PREFIX]

    def _entry(self, offset: int) -> Entry:
        """The chunk that starts at ``offset``."""
        prefix = self._prefix(offset)
        # Nearly all chunks are of this kind.
        if len(prefix) == _PREFIX and prefix[0] < 0x80 and chunks.is_type(prefix[1:5]):
            return Entry(prefix[1:5], offset, offset + 5, prefix[0])
        length = 0
        for n in range(1, 6):
            if len(prefix) < n:
                break
            byte = prefix[n - 1]
            length |= (byte & 0x7F) << (7 * (n - 1))
            if byte < 0x80:
                if length > MAX_LENGTH or (n > 1 and not byte):  # too large, or needlessly long
                    msg = f"damaged SDZ file: bad chunk length at byte {offset}"
                    raise OSError(msg)
                type = prefix[n : n + TYPE_BYTES]
                if len(type) < TYPE_BYTES:
                    break
                if not chunks.is_type(type):
                    msg = f"damaged SDZ file: bad chunk type {type!r} at byte {offset + n}"
                    raise OSError(msg)
                return Entry(type, offset, offset + n + TYPE_BYTES, length)
        else:
            msg = f"damaged SDZ file: bad chunk length at byte {offset}"
            raise OSError(msg)
        msg = f"truncated SDZ file: it ends at byte {self.file_size}, before its DONE chunk"
        raise TruncatedError(msg)
