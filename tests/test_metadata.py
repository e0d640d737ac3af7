"""ICC profile, EXIF, XMP and the chunks that this version does not know."""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import Any

import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps

from pillow_sdz import chunks, container, order
from sdz_files import decode, encode, roundtrip

EXIF = Image.Exif()
EXIF[ExifTags.Base.Orientation] = 6
EXIF[ExifTags.Base.Make] = "Camera"
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>'
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

KINDS = {"icc_profile": PROFILE, "exif": EXIF.tobytes(), "xmp": XMP}


@pytest.mark.parametrize(("kind", "value"), KINDS.items())
def test_kept_from_the_keyword(photo: Image.Image, kind: str, value: bytes) -> None:
    reread = roundtrip(photo, **{kind: value})
    assert reread.info[kind] == value
    assert KINDS.keys() & reread.info.keys() == {kind}


@pytest.mark.parametrize(("kind", "value"), KINDS.items())
def test_only_the_profile_is_kept_from_the_picture(
    photo: Image.Image, kind: str, value: bytes
) -> None:
    """As with JPEG, PNG, WebP and AVIF: metadata that may identify a person must be given."""
    im = photo.copy()
    im.info[kind] = value
    assert (roundtrip(im).info.get(kind) == value) is (kind == "icc_profile")


def test_a_turned_photo_is_not_turned_twice(photo: Image.Image) -> None:
    """After a picture was turned, the orientation that the camera noted is wrong."""
    camera = BytesIO()
    photo.save(camera, "JPEG", exif=EXIF)
    with Image.open(camera) as im:
        turned = im.rotate(-90, expand=True)
    reread = roundtrip(turned)
    assert ImageOps.exif_transpose(reread).size == turned.size


def test_a_phones_photo_fits_a_small_target(photo: Image.Image) -> None:
    im = photo.copy()
    im.info["exif"] = bytes(30_000)  # with a thumbnail in it
    assert len(encode(im, target_size=1000)) <= 1000


@pytest.mark.parametrize(("kind", "value"), KINDS.items())
def test_keyword_wins_over_info(photo: Image.Image, kind: str, value: bytes) -> None:
    im = photo.copy()
    im.info[kind] = b"other"
    assert roundtrip(im, **{kind: value}).info[kind] == value


@pytest.mark.parametrize("nothing", [None, b""])
@pytest.mark.parametrize(("kind", "value"), KINDS.items())
def test_dropped(photo: Image.Image, kind: str, value: bytes, nothing: bytes | None) -> None:
    im = photo.copy()
    im.info[kind] = value
    assert kind not in roundtrip(im, **{kind: nothing}).info


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [3, ["list"], bytes((8 << 20) + 1)], ids=["int", "list", "large"])
def test_refused(photo: Image.Image, kind: str, value: Any) -> None:
    with pytest.raises(ValueError, match=kind):
        encode(photo, **{kind: value})


