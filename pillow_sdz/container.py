"""Bytes <-> chunks: the `.sdz` container, as specified in docs/format.md.

Nothing here knows of images, networks or Pillow, and no other module knows an offset. Whatever the
bytes, the only exception that leaves the reading side is an OSError that says what is wrong and
where; the writing side raises ValueError for what may not be written.
"""

from __future__ import annotations

import itertools
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from struct import Struct
from typing import IO, NamedTuple

SIGNATURE = b"\x8bSDZ\r\n\x1a\n"
VERSION = 1

HEAD = b"HEAD"
ICC_PROFILE = b"iCCP"
EXIF = b"eXIf"
XMP = b"xMPm"
LATENTS = b"LATN"
CHANGES = b"DIFF"
ALPHA = b"ALPH"
DONE = b"DONE"
DENOISING = b"dNOI"
PROMPT = b"pRMT"
PROVENANCE = b"oRIG"
MASK = b"mASK"
TUNE = b"tUNE"
BANDS = b"BAND"
ANIMATION = b"aNIM"

METADATA = frozenset({ICC_PROFILE, EXIF, XMP})
CODED = frozenset({LATENTS, CHANGES})  # a band's latents, or what has changed of them
FRAME = CODED | {ALPHA}  # the chunks of which every frame has its own
ONCE = METADATA | {DENOISING, PROMPT, PROVENANCE, MASK, TUNE, BANDS, ANIMATION}
KNOWN = FRAME | ONCE | {HEAD, DONE}

# The index is the byte in the header.
MODES = ("L", "RGB", "LA", "RGBA")
CODINGS = ("context", "palette", "float16")
TUNES = ("psnr", "perceptual")  # the first is what a file without tUNE is tuned for

MAX_SIDE = 65535  # what the header's u16 holds
MAX_METADATA = 8 << 20  # bytes of one chunk that a reader must keep; libpng's limit
MAX_CHUNKS = 1000  # besides those of the frames; libpng's limit of chunks it keeps
MAX_FRAMES = 65535  # what the header's u16 holds
# Frames in a row of which a band has no LATN, and all of which a reader that wants the last must
# decode.  Chosen: in a picture that stands still, its LATN is then most of the bytes.
MAX_CHANGES = 255
MAX_DURATION = (1 << 32) - 1  # milliseconds, what a u32 holds
MAX_PROMPT = 8192  # bytes; chosen: text encoders read 77 to 512 tokens
# Chosen: five times the article's 40 thousandths, and some times its steps, each of which costs
# as much as one of generating.
MAX_STRENGTH = 200
MAX_DENOISING_STEPS = 20
# No coding needs more for a latent, and a header may lie about anything but this product.
MAX_BYTES_PER_LATENT = 8
# Greyscale PNG needs at most 2 bytes per pixel: one and, in a picture of one column, the filter's.
MAX_BYTES_PER_ALPHA = 2
SLACK = 1024  # bytes beyond the two limits above, for the fixed cost of tiny pictures

# What Pillow, and JPEG, have before the TIFF stream that eXIf holds.
EXIF_PREFIX = b"Exif\0\0"

STEP_UNITS = 1024  # quantisation steps are in so many parts of a latent

_MAX_LENGTH = (1 << 32) - 1
_CRC_BYTES = 4
_TYPE_BYTES = 4
_MODEL = re.compile(rb"[a-z0-9][a-z0-9._-]{0,31}")  # as models.recorded.NAME
_BEFORE_MODEL = Struct(">BBHHHB")
_AFTER_MODEL = Struct(">4sHBBH")
_DENOISING = Struct(">HB")
_BANDS = Struct(">H")
_LOOP = Struct(">H")
_DURATION = Struct(">I")


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


