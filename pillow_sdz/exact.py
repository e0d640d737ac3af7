"""Exact regions <-> the data of the EXCT chunk, without loss; docs/format.md specifies it.

A frame is cut into blocks of 8x8 pixels.  A block is exact or it is not.  The pixels of exact
blocks are VP8L bitstreams (RFC 9649), which Pillow's lossless WebP reads and writes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

# A block is a pixel of a picture at 1/8 of its size, the smallest that is decoded.
BLOCK = 8
# A part has at most so many pixels, so that one is decoded in little memory.  Chosen: most
# screenshots are one part, and 4 megapixels take 16 MB.
PART_PIXELS = 1 << 22
# Of a part's side.  WebP allows 16383 pixels (RFC 9649, 4).
PART_WIDTH, PART_HEIGHT = 8192, 16376

# The first byte: all blocks are coded here; a map says which; two maps, of what is coded here and
# of what is as in the frame before; all is as in the frame before.
_ALL, _SOME, _CHANGES, _AS_BEFORE = range(4)
AS_BEFORE = bytes([_AS_BEFORE])

_LENGTH = struct.Struct(">I")
_RIFF = struct.Struct("<4sI4s4sI")
_VP8L_START = struct.Struct("<BI")  # its signature, and the size
_VP8L_SIGNATURE = 0x2F

Blocks = NDArray[np.bool_]  # (ceil(H / 8), ceil(W / 8))
PixelBox = tuple[int, int, int, int]


def shape_of(size: tuple[int, int]) -> tuple[int, int]:
    """The rows and columns of blocks of a picture (width, height)."""
    return -(-size[1] // BLOCK), -(-size[0] // BLOCK)


def is_available() -> bool:
    """Whether this Pillow has WebP, which exact regions need."""
    return bool(features.check("webp"))


def builds_on_the_frame_before(data: bytes) -> bool:
    """Whether the data of an EXCT chunk leaves pixels as they are in the frame before."""
    return data[:1] in (bytes([_CHANGES]), AS_BEFORE)


def _parts(size: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """The parts of a picture (width, height), as rows and columns of blocks."""
    rows, columns = shape_of(size)
    across = min(columns, PART_WIDTH // BLOCK)
    down = min(PART_PIXELS // (across * BLOCK) // BLOCK, PART_HEIGHT // BLOCK)
    for top in range(0, rows, down):
        for left in range(0, columns, across):
            yield (
                slice(top, min(top + down, rows)),
                slice(left, min(left + across, columns)),
            )


def _boxes(coded: Blocks, size: tuple[int, int]) -> Iterator[PixelBox]:
    """The smallest box of pixels around the coded blocks of each part that has some."""
    for rows, columns in _parts(size):
        box = bounds(coded[rows, columns])
        if box is not None:
            left, top, right, bottom = box
            yield (
                (columns.start + left) * BLOCK,
                (rows.start + top) * BLOCK,
                min((columns.start + right) * BLOCK, size[0]),
                min((rows.start + bottom) * BLOCK, size[1]),
            )


def bounds(blocks: Blocks) -> tuple[int, int, int, int] | None:
    """The smallest box (left, top, right, bottom) around the True blocks; None if there is none."""
    if not blocks.any():
        return None
    rows, columns = (np.flatnonzero(blocks.any(axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def mask(blocks: Blocks, scale: int = 1) -> Image.Image:
    """Blocks as a picture of mode L at 1/scale of the size: 255 where a block is True."""
    side = BLOCK // scale
    levels = np.where(blocks, np.uint8(255), np.uint8(0))
    return Image.fromarray(levels.repeat(side, 0).repeat(side, 1))


class Encoder:
    """Codes the exact regions of frames, one after another."""

    def __init__(self, limit: int) -> None:
        self._limit = limit  # of chunks in a row that build on the frame before
        self._before: tuple[NDArray[np.uint8], Blocks] | None = None
        self._in_a_row = 0

    def encode(self, image: Image.Image | None, blocks: Blocks | None) -> bytes:
        """The data of the EXCT chunk of the next frame, or nothing if it has no exact blocks.

        ``image`` has mode RGB.
        """
        if image is None or blocks is None:
            self._before = None
            return b""
        pixels = np.asarray(image)
        data = b""
        if self._before is not None and self._in_a_row < self._limit:
            before, exact = self._before
            kept = blocks & exact & ~_of_blocks((pixels != before).any(2))
            if kept.any():
                same = bool((kept == blocks).all() and (blocks == exact).all())
                data = AS_BEFORE if same else _data(_CHANGES, image, blocks & ~kept, kept)
        self._in_a_row = self._in_a_row + 1 if data else 0
        self._before = pixels, blocks
        return data or _data(_ALL if blocks.all() else _SOME, image, blocks)


def cost(image: Image.Image, blocks: Blocks) -> int:
    """How many bytes a picture's chunk takes with these exact blocks."""
    return len(_data(_ALL if blocks.all() else _SOME, image, blocks))


