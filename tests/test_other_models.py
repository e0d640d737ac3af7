"""Files of models that do not come with pillow-sdz: saving, opening, and decoding."""

from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops, ImageFile, ImageStat

import tiny_models as tiny
from model_registry import hub_cache, no_network, registry
from pillow_sdz import chunks, container, models, options, register_model
from pillow_sdz.catalogue import ModelSpec
from pillow_sdz.header import Header
from pillow_sdz.models import hub
from pillow_sdz.presets import PRESETS
from pillow_sdz.spaces import CODING_NAMES
from sdz_files import decode, encode, replaced, shown

__all__ = ["hub_cache", "no_network", "registry"]


@pytest.fixture
def ours(tmp_path: Path) -> ModelSpec:
    """An AutoencoderKL of sd1's latent space, in a directory."""
    tiny.autoencoder_kl().save_pretrained(tmp_path / "ours")
    return register_model("ours", tmp_path / "ours", latent_space="sd1")


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process one that has registered nothing."""
    monkeypatch.setattr(models, "_registered", {})
    monkeypatch.setattr(models, "_loaded", {})


def with_header(data: bytes, **fields: object) -> bytes:
    header = Header.parse(container.read(data)[0].data)
    return replaced(data, chunks.HEAD, header._replace(**fields).pack())  # type: ignore[arg-type]


@pytest.mark.parametrize("coding", CODING_NAMES)
@pytest.mark.parametrize("make", [tiny.autoencoder_kl, tiny.autoencoder_tiny])
def test_save_and_load(photo: Image.Image, make: object, coding: str) -> None:
    spec = register_model("ours", make())  # type: ignore[operator]
    data = encode(photo, model="ours", coding=coding)
    with Image.open(BytesIO(data)) as im:
        assert (im.size, im.mode) == (photo.size, "RGB")
        about = im.info["sdz"]
        assert (about["model"], about["latents"], about["factor"]) == ("ours", (4, 6, 8), 8)
        assert about["coding"] == coding
        im.load()
    assert Header.parse(container.read(data)[0].data).digest == spec.digest


def test_fine_latents_decode_as_the_autoencoder_does(photo: Image.Image, ours: ModelSpec) -> None:
    import numpy as np

    network = models.load(ours)
    pixels = shown(network, network.encode(np.asarray(photo)))
    expected = Image.fromarray(pixels[: photo.height, : photo.width])
    decoded = decode(encode(photo, model="ours", coding="float16"))
    difference = ImageStat.Stat(ImageChops.difference(decoded, expected)).mean
    assert max(difference) < 1  # a float16 has 11 bits


def test_opening_needs_no_model(
    photo: Image.Image, ours: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(photo, model="ours")
    forget(monkeypatch)
    with Image.open(BytesIO(data)) as im:
        assert im.size == photo.size
        im.verify()


@pytest.mark.parametrize("truncated", [False, True])
def test_loading_does(
    photo: Image.Image, ours: ModelSpec, monkeypatch: pytest.MonkeyPatch, truncated: bool
) -> None:
    data = encode(photo, model="ours")
    forget(monkeypatch)
    # A missing model is no damage: a blank picture would only hide it.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", truncated)
    with pytest.raises(
        OSError, match=r"needs the model 'ours', .* 'sdz models add ours DIRECTORY'"
    ):
        decode(data)


def test_a_preset_that_is_not_installed(
    photo: Image.Image, ours: ModelSpec, hub_cache: Path
) -> None:
    message = "the model 'sd1' is not installed: run 'sdz models fetch sd1'"
    data = with_header(encode(photo, model="ours"), model="sd1", digest=models.spec("sd1").digest)
    with pytest.raises(OSError, match=message):
        decode(data)
    with pytest.raises(OSError, match=message):
        encode(photo, model="sd1")


def test_other_weights_under_the_same_name(photo: Image.Image, ours: ModelSpec) -> None:
    data = encode(photo, model="ours")
    other = register_model("ours", tiny.autoencoder_kl(seed=1), latent_space="sd1")
    message = f"{ours.digest.hex()}, but the installed weights are {other.digest.hex()}"
    with pytest.raises(OSError, match=message):
        decode(data)
    with options.override(DECODER="ours"):  # the user asks for it
        decode(data)


def test_models_of_one_latent_space_decode_each_others_files(
    photo: Image.Image, ours: ModelSpec
) -> None:
    register_model("small", tiny.autoencoder_tiny(), latent_space="sd1")
    data = encode(photo, model="ours")
    own = decode(data)
    with options.override(DECODER="small"):
        other = decode(data)
    assert other.size == own.size
    assert other.tobytes() != own.tobytes()
    assert decode(data).tobytes() == own.tobytes()


def test_models_of_other_latent_spaces_do_not(photo: Image.Image, ours: ModelSpec) -> None:
    register_model("other", tiny.autoencoder_kl(), latent_space="sdxl")
    data = encode(photo, model="ours")
    with (
        options.override(DECODER="other"),
        pytest.raises(OSError, match=r"decodes sdxl latents, but .* has sd1 latents"),
    ):
        decode(data)


@pytest.mark.parametrize("name", [b"..xx", b"-rfx", b"_rfx"])
def test_names_that_no_model_can_have(photo: Image.Image, ours: ModelSpec, name: bytes) -> None:
    data = encode(photo, model="ours")
    head = container.read(data)[0].data
    with pytest.raises(OSError, match="model name"):
        decode(replaced(data, chunks.HEAD, head.replace(b"ours", name)))


@pytest.mark.parametrize("name", ["sd1.safetensors", "vae", "0..0"])
def test_names_like_paths_are_names(
    photo: Image.Image, ours: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A file may have such a name. It is looked up like any other."""
    shutil.copytree(tmp_path / "ours", tmp_path / "here" / "vae")
    monkeypatch.chdir(tmp_path / "here")
    data = with_header(encode(photo, model="ours"), model=name)
    with (
        options.override(ALLOW_DOWNLOADS=True),
        pytest.raises(OSError, match=f"needs the model '{name}', which is not known here"),
    ):
        decode(data)


