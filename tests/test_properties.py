"""What holds for any chunks, any damage, any pieces and any number of threads.

The examples are the same in every run. ``HYPOTHESIS_PROFILE=other`` tries others.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import tracemalloc
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageFile
from threadpoolctl import threadpool_limits

from pillow_sdz import chunks, container, open_latents
from pillow_sdz.container import Chunk
from pillow_sdz.header import MODES, Header
from pillow_sdz.spaces import CODING_NAMES
from sdz_files import decode, encode, framed

pytest.importorskip("hypothesis", reason='needs pip install ".[test]"')
from hypothesis import example, given, settings
from hypothesis import strategies as st

# Fuzzing is not part of the installed package. Only the checkout has it.
sys.path.append(str(Path(__file__).parent.parent))

from fuzz.allowed import ALLOWED
from fuzz.mutations import repaired
from fuzz.targets import latents_of, light, opened, shown, verified

# There are no deadlines. A failure on a busy machine would say nothing about the code.
settings.register_profile("other", deadline=None)
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# containers

headers = st.builds(
    Header,
    mode=st.sampled_from(MODES),
    size=st.tuples(st.integers(1, 65535), st.integers(1, 65535)),
    model=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,31}", fullmatch=True),
    digest=st.binary(min_size=4, max_size=4),
    channels=st.integers(1, 65535),
    factor=st.integers(1, 255),
    quantisation=st.integers(1, 65535),
    coding=st.integers(0, 255),
    frames=st.integers(1, 3),
)
types = st.one_of(
    st.sampled_from([*chunks.KINDS, *sorted(chunks.FRAME), chunks.HEAD, chunks.DONE]),
    st.from_regex(rb"[A-Za-z]{4}", fullmatch=True),
    st.binary(min_size=4, max_size=4),
)
parts = st.lists(st.builds(Chunk, types, st.binary(max_size=300)), max_size=8)


@st.composite
def sound(draw: st.DrawFn) -> list[Chunk]:
    """Any chunks that a writer may write: metadata and unknown chunks, frames, then DONE."""
    header = draw(headers)
    data = st.binary(max_size=300)
    unknown = st.from_regex(rb"[a-z][A-Za-z]{3}", fullmatch=True).filter(chunks.is_skippable)
    others = st.lists(st.builds(Chunk, unknown, data), max_size=3)
    metadata = st.lists(
        st.builds(Chunk, st.sampled_from([kind.type for kind in chunks.METADATA]), data),
        max_size=3,
        unique_by=lambda chunk: chunk.type,
    )
    found = [Chunk(chunks.HEAD, header.pack()), *draw(others), *draw(metadata), *draw(others)]
    for _ in range(header.frames):
        found += [Chunk(chunks.LATENTS, draw(data)), *draw(others)]
        if header.has_alpha:
            found += [Chunk(chunks.ALPHA, draw(data)), *draw(others)]
    return [*found, Chunk(chunks.DONE, b"")]


@pytest.mark.slow
@given(sound())
def test_chunks_are_read_as_they_were_written(written: list[Chunk]) -> None:
    data = container.write(written)
    assert data == framed(written)
    assert container.read(data) == written
    assert len(data) == container.size(written)


@given(headers, parts)
def test_what_may_not_be_written_is_not_read(header: Header, others: list[Chunk]) -> None:
    """Writer and reader have the same rules, for any order of chunks."""
    parts = [Chunk(chunks.HEAD, header.pack()), *others]
    data = framed(parts)
    try:
        written = container.write(parts)
    except ValueError:
        with pytest.raises(OSError, match="SDZ"):
            container.read(data)
    else:
        assert written == data
        assert container.read(data) == parts


# damage


def small_files() -> list[bytes]:
    """Files of a few pixels in every coding, with alpha, metadata and everything else."""
    picture = Image.linear_gradient("L").resize((11, 7)).convert("RGBA")
    picture.putalpha(Image.radial_gradient("L").resize(picture.size))
    about = {"exif": b"MM\0*\0\0\0\x08\0\0", "xmp": "<x/>", "icc_profile": b"profile"}
    return [
        encode(picture, quality=20, **about),
        # So few pixels are exact, unless it is turned off.
        encode(picture, quality=20, regions=False, **about),
        encode(picture.convert("L"), quality=90, regions=False, chunks=[(b"teSt", b"unknown")]),
        *(encode(picture.convert("RGB"), model="sd-mini", coding=c) for c in CODING_NAMES),
    ]


SMALL = small_files()
files = st.sampled_from(SMALL)
USES = (opened, shown, verified, latents_of)

# Both are chosen: what Python and Pillow need for small files, and some objects for each value.
FIXED_MEMORY = 1 << 20
MEMORY_PER_VALUE = 200


@pytest.fixture(scope="module")
def without_networks() -> Iterator[None]:
    """The networks are left out. Their time and memory depend only on pixels."""
    with light():
        for data in SMALL:
            shown(data)  # load what is loaded only once
        yield


def memory(data: bytes) -> int:
    """The most bytes in use at once while everything in a file is read."""
    tracemalloc.start()
    try:
        for use in USES:
            try:
                use(data)
            except ALLOWED as e:
                assert str(e)  # noqa: PT017  the message says why
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@given(data=files, at=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@pytest.mark.usefixtures("without_networks")
def test_damage_is_refused(data: bytes, at: float, flip: int) -> None:
    """Nothing is decoded before the check, so it takes no more memory than the file does."""
    at = int(at * len(data))
    for damaged in (data[:at], data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]):
        for use in (shown, verified, latents_of):
            with pytest.raises(ALLOWED):
                use(damaged)
        assert memory(damaged) <= FIXED_MEMORY


@given(data=files, at=st.floats(0, 1, exclude_max=True), put=st.binary(max_size=6))
@pytest.mark.usefixtures("without_networks")
def test_damage_behind_right_crcs_costs_what_the_header_says(
    data: bytes, at: float, put: bytes
) -> None:
    at = int(at * len(data))
    damaged = repaired(data[:at] + put + data[at + len(put) :])
    try:
        header = container.Reader(BytesIO(damaged)).header
    except OSError:
        values = 0
    else:
        width, height = header.size
        channels, rows, columns = header.latents
        values = width * height + channels * rows * columns
    assert memory(damaged) <= FIXED_MEMORY + MEMORY_PER_VALUE * values


# pieces


@settings(max_examples=20)  # each example decodes a picture
@given(data=files, cuts=st.lists(st.floats(0, 1), max_size=6))
def test_pieces_are_read_as_the_whole_is(data: bytes, cuts: list[float]) -> None:
    bounds = [0, *sorted(int(cut * len(data)) for cut in cuts), len(data)]
    parser = ImageFile.Parser()
    for start, stop in itertools.pairwise(bounds):
        parser.feed(data[start:stop])
    pieces, whole = parser.close(), decode(data)
    assert (pieces.mode, pieces.size) == (whole.mode, whole.size)
    assert pieces.tobytes() == whole.tobytes()
    assert pieces.info == whole.info


# threads


@settings(max_examples=10)  # each example encodes a picture twice
@example(size=(9, 70), quality=50, model="mini", seed=0)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    quality=st.integers(1, 100),
    model=st.sampled_from(["mini", "mini-half", "sd-mini"]),
    seed=st.integers(0, 9),
)
def test_the_number_of_threads_changes_no_byte(
    size: tuple[int, int], quality: int, model: str, seed: int
) -> None:
    """One example has a single column of latents. oneDNN once made noise of it."""
    noise = Image.frombytes("L", (8, 8), random.Random(seed).randbytes(64))
    picture = noise.resize(size, Image.Resampling.BICUBIC).convert("RGB")
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            with threadpool_limits(number):
                data = encode(picture, quality=quality, model=model, regions=False)
                found.append((data, open_latents(BytesIO(data)).latents.tobytes()))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]
