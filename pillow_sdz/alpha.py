"""Alpha channels <-> the data of the ALPH chunk, without loss; docs/format.md specifies it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from io import BytesIO

from PIL import Image, ImageFile

from . import exact_parts, vp8l

# The first byte says what follows.
_CONSTANT = 0
_PNG = 1
_MAX_FILTER = 4  # of PNG's filter types (PNG specification, 9.2)
AS_BEFORE = bytes([2])  # nothing follows: the alpha channel is that of the frame before
_PARTS = 3
IN_EXACT = bytes([4])  # nothing follows: the alpha channel is in the chunk EXCT

OPAQUE = bytes([_CONSTANT, 255])


def encode(alpha: Image.Image) -> bytes:
    """The data of the ALPH chunk of an alpha channel, mode L."""
    return constant(alpha) or (_parts(alpha) if vp8l.is_available() else png(alpha))


def constant(alpha: Image.Image) -> bytes | None:
    """The data of the ALPH chunk of an alpha channel of one level; None if it has more levels."""
    levels = [level for level, count in enumerate(alpha.histogram()) if count]
    return bytes([_CONSTANT, *levels]) if len(levels) == 1 else None


def _parts(alpha: Image.Image) -> bytes:
    """The data of the ALPH chunk as bitstreams, in which alpha is green.  PNG takes more bytes."""
    found = [bytes([_PARTS])]
    for part in exact_parts.parts(alpha.size):
        levels = alpha.crop(exact_parts.box_of(part, alpha.size))
        nothing = Image.new("L", levels.size)
        bitstream = vp8l.encode(Image.merge("RGB", (nothing, levels, nothing)))
        found.append(exact_parts.pack(bitstream))
    return b"".join(found)


def png(alpha: Image.Image) -> bytes:
    """The data of the ALPH chunk as a PNG, even if it is a constant.  A PNG says its size."""
    file = BytesIO()
    # `getchannel` copies the picture's profile and more, and PNG would write them.
    alpha.info = {}
    alpha.save(file, "PNG", optimize=True)
    return bytes([_PNG]) + file.getvalue()


def painted(image: Image.Image, hidden: Image.Image | None) -> Image.Image:
    """The picture in black where it is hidden."""
    if hidden is None:
        return image
    found = image.copy()
    found.paste(0, (0, 0), hidden)
    return found


def replaced(image: Image.Image, hidden: Image.Image | None) -> Image.Image:
    """The picture with new colours where it is hidden, which take few bits."""
    if hidden is None:
        return image
    with_alpha = image.copy()
    with_alpha.putalpha(hidden.point([255] * 255 + [0]))
    return filled(with_alpha)


def filled(picture: Image.Image) -> Image.Image:
    """A picture of mode RGBA in RGB, with new colours where it is transparent.

    The new colours continue the visible ones smoothly.  They take few bits, and do not bleed into
    the edge.  (Pull-push: Gortler et al., "The Lumigraph", SIGGRAPH 1996.)
    """
    seen = picture.getchannel("A").point([0, *[255] * 255])
    colours = picture.convert("RGB")
    lowest, _ = seen.getextrema()
    if lowest:
        return colours
    if picture.size == (1, 1):
        return Image.new("RGB", picture.size)
    opaque = Image.merge("RGBA", (*colours.split(), seen))
    # Pillow weighs colours with alpha when it resizes: each becomes the mean of visible colours.
    width, height = (-(-n // 2) for n in picture.size)
    around = filled(opaque.resize((width, height), Image.Resampling.BOX))
    smooth = around.resize(picture.size, Image.Resampling.BILINEAR)
    return Image.composite(colours, smooth, seen)


def in_turn(alphas: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """The data of frames' ALPH chunks, with `AS_BEFORE` for equal frames.

    `AS_BEFORE` comes at most ``limit`` times in a row.
    """
    whole, repeated = b"", 0
    for alpha in alphas:
        repeated = repeated + 1 if alpha == whole and repeated < limit else 0
        whole = alpha
        yield AS_BEFORE if repeated else alpha


def _png_start(size: tuple[int, int]) -> bytes:
    """The first bytes of every PNG of an alpha channel of this size."""
    ihdr = struct.pack(">II5B", *size, 8, 0, 0, 0, 0)  # 8 bits, greyscale, not interlaced
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + ihdr


def _pixels_alone(png: bytes) -> bytes:
    """A PNG that starts with IHDR, with its chunks IHDR, IDAT and IEND alone.

    No other chunk is needed, and Pillow would inflate up to 64 MiB of texts in them.  ValueError if
    there is no IEND, or a second IHDR, which Pillow would use.
    """
    parts = [png[:8]]
    at, type = 8, b""
    while type != b"IEND":
        if at + 8 > len(png):
            msg = f"it ends at byte {len(png)}"
            raise ValueError(msg)
        length, type = struct.unpack_from(">I4s", png, at)
        if type == b"IHDR" and len(parts) > 1:
            msg = f"it has a second IHDR at byte {at}"
            raise ValueError(msg)
        end = at + 12 + length
        if type in (b"IHDR", b"IDAT", b"IEND"):
            parts.append(png[at:end])
        at = end
    return b"".join(parts)


def _check_pixels_are_there(png: bytes, size: tuple[int, int]) -> None:
    """ValueError if a PNG's IDAT chunks lack rows, or if a row has an unknown filter."""
    width, height = size
    packed, at = [], 8
    while at + 8 <= len(png):
        length, type = struct.unpack_from(">I4s", png, at)
        if type == b"IDAT":
            packed.append(png[at + 8 : at + 8 + length])
        at += 12 + length
    try:
        rows = zlib.decompressobj().decompress(b"".join(packed), height * (width + 1))
    except zlib.error as e:
        raise ValueError(str(e)) from e
    if len(rows) < height * (width + 1) or max(rows[:: width + 1]) > _MAX_FILTER:
        msg = "some of its pixels are missing"
        raise ValueError(msg)