def test_names_of_repositories_do_not_even_open(photo: Image.Image, ours: ModelSpec) -> None:
    data = encode(photo, model="ours")
    head = container.read(data)[0].data.replace(b"ours", b"o/rs")
    with pytest.raises(OSError, match="damaged SDZ header: model name 'o/rs'"):
        Image.open(BytesIO(replaced(data, chunks.HEAD, head)))


def test_nothing_is_downloaded(
    photo: Image.Image, ours: ModelSpec, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []
    monkeypatch.setattr(hub, "fetch", lambda snapshot: fetched.append(snapshot))
    data = encode(photo, model="ours")
    for model in ("sd1", "sdxl", "taesd", "taesdxl"):
        spec = models.spec(model)
        foreign = with_header(data, model=model, digest=spec.digest)
        with Image.open(BytesIO(foreign)) as im, pytest.raises(OSError, match="sdz models fetch"):
            im.load()
        with pytest.raises(OSError, match="sdz models fetch"):
            encode(photo, model=model)
        with (
            options.override(DECODER=model),
            pytest.raises(OSError, match=r"sdz models fetch|decodes sdxl latents"),
        ):
            decode(data)
    assert fetched == []


def test_a_preset_from_the_hubs_cache(
    photo: Image.Image,
    ours: ModelSpec,
    hub_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    preset = tiny.pinned(PRESETS["sd1"], hub_cache, tmp_path / "ours")
    monkeypatch.setattr(models, "PRESETS", {"sd1": preset})
    assert (
        decode(encode(photo, model="sd1")).tobytes()
        == decode(encode(photo, model="ours")).tobytes()
    )


@pytest.mark.parametrize("conditional", [True, False])
def test_a_registered_unet_denoises(photo: Image.Image, tmp_path: Path, conditional: bool) -> None:
    directory = tiny.save_pipeline(tmp_path / "pipeline", conditional)
    register_model("ours", directory, latent_space="sd1")
    data = encode(photo, model="ours", denoise=0.1, prompt="a cat")
    with options.override(DENOISE=False):
        plain = decode(data)
    refined = decode(data)
    assert refined.tobytes() != plain.tobytes()
    assert refined.tobytes() == decode(data).tobytes()
    with options.override(DENOISE_STEPS=1):
        assert decode(data).tobytes() not in (plain.tobytes(), refined.tobytes())


def test_denoising_without_a_unet(photo: Image.Image, ours: ModelSpec, hub_cache: Path) -> None:
    data = encode(photo, model="ours", denoise=0.1)
    with pytest.warns(UserWarning, match="sdz models fetch sd1 --denoiser"):
        recommended = decode(data)
    with options.override(DENOISE=False):
        assert decode(data).tobytes() == recommended.tobytes()
    with (
        options.override(DENOISE=True),
        pytest.raises(OSError, match="sdz models fetch sd1 --denoiser"),
    ):
        decode(data)


def test_a_tampered_directory(photo: Image.Image, ours: ModelSpec, tmp_path: Path) -> None:
    data = encode(photo, model="ours")
    models._loaded.clear()  # as in the next process
    weights = tmp_path / "ours" / tiny.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(OSError, match="is damaged: its sha256 is"):
        decode(data)


def test_no_gradients_are_kept(photo: Image.Image) -> None:
    module = tiny.autoencoder_kl()
    register_model("ours", module, latent_space="sd1")
    decode(encode(photo, model="ours"))
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert torch.is_grad_enabled()
