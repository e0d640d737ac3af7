"""What an extension costs: this file alone adds a toy model and a toy coding.

A coding is a class and two rows. An embedded model is a class, what loads it, and two rows in the
catalogue. No other code knows them. CONTRIBUTING.md has the recipes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

import pillow_sdz
from pillow_sdz import catalogue, chunks, codings, container, options, spaces
from pillow_sdz.arrays import Area, Latents, Pixels, Quantisation, Samples
from pillow_sdz.catalogue import ModelSpec
from pillow_sdz.codings import banded
from pillow_sdz.codings.coding import Coding, Frame, FrameEncoder
from pillow_sdz.codings.range_coder import DamagedPayload
from pillow_sdz.codings.target_size import DoesNotFit, EncodedLatents
from pillow_sdz.container import Chunk
from pillow_sdz.models import mini
from pillow_sdz.models.network import Loader, Qualities
from pillow_sdz.spaces import CodingSpec, Space
from sdz_files import decode, encode

# The rows.

DEFLATED = CodingSpec(number=200, name="deflated", lowest=1, highest=1000, unit="step")
BLOCKS = Space("blocks", channels=3, factor=4, codings=(DEFLATED,), scaling=2, shift=1)
MEANS = ModelSpec(
    "means",
    channels=3,
    factor=4,
    digest=b"mean",
    latent_space="blocks",
    scales=(1, 2, 4),
    by_area=True,
    loader=f"{__name__}:load",
)


class Deflated:
    """Latents in steps of 16 bits, deflated. The step is in 1/1024 of a latent."""

    def quantisation(self, quality: float) -> int:
        return round(1001 - 10 * quality) or 1

    def draft(self, scale: int) -> Coding:
        return self

    def band_rows(self, height: int, width: int) -> int | None:
        return None

    def work(self, height: int, width: int) -> int:
        return 0

    def prepare(self, latents: NDArray[Any], quantisation: int) -> NDArray[Any]:
        if np.abs(latents).max() * 1024 / quantisation > 0x7FFF:
            msg = "latents too large for 16 bits"
            raise ValueError(msg)
        return latents

    def encoder(self, quantisation: int, effort: int, *, predict: bool = False) -> FrameEncoder:
        def encoded(frame: Frame) -> list[Chunk]:
            steps = np.rint(frame.latents * (1024 / quantisation)).astype(">i2")
            return [Chunk(chunks.LATENTS, zlib.compress(steps.tobytes()))]

        return encoded

    def fit(
        self, frames: Sequence[Frame], limit: int, effort: int, *, predict: bool = False
    ) -> EncodedLatents:
        for quantisation in range(DEFLATED.lowest, DEFLATED.highest, 10):
            encoded = [*map(self.encoder(quantisation, effort), frames)]
            if (tried := EncodedLatents(encoded, quantisation)).size <= limit:
                return tried
        raise DoesNotFit(tried.size)

    def decode(
        self,
        payload: bytes,
        shape: tuple[int, int],
        quantisation: int,
        before: Any = None,
        *,
        complete: bool = True,
    ) -> NDArray[Any]:
        try:
            steps = zlib.decompress(payload)
            return np.frombuffer(steps, ">i2").reshape(*shape, BLOCKS.channels)
        except (zlib.error, ValueError) as e:
            raise DamagedPayload(str(e)) from e

    def cells(self, integers: NDArray[Any], quantisation: int) -> int:
        return quantisation

    def decode_together(
        self, payloads: Sequence[bytes], shape: tuple[int, int], quantisations: Sequence[int]
    ) -> list[NDArray[Any]]:
        return [
            self.decode(payload, shape, step)
            for payload, step in zip(payloads, quantisations, strict=True)
        ]

    def latents(self, integers: NDArray[Any], quantisation: int) -> Latents:
        return (integers * (quantisation / 1024)).astype(np.float32)


class Means:
    """Latents are means of 4x4 pixels, from 0 to 1. At 1/4 they are the picture."""

    def encode(self, pixels: Samples, quantisation: Quantisation = 0) -> Latents:
        whole = np.asarray(pixels[:, :], np.float32) / 255
        edges = [(0, -n % 4) for n in whole.shape[:2]]
        padded = np.pad(whole, (*edges, (0, 0)), mode="edge")
        height, width = (n // 4 for n in padded.shape[:2])
        means: Latents = padded.reshape(height, 4, width, 4, 3).mean((1, 3))
        return means

    def decode(
        self, latents: Samples, quantisation: Qualities, *, area: Area | None = None, scale: int = 1
    ) -> Iterator[tuple[Area, Pixels]]:
        rows, columns = area or (slice(0, latents.shape[0]), slice(0, latents.shape[1]))
        side = 4 // scale
        pixels = np.rint(np.clip(latents[rows, columns], 0, 1) * 255).astype(np.uint8)
        place = (
            slice(rows.start * side, rows.stop * side),
            slice(columns.start * side, columns.stop * side),
        )
        yield place, pixels.repeat(side, 0).repeat(side, 1)


class Grey(Means):
    """A second decoder."""

    def decode(self, *arguments: Any, **keywords: Any) -> Iterator[tuple[Area, Pixels]]:
        for place, pixels in super().decode(*arguments, **keywords):
            yield place, np.full_like(pixels, 128)


def load(_: object) -> Means:
    return Means()


def load_grey(_: object) -> Grey:
    return Grey()


# mypy checks that the toys keep the contracts, and the model whose coding needs its weights.
LOADERS: tuple[Loader, ...] = (load, load_grey, mini.load)
HYPERPRIOR: Callable[[object], banded.Network] = mini.load


@pytest.fixture(autouse=True, params=[True, False], ids=["by area", "whole"])
def registered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    coding: Coding = Deflated()
    monkeypatch.setitem(catalogue.SPACES, BLOCKS.name, BLOCKS)
    means = MEANS.replace(by_area=request.param)
    monkeypatch.setitem(catalogue.EMBEDDED, MEANS.name, means)
    monkeypatch.setitem(codings.CODINGS, DEFLATED, lambda model, network: coding)


@pytest.fixture
def flat() -> Image.Image:
    """Blocks of 4x4 pixels in the colours of a gradient. Neither side is a multiple of 4."""
    small = Image.linear_gradient("L").resize((13, 9))
    colours = Image.merge(
        "RGB",
        (small, small.rotate(180), small.transpose(Image.Transpose.ROTATE_90).resize((13, 9))),
    )
    return colours.resize((52, 36), Image.Resampling.NEAREST).crop((0, 0, 50, 35))


def test_pictures(flat: Image.Image) -> None:
    data = encode(flat, model="means", quality=100)
    with Image.open(BytesIO(data)) as im:
        about = im.info["sdz"]
        assert (about["model"], about["coding"], about["latents"]) == (
            "means",
            "deflated",
            (3, 9, 13),
        )
        assert about["step"] == 1 / 1024
        assert im.tobytes() == flat.tobytes()
    assert container.Reader(BytesIO(data)).header.coding == DEFLATED.number


def test_quality_and_target_size(flat: Image.Image) -> None:
    fine, coarse = (encode(flat, model="means", quality=q) for q in (100, 5))
    assert len(coarse) < len(fine)
    assert decode(coarse).tobytes() != flat.tobytes()
    limit = (len(fine) + len(coarse)) // 2
    assert len(encode(flat, model="means", target_size=limit)) <= limit
    with pytest.raises(ValueError, match=r"target_size is 50, but the smallest file has \d+ bytes"):
        encode(flat, model="means", target_size=50)


def test_draft_and_crop(flat: Image.Image) -> None:
    data = encode(flat, model="means", quality=100)
    with Image.open(BytesIO(data)) as im:
        im.draft(None, (12, 8))
        assert im.size == (13, 9)
        latents = flat.resize((13, 9), Image.Resampling.NEAREST)
        assert im.getpixel((5, 5)) == latents.getpixel((5, 5))
    with Image.open(BytesIO(data)) as im:
        assert im.crop((9, 5, 33, 21)).tobytes() == flat.crop((9, 5, 33, 21)).tobytes()
        assert bool(im.tile) is catalogue.EMBEDDED["means"].by_area  # still to be loaded


def test_frames_and_alpha(flat: Image.Image) -> None:
    other = ImageOps.invert(flat)
    for frame in (flat, other):
        frame.putalpha(Image.radial_gradient("L").resize(flat.size))
    data = encode(flat, model="means", quality=100, save_all=True, append_images=[other])
    with Image.open(BytesIO(data)) as im:
        assert getattr(im, "n_frames") == 2  # noqa: B009
        assert im.tobytes() == flat.tobytes()
        im.seek(1)
        assert im.tobytes() == other.tobytes()


def test_latents() -> None:
    latents = np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype(np.float32)
    file = BytesIO()
    pillow_sdz.save_latents(latents, file, model="means", step=1 / 1024, size=(26, 20))
    found = pillow_sdz.open_latents(file)
    assert (found.model, found.coding, found.size, found.step) == (
        "means",
        "deflated",
        (26, 20),
        1 / 1024,
    )
    np.testing.assert_allclose(found.latents, latents, rtol=0, atol=0.51 / 1024)
    np.testing.assert_allclose(found.unscaled(), latents / 2 + 1, rtol=0, atol=0.26 / 1024)


@pytest.mark.parametrize(
    ("keywords", "complaint"),
    [
        ({"coding": "palette"}, "coding must be one of deflated with model 'means'"),
        ({"tune": "perceptual"}, "tune must be one of psnr with model 'means'"),
    ],
)
def test_what_it_does_not_have_is_refused(
    flat: Image.Image, keywords: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        encode(flat, model="means", **keywords)
    with pytest.raises(ValueError, match="lossless must be left out with model 'means'"):
        pillow_sdz.save_latents(np.zeros((3, 2, 2)), BytesIO(), model="means", lossless="float16")
    with pytest.raises(ValueError, match="latents too large for 16 bits"):
        pillow_sdz.save_latents(np.full((3, 2, 2), 64.0), BytesIO(), model="means", step=1 / 1024)


def test_a_model_without_what_a_coding_needs(
    flat: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    needing = DEFLATED.replace(needs_weights=True)
    monkeypatch.setitem(catalogue.SPACES, BLOCKS.name, BLOCKS.replace(codings=(needing,)))
    monkeypatch.setitem(codings.CODINGS, needing, codings.CODINGS[spaces.HYPERPRIOR])
    with pytest.raises(TypeError, match="Means is no model with a hyperprior"):
        encode(flat, model="means")


def test_damage_is_an_oserror(flat: Image.Image) -> None:
    file = container.read(encode(flat, model="means"))
    damaged = container.write([c._replace(data=b"x") if c.type == b"LATN" else c for c in file])
    for read in (decode, lambda data: pillow_sdz.open_latents(BytesIO(data))):
        with pytest.raises(OSError, match="damaged SDZ file: chunk LATN"):
            read(damaged)


def test_another_decoder_can_be_asked_for(
    flat: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = MEANS.replace(name="grey", digest=b"grey", encodes=False, loader=f"{__name__}:load_grey")
    monkeypatch.setitem(catalogue.EMBEDDED, "grey", grey)
    data = encode(flat, model="means")
    with options.override(DECODER="grey"):
        assert decode(data).getcolors() == [(50 * 35, (128, 128, 128))]
