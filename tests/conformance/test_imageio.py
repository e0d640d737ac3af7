"""What imageio's tests of its Pillow plugin check of a format, checked with `.sdz`.

Each test names imageio's tests (2.38.1, tests/test_pillow.py) that check the same with other
formats, in both of its interfaces. imageio finds `.sdz` only through Pillow's registry. It is not
among the extensions that imageio lists itself.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sdz_files import decode, encode

iio = pytest.importorskip("imageio.v3", reason="needs imageio")
iio2 = pytest.importorskip("imageio.v2", reason="needs imageio")


@pytest.fixture(scope="module")
def array(photo: Image.Image) -> npt.NDArray[np.uint8]:
    return np.asarray(photo)


class TestWriting:
    @pytest.mark.parametrize("plugin", [None, "pillow"])
    @pytest.mark.parametrize("bands", [1, 3, 4])
    def test_single_frame(
        self, photo: Image.Image, tmp_path: Path, bands: int, plugin: str | None
    ) -> None:
        """test_write_single_frame: byte for byte what Pillow writes, for L, RGB and RGBA."""
        im = photo.convert({1: "L", 3: "RGB", 4: "RGBA"}[bands])
        iio.imwrite(tmp_path / "imageio.sdz", np.asarray(im), plugin=plugin)
        assert (tmp_path / "imageio.sdz").read_bytes() == encode(im)

    def test_options(self, array: npt.NDArray[np.uint8], tmp_path: Path) -> None:
        """test_jpg_compression: Pillow's options are passed on."""
        sizes = []
        for quality in (10, 90):
            iio.imwrite(tmp_path / "photo.sdz", array, quality=quality)
            sizes.append((tmp_path / "photo.sdz").stat().st_size)
            assert iio.immeta(tmp_path / "photo.sdz")["sdz"]["quality"] == quality
        assert sizes[0] < sizes[1]

    def test_to_bytes(self, array: npt.NDArray[np.uint8], data: bytes) -> None:
        """test_write_to_bytes, _imwrite, _rgba: the caller must name the plugin and the format."""
        assert iio.imwrite("<bytes>", array, plugin="pillow", extension=".sdz") == data
        stream = BytesIO()
        iio.imwrite(stream, array, plugin="pillow", extension=".sdz")
        assert stream.getvalue() == data

    def test_to_bytes_and_back(self, photo: Image.Image) -> None:
        """test_write_jpg_to_bytes_io"""
        grey = photo.convert("L")
        stream = BytesIO()
        iio.imwrite(stream, np.asarray(grey), plugin="pillow", extension=".sdz", mode="L")
        stream.seek(0)
        np.testing.assert_array_equal(iio.imread(stream), np.asarray(decode(encode(grey))))

    def test_boolean(self, tmp_path: Path) -> None:
        """test_boolean_writing, test_boolean_reading: mode 1, which is saved as L."""
        disc = np.hypot(*np.mgrid[-32:32, -32:32]) < 20
        iio.imwrite(tmp_path / "disc.sdz", disc, quality=100)
        grey = iio.imread(tmp_path / "disc.sdz")
        assert grey.dtype == np.uint8
        # A hundred pixels of 4,096 lie on the edge, which a lossy format smooths.
        assert np.mean((grey > 127) == disc) > 0.97

    def test_16_bits(self, array: npt.NDArray[np.uint8], tmp_path: Path) -> None:
        """test_png_16bit: `.sdz` refuses it, and must say so."""
        with pytest.raises(ValueError, match="scale it to 8 bits"):
            iio.imwrite(tmp_path / "deep.sdz", array[..., 0].astype(np.uint16))

    def test_without_the_plugin(self, tmp_path: Path, environment: dict[str, str]) -> None:
        """test_incomatible_write_format: an extension that Pillow does not know raises OSError.

        This needs the plugin's name. Without it, imageio tries its other plugins. If tifffile is
        installed, the result is a TIFF file with the suffix `.sdz`.
        """
        script = """
import imageio.v3 as iio
try:
    iio.imopen("photo.sdz", "w", plugin="pillow")
except OSError:
    print("refused")
"""
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "refused\n"