class Denoising(NamedTuple):
    """The data of the dNOI chunk: what a writer recommends for the denoising of its latents.

    ``strength`` in thousandths of the noise schedule (1..200), ``steps`` of the U-Net (1..20).
    """

    strength: int
    steps: int

    def pack(self) -> bytes:
        """The data of the dNOI chunk; ValueError beyond the bounds."""
        if complaint := self._complaint():
            raise ValueError(complaint)
        return _DENOISING.pack(*self)

    @classmethod
    def parse(cls, data: bytes) -> Denoising:
        """The recommendation in the data of a dNOI chunk; OSError where it is damaged."""
        if len(data) != _DENOISING.size:
            msg = f"damaged SDZ file: chunk dNOI of {len(data)} bytes"
            raise OSError(msg)
        denoising = cls(*_DENOISING.unpack(data))
        if complaint := denoising._complaint():
            msg = f"damaged SDZ file: chunk dNOI: {complaint}"
            raise OSError(msg)
        return denoising

    def _complaint(self) -> str | None:
        if not 1 <= self.strength <= MAX_STRENGTH:
            return f"a denoising strength of {self.strength / 1000:g}"
        if not 1 <= self.steps <= MAX_DENOISING_STEPS:
            return f"{self.steps} denoising steps"
        return None


class Animation(NamedTuple):
    """The data of the aNIM chunk: how often the frames are shown, and for how long.

    ``loop`` is 0 for ever, else 1 to 65535 times; ``durations`` are milliseconds, one of each frame
    or one for all.
    """

    loop: int
    durations: tuple[int, ...]

    def pack(self) -> bytes:
        """The data of the aNIM chunk."""
        return _LOOP.pack(self.loop) + b"".join(map(_DURATION.pack, self.durations))

    @classmethod
    def parse(cls, data: bytes, frames: int) -> Animation:
        """What the data of an aNIM chunk says of so many frames; OSError where it is damaged."""
        if len(data) not in {_LOOP.size + n * _DURATION.size for n in (1, frames)}:
            msg = f"damaged SDZ file: chunk aNIM of {len(data)} bytes for {frames} frames"
            raise OSError(msg)
        (loop,) = _LOOP.unpack_from(data)
        durations = _DURATION.iter_unpack(data[_LOOP.size :])
        return cls(loop, tuple(duration for (duration,) in durations))

    def duration(self, frame: int) -> int:
        """Milliseconds of a frame."""
        return self.durations[frame if len(self.durations) > 1 else 0]

    def timestamps(self, frames: int) -> list[int]:
        """For each of so many frames, the milliseconds of all before it."""
        durations = (self.duration(frame) for frame in range(frames - 1))
        return [*itertools.accumulate(durations, initial=0)]


# The 2022 article's: the last two or three of 66 steps, 0.04 of the schedule.
ARTICLES_DENOISING = Denoising(strength=40, steps=3)


