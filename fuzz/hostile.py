"""Hostile files. `python -m fuzz.hostile` writes them to fixtures/hostile/ and shows their cost.

tests/test_hostile.py says what must happen to each. Files that fuzzing found are in the same
folder. Their names begin with "crash-".
"""

from __future__ import annotations

import struct
import time
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pillow_sdz import alpha, catalogue, chunks, container, exact, save_latents
from pillow_sdz.container import Chunk
from pillow_sdz.header import Header

from .seeds import all_changed, unchanged
from .targets import latents_of, opened, shown

FOLDER = Path(__file__).parent.parent / "fixtures" / "hostile"

SD_MINI = Header("RGB", (16, 16), "sd-mini", catalogue.SD_MINI.digest, 4, 8, 100)
MINI = Header("RGB", (16, 16), "mini", catalogue.MINI.digest, 384, 16, 5000)
STRANGE = SD_MINI._replace(model="strange-1", digest=catalogue.NOT_NAMED)
FLUX2 = SD_MINI._replace(model="flux2", digest=catalogue.NOT_NAMED, channels=32)
LATN = Chunk(chunks.LATENTS, bytes([2]))  # the number of sd-mini's prior, and the likeliest latents
EMPTY = Chunk(chunks.LATENTS, b"")  # the likeliest latents of `mini`
BANDED = MINI._replace(size=(16, 96))  # six rows of latents
SAME = Chunk(chunks.CHANGES, unchanged(1, 1))
ALL_CHANGED = Chunk(chunks.CHANGES, all_changed(8, 8))
DONE = Chunk(chunks.DONE, b"")


def chunk(type: bytes, data: bytes, length: bytes | None = None) -> bytes:
    """A chunk with a right CRC, even if it breaks the rules. ``length`` replaces its own length."""
    body = type + data
    return (length or _leb128(len(data))) + body + struct.pack(">I", zlib.crc32(body))


