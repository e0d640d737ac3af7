"""What Pillow's own tests check of animations, and imageio's of batches, checked with `.sdz`.

Each test names Pillow's tests (13.0.0, Tests/test_file_webp_animated.py, test_file_avif.py,
TestAvifAnimation, and test_imagesequence.py) and imageio's (2.38.1, tests/test_pillow.py) that
check the same with WebP, AVIF, TIFF and GIF.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from sdz_files import assert_similar, decode, encode

# Mean difference from the originals, as in tests/test_plugin.py.
LOSS = 8


TURNS = (
    None,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.ROTATE_180,
    Image.Transpose.FLIP_TOP_BOTTOM,
)


@pytest.fixture(scope="module")
def originals(photo: Image.Image) -> list[Image.Image]:
    """Four pictures with little in common. No frame is like the one before."""
    return [photo.transpose(turn) if turn is not None else photo for turn in TURNS]


@pytest.fixture(scope="module")
def animation(originals: list[Image.Image]) -> bytes:
    return encode(originals[0], save_all=True, append_images=originals[1:], duration=33)


def frames(data: bytes) -> list[Image.Image]:
    with Image.open(BytesIO(data)) as im:
        return [frame.copy() for frame in ImageSequence.Iterator(im)]


def assert_all_similar(data: bytes, originals: list[Image.Image]) -> None:
    for frame, original in zip(frames(data), originals, strict=True):
        assert_similar(frame, original, LOSS)


class TestSaving:
    @pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
    def test_write(self, originals: list[Image.Image], mode: str) -> None:
        """test_write_animation_L, _RGB, _RGBA: the right number of frames in order, each itself."""
        pictures = [original.convert(mode) for original in originals]
        data = encode(pictures[0], save_all=True, append_images=pictures[1:])
        assert_all_similar(data, pictures)

    def test_generator(self, originals: list[Image.Image], animation: bytes) -> None:
        """test_write_animation_RGB: appended pictures may be made when they are asked for."""

        def later() -> Iterator[Image.Image]:
            yield from originals[1:]

        data = encode(originals[0], save_all=True, append_images=later(), duration=33)
        assert data == animation

    def test_one_frame(self, photo: Image.Image) -> None:
        """An animation of one picture is that picture's file."""
        assert encode(photo, save_all=True) == encode(photo)
        assert encode(photo, save_all=True, append_images=[]) == encode(photo)

    def test_without_save_all(self, originals: list[Image.Image], animation: bytes) -> None:
        """Without save_all, only the current frame is saved."""
        with Image.open(BytesIO(animation)) as im:
            im.seek(1)
            assert_all_similar(encode(im), [originals[1]])

    def test_from_an_animation(self, originals: list[Image.Image]) -> None:
        """test_write_animation_P: every frame of a GIF, with its duration."""
        gif = BytesIO()
        originals[0].save(gif, "GIF", save_all=True, append_images=originals[1:], duration=50)
        with Image.open(gif) as im:
            im.seek(2)
            data = encode(im, save_all=True)
            assert im.tell() == 2  # as before
            expected = [frame.convert("RGB") for frame in ImageSequence.Iterator(im)]
        assert_all_similar(data, expected)
        with Image.open(BytesIO(data)) as im:
            im.load()
            assert im.info["duration"] == 50

    @pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
    def test_to_another_format(
        self, originals: list[Image.Image], animation: bytes, format: str
    ) -> None:
        """An `.sdz` animation is saved in another format with all frames and durations."""
        stream = BytesIO()
        with Image.open(BytesIO(animation)) as im:
            im.save(stream, format, save_all=True)
        with Image.open(stream) as im:
            assert getattr(im, "n_frames", 1) == len(originals)
            im.load()  # WebP tells the duration only after this
            assert im.info["duration"] in (30, 33)  # a GIF counts hundredths of a second

    def test_sizes_that_differ(self, photo: Image.Image) -> None:
        """test_sequence_dimension_mismatch_check"""
        with pytest.raises(ValueError, match="size"):
            encode(photo, save_all=True, append_images=[photo.resize((10, 10))])

    def test_modes_that_differ(self, photo: Image.Image) -> None:
        """WebP's frames are RGB, or RGBA if one of them has transparency."""
        transparent = photo.copy()
        transparent.putalpha(200)
        opaque = photo.convert("RGBA")
        data = encode(photo, save_all=True, append_images=[transparent, photo.convert("L")])
        grey = photo.convert("L").convert("RGBA")
        assert_all_similar(data, [opaque, transparent, grey])

    def test_metadata(self, originals: list[Image.Image]) -> None:
        """test_image.py::test_exif_webp, its second half."""
        exif = Image.Exif()
        exif[0x0131] = "a program"
        data = encode(originals[0], save_all=True, append_images=originals[1:], exif=exif)
        assert decode(data).getexif()[0x0131] == "a program"


