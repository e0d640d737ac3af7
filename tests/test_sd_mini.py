"""`sd-mini`: the article's whole pipeline with the embedded miniature of Stable Diffusion."""

from __future__ import annotations

import hashlib
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pillow_sdz import (
    catalogue,
    container,
    decoding,
    demo,
    fidelity,
    models,
    open_latents,
    options,
    spaces,
    weights,
)
from pillow_sdz.codings import Context
from pillow_sdz.codings.coding import Frame
from pillow_sdz.codings.priors import ADAPTIVE, RELATIVE
from pillow_sdz.models import sd_mini, sources
from sdz_files import decode, encode, shown

SD_MINI = catalogue.SD_MINI
FOLDER = weights.SD_MINI.path.parent


@pytest.fixture(scope="module")
def real_photo() -> Image.Image:
    """The demo's photo, which no model was trained on, as large as the article's."""
    return demo.photo().crop((100, 0, 500, 400)).resize((512, 512), Image.Resampling.LANCZOS)


@pytest.fixture(scope="module")
def exact(real_photo: Image.Image) -> NDArray[np.float32]:
    """The latents of the photo as the encoder makes them."""
    latents: NDArray[np.float32] = models.load(SD_MINI).encode(np.asarray(real_photo))
    return latents


@pytest.fixture(scope="module")
def article(real_photo: Image.Image) -> bytes:
    """The photo in the article's coding."""
    return encode(real_photo, model="sd-mini", coding="palette")


@pytest.fixture
def with_unet() -> catalogue.ModelSpec:
    pytest.importorskip("diffusers", reason="the U-Net is diffusers'")
    return SD_MINI


def latents_of(data: bytes) -> NDArray[np.float32]:
    return open_latents(BytesIO(data)).latents.transpose(1, 2, 0)


