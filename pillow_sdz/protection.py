"""Which places of a picture get a higher quality: boxes, the places in a mask, or the faces."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .codings import quality_map

FACES = "faces"

# How far a face reaches beyond the detector's box, as a part of the box's side.  Chosen: dlib's
# boxes end at the brows and at the chin.
AROUND_A_FACE = 0.1
# A face is the ellipse in its box.  From its inside to its outside, the protection falls over this
# part of its radius.  Chosen.
SOFT_EDGE = 0.6
# A larger picture is reduced to this many pixels before faces are searched.  Chosen: this takes a
# core one second.
SOUGHT_PIXELS = 4_000_000
# dlib's detector finds faces of 80 pixels or more.  In a picture enlarged by 2, it finds those of
# 40.
LARGEST_SCALE = 2

# A fully protected place has a quality that is higher by this.  Chosen: from low to medium.
HIGHER = 20
# The middle of a face has a quality that is higher by this.  Chosen: see
# docs/measurements.md#protection.
HIGHER_IN_FACES = 50

NEEDS_EXTRA = 'protect="faces" needs dlib: run pip install "pillow-sdz[faces]"'

Box = tuple[float, float, float, float]
Weights = NDArray[np.float32]  # of each cell, 0 for no protection to 1


def weights(protect: object, image: Image.Image, cell: int) -> Weights:
    """The protection of each cell, (ceil(H / cell), ceil(W / cell)), 0..1.

    A cell has ``cell`` x ``cell`` pixels: those of 2x2 latents, which may have their own quality.
    ``protect`` is one of these: a list of boxes (left, top, right, bottom) in pixels of ``image``;
    a mask of mode L and any size, 255 for the places to protect; "faces".  A cell gets the highest
    protection of its pixels.  With "faces", it gets the square root of its part that is a face, so
    that the edges of small faces take few bytes.  ValueError if ``protect`` is something else, or
    if a box lies outside of the picture.  OSError if it is "faces" and dlib is not installed.
    """
    if isinstance(protect, Image.Image):
        return _of_mask(protect, image.size, cell)
    if isinstance(protect, str) and protect == FACES:
        return _of_faces(faces(image), image.size, cell)
    if isinstance(protect, (list, tuple)):
        return _of_boxes([_checked(box, image.size) for box in protect], image.size, cell)
    what = repr(protect) if isinstance(protect, str) else type(protect).__name__
    msg = f'protect must be "faces", a list of boxes, or a picture of mode L, not {what}'
    raise ValueError(msg)


def offsets(protect: object, image: Image.Image, cell: int) -> NDArray[np.int32]:
    """The map of `codings.quality_map` that protects cells; the parameters are as in `weights`."""
    higher = HIGHER_IN_FACES if isinstance(protect, str) else HIGHER
    points = weights(protect, image, cell) * (100 * higher / quality_map.UNIT)
    steps: NDArray[np.int32] = np.rint(points).astype(np.int32)
    return steps


def faces(image: Image.Image) -> list[Box]:
    """The boxes of the faces in a picture of any mode, in its pixels.

    OSError if dlib is not installed.
    """
    try:
        import dlib
    except ImportError as e:
        raise OSError(NEEDS_EXTRA) from e
    scale = min(LARGEST_SCALE, math.sqrt(SOUGHT_PIXELS / (image.width * image.height)))
    size = tuple(max(1, round(side * scale)) for side in image.size)
    enlarged = image.convert("RGB").resize((size[0], size[1]), Image.Resampling.BILINEAR)
    found = []
    for face in dlib.get_frontal_face_detector()(np.asarray(enlarged), 0):
        across, down = AROUND_A_FACE * face.width(), AROUND_A_FACE * face.height()
        edges = (
            face.left() - across,
            face.top() - down,
            face.right() + 1 + across,
            face.bottom() + 1 + down,
        )
        left, top, right, bottom = (edge / scale for edge in edges)
        found.append((left, top, right, bottom))
    return found


def _checked(box: object, size: tuple[int, int]) -> Box:
    """A box of numbers that is not empty and not outside of a picture (width, height)."""
    is_box = isinstance(box, (list, tuple)) and len(box) == 4 and all(map(_is_number, box))
    if not is_box:
        msg = f"protect must have boxes (left, top, right, bottom) of numbers, not {box!r}"
        raise ValueError(msg)
    assert isinstance(box, Sequence)
    left, top, right, bottom = map(float, box)
    if not (left < right and top < bottom):
        msg = f"protect has an empty box: {box!r}"
        raise ValueError(msg)
    if not (left < size[0] and top < size[1] and right > 0 and bottom > 0):
        msg = f"protect has a box outside of the picture of {size[0]}x{size[1]} pixels: {box!r}"
        raise ValueError(msg)
    return left, top, right, bottom


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _of_boxes(boxes: Iterable[Box], size: tuple[int, int], cell: int) -> Weights:
    """1 for the cells that a box touches, in a picture (width, height)."""
    found = np.zeros(_shape(size, cell), np.float32)
    for left, top, right, bottom in boxes:
        rows = slice(max(0, math.floor(top / cell)), max(0, math.ceil(bottom / cell)))
        columns = slice(max(0, math.floor(left / cell)), max(0, math.ceil(right / cell)))
        found[rows, columns] = 1
    return found


def _of_faces(boxes: Iterable[Box], size: tuple[int, int], cell: int) -> Weights:
    """The square root of each cell's part that is in an ellipse; edges of ellipses are soft."""
    found = np.zeros(_shape(size, cell), np.float32)
    for box in boxes:
        cells, distances = [], []
        for side, count in ((1, found.shape[0]), (0, found.shape[1])):
            middle, radius = (box[side] + box[side + 2]) / 2, (box[side + 2] - box[side]) / 2
            reach = (1 + SOFT_EDGE / 2) * radius
            part = slice(
                min(count, max(0, math.floor((middle - reach) / cell))),
                min(count, max(0, math.ceil((middle + reach) / cell))),
            )
            places = np.arange(part.start * cell, part.stop * cell) + 0.5
            cells.append(part)
            distances.append((places - middle) / radius)
        distance = np.hypot(distances[0][:, None], distances[1])
        inside = np.clip((1 - distance) / SOFT_EDGE + 0.5, 0, 1)
        rows, columns = (part.stop - part.start for part in cells)
        parts = inside.reshape(rows, cell, columns, cell).mean((1, 3))
        here = cells[0], cells[1]
        found[here] = np.maximum(found[here], np.sqrt(parts))
    return found