class TestTiming:
    def test_durations(self, originals: list[Image.Image]) -> None:
        """test_timestamp_and_duration: one for each frame, in milliseconds."""
        durations = [0, 10, 20, 30]
        data = encode(originals[0], save_all=True, append_images=originals[1:], duration=durations)
        with Image.open(BytesIO(data)) as im:
            timestamp = 0
            for number, duration in enumerate(durations):
                im.seek(number)
                im.load()
                assert im.info["duration"] == duration
                assert im.info["timestamp"] == timestamp
                timestamp += duration

    def test_float_duration(self, originals: list[Image.Image]) -> None:
        """test_float_duration: the duration may be a float, as in APNG."""
        data = encode(originals[0], save_all=True, append_images=originals[1:], duration=70.0)
        with Image.open(BytesIO(data)) as im:
            im.load()
            assert im.info["duration"] == 70

    @pytest.mark.parametrize("loop", [0, 1, 3])
    def test_loop(self, originals: list[Image.Image], loop: int) -> None:
        """test_gif_loop_and_duration of imageio: how often it is shown. 0 is for ever."""
        data = encode(originals[0], save_all=True, append_images=originals[1:], loop=loop)
        with Image.open(BytesIO(data)) as im:
            assert im.info["loop"] == loop


class TestSeeking:
    def test_n_frames(self, photo: Image.Image, animation: bytes) -> None:
        """test_n_frames: known before anything is decoded."""
        for data, number in ((encode(photo), 1), (animation, 4)):
            with Image.open(BytesIO(data)) as im:
                assert (im.n_frames, im.is_animated, im.tell()) == (number, number > 1, 0)

    def test_backwards(self, originals: list[Image.Image], animation: bytes) -> None:
        """test_seeking: each frame has its time, from the last to the first."""
        with Image.open(BytesIO(animation)) as im:
            for number in reversed(range(4)):
                im.seek(number)
                im.load()
                assert (im.tell(), im.info["duration"]) == (number, 33)
                assert im.info["timestamp"] == 33 * number
                assert_similar(im.copy(), originals[number], LOSS)

    def test_any_order_gives_the_same(self, animation: bytes) -> None:
        """test_iterator, test_consecutive: a frame does not depend on the frames seen before."""
        expected = frames(animation)
        with Image.open(BytesIO(animation)) as im:
            for number in (3, 0, 0, 2, 1, 3, 2):
                im.seek(number)
                assert im.tobytes() == expected[number].tobytes()

    def test_errors(self, animation: bytes) -> None:
        """test_seek_errors, and test_eoferror of most formats: a frame that does not exist."""
        with Image.open(BytesIO(animation)) as im:
            for number in (-1, 4, 42):
                with pytest.raises(EOFError):
                    im.seek(number)
            assert im.tell() == 0
            im.seek(3)

    def test_a_stream_stays_open(self, animation: bytes) -> None:
        """test_image.py::test_load_on_nonexclusive_multiframe"""
        stream = BytesIO(animation)
        for _ in range(2):
            with Image.open(stream) as im:
                im.load()
        assert not stream.closed

    def test_closed_file(self, animation: bytes, tmp_path: Path) -> None:
        """test_seek_after_close of GIF, WebP and others."""
        path = tmp_path / "animation.sdz"
        path.write_bytes(animation)
        im = Image.open(path)
        im.seek(1)
        im.close()
        with pytest.raises(ValueError, match="closed"):
            im.seek(0)

    def test_pickle(self, animation: bytes) -> None:
        """test_pickle.py: the current frame."""
        with Image.open(BytesIO(animation)) as im:
            im.seek(2)
            assert pickle.loads(pickle.dumps(im)) == im


