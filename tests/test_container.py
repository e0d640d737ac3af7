"""The container: exact bytes, what may stand where, and what must be refused."""

from __future__ import annotations

import zlib
from typing import Any

import pytest

from pillow_sdz import container
from pillow_sdz.container import Chunk, Header
from sdz_files import CountingFile, framed

HEADER = Header(
    mode="RGB",
    size=(768, 512),
    model="mini",
    digest=b"\x01\x02\x03\x04",
    channels=160,
    factor=16,
    quality=7500,
)
HEAD = Chunk(b"HEAD", HEADER.pack())
LATN = Chunk(b"LATN", b"latents")
DONE = Chunk(b"DONE", b"")


def header(**fields: Any) -> Header:
    return Header(**{**vars(HEADER), **fields})


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
    for mode in container.MODES:
        for size in ((1, 1), (65535, 65535)):
            written = header(mode=mode, size=size, channels=65535, factor=255, quality=100)
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


@pytest.mark.parametrize("budget", [*range(300), 16390, 16391, 16392, 16393, 16394, 2_097_162])
def test_largest_data_fits_and_one_more_byte_does_not(budget: int) -> None:
    length = container.largest_data(budget)
    assert length >= 0 or budget < container.chunk_size(0)
    assert length < 0 or container.chunk_size(length) <= budget
    assert container.chunk_size(length + 1) > budget


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
        ([HEAD, DONE], "DONE before LATN"),
        ([HEAD, HEAD, LATN, DONE], "second HEAD"),
        ([HEAD, LATN, LATN, DONE], "second LATN"),
        ([HEAD, Chunk(b"eXIf", b""), Chunk(b"eXIf", b""), LATN, DONE], "second eXIf"),
        ([HEAD, LATN, Chunk(b"iCCP", b""), DONE], "iCCP after LATN"),
        ([HEAD, LATN, Chunk(b"ALPH", b""), DONE], "ALPH in a file of mode RGB"),
        ([head(mode="LA"), Chunk(b"ALPH", b""), LATN, DONE], "ALPH before LATN"),
        ([head(mode="LA"), LATN, DONE], "no ALPH in a file of mode LA"),
        ([HEAD, LATN, Chunk(b"DONE", b"x")], "DONE has 1 bytes"),
        ([HEAD, Chunk(b"NEWS", b""), LATN, DONE], "unknown critical chunk NEWS"),
        ([HEAD, Chunk(b"a1Cd", b""), LATN, DONE], "bad chunk type"),
        ([HEAD, *[Chunk(b"abCd", b"")] * 998, LATN, DONE], "more than 1000 chunks"),
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
    chunks = [head(size=(1, 1)), *[Chunk(b"abCd", b"")] * 997]
    chunks += [Chunk(b"LATN", bytes(160 * 8 + 1024)), DONE]
    assert container.read(container.write(chunks)) == chunks


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
        (7, 2, "frames are not supported yet"),
        (9, ord("M"), "model name"),
        (20, 1, "coding 1 is not known"),
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
        ({"coding": "palette"}, "coding palette"),
        ({"quality": 99}, "quality 0.99"),
        ({"quality": 10001}, "quality 100.01"),
    ],
)
def test_bad_header_fields_are_not_written(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        header(**fields).pack()


def test_reading_stops_at_what_is_asked_for() -> None:
    """The walk reads framings only: a picture's megabytes are not touched by opening it."""

    fp = CountingFile(container.write([HEAD, Chunk(b"LATN", bytes(1_000_000)), DONE]))
    assert [entry.type for entry in container.Reader(fp)] == [b"HEAD", b"LATN", b"DONE"]
    assert fp.count < 100
