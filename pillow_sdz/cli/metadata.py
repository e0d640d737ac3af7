"""The EXIF, XMP and colour profile of a picture, carried from one format to another."""

from __future__ import annotations

from typing import Any

from PIL import ExifTags, Image, ImageOps, PngImagePlugin

# The tags of a TIFF that describe its picture. The others say how its pixels are stored.
DESCRIBING = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Orientation,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
)

UPRIGHT = 1  # EXIF's orientation of pixels that are to be shown as they are

# What turns the pixels of each other orientation (Exif 2.32, 4.6.4 A).
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def metadata(image: Image.Image) -> dict[str, bytes]:
    """The EXIF, XMP and colour profile of a loaded picture, as options for saving it."""
    found: dict[str, Any] = {name: image.info.get(name) for name in ("icc_profile", "xmp", "exif")}
    if not found["exif"]:
        found["exif"] = _exif_of_tags(image)
    if isinstance(found["xmp"], str):
        found["xmp"] = found["xmp"].encode()
    return {name: data for name, data in found.items() if data}


def _exif_of_tags(image: Image.Image) -> bytes | None:
    """The EXIF of formats that keep it as tags of their own, TIFF above all."""
    kept = Image.Exif()
    try:
        stored = image.getexif()
        for tag in DESCRIBING:
            if tag in stored:
                kept[tag] = stored[tag]
        for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            if tags := stored.get_ifd(ifd):
                kept[ifd] = tags
        return kept.tobytes() if len(kept) else None
    except Exception:  # damaged tags make Pillow raise anything; the picture is sound
        return None


def orientation(image: Image.Image) -> int:
    """How to turn the pixels, 1 to 8 as in EXIF; 1 if the metadata is damaged."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:  # as above
        return UPRIGHT
    return found if isinstance(found, int) and 1 <= found <= 8 else UPRIGHT


def upright(image: Image.Image) -> Image.Image:
    """The picture with its pixels turned, and metadata that says so; unchanged if upright."""
    return image if orientation(image) == UPRIGHT else ImageOps.exif_transpose(image)


def upright_metadata(kept: dict[str, bytes], turned: Image.Image) -> dict[str, bytes]:
    """The metadata of a picture, without what would turn its copy ``turned`` again."""
    found = {**kept}
    if "exif" in kept:
        exif = Image.Exif()
        exif.load(kept["exif"])
        exif.pop(ExifTags.Base.Orientation, None)
        found["exif"] = exif.tobytes()
    if "xmp" in kept:
        found["xmp"] = metadata(turned).get("xmp", b"")
    return found


def upright_alone(image: Image.Image) -> Image.Image:
    """A turned copy of the picture.  It has no metadata that says how to turn it."""
    plain = upright(image).copy()
    for name in ("exif", "xmp"):
        plain.info.pop(name, None)
    return plain


def save_options(kept: dict[str, bytes], format: str) -> dict[str, Any]:
    """Options of Pillow's that write this metadata to a file of the format."""
    options: dict[str, Any] = dict(kept)
    xmp = kept.get("xmp")
    if xmp and format == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
        options["pnginfo"] = text
    if format == "TIFF":
        tags = Image.Exif()
        if "exif" in options:
            tags.load(options.pop("exif"))
        if xmp:
            tags[ExifTags.Base.XMLPacket] = xmp
        options["tiffinfo"] = tags
    return options
