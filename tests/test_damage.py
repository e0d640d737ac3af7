"""Truncated and damaged files: any bytes give an OSError that says what is wrong."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFile, UnidentifiedImageError

from pillow_sdz import codec, container, decoding, demo, fidelity
from pillow_sdz.arrays import Box
from pillow_sdz.container import Chunk
from sdz_files import decode, encode, framed, replaced


def verify(data: bytes) -> None:
    with Image.open(BytesIO(data)) as im:
        im.verify()


def entries(data: bytes) -> dict[bytes, container.Entry]:
    return {entry.type: entry for entry in container.Reader(BytesIO(data))}


def first_bytes(data: bytes) -> range:
    """The bytes that opening reads: everything before the data of the latents."""
    return range(entries(data)[b"LATN"].start)


def in_metadata(data: bytes, position: int) -> bool:
    """Whether a byte is in the data or the CRC of a metadata chunk or an unknown chunk."""
    return any(
        entry.start <= position < entry.end
        for type, entry in entries(data).items()
        if type not in (b"HEAD", b"LATN", b"ALPH", b"DONE")
    )


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count how often the codec is asked to decode.

    The network is not part of the container, and thousands of damaged files would keep it busy
    for minutes. So it is replaced by a grey picture.
    """
    calls = 0

    def decode(
        latents: decoding.FrameLatents, *, box: Box, **options: object
    ) -> Iterator[tuple[Box, NDArray[np.uint8]]]:
        nonlocal calls
        calls += 1
        assert latents[:, :].shape == latents.shape
        left, top, right, bottom = box
        yield box, np.full((bottom - top, right - left, 3), 128, np.uint8)

    monkeypatch.setattr(codec, "decode", decode)
    return lambda: calls


def test_cut_at_every_position(small_file: bytes, counted: Callable[[], int]) -> None:
    for cut in range(len(small_file)):
        with pytest.raises(OSError, match=r"identify|truncated") as caught:
            decode(small_file[:cut])
        unidentified = isinstance(caught.value, UnidentifiedImageError)
        assert unidentified == (cut < len(container.SIGNATURE))
        if not unidentified:
            assert f"at byte {cut}" in str(caught.value)
        with pytest.raises(OSError, match=r"identify|truncated"):
            verify(small_file[:cut])
    assert counted() == 0


def test_cut_within_the_pixels_opens(small_file: bytes) -> None:
    for cut in range(entries(small_file)[b"LATN"].start, len(small_file)):
        with Image.open(BytesIO(small_file[:cut])) as im:
            assert im.size == (5, 3)
            for _ in range(2):
                with pytest.raises(OSError, match="truncated"):
                    im.load()