class TestReading:
    @pytest.mark.parametrize("plugin", [None, "pillow"])
    def test_sources(self, path: Path, data: bytes, plugin: str | None) -> None:
        """test_png_transparent_pixel, test_write_jpg_to_bytes_io and others: what Pillow reads."""
        expected = np.asarray(decode(data))
        for source in (path, str(path), data, BytesIO(data)):
            np.testing.assert_array_equal(iio.imread(source, plugin=plugin), expected)

    def test_mode(self, path: Path) -> None:
        """test_gif_rgb_vs_rgba, test_gif_gray: the mode that the caller asks for."""
        opaque = iio.imread(path, mode="RGBA")
        np.testing.assert_array_equal(opaque[..., :3], iio.imread(path))
        assert np.all(opaque[..., 3] == 255)
        assert iio.imread(path, mode="L").shape == (43, 61)

    def test_one_frame(self, path: Path) -> None:
        """test_gif_indexed_read, with a picture that has only one frame."""
        expected = iio.imread(path)
        np.testing.assert_array_equal(iio.imread(path, index=0), expected)
        np.testing.assert_array_equal(iio.imread(path, index=...), expected[np.newaxis])
        [frame] = iio.imiter(path)
        np.testing.assert_array_equal(frame, expected)

    def test_properties(self, photo: Image.Image, path: Path, tmp_path: Path) -> None:
        """test_properties: known without decoding, for a colour picture and a grey one."""
        properties = iio.improps(path)
        assert (properties.shape, properties.dtype) == ((43, 61, 3), np.uint8)
        assert not properties.is_batch
        batch = iio.improps(path, index=...)
        assert (batch.shape, batch.n_images, batch.is_batch) == ((1, 43, 61, 3), 1, True)
        photo.convert("L").save(tmp_path / "grey.sdz")
        assert iio.improps(tmp_path / "grey.sdz").shape == (43, 61)

    def test_metadata(self, path: Path) -> None:
        """test_metadata, test_apng_metadata: Pillow's info, and the shape and mode."""
        meta = iio.immeta(path)
        assert (meta["mode"], meta["shape"]) == ("RGB", (61, 43))
        assert meta["sdz"]["reconstructed"]

    def test_orientation(self, photo: Image.Image, tmp_path: Path) -> None:
        """test_exif_orientation: the picture is turned only if the caller asks for it."""
        exif = Image.Exif()
        exif[0x0112] = 6
        iio.imwrite(tmp_path / "turned.sdz", np.rot90(np.asarray(photo)), exif=exif)
        with iio.imopen(tmp_path / "turned.sdz", "r", plugin="pillow") as file:
            turned = file.read()
            assert turned.shape == (61, 43, 3)
            assert file.metadata(exclude_applied=False)["Orientation"] == 6
        upright = iio.imread(tmp_path / "turned.sdz", rotate=True)
        np.testing.assert_array_equal(upright, np.rot90(turned, -1))

    @pytest.mark.parametrize("orientation", [0, 9])
    def test_invalid_orientation(
        self, array: npt.NDArray[np.uint8], tmp_path: Path, orientation: int
    ) -> None:
        """test_exif_invalid_orientation: it is kept and turns nothing."""
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / "photo.sdz"
        iio.imwrite(path, array, exif=exif)
        assert iio.immeta(path, exclude_applied=False)["Orientation"] == orientation
        np.testing.assert_array_equal(iio.imread(path, rotate=True), iio.imread(path))

    @pytest.mark.parametrize("writeable", [True, False])
    def test_writeable(self, path: Path, writeable: bool) -> None:
        """test_writable_output: the array belongs to the caller, unless that is not needed."""
        array = iio.imread(path, plugin="pillow", writeable_output=writeable)
        assert array.flags["WRITEABLE"] == writeable

    def test_not_a_picture(self, data: bytes, tmp_path: Path) -> None:
        """test_unknown_image, test_initialization_failure: an OSError for any name."""
        (tmp_path / "text.sdz").write_text("no picture, whatever its name says")
        with pytest.raises(OSError, match="can not handle the given uri"):
            iio.imread(tmp_path / "text.sdz", plugin="pillow")
        # A damaged .sdz file gives a message about the damage instead.
        (tmp_path / "short.sdz").write_bytes(data[:-30])
        with pytest.raises(OSError, match="truncated SDZ file"):
            iio.imread(tmp_path / "short.sdz", plugin="pillow")


def test_v2(array: npt.NDArray[np.uint8], data: bytes, tmp_path: Path) -> None:
    """tests/test_v2.py: the same through the old interface."""
    iio2.imwrite(tmp_path / "photo.sdz", array)
    assert (tmp_path / "photo.sdz").read_bytes() == data
    read = iio2.imread(tmp_path / "photo.sdz")
    np.testing.assert_array_equal(read, np.asarray(decode(data)))
    assert len(iio2.mimread(tmp_path / "photo.sdz")) == 1


def test_snippet(snippet: Callable[[str], dict[str, Any]]) -> None:
    """The lines of docs/tools.md do what the page says."""
    names = snippet("imageio")
    with Image.open("photo.sdz") as im:
        assert im.info["sdz"]["quality"] == 60
    assert decode(names["data"]).size == (61, 43)
