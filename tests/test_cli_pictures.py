"""What pictures the command line reads: 16 bits a channel, HEIC and JPEG XL, metadata."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageChops, ImageOps, ImageStat

from pillow_sdz.chunks import MAX_METADATA
from pillow_sdz.cli import main
from sdz_files import encode

pytestmark = pytest.mark.usefixtures("one_process")

TURNED = 6  # EXIF's orientation of a picture to be turned by 90 degrees to the right


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# 16 bits a channel


@pytest.fixture
def deep() -> np.ndarray[Any, np.dtype[np.uint16]]:
    """A grey ramp over all of 16 bits, (40, 64)."""
    return np.linspace(0, 65535, 40 * 64).round().astype(np.uint16).reshape(40, 64)


def grey_file(values: np.ndarray[Any, Any], name: str) -> None:
    if name.endswith(".pgm"):
        height, width = values.shape
        head = f"P5 {width} {height} 65535\n".encode()
        Path(name).write_bytes(head + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(name)


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_grey_of_16_bits_is_scaled(
    deep: np.ndarray[Any, np.dtype[np.uint16]], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Values are divided by 257. Pillow alone would cut them at 255."""
    grey_file(deep, name)
    assert main(["encode", name]) == 0
    assert capsys.readouterr().err == f"sdz: {name}: its 16 bits a channel are scaled to 8\n"
    expected = Image.fromarray((deep / 257).round().astype(np.uint8))
    assert Path("x.sdz").read_bytes() == encode(expected)
    assert main(["compare", name]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{name}: 64x40, L compared in RGB\n")
    assert err == f"sdz: {name}: its 16 bits a channel are scaled to 8\n"


def test_the_byte_order_does_not_matter(deep: np.ndarray[Any, np.dtype[np.uint16]]) -> None:
    for order, mode in (("<", "I;16"), (">", "I;16B")):
        data = deep.astype(f"{order}u2").tobytes()
        Image.frombytes(mode, (64, 40), data).save("x.tif")
        assert main(["encode", "x.tif", "--force"]) == 0
        expected = Image.fromarray((deep / 257).round().astype(np.uint8))
        assert Path("x.sdz").read_bytes() == encode(expected)


def test_a_transparent_value_of_16_bits(deep: np.ndarray[Any, np.dtype[np.uint16]]) -> None:
    deep[:, :32] = 40_000
    Image.fromarray(deep).save("x.png", transparency=40_000)
    assert main(["encode", "x.png"]) == 0
    with Image.open("x.sdz") as image:
        alpha = np.asarray(image.getchannel("A"))
    np.testing.assert_array_equal(alpha, np.where(deep == 40_000, 0, 255))


def png_of_16_bits(channels: int, values: np.ndarray[Any, Any]) -> bytes:
    """A PNG that Pillow cannot write: several channels of 16 bits."""
    height, width = values.shape[:2]
    colour = {2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    framed = (
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_several_channels_of_16_bits(
    deep: np.ndarray[Any, np.dtype[np.uint16]],
    channels: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Pillow scales them itself. A message says so here, too."""
    values = np.stack([deep, deep.T.reshape(40, 64), deep[::-1], deep[:, ::-1]][:channels], -1)
    Path("x.png").write_bytes(png_of_16_bits(channels, values))
    assert main(["encode", "x.png"]) == 0
    assert capsys.readouterr().err == "sdz: x.png: its 16 bits a channel are scaled to 8\n"
    with Image.open("x.png") as image:
        assert Path("x.sdz").read_bytes() == encode(image)


def test_a_ppm_of_16_bits(
    deep: np.ndarray[Any, np.dtype[np.uint16]], capsys: pytest.CaptureFixture[str]
) -> None:
    data = np.stack([deep] * 3, -1).astype(">u2").tobytes()
    Path("x.ppm").write_bytes(b"P6 64 40 65535\n" + data)
    assert main(["encode", "x.ppm"]) == 0
    assert capsys.readouterr().err == "sdz: x.ppm: its 16 bits a channel are scaled to 8\n"


def test_an_animation_of_16_bits(deep: np.ndarray[Any, np.dtype[np.uint16]]) -> None:
    first, second = Image.fromarray(deep), Image.fromarray(deep[::-1].copy())
    first.save("x.png", save_all=True, append_images=[second], duration=[10, 20])
    assert main(["encode", "x.png"]) == 0
    with Image.open("x.sdz") as image, Image.open("x.png") as original:
        for number in range(2):
            image.seek(number)
            original.seek(number)
            assert image.info["duration"] == 10 * (number + 1)
            expected = Image.fromarray((np.asarray(original) / 257).round().astype(np.uint8))
            assert ImageStat.Stat(ImageChops.difference(image, expected)).mean[0] < 6


@pytest.mark.parametrize("suffix", ["png", "tif", "ppm", "jpg", "webp"])
def test_eight_bits_are_no_message(
    photo: Image.Image, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photo.save(f"x.{suffix}")
    photo.convert("L").save(f"y.{suffix}")
    assert main(["encode", f"x.{suffix}", f"y.{suffix}"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_what_has_no_range_is_not_guessed(dtype: type, capsys: pytest.CaptureFixture[str]) -> None:
    """Values of 32 bits may mean anything."""
    Image.fromarray(np.full((8, 8), 7, dtype)).save("x.tif")
    assert main(["encode", "x.tif"]) == 1
    assert "scale it to 8 bits" in capsys.readouterr().err


# formats of other packages


@pytest.mark.parametrize(("module", "suffix"), [("pillow_heif", "heic"), ("pillow_jxl", "jxl")])
def test_formats_of_other_packages(
    photo: Image.Image, module: str, suffix: str, environment: dict[str, str]
) -> None:
    """If the package is installed, they are read by name and from folders, and turned upright."""
    pytest.importorskip(module)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = TURNED
    Path("album").mkdir()
    # In processes of their own, in which nothing else has registered the format.
    program = (
        "import sys; from PIL import Image; from pillow_sdz.cli.pictures import register_plugins;"
        "register_plugins();"
        "Image.open('x.png').save(sys.argv[1], quality=95, exif=Image.open('x.png').info['exif'])"
    )
    photo.save("x.png", exif=exif)
    name = f"album/x.{suffix}"
    for command in (["-c", program, name], ["-m", "pillow_sdz", "encode", "album"]):
        subprocess.run([sys.executable, *command], env=environment, check=True)
    with Image.open("album/x.sdz") as image:
        shown = ImageOps.exif_transpose(image)
    expected = photo.transpose(Image.Transpose.ROTATE_270)
    assert shown.size == expected.size
    assert max(ImageStat.Stat(ImageChops.difference(shown, expected)).mean) < 6


def test_a_plugin_that_is_missing_is_no_error(
    photo: Image.Image, environment: dict[str, str], tmp_path: Path
) -> None:
    """A module of this name that cannot be imported counts as missing."""
    (tmp_path / "none").mkdir()
    for name in ("pillow_heif", "pillow_jxl"):
        (tmp_path / "none" / f"{name}.py").write_text("raise ImportError('not here')")
    photo.save("a.png")
    path = os.pathsep.join([str(tmp_path / "none"), environment["PYTHONPATH"]])
    command = [sys.executable, "-m", "pillow_sdz", "encode", "."]
    subprocess.run(command, env={**environment, "PYTHONPATH": path}, check=True)
    assert Path("a.sdz").exists()


# metadata


@pytest.fixture
def annotated(photo: Image.Image) -> None:
    """x.jpg, with EXIF that says where it was taken and how to turn it, XMP, and a profile."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = TURNED
    exif[ExifTags.Base.Artist] = "Vivian"
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>'
    photo.save("x.jpg", exif=exif, xmp=xmp, icc_profile=b"\0" * 16 + b"RGB ")


def test_metadata_is_kept_and_counted(annotated: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "x.jpg", "-v"]) == 0
    with Image.open("x.sdz") as image:
        size = image.info["sdz"]["bytes"]["metadata"]
        assert size == sum(len(image.info[name]) for name in ("exif", "xmp", "icc_profile")) - len(
            b"Exif\0\0"
        )
    assert capsys.readouterr().out.endswith(f" bits per pixel, {size:,} bytes of it metadata\n")
    assert main(["decode", "x.sdz", "-v", "--format", "jpg", "-o", "out"]) == 0
    assert f"{size + 6:,} bytes of it metadata\n" in capsys.readouterr().out


def test_the_closing_line_counts_metadata(
    annotated: None, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("album").mkdir()
    for name in ("a.jpg", "b.jpg"):
        Path("album", name).write_bytes(Path("x.jpg").read_bytes())
    assert main(["encode", "album"]) == 0
    with Image.open("album/a.sdz") as image:
        size = 2 * image.info["sdz"]["bytes"]["metadata"]
    assert capsys.readouterr().out.endswith(f", {size:,} bytes of it metadata\n")


@pytest.mark.parametrize("space", [b"CMYK", b"RGB "])
def test_a_profile_of_inks_is_not_kept_for_rgb(photo: Image.Image, space: bytes) -> None:
    """The pixels of a CMYK JPEG become RGB, and its profile is wrong for them."""
    profile = bytes(16) + space + bytes(16) + b"acsp"  # ICC.1:2022, 7.2
    photo.convert("CMYK").save("x.jpg", icc_profile=profile)
    assert main(["encode", "x.jpg"]) == 0
    with Image.open("x.sdz") as image:
        assert image.mode == "RGB"
        assert ("icc_profile" in image.info) is (space == b"RGB ")
    assert main(["decode", "x.sdz", "-o", "y.jpg"]) == 0
    with Image.open("y.jpg") as image:
        assert image.mode == "RGB"
        assert image.info.get("icc_profile") == (profile if space == b"RGB " else None)


def test_strip(annotated: None, capsys: pytest.CaptureFixture[str]) -> None:
    """EXIF and XMP are left out, so the pixels are turned.

    The profile is kept, because colours need it.
    """
    assert main(["encode", "x.jpg", "--strip"]) == 0
    assert main(["info", "--json", "x.sdz"]) == 0
    with Image.open("x.sdz") as image:
        assert image.info.keys() & {"exif", "xmp", "icc_profile"} == {"icc_profile"}
        assert image.size == (43, 61)


def test_strip_while_decoding(annotated: None) -> None:
    assert main(["encode", "x.jpg"]) == 0
    assert main(["decode", "x.sdz", "--strip", "-o", "y.jpg"]) == 0
    with Image.open("y.jpg") as image:
        assert image.info.keys() & {"exif", "xmp", "icc_profile"} == {"icc_profile"}
        assert image.size == (43, 61)


def test_strip_drops_unknown_chunks_too(photo: Image.Image) -> None:
    photo.save("x.sdz", chunks=[(b"teSt", b"secret")])
    assert main(["encode", "x.sdz", "-o", "kept.sdz"]) == 0
    assert main(["encode", "x.sdz", "-o", "stripped.sdz", "--strip"]) == 0
    assert b"secret" in Path("kept.sdz").read_bytes()
    assert b"secret" not in Path("stripped.sdz").read_bytes()


def test_strip_turns_all_frames(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = TURNED
    others = [photo.rotate(90), photo.rotate(180)]
    photo.save(
        "x.png", save_all=True, append_images=others, duration=[10, 20, 30], loop=3, exif=exif
    )
    assert main(["encode", "x.png", "--strip"]) == 0
    with Image.open("x.sdz") as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (3, (43, 61), 3)
        durations = []
        for number in range(3):
            image.seek(number)
            durations.append(image.info["duration"])
    assert durations == [10, 20, 30]


def test_a_target_size_that_metadata_fills(
    photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    photo.save("x.png", exif=b"MM\0*\0\0\0\x08\0\0" + bytes(4000))
    assert main(["encode", "x.png", "-t", "3kB"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("sdz: x.png: target_size is 3000, but the smallest file has ")
    assert err.endswith(" bytes of metadata are kept (--strip leaves them out)\n")
    assert main(["encode", "x.png", "-t", "3kB", "--strip"]) == 0
    assert Path("x.sdz").stat().st_size <= 3000


def test_metadata_that_is_too_long_costs_a_warning(
    photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    photo.save("x.webp", xmp=b" " * (MAX_METADATA + 1))
    assert main(["encode", "x.webp"]) == 0
    assert capsys.readouterr().err == (
        f"sdz: x.webp: its XMP is not kept: {MAX_METADATA + 1:,} bytes are too many\n"
    )
    with Image.open("x.sdz") as image:
        assert "xmp" not in image.info


# quality, as `info` prints it


@pytest.mark.parametrize("quality", [1, 33.33, 74.5, 99.99, 100])
def test_quality_takes_what_info_prints(
    photo: Image.Image, quality: float, capsys: pytest.CaptureFixture[str]
) -> None:
    photo.save("x.sdz", quality=quality)
    photo.save("x.png")
    assert main(["info", "x.sdz"]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    assert main(["encode", "x.png", "-q", told["quality"], "-o", "y.sdz"]) == 0
    assert Path("y.sdz").read_bytes() == Path("x.sdz").read_bytes()


@pytest.mark.parametrize("step", [1 / 1024, 0.2978515625, 1, 63.9990234375])
def test_step_takes_what_info_prints(step: float, capsys: pytest.CaptureFixture[str]) -> None:
    latents = np.random.default_rng(1).normal(size=(4, 8, 6)).astype(np.float32)
    np.savez("x.npz", latents=latents)
    assert main(["encode", "x.npz", "--step", str(step)]) == 0
    capsys.readouterr()
    assert main(["info", "x.sdz"]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    assert main(["encode", "x.npz", "--step", told["step"], "-o", "y.sdz"]) == 0
    assert Path("y.sdz").read_bytes() == Path("x.sdz").read_bytes()


@pytest.mark.parametrize("quality", ["0.99", "100.1", "nan", "inf", "-5", "x", ""])
def test_qualities_that_are_none(quality: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["encode", "x.png", f"--quality={quality}"])
    assert "is not a number from 1 to 100" in capsys.readouterr().err
