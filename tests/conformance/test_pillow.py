"""What Pillow's own tests check of every format, checked with `.sdz`.

Each test names Pillow's tests (13.0.0, in its folder Tests) that check the same with other formats.
Some of them compare pixels exactly. The tests here allow the loss of a lossy format. Crop, draft
and thumbnail, and animations have their own files.
"""

from __future__ import annotations

import copy
import logging
import os
import pickle
import tarfile
import tempfile
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, TarIO, UnidentifiedImageError

from pillow_sdz import chunks, container
from pillow_sdz.SdzImagePlugin import SdzImageFile
from sdz_files import CountingFile, assert_similar, decode, encode, replaced

# The loss at quality 75: the mean difference from the photo, in grey levels of the worst band. As
# in tests/test_plugin.py.
LOSS = 8


class TestOpen:
    """test_image.py, TestImage, and what the tests of formats (test_file_*.py) have in common."""

    def test_formats(self, path: Path) -> None:
        """test_open_formats: a list of formats limits what is tried."""
        for formats in (["SDZ"], ("sdz", "JPEG")):
            with Image.open(path, formats=formats) as im:
                assert im.format == "SDZ"
        with pytest.raises(UnidentifiedImageError):
            Image.open(path, formats=["JPEG"])

    def test_mime_type(self, path: Path) -> None:
        """What most test_file_*.py check in test_sanity: the format and its MIME type."""
        with Image.open(path) as im:
            assert im.get_format_mimetype() == Image.MIME["SDZ"]
            im.load()
            assert im.get_format_mimetype() == Image.MIME["SDZ"]

    def test_invalid_file(self, photo: Image.Image, tmp_path: Path) -> None:
        """test_invalid_file: the class raises SyntaxError, which Image.open expects."""
        photo.save(tmp_path / "photo.jpg")
        with pytest.raises(SyntaxError):
            SdzImageFile(tmp_path / "photo.jpg")

    def test_unclosed_file(self, path: Path) -> None:
        """test_unclosed_file: Python warns of a handle that nobody closes."""

        def open_and_forget() -> None:
            im = Image.open(path)
            del im

        with pytest.warns(ResourceWarning):
            open_and_forget()

    @pytest.mark.parametrize("loaded", [False, True])
    def test_closed_file(self, path: Path, loaded: bool) -> None:
        """test_closed_file, test_context_manager: closed in either way, nothing warns."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            im = Image.open(path)
            if loaded:
                im.load()
            im.close()
            with Image.open(path) as im:
                if loaded:
                    im.load()

    def test_seek_beyond_the_only_frame(self, path: Path) -> None:
        """test_eoferror, and test_imagesequence.py::test_iterator with a single picture."""
        with Image.open(path) as im:
            im.seek(0)
            with pytest.raises(EOFError):
                im.seek(1)
            with pytest.raises(EOFError):
                im.seek(-1)
            assert im.tell() == 0

    def test_in_an_archive(self, photo: Image.Image, path: Path, tmp_path: Path) -> None:
        """test_file_tar.py::test_sanity: the file is a part of another file."""
        with tarfile.open(tmp_path / "photos.tar", "w") as archive:
            archive.add(path, "photo.sdz")
        with (
            TarIO.TarIO(str(tmp_path / "photos.tar"), "photo.sdz") as stretch,
            Image.open(stretch) as im,
        ):
            assert_similar(im.convert("RGB"), photo, LOSS)

    def test_equality(self, path: Path) -> None:
        """test_ne: pictures are equal if their pixels are, also if each opens the file itself."""
        with Image.open(path) as one, Image.open(path) as other:
            assert one == other
            other.putpixel((0, 0), (1, 2, 3))
            assert one != other

    @pytest.mark.parametrize("make", [Image.Image.copy, copy.copy, copy.deepcopy])
    def test_copy(self, path: Path, make: Callable[[Image.Image], Image.Image]) -> None:
        """test_image_copy.py::test_copy, test_deepcopy: the pixels are not loaded yet."""
        with Image.open(path) as im:
            other = make(im)
        assert_similar(other, decode(path.read_bytes()), 0)

    def test_numpy(self, data: bytes) -> None:
        """test_numpy.py::test_to_array: an array of a picture that is not loaded yet, and back."""
        with Image.open(BytesIO(data)) as im:
            array = np.asarray(im)
        assert (array.shape, array.dtype) == ((43, 61, 3), np.uint8)
        assert_similar(Image.fromarray(array), decode(data), 0)


class TestSave:
    """test_image.py, TestImage."""

    def test_file_object_with_a_name(self, photo: Image.Image, tmp_path: Path) -> None:
        """test_fp_name: the name of a file object also tells the format."""
        with (tmp_path / "named.sdz").open("wb") as stream:
            photo.save(stream)
        with Image.open(tmp_path / "named.sdz") as im:
            assert im.format == "SDZ"

    def test_temporary_file(self, photo: Image.Image, data: bytes) -> None:
        """test_tempfile: a file object that has no name."""
        with tempfile.SpooledTemporaryFile() as stream:
            photo.save(stream, "SDZ")
            stream.seek(0)
            assert stream.read() == data
            stream.seek(0)
            with Image.open(stream) as im:
                assert_similar(im.convert("RGB"), photo, LOSS)

    def test_upper_case_extension(self, photo: Image.Image, tmp_path: Path) -> None:
        """test_pathlib: .SDZ is .sdz, as .JPG is .jpg there."""
        photo.save(tmp_path / "PHOTO.SDZ")
        with Image.open(tmp_path / "PHOTO.SDZ") as im:
            assert im.format == "SDZ"

    def test_no_warning_on_save(self, path: Path, tmp_path: Path) -> None:
        """test_no_resource_warning_on_save: open one file and save it as another."""
        with Image.open(path) as im, warnings.catch_warnings():
            warnings.simplefilter("error")
            im.save(tmp_path / "other.sdz")

    @pytest.mark.parametrize("size", [(0, 0), (0, 1), (1, 0)])
    def test_no_new_file_on_error(self, tmp_path: Path, size: tuple[int, int]) -> None:
        """test_no_new_file_on_error: if a picture cannot be saved, there is no file."""
        with pytest.raises(ValueError, match="0"):
            Image.new("RGB", size).save(tmp_path / "nothing.sdz")
        assert not (tmp_path / "nothing.sdz").exists()

    def test_exif(self, path: Path, tmp_path: Path) -> None:
        """test_exif_webp: add tags to those of an opened picture, which has none yet."""
        with Image.open(path) as im:
            exif = im.getexif()
            assert dict(exif) == {}
            exif[0x0131] = "a program"
            exif[0xA003] = 43
            im.save(tmp_path / "tagged.sdz", exif=exif)
        with Image.open(tmp_path / "tagged.sdz") as im:
            assert dict(im.getexif()) == {0x0131: "a program", 0xA003: 43}


class TestImageFile:
    """test_imagefile.py, TestImageFile."""

    def test_parser(self, photo: Image.Image) -> None:
        """test_parser: feed the whole file at once."""
        grey = photo.convert("L")
        parser = ImageFile.Parser()
        parser.feed(encode(grey))
        assert_similar(parser.close(), grey, LOSS)

    def test_incremental(self, photo: Image.Image, data: bytes) -> None:
        """test_incremental_webp, _tiff: feed too little for a picture, then the rest."""
        with ImageFile.Parser() as parser:
            parser.feed(data[: len(container.SIGNATURE) + 4])
            assert parser.image is None
            parser.feed(data[len(container.SIGNATURE) + 4 :])
            assert parser.image is not None
            assert parser.image.size == photo.size

    def test_parser_of_half_a_file(self, data: bytes) -> None:
        """test_negative_stride: an incomplete picture raises OSError at the end."""
        parser = ImageFile.Parser()
        parser.feed(data[: len(data) // 2])
        with pytest.raises(OSError, match=r"incomplete|truncated"):
            parser.close()

    @pytest.mark.parametrize("block", ["SAFEBLOCK", "MAXBLOCK"])
    def test_block_sizes(self, data: bytes, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """test_safeblock, and test_parser with MAXBLOCK: read in small pieces."""
        expected = decode(data)
        monkeypatch.setattr(ImageFile, block, 1)
        assert_similar(decode(data), expected, 0)

    def test_tile_size(self, data: bytes) -> None:
        """test_tile_size: no part of the file is read again and again.

        Opening does not read the picture. Loading reads no more than the file has.
        """
        stream = CountingFile(data)
        with Image.open(stream) as im:
            opened = stream.count
            assert len(im.tile) == 1
            im.load()
        assert opened < len(data)
        assert stream.count - opened <= len(data)

    @pytest.mark.parametrize("missing", [1, 20, 100])
    def test_truncated_with_errors(self, data: bytes, missing: int) -> None:
        """test_truncated_with_errors: refused, and refused again by a second load."""
        with Image.open(BytesIO(data[:-missing])) as im:
            for _ in range(2):
                with pytest.raises(OSError, match="truncated"):
                    im.load()

    @pytest.mark.parametrize("missing", [1, 20, 100])
    @pytest.mark.usefixtures("load_truncated")
    def test_truncated_without_errors(self, data: bytes, missing: int) -> None:
        """test_truncated_without_errors. A warning says which pixels are missing, if any."""
        with (
            Image.open(BytesIO(data[:-missing])) as im,
            warnings.catch_warnings(record=True) as said,
        ):
            warnings.simplefilter("always")
            assert im.convert("RGB").size == (61, 43)
        assert bool(said) == (missing > 9)  # DONE takes nine bytes

    @pytest.fixture
    def broken(self, data: bytes) -> bytes:
        """The framing is intact, and its contents are noise.

        There is more of it than any likely picture takes. As many bytes as the photo's may be those
        of another picture.
        """
        [latents] = (chunk for chunk in container.read(data) if chunk.type == chunks.LATENTS)
        noise = np.random.default_rng(0).bytes(4 * len(latents.data))
        return replaced(data, chunks.LATENTS, noise)

    def test_broken_datastream_with_errors(self, broken: bytes) -> None:
        """test_broken_datastream_with_errors"""
        with Image.open(BytesIO(broken)) as im:
            for _ in range(2):
                with pytest.raises(OSError, match="damaged"):
                    im.load()

    @pytest.mark.usefixtures("load_truncated")
    def test_broken_datastream_without_errors(self, broken: bytes) -> None:
        """test_broken_datastream_without_errors"""
        with Image.open(BytesIO(broken)) as im, pytest.warns(UserWarning, match="damaged"):
            assert im.convert("RGB").size == (61, 43)


class TestLoad:
    """test_image_load.py."""

    def test_sanity(self, photo: Image.Image, path: Path) -> None:
        """test_sanity: load returns access to the pixels."""
        with Image.open(path) as im:
            pixels = im.load()
            assert pixels is not None
            middle = (photo.width // 2, photo.height // 2)
            assert pixels[middle] == im.getpixel(middle)

    def test_close(self, path: Path) -> None:
        """test_close: a closed picture that was not loaded has no pixels."""
        im = Image.open(path)
        im.close()
        with pytest.raises(ValueError, match="closed"):
            im.load()
        with pytest.raises(ValueError, match="closed"):
            im.getpixel((0, 0))

    def test_close_after_load(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """test_close_after_load: nothing is logged."""
        im = Image.open(path)
        im.load()
        with caplog.at_level(logging.DEBUG):
            im.close()
        assert caplog.records == []

    def test_context_manager(self, path: Path) -> None:
        """test_contextmanager: leaving it closes the file that open has opened."""
        with Image.open(path) as im:
            assert im.fp is not None
            descriptor = im.fp.fileno()
            os.fstat(descriptor)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)

    def test_context_manager_of_a_stream(self, path: Path) -> None:
        """test_contextmanager_non_exclusive_fp: leaving it does not close the caller's file."""
        with path.open("rb") as stream:
            with Image.open(stream):
                pass
            assert not stream.closed