def _of_mask(mask: Image.Image, size: tuple[int, int], cell: int) -> Weights:
    """The largest level of a mask in each cell of a picture (width, height)."""
    if mask.mode != "L":
        msg = f'protect must be a picture of mode L, not {mask.mode}: use convert("L")'
        raise ValueError(msg)
    if 0 in mask.size:
        msg = f"protect must have pixels, not a size of {mask.width}x{mask.height}"
        raise ValueError(msg)
    levels = np.asarray(mask)
    for axis, (cells, side) in enumerate(zip(_shape(size, cell), reversed(size), strict=True)):
        # Where each cell begins and ends in the mask, which may be smaller than the cells.
        edges = np.minimum(np.arange(cells + 1) * cell, side) * levels.shape[axis] / side
        first = np.minimum(np.floor(edges[:-1]).astype(int), levels.shape[axis] - 1)
        last = np.maximum(np.ceil(edges[1:]).astype(int), first + 1)
        parts = [
            levels.take(range(start, stop), axis).max(axis)
            for start, stop in zip(first, last, strict=True)
        ]
        levels = np.stack(parts, axis)
    found: Weights = levels.astype(np.float32) / np.float32(255)
    return found


def _shape(size: tuple[int, int], cell: int) -> tuple[int, int]:
    """The rows and columns of cells of a picture (width, height)."""
    return -(-size[1] // cell), -(-size[0] // cell)
