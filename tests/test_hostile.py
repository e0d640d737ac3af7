"""The files in fixtures/hostile/: what refuses each one, and what the others cost.

`python -m fuzz.hostile` made them, and shows how long each takes. docs/security.md says which
attacks they stand for.
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pillow_sdz import alpha, catalogue, chunks, container, decoding, models, order
from pillow_sdz.codings.coding import Frame
from pillow_sdz.container import Chunk
from pillow_sdz.header import Header
from sdz_files import CountingFile, CountingReads, framed

# Fuzzing is not part of the installed package. Only the checkout has it.
sys.path.append(str(Path(__file__).parent.parent))

from fuzz.allowed import ALLOWED
from fuzz.targets import latents_of, opened, shown, verified

HOSTILE = Path(__file__).parent.parent / "fixtures" / "hostile"

# Files that do not open, and why. Their latents do not open either, unless `LATENTS` says so.
NOT_OPENED = {
    "bands-of-another-model": "files of model sd-mini have no chunk BAND",
    "changes-of-another-model": "files of model sd-mini have no chunk DIFF",
    "signature-alone": "ends at byte 8, before its DONE chunk",
    "head-missing": "chunk LATN at byte 8 instead of HEAD",
    "head-empty": "damaged SDZ header: 0 bytes",
    "head-twice": "second HEAD",
    "length-of-4-gigabytes": "LATN has 4294967295 bytes, more than the limit of 1152",
    "length-of-8-megabytes": "chunk abcd at byte 43 would end at byte 8388663",
    "length-not-the-shortest": "bad chunk length at byte 43",
    "length-without-end": "bad chunk length at byte 43",
    "crc-wrong": "chunk xMPm at byte 43: its CRC does not match",
    "type-not-of-letters": "bad chunk type",
    "type-unknown-and-critical": "unknown critical chunk NEWS",
    "bytes-after-the-end": "4 bytes after its end",
    "chunks-1001": "more than 1000 chunks",
    "bands-odd": "bands of 3 rows in a picture of 6",
    "bands-of-all-rows": "bands of 6 rows in a picture of 6",
    "bands-of-no-rows": "bands of 0 rows in a picture of 6",
    "bands-of-8-megabytes": "chunk BAND at byte 40 would end at byte 8388660",
    "bands-too-few": "DONE after 2 of 3 LATN",
    "bands-too-many": "more LATN than frames",
    "changes-first": "DIFF in the first frame",
    "changes-without-end": "more than 255 DIFF in a row",
    "animation-of-other-frames": "chunk aNIM has 10 bytes for 3 frames",
    "size-65535": "could be decompression bomb",
    "size-0": "size 0x16",
    "frames-0": "0 frames",
    "frames-65535-of-1": "DONE after 1 of 65535 LATN",
    "frames-1-of-2": "more LATN than frames",
    "model-is-a-path": r"model name '\.\./\.\./x'",
    "model-of-other-channels": "4 channels at a factor of 16, but model mini has 384 at 16",
    "model-without-latents": "'mini-perceptual' has no latents of its own",
    "quantisation-0": "coding context of model sd-mini has a quantisation of 0",
    "chunks-empty": "chunk dNOI has 0 bytes",
    "denoising-255-steps": "255 denoising steps",
    "prompt-not-utf8": "pRMT is not UTF-8",
    "prompt-too-long": "pRMT has 8193 bytes, more than the limit of 8192",
    "tune-of-2-bytes": "chunk tUNE has 2 bytes",
    "mask-of-4-gigapixels": "could be decompression bomb",
    "alpha-missing": "DONE before ALPH",
}

# Files that open but do not decode.
NOT_SHOWN = {
    "latents-of-129x128": "bands of 129x128 latents, more than the limit",
    "latents-of-8191x1": r"latents \(4, 8191, 1\) in 1 bytes are too many",
    "float16-nan": "values that are infinite or not a number",
    "alpha-as-before-the-first": "ALPH repeats the frame before, which has no alpha",
    "changes-that-are-none": "DIFF at byte 49: a cell of the map of changes is neither 0 nor 1",
    "channels-65535": "needs the model 'strange-1', which is not known here",
    "model-of-other-weights": "needs the model 'mini' with the weights 01020304",
    "frames-7000": "chunk LATN at byte 43: it is empty",
    "alpha-of-another-size": "neither a constant nor a PNG of the picture's size",
    "alpha-with-a-second-size": "PNG in chunk ALPH: it has a second IHDR at byte 33",
    "alpha-with-a-second-kind": "PNG in chunk ALPH: it has a second IHDR at byte 33",
    "alpha-ends-early": "PNG in chunk ALPH: it ends at byte 40",
    "alpha-in-parts-of-another-size": "ALPH: .* not a VP8L bitstream of 16x16 pixels",
    "alpha-in-parts-that-end-early": "ALPH",
    "alpha-in-no-exact-regions": "chunk ALPH refers to EXCT, which has no alpha",
    "alpha-in-exact-regions-of-mode-rgb": "EXCT has alpha that chunk ALPH does not refer to",
    "alpha-in-exact-regions-and-alone": "EXCT has alpha that chunk ALPH does not refer to",
    "latents-empty": "chunk LATN at byte 43: it is empty",
    "latents-of-no-prior": "there is no prior 3 for 4 channels",
    "latents-of-another-prior": "there is no prior 4 for 4 channels",
    "latents-that-go-on": "the words do not end with the last symbol",
    "latents-that-do-not-decode": "the words do not decode",
    "latents-of-512x512-in-waves": "needs the model 'flux2'",
    "latents-of-64-channels": "needs the model 'strange-1', which is not known here",
    "latents-of-2000-frames": "needs the model 'strange-1', which is not known here",
    "palette-for-too-few-places": "996 palette entries for 4 places",
    "palette-of-zeros": "the words do not end with the last symbol",
    "float16-beyond-its-bits": "mantissas of 11 bits cannot have cells of 0",
}

# Files that `open_latents` refuses for another reason. None means that it accepts the file. It
# reads provenance and masks, but no alpha.
LATENTS = {
    "float16-nan": None,
    "channels-65535": r"latents \(65535, 2, 2\) in 1 bytes are too many",
    "model-of-other-weights": "needs the model 'mini' with the weights 01020304",
    "frames-7000": "7000 frames .* in 0 bytes are too many",
    "latents-of-2000-frames": "2000 frames .* in 2000 bytes are too many",
    "size-65535": r"latents \(4, 8192, 8192\) in 1 bytes are too many",
    "latents-of-512x512-in-waves": r"latents \(32, 512, 512\) in 1 bytes are too many",
    "origin-of-9-megabytes": "chunk oRIG: it ends too early or too late",
    "mask-with-a-second-size": "chunk mASK is not an alpha channel of the picture's size",
    "changes-of-all-latents": "more changes in a row of DIFF than the limit",
    "origin-nested": "chunk oRIG: maximum recursion depth exceeded",
    "latents-of-64-channels": None,
    "alpha-of-another-size": None,
    "alpha-with-a-second-size": None,
    "alpha-with-a-second-kind": None,
    "alpha-ends-early": None,
    "alpha-as-before-the-first": None,
    "alpha-in-parts-of-another-size": None,
    "alpha-in-parts-that-end-early": None,
    "alpha-in-no-exact-regions": None,
    "alpha-in-exact-regions-of-mode-rgb": "all of its pixels are kept exactly",
    "alpha-in-exact-regions-and-alone": "all of its pixels are kept exactly",
}

# Files that are valid pictures. The texts and surplus pixels in the PNG of an alpha channel are not
# read. The origin of latents is not part of a picture.
SHOWN = {
    "chunks-1000",
    "changes-of-all-frames",
    "origin-of-9-megabytes",
    "origin-nested",
    "alpha-inflates",
    "alpha-with-texts",
    "mask-with-a-second-size",
    "changes-of-all-latents",
    "latents-of-half-a-megapixel",
}

FILES = {path.stem: path.read_bytes() for path in sorted(HOSTILE.glob("*.sdz"))}


def test_every_file_has_its_reason() -> None:
    assert FILES.keys() == {*NOT_OPENED, *NOT_SHOWN, *SHOWN}
    assert len(FILES) == len(NOT_OPENED) + len(NOT_SHOWN) + len(SHOWN)


@pytest.mark.parametrize("name", NOT_OPENED)
@pytest.mark.parametrize("use", [opened, shown, verified])
def test_what_is_not_opened(name: str, use: Callable[[bytes], None]) -> None:
    with pytest.raises(ALLOWED, match=NOT_OPENED[name]):
        use(FILES[name])


@pytest.mark.parametrize("name", NOT_SHOWN)
def test_what_is_not_shown(name: str) -> None:
    opened(FILES[name])
    with pytest.raises(ALLOWED, match=NOT_SHOWN[name]):
        shown(FILES[name])


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_what_is_shown(name: str) -> None:
    shown(FILES[name])
    verified(FILES[name])


@pytest.mark.parametrize("name", FILES)
def test_what_latents_are_refused(name: str) -> None:
    reason = LATENTS.get(name, {**NOT_OPENED, **NOT_SHOWN}.get(name))
    if reason is None:
        latents_of(FILES[name])
    else:
        with pytest.raises(ALLOWED, match=reason):
            latents_of(FILES[name])


@pytest.mark.parametrize("name", FILES)
def test_opening_reads_what_there_is_and_no_more(name: str) -> None:
    """At most two reads of a chunk, its framing and its data, and each byte at most twice.

    A chunk has at least 9 bytes. The length and type of the next chunk are read as 9 bytes.
    """
    data = FILES[name]
    file = CountingReads(data)
    with suppress(*ALLOWED), Image.open(file, formats=["SDZ"]):
        pass
    assert file.calls <= 2 * (len(data) // 9) + 10
    assert file.count <= 2 * len(data) + 100


def empty_frames(frames: int, rows: int | None = None) -> bytes:
    """A file of frames whose latents have no bytes.

    A frame has 96 rows, and a band has ``rows``.
    """
    mini = catalogue.MINI
    size = mini.factor, 96 * mini.factor
    header = Header("RGB", size, "mini", mini.digest, mini.channels, mini.factor, 5000, 0, frames)
    about = [] if rows is None else [Chunk(chunks.BANDS.type, chunks.BANDS.pack(rows))]
    latents = [Chunk(chunks.LATENTS, b"")] * (1 if rows is None else 96 // rows)
    return framed(container.assemble(header, about, [latents] * frames))


def test_the_most_chunks_that_a_file_may_have() -> None:
    """For each byte of a file of empty chunks, opening reads and keeps a few bytes."""
    data = empty_frames(order.MAX_CODED)
    file = CountingReads(data)
    with Image.open(file) as im:
        assert im.n_frames == order.MAX_CODED  # type: ignore[attr-defined]
    assert file.count <= 2 * len(data)
    assert file.calls < len(data) / 1000
    assert peak(opened, data) < 30 * len(data)  # measured: 22


def test_more_chunks_are_refused_before_they_are_read() -> None:
    """There are 16.6 MB of empty chunks.

    The frames times the bands are counted, and no chunk is read.
    """
    data = empty_frames(38_000, rows=2)
    assert 16_000_000 < len(data) < 17_000_000
    file = CountingReads(data)
    with pytest.raises(OSError, match="1824000 bands of all frames, more than the limit of 65535"):
        Image.open(file)
    assert file.count < 200


def honest(header: Header) -> bytes:
    """A valid file with this header, as an encoder would make it of a busy picture."""
    generator = np.random.default_rng(0)
    model = models.spec(header.model)
    channels, height, width = header.latents
    spec, coding = catalogue.judge(header._replace(digest=model.digest))
    coder = decoding.coder_of(spec, coding)
    latents = generator.normal(0, 1, (height, width, channels)).astype(np.float16)
    about = []
    if (rows := coder.band_rows(height, width)) is not None:
        about.append(Chunk(chunks.BANDS.type, chunks.BANDS.pack(rows)))
    coded = coder.encoder(header.quantisation, effort=4)(Frame(latents))
    if header.has_alpha:
        noise = alpha.encode(Image.effect_noise(header.size, 50))
        coded.append(Chunk(chunks.ALPHA, noise))
    header = header._replace(digest=model.digest)
    return container.write(container.assemble(header, about, [coded] * header.frames))


def seconds(use: Callable[[bytes], None], data: bytes) -> float:
    """CPU time, the least of three runs. Work that fails also counts."""
    taken = []
    for _ in range(3):
        start = time.process_time()
        with suppress(*ALLOWED):
            use(data)
        taken.append(time.process_time() - start)
    return min(taken)


def peak(use: Callable[[bytes], None], data: bytes) -> int:
    """The most bytes that Python and numpy used at once."""
    tracemalloc.start()
    with suppress(*ALLOWED):
        use(data)
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size


TIMES = 3  # chosen: larger than the differences that a busy machine makes
# open and load each walk over as many parts, and each walk costs less than opening
WALKS = 2 * TIMES
# Chosen: so little harms nobody, and imports and caches take some of it.
FREE_SECONDS, FREE_BYTES = 0.01, 1 << 20


def costly() -> list[str]:
    """The files whose decoding begins."""
    embedded = {name: data for name, data in FILES.items() if name not in NOT_OPENED}
    return [
        name
        for name, data in embedded.items()
        if container.Reader(CountingFile(data)).header.model in catalogue.EMBEDDED
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", costly())
def test_a_picture_costs_what_an_honest_one_of_its_header_does(name: str) -> None:
    """This is about time and memory. Reading the chunks of the file does not count."""
    data = FILES[name]
    taken, memory = seconds(shown, data), peak(shown, data)
    free = FREE_SECONDS + WALKS * seconds(opened, data)
    if taken <= free and memory <= FREE_BYTES:
        return  # an honest picture may have millions of latents, and take long
    reference = honest(container.Reader(CountingFile(data)).header)
    shown(reference)
    assert taken <= TIMES * seconds(shown, reference) + free
    assert memory <= TIMES * peak(shown, reference) + FREE_BYTES