class TestImageSequence:
    def test_iterator(self, animation: bytes) -> None:
        """test_sanity, test_iterator: by number and in turn, and then the end."""
        with Image.open(BytesIO(animation)) as im:
            sequence = ImageSequence.Iterator(im)
            for number in range(4):
                assert sequence[number].tobytes() == next(sequence).tobytes()
                assert im.tell() == number
            with pytest.raises(IndexError):
                sequence[4]
            with pytest.raises(StopIteration):
                next(sequence)

    def test_consecutive(self, animation: bytes) -> None:
        """test_consecutive: a second iterator begins at the first frame."""
        with Image.open(BytesIO(animation)) as im:
            first, *_ = (frame.copy() for frame in ImageSequence.Iterator(im))
            again = next(ImageSequence.Iterator(im))
            assert again.tobytes() == first.tobytes()

    def test_all_frames(self, photo: Image.Image, animation: bytes) -> None:
        """test_all_frames: separate pictures of one animation or several, and changed ones."""
        with Image.open(BytesIO(animation)) as im:
            im.seek(1)
            every = ImageSequence.all_frames(im)
            assert im.tell() == 1
            assert len(every) == 4
            assert len(ImageSequence.all_frames([im, photo, im])) == 9
            turned = ImageSequence.all_frames(im, lambda frame: frame.rotate(90))
            for number, (frame, other) in enumerate(zip(every, turned, strict=True)):
                im.seek(number)
                assert frame is not im
                assert frame.tobytes() == im.tobytes()
                assert other.tobytes() == im.rotate(90).tobytes()


class TestImageio:
    """imageio's batches are animations. Each test names imageio's test."""

    @pytest.fixture
    def iio(self) -> Any:
        return pytest.importorskip("imageio.v3", reason="needs imageio")

    def test_write(self, iio: Any, originals: list[Image.Image], tmp_path: Path) -> None:
        """test_write_multiframe: byte for byte what Pillow writes."""
        iio.imwrite(tmp_path / "batch.sdz", np.stack([np.asarray(o) for o in originals]))
        expected = encode(originals[0], save_all=True, append_images=originals[1:])
        assert (tmp_path / "batch.sdz").read_bytes() == expected

    def test_write_one_by_one(self, iio: Any, originals: list[Image.Image], tmp_path: Path) -> None:
        """test_incremental_gif_write, test_gif_list_write"""
        with iio.imopen(tmp_path / "batch.sdz", "w", plugin="pillow") as file:
            for original in originals:
                file.write(np.asarray(original))
        assert_all_similar((tmp_path / "batch.sdz").read_bytes(), originals)

    def test_read(self, iio: Any, animation: bytes) -> None:
        """test_apng_reading, test_properties, test_gif_indexed_read: all frames, or one.

        Without an index it is the first one. GIF and APNG differ, because imageio knows them.
        """
        expected = np.stack([np.asarray(frame) for frame in frames(animation)])
        np.testing.assert_array_equal(iio.imread(animation), expected[0])
        np.testing.assert_array_equal(iio.imread(animation, index=...), expected)
        np.testing.assert_array_equal(iio.imread(animation, index=2), expected[2])
        for frame, there in zip(iio.imiter(animation), expected, strict=True):
            np.testing.assert_array_equal(frame, there)
        properties = iio.improps(animation, index=...)
        assert (properties.shape, properties.is_batch) == ((4, 43, 61, 3), True)

    def test_metadata(self, iio: Any, animation: bytes) -> None:
        """test_apng_metadata"""
        assert iio.immeta(animation)["loop"] == 0
        assert iio.immeta(animation, index=2)["duration"] == 33
