"""tune="perceptual": the same latents, and a chunk that recommends another decoder."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import pytest
from PIL import Image, ImageFile

from pillow_sdz import catalogue, chunks, container, demo, open_latents, options, weights
from pillow_sdz.container import Chunk
from pillow_sdz.header import Header


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return demo.photo().crop((150, 100, 150 + 120, 100 + 90))


def encode(photo: Image.Image, **keywords: Any) -> bytes:
    file = io.BytesIO()
    photo.save(file, "SDZ", quality=15, **keywords)
    return file.getvalue()


def pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        return image.tobytes()


def with_tune(data: bytes, tune: bytes) -> bytes:
    parts = container.read(data)
    return container.write(
        [Chunk(chunks.TUNE.type, tune) if c.type == chunks.TUNE.type else c for c in parts]
    )


def test_registry_names_the_weights_that_ship() -> None:
    content = weights.MINI_PERCEPTUAL.path.read_bytes()
    assert hashlib.sha256(content).digest()[:4] == catalogue.MINI_PERCEPTUAL.digest
    assert len(content) <= 7_000_000


def test_the_latents_are_the_same(photo: Image.Image) -> None:
    plain, tuned = container.read(encode(photo)), container.read(encode(photo, tune="perceptual"))
    assert [c for c in tuned if c.type != chunks.TUNE.type] == plain
    assert len(encode(photo, tune="perceptual")) == len(encode(photo)) + 10


def test_psnr_is_the_default_and_takes_no_chunk(photo: Image.Image) -> None:
    assert encode(photo, tune="psnr") == encode(photo, tune=None) == encode(photo)


def test_the_file_recommends_the_decoder(photo: Image.Image) -> None:
    plain, tuned = encode(photo), encode(photo, tune="perceptual")
    assert pixels(tuned) != pixels(plain)
    with options.override(DECODER="mini-perceptual"):
        assert pixels(plain) == pixels(tuned)
    with options.override(DECODER="mini"):
        assert pixels(tuned) == pixels(plain)


def test_target_size_counts_the_chunk(photo: Image.Image) -> None:
    file = io.BytesIO()
    photo.save(file, "SDZ", target_size=400, tune="perceptual")
    assert file.tell() <= 400


def test_info_says_it(photo: Image.Image) -> None:
    with Image.open(io.BytesIO(encode(photo, tune="perceptual"))) as image:
        assert image.info["sdz"]["tune"] == "perceptual"
    with Image.open(io.BytesIO(encode(photo))) as image:
        assert "tune" not in image.info["sdz"]


def test_it_is_not_kept_from_the_picture_that_was_opened(photo: Image.Image) -> None:
    """As with quality, each call of save decides this anew."""
    with Image.open(io.BytesIO(encode(photo, tune="perceptual"))) as image:
        again = encode(image)
    assert chunks.TUNE.type not in {c.type for c in container.read(again)}


def test_readers_that_do_not_know_it_ignore_it() -> None:
    assert not chunks.is_critical(chunks.TUNE.type)


@pytest.mark.parametrize("tune", [b"", b"\1\0"])
def test_damage(photo: Image.Image, tune: bytes) -> None:
    data = with_tune(encode(photo, tune="perceptual"), tune)
    with pytest.raises(OSError, match="tUNE"):
        Image.open(io.BytesIO(data))


def test_what_later_versions_may_add_is_decoded_as_ever(photo: Image.Image) -> None:
    data = with_tune(encode(photo, tune="perceptual"), b"\2")
    assert pixels(data) == pixels(encode(photo))


def test_what_is_lost_with_a_wrong_crc_is_only_the_recommendation(
    photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(encode(photo, tune="perceptual"))
    data[data.index(chunks.TUNE.type) + 5] ^= 1  # the CRC's first byte
    with pytest.raises(OSError, match="tUNE"):
        Image.open(io.BytesIO(data))
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert pixels(bytes(data)) == pixels(encode(photo))


def test_only_mini_has_the_choice(photo: Image.Image) -> None:
    with pytest.raises(ValueError, match="tune must be one of psnr with model 'sd-mini'"):
        encode(photo.resize((16, 16)), model="sd-mini", tune="perceptual")


def test_the_decoder_is_no_model_to_save_with(photo: Image.Image) -> None:
    with pytest.raises(ValueError, match="save with model='mini', tune='perceptual'"):
        encode(photo, model="mini-perceptual")


def test_a_file_cannot_name_it_as_its_model(photo: Image.Image) -> None:
    spec = catalogue.MINI_PERCEPTUAL
    parts = container.read(encode(photo))
    header = Header.parse(parts[0].data)
    named = header._replace(model=spec.name, digest=spec.digest)
    data = container.write([Chunk(chunks.HEAD, named.pack()), *parts[1:]])
    for read in (Image.open, open_latents):
        with pytest.raises(OSError, match="'mini-perceptual' has no latents of its own"):
            read(io.BytesIO(data))
