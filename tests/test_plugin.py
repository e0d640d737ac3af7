"""The plugin as users of Pillow see it: opening, saving, options, files and their handles."""

from __future__ import annotations

import copy
import gc
import math
import pickle
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from PIL import Image, ImageFile, UnidentifiedImageError

import pillow_sdz
from pillow_sdz import container, models
from pillow_sdz.container import Chunk
from pillow_sdz.header import Header
from sdz_files import assert_similar, decode, encode, framed, roundtrip


@pytest.fixture
def path(photo: Image.Image, tmp_path: Path) -> Path:
    path = tmp_path / "photo.sdz"
    photo.save(path)
    return path


def test_registered() -> None:
    pillow_sdz.register()
    pillow_sdz.register()
    assert Image.registered_extensions()[".sdz"] == "SDZ"
    assert Image.MIME["SDZ"] == "image/x-sdz"
    assert Image.ID.count("SDZ") == 1


def test_open_by_name(photo: Image.Image, path: Path) -> None:
    with Image.open(path) as im:
        assert isinstance(im, ImageFile.ImageFile)
        assert (im.format, im.mode, im.size) == ("SDZ", "RGB", photo.size)
        assert im.get_format_mimetype() == "image/x-sdz"
        assert_similar(im.convert("RGB"), photo, 8)