def _leb128(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def file(header: Header | bytes, *parts: Chunk | bytes) -> bytes:
    """A file of a header, then chunks or raw bytes, then DONE."""
    head = header if isinstance(header, bytes) else chunk(chunks.HEAD, header.pack())
    packed = [part if isinstance(part, bytes) else chunk(*part) for part in (*parts, DONE)]
    return b"".join([container.SIGNATURE, head, *packed])


def _head(position: int, value: bytes) -> bytes:
    """The HEAD chunk of `SD_MINI` with a field that its writer would refuse."""
    data = bytearray(SD_MINI.pack())
    data[position : position + len(value)] = value
    return chunk(chunks.HEAD, bytes(data))


def _png(size: tuple[int, int], pixels: bytes, *others: tuple[bytes, bytes]) -> bytes:
    ihdr = struct.pack(">II5B", *size, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", ihdr), *others, (b"IDAT", zlib.compress(pixels, 9)), (b"IEND", b"")]
    framed = [
        struct.pack(">I", len(data)) + type + data + struct.pack(">I", zlib.crc32(type + data))
        for type, data in chunks
    ]
    return b"".join([b"\x89PNG\r\n\x1a\n", *framed])


def _alpha(size: tuple[int, int], png: bytes) -> bytes:
    header = SD_MINI._replace(mode="RGBA", size=size)
    return file(header, LATN, Chunk(chunks.ALPHA, b"\1" + png))


def _alpha_of_parts(width: int, height: int) -> bytes:
    """A picture of 16x16 pixels.  The bitstream of its alpha says this size, and ends."""
    start = struct.pack("<BI", 0x2F, width - 1 | height - 1 << 14)
    data = b"\3" + struct.pack(">I", len(start)) + start
    return file(SD_MINI._replace(mode="RGBA", size=(16, 16)), LATN, Chunk(chunks.ALPHA, data))


def _exact_with_alpha(mode: str, alpha: bytes) -> bytes:
    """A picture whose EXCT has its alpha."""
    picture = Image.linear_gradient("L").resize((16, 16)).convert("RGBA")
    picture.putalpha(Image.radial_gradient("L").resize((16, 16)))
    data = Chunk(chunks.EXACT, exact.with_alpha(picture, keeps_hidden=True))
    about = [Chunk(chunks.ALPHA, alpha)] if alpha else []
    return file(MINI._replace(mode=mode, size=(16, 16)), data, EMPTY, *about)


def _texts(count: int) -> list[tuple[bytes, bytes]]:
    """PNG chunks of a mebibyte of text each."""
    text = zlib.compress(bytes(1 << 20), 9)
    return [(b"zTXt", b"%d\0\0" % number + text) for number in range(count)]


def _lossless(values: np.ndarray[Any, Any]) -> bytes:
    written = BytesIO()
    save_latents(values, written, model="sd-mini", lossless="float16")
    return written.getvalue()


def _latents(payload: bytes, **header: Any) -> bytes:
    return file(SD_MINI._replace(**header), Chunk(chunks.LATENTS, payload))


# A second IHDR for a PNG of 16x16 grey pixels: the first has more pixels, the second has colours.
OTHER_SIZE = b"IHDR", struct.pack(">II5B", 8192, 8192, 8, 0, 0, 0, 0)
OTHER_KIND = b"IHDR", struct.pack(">II5B", 16, 16, 8, 6, 0, 0, 0)


def files() -> dict[str, bytes]:
    """All hostile files by name, without the suffix."""
    nan = np.full((4, 2, 2), np.nan, np.float16)
    nan[0] = [[np.inf, -np.inf], [65504, 6e-8]]
    zeros = zlib.compress(bytes(9 << 20), 9)
    return {
        # the framing of chunks
        "signature-alone": container.SIGNATURE,
        "head-missing": file(b"", LATN),
        "head-empty": file(chunk(chunks.HEAD, b"")),
        "head-twice": file(SD_MINI, Chunk(chunks.HEAD, SD_MINI.pack()), LATN),
        "length-of-4-gigabytes": file(SD_MINI, chunk(b"LATN", bytes(9), b"\xff\xff\xff\xff\x0f")),
        "length-of-8-megabytes": file(SD_MINI, chunk(b"abcd", bytes(9), b"\x80\x80\x80\x04")),
        "length-not-the-shortest": file(SD_MINI, chunk(b"LATN", b"\2", b"\x81\x00")),
        "length-without-end": file(SD_MINI, b"\xff" * 99),
        "crc-wrong": file(SD_MINI, chunk(b"xMPm", b"<x/>")[:-1] + b"\0", LATN),
        "type-not-of-letters": file(SD_MINI, chunk(b"a\0cd", b""), LATN),
        "type-unknown-and-critical": file(SD_MINI, chunk(b"NEWS", b""), LATN),
        "bytes-after-the-end": file(SD_MINI, LATN) + b"PK\3\4",
        "chunks-1001": file(SD_MINI, *[chunk(b"abcd", b"")] * 999, LATN),
        "chunks-1000": file(SD_MINI, *[chunk(b"abcd", b"x" * 20)] * 998, LATN),
        "bands-odd": file(BANDED, chunk(b"BAND", b"\0\3"), *[EMPTY] * 3),
        "bands-of-all-rows": file(BANDED, chunk(b"BAND", b"\0\6"), EMPTY),
        "bands-of-no-rows": file(BANDED, chunk(b"BAND", b"\0\0"), EMPTY),
        "bands-of-8-megabytes": file(BANDED, chunk(b"BAND", b"", b"\x80\x80\x80\4")),
        "bands-too-few": file(BANDED, chunk(b"BAND", b"\0\2"), EMPTY, EMPTY),
        "bands-too-many": file(BANDED, chunk(b"BAND", b"\0\2"), *[EMPTY] * 4),
        "bands-of-another-model": file(
            SD_MINI._replace(size=(16, 48)), chunk(b"BAND", b"\0\2"), *[LATN] * 3
        ),
        "changes-first": file(MINI, chunk(b"DIFF", b"")),
        "changes-without-end": file(MINI._replace(frames=300), EMPTY, *[SAME] * 299),
        "changes-of-all-frames": file(MINI._replace(frames=256), EMPTY, *[SAME] * 255),
        "changes-of-all-latents": file(
            MINI._replace(size=(128, 128), frames=39), EMPTY, *[ALL_CHANGED] * 38
        ),
        "changes-that-are-none": file(MINI._replace(frames=2), EMPTY, chunk(b"DIFF", b"")),
        "changes-of-another-model": file(SD_MINI._replace(frames=2), LATN, chunk(b"DIFF", b"")),
        "animation-of-other-frames": file(
            SD_MINI._replace(frames=3), chunk(b"aNIM", bytes(2 + 4 * 2)), *[LATN] * 3
        ),
        "alpha-as-before-the-first": file(
            MINI._replace(mode="LA"), EMPTY, Chunk(chunks.ALPHA, alpha.AS_BEFORE)
        ),
        # what the header says
        "size-65535": file(SD_MINI._replace(size=(65535, 65535)), LATN),
        "size-0": file(_head(2, bytes(2)), LATN),
        "frames-0": file(_head(6, bytes(2)), LATN),
        "frames-65535-of-1": file(SD_MINI._replace(frames=65535), LATN),
        "frames-1-of-2": file(SD_MINI, LATN, LATN),
        "frames-7000": file(SD_MINI._replace(frames=7000), *[chunk(b"LATN", b"")] * 7000),
        "model-is-a-path": file(_head(9, b"../../x"), LATN),
        "model-of-other-channels": file(MINI._replace(channels=4), LATN),
        "model-without-latents": file(MINI._replace(model="mini-perceptual"), LATN),
        "model-of-other-weights": file(MINI._replace(digest=b"\1\2\3\4"), LATN),
        "quantisation-0": file(_head(len(SD_MINI.pack()) - 2, bytes(2)), LATN),
        "channels-65535": file(STRANGE._replace(channels=65535), Chunk(b"LATN", b"\0")),
        # chunks other than latents
        "chunks-empty": file(SD_MINI, *(chunk(t, b"") for t in (b"iCCP", b"eXIf", b"dNOI")), LATN),
        "denoising-255-steps": file(SD_MINI, chunk(b"dNOI", b"\0\x28\xff"), LATN),
        "prompt-not-utf8": file(SD_MINI, chunk(b"pRMT", b"\xff\xfe"), LATN),
        "prompt-too-long": file(SD_MINI, chunk(b"pRMT", b"x" * 8193), LATN),
        "tune-of-2-bytes": file(SD_MINI, chunk(b"tUNE", b"\0\1"), LATN),
        "origin-of-9-megabytes": file(SD_MINI, chunk(b"oRIG", zeros), LATN),
        "origin-nested": file(SD_MINI, chunk(b"oRIG", zlib.compress(b"[" * (8 << 20), 9)), LATN),
        "mask-of-4-gigapixels": file(
            STRANGE._replace(size=(65535, 65535), channels=1, factor=255),
            chunk(b"mASK", b"\0\xff"),
            Chunk(b"LATN", b"\0"),
        ),
        "alpha-missing": file(SD_MINI._replace(mode="RGBA"), LATN),
        "alpha-of-another-size": _alpha((16, 16), _png((65535, 65535), bytes(99))),
        "alpha-inflates": _alpha((250, 40), _png((250, 40), bytes(4 << 20))),
        "alpha-with-a-second-size": _alpha((16, 16), _png((16, 16), bytes(9000), OTHER_SIZE)),
        "alpha-with-a-second-kind": _alpha((16, 16), _png((16, 16), bytes(9000), OTHER_KIND)),
        "alpha-in-parts-of-another-size": _alpha_of_parts(16383, 16383),
        "alpha-in-parts-that-end-early": _alpha_of_parts(16, 16),
        "alpha-in-no-exact-regions": file(
            MINI._replace(mode="RGBA"), EMPTY, Chunk(chunks.ALPHA, alpha.IN_EXACT)
        ),
        "alpha-in-exact-regions-of-mode-rgb": _exact_with_alpha("RGB", b""),
        "alpha-in-exact-regions-and-alone": _exact_with_alpha("RGBA", b"\0\xff"),
        "mask-with-a-second-size": file(
            SD_MINI, chunk(b"mASK", b"\1" + _png((16, 16), bytes(1 << 20), OTHER_SIZE)), LATN
        ),
        "alpha-with-texts": _alpha((250, 40), _png((250, 40), bytes(251 * 40), *_texts(8))),
        "alpha-ends-early": _alpha((16, 16), _png((16, 16), bytes(17 * 16))[:-30]),
        # the coding of latents
        "latents-empty": _latents(b""),
        "latents-of-no-prior": _latents(b"\3"),
        "latents-of-another-prior": _latents(b"\4"),
        "latents-that-go-on": _latents(b"\2" + b"\x55" * 40),
        "latents-that-do-not-decode": _latents(b"\1" + b"\xff" * 40),
        "palette-for-too-few-places": _latents(b"\x1f" * 40, coding=1),
        "palette-of-zeros": _latents(bytes(6), coding=1),
        "float16-beyond-its-bits": _latents(b"\x00\x0b\x00", coding=2, quantisation=0),
        "float16-nan": _lossless(nan),
        # files that take long for their size: they ask for everything in a few bytes
        "latents-of-half-a-megapixel": file(MINI._replace(size=(800, 640)), Chunk(b"LATN", b"")),
        "latents-of-129x128": file(MINI._replace(size=(2048, 2064)), Chunk(b"LATN", b"")),
        "latents-of-8191x1": file(SD_MINI._replace(size=(8, 65528)), Chunk(b"LATN", b"\0")),
        "latents-of-512x512-in-waves": file(
            FLUX2._replace(size=(4096, 4096)), Chunk(b"LATN", b"\4")
        ),
        "latents-of-64-channels": file(STRANGE._replace(channels=64), Chunk(b"LATN", b"\0")),
        "latents-of-2000-frames": file(
            STRANGE._replace(channels=64, frames=2000), *[Chunk(b"LATN", b"\0")] * 2000
        ),
    }


def outcome(use: Callable[[bytes], None], data: bytes) -> str:
    """The result of using a file: "accepted" or the exception, and the CPU time."""
    start = time.process_time()
    try:
        use(data)
    except Exception as e:
        said = f"{type(e).__name__}: {e}"
    else:
        said = "accepted"
    return f"{1000 * (time.process_time() - start):9.1f} ms  {said}"


def main() -> None:
    warnings.simplefilter("ignore")
    FOLDER.mkdir(exist_ok=True)
    for name, data in files().items():
        (FOLDER / f"{name}.sdz").write_bytes(data)
    for path in sorted(FOLDER.glob("*.sdz")):
        data = path.read_bytes()
        print(f"{path.stem}, {len(data)} bytes")
        for use in (opened, shown, latents_of):
            print(f"    {use.__name__:11}{outcome(use, data)[:130]}")


if __name__ == "__main__":
    main()
