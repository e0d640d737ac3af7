"""The EXIF, XMP and colour profile of a picture, carried from one format to another."""

from __future__ import annotations

from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

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


def metadata(image: Image.Image) -> dict[str, bytes]:
    """The EXIF, XMP and colour profile of a loaded picture, as options for saving it."""
    found: dict[str, Any] = {name: image.info.get(name) for name in ("icc_profile", "xmp", "exif")}
    if not found["exif"]:
        found["exif"] = _exif_of_tags(image.getexif())
    if isinstance(found["xmp"], str):
        found["xmp"] = found["xmp"].encode()
    return {name: data for name, data in found.items() if data}


def _exif_of_tags(stored: Image.Exif) -> bytes | None:
    """The EXIF of formats that keep it as tags of their own, TIFF above all."""
    kept = Image.Exif()
    for tag in DESCRIBING:
        if tag in stored:
            kept[tag] = stored[tag]
    for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if tags := stored.get_ifd(ifd):
            kept[ifd] = tags
    return kept.tobytes() if len(kept) else None


def options_for(image: Image.Image, format: str) -> dict[str, Any]:
    """Options that save the metadata of a decoded picture, as far as the format can hold it."""
    options: dict[str, Any] = dict(metadata(image))
    xmp = options.get("xmp")
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