def _of_blocks(pixels: NDArray[np.bool_]) -> Blocks:
    """Whether a block has a pixel that is True."""
    height, width = pixels.shape
    even = np.pad(pixels, ((0, -height % BLOCK), (0, -width % BLOCK)))
    rows, columns = shape_of((width, height))
    return np.asarray(even.reshape(rows, BLOCK, columns, BLOCK).any((1, 3)), np.bool_)


def _data(method: int, image: Image.Image, coded: Blocks, kept: Blocks | None = None) -> bytes:
    """The data of an EXCT chunk with the pixels of the blocks ``coded``."""
    maps = [] if method == _ALL else [coded] if kept is None else [coded, kept]
    parts = [bytes([method]), _packed(*maps) if maps else b""]
    for box in _boxes(coded, image.size):
        bitstream = _vp8l(_alone(image, coded, box))
        parts += [_LENGTH.pack(len(bitstream)), bitstream]
    return b"".join(parts)


def _alone(image: Image.Image, coded: Blocks, box: PixelBox) -> Image.Image:
    """The pixels of a box.  Those of other blocks get the most frequent colour."""
    pixels = image.crop(box)
    left, top, right, bottom = (-(-edge // BLOCK) for edge in box)
    inside = coded[top:bottom, left:right]
    if inside.all():
        return pixels
    shown = mask(inside).crop((0, 0, *pixels.size))
    levels = np.asarray(pixels)[np.asarray(shown) > 0].astype(np.uint32)
    colours, counts = np.unique(
        levels[:, 0] << 16 | levels[:, 1] << 8 | levels[:, 2], return_counts=True
    )
    colour = int(colours[counts.argmax()])
    ground = Image.new("RGB", pixels.size, (colour >> 16, colour >> 8 & 255, colour & 255))
    ground.paste(pixels, (0, 0), shown)
    return ground


def _vp8l(pixels: Image.Image) -> bytes:
    file = BytesIO()
    # Method 6 takes ten times as long, for 0 to 2 % fewer bytes.  Measured
    # (docs/measurements.md#graphics-exact-and-regions).
    pixels.info = {}  # WebP would write a profile
    pixels.save(file, "WEBP", lossless=True, quality=100, method=4)
    data = file.getvalue()
    *_, type, length = _RIFF.unpack_from(data)
    assert type == b"VP8L"
    return data[_RIFF.size : _RIFF.size + length]


def _packed(*maps: Blocks) -> bytes:
    """Maps of blocks as a zlib stream: one bit a block, each row xor the row above it."""
    parts = []
    for blocks in maps:
        changes = blocks.copy()
        changes[1:] ^= blocks[:-1]
        parts.append(np.packbits(changes).tobytes())
    return zlib.compress(b"".join(parts), 9)


def _unpacked(data: bytes, shape: tuple[int, int], count: int) -> tuple[list[Blocks], bytes]:
    """``count`` maps of blocks, and the data after them; ValueError if they are damaged."""
    each = -(-shape[0] * shape[1] // 8)
    inflater = zlib.decompressobj()
    try:
        bits = inflater.decompress(data, count * each + 1)
    except zlib.error as e:
        raise ValueError(str(e)) from e
    if len(bits) != count * each or not inflater.eof:
        msg = "its map has not one bit for each block"
        raise ValueError(msg)
    maps = []
    for at in range(0, count * each, each):
        found = np.unpackbits(np.frombuffer(bits, np.uint8, each, at))
        if found[shape[0] * shape[1] :].any():
            msg = "its map says something of blocks outside of the picture"
            raise ValueError(msg)
        changes = found[: shape[0] * shape[1]].reshape(shape)
        maps.append(np.logical_xor.accumulate(changes.astype(np.bool_), axis=0))
    return maps, inflater.unused_data


class _Part(NamedTuple):
    box: PixelBox
    bitstream: bytes


class Regions:
    """The exact regions of a frame.  ``blocks`` says which blocks are exact.

    ``before`` are the regions of the frame before, if the data builds on them.  OSError if the data
    is damaged.  The pixels are decoded when they are asked for.
    """

    def __init__(self, data: bytes, size: tuple[int, int], before: Regions | None = None) -> None:
        self.size = size
        self._before = before
        self._canvas: Image.Image | None = None
        try:
            self._parse(data)
        except ValueError as e:
            msg = f"damaged SDZ file: chunk EXCT: {e}"
            raise OSError(msg) from e

    def _parse(self, data: bytes) -> None:
        shape = shape_of(self.size)
        method, rest = data[0] if data else -1, data[1:]
        exact = kept = np.zeros(shape, np.bool_)
        if self._before is not None:
            exact = self._before.blocks
        if method == _ALL:
            self._coded = np.ones(shape, np.bool_)
        elif method == _SOME:
            (self._coded,), rest = _unpacked(rest, shape, 1)
        elif method == _CHANGES:
            (self._coded, kept), rest = _unpacked(rest, shape, 2)
        elif method == _AS_BEFORE:
            self._coded, kept = kept, exact
        else:
            msg = f"method {method} is not known"
            raise ValueError(msg)
        if (kept & ~exact).any() or (kept & self._coded).any():
            msg = "it keeps blocks that are not exact in the frame before, or that it codes"
            raise ValueError(msg)
        self.blocks: Blocks = self._coded | kept
        if not self.blocks.any():
            msg = "no block is exact"
            raise ValueError(msg)
        self._has_kept = bool(kept.any())
        self._parts = [_Part(box, b"") for box in _boxes(self._coded, self.size)]
        for number, (box, _) in enumerate(self._parts):
            length = _LENGTH.unpack_from(rest)[0] if len(rest) >= _LENGTH.size else -1
            bitstream = rest[_LENGTH.size : _LENGTH.size + max(length, 0)]
            if len(bitstream) != length:
                msg = f"it ends within part {number} of {len(self._parts)}"
                raise ValueError(msg)
            _check_size(bitstream, box)
            self._parts[number] = _Part(box, bitstream)
            rest = rest[_LENGTH.size + length :]
        if rest:
            msg = f"{len(rest)} bytes follow its last part"
            raise ValueError(msg)

    @property
    def share(self) -> float:
        """The part of the picture's pixels that is exact, in 0..1."""
        width, height = self.size
        heights, widths = (
            np.minimum(BLOCK, side - BLOCK * np.arange(count))
            for side, count in zip((height, width), self.blocks.shape, strict=True)
        )
        return float(heights @ self.blocks @ widths) / (width * height)

    def rest(self, box: PixelBox, scale: int = 1) -> PixelBox | None:
        """The smallest box inside of ``box`` with all of its blocks that are not exact.

        Boxes are in pixels of the picture at 1/scale of its size.  None if all blocks are exact.
        """
        side = BLOCK // scale
        left, top = box[0] // side, box[1] // side
        right, bottom = -(-box[2] // side), -(-box[3] // side)
        found = bounds(~self.blocks[top:bottom, left:right])
        if found is None:
            return None
        return (
            max(box[0], (left + found[0]) * side),
            max(box[1], (top + found[1]) * side),
            min(box[2], (left + found[2]) * side),
            min(box[3], (top + found[3]) * side),
        )

    def paste(self, picture: Image.Image, box: PixelBox, scale: int = 1) -> None:
        """Paste exact pixels onto ``picture``, which shows ``box``; see `rest`.

        OSError if the pixels are damaged.
        """
        for place, pixels, blocks in self._pixels():
            left, top, right, bottom = (-(-edge // scale) for edge in place)
            inside = max(left, box[0]), max(top, box[1]), min(right, box[2]), min(bottom, box[3])
            if inside[0] >= inside[2] or inside[1] >= inside[3]:
                continue
            cut = inside[0] - left, inside[1] - top, inside[2] - left, inside[3] - top
            shown = pixels() if scale == 1 else pixels().reduce(scale)
            where = mask(blocks, scale).crop(cut)
            at = inside[0] - box[0], inside[1] - box[1]
            picture.paste(shown.crop(cut).convert(picture.mode), at, where)

    def _pixels(self) -> Iterator[tuple[PixelBox, Callable[[], Image.Image], Blocks]]:
        """Boxes, what decodes their pixels, and which of their blocks are exact."""
        if self._has_kept:
            yield (0, 0, *self.size), self._whole, self.blocks
            return
        for part in self._parts:
            left, top, right, bottom = (-(-edge // BLOCK) for edge in part.box)
            yield part.box, _Pixels(part), self._coded[top:bottom, left:right]

    def _whole(self) -> Image.Image:
        """The frame with its exact pixels.  Kept, since the next frame may build on it."""
        if self._canvas is None:
            chain: list[Regions] = [self]
            while chain[-1]._canvas is None and chain[-1]._has_kept:
                before = chain[-1]._before
                assert before is not None
                chain.append(before)
            canvas = chain[-1]._canvas or Image.new("RGB", self.size)
            for regions in reversed(chain):
                if regions._canvas is None:
                    canvas = canvas.copy()
                    for part in regions._parts:
                        left, top, right, bottom = (-(-edge // BLOCK) for edge in part.box)
                        pixels = _Pixels(part)()
                        where = mask(regions._coded[top:bottom, left:right])
                        canvas.paste(pixels, part.box[:2], where.crop((0, 0, *pixels.size)))
            self._canvas, self._before = canvas, None
        return self._canvas


class _Pixels:
    """Decodes the pixels of a part."""

    def __init__(self, part: _Part) -> None:
        self._part = part

    def __call__(self) -> Image.Image:
        (left, top, right, bottom), bitstream = self._part
        odd = len(bitstream) % 2
        start = _RIFF.pack(b"RIFF", 12 + len(bitstream) + odd, b"WEBP", b"VP8L", len(bitstream))
        try:
            with Image.open(BytesIO(start + bitstream + bytes(odd)), formats=["WEBP"]) as picture:
                if picture.size != (right - left, bottom - top):  # as Pillow has read it
                    msg = f"it has the size {picture.size}"
                    raise ValueError(msg)
                return picture.convert("RGB")
        except Exception as e:  # Pillow's WebP reader may raise anything for hostile bytes
            msg = f"damaged SDZ file: the pixels in chunk EXCT: {e}"
            raise OSError(msg) from e


def _check_size(bitstream: bytes, box: PixelBox) -> None:
    """ValueError if a VP8L bitstream has another size than a box.  Nothing is decoded for it."""
    if len(bitstream) < _VP8L_START.size:
        msg = "a part without pixels"
        raise ValueError(msg)
    signature, bits = _VP8L_START.unpack_from(bitstream)
    said = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    size = box[2] - box[0], box[3] - box[1]
    if signature != _VP8L_SIGNATURE or bits >> 28 or said != size:  # alpha, and the version
        msg = f"the pixels of a part are not a VP8L bitstream of {size[0]}x{size[1]} pixels"
        raise ValueError(msg)