@pytest.mark.parametrize("lenient", [False, True])
def test_cut_within_exact_pixels_opens(lenient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact pixels come before the latents.  A part of them cannot be shown."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    page = Image.new("RGB", (160, 120), "white")
    ImageDraw.Draw(page).text((4, 4), "What is written\nis kept exactly", "black")
    data = encode(page)
    where = entries(data)[b"EXCT"]
    for cut in (where.start, where.start + where.length // 2, where.end - 1):
        with Image.open(BytesIO(data[:cut])) as im:
            assert im.size == (160, 120)
            with pytest.raises(OSError, match=f"truncated SDZ file: it ends at byte {cut}"):
                im.load()


@pytest.mark.usefixtures("load_truncated", "counted")
def test_cut_gives_what_can_be_decoded(small_file: bytes) -> None:
    where = entries(small_file)
    whole = decode(small_file)
    for cut in range(where[b"LATN"].start, len(small_file)):
        im = decode(small_file[:cut])
        assert (im.mode, im.size) == (whole.mode, whole.size)
        if cut >= where[b"ALPH"].end:
            assert im.tobytes() == whole.tobytes()
        elif cut >= where[b"LATN"].end:
            assert im.convert("RGB").tobytes() == whole.convert("RGB").tobytes()
            assert im.getchannel("A").getextrema() == (255, 255)


def psnr(a: Image.Image, b: Image.Image) -> float:
    return fidelity.psnr(np.asarray(a), np.asarray(b))


@pytest.mark.usefixtures("load_truncated")
@pytest.mark.parametrize(
    ("model", "part", "least"),
    [
        ("mini", 0.99, 38),  # measured: 40 dB and more
        ("mini", 0.9, 32),
        ("mini", 0.5, 22),
        ("sd-mini", 0.99, 20),  # the lattice is refined by halves, and the finest part comes last
    ],
)
def test_a_cut_photo_is_decoded_as_far_as_it_goes(model: str, part: float, least: float) -> None:
    """The file has a part of its only band. The whole picture is shown, with a warning."""
    photo = demo.photo().resize((768, 512))
    data = encode(photo, model=model, quality=75)
    whole = decode(data)
    cut = data[: int(part * len(data))]
    with pytest.warns(UserWarning, match=rf"ends at byte {len(cut)}.* the rows 0 to 512 are guess"):
        shown = decode(cut)
    assert psnr(whole, shown) > least


@pytest.mark.usefixtures("load_truncated")
@pytest.mark.parametrize(
    ("options", "part", "least"),  # measured: 28.7, 17.0, 12.6 and 23.6 dB
    [
        ({"model": "mini"}, 0.5, 27),
        ({"model": "sd-mini"}, 0.5, 16),
        ({"model": "sd-mini", "coding": "palette"}, 0.5, 12),
        ({"model": "sd-mini", "coding": "palette"}, 0.9, 22),
    ],
)
def test_one_wrong_byte_does_not_hide_what_is_before_it(
    options: dict[str, str], part: float, least: float
) -> None:
    """The rows after it are the prior's guess. A black picture would have 7 dB."""
    data = bytearray(encode(demo.photo().resize((768, 512)), **options))
    whole = decode(bytes(data))
    latents = entries(bytes(data))[b"LATN"]
    data[latents.start + int(part * latents.length)] ^= 0x10
    with pytest.warns(UserWarning, match="its CRC does not match: the rows 0 to 512 are guessed"):
        shown = decode(bytes(data))
    assert psnr(whole, shown) > least


@pytest.mark.usefixtures("load_truncated")
def test_a_cut_palette_is_decoded_as_far_as_it_goes() -> None:
    """The places are coded from the top left to the bottom right."""
    data = encode(demo.photo().resize((768, 512)), model="sd-mini", coding="palette")
    whole = decode(data)
    with pytest.warns(UserWarning, match="the rows 0 to 512 are guessed in part"):
        shown = decode(data[: len(data) // 2])
    above = (0, 0, 256, 192)
    assert psnr(whole.crop(above), shown.crop(above)) > 48  # measured: 49.9 dB


@pytest.mark.usefixtures("load_truncated")
def test_what_cannot_be_begun_is_black() -> None:
    data = encode(demo.photo().resize((64, 48)), model="sd-mini", coding="float16")
    with pytest.warns(UserWarning, match="the rows 0 to 48 are black"):
        shown = decode(data[: len(data) * 9 // 10])
    assert shown.getextrema() == ((0, 0),) * 3


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("flip", [0xFF, *(1 << bit for bit in range(8))], ids=hex)
def test_flip_every_byte(small_file: bytes, flip: int) -> None:
    data = bytearray(small_file)
    for position in range(len(data)):
        data[position] ^= flip
        for check in (decode, verify):
            with pytest.raises(OSError, match=r"SDZ|identify") as caught:
                check(bytes(data))
            unidentified = isinstance(caught.value, UnidentifiedImageError)
            assert unidentified == (position < len(container.SIGNATURE)), position
        data[position] ^= flip


@pytest.mark.usefixtures("load_truncated", "counted")
def test_flip_every_byte_with_load_truncated(small_file: bytes) -> None:
    data = bytearray(small_file)
    for position in range(len(data)):
        data[position] ^= 0xFF
        try:
            im = decode(bytes(data))
        except OSError:
            loaded = False
        else:
            loaded = True
            assert im.size == (5, 3)
        # Framing and header must be right up to the latents. Metadata and pixels may be wrong.
        framing = position in first_bytes(small_file) and not in_metadata(small_file, position)
        assert loaded is not framing
        data[position] ^= 0xFF


@pytest.mark.usefixtures("load_truncated")
def test_damaged_latents_are_guessed_and_damaged_alpha_opaque(small_file: bytes) -> None:
    whole = decode(small_file)
    where = entries(small_file)
    data = bytearray(small_file)
    data[where[b"LATN"].start] ^= 1
    with pytest.warns(UserWarning, match="the rows 0 to 3 are guessed in part"):
        guessed = decode(bytes(data))
    assert guessed.size == whole.size
    assert guessed.getchannel("A").tobytes() == whole.getchannel("A").tobytes()
    data = bytearray(small_file)
    data[where[b"ALPH"].start] ^= 1
    im = decode(bytes(data))
    assert im.convert("RGB").tobytes() == whole.convert("RGB").tobytes()
    assert im.getchannel("A").getextrema() == (255, 255)


def test_damage_names_chunk_and_place(small_file: bytes) -> None:
    for type, entry in entries(small_file).items():
        data = bytearray(small_file)
        data[entry.end - 1] ^= 1
        with pytest.raises(OSError, match=f"chunk {type.decode()} at byte {entry.offset}: its CRC"):
            decode(bytes(data))


def test_a_failed_load_fails_again(small_file: bytes) -> None:
    data = bytearray(small_file)
    data[entries(small_file)[b"LATN"].start] ^= 1
    with Image.open(BytesIO(bytes(data))) as im:
        for _ in range(3):
            with pytest.raises(OSError, match="LATN"):
                im.load()
        with pytest.raises(OSError, match="LATN"):
            im.copy()


def test_parser_raises_for_damage(small_file: bytes) -> None:
    data = bytearray(small_file)
    data[entries(small_file)[b"LATN"].start] ^= 1
    parser = ImageFile.Parser()
    parser.feed(bytes(data))
    with pytest.raises(OSError, match="LATN"):
        parser.close()


@pytest.mark.parametrize("payload", [b"\0", b"\0\0", b"\xff" * 50, bytes(2000)], ids=len)
def test_hostile_latents_behind_a_right_crc(small_file: bytes, payload: bytes) -> None:
    """A range decoder makes some picture of almost any bytes. Only an encoder's bytes are valid."""
    with pytest.raises(OSError, match=r"chunk LATN at byte 104: the words do not (?:decode|end)"):
        decode(replaced(small_file, b"LATN", payload))


def test_empty_latents_are_a_picture(small_file: bytes) -> None:
    """This takes no bytes. The file has another picture, but it is whole and keeps its alpha."""
    im, original = decode(replaced(small_file, b"LATN", b"")), decode(small_file)
    assert (im.mode, im.size) == ("RGBA", (5, 3))
    assert im.getchannel("A").tobytes() == original.getchannel("A").tobytes()
    assert im.convert("RGB").tobytes() != original.convert("RGB").tobytes()


def png(size: tuple[int, int], mode: str = "L") -> bytes:
    buffer = BytesIO()
    Image.effect_noise(size, 50).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def bomb(levels: bytes) -> bytes:
    """A PNG that says 5x3 and holds these levels. Half a megabyte of zeros follows."""
    start, rest = png((5, 3)).split(b"IDAT")
    rows = [b"\0" + levels[at : at + 5] for at in (0, 5, 10)]  # not filtered
    squeezed = zlib.compress(b"".join(rows) + bytes(1 << 19))
    body = b"IDAT" + squeezed
    chunk = struct.pack(">I", len(squeezed)) + body + struct.pack(">I", zlib.crc32(body))
    return start[:-4] + chunk + rest[-12:]


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize(
    "alpha",
    [
        b"",
        b"\0",
        b"\0\0\0",
        b"\2\0",
        b"\1",
        b"\1" + png((5, 3))[:-30],
        b"\1" + png((5, 3))[:40] + bytes(30),
        b"\1" + png((3, 5)),
        b"\1" + png((5, 3), "1"),
        b"\1" + png((5, 3), "RGB"),
        b"\1" + png((5, 3), "I;16"),
        b"\1" + b"GIF89a" + bytes(50),
        b"\3",
        b"\3" + bytes(50),
        b"\3" + struct.pack(">IBI", 5, 0x2F, 4 | 2 << 14),
        b"\4",
        b"\4\0",
        b"\5",
    ],
    ids=lambda alpha: f"{len(alpha)} bytes",
)
def test_hostile_alpha_behind_a_right_crc(small_file: bytes, alpha: bytes) -> None:
    with pytest.raises(OSError, match="ALPH"):
        decode(replaced(small_file, b"ALPH", alpha))


@pytest.mark.usefixtures("counted")
def test_alpha_png_that_holds_more_than_it_says(small_file: bytes) -> None:
    """The alpha channel has the size that the PNG says. The surplus is ignored."""
    levels = bytes(range(100, 115))
    im = decode(replaced(small_file, b"ALPH", b"\1" + bomb(levels)))
    assert im.size == (5, 3)
    assert im.getchannel("A").tobytes() == levels


def test_lying_lengths_are_refused_before_allocation(small_file: bytes) -> None:
    """A file of few bytes has a length of gigabytes. The reader must not allocate them."""

    class WatchedFile(BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            assert 0 <= size <= 10_000
            return super().read(size)

    head = small_file[: entries(small_file)[b"HEAD"].end]
    for type in (b"LATN", b"xMPm", b"abCd"):
        data = head + b"\xff\xff\xff\xff\x0f" + type + bytes(100)
        with pytest.raises(OSError, match="more than the limit"):
            Image.open(WatchedFile(data))
    # This is within the limit, but more than the file holds.
    data = head + b"\xff\xff\xff\x03" + b"abCd" + bytes(100)
    with pytest.raises(OSError, match="truncated"):
        Image.open(WatchedFile(data))


def test_unknown_critical_chunk_is_refused_by_name(small_file: bytes) -> None:
    chunks = container.read(small_file)
    for place in range(1, len(chunks)):
        data = framed([*chunks[:place], Chunk(b"NEWS", b"x"), *chunks[place:]])
        with pytest.raises(OSError, match="unknown critical chunk NEWS"):
            Image.open(BytesIO(data))


def test_files_that_never_end(photo: Image.Image) -> None:
    """There are very many empty chunks. The reader stops after the 1000 that are allowed."""
    chunks = container.read(encode(photo))
    data = framed([chunks[0], *[Chunk(b"abCd", b"")] * 100_000])
    with pytest.raises(OSError, match="more than 1000 chunks"):
        Image.open(BytesIO(data))
