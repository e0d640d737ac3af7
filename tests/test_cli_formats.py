"""`sdz decode` into formats that hold less than a picture has: orientation, metadata, alpha."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from PIL import ExifTags, Image, ImageChops, ImageCms, ImageOps, ImageStat

from pillow_sdz.cli import main
from pillow_sdz.cli.formats import holds_mode, holds_orientation
from pillow_sdz.cli.pictures import register_plugins

pytestmark = pytest.mark.usefixtures("one_process")

register_plugins()
Image.init()

# What Pillow has a writer for only if somebody adds one; what is black and white alone, or has
# sizes of its own; what Pillow is about to drop.
NOT_FOR_PICTURES = {"BUFR", "GRIB", "HDF5", "WMF", "BLP", "MSP", "PALM", "XBM", "ICNS", "IM", "SDZ"}
FORMATS = sorted(
    (Image.SAVE.keys() & set(Image.registered_extensions().values())) - NOT_FOR_PICTURES
)

# Formats that are shown turned where EXIF says so.
WITH_ORIENTATION = {"AVIF", "HEIF", "JPEG", "JXL", "MPO", "PNG", "TIFF", "WEBP"}

# Formats with an alpha channel, or a transparent colour.
WITH_ALPHA = {
    *("AVIF", "DDS", "GIF", "HEIF", "ICO", "JPEG2000", "JXL", "PDF", "PNG", "QOI", "SGI"),
    *("TGA", "TIFF", "WEBP"),
}

TURNED = 6  # to be turned by 90 degrees to the right


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def exif(**more: bytes) -> bytes:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = TURNED
    tags[ExifTags.Base.Artist] = "Vivian"
    return tags.tobytes()


def suffix_of(format: str) -> str:
    return next(s for s, f in Image.registered_extensions().items() if f == format)


def decoded(format: str, *options: str) -> Image.Image | None:
    """x.sdz, decoded into the format; None if Pillow cannot read it."""
    name = f"y{suffix_of(format)}"
    assert main(["decode", "x.sdz", "-o", name, "--force", *options]) == 0
    try:
        with Image.open(name) as image:
            image.load()
            return image
    except OSError:
        assert format in ("EPS", "PDF")
        assert Path(name).stat().st_size > 0
        return None


@pytest.mark.parametrize("format", FORMATS)
def test_the_picture_is_shown_upright(
    photo: Image.Image, format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the format has EXIF, the EXIF says how to turn it. Otherwise its pixels are turned."""
    photo.save("x.sdz", exif=exif())
    assert holds_orientation(format) is (format in WITH_ORIENTATION)
    image = decoded(format)
    assert capsys.readouterr().err == ""
    if image is not None and format != "ICO":  # whose sides are at most 256 and the same
        shown = ImageOps.exif_transpose(image)
        assert shown.size == (43, 61)
        with Image.open("x.sdz") as original:
            expected = ImageOps.exif_transpose(original)
        # Formats with loss change it; turned another way it is 60 away.
        difference = ImageChops.difference(shown.convert("L"), expected.convert("L"))
        assert ImageStat.Stat(difference).mean[0] < 5