def test_autoencoder_and_unet_take_at_most_10_megabytes() -> None:
    paths = sorted(FOLDER.rglob("*.safetensors"))
    names = [path.relative_to(FOLDER).as_posix() for path in paths]
    assert names == [
        "autoencoder.safetensors",
        "prior.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert sum(path.stat().st_size for path in paths) <= 10_000_000


def test_registry_names_the_weights_that_ship() -> None:
    def sha256(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    assert sha256(weights.SD_MINI.path).startswith(SD_MINI.digest.hex())
    unet = FOLDER / "unet" / "diffusion_pytorch_model.safetensors"
    assert sha256(unet) == weights.SD_MINI_UNET.sha256


def test_latents_have_about_unit_variance(exact: NDArray[np.float32]) -> None:
    """Over many photos the variance is 1, as in a pipeline. A single photo may differ."""
    assert exact.shape == (64, 64, 4)
    assert 0.4 < exact.std() < 1.6


@pytest.mark.parametrize("size", [(1, 1), (17, 9), (64, 40)])
def test_any_size(size: tuple[int, int]) -> None:
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    decoded = decode(encode(picture, model="sd-mini", quality=90))
    assert (decoded.mode, decoded.size) == ("RGB", size)


def test_tiles_have_no_seam(
    real_photo: Image.Image, exact: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums in another order may change a pixel by a grey level, and a latent by 1e-4."""
    network = models.load(SD_MINI)
    whole = shown(network, exact)
    monkeypatch.setattr(sd_mini, "TILE", 2 * sd_mini.DECODER_MARGIN)
    assert np.abs(network.encode(np.asarray(real_photo)) - exact).max() < 1e-4
    assert np.abs(shown(network, exact).astype(int) - whole).max() <= 1


def test_the_articles_size(article: bytes) -> None:
    """The whole file has at most the article's 4.96 kB for 512x512 pixels."""
    assert len(article) <= 4960
    assert decode(article).size == (512, 512)


@pytest.mark.slow
def test_a_palette_recommends_denoising(article: bytes, real_photo: Image.Image) -> None:
    with Image.open(BytesIO(article)) as im:
        assert im.info["sdz"]["denoise"] == {"strength": 0.03, "steps": 3}
    for choices in (
        {"coding": "palette", "denoise": False},
        {"coding": "palette", "target_size": 4960},
        {"coding": "context"},
    ):
        with Image.open(BytesIO(encode(real_photo, model="sd-mini", **choices))) as im:
            assert "denoise" not in im.info["sdz"]
    data = encode(real_photo, model="sd-mini", denoise=0.1, prompt="a cup")
    with Image.open(BytesIO(data)) as im:
        assert im.info["sdz"]["denoise"]["strength"] == 0.1
        assert im.info["sdz"]["prompt"] == "a cup"


def test_denoising_brings_the_latents_back(
    article: bytes, exact: NDArray[np.float32], with_unet: catalogue.ModelSpec
) -> None:
    from pillow_sdz.models.denoise import denoise

    coded = latents_of(article)
    denoiser = models.load_denoiser(with_unet)
    for strength in (0.03, 0.04):  # what files recommend, and the article's
        refined = denoise(coded, denoiser, strength, steps=3)
        assert np.mean((refined - exact) ** 2) < np.mean((coded - exact) ** 2)


def test_denoising_is_closer_to_the_photo(
    article: bytes, real_photo: Image.Image, with_unet: catalogue.ModelSpec
) -> None:
    """It is closer in SSIMULACRA2, which sees the dither's grain."""
    pytest.importorskip("ssimulacra2")
    from benchmarks.metrics import ssimulacra2

    with options.override(DENOISE=False):
        grainy = decode(article)
    denoised = decode(article)
    assert ssimulacra2(real_photo, denoised) > ssimulacra2(real_photo, grainy)


def test_denoising_is_as_the_options_say(article: bytes, with_unet: catalogue.ModelSpec) -> None:
    def decoded(**settings: object) -> bytes:
        with options.override(**settings):
            return decode(article).tobytes()

    recommended = decoded()
    assert decoded() == recommended  # the same again: no noise is drawn
    assert decoded(DENOISE=True) == recommended
    assert decoded(DENOISE=0.03, DENOISE_STEPS=3) == recommended
    assert decoded(DENOISE=0) == decoded(DENOISE=False) != recommended
    assert decoded(DENOISE=0.1) != recommended
    assert decoded(DENOISE_STEPS=1) != recommended


def test_a_file_that_recommends_nothing_is_denoised_on_request(
    real_photo: Image.Image, with_unet: catalogue.ModelSpec
) -> None:
    data = encode(real_photo, model="sd-mini", quality=20)
    plain = decode(data)
    with options.override(DENOISE=True):
        assert decode(data).tobytes() != plain.tobytes()


def test_without_a_unet_a_recommendation_is_none(
    article: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(spec: catalogue.ModelSpec) -> None:
        msg = "no U-Net here"
        raise sources.NotInstalled(msg)

    with options.override(DENOISE=False):
        plain = decode(article)
    monkeypatch.setattr(models, "load_denoiser", missing)
    with pytest.warns(UserWarning, match="without the denoising that the file recommends: no U-N"):
        assert decode(article).tobytes() == plain.tobytes()
    with options.override(DENOISE=True), pytest.raises(OSError, match="no U-Net here"):
        decode(article)
    with warnings.catch_warnings(), options.override(DENOISE=False):
        warnings.simplefilter("error")
        decode(article)


def test_pictures_get_closer_with_effort(article: bytes, real_photo: Image.Image) -> None:
    """In as many bytes, to the picture that the model makes of latents without loss."""
    lossless = np.asarray(decode(encode(real_photo, model="sd-mini", coding="float32")), float)
    errors = []
    for effort in (0, 4, 6):
        data = encode(real_photo, model="sd-mini", target_size=len(article), effort=effort)
        assert len(data) <= len(article)
        errors.append(((np.asarray(decode(data)) - lossless) ** 2).mean())
    assert errors[0] > 1.2 * errors[1] > 1.2 * errors[2]


def test_size_falls_with_effort_at_one_fidelity(exact: NDArray[np.float32]) -> None:
    """At one quality, the error stays within a tenth and the bytes fall."""
    sizes, errors = [], []
    for effort in (0, 4, 6):
        coder = decoding.coder_of(SD_MINI, spaces.CONTEXT)
        quantisation = coder.quantisation(50)
        ((_, payload),) = coder.encoder(quantisation, effort)(Frame(exact))
        found = coder.decode(payload, (64, 64), quantisation)
        sizes.append(len(payload))
        errors.append(float(np.mean((found - exact) ** 2)))
    assert sizes == sorted(set(sizes), reverse=True)
    assert max(errors) < 1.1 * errors[0]


def test_fidelity(real_photo: Image.Image) -> None:
    decoded = decode(encode(real_photo, model="sd-mini", quality=90))
    assert fidelity.psnr(np.asarray(real_photo), np.asarray(decoded)) > 25


def test_damaged_unet_is_not_used(
    article: bytes, with_unet: catalogue.ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_denoisers", {})
    assert SD_MINI.unet is not None
    other = SD_MINI.unet.replace(sha256="0" * 64)
    damaged = SD_MINI.replace(unet=other)
    monkeypatch.setitem(catalogue.EMBEDDED, SD_MINI.name, damaged)
    with options.override(DENOISE=True), pytest.raises(OSError, match="sha256"):
        decode(article)


def test_container_says_what_it_is(article: bytes) -> None:
    header = container.Reader(BytesIO(article)).header
    assert (header.model, header.coding, header.latents) == ("sd-mini", 1, (4, 64, 64))


@pytest.mark.slow
def test_a_larger_palette_fills_the_target_size(
    article: bytes, real_photo: Image.Image, exact: NDArray[np.float32]
) -> None:
    """It has more entries than the article's 256, and fills the article's 4.96 kB."""
    data = encode(real_photo, model="sd-mini", coding="palette", target_size=4960)
    assert len(article) < len(data) <= 4960
    errors = [np.mean((latents_of(d) - exact) ** 2) for d in (data, article)]
    assert errors[0] < errors[1]
    with pytest.raises(ValueError, match="smallest file"):
        encode(real_photo, model="sd-mini", coding="palette", target_size=60)


def test_the_best_prior_is_taken(exact: NDArray[np.float32]) -> None:
    """Latents of a model that nobody knows have no prior of their own, so several are tried."""
    strange = catalogue.ModelSpec("strange", 4, 8, catalogue.NOT_NAMED, latent_space="strange")
    adaptive = Context(4, [ADAPTIVE]).payload(exact, 300, effort=0)
    trained = Context(4, [RELATIVE]).payload(exact, 300, effort=0)
    assert len(adaptive) != len(trained)
    assert Context.of(strange).payload(exact, 300, effort=0) == min(adaptive, trained, key=len)


def test_a_limit_that_nothing_reaches_gives_the_highest_quality(real_photo: Image.Image) -> None:
    best = encode(real_photo, model="sd-mini", quality=100)
    assert encode(real_photo, model="sd-mini", target_size=10_000_000) == best


def test_which_priors_take_long_for_few_bytes() -> None:
    """The prior that learns does. The work for its payloads is limited."""
    coder = decoding.coder_of(SD_MINI, spaces.CONTEXT)
    assert isinstance(coder, Context)
    assert coder.learns(bytes([ADAPTIVE]) + bytes(9))
    assert not coder.learns(bytes([RELATIVE]) + bytes(9))
    assert not coder.learns(b"")