def test_info_says_what_the_file_is(path: Path) -> None:
    with Image.open(path) as im:
        info = im.info["sdz"]
        spec = models.spec("mini")
        height, width = -(-im.height // spec.factor), -(-im.width // spec.factor)
        assert type(info) is dict
        assert info.pop("bytes")["latents"] > 0
        assert info == {
            "model": "mini",
            "coding": "context",
            "latents": (spec.channels, height, width),
            "factor": spec.factor,
            "quality": 75,
            "exact": 0,
            "reconstructed": True,
        }


@pytest.mark.parametrize(
    "options",
    [{}, {"xmp": b"<x/>"}, {"xmp": b"<x/>", "chunks": [(b"abCd", bytes(300))]}],
    ids=["plain", "metadata", "chunks"],
)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_bytes_sum_to_the_file(photo: Image.Image, mode: str, options: dict[str, Any]) -> None:
    data = encode(photo.convert(mode), **options)
    counts = decode(data).info["sdz"]["bytes"]
    assert counts.keys() == {"latents", "exact", "alpha", "metadata", "container"}
    assert sum(counts.values()) == len(data)
    others = sum(len(chunk) for _, chunk in options.get("chunks", []))
    assert counts["metadata"] == len(options.get("xmp", b"")) + others


def test_overhead_of_a_plain_photo(photo: Image.Image) -> None:
    counts = roundtrip(photo).info["sdz"]["bytes"]
    assert counts["container"] <= 64
    assert counts["alpha"] == counts["metadata"] == 0
    # A longer length takes a longer varint. This is the cost for the largest photos.
    largest = container.size(
        [Chunk(b"HEAD", _header().pack()), Chunk(b"LATN", bytes(1 << 28)), Chunk(b"DONE", b"")]
    )
    assert largest - (1 << 28) <= 64


@pytest.mark.parametrize(("given", "kept"), [(60, 60), (60.5, 60.5), (100, 100), (1, 1)])
def test_quality_is_kept_in_user_units(photo: Image.Image, given: float, kept: float) -> None:
    quality = roundtrip(photo, quality=given).info["sdz"]["quality"]
    assert quality == kept
    assert type(quality) is type(given)


def test_quality_is_monotone(photo: Image.Image) -> None:
    sizes = [len(encode(photo, quality=quality)) for quality in (1, 25, 50, 75, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_none_means_default(photo: Image.Image) -> None:
    options = dict.fromkeys(
        ("quality", "model", "coding", "target_size", "effort", "tune", "denoise", "prompt")
    )
    assert encode(photo, **options) == encode(photo)


def test_numbers_of_numpy(photo: Image.Image) -> None:
    options = {"quality": np.float32(60)}
    assert encode(photo, **options) == encode(photo, quality=60)


def test_options_of_other_formats_are_ignored(photo: Image.Image) -> None:
    assert encode(photo, optimize=True, progressive=True) == encode(photo)


BAD_OPTIONS: dict[str, list[Any]] = {
    "quality": [0, 0.99, 100.01, -1, math.nan, math.inf, True, "75", [], 1j],
    "target_size": [0, -1, 4000.0, True, "4000", math.nan],
    "model": ["maxi", "", b"mini", 3, []],
    "coding": ["palette", "float16", "", b"context", 3, []],
    "tune": ["ssim", "", b"psnr", 1, True, []],
    "effort": [-1, 10, 1.0, True, "4"],
    "denoise": [True, 0, -0.1, 0.3, math.nan, "0.04"],
    "prompt": [b"a photo", 3, "x" * 8193],
}


@pytest.mark.parametrize(
    ("option", "value"),
    [(option, value) for option, values in BAD_OPTIONS.items() for value in values],
)
def test_bad_options(photo: Image.Image, option: str, value: Any) -> None:
    buffer = BytesIO()
    with pytest.raises(ValueError, match=option):
        photo.save(buffer, "SDZ", **{option: value})
    assert buffer.getvalue() == b""


def test_quality_and_target_size_exclude_each_other(photo: Image.Image) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        encode(photo, quality=75, target_size=4000)


@pytest.mark.parametrize("mode", ["RGB", "LA"])
def test_target_size_is_never_exceeded(photo: Image.Image, mode: str) -> None:
    im = photo.convert(mode)
    largest = len(encode(im, quality=100, xmp=b"<x/>"))
    smallest = len(encode(im, quality=1, xmp=b"<x/>"))
    for target in (smallest, (smallest + largest) // 2, largest, 10 * largest):
        data = encode(im, target_size=target, xmp=b"<x/>")
        assert len(data) <= target
        # Its own size is used up again, but for a byte: in files as small as these, a higher
        # quality may take a byte less, and the search cannot know that.
        assert len(data) - len(encode(im, target_size=len(data), xmp=b"<x/>")) <= 1
    assert len(encode(im, target_size=10 * largest, xmp=b"<x/>")) >= largest


def test_target_size_names_the_smallest_file(photo: Image.Image) -> None:
    smallest = min(len(encode(photo, quality=1, model=m)) for m in ("mini", "mini-half"))
    for target in (1, 60, smallest - 1):
        with pytest.raises(ValueError, match=f"smallest file has {smallest} bytes"):
            encode(photo, target_size=target)
    assert len(encode(photo, target_size=smallest)) == smallest


def test_a_failed_save_leaves_nothing(photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "photo.sdz"
    with pytest.raises(ValueError, match="quality"):
        photo.save(path, quality=0)
    assert not path.exists()


def test_save_over_itself(photo: Image.Image, path: Path) -> None:
    with Image.open(path) as im:
        im.save(path, quality=30)
    with Image.open(path) as im:
        assert im.info["sdz"]["quality"] == 30
        assert_similar(im.convert("RGB"), photo, 12)


def test_handle_is_closed_after_load(path: Path) -> None:
    with Image.open(path) as im:
        fp = im.fp
        assert fp is not None
        im.load()
        assert fp.closed
        assert im.fp is None


def test_handle_is_closed_by_close(path: Path) -> None:
    im = Image.open(path)
    fp = im.fp
    assert fp is not None
    im.close()
    assert fp.closed
    with pytest.raises(ValueError, match="closed image"):
        im.getpixel((0, 0))


def test_a_stream_stays_open(path: Path) -> None:
    with path.open("rb") as stream, Image.open(stream) as im:
        im.load()
        assert not stream.closed


def test_no_handle_leaks(path: Path, tmp_path: Path) -> None:
    """pyproject.toml turns ResourceWarning into an error. This collects the handles."""
    data = path.read_bytes()
    broken = tmp_path / "broken.sdz"
    for cut in (4, 30, len(data) - 1):
        broken.write_bytes(data[:cut])
        with pytest.raises(OSError, match=r"identify|truncated"), Image.open(broken) as im:
            im.load()
    broken.write_bytes(data + b"\0")
    with pytest.raises(OSError, match="after its end"):
        Image.open(broken)
    with Image.open(path) as im:
        im.verify()
    gc.collect()


def test_a_stream_that_cannot_seek(path: Path) -> None:
    """The same picture, with the same info."""

    class Pipe:
        def __init__(self, data: bytes) -> None:
            self.read = BytesIO(data).read

    with Image.open(path) as expected, Image.open(Pipe(path.read_bytes())) as im:  # type: ignore[arg-type]
        assert (im.mode, im.size, im.info) == (expected.mode, expected.size, expected.info)
        assert im.tobytes() == expected.tobytes()


def test_pickle(path: Path) -> None:
    with Image.open(path) as im:
        other = pickle.loads(pickle.dumps(im))
        assert (other.mode, other.size, other.info) == (im.mode, im.size, im.info)
        assert other.tobytes() == im.tobytes()


def test_copy_before_load(path: Path) -> None:
    with Image.open(path) as im:
        other = im.copy()
        assert other.info == im.info
        assert other.tobytes() == im.tobytes()


def test_decoding_twice_gives_the_same(path: Path) -> None:
    assert decode(path.read_bytes()).tobytes() == decode(path.read_bytes()).tobytes()


def test_changes_to_info_before_load_stay(photo: Image.Image) -> None:
    with Image.open(BytesIO(encode(photo, xmp=b"<x/>"))) as im:
        del im.info["xmp"]
        im.load()
        assert "xmp" not in im.info


@pytest.mark.parametrize("step", [1, 7, 100, 1 << 20])
@pytest.mark.parametrize("mode", ["RGB", "LA"])
def test_parser(photo: Image.Image, mode: str, step: int) -> None:
    data = encode(photo.convert(mode), quality=10, xmp=b"<x/>")
    parser = ImageFile.Parser()
    for start in range(0, len(data), step):
        parser.feed(data[start : start + step])
    im = parser.close()
    assert im.tobytes() == decode(data).tobytes()
    assert sum(im.info["sdz"]["bytes"].values()) == len(data)


def test_parser_knows_the_size_early(photo: Image.Image) -> None:
    data = encode(photo)
    parser = ImageFile.Parser()
    parser.feed(data[:60])
    assert parser.image is not None
    assert parser.image.size == photo.size
    with pytest.raises(OSError, match="truncated"):
        parser.close()


def test_verify_needs_an_open_file(photo: Image.Image) -> None:
    im = roundtrip(photo)
    with pytest.raises(RuntimeError, match="directly after open"):
        im.verify()


def test_not_an_sdz_file() -> None:
    for data in (b"", b"\x8bSDZ", b"\x8bSDZ\r\n\x1a\r" + bytes(100), b"\x89PNG" + bytes(100)):
        with pytest.raises(UnidentifiedImageError):
            Image.open(BytesIO(data))


def _header(**fields: Any) -> Header:
    spec = models.spec("mini")
    fields = {
        "mode": "RGB",
        "size": (5, 3),
        "model": spec.name,
        "digest": spec.digest,
        "channels": spec.channels,
        "factor": spec.factor,
        "quantisation": 7500,
        **fields,
    }
    return Header(**fields)


def _file(**fields: Any) -> bytes:
    chunks = [(b"HEAD", _header(**fields).pack()), (b"LATN", b"latents"), (b"DONE", b"")]
    return framed([Chunk(*chunk) for chunk in chunks])


@pytest.mark.parametrize("truncated", [False, True], ids=["strict", "LOAD_TRUNCATED_IMAGES"])
def test_unknown_model_opens_and_names_itself(
    monkeypatch: pytest.MonkeyPatch, truncated: bool
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", truncated)
    with Image.open(BytesIO(_file(model="maxi-2", channels=4, factor=8))) as im:
        assert (im.size, im.info["sdz"]["model"]) == ((5, 3), "maxi-2")
        for _ in range(2):
            with pytest.raises(OSError, match="'maxi-2', which is not known"):
                im.load()


def test_other_weights_are_refused() -> None:
    with Image.open(BytesIO(_file(digest=b"\xde\xad\xbe\xef"))) as im:
        for _ in range(2):
            with pytest.raises(OSError, match="weights deadbeef"):
                im.load()


@pytest.mark.parametrize("fields", [{"channels": 5}, {"factor": 3}])
def test_latents_that_the_model_does_not_have(fields: dict[str, int]) -> None:
    with pytest.raises(OSError, match="but model mini has"):
        Image.open(BytesIO(_file(**fields)))


def test_too_many_pixels_are_refused_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Image.DecompressionBombError):
        Image.open(BytesIO(_file(size=(65535, 65535))))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(BytesIO(_file()))


def test_a_file_exchanged_behind_the_picture(photo: Image.Image, path: Path) -> None:
    """A file on disk has been copied before. In another object, the damage is found."""
    with path.open("r+b") as stream, Image.open(stream) as im:
        expected = decode(path.read_bytes())
        path.write_bytes(encode(photo.resize((20, 20))))
        assert_same(im, expected)
    stream = BytesIO(encode(photo))
    with Image.open(stream) as im:
        stream.getbuffer()[-30] ^= 1
        with pytest.raises(OSError, match="CRC does not match"):
            im.load()


@pytest.mark.parametrize("again", [lambda im: pickle.loads(pickle.dumps(im)), copy.deepcopy])
def test_copies_can_be_made_smaller(photo: Image.Image, path: Path, again: Any) -> None:
    for change in (lambda im: im.thumbnail((8, 8)), lambda im: im.draft("L", (8, 8))):
        with Image.open(path) as im:
            im.load()
            change(again(im))
    with Image.open(path) as im:
        assert again(im).crop((0, 0, 5, 5)).size == (5, 5)


def test_frames_are_decoded_one_by_one(photo: Image.Image) -> None:
    turned = photo.transpose(Image.Transpose.ROTATE_180)
    first, second = (container.read(encode(im)) for im in (photo, turned))
    head = Header.parse(first[0].data)._replace(frames=2)
    data = container.write(
        [Chunk(b"HEAD", head.pack()), first[-2], second[-2], Chunk(b"DONE", b"")]
    )
    with Image.open(BytesIO(data)) as im:
        assert (im.n_frames, im.is_animated, im.tell()) == (2, True, 0)
        im.seek(1)
        assert_same(im, decode(encode(turned)))
        im.seek(0)
        assert_same(im, decode(encode(photo)))
        assert im.tell() == 0
        with pytest.raises(EOFError):
            im.seek(2)


def test_seeking_after_a_thumbnail_or_a_copy(photo: Image.Image) -> None:
    one = container.read(encode(photo))
    head = Header.parse(one[0].data)._replace(frames=2)
    data = container.write([Chunk(b"HEAD", head.pack()), one[-2], one[-2], Chunk(b"DONE", b"")])
    with Image.open(BytesIO(data)) as im:
        im.thumbnail((20, 20))
        im.seek(1)
        assert_same(im, decode(encode(photo)))
        for other in (im.copy(), pickle.loads(pickle.dumps(im))):
            assert other.tobytes() == im.tobytes()
            assert other.tell() == 0  # it has this frame alone


def assert_same(a: Image.Image, b: Image.Image) -> None:
    assert (a.mode, a.size, a.tobytes()) == (b.mode, b.size, b.tobytes())


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ({"qualtiy": 30}, "SDZ has no option 'qualtiy': did you mean 'quality'"),
        ({"target": 3000}, "SDZ has no option 'target': did you mean 'target_size'"),
        ({"lossless": True}, "SDZ has no option 'lossless'$"),
        ({"step": 0.1}, "SDZ has no option 'step'$"),
    ],
)
def test_other_options_are_named(
    photo: Image.Image, option: dict[str, Any], complaint: str
) -> None:
    """There is a warning at the caller's line. Tools pass the options of several formats."""
    with pytest.warns(UserWarning, match=complaint) as warned:
        photo.save(BytesIO(), "SDZ", **option)
    assert warned[0].filename == __file__


class Minimal:
    """A file object with what Pillow's documentation asks of one, and no ``closed``."""

    def __init__(self, data: bytes) -> None:
        self._file = BytesIO(data)
        self.read, self.seek, self.tell = self._file.read, self._file.seek, self._file.tell


def test_a_file_object_needs_no_more_than_pillow_asks_for(photo: Image.Image) -> None:
    data = encode(photo)
    with Image.open(Minimal(data)) as im:  # type: ignore[arg-type]
        assert im.crop((0, 0, 9, 9)).size == (9, 9)
        assert im.tobytes() == decode(data).tobytes()


class OnDisk:
    """A file on disk whose `read` returns less than it is asked for, and whose `seek` returns None.

    `tempfile.SpooledTemporaryFile.seek` returned nothing before Python 3.11.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.tell, self.fileno = file.tell, file.fileno

    def read(self, size: int = -1) -> bytes:
        return self._file.read(min(size, 20) if size > 0 else size)

    def seek(self, offset: int, whence: int = 0) -> None:
        self._file.seek(offset, whence)


def test_files_on_disk_may_read_less_than_asked_for(path: Path) -> None:
    with path.open("rb") as file, Image.open(OnDisk(file)) as im:  # type: ignore[arg-type]
        assert im.tobytes() == decode(path.read_bytes()).tobytes()


def test_parser_says_what_is_wrong(photo: Image.Image) -> None:
    """The parser opens the bytes that it has so far. Later bytes may be damaged."""
    data = encode(photo, xmp=b"<x/>")
    end = data.index(b"DONE")
    damaged = data[:end] + b"NEWS" + data[end + 4 :]
    parser = ImageFile.Parser()
    for start in range(0, len(damaged), 50):
        parser.feed(damaged[start : start + 50])
    with pytest.raises(OSError, match="unknown critical chunk NEWS"):
        parser.close()


def test_public_names_are_listed() -> None:
    listed = dir(pillow_sdz)
    assert set(pillow_sdz.__all__) <= set(listed)
    assert all(hasattr(pillow_sdz, name) for name in listed)
