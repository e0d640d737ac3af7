"""Exact regions <-> the data of the EXCT chunk, without loss; docs/format.md specifies it.

A frame is cut into blocks of 8x8 pixels.  A block is exact or it is not.  If the latents show
through some pixels of an exact block, the block is *open*.  The pixels of exact blocks are VP8L
bitstreams.  In open blocks, the pixels where latents show through are transparent.  Shapes that
repeat may be copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from . import block_maps, copies, exact_parts, vp8l
from .block_maps import Blocks
from .copies import Copies
from .exact_parts import BLOCK, PixelBox, shape_of

# If there are this many rows of exact blocks between two parts of a picture, the parts are decoded
# one by one.  Chosen: networks look at some 64 pixels around the area that they decode.
APART = 16

# To show a frame, a reader decodes the bitstreams of all EXCT that it builds on.  Together they
# have at most this many times the pixels of a picture.  Chosen: flat pixels then take about as long
# as the networks take for a picture (measured: 5 and 256 ms a megapixel).  Other pixels need many
# bytes.
MOST_PIXELS = 64

# The first byte says what follows.  _ALL: all blocks are coded.  _SOME: a map of the coded blocks,
# and a map of the open ones among them.  _CHANGES: the same two maps, after a map of the blocks
# that stay as in the frame before.  _AS_BEFORE: nothing, because all blocks stay.
_ALL, _SOME, _CHANGES, _AS_BEFORE = range(4)
_WITH_COPIES = 4  # is added to one of the first three if parts have copies
_WITH_ALPHA = 8  # all blocks are coded, and their alpha is that of the picture
AS_BEFORE = bytes([_AS_BEFORE])


def builds_on_the_frame_before(data: bytes) -> bool:
    """Whether the data of an EXCT chunk keeps pixels of the frame before."""
    return data[:1] in (bytes([_CHANGES]), bytes([_CHANGES + _WITH_COPIES]), AS_BEFORE)


def has_alpha(data: bytes) -> bool:
    """Whether the data of an EXCT chunk has the alpha channel of the picture."""
    return data[:1] == bytes([_WITH_ALPHA])


def with_alpha(image: Image.Image, *, keeps_hidden: bool) -> bytes:
    """The data of the EXCT chunk of a picture of mode RGBA, with its alpha channel.

    The colours of transparent pixels are only kept if it ``keeps_hidden`` pixels.
    """
    boxes = (exact_parts.box_of(part, image.size) for part in exact_parts.parts(image.size))
    parts = (vp8l.encode(image.crop(box), keeps_hidden=keeps_hidden) for box in boxes)
    return b"".join([bytes([_WITH_ALPHA]), *map(exact_parts.pack, parts)])


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
        # The number of the chunks that build on each other, and their work.
        self._in_a_row = self._work = 0

    def encode(
        self, image: Image.Image | None, blocks: Blocks | None, known: Coded | None = None
    ) -> bytes:
        """The data of the EXCT chunk of the next frame, or nothing if it has no exact blocks.

        ``image`` has mode RGB or RGBA.  Alpha is 0 where latents show through, and 255 elsewhere.
        ``known`` is what `coded` makes of them, if that is known.
        """
        if image is None or blocks is None:
            self._before = None
            return b""
        if not self._limit:
            return (known or coded(image, blocks)).data
        pixels = np.array(image.convert("RGBA"))
        pixels[pixels[..., 3] == 0] = 0
        kept = self._kept(pixels, blocks)
        before, self._before = self._before, (pixels, blocks)
        if kept is not None:
            if before is not None and np.array_equal(kept, before[1]) and (blocks == kept).all():
                self._in_a_row += 1
                return AS_BEFORE
            changed = coded(image, blocks & ~kept, kept)
            if self._work + changed.work <= MOST_PIXELS * image.width * image.height:
                self._in_a_row += 1
                self._work += changed.work
                return changed.data
        self._in_a_row = 0
        data, self._work = known or coded(image, blocks)
        return data

    def _kept(self, pixels: NDArray[np.uint8], blocks: Blocks) -> Blocks | None:
        """The blocks that stay as in the frame before; None if this frame must not build on it."""
        if self._before is None or self._in_a_row >= self._limit:
            return None
        before, exact = self._before
        kept = blocks & exact & ~block_maps.of_pixels((pixels != before).any(2), BLOCK)
        return kept if kept.any() else None


class Coded(NamedTuple):
    """The data of an EXCT chunk, and its work."""

    data: bytes
    work: int


def coded(
    image: Image.Image, blocks: Blocks, kept: Blocks | None = None, *, with_copies: bool = True
) -> Coded:
    """The chunk of a frame with the pixels of some blocks, while the blocks ``kept`` stay.

    Without ``with_copies``, it is not tried whether copies take fewer bytes.
    """
    opened = np.zeros_like(blocks)
    if image.mode == "RGBA":
        opened = blocks & block_maps.of_pixels(np.asarray(image.getchannel("A")) == 0, BLOCK)
    if kept is not None:
        method, maps = _CHANGES, block_maps.packed(blocks, opened, kept)
    elif blocks.all() and not opened.any():
        method, maps = _ALL, b""
    else:
        method, maps = _SOME, block_maps.packed(blocks, opened)
    boxes = exact_parts.boxes(blocks, image.size)
    parts = [_part(image, blocks, opened, box, with_copies=with_copies) for box in boxes]
    has_copies = any(part.copies is not None for part in parts)
    lists = [part.pack(has_copies=has_copies) for part in parts]
    data = b"".join([bytes([method + has_copies * _WITH_COPIES]), maps, *lists])
    return Coded(data, sum(part.work for part in parts))


def _part(
    image: Image.Image, coded: Blocks, opened: Blocks, box: PixelBox, *, with_copies: bool
) -> _Part:
    """The pixels of a box, with copies if that takes fewer bytes."""
    pixels = _alone(image, coded, opened, box)
    inside, has_alpha = _of_box(coded, box), pixels.mode == "RGBA"
    plain = _Part(box, inside, has_alpha, vp8l.encode(pixels))
    found = copies.find(copies.colours_of(pixels)) if with_copies else None
    if found is None or len(found[0]) > vp8l.MAX_SIDE:
        return plain
    with_sheet = copies.picture_of(found[0]).convert(pixels.mode)
    copied = _Part(box, inside, has_alpha, vp8l.encode(with_sheet), found[1])
    return min(plain, copied, key=lambda part: len(part.pack(has_copies=True)))


def _of_box(blocks: Blocks, box: PixelBox) -> Blocks:
    """The blocks of a box of pixels that begins at a block."""
    left, top, right, bottom = (-(-edge // BLOCK) for edge in box)
    return blocks[top:bottom, left:right]


def _alone(image: Image.Image, coded: Blocks, opened: Blocks, box: PixelBox) -> Image.Image:
    """The pixels of a box.  Blocks that are not coded get the most frequent colour.

    If a block is open, the box has alpha, and blocks that are not coded are transparent.
    """
    pixels = image.crop(box)
    inside = _of_box(coded, box)
    shown = mask(inside).crop((0, 0, *pixels.size))
    if _of_box(opened, box).any():
        pixels.putalpha(ImageChops.darker(pixels.getchannel("A"), shown))
        return pixels
    pixels = pixels.convert("RGB")
    if inside.all():
        return pixels
    every = np.asarray(pixels.convert("RGBX")).view(">u4")[..., 0]
    colours, counts = np.unique(every[np.asarray(shown) > 0].astype(np.uint32), return_counts=True)
    ground = Image.new("RGB", pixels.size, tuple(int(colours[counts.argmax()]).to_bytes(4)[:3]))
    ground.paste(pixels, (0, 0), shown)
    return ground


class _Part(NamedTuple):
    """Pixels that are coded in a chunk."""

    box: PixelBox
    coded: Blocks
    has_alpha: bool
    bitstream: bytes
    copies: Copies | None = None
    of_picture: bool = False  # whether its alpha is that of the picture

    @property
    def size(self) -> tuple[int, int]:
        """The size of the bitstream's picture, with the sheet of its copies."""
        left, top, right, bottom = self.box
        rows = 0 if self.copies is None else self.copies.rows(right - left)
        return right - left, bottom - top + rows

    @property
    def work(self) -> int:
        """How long the part takes to decode: as a bitstream of this many pixels."""
        width, height = self.size
        return width * height + (0 if self.copies is None else self.copies.work)

    def pack(self, *, has_copies: bool) -> bytes:
        """The part as it is stored in a chunk whose parts have copies, or have none."""
        stored = [] if self.copies is None else [self.copies.pack()]
        if has_copies and not stored:
            stored = [b""]
        return b"".join(map(exact_parts.pack, (*stored, self.bitstream)))

    def pixels(self) -> Image.Image:
        """The picture of the box, of mode RGBA.

        It is transparent where latents show, or it has the alpha of the picture.
        """
        try:
            picture = vp8l.decode(self.bitstream, self.size, has_alpha=self.has_alpha)
            if self.has_alpha and not self.of_picture:
                _check_alpha(picture)
        except ValueError as e:
            msg = f"damaged SDZ file: the pixels in chunk EXCT: {e}"
            raise OSError(msg) from e
        if self.copies is None:
            return picture.convert("RGBA")
        return copies.picture_of(self.copies.drawn(copies.colours_of(picture)))