def _of_parts(data: bytes, size: tuple[int, int]) -> Image.Image:
    """The alpha channel in the bitstreams of a chunk; ValueError if they are damaged."""
    bitstreams = []
    parts = [exact_parts.box_of(part, size) for part in exact_parts.parts(size)]
    for number, (left, top, right, bottom) in enumerate(parts):
        bitstream, data = exact_parts.first(data, f"part {number} of {len(parts)}")
        vp8l.check(bitstream, (right - left, bottom - top), has_alpha=False)
        bitstreams.append(bitstream)
    if data:
        msg = f"{len(data)} bytes follow its last part"
        raise ValueError(msg)
    found = Image.new("L", size)
    for bitstream, (left, top, right, bottom) in zip(bitstreams, parts, strict=True):
        picture = vp8l.decode(bitstream, (right - left, bottom - top), has_alpha=False)
        found.paste(picture.getchannel("G"), (left, top))
    return found


def decode(data: bytes, size: tuple[int, int]) -> Image.Image:
    """The alpha channel, mode L, in the data of an ALPH chunk; OSError if it is damaged."""
    method, coded = data[:1], data[1:]
    if method == bytes([_CONSTANT]) and len(coded) == 1:
        return Image.new("L", size, coded[0])
    # Sizes are checked before Pillow sees the pixels, so that a wrong size allocates nothing.
    if method == bytes([_PARTS]):
        try:
            return _of_parts(coded, size)
        except ValueError as e:
            msg = f"damaged SDZ file: chunk ALPH: {e}"
            raise OSError(msg) from e
    if method != bytes([_PNG]) or not coded.startswith(_png_start(size)):
        msg = "damaged SDZ file: chunk ALPH is neither a constant nor a PNG of the picture's size"
        raise OSError(msg)
    try:
        with Image.open(BytesIO(_pixels_alone(coded)), formats=["PNG"]) as picture:
            if (picture.mode, picture.size) != ("L", size):  # as Pillow has read them
                msg = f"it has the mode {picture.mode} and the size {picture.size}"
                raise ValueError(msg)
            if ImageFile.LOAD_TRUNCATED_IMAGES:
                # Pillow would show missing pixels as transparent, without an error.
                _check_pixels_are_there(coded, size)
            picture.load()
            return picture
    except Exception as e:  # Pillow's PNG reader may raise anything for hostile bytes
        msg = f"damaged SDZ file: the PNG in chunk ALPH: {e}"
        raise OSError(msg) from e