class Header(NamedTuple):
    """The data of the HEAD chunk: what can be known of a picture without its pixels.

    ``size`` is (width, height) in pixels, ``digest`` the first 4 bytes of the sha256 of the model's
    weights, ``channels`` and ``factor`` the latents' channels and pixels per latent along one side.
    ``quantisation`` is 1..65535: `mini`'s quality in hundredths, and with other models the step in
    1/1024 of a latent.  In the coding float16 it is 0, or 1 where the latents are not scaled.
    """

    mode: str
    size: tuple[int, int]
    model: str
    digest: bytes
    channels: int
    factor: int
    quantisation: int
    coding: str = CODINGS[0]
    frames: int = 1

    @property
    def latents(self) -> tuple[int, int, int]:
        """The latents' shape (channels, height, width)."""
        width, height = self.size
        return self.channels, -(-height // self.factor), -(-width // self.factor)

    @property
    def has_alpha(self) -> bool:
        return self.mode.endswith("A")

    @property
    def step(self) -> float:
        """The quantisation step in units of a latent, where ``quantisation`` is one."""
        return self.quantisation / STEP_UNITS

    def pack(self) -> bytes:
        """The data of the HEAD chunk; ValueError where a field cannot be written."""
        name = self.model.encode("ascii", "replace")
        if complaint := self._complaint(name):
            raise ValueError(complaint)
        mode = MODES.index(self.mode)
        before = _BEFORE_MODEL.pack(VERSION, mode, *self.size, self.frames, len(name))
        after = _AFTER_MODEL.pack(
            self.digest, self.channels, self.factor, CODINGS.index(self.coding), self.quantisation
        )
        return before + name + after

    @classmethod
    def parse(cls, data: bytes) -> Header:
        """The header in the data of a HEAD chunk; OSError where it is damaged or of a later day."""
        if data and data[0] != VERSION:
            msg = (
                f"SDZ format version {data[0]}: a newer version of pillow-sdz is needed, "
                f"this one reads version {VERSION}"
            )
            raise OSError(msg)
        if len(data) < _BEFORE_MODEL.size:
            msg = f"damaged SDZ header: {len(data)} bytes"
            raise OSError(msg)
        _, mode, width, height, frames, name_length = _BEFORE_MODEL.unpack_from(data)
        expected = _BEFORE_MODEL.size + name_length + _AFTER_MODEL.size
        if len(data) != expected:
            msg = f"damaged SDZ header: {len(data)} bytes instead of {expected}"
            raise OSError(msg)
        if mode >= len(MODES):
            msg = f"damaged SDZ header: unknown mode {mode}"
            raise OSError(msg)
        after_name = _BEFORE_MODEL.size + name_length
        name = data[_BEFORE_MODEL.size : after_name]
        digest, channels, factor, coding, quantisation = _AFTER_MODEL.unpack_from(data, after_name)
        if coding >= len(CODINGS):
            msg = f"SDZ coding {coding} is not known to this version of pillow-sdz"
            raise OSError(msg)
        header = cls(
            MODES[mode],
            (width, height),
            name.decode("ascii", "replace"),
            digest,
            channels,
            factor,
            quantisation,
            CODINGS[coding],
            frames,
        )
        if complaint := header._complaint(name):
            msg = f"damaged SDZ header: {complaint}"
            raise OSError(msg)
        return header

    def _complaint(self, name: bytes) -> str | None:
        """What is wrong with the fields, for reader and writer alike."""
        width, height = self.size
        if self.mode not in MODES:
            return f"mode {self.mode}"
        if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
            return f"size {width}x{height}, each side must have 1 to {MAX_SIDE} pixels"
        if not _MODEL.fullmatch(name):
            return f"model name {name!r}"
        if len(self.digest) != 4:
            return f"digest of {len(self.digest)} bytes"
        if not 1 <= self.channels <= 0xFFFF:
            return f"{self.channels} latent channels"
        if not 1 <= self.factor <= 0xFF:
            return f"factor {self.factor}"
        if self.coding not in CODINGS:
            return f"coding {self.coding}"
        lowest, highest = (0, 1) if self.coding == "float16" else (1, 0xFFFF)
        if not lowest <= self.quantisation <= highest:
            return f"coding {self.coding} with a quantisation of {self.quantisation}"
        if not 1 <= self.frames <= MAX_FRAMES:
            return f"{self.frames} frames"
        return None


def pack_tune(tune: str) -> bytes:
    """The data of a tUNE chunk, for one of `TUNES`."""
    return bytes([TUNES.index(tune)])


def parse_tune(data: bytes) -> str:
    """What the data of a tUNE chunk says the picture is tuned for; OSError where damaged.

    What later versions may add is none of the others, and so the first.
    """
    if len(data) != 1:
        msg = f"damaged SDZ file: chunk tUNE of {len(data)} bytes"
        raise OSError(msg)
    return TUNES[data[0]] if data[0] < len(TUNES) else TUNES[0]


def pack_bands(rows: int) -> bytes:
    """The data of a BAND chunk, for so many rows of latents in a band."""
    return _BANDS.pack(rows)


def bands(height: int, rows: int | None) -> list[slice]:
    """The rows of each band of so many rows of latents; ``rows`` are a BAND chunk's, if any."""
    rows = rows or height
    return [slice(top, min(top + rows, height)) for top in range(0, height, rows)]


def pack_prompt(prompt: str) -> bytes:
    """The data of a pRMT chunk; ValueError where it is too long."""
    data = prompt.encode("utf-8", "replace")
    if len(data) > MAX_PROMPT:
        msg = f"prompt has {len(data)} bytes, more than the limit of {MAX_PROMPT}"
        raise ValueError(msg)
    return data


def parse_prompt(data: bytes) -> str:
    """The prompt in the data of a pRMT chunk; OSError where it is damaged."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        msg = "damaged SDZ file: chunk pRMT is not UTF-8"
        raise OSError(msg) from e


def is_critical(type: bytes) -> bool:
    """Whether a reader that does not know the type must refuse the file."""
    return type[:1].isupper()


def is_skippable(type: bytes) -> bool:
    """Whether this is a type unknown here that readers may skip."""
    return _is_type(type) and type not in KNOWN and not is_critical(type)


def is_safe_to_copy(type: bytes) -> bool:
    """Whether a skippable chunk stays true when the picture is edited and encoded again."""
    return type[3:4].islower()


def size(chunks: Iterable[Chunk]) -> int:
    """The bytes of a file made of these chunks."""
    return len(SIGNATURE) + sum(chunk_size(len(chunk.data)) for chunk in chunks)


def chunk_size(length: int) -> int:
    """The bytes of a whole chunk with ``length`` bytes of data."""
    return len(_varint(length)) + _TYPE_BYTES + length + _CRC_BYTES


def write(chunks: Sequence[Chunk]) -> bytes:
    """The file made of these chunks, in this order; ValueError where a rule forbids it."""
    rules: _Rules | None = None
    parts = [SIGNATURE]
    for chunk in chunks:
        if rules is None:
            if chunk.type != HEAD:
                msg = f"the first chunk must be HEAD, not {chunk.type!r}"
                raise ValueError(msg)
            rules = _Rules(Header.parse(chunk.data))
        if complaint := rules.complaint(chunk.type, len(chunk.data)):
            raise ValueError(complaint)
        if chunk.type == BANDS and (complaint := rules.cut(chunk.data)):
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
        if fp.read(len(SIGNATURE)) != SIGNATURE:
            msg = "not an SDZ file"
            raise OSError(msg)
        self._head = self._entry(len(SIGNATURE))
        if self._head.type != HEAD:
            msg = f"damaged SDZ file: {self._head} instead of HEAD"
            raise OSError(msg)
        if self._head.length > _BEFORE_MODEL.size + 0xFF + _AFTER_MODEL.size:
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
            if entry.type == BANDS:
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
        stored = self._fp.read(entry.length + _CRC_BYTES)
        data, crc = stored[: entry.length], stored[entry.length :]
        if zlib.crc32(data, zlib.crc32(entry.type)).to_bytes(_CRC_BYTES, "big") != crc:
            msg = f"damaged SDZ file: {entry}: its CRC does not match"
            raise OSError(msg)
        return data

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
        prefix = self._fp.read(5 + _TYPE_BYTES)
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
                if not _is_type(type):
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
        if len(data) != _BANDS.size:
            return f"BAND has {len(data)} bytes"
        (rows,) = _BANDS.unpack(data)
        # Even, since hyperlatents stand for pairs; and a file has only one form.
        if rows % 2 or not 0 < rows < height:
            return f"bands of {rows} rows of {height}"
        self.bands = bands(height, rows)
        self._changes = [0] * len(self.bands)
        return None

    def complaint(self, type: bytes, length: int) -> str | None:
        """What is wrong with this chunk as the next one, or None."""
        if not _is_type(type):
            return f"bad chunk type {type!r}"
        name = type.decode("ascii")
        if self.done:
            return f"{name} after DONE"
        if type not in KNOWN:
            if is_critical(type):
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
        if type == PROMPT:
            return MAX_PROMPT
        if type in CODED:
            band = self.bands[self._coded % len(self.bands)]
            latents: int = channels * (band.stop - band.start) * columns
            return min(MAX_BYTES_PER_LATENT * latents + SLACK, _MAX_LENGTH)
        if type == ALPHA:
            return min(MAX_BYTES_PER_ALPHA * width * height + SLACK, _MAX_LENGTH)
        return MAX_METADATA


def _is_type(type: bytes) -> bool:
    return len(type) == _TYPE_BYTES and type.isalpha()


def _varint(value: int) -> bytes:
    """Unsigned LEB128: seven bits a byte, lowest first; a set high bit says that more follow."""
    # Chosen over a fixed u32 because it saves 9 to 12 bytes, one in a hundred of a thumbnail.
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
