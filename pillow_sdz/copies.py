"""Shapes that repeat in exact pixels, such as letters: each is kept once, and copied.

The shapes lie in a *sheet*, rows of pixels below the picture.  docs/format.md specifies how the
copies are stored.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .arrays import Bools
from .connected import joined, runs_of

Colours = NDArray[np.uint32]  # (H, W): a pixel's red, green, blue and alpha, as bytes
Ints = NDArray[np.int64]
Size = tuple[int, int]  # width, height

# The longest side of a shape.  Chosen: it is one byte, and letters are smaller.
MAX_SIDE = 255
# A picture has at most one copy for this many of its pixels.  Chosen: a copy of fewer pixels saves
# nothing.
PIXELS_PER_COPY = 16
# A copy takes as long as the bitstream of its own pixels and of this many more.  Measured: 3 us,
# and 5 ms for a megapixel of a flat bitstream.
PIXELS_OF_WORK = 512

# A connected area of one colour with this many pixels is no part of a letter.  It is what letters
# stand on.  Measured on the tuning set of benchmarks.graphics and on five web pages:
# docs/measurements.md#graphics-exact-and-regions.
GROUND = 400
# Bytes of a pixel of a shape, and of a copy.  Measured there, too.
BYTES_OF_PIXEL, BYTES_OF_COPY = 0.8, 2.0
# Copies are tried if they seem to save this many bytes.  Chosen.
FEWEST_SAVED = 64

_OPAQUE = 255
_NUMBER = 1 << 16  # numbers of two bytes are modulo this


def colours_of(picture: Image.Image) -> Colours:
    """The colours of a picture of mode RGB or RGBA."""
    found: Colours = np.array(picture.convert("RGBA")).view(np.uint32)[..., 0]
    return found


def picture_of(colours: Colours) -> Image.Image:
    """The picture of mode RGBA with these colours."""
    return Image.fromarray(colours.view(np.uint8).reshape(*colours.shape, 4))


class Copies(NamedTuple):
    """The shapes of a sheet, and the places that they are copied to, in this order.

    A shape's pixels are drawn if they are opaque and have another colour than the paper.
    """

    paper: tuple[int, int, int]
    widths: Ints  # of each shape
    heights: Ints
    rises: Ints  # how far a shape's last row is above the line on which letters stand: -128..127
    shapes: Ints  # of each copy
    lefts: Ints
    tops: Ints

    def corners(self, width: int) -> Iterator[tuple[int, int]]:
        """The left and the top corner of each shape in a sheet that is ``width`` pixels wide.

        Shapes stand side by side, from left to right, in rows.  If there is no place left, a new
        row begins below the highest shape of the last one.
        """
        left = top = highest = 0
        for w, h in zip(self.widths.tolist(), self.heights.tolist(), strict=True):
            if left + w > width:
                left, top, highest = 0, top + highest, 0
            yield left, top
            left += w
            highest = max(highest, h)

    def rows(self, width: int) -> int:
        """How many rows the sheet has."""
        tops = (top for _, top in self.corners(width))
        rows: int = max(top + h for top, h in zip(tops, self.heights.tolist(), strict=True))
        return rows

    @property
    def work(self) -> int:
        """How long the copies take: as the bitstream of this many pixels."""
        pixels = (self.widths * self.heights)[self.shapes]
        return int(pixels.sum()) + PIXELS_OF_WORK * len(self.shapes)

    def pack(self) -> bytes:
        """The data that `parse` reads."""
        right = self.lefts + self.widths[self.shapes]
        line = self.tops + (self.heights + self.rises)[self.shapes]
        gaps = self.lefts - np.concatenate([[0], right[:-1]])
        drops = np.diff(line, prepend=0)
        sizes = np.stack([self.widths, self.heights, self.rises & 255]).astype(np.uint8)
        planes = [
            plane.astype(np.uint8).tobytes()
            for values in (self.shapes, gaps, drops)
            for plane in (values & 255, values >> 8 & 255)
        ]
        if len(self.widths) <= 256:
            del planes[1]
        count = len(self.widths).to_bytes(2, "big")
        return zlib.compress(b"".join([bytes(self.paper), count, sizes.tobytes(), *planes]), 9)

    def drawn(self, colours: Colours) -> Colours:
        """The picture, from one with the sheet below it, in the same memory."""
        width = colours.shape[1]
        height = len(colours) - self.rows(width)
        picture, sheet = colours[:height], colours[height:]
        paper = _colour((*self.paper, _OPAQUE))
        inks = []
        corners = zip(self.corners(width), self.widths.tolist(), self.heights.tolist(), strict=True)
        for (left, top), w, h in corners:
            shape = sheet[top : top + h, left : left + w]
            opaque = shape.view(np.uint8)[..., 3::4] == _OPAQUE
            inks.append((shape, (shape != paper) & opaque, w, h))
        for number, left, top in zip(
            self.shapes.tolist(), self.lefts.tolist(), self.tops.tolist(), strict=True
        ):
            shape, ink, w, h = inks[number]
            np.copyto(picture[top : top + h, left : left + w], shape, where=ink)
        return picture


def parse(data: bytes, size: Size) -> Copies:
    """The copies of a picture of ``size``; ValueError if they are damaged."""
    width, height = size
    most = width * height // PIXELS_PER_COPY
    start = 5
    inflater = zlib.decompressobj()
    try:
        whole = inflater.decompress(data, start + 3 * (_NUMBER - 1) + 6 * most)
    except zlib.error as e:
        raise ValueError(str(e)) from e
    count = int.from_bytes(whole[3:start], "big")
    planes = 5 if count <= 256 else 6
    copies, left_over = divmod(len(whole) - start - 3 * count, planes)
    if (
        not inflater.eof
        or inflater.unused_data
        or not count
        or left_over
        or not count <= copies <= most
    ):
        msg = "its copies do not have a number of bytes that is possible"
        raise ValueError(msg)
    sizes = np.frombuffer(whole, np.uint8, 3 * count, start).reshape(3, count)
    widths, heights = sizes[:2].astype(np.int64)
    rises = sizes[2].view(np.int8).astype(np.int64)
    numbers = np.frombuffer(whole, np.uint8, planes * copies, start + 3 * count)
    values = numbers.reshape(planes, copies).astype(np.int64)
    if planes == 5:
        values = np.insert(values, 1, 0, 0)
    shapes, gaps, drops = values[::2] + 256 * values[1::2]
    if not widths.all() or not heights.all() or widths.max() > width or shapes.max() >= count:
        msg = "a shape is empty, too wide or not there"
        raise ValueError(msg)
    before = np.concatenate([[0], widths[shapes[:-1]]])
    lefts = np.cumsum(gaps + before) % _NUMBER
    tops = (np.cumsum(drops) - (heights + rises)[shapes]) % _NUMBER
    if (lefts + widths[shapes]).max() > width or (tops + heights[shapes]).max() > height:
        msg = "a copy outside of the picture"
        raise ValueError(msg)
    paper = whole[0], whole[1], whole[2]
    found = Copies(paper, widths, heights, rises, shapes, lefts, tops)
    if found.rows(width) > height:
        msg = "the sheet of shapes is higher than the picture"
        raise ValueError(msg)
    return found


def find(colours: Colours) -> tuple[Colours, Copies] | None:
    """A picture without the shapes that repeat in it, with their sheet below; and the copies.

    None if copies do not seem to save anything.
    """
    ground, paper = _ground(colours)
    if BYTES_OF_PIXEL * (ground.size - np.count_nonzero(ground)) < FEWEST_SAVED:
        return None
    groups = _Groups(colours, ~ground)
    shapes, firsts, counts = groups.equal()
    pixels = groups.pixels[firsts]
    saved = BYTES_OF_PIXEL * (counts - 1) * pixels - BYTES_OF_COPY * (counts + 1)
    chosen = np.flatnonzero((saved > 0) & (groups.sizes[:, firsts] <= MAX_SIDE).all(0))
    if saved[chosen].sum() < FEWEST_SAVED:
        return None
    inks = [groups.ink(first, paper) for first in firsts[chosen].tolist()]
    order = sorted(range(len(inks)), key=lambda n: (inks[n].shape[0], inks[n].tobytes()))
    names = np.full(len(firsts), -1)
    names[chosen[order]] = np.arange(len(order))
    copied = names[shapes]
    widths, heights = groups.sizes[:, firsts[chosen[order]]]
    places = np.flatnonzero(copied >= 0)
    lefts, tops = groups.corners[:, places]
    red, green, blue, _ = _bytes(paper)
    found = _in_lines(
        Copies((red, green, blue), widths, heights, heights * 0, copied[places], lefts, tops)
    )
    height, width = colours.shape
    rows = found.rows(width)
    if rows > height or len(places) > colours.size // PIXELS_PER_COPY:
        return None
    whole = np.full((height + rows, width), paper, np.uint32)
    removed = groups.of(copied >= 0) & (colours != paper)
    whole[:height] = _filled(colours, removed, ground, paper)
    for number, (left, top) in zip(order, found.corners(width), strict=True):
        ink = inks[number]
        whole[height + top :, left:][: ink.shape[0], : ink.shape[1]] = ink
    # Two shapes may have the same hash, although nobody has ever seen it.
    return (whole, found) if (found.drawn(whole.copy()) == colours).all() else None


def _bytes(colour: np.uint32) -> tuple[int, ...]:
    return tuple(np.array([colour], np.uint32).tobytes())


def _colour(levels: tuple[int, ...]) -> np.uint32:
    return np.uint32(np.frombuffer(bytes(levels), np.uint32)[0])


def _ground(colours: Colours) -> tuple[Bools, np.uint32]:
    """The pixels that letters stand on, and the most frequent colour."""
    begins = np.ones(colours.shape, np.bool_)
    begins[:, 1:] = colours[:, 1:] != colours[:, :-1]
    runs = runs_of(begins)
    joins = (colours[1:] == colours[:-1]) & (begins[1:] | begins[:-1])
    lengths = np.bincount(runs.ravel())
    names = joined(runs[:-1][joins], runs[1:][joins], len(lengths))
    areas = np.bincount(names, lengths, len(lengths))
    kinds, kind = np.unique(colours[begins], return_inverse=True)
    transparent = kinds.view(np.uint8)[3::4] != _OPAQUE
    frequency = np.where(transparent, 0, np.bincount(kind, lengths))
    ground = (areas[names] >= GROUND) | transparent[kind]
    return ground[runs], np.uint32(kinds[frequency.argmax()])


class _Groups:
    """Connected groups of pixels: also at corners."""

    def __init__(self, colours: Colours, pixels: Bools) -> None:
        begins = pixels.copy()
        begins[:, 1:] &= ~pixels[:, :-1]
        runs = runs_of(begins)
        both = pixels[1:] & pixels[:-1] & (begins[1:] | begins[:-1])
        falling = pixels[1:, 1:] & pixels[:-1, :-1] & ~pixels[1:, :-1] & ~pixels[:-1, 1:]
        rising = pixels[1:, :-1] & pixels[:-1, 1:] & ~pixels[1:, 1:] & ~pixels[:-1, :-1]
        above = runs[:-1][both], runs[:-1, :-1][falling], runs[:-1, 1:][rising]
        below = runs[1:][both], runs[1:, 1:][falling], runs[1:, :-1][rising]
        names = joined(np.concatenate(above), np.concatenate(below), int(begins.sum()))
        found, numbers = np.unique(names, return_inverse=True)
        self._colours = colours
        self._where = np.nonzero(pixels)
        self._group = numbers[runs[pixels]]
        self._names = np.full(colours.shape, -1, np.int32)
        self._names[pixels] = self._group
        count = len(found)
        ends = []
        for at, size in zip(self._where, colours.shape, strict=True):
            low, high = np.full(count, size), np.zeros(count, np.int64)
            np.minimum.at(low, self._group, at)
            np.maximum.at(high, self._group, at)
            ends.append((low, high + 1))
        (top, bottom), (left, right) = ends
        self.pixels = np.bincount(self._group, minlength=count)
        self.corners = np.stack([left, top])
        self.sizes = np.stack([right - left, bottom - top])

    def equal(self) -> tuple[Ints, Ints, Ints]:
        """The shape of each group, and of each shape the first group and how many there are."""
        rows, columns = self._where
        left, top = self.corners[:, self._group]
        places = ((rows - top) << 16 | (columns - left)).astype(np.uint64)
        values = places << np.uint64(32) | self._colours[self._where]
        hashes = np.zeros(len(self.pixels), np.uint64)
        np.add.at(hashes, self._group, _mixed(values))
        _, firsts, shapes, counts = np.unique(
            hashes, return_index=True, return_inverse=True, return_counts=True
        )
        return shapes, firsts, counts

    def ink(self, group: int, paper: np.uint32) -> Colours:
        """The pixels of a group, on paper."""
        (left, top), (width, height) = self.corners[:, group], self.sizes[:, group]
        box = slice(top, top + height), slice(left, left + width)
        return np.where(self._names[box] == group, self._colours[box], paper)

    def of(self, groups: Bools) -> Bools:
        """The pixels of some groups."""
        found: Bools = np.append(groups, False)[self._names]
        return found


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of each value (the finaliser of MurmurHash3, which is in the public domain)."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ values >> np.uint64(33)) * np.uint64(factor)
    return values ^ values >> np.uint64(33)


def _filled(colours: Colours, removed: Bools, ground: Bools, paper: np.uint32) -> Colours:
    """The picture with the ground to the left where pixels are removed."""
    at = np.where(ground, np.arange(colours.shape[1], dtype=np.int32), np.int32(-1))
    nearest = np.maximum.accumulate(at, 1)
    behind = np.where(nearest < 0, paper, np.take_along_axis(colours, nearest, 1))
    return np.where(removed, behind, colours)


def _in_lines(copies: Copies) -> Copies:
    """The same copies in the order of reading, with the rises of their shapes."""
    bottoms = copies.tops + copies.heights[copies.shapes]
    tolerance = np.median(copies.heights[copies.shapes]) / 2
    line = np.zeros(len(bottoms), np.int64)
    baselines: list[int] = []
    order = np.argsort(bottoms, kind="stable")
    start = 0
    for at in range(1, len(order) + 1):
        if at == len(order) or bottoms[order[at]] - bottoms[order[start]] > tolerance:
            members = order[start:at]
            line[members] = len(baselines)
            baselines.append(int(np.bincount(bottoms[members]).argmax()))
            start = at
    above = np.clip(np.array(baselines)[line] - bottoms, -128, 127)
    frequency = np.zeros((len(copies.widths), 256), np.int64)
    np.add.at(frequency, (copies.shapes, above + 128), 1)
    order = np.lexsort((copies.lefts, line))
    return copies._replace(
        rises=frequency.argmax(1) - 128,
        shapes=copies.shapes[order],
        lefts=copies.lefts[order],
        tops=copies.tops[order],
    )