class TestPickle:
    """test_pickle.py."""

    @pytest.mark.parametrize("mode", [None, "L", "PA"])
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_pickle_image(
        self, path: Path, tmp_path: Path, mode: str | None, protocol: int
    ) -> None:
        """test_pickle_image: through bytes and through a file, with every protocol."""
        with Image.open(path) as opened:
            im = opened if mode is None else opened.convert(mode)
            assert pickle.loads(pickle.dumps(im, protocol)) == im
            with (tmp_path / "im.pickle").open("wb") as stream:
                pickle.dump(im, stream, protocol)
            with (tmp_path / "im.pickle").open("rb") as stream:
                assert pickle.load(stream) == im

    def test_pickle_tell(self, path: Path) -> None:
        """test_pickle_tell"""
        with Image.open(path) as im:
            assert pickle.loads(pickle.dumps(im)).tell() == 0


class TestDecompressionBomb:
    """test_decompression_bomb.py, TestDecompressionBomb and TestDecompressionCrop."""

    @pytest.mark.parametrize("limit", [61 * 43, None])
    def test_no_warning(
        self, path: Path, limit: int | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """test_no_warning_small_file, test_no_warning_no_limit"""
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(path) as im:
                im.load()

    def test_warning(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """test_warning: more pixels than the limit."""
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 61 * 43 - 1)
        with pytest.warns(Image.DecompressionBombWarning), Image.open(path) as im:
            im.load()

    def test_exception(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """test_exception: more than twice as many."""
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 61 * 43 // 2 - 1)
        with pytest.raises(Image.DecompressionBombError):
            Image.open(path)

    @pytest.mark.parametrize("loaded", [False, True])
    def test_enlarging_crop(
        self, path: Path, loaded: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """test_enlarge_crop: a crop that reaches beyond the picture makes a larger one."""
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 61 * 43 * 4 - 1)
        with Image.open(path) as im:
            if loaded:
                im.load()
            with pytest.warns(Image.DecompressionBombWarning):
                enlarged = im.crop((0, 0, 2 * im.width, 2 * im.height))
            assert enlarged.size == (2 * im.width, 2 * im.height)
            assert enlarged.getpixel((im.width, im.height)) == (0, 0, 0)

    def test_crop_checks(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """test_crop_decompression_checks: the size of the box counts, wherever it lies."""
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 61 * 43 * 4 - 1)
        with Image.open(path) as im:
            assert im.crop((-9999, -9999, -9990, -9990)).size == (9, 9)
            with pytest.raises(Image.DecompressionBombError):
                im.crop((-99909, -99990, 99999, 99999))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_transpose(photo: Image.Image, orientation: int) -> None:
    """test_imageops.py::test_exif_transpose: turned upright, and EXIF no longer says to turn it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    im = decode(encode(photo, exif=exif))
    assert im.getexif()[0x0112] == orientation
    upright = ImageOps.exif_transpose(im)
    assert upright.size == (im.size if orientation <= 4 else im.size[::-1])
    assert 0x0112 not in upright.getexif() or orientation == 1
    if orientation > 1:
        # A saved copy is not turned again.
        assert 0x0112 not in decode(encode(upright)).getexif()
