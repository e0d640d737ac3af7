"""What is known without weights, and the one function that judges headers for all readers."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_registry import autoencoder_directory, no_network, registry
from pillow_sdz import (
    catalogue,
    chunks,
    codec,
    container,
    models,
    open_latents,
    register_model,
    save_latents,
    spaces,
)
from pillow_sdz.cli import main
from pillow_sdz.container import Chunk
from pillow_sdz.header import Header
from sdz_files import encode, framed

__all__ = ["no_network", "registry"]

MINI = Header("RGB", (32, 32), "mini", catalogue.MINI.digest, 384, 16, 5000)
SD1 = Header("RGB", (32, 32), "sd1", catalogue.NOT_NAMED, 4, 8, 256)


def file(header: Header, *about: Chunk) -> BytesIO:
    """A file with this header, even if that is wrong, and with latents of very few bytes."""
    latents = [Chunk(chunks.LATENTS, b"\0")] * header.frames
    head, done = Chunk(chunks.HEAD, header.pack()), Chunk(chunks.DONE, b"")
    return BytesIO(framed([head, *about, *latents, done]))


@pytest.fixture(params=[Image.open, open_latents], ids=["picture", "latents"])
def read(request: pytest.FixtureRequest) -> Callable[[BytesIO], Any]:
    """Each way into the package for a file."""
    door: Callable[[BytesIO], Any] = request.param
    return door


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (MINI._replace(channels=4), "4 channels at a factor of 16, but model mini has 384 at 16"),
        (MINI._replace(factor=8), "384 channels at a factor of 8, but model mini has 384 at 16"),
        (SD1._replace(channels=1), "1 channels at a factor of 8, but model sd1 has 4 at 8"),
        (SD1._replace(channels=16), "16 channels at a factor of 8, but model sd1 has 4 at 8"),
        (SD1._replace(factor=16), "4 channels at a factor of 16, but model sd1 has 4 at 8"),
        (SD1._replace(model="flux"), "4 channels at a factor of 8, but model flux has 16 at 8"),
        (MINI._replace(coding=1), "coding 1 of model mini is not known"),
        (SD1._replace(coding=9), "coding 9 of model sd1 is not known"),
        (SD1._replace(model="strange-1", coding=9), "coding 9 of model strange-1 is not known"),
        (MINI._replace(quantisation=99), "coding context of model mini has a quantisation of 99"),
        (MINI._replace(quantisation=10001), "of model mini has a quantisation of 10001"),
        (SD1._replace(quantisation=0), "coding context of model sd1 has a quantisation of 0"),
        (SD1._replace(coding=2), "coding float16 of model sd1 has a quantisation of 256"),
        (MINI._replace(model="mini-perceptual"), "has no latents of its own"),
    ],
)
def test_headers_that_cannot_be(
    header: Header, complaint: str, read: Callable[[BytesIO], Any]
) -> None:
    with pytest.raises(OSError, match=complaint):
        catalogue.judge(header)
    with pytest.raises(OSError, match=complaint):
        read(file(header))


def test_the_command_line_judges_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.sdz"
    path.write_bytes(file(SD1._replace(channels=1)).getvalue())
    assert main(["info", str(path)]) == 1
    assert "1 channels at a factor of 8, but model sd1 has 4 at 8" in capsys.readouterr().err


def test_what_a_header_says_of_models_that_nobody_knows() -> None:
    header = Header("RGB", (32, 32), "strange-1", b"1234", 7, 5, 256)
    spec, coding = catalogue.judge(header)
    assert spec == catalogue.ModelSpec("strange-1", 7, 5, b"1234", "strange-1")
    assert coding is spaces.CONTEXT
    assert not spec.space.is_own


@pytest.mark.parametrize("header", [MINI, SD1])
def test_sound_headers(header: Header) -> None:
    spec, coding = catalogue.judge(header)
    assert (spec.name, spec.channels, spec.factor) == (header.model, header.channels, header.factor)
    assert coding.lowest <= header.quantisation <= coding.highest


@pytest.mark.parametrize(
    ("chunk", "complaint"),
    [
        (Chunk(b"tUNE", b"\0\0"), "chunk tUNE has 2 bytes"),
        (Chunk(b"aNIM", bytes(7)), "chunk aNIM has 7 bytes for 1 frames"),
        (Chunk(b"dNOI", bytes(3)), "chunk dNOI: a denoising strength of 0"),
        (Chunk(b"pRMT", b"\xff"), "chunk pRMT is not UTF-8"),
    ],
)
def test_damaged_chunks(chunk: Chunk, complaint: str, read: Callable[[BytesIO], Any]) -> None:
    """There is one table of chunks. All readers are equally strict."""
    with pytest.raises(OSError, match=complaint):
        read(file(SD1, chunk))


def test_limits_count_what_is_decoded() -> None:
    """If the header's one channel counted, a quarter of sd1's latents would be counted."""
    honest = SD1._replace(size=(65528, 8192))
    assert np.prod(honest.latents) > 1 << 24
    with pytest.raises(OSError, match=r"9 frames of latents .* have more than the limit"):
        open_latents(file(honest._replace(frames=9)))
    with pytest.raises(OSError, match="but model sd1 has 4 at 8"):
        open_latents(file(honest._replace(channels=1, frames=9)))


def test_codings_of_a_space_are_told_apart() -> None:
    for space in catalogue.all_spaces().values():
        for field in ("number", "name"):
            found = [getattr(coding, field) for coding in space.codings]
            assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "chunk", [Chunk(b"tUNE", b"\0\0"), Chunk(b"oRIG", b"x"), Chunk(b"mASK", b"x")]
)
def test_a_writer_does_not_write_damaged_chunks(chunk: Chunk) -> None:
    head, *rest = container.read(file(SD1).getvalue())
    with pytest.raises(ValueError, match=f"chunk {chunk.type.decode()}"):
        codec.write([head, chunk, *rest])


def test_every_space_is_that_of_a_model() -> None:
    """A file of an unknown model must not enter a latent space by its name."""
    for name, space in catalogue.all_spaces().items():
        spec = catalogue.known(name)
        assert spec is not None
        assert spec.space is space
        assert (spec.channels, spec.factor) == (space.channels, space.factor)


# Latents that belong to one model alone


def test_no_other_model_has_the_latents_of_mini(tmp_path: Path) -> None:
    """Its integers are coded with its own weights. Files of other models could not be read."""
    directory = autoencoder_directory(tmp_path / "ours")
    for add in (register_model, models.record_model):
        with pytest.raises(ValueError, match="mini latents belong to one model alone"):
            add("ours", directory, latent_space="mini")


def test_nor_by_a_models_file_that_was_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {
        "directory": str(tmp_path),
        "sha256": "0" * 64,
        "latent_space": "mini",
        "channels": 384,
        "factor": 16,
        "unet": "",
        "text_encoder": "",
    }
    path = tmp_path / "models.json"
    path.write_text(json.dumps({"bricks": record}))
    monkeypatch.setenv("SDZ_MODELS", str(path))
    latents = np.zeros((384, 2, 2), np.float32)
    for keywords in ({"quality": 50}, {"coding": "palette"}, {"lossless": "float16"}):
        with pytest.raises(OSError, match="'bricks': mini latents belong to one model alone"):
            save_latents(latents, BytesIO(), model="bricks", **keywords)
    with pytest.raises(OSError, match="'bricks': mini latents belong to one model alone"):
        encode(Image.new("RGB", (32, 32)), model="bricks")


@pytest.mark.parametrize("header", [MINI._replace(channels=4), SD1._replace(coding=9)])
def test_a_writer_is_not_laxer_than_its_readers(header: Header) -> None:
    parts = container.read(file(header).getvalue())
    with pytest.raises(ValueError, match=r"but model mini has|coding 9 of model sd1"):
        codec.write(parts)


def test_latent_spaces_of_record() -> None:
    """Channels, factor, scaling and shift, for spaces that have one number for all channels."""
    found = {
        name: (space.channels, space.factor, space.scaling, space.shift)
        for name, space in catalogue.all_spaces().items()
        if not isinstance(space.scaling, tuple) and not space.is_own
    }
    of_record: dict[str, tuple[object, ...]] = {
        "sd-mini": (4, 8, 1, 0),
        "sd1": (4, 8, 0.18215, 0),
        "sdxl": (4, 8, 0.13025, 0),
        "sd3": (16, 8, 1.5305, 0.0609),
        "flux": (16, 8, 0.3611, 0.1159),
    }
    assert found.items() >= of_record.items()


def test_denoising_of_record() -> None:
    """Strength in thousandths, and steps.

    That of sd1 is the article's, that of sd-mini is measured.
    """
    found = {
        name: space.denoising for name, space in catalogue.all_spaces().items() if space.denoising
    }
    assert found == {"sd-mini": (30, 3), "sd1": (40, 3)}


@pytest.mark.parametrize(("value", "tune"), [(0, "psnr"), (1, "perceptual"), (2, "psnr")])
def test_tunes_of_record(value: int, tune: str) -> None:
    """The first one also stands for values that a later version may add."""
    assert chunks.KINDS[b"tUNE"].parse(bytes([value]), MINI) == tune
