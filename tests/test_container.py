"""The container: exact bytes, the order of chunks, and what must be refused."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import pytest

from pillow_sdz import container
from pillow_sdz.animation import Animation
from pillow_sdz.chunks import BANDS, PROMPT, Denoising
from pillow_sdz.container import Chunk
from pillow_sdz.header import MODES, Header
from pillow_sdz.order import MAX_CHANGES
from sdz_files import CountingFile, CountingReads, framed

HEADER = Header(
    mode="RGB",
    size=(768, 512),
    model="mini",
    digest=b"\x01\x02\x03\x04",
    channels=160,
    factor=16,
    quantisation=7500,
)
HEAD = Chunk(b"HEAD", HEADER.pack())
LATN = Chunk(b"LATN", b"latents")
DIFF = Chunk(b"DIFF", b"changes")
DONE = Chunk(b"DONE", b"")


def header(**fields: Any) -> Header:
    return HEADER._replace(**fields)


def head(**fields: Any) -> Chunk:
    return Chunk(b"HEAD", header(**fields).pack())


def test_exact_bytes() -> None:
    written = container.write([HEAD, LATN, DONE])

    head_data = bytes.fromhex("01 01 0300 0200 0001 04 6d696e69 01020304 00a0 10 00 1d4c")
    assert written == b"".join(
        [
            b"\x8bSDZ\r\n\x1a\n",
            bytes([len(head_data)]),
            b"HEAD",
            head_data,
            zlib.crc32(b"HEAD" + head_data).to_bytes(4, "big"),
            b"\x07LATNlatents",
            zlib.crc32(b"LATNlatents").to_bytes(4, "big"),
            b"\x00DONE",
            zlib.crc32(b"DONE").to_bytes(4, "big"),
        ]
    )
    assert container.size([HEAD, LATN, DONE]) == len(written)


def test_header_round_trips() -> None:
    for mode in MODES:
        for size in ((1, 1), (65535, 65535)):
            written = header(mode=mode, size=size, channels=65535, factor=255, quantisation=100)
            assert Header.parse(written.pack()) == written


def test_latents_shape_rounds_up() -> None:
    assert header(size=(17, 16)).latents == (160, 1, 2)


def test_unknown_skippable_chunks_round_trip_in_place() -> None:
    chunks = [
        HEAD,
        Chunk(b"abCd", b"first"),
        Chunk(b"iCCP", b"profile"),
        Chunk(b"abCd", b"again"),
        LATN,
        Chunk(b"zzZZ", b""),
        DONE,
    ]
    assert container.read(container.write(chunks)) == chunks


@pytest.mark.parametrize("length", [0, 127, 128, 16383, 16384, 2097151, 2097152])
def test_length_is_the_shortest_varint(length: int) -> None:
    chunks = [head(size=(2000, 2000)), Chunk(b"LATN", bytes(length)), DONE]
    written = container.write(chunks)
    assert container.read(written) == chunks
    assert len(written) == container.size(chunks)


@pytest.mark.parametrize(
    ("length", "complaint"),
    [
        (b"\x80\x00", "chunk length"),  # 0 in two bytes
        (b"\x87\x80\x00", "chunk length"),
        (b"\x80\x80\x80\x80\x80\x00", "chunk length"),  # six bytes
        (b"\xff\xff\xff\xff\x1f", "chunk length"),  # above 2^32 - 1
        (b"\xff\xff\xff\xff\x0f", "more than the limit"),  # 2^32 - 1, well formed
    ],
)
def test_bad_lengths_are_refused(length: bytes, complaint: str) -> None:
    start = framed([HEAD])
    with pytest.raises(OSError, match=complaint):
        container.read(start + length + b"LATN" + bytes(100))


@pytest.mark.parametrize(
    ("chunks", "complaint"),
    [
        ([LATN, HEAD, DONE], "HEAD"),
        ([HEAD, DONE], "DONE after 0 of 1 LATN"),
        ([HEAD, HEAD, LATN, DONE], "second HEAD"),
        ([HEAD, LATN, LATN, DONE], "more LATN than frames"),
        ([HEAD, Chunk(b"eXIf", b""), Chunk(b"eXIf", b""), LATN, DONE], "second eXIf"),
        ([HEAD, LATN, Chunk(b"iCCP", b""), DONE], "iCCP after LATN"),
        ([HEAD, LATN, Chunk(b"ALPH", b""), DONE], "ALPH in a file of mode RGB"),
        ([head(mode="LA"), Chunk(b"ALPH", b""), LATN, DONE], "ALPH before LATN"),
        ([head(mode="LA"), LATN, DONE], "DONE before ALPH"),
        ([HEAD, LATN, Chunk(b"DONE", b"x")], "DONE has 1 bytes"),
        ([HEAD, Chunk(b"NEWS", b""), LATN, DONE], "unknown critical chunk NEWS"),
        ([HEAD, Chunk(b"a1Cd", b""), LATN, DONE], "bad chunk type"),
        ([HEAD, *[Chunk(b"abCd", b"")] * 999, LATN, DONE], "more than 1000 chunks"),
        ([HEAD, Chunk(b"xMPm", bytes((8 << 20) + 1)), LATN, DONE], "xMPm has 8388609 bytes"),
        ([HEAD, Chunk(b"abCd", bytes((8 << 20) + 1)), LATN, DONE], "abCd has 8388609 bytes"),
        ([head(size=(1, 1)), Chunk(b"LATN", bytes(160 * 8 + 1025)), DONE], "LATN has 2305 bytes"),
    ],
)
def test_rules_bind_reader_and_writer(chunks: list[Chunk], complaint: str) -> None:
    with pytest.raises(OSError, match=complaint):
        container.read(framed(chunks))
    with pytest.raises(ValueError, match=complaint):
        container.write(chunks)


def test_limits_are_allowed() -> None:
    chunks = [head(size=(1, 1)), *[Chunk(b"abCd", b"")] * 998]
    chunks += [Chunk(b"LATN", bytes(160 * 8 + 1024)), DONE]
    assert container.read(container.write(chunks)) == chunks


def test_every_frame_has_its_latents_and_its_alpha() -> None:
    alpha = Chunk(b"ALPH", b"\0\xff")
    two = head(frames=2, mode="LA")
    chunks = [two, LATN, alpha, LATN, alpha, DONE]
    assert container.read(container.write(chunks)) == chunks
    for wrong, complaint in (
        ([two, LATN, LATN, alpha, DONE], "LATN before ALPH"),
        ([two, LATN, alpha, alpha, LATN, DONE], "second ALPH"),
        ([two, LATN, alpha, DONE], "DONE after 1 of 2 LATN"),
        ([two, LATN, alpha, LATN, DONE], "DONE before ALPH"),
    ):
        with pytest.raises(ValueError, match=complaint):
            container.write(wrong)


def test_many_frames_are_no_many_chunks() -> None:
    chunks = [head(frames=2000), *[LATN] * 2000, DONE]
    assert container.read(container.write(chunks)) == chunks


def band(rows: int) -> Chunk:
    return Chunk(b"BAND", BANDS.pack(rows))


@pytest.mark.parametrize(
    ("chunks", "complaint"),
    [
        ([head(frames=2), DIFF, LATN, DONE], "DIFF in the first frame"),
        ([HEAD, LATN, DIFF, DONE], "more LATN than frames"),
        ([head(frames=300), *[LATN] * 301, DONE], "more LATN than frames"),
        ([head(frames=2), LATN, DONE], "DONE after 1 of 2 LATN"),
        ([head(frames=MAX_CHANGES + 2), LATN, *[DIFF] * (MAX_CHANGES + 1), DONE], "255 DIFF"),
        ([head(frames=2), LATN, Chunk(b"aNIM", bytes(6)), LATN, DONE], "aNIM after LATN"),
        ([HEAD, *[Chunk(b"aNIM", bytes(6))] * 2, LATN, DONE], "second aNIM"),
        # 768x512 pixels have 32 rows of latents.
        ([HEAD, band(16), LATN, DONE], "DONE after 1 of 2 LATN"),
        ([HEAD, band(16), LATN, LATN, LATN, DONE], "more LATN than frames"),
        ([HEAD, band(16), LATN, DIFF, DONE], "DIFF in the first frame"),
        ([head(mode="LA"), band(16), LATN, Chunk(b"ALPH", b"\0\0"), LATN, DONE], "ALPH before"),
        ([HEAD, LATN, band(16), DONE], "BAND after LATN"),
        ([HEAD, band(16), band(16), LATN, LATN, DONE], "second BAND"),
        ([HEAD, band(0), LATN, DONE], "bands of 0 rows in a picture of 32"),
        ([HEAD, band(15), *[LATN] * 3, DONE], "bands of 15 rows in a picture of 32"),
        ([HEAD, band(32), LATN, DONE], "bands of 32 rows in a picture of 32"),
        ([HEAD, Chunk(b"BAND", b"\0"), LATN, DONE], "BAND has 1 bytes"),
        (
            # Each band has its own limit, here that of 2 rows of 48 latents.
            [HEAD, band(30), LATN, Chunk(b"LATN", bytes(8 * 160 * 96 + 1025)), DONE],
            "LATN has 123905 bytes",
        ),
    ],
)
def test_rules_of_frames_and_bands(chunks: list[Chunk], complaint: str) -> None:
    with pytest.raises(OSError, match=complaint):
        container.read(framed(chunks))
    with pytest.raises(ValueError, match=complaint):
        container.write(chunks)


@pytest.mark.parametrize(
    "chunks",
    [
        [head(frames=3), LATN, DIFF, LATN, DONE],
        [head(frames=MAX_CHANGES + 3), LATN, *[DIFF] * MAX_CHANGES, LATN, DIFF, DONE],
        [HEAD, band(2), *[LATN] * 16, DONE],
        [HEAD, band(30), LATN, Chunk(b"LATN", bytes(8 * 160 * 96 + 1024)), DONE],
        # Every band has its own row of changes.
        [head(frames=3), band(16), LATN, LATN, DIFF, LATN, DIFF, DIFF, DONE],
        [head(frames=2), Chunk(b"aNIM", bytes(6)), LATN, DIFF, DONE],
    ],
    ids=["changes", "as many as may be", "bands", "limit", "by bands", "times"],
)
def test_frames_and_bands(chunks: list[Chunk]) -> None:
    assert container.read(container.write(chunks)) == chunks


def test_where_frames_lie() -> None:
    """The bands of each frame are in order, and its alpha.

    Missing parts of a cut file are left out.
    """
    alpha = Chunk(b"ALPH", b"\2")
    chunks = [head(frames=2, mode="LA"), band(16), LATN, LATN, alpha, DIFF, LATN, alpha, DONE]
    reader = container.Reader(BytesIO(container.write(chunks)))
    entries = list(reader)
    assert reader.bands == [slice(0, 16), slice(16, 32)]
    frames = container.Frames(entries, 2)
    assert [frames.bands(number) for number in (0, 1)] == [entries[2:4], entries[5:7]]
    assert [frames.alpha(number) for number in (0, 1)] == [entries[4], entries[7]]
    assert frames.exact(0) is None
    cut = container.Frames(entries[:6], 2)
    assert (len(cut), cut.bands(1), cut.alpha(1)) == (2, [entries[5]], None)
    assert (cut.band(1, 0), cut.band(1, 1)) == (entries[5], None)


@pytest.mark.parametrize("durations", [(40,), (40, 0, 4294967295)])
def test_animation_round_trips(durations: tuple[int, ...]) -> None:
    """The data is a u16, then one u32 for all frames or one u32 for each frame."""
    animation = Animation(3, durations)
    data = animation.pack()
    assert data == struct.pack(f">H{len(durations)}I", 3, *durations)
    assert Animation.parse(data, header(frames=3)) == animation
    assert [animation.duration(n) for n in range(3)] == list((durations * 3)[:3])
    first, second, _ = (animation.duration(n) for n in range(3))
    assert animation.timestamps(3) == [0, first, first + second]


@pytest.mark.parametrize("length", [0, 2, 5, 7, 2 + 2 * 4, 2 + 4 * 4])
def test_durations_of_other_frames_are_refused(length: int) -> None:
    with pytest.raises(OSError, match=f"aNIM has {length} bytes for 3 frames"):
        Animation.parse(bytes(length), header(frames=3))


def test_recommended_denoising_is_bounded() -> None:
    assert Denoising.parse(Denoising(40, 3).pack(), HEADER) == (40, 3)
    for bad in (Denoising(0, 3), Denoising(201, 3), Denoising(40, 0), Denoising(40, 21)):
        with pytest.raises(ValueError, match="denoising"):
            bad.pack()
        with pytest.raises(OSError, match="dNOI"):
            Denoising.parse(struct.pack(">HB", *bad), HEADER)
    with pytest.raises(OSError, match="dNOI has 2 bytes"):
        Denoising.parse(b"\0\1", HEADER)


def test_prompts_are_utf8_and_not_endless() -> None:
    assert PROMPT.parse(PROMPT.pack("ein Café"), HEADER) == "ein Café"
    with pytest.raises(ValueError, match="8193 bytes, more than the limit of 8192"):
        PROMPT.pack("x" * 8193)
    with pytest.raises(OSError, match="pRMT is not UTF-8"):
        PROMPT.parse(b"\xff", HEADER)


def test_write_needs_the_end() -> None:
    with pytest.raises(ValueError, match="DONE"):
        container.write([HEAD, LATN])
    with pytest.raises(ValueError, match="after DONE"):
        container.write([HEAD, LATN, DONE, DONE])


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(OSError, match="1 bytes after its end"):
        container.read(container.write([HEAD, LATN, DONE]) + b"\0")


@pytest.mark.parametrize(
    ("position", "value", "complaint"),
    [
        (0, 2, "newer version"),
        (1, 4, "unknown mode 4"),
        (7, 0, "0 frames"),
        (9, ord("M"), "model name"),
        (19, 0, "factor 0"),
    ],
)
def test_bad_header_fields_are_refused(position: int, value: int, complaint: str) -> None:
    data = bytearray(HEAD.data)
    data[position] = value
    with pytest.raises(OSError, match=complaint):
        container.read(framed([Chunk(b"HEAD", bytes(data)), LATN, DONE]))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"mode": "CMYK"}, "mode CMYK"),
        ({"size": (0, 1)}, "size 0x1"),
        ({"size": (1, 65536)}, "size 1x65536"),
        ({"model": ""}, "model name"),
        ({"model": "a" * 33}, "model name"),
        ({"model": "été"}, "model name"),
        ({"digest": b"abc"}, "digest"),
        ({"channels": 0}, "0 latent channels"),
        ({"factor": 256}, "factor 256"),
        ({"coding": 256}, "coding 256"),
        ({"quantisation": -1}, "quantisation of -1"),
        ({"quantisation": 65536}, "quantisation of 65536"),
        ({"frames": 0}, "0 frames"),
        ({"frames": 65536}, "65536 frames"),
    ],
)
def test_bad_header_fields_are_not_written(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        header(**fields).pack()


def test_reading_stops_at_what_is_asked_for() -> None:
    """The walk reads only the framing. Opening does not read the megabytes of a picture."""

    fp = CountingFile(container.write([HEAD, Chunk(b"LATN", bytes(1_000_000)), DONE]))
    assert [entry.type for entry in container.Reader(fp)] == [b"HEAD", b"LATN", b"DONE"]
    assert fp.count < 100


def test_bands_of_all_frames_are_limited() -> None:
    """Opening walks over all bands. 65,535 is also the largest number of frames in a header."""
    many = [head(size=(16, 16 * 64), frames=2048), band(2)]
    with pytest.raises(ValueError, match="65536 bands of all frames, more than the limit of 65535"):
        container.write([*many, LATN])
    with pytest.raises(OSError, match="65536 bands of all frames, more than the limit of 65535"):
        container.read(framed([*many, LATN, DONE]))
    fewer = [head(size=(16, 16 * 64), frames=2047), band(2), *[LATN] * 32 * 2047, DONE]
    assert len(container.Frames(container.Reader(BytesIO(container.write(fewer))), 32)) == 2047


def test_short_reads_are_read_on() -> None:
    """A raw file may return fewer bytes than asked for. The reader then reads again."""

    class Raw(BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size, 3) if size and size > 0 else size)

    data = container.write([HEAD, LATN, DONE])
    reader = container.Reader(Raw(data))
    assert [reader.data(entry) for entry in reader] == [HEAD.data, LATN.data, b""]


def test_a_file_may_return_any_kind_of_bytes() -> None:
    """Pillow's JPEG, PNG, GIF and AVIF take a bytearray, too."""

    class Arrays(BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return bytearray(super().read(size))  # type: ignore[return-value]

    data = container.write([HEAD, LATN, DONE])
    reader = container.Reader(Arrays(data))
    assert [reader.data(entry) for entry in reader] == [HEAD.data, LATN.data, b""]


def test_thousands_of_chunks_are_read_ahead() -> None:
    """Short chunks are read by kilobytes. A long one is still not read."""
    file = CountingReads(container.write([head(frames=5000), *[Chunk(b"LATN", b"")] * 5000, DONE]))
    assert len(list(container.Reader(file))) == 5002
    assert file.calls < 50
