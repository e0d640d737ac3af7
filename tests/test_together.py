"""Some frames of a file, and many files at once: the same latents as one after another."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pillow_sdz import chunks, codec, container, open_latents, open_latents_batch, save_latents
from pillow_sdz.codings import priors
from pillow_sdz.codings.adaptive import AdaptivePrior
from pillow_sdz.codings.frame_coders import FrameDecoders
from pillow_sdz.codings.quantize import Quantizer
from pillow_sdz.codings.range_coder import DamagedPayload, Tables
from sample_latents import correlated_latents


def frames(count: int, height: int = 12, width: int = 17, channels: int = 4) -> Any:
    whole = correlated_latents(height, width * count, channels).transpose(2, 0, 1)
    return np.stack(np.split(whole, count, axis=2)).astype(np.float16)


def saved(latents: Any, **options: Any) -> bytes:
    file = BytesIO()
    save_latents(latents, file, **{"model": "sd1", **options})
    return file.getvalue()


OPTIONS: list[dict[str, Any]] = [
    {"step": 0.25},
    {"lossless": "float16"},
    {"model": "other", "factor": 8, "step": 0.1},
    {"model": "other", "factor": 8, "lossless": True},
    {"coding": "palette"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_frames_of_a_file(options: dict[str, Any]) -> None:
    file = saved(frames(5), **options)
    every = open_latents(BytesIO(file)).latents
    assert every.shape == (5, 4, 12, 17)
    for wanted in (0, 3, -1):
        assert np.array_equal(open_latents(BytesIO(file), wanted).latents, every[wanted])
    for some in ([2], [4, 0, 0], slice(1, None, 2), range(3)):
        found = open_latents(BytesIO(file), some).latents
        assert np.array_equal(found, every[list(some) if isinstance(some, range) else some])


@pytest.mark.parametrize("wanted", [5, -6, [0, 5], [], slice(5, 9)])
def test_frames_that_are_not_there(wanted: Any) -> None:
    with pytest.raises(ValueError, match="has 5 frames: it does not have the frames"):
        open_latents(BytesIO(saved(frames(5), step=0.5)), wanted)


def test_clips_that_are_not_there() -> None:
    """Frames of videos are clips, and the message says so."""
    file = saved(frames(6).reshape(2, 3, 4, 12, 17).swapaxes(1, 2), step=0.5)
    with pytest.raises(ValueError, match=r"has 2 clips of 3 time steps: .* have the clips 2"):
        open_latents(BytesIO(file), 2)


def test_frames_of_mini_build_on_those_before() -> None:
    latents = np.repeat(frames(1, 6, 8, 384), 3, axis=0).astype(np.float32)
    latents[1:, :, 2:4, 2:4] += 1
    file = saved(latents, model="mini", quality=50)
    every = open_latents(BytesIO(file)).latents
    assert np.array_equal(open_latents(BytesIO(file), [2, 1]).latents, every[[2, 1]])


def test_clips_are_chosen_whole() -> None:
    clips = frames(6).reshape(3, 2, 4, 12, 17).swapaxes(1, 2)
    file = saved(clips, step=0.25)
    every = open_latents(BytesIO(file)).latents
    assert every.shape == (3, 4, 2, 12, 17)
    assert np.array_equal(open_latents(BytesIO(file), 1).latents, every[1])
    assert np.array_equal(open_latents(BytesIO(file), slice(2)).latents, every[:2])


def test_a_frame_is_read_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    data = container.Reader.data

    def noted(self: container.Reader, entry: container.Entry) -> bytes:
        if entry.type == chunks.LATENTS:
            read.append(entry.length)
        return data(self, entry)

    file = saved(frames(5), step=0.25)
    monkeypatch.setattr(container.Reader, "data", noted)
    open_latents(BytesIO(file), 3)
    assert len(read) == 1


def kinds() -> Iterator[bytes]:
    """Files of several families, shapes, steps and codings, more than are decoded at once."""
    for number in range(40):
        options = OPTIONS[number % 4]
        if "step" in options:
            options = {**options, "step": 0.1 + 0.01 * number}
        yield saved(frames(1 + number % 3, 8 + number % 2), **options)
    yield saved(frames(1, channels=16), model="flux", step=0.5)
    yield saved(frames(1, 4, 5, 384).astype(np.float32), model="mini", quality=40)


@pytest.mark.slow
def test_many_files_are_those_of_one_after_another(tmp_path: Path) -> None:
    files = [*kinds()]
    paths = [tmp_path / f"{number}.sdz" for number in range(len(files))]
    for path, file in zip(paths, files, strict=True):
        path.write_bytes(file)
    apart = [open_latents(BytesIO(file)) for file in files]
    for given in (paths, map(BytesIO, files)):
        found = [*open_latents_batch(given)]
        assert len(found) == len(files)
        for one, alone in zip(found, apart, strict=True):
            assert (one.model, one.size, one.step, one.dtype) == (
                alone.model,
                alone.size,
                alone.step,
                alone.dtype,
            )
            assert np.array_equal(one.latents, alone.latents)


def test_no_files() -> None:
    assert [*open_latents_batch([])] == []


def test_the_damaged_file_says_so() -> None:
    """If files are decoded together, the message is that of `open_latents` for the damaged file."""
    good = saved(frames(1), step=0.25)
    file = container.read(good)
    damaged = codec.write(
        [c._replace(data=c.data + b"\1") if c.type == chunks.LATENTS else c for c in file]
    )
    with pytest.raises(OSError, match="damaged SDZ file") as alone:
        open_latents(BytesIO(damaged))
    with pytest.raises(OSError, match="the words do not end with the last symbol") as together:
        list(open_latents_batch(map(BytesIO, [good, damaged, good])))
    assert str(together.value) == str(alone.value)


@pytest.mark.parametrize(
    ("number", "channels"),
    [(priors.ADAPTIVE, 4), *((number, row.channels) for number, row in priors.TRAINED.items())],
)
def test_frames_do_not_change_each_other(number: int, channels: int) -> None:
    """Steps and latents differ much, and some have symbols beyond their tables."""
    prior, steps = priors.of(number, channels), [3, 512, 100, 65535, 512]
    wanted = [
        np.rint(x.transpose(1, 2, 0).astype(float) * 1024 / step).astype(np.int64)
        for x, step in zip(frames(5, channels=channels), steps, strict=True)
    ]
    wanted[1][3, 4, 1], wanted[4][0, 0, 0] = 400_000, -1000
    payloads = []
    for symbols, step in zip(wanted, steps, strict=True):
        quantizer = Quantizer(Tables.shipped(), symbols.astype(np.float64), np.zeros(0))
        prior.code(quantizer, *symbols.shape[:2], step)
        payloads.append(quantizer.bytes())
    for order in (slice(None), slice(None, None, -1), slice(0, 2)):
        decoders = FrameDecoders(payloads[order])
        found = prior.code_frames(decoders, 12, 17, steps[order])
        decoders.finish()
        assert np.array_equal(found, np.stack(wanted[order]))


def test_one_payload_of_many_that_is_too_long() -> None:
    symbols = np.zeros((5, 6, 4))
    quantizer = Quantizer(Tables.shipped(), symbols, np.zeros(0))
    AdaptivePrior(4).code(quantizer, 5, 6, 512)
    decoders = FrameDecoders([quantizer.bytes(), quantizer.bytes() + b"\1"])
    AdaptivePrior(4).code_frames(decoders, 5, 6, [512, 512])
    with pytest.raises(DamagedPayload):
        decoders.finish()