def _check_alpha(picture: Image.Image) -> None:
    """ValueError if a pixel neither hides latents nor shows them."""
    if any(picture.getchannel("A").histogram()[1:255]):
        msg = "a pixel is neither opaque nor transparent"
        raise ValueError(msg)


class Regions:
    """The exact regions of a frame.

    ``blocks`` says which blocks are exact, and ``opened`` which exact blocks are open.  All blocks
    may be exact with the picture's alpha channel: ``has_alpha``.  ``before`` has the regions of the
    frame before, if the data builds on them.  OSError if the data is damaged.  The pixels are
    decoded when they are asked for.
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
        has_copies = _WITH_COPIES <= method < _WITH_COPIES + _AS_BEFORE
        method -= has_copies * _WITH_COPIES
        self.has_alpha = method == _WITH_ALPHA
        coded = opened = kept = exact = exact_opened = np.zeros(shape, np.bool_)
        if self._before is not None:
            exact, exact_opened = self._before.blocks, self._before.opened
        if method in (_ALL, _WITH_ALPHA):
            coded = np.ones(shape, np.bool_)
        elif method == _SOME:
            (coded, opened), rest = block_maps.unpacked(rest, shape, 2)
        elif method == _CHANGES:
            (coded, opened, kept), rest = block_maps.unpacked(rest, shape, 3)
        elif method == _AS_BEFORE:
            kept = exact
        else:
            msg = f"method {method} is not known"
            raise ValueError(msg)
        if (kept & ~exact).any() or (kept & coded).any() or (opened & ~coded).any():
            msg = "it keeps blocks that are not exact in the frame before, or maps contradict"
            raise ValueError(msg)
        self.blocks: Blocks = coded | kept
        self.opened: Blocks = opened | (kept & exact_opened)
        if not self.blocks.any():
            msg = "no block is exact"
            raise ValueError(msg)
        self._has_kept = bool(kept.any())
        self._parts: list[_Part] = []
        boxes = list(exact_parts.boxes(coded, self.size))
        for number, box in enumerate(boxes):
            copied = b""
            if has_copies:
                copied, rest = exact_parts.first(rest, f"part {number} of {len(boxes)}")
            bitstream, rest = exact_parts.first(rest, f"part {number} of {len(boxes)}")
            has_alpha = bool(_of_box(opened, box).any())
            if self.has_alpha:  # it may have a part that is opaque
                has_alpha = vp8l.has_alpha(bitstream)
            width, height = box[2] - box[0], box[3] - box[1]
            found = copies.parse(copied, (width, height)) if copied else None
            inside = _of_box(coded, box)
            part = _Part(box, inside, has_alpha, bitstream, found, self.has_alpha)
            vp8l.check(bitstream, part.size, has_alpha=has_alpha)
            self._parts.append(part)
        # This counts the work for all bitstreams that must be decoded to show the frame.
        self._work = sum(part.work for part in self._parts)
        if self._has_kept and self._before is not None:
            self._work += self._before._work
        if self._work > MOST_PIXELS * self.size[0] * self.size[1]:
            msg = f"more pixels in a row of EXCT than {MOST_PIXELS} times the picture's"
            raise ValueError(msg)
        if rest:
            msg = f"{len(rest)} bytes follow its last part"
            raise ValueError(msg)

    @property
    def share(self) -> float:
        """The part of the picture's pixels in exact blocks that are not open, in 0..1."""
        width, height = self.size
        heights, widths = (
            np.minimum(BLOCK, side - BLOCK * np.arange(count))
            for side, count in zip((height, width), self.blocks.shape, strict=True)
        )
        return float(heights @ (self.blocks & ~self.opened) @ widths) / (width * height)

    def rest(self, box: PixelBox, scale: int = 1) -> Iterator[PixelBox]:
        """The boxes inside of ``box`` that latents show, from top to bottom.

        Boxes are in pixels of the picture at 1/scale of its size.  Between two of them, `APART`
        rows of blocks or more are all exact.
        """
        side = BLOCK // scale
        left, top = box[0] // side, box[1] // side
        right, bottom = -(-box[2] // side), -(-box[3] // side)
        latent = ~self.blocks[top:bottom, left:right] | self.opened[top:bottom, left:right]
        rows = np.flatnonzero(latent.any(1))
        for run in np.split(rows, np.flatnonzero(np.diff(rows) > APART) + 1):
            if len(run):
                columns = np.flatnonzero(latent[run].any(0))
                yield (
                    max(box[0], (left + int(columns[0])) * side),
                    max(box[1], (top + int(run[0])) * side),
                    min(box[2], (left + int(columns[-1]) + 1) * side),
                    min(box[3], (top + int(run[-1]) + 1) * side),
                )

    def paste(self, picture: Image.Image, box: PixelBox, scale: int = 1) -> None:
        """Paste exact pixels onto ``picture``, which shows ``box``; see `rest`.

        OSError if the pixels are damaged.
        """
        for place, pixels, blocks in self._shown():
            left, top, right, bottom = (-(-edge // scale) for edge in place)
            inside = max(left, box[0]), max(top, box[1]), min(right, box[2]), min(bottom, box[3])
            if inside[0] >= inside[2] or inside[1] >= inside[3]:
                continue
            cut = inside[0] - left, inside[1] - top, inside[2] - left, inside[3] - top
            shown = (pixels() if scale == 1 else pixels().reduce(scale)).crop(cut)
            where = mask(blocks, scale).crop(cut)
            if not self.has_alpha:
                where = ImageChops.darker(shown.getchannel("A"), where)
            at = inside[0] - box[0], inside[1] - box[1]
            picture.paste(shown.convert("RGB").convert(picture.mode), at, where)

    def alpha(self) -> Image.Image:
        """The picture's alpha channel, of mode L; OSError if the pixels are damaged."""
        found = Image.new("L", self.size)
        for part in self._parts:
            found.paste(part.pixels().getchannel("A"), part.box[:2])
        return found

    def _shown(self) -> Iterator[tuple[PixelBox, Callable[[], Image.Image], Blocks]]:
        """Boxes, what decodes their pixels, and which of their blocks are exact."""
        if self._has_kept:
            yield (0, 0, *self.size), self._whole, self.blocks
            return
        for part in self._parts:
            yield part.box, part.pixels, part.coded

    def _whole(self) -> Image.Image:
        """The frame with its exact pixels.  It is kept, because the next frame may build on it."""
        if self._canvas is None:
            chain: list[Regions] = [self]
            while chain[-1]._canvas is None and chain[-1]._has_kept:
                before = chain[-1]._before
                assert before is not None
                chain.append(before)
            begun = chain[-1]._canvas
            canvas = Image.new("RGBA", self.size) if begun is None else begun.copy()
            for regions in reversed(chain):
                if regions._canvas is None:
                    for part in regions._parts:
                        pixels = part.pixels()
                        where = mask(part.coded).crop((0, 0, *pixels.size))
                        canvas.paste(pixels, part.box[:2], where)
            self._canvas, self._before = canvas, None
        return self._canvas