def test_all_frames_are_turned(photo: Image.Image) -> None:
    photo.save(
        "x.sdz",
        save_all=True,
        append_images=[photo.rotate(90), photo.rotate(180)],
        duration=[10, 20, 30],
        exif=exif(),
    )
    assert main(["decode", "x.sdz", "-o", "y.gif"]) == 0
    with Image.open("y.gif") as image:
        assert (image.n_frames, image.size) == (3, (43, 61))
        durations = []
        for number in range(3):
            image.seek(number)
            durations.append(image.info["duration"])
    assert durations == [10, 20, 30]


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("format", FORMATS)
def test_transparency_finds_a_way(
    photo: Image.Image, format: str, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is kept if the format can hold it.

    Otherwise the picture is put on white, with a message.
    """
    picture = photo.convert(mode)
    picture.putalpha(Image.linear_gradient("L").resize(photo.size).point(lambda v: 255 * (v > 99)))
    picture.save("x.sdz")
    image = decoded(format)
    err = capsys.readouterr().err
    if format in WITH_ALPHA:
        assert err == ""
        if image is not None:
            assert image.has_transparency_data
            alpha = image.convert("RGBA").getchannel("A")
            bottom = image.height - 2
            assert (alpha.getpixel((20, 2)), alpha.getpixel((20, bottom))) == (0, 255)
    else:
        assert err == f"sdz: x.sdz: put on white, because {format} holds no transparency\n"
        if image is not None:
            assert min(image.convert("RGB").getpixel((20, 2))) > 240


def test_an_opaque_picture_is_not_put_on_white(
    photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    photo.save("x.sdz")
    decoded("JPEG")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("format", FORMATS)
def test_opaque_pictures_go_everywhere(
    photo: Image.Image, format: str, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photo.convert(mode).save("x.sdz")
    decoded(format)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("format", ["MSP", "XBM", "PALM"])
def test_a_format_that_holds_no_such_picture_says_so(
    photo: Image.Image, format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photo.save("x.sdz")
    assert main(["decode", "x.sdz", "-o", f"y{suffix_of(format)}"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("sdz: x.sdz: cannot write mode RGB as ")
    assert not Path(f"y{suffix_of(format)}").exists()


def long_exif() -> bytes:
    """EXIF of more than the 65,533 bytes of a JPEG's segment.

    It says that the picture is to be turned.
    """
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = TURNED
    tags[ExifTags.Base.ImageDescription] = "x" * 70_000
    return tags.tobytes()


def test_exif_that_is_too_long(photo: Image.Image, capsys: pytest.CaptureFixture[str]) -> None:
    """There is a warning. The pixels are turned, because no EXIF says any more how to turn them."""
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo.save("x.sdz", exif=long_exif(), xmp=xmp, icc_profile=profile)
    image = decoded("JPEG")
    assert capsys.readouterr().err == (
        "sdz: x.sdz: JPEG does not take its exif: EXIF data is too long\n"
    )
    assert image is not None
    assert image.size == (43, 61)
    assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    assert (image.info["xmp"], image.info["icc_profile"]) == (xmp, profile)


def test_xmp_that_is_too_long(photo: Image.Image, capsys: pytest.CaptureFixture[str]) -> None:
    photo.save("x.sdz", exif=exif(), xmp=b"<" + b" " * 70_000)
    image = decoded("JPEG")
    assert capsys.readouterr().err == (
        "sdz: x.sdz: JPEG does not take its xmp: XMP data is too long\n"
    )
    assert image is not None
    assert image.getexif()[ExifTags.Base.Artist] == "Vivian"
    assert "xmp" not in image.info


MALFORMED = {
    "no TIFF": b"Exif\0\0nonsense",
    "cut": b"Exif\0\0MM\0*\0\0\0\x08\0\x05",
    "endless": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x87\x69\0\x04\0\0\0\x01\0\0\0\x08\0\0\0\0",
    "wrong type": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x63\0\0\0\x01\0\x06\0\0\0\0\0\0",
    "count": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x0e\0\x02\xff\xff\xff\xff\0\0\0\x08\0\0\0\0",
    "orientation": b"Exif\0\0MM\0*\0\0\0\x08"
    + struct.pack(">HHHIHHI", 1, ExifTags.Base.Orientation, 3, 1, 77, 0, 0),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("format", FORMATS)
def test_malformed_metadata_never_costs_the_picture(
    photo: Image.Image, format: str, name: str
) -> None:
    """Some formats take it and some do not. Pillow warns of it only with some formats."""
    photo.save("x.sdz", exif=MALFORMED[name], xmp=b"\xff\xfe<", icc_profile=b"profile")
    name = f"y{suffix_of(format)}"
    assert main(["decode", "x.sdz", "-o", name]) == 0
    assert Path(name).stat().st_size > 0


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_exif_does_not_stop_other_commands(
    photo: Image.Image, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photo.save("x.png", exif=MALFORMED[name])
    assert main(["encode", "x.png"]) == 0
    assert main(["encode", "x.png", "--strip", "-o", "y.sdz"]) == 0
    assert main(["info", "--json", "x.sdz"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["orientation"], told["place"]) == (1, False)
    assert main(["compare", "x.png"]) == 0


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_what_is_not_known_of_a_format_is_asked_of_pillow(mode: str) -> None:
    """If Pillow can only write a format, everything that it accepts counts as kept."""
    assert holds_mode("PDF", mode)
    assert not holds_mode("BUFR", mode)