def test_exif_object_is_written_and_not_changed(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    reread = roundtrip(photo, exif=exif)
    assert dict(exif) == {ExifTags.Base.Orientation: 3}
    assert dict(reread.getexif()) == dict(exif)


def test_empty_exif_object_drops(photo: Image.Image) -> None:
    im = photo.copy()
    im.info["exif"] = EXIF.tobytes()
    assert "exif" not in roundtrip(im, exif=Image.Exif()).info


def test_unwritable_exif_is_refused(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = object()
    with pytest.raises(ValueError, match="exif cannot be written"):
        encode(photo, exif=exif)


def test_exif_prefix_is_not_stored(photo: Image.Image) -> None:
    with_prefix = encode(photo, exif=EXIF.tobytes())
    without = encode(photo, exif=EXIF.tobytes().removeprefix(b"Exif\0\0"))
    assert with_prefix == without
    assert b"Exif\0\0" not in with_prefix
    # JPEG's writer takes the bytes as they are and needs the prefix.
    assert decode(with_prefix).info["exif"].startswith(b"Exif\0\0")


def test_orientation_survives_and_is_applied_once(photo: Image.Image) -> None:
    im = photo.copy()
    reread = roundtrip(im, exif=EXIF)
    assert reread.getexif()[ExifTags.Base.Orientation] == 6
    upright = ImageOps.exif_transpose(reread)
    assert upright.size == (photo.height, photo.width)
    again = roundtrip(upright, exif=upright.getexif())
    assert ExifTags.Base.Orientation not in again.getexif()
    assert again.getexif()[ExifTags.Base.Make] == "Camera"


def test_from_jpeg_and_back(photo: Image.Image) -> None:
    jpeg = BytesIO()
    photo.save(jpeg, "JPEG", exif=EXIF, icc_profile=PROFILE, xmp=XMP)
    with Image.open(jpeg) as im:
        reread = roundtrip(im, exif=im.getexif(), xmp=im.info["xmp"])
    back = BytesIO()
    reread.save(back, "JPEG", **{kind: reread.info[kind] for kind in KINDS})
    with Image.open(back) as im:
        assert im.getexif()[ExifTags.Base.Orientation] == 6
        assert im.info["icc_profile"] == PROFILE
        assert im.info["xmp"] == XMP


def test_xmp_may_be_text(photo: Image.Image) -> None:
    assert roundtrip(photo, xmp="<é/>").info["xmp"] == "<é/>".encode()


def test_profile_of_inks_does_not_follow_into_rgb(photo: Image.Image) -> None:
    inks = bytearray(PROFILE)
    inks[16:20] = b"CMYK"
    im = photo.convert("CMYK")
    im.info["icc_profile"] = bytes(inks)
    assert "icc_profile" not in roundtrip(im).info
    assert roundtrip(im, icc_profile=PROFILE).info["icc_profile"] == PROFILE


@pytest.mark.parametrize(
    ("space", "mode", "kept"),
    [
        (b"GRAY", "L", True),
        (b"GRAY", "RGB", False),
        (b"RGB ", "L", False),
        (b"RGB ", "P", True),
        (b"RGB ", "YCbCr", True),
        (b"YCbr", "YCbCr", False),
        (b"Lab ", "RGB", False),
    ],
)
def test_a_profile_that_does_not_fit_is_dropped(
    photo: Image.Image, space: bytes, mode: str, kept: bool
) -> None:
    profile = bytearray(PROFILE)
    profile[16:20] = space
    im = photo.convert(mode)
    im.info["icc_profile"] = bytes(profile)
    assert ("icc_profile" in roundtrip(im).info) is kept


def test_a_profile_that_was_given_is_not_dropped_in_silence(photo: Image.Image) -> None:
    profile = bytearray(PROFILE)
    profile[16:20] = b"CMYK"
    with pytest.warns(UserWarning, match="icc_profile is not written: .* mode RGB") as caught:
        found = roundtrip(photo, icc_profile=bytes(profile))
    assert "icc_profile" not in found.info
    assert [warning.filename for warning in caught] == [encode.__code__.co_filename]
    photo = photo.copy()
    photo.info["icc_profile"] = bytes(profile)  # the picture's own, which nobody asked for
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        roundtrip(photo)


def test_a_grey_profile_does_not_follow_into_a_file_with_colour(photo: Image.Image) -> None:
    """The frames decide: if one is in colour, all are stored in colour."""
    profile = bytearray(PROFILE)
    profile[16:20] = b"GRAY"
    grey = photo.convert("L")
    grey.info["icc_profile"] = bytes(profile)
    for others, kept in (([grey], True), ([photo], False)):
        data = encode(grey, save_all=True, append_images=others)
        assert ("icc_profile" in decode(data).info) is kept


def test_unknown_chunks_are_kept_if_they_are_given(photo: Image.Image) -> None:
    """Nobody knows what is in them. So they are not copied unasked, and neither is EXIF."""
    chunks = [(b"abCd", b"safe to copy"), (b"abCD", b"tied to these pixels")]
    opened = roundtrip(photo, chunks=chunks)
    assert opened.info["sdz_chunks"] == chunks[:1]
    assert opened.copy().info["sdz_chunks"] == chunks[:1]
    assert "sdz_chunks" not in roundtrip(opened).info
    copied = roundtrip(opened, chunks=opened.info["sdz_chunks"])
    assert copied.info["sdz_chunks"] == chunks[:1]


def test_unknown_chunk_after_the_latents_is_found(photo: Image.Image) -> None:
    chunks = container.read(encode(photo))
    chunks.insert(-1, container.Chunk(b"abCd", b"late"))
    im = decode(container.write(chunks))
    assert im.info["sdz_chunks"] == [(b"abCd", b"late")]


@pytest.mark.parametrize(
    "chunks",
    [
        3,
        [3],
        [(b"abCd",)],
        [("abCd", b"")],
        [(b"abC", b"")],
        [(b"NEWS", b"")],
        [(b"eXIf", b"")],
        [(b"abCd", "text")],
        [(b"abCd", bytes((8 << 20) + 1))],
        [(b"abCd", b"")] * 993,
    ],
    ids=lambda chunks: repr(chunks)[:24],
)
def test_bad_chunks_are_refused(photo: Image.Image, chunks: Any) -> None:
    with pytest.raises(ValueError, match="chunk"):
        encode(photo, chunks=chunks)


def test_as_many_chunks_as_may_be(photo: Image.Image) -> None:
    # There are 1,000 with HEAD, DONE and one of each known kind.
    most = [(b"abCd", b"")] * (1000 - 2 - len(chunks.KINDS))
    assert len(most) == order.MAX_OTHERS
    assert roundtrip(photo, chunks=most, **KINDS).info["sdz_chunks"] == most


def test_more_chunks_are_refused_before_anything_is_encoded(
    photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pillow_sdz.codec.Encoder", None)
    message = f"chunks must have at most {order.MAX_OTHERS} entries, not 992"
    with pytest.raises(ValueError, match=message):
        encode(photo, chunks=[(b"abCd", b"")] * 992)


@pytest.mark.parametrize("size", [(8, 8), (64, 48)])
def test_alpha_does_not_carry_the_profile_again(size: tuple[int, int]) -> None:
    im = Image.merge("RGBA", [Image.radial_gradient("L").resize(size)] * 4)
    plain = len(encode(im))
    im.info["icc_profile"] = bytes(range(256)) * 12
    assert len(encode(im)) - plain <= 12 * 256 + 16
