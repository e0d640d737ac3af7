"""Stable Diffusion's networks through diffusers, with tiny ones of random weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import tiny_models as tiny
from model_registry import hub_cache, no_network, registry
from pillow_sdz import catalogue, models, options, presets, register_model
from pillow_sdz.models import denoise, devices, hub, stable_diffusion
from pillow_sdz.models.schedule import Schedule
from pillow_sdz.models.sources import Folder
from pillow_sdz.models.stable_diffusion import DiffusersAutoencoder
from pillow_sdz.presets import PRESETS
from sdz_files import shown

__all__ = ["hub_cache", "no_network", "registry"]

META = torch.device("meta")  # stands for a GPU

SD1 = catalogue.known("sd1")


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """Noise of odd sides, 61 rows and 43 columns."""
    return np.random.default_rng(0).integers(0, 256, (61, 43, 3), np.uint8)


@pytest.fixture
def kl(tmp_path: Path) -> Path:
    """An AutoencoderKL's directory."""
    tiny.autoencoder_kl().save_pretrained(tmp_path / "kl")
    return tmp_path / "kl"


def as_images(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Pixels (H, W, 3), the last ones repeated to multiples of 8, as diffusers takes them."""
    bottom, right = (-n % 8 for n in pixels.shape[:2])
    padded = np.pad(pixels, ((0, bottom), (0, right), (0, 0)), mode="edge")
    return torch.from_numpy(padded).permute(2, 0, 1)[None] / 127.5 - 1


def as_pixels(images: torch.Tensor) -> NDArray[np.uint8]:
    levels: NDArray[np.uint8] = (
        ((images[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    )
    return levels


@pytest.mark.parametrize(
    ("config", "scale", "shift"),
    [
        ({}, 0.18215, 0.0),
        ({"scaling_factor": 1.5305, "shift_factor": 0.0609}, 1.5305, 0.0609),
        (
            {"scaling_factor": 0.5, "latents_mean": [1, 2, 3, 4], "latents_std": [1, 2, 4, 8]},
            torch.tensor([0.5, 0.25, 0.125, 0.0625]).reshape(1, 4, 1, 1),
            torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1),
        ),
    ],
)
@torch.no_grad()
def test_latents_are_scaled_as_pipelines_do(
    pixels: NDArray[np.uint8], config: dict[str, Any], scale: Any, shift: Any
) -> None:
    module = tiny.autoencoder_kl(**config)
    autoencoder = DiffusersAutoencoder(module)
    expected = (module.encode(as_images(pixels)).latent_dist.mean - shift) * scale
    latents = autoencoder.encode(pixels)
    assert latents.shape == (8, 6, 4)
    assert latents.dtype == np.float32
    np.testing.assert_allclose(latents, expected[0].permute(1, 2, 0), atol=1e-6)

    decoded = shown(autoencoder, latents)
    assert decoded.shape == (64, 48, 3)
    assert decoded.dtype == np.uint8
    images = module.decode(expected / scale + shift).sample
    assert np.abs(decoded.astype(int) - as_pixels(images)).max() <= 1  # rounding


@pytest.mark.parametrize("channels", [4, 16])
@torch.no_grad()
def test_autoencoder_tiny(pixels: NDArray[np.uint8], channels: int) -> None:
    module = tiny.autoencoder_tiny(channels=channels)
    autoencoder = DiffusersAutoencoder(module)
    latents = autoencoder.encode(pixels)
    expected = module.encode(as_images(pixels)).latents[0].permute(1, 2, 0)
    np.testing.assert_array_equal(latents, expected)
    images = module.decode(expected.permute(2, 0, 1)[None]).sample
    np.testing.assert_array_equal(shown(autoencoder, latents), as_pixels(images))


def test_one_pixel(kl: Path) -> None:
    autoencoder = DiffusersAutoencoder(Folder(kl))
    latents = autoencoder.encode(np.zeros((1, 1, 3), np.uint8))
    assert latents.shape == (1, 1, 4)
    assert shown(autoencoder, latents).shape == (8, 8, 3)


def test_a_directory_and_its_module_agree(kl: Path, pixels: NDArray[np.uint8]) -> None:
    spec = register_model("ours", kl)
    loaded = models.load(spec)
    assert models.load(spec) is loaded
    expected = DiffusersAutoencoder(tiny.autoencoder_kl()).encode(pixels)
    np.testing.assert_array_equal(loaded.encode(pixels), expected)


def test_a_loaded_module_is_used_as_it_is(pixels: NDArray[np.uint8]) -> None:
    module = tiny.autoencoder_kl()
    before = module.state_dict()
    addresses = [tensor.data_ptr() for tensor in before.values()]
    calls = []
    module.encoder.register_forward_hook(lambda *_: calls.append(1))
    with options.override(DTYPE="float16"):  # which is for what pillow-sdz loads
        models.load(register_model("ours", module)).encode(pixels)
    assert calls == [1]
    assert [tensor.data_ptr() for tensor in module.state_dict().values()] == addresses
    assert module.dtype == torch.float32


def test_float16_and_float32_have_one_digest() -> None:
    full = register_model("full", tiny.autoencoder_kl())
    half = register_model("half", tiny.autoencoder_kl().half())
    other = register_model("other", tiny.autoencoder_kl(seed=1))
    assert full.digest == half.digest != other.digest
    assert stable_diffusion.digest(tiny.autoencoder_kl()).startswith(full.digest.hex())


def test_the_variant_in_half_precision(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    tiny.autoencoder_kl().half().save_pretrained(tmp_path / "kl", variant="fp16")
    latents = models.load(register_model("ours", tmp_path / "kl")).encode(pixels)
    expected = DiffusersAutoencoder(tiny.autoencoder_kl()).encode(pixels)
    np.testing.assert_allclose(latents, expected, atol=1e-3)


# damage


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / tiny.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / tiny.WEIGHTS)


def test_weights_that_have_changed_since(kl: Path) -> None:
    spec = register_model("ours", kl)
    rewrite(kl, lambda tensors: tensors["quant_conv.bias"].zero_())
    with pytest.raises(OSError, match=f"damaged: its sha256 is .* instead of {spec.digest.hex()}"):
        models.load(spec)


def test_weights_that_are_cut_off(kl: Path) -> None:
    weights = kl / tiny.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(OSError, match="could not be loaded as AutoencoderKL"):
        models.load(register_model("ours", kl))


def test_weights_that_are_missing(kl: Path) -> None:
    rewrite(kl, lambda tensors: tensors.pop("quant_conv.bias"))
    with pytest.raises(OSError, match=r"lacks 1 tensors, such as quant_conv\.bias"):
        models.load(register_model("ours", kl))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(kl: Path, value: float) -> None:
    rewrite(kl, lambda tensors: tensors["quant_conv.bias"].fill_(value))
    with pytest.raises(OSError, match=r"damaged: quant_conv\.bias has values that are infinite"):
        models.load(register_model("ours", kl))
    module = tiny.autoencoder_kl()
    module.quant_conv.bias.data.fill_(value)
    with pytest.raises(OSError, match=r"damaged: quant_conv\.bias has values that are infinite"):
        models.load(register_model("loaded", module))


def test_latents_that_are_no_numbers() -> None:
    autoencoder = DiffusersAutoencoder(tiny.autoencoder_kl())
    with pytest.raises(OSError, match="AutoencoderKL returned values that are infinite"):
        shown(autoencoder, np.full((2, 2, 4), np.nan, np.float32))


def test_a_name_that_is_another_models_by_now(tmp_path: Path) -> None:
    spec = register_model("ours", tiny.autoencoder_kl())
    other = register_model("ours", tiny.autoencoder_kl(seed=1))
    for load in (models.load, models.load_denoiser):
        with pytest.raises(OSError, match="'ours' has been replaced or removed"):
            load(spec)
    assert models.load(other) is models.load(other)


# memory and precision


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 32 pixels."""
    monkeypatch.setattr(stable_diffusion, "TILE", 32)


@pytest.mark.parametrize("make", [tiny.autoencoder_kl, tiny.autoencoder_tiny])
@torch.no_grad()
def test_large_images_are_tiled_by_diffusers(
    make: Callable[[], Any],
    pixels: NDArray[np.uint8],
    small_tiles: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = make()
    autoencoder = DiffusersAutoencoder(module)
    monkeypatch.setattr(stable_diffusion, "TILE_ABOVE", 64 * 48)
    whole = autoencoder.encode(pixels)  # at the limit
    monkeypatch.setattr(stable_diffusion, "TILE_ABOVE", 64 * 48 - 1)
    tiled = autoencoder.encode(pixels)
    decoded = shown(autoencoder, tiled)
    assert np.abs(whole - tiled).max() > 0
    assert not module.use_tiling

    reference = make()
    reference.enable_tiling()
    reference.tile_sample_min_size, reference.tile_latent_min_size = 32, 4
    np.testing.assert_array_equal(tiled, DiffusersAutoencoder(reference).encode(pixels))
    np.testing.assert_array_equal(decoded, shown(DiffusersAutoencoder(reference), tiled))


CUDA = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
MPS = RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)")
CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")


def scarce(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError, fails: Callable[[Any, torch.Tensor], bool]
) -> None:
    """Let AutoencoderKL run out of memory in some cases."""
    decode = tiny.diffusers.AutoencoderKL.decode

    def limited(module: Any, latents: torch.Tensor) -> Any:
        if fails(module, latents):
            raise error
        return decode(module, latents)

    monkeypatch.setattr(tiny.diffusers.AutoencoderKL, "decode", limited)


def latents() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((8, 6, 4), np.float32)


@pytest.mark.parametrize("error", [CUDA, MPS, CPU])
def test_out_of_memory_is_tried_in_tiles(
    monkeypatch: pytest.MonkeyPatch, small_tiles: None, error: RuntimeError
) -> None:
    autoencoder = DiffusersAutoencoder(tiny.autoencoder_kl())
    with monkeypatch.context() as patch:
        patch.setattr(stable_diffusion, "TILE_ABOVE", 0)
        expected = shown(autoencoder, latents())
    scarce(monkeypatch, error, lambda module, _: not module.use_tiling)
    with pytest.warns(
        UserWarning, match="out of memory on cpu, running the AutoencoderKL in tiles"
    ):
        decoded = shown(autoencoder, latents())
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("error", [CUDA, MPS])
@pytest.mark.parametrize("from_directory", [True, False])
def test_out_of_memory_is_tried_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
    small_tiles: None,
    kl: Path,
    error: RuntimeError,
    from_directory: bool,
) -> None:
    module = tiny.autoencoder_kl()
    autoencoder = DiffusersAutoencoder(Folder(kl) if from_directory else module)
    with monkeypatch.context() as patch:
        patch.setattr(stable_diffusion, "TILE_ABOVE", 0)
        expected = shown(autoencoder, latents())
    monkeypatch.setattr(autoencoder, "_preferred", lambda: (META, torch.float16))
    scarce(monkeypatch, error, lambda _, latents: latents.device == META)
    with pytest.warns(UserWarning, match="out of memory") as warned:
        decoded = shown(autoencoder, latents())
    assert [str(warning.message) for warning in warned] == [
        "out of memory on meta, running the AutoencoderKL in tiles instead",
        "out of memory on meta, running the AutoencoderKL on the CPU instead",
    ]
    np.testing.assert_array_equal(decoded, expected)


def test_no_memory_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder = DiffusersAutoencoder(tiny.autoencoder_kl())
    scarce(monkeypatch, CPU, lambda *_: True)
    with (
        pytest.warns(UserWarning, match="in tiles"),
        pytest.raises(OSError, match="needs more memory than there is"),
    ):
        shown(autoencoder, latents())


def test_tiles_that_diffusers_cannot_do_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder = DiffusersAutoencoder(tiny.autoencoder_tiny(channels=16))
    monkeypatch.setattr(stable_diffusion, "TILE_ABOVE", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert autoencoder.encode(np.zeros((600, 8, 3), np.uint8)).shape == (75, 1, 16)


def test_other_failures_are_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder = DiffusersAutoencoder(tiny.autoencoder_kl())
    scarce(monkeypatch, RuntimeError("cuDNN error"), lambda *_: True)
    with pytest.raises(OSError, match="the AutoencoderKL failed: cuDNN error"):
        shown(autoencoder, latents())


def test_what_leaves_float16s_range_is_run_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny.autoencoder_kl().half()
    expected = shown(DiffusersAutoencoder(tiny.autoencoder_kl().half().float()), latents())
    autoencoder = DiffusersAutoencoder(module)
    decode = tiny.diffusers.AutoencoderKL.decode

    def overflowing(module: Any, latents: torch.Tensor) -> Any:
        out = decode(module, latents)
        if latents.dtype == torch.float16:
            out.sample[..., 0] = torch.inf
        return out

    monkeypatch.setattr(tiny.diffusers.AutoencoderKL, "decode", overflowing)
    with pytest.warns(UserWarning, match=r"leaves the range of torch\.float16"):
        np.testing.assert_array_equal(shown(autoencoder, latents()), expected)
    with warnings.catch_warnings():  # it is remembered
        warnings.simplefilter("error")
        np.testing.assert_array_equal(shown(autoencoder, latents()), expected)


def test_device_and_dtype(kl: Path, pixels: NDArray[np.uint8]) -> None:
    assert devices.dtype(torch.device("cpu")) == torch.float32
    assert devices.dtype(torch.device("cuda")) == torch.float16
    assert devices.dtype(torch.device("mps")) == torch.float16
    autoencoder = DiffusersAutoencoder(Folder(kl))
    whole = autoencoder.encode(pixels)
    with options.override(DEVICE="cpu", DTYPE="bfloat16"):
        coarse = autoencoder.encode(pixels)
    assert 0 < np.abs(coarse - whole).max() < 0.05
    np.testing.assert_array_equal(autoencoder.encode(pixels), whole)  # nothing is left of bfloat16


def test_a_unet_that_does_not_fit_is_run_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = register_model("ours", tiny.save_pipeline(tmp_path / "pipeline", conditional=False))
    to = tiny.diffusers.UNet2DModel.to

    def limited(module: Any, device: Any, *arguments: Any) -> Any:
        if device == META:
            raise CUDA
        return to(module, device, *arguments)

    monkeypatch.setattr(devices, "device", lambda: META)
    monkeypatch.setattr(tiny.diffusers.UNet2DModel, "to", limited)
    with pytest.warns(UserWarning, match="out of memory on meta, running the U-Net on the CPU"):
        unet = models.load_denoiser(spec).unet
    assert (unet.device, unet.dtype) == (torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("name", ["cuda:99", "hpu", "abacus"])
def test_a_device_that_is_not_there(kl: Path, name: str) -> None:
    with (
        options.override(DEVICE=name),
        pytest.raises(
            ValueError, match=rf"options\.DEVICE is '{name}', but torch has no such device"
        ),
    ):
        shown(DiffusersAutoencoder(Folder(kl)), latents())


# denoisers


def embedding(spec: catalogue.ModelSpec, prompt: str) -> torch.Tensor:
    embed = models.load_denoiser(spec).embed
    assert embed is not None
    return embed(prompt)


@torch.no_grad()
def test_a_pipelines_unet_and_text_encoder(tmp_path: Path) -> None:
    spec = register_model("ours", tiny.save_pipeline(tmp_path / "pipeline"))
    denoiser = models.load_denoiser(spec)
    assert models.load_denoiser(spec) is denoiser
    assert denoiser.embed is not None
    kept = tiny.scheduler().alphas_cumprod
    np.testing.assert_array_equal(denoiser.schedule.kept, kept)
    prompts = [denoiser.embed(prompt) for prompt in ("", "a cat", "")]
    assert torch.equal(prompts[0], prompts[2])
    assert not torch.equal(prompts[0], prompts[1])
    noise = denoiser.unet(torch.zeros(1, 4, 8, 8), 10, encoder_hidden_states=prompts[1]).sample
    assert noise.shape == (1, 4, 8, 8)


@torch.no_grad()
def test_a_unet_that_takes_no_text(tmp_path: Path) -> None:
    directory = tiny.save_pipeline(tmp_path / "pipeline", conditional=False)
    denoiser = models.load_denoiser(register_model("ours", directory))
    assert denoiser.embed is None
    assert denoiser.unet(torch.zeros(1, 4, 8, 8), 10).sample.shape == (1, 4, 8, 8)


def test_loaded_parts_are_used_as_they_are() -> None:
    unet, scheduler = tiny.unet(), tiny.scheduler()
    spec = register_model("ours", tiny.autoencoder_kl(), unet=unet, scheduler=scheduler)
    denoiser = models.load_denoiser(spec)
    assert denoiser.unet is unet
    np.testing.assert_array_equal(denoiser.schedule.kept, scheduler.alphas_cumprod)


def test_registering_again_replaces_the_unet() -> None:
    """The autoencoder and so the model are the same, but the U-Net that was loaded is not used."""
    network, scheduler = tiny.autoencoder_kl(), tiny.scheduler()
    for unet in (tiny.unet(), tiny.unet()):
        spec = register_model("ours", network, unet=unet, scheduler=scheduler)
        assert models.load_denoiser(spec).unet is unet


def test_parts_of_other_directories(tmp_path: Path, kl: Path) -> None:
    tiny.save_pipeline(tmp_path / "other")
    parts: dict[str, Any] = {
        part: tmp_path / "other" / part
        for part in ("unet", "scheduler", "text_encoder", "tokenizer")
    }
    assert models.load_denoiser(register_model("ours", kl, **parts)).embed is not None


def test_another_models_unet_of_the_same_latents(tmp_path: Path) -> None:
    pipeline = register_model(
        "pipeline", tiny.save_pipeline(tmp_path / "pipeline"), latent_space="sd1"
    )
    small = register_model("small", tiny.autoencoder_tiny(), latent_space="sd1")
    assert models.load_denoiser(small) is models.load_denoiser(pipeline)


def test_no_unet(kl: Path, hub_cache: Path) -> None:
    with pytest.raises(OSError, match="no denoiser of ours latents is known"):
        models.load_denoiser(register_model("ours", kl))
    with pytest.raises(OSError, match="run 'sdz models fetch sd1 --denoiser'"):
        models.load_denoiser(models.spec("taesd"))


def test_a_unet_for_other_latents() -> None:
    with pytest.raises(OSError, match="the U-Net has 9 in_channels, but the latents have 4"):
        register_model("ours", tiny.autoencoder_kl(), unet=tiny.unet(9), scheduler=tiny.scheduler())


@pytest.mark.parametrize(
    ("parts", "missing"),
    [
        ({"unet": tiny.unet}, "scheduler"),
        ({"unet": tiny.conditional_unet}, "scheduler, text_encoder, tokenizer"),
        ({"unet": tiny.conditional_unet, "scheduler": tiny.scheduler}, "text_encoder, tokenizer"),
    ],
)
def test_a_unet_without_what_it_needs(parts: dict[str, Callable[[], Any]], missing: str) -> None:
    given = {name: make() for name, make in parts.items()}
    with pytest.raises(OSError, match=f"which also needs: {missing}"):
        register_model("ours", tiny.autoencoder_kl(), **given)


def test_parts_without_a_unet() -> None:
    with pytest.raises(OSError, match="needs a U-Net: give unet as well"):
        register_model("ours", tiny.autoencoder_kl(), scheduler=tiny.scheduler())


def test_a_network_of_another_kind_as_unet() -> None:
    with pytest.raises(OSError, match="the U-Net is of class AutoencoderKL, not"):
        register_model(
            "ours",
            tiny.autoencoder_kl(),
            unet=tiny.autoencoder_kl(),
            scheduler=tiny.scheduler(),
        )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"addition_embed_type": "text_time"},
            "which is not supported: addition_embed_type",
        ),
        ({"class_embed_type": "timestep"}, "which is not supported: class_embed_type"),
        ({"num_class_embeds": 10}, "which is not supported: num_class_embeds"),
        ({"encoder_hid_dim_type": "text_proj"}, "which is not supported: encoder_hid_dim"),
        ({"cross_attention_dim": 16}, "takes texts of width 16, but its text encoder makes 8"),
        ({"cross_attention_dim": [8, 16]}, r"takes texts of width \[8, 16\], .* makes 8"),
    ],
)
def test_a_unet_that_needs_more_than_the_text(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    directory = tiny.save_pipeline(tmp_path / "pipeline")
    path = directory / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    with pytest.raises(OSError, match=message):
        register_model("ours", directory)


def test_a_loaded_text_encoder_of_another_width(tmp_path: Path) -> None:
    parts = tiny.pipeline_parts(tmp_path)
    given = {name: parts[name] for name in ("unet", "scheduler", "text_encoder", "tokenizer")}
    register_model("ours", parts["vae"], **given)
    given["unet"].register_to_config(cross_attention_dim=16)
    with pytest.raises(OSError, match="takes texts of width 16, but its text encoder makes 8"):
        register_model("ours", parts["vae"], **given)


def test_networks_in_training_mode_are_refused() -> None:
    with pytest.raises(ValueError, match="source, a AutoencoderKL, is in training mode"):
        register_model("ours", tiny.autoencoder_kl().train())
    with pytest.raises(ValueError, match="unet, a UNet2DModel, is in training mode"):
        register_model(
            "ours", tiny.autoencoder_kl(), unet=tiny.unet().train(), scheduler=tiny.scheduler()
        )


# running U-Nets


def refined(spec: catalogue.ModelSpec) -> NDArray[np.float32]:
    refine = denoise.refiner(spec, None, "", (8, 6))
    assert refine is not None
    return refine(latents())


@pytest.fixture
def denoising() -> Iterator[None]:
    with options.override(DENOISE=0.1, DENOISE_STEPS=2):
        yield


@pytest.fixture
def unconditional(tmp_path: Path, denoising: None) -> catalogue.ModelSpec:
    """A model whose directory has a U-Net that takes no text."""
    return register_model("ours", tiny.save_pipeline(tmp_path / "pipeline", conditional=False))


@pytest.mark.parametrize("error", [IndexError, RuntimeError, TypeError, ValueError])
def test_what_a_unet_raises(
    unconditional: catalogue.ModelSpec, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def failing(*_: object, **__: object) -> Any:
        raise error("broken")

    monkeypatch.setattr(tiny.diffusers.UNet2DModel, "forward", failing)
    with pytest.raises(OSError, match="the U-Net failed: broken"):
        refined(unconditional)


def test_what_a_unet_returns_is_checked(
    unconditional: catalogue.ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny.diffusers.UNet2DModel.forward

    def overflowing(*arguments: Any, **options: Any) -> Any:
        out = run(*arguments, **options)
        out.sample[..., 0] = torch.inf
        return out

    monkeypatch.setattr(tiny.diffusers.UNet2DModel, "forward", overflowing)
    with pytest.raises(OSError, match=r"the U-Net in torch\.float32 returned values"):
        refined(unconditional)


def out_of_memory_on_meta(monkeypatch: pytest.MonkeyPatch, everywhere: bool = False) -> None:
    run = tiny.diffusers.UNet2DModel.forward

    def limited(module: Any, *arguments: Any, **options: Any) -> Any:
        if everywhere or module.device == META:
            raise CUDA
        return run(module, *arguments, **options)

    monkeypatch.setattr(tiny.diffusers.UNet2DModel, "forward", limited)
    monkeypatch.setattr(
        devices,
        "device",
        lambda: torch.device(options.DEVICE) if options.DEVICE else META,
    )


def test_a_unet_that_ran_out_of_memory_stays_on_the_cpu(
    unconditional: catalogue.ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = refined(unconditional)
    models._denoisers.clear()
    out_of_memory_on_meta(monkeypatch)
    with pytest.warns(UserWarning, match="out of memory on meta, running the U-Net on the CPU"):
        np.testing.assert_array_equal(refined(unconditional), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(refined(unconditional), expected)


def test_a_unet_that_fits_nowhere(
    unconditional: catalogue.ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_of_memory_on_meta(monkeypatch, everywhere=True)
    with (
        pytest.warns(UserWarning, match="running the U-Net on the CPU"),
        pytest.raises(OSError, match="the U-Net failed: CUDA out of memory"),
    ):
        refined(unconditional)


def test_a_loaded_unet_is_not_moved(denoising: None, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = tiny.unet().to(META)
    spec = register_model("ours", tiny.autoencoder_kl(), unet=unet, scheduler=tiny.scheduler())
    out_of_memory_on_meta(monkeypatch)
    with pytest.raises(
        OSError, match=r"than there is on meta: .* registered already loaded: move it"
    ):
        refined(spec)
    assert unet.device == META


@pytest.mark.parametrize(
    ("strength", "steps", "taken"), [(0.001, 20, [0]), (0.04, 1000, range(39, -1, -1)), (1, 2, 2)]
)
def test_steps_do_not_raise_the_strength(strength: float, steps: int, taken: Any) -> None:
    times = []

    def predict(x: torch.Tensor, time: int) -> torch.Tensor:
        times.append(time)
        return torch.zeros_like(x)

    schedule = Schedule.of(tiny.scheduler().config, "")
    denoise.last_steps(torch.zeros(1, 4, 2, 2), predict, schedule, strength, steps)
    assert times == ([999, 499] if taken == 2 else list(taken))


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_pickled_parts_are_not_read(tmp_path: Path, part: str) -> None:
    directory = tiny.save_pipeline(tmp_path / "pipeline")
    (weights,) = (directory / part).glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    spec = register_model("ours", directory)
    with pytest.raises(OSError, match="its weights only as a pickle"):
        embedding(spec, "")


# the hub's cache


@pytest.fixture
def cached(tmp_path: Path, hub_cache: Path, kl: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The preset sd1, pinned to tiny files that are in the cache; the cache."""
    pipeline = tiny.save_pipeline(tmp_path / "pipeline")
    shutil.rmtree(pipeline / "vae")
    preset = tiny.pinned(PRESETS["sd1"], hub_cache, kl, pipeline)
    monkeypatch.setattr(models, "PRESETS", {"sd1": preset})
    return hub_cache


def in_cache(cache: Path, name: str) -> Path:
    (path,) = cache.glob(f"models--*/snapshots/*/{name}")
    return path


def test_a_preset_in_the_cache(cached: Path, pixels: NDArray[np.uint8]) -> None:
    spec = models.decoder_for(SD1, catalogue.NOT_NAMED, "psnr")
    expected = DiffusersAutoencoder(tiny.autoencoder_kl()).encode(pixels)
    np.testing.assert_array_equal(models.load(spec).encode(pixels), expected)
    assert embedding(spec, "a cat").shape == (1, tiny.TOKENS, 8)


@pytest.mark.parametrize("name", ["config.json", tiny.WEIGHTS])
def test_an_incomplete_cache(cached: Path, name: str) -> None:
    in_cache(cached, name).unlink()
    with pytest.raises(OSError, match="'sd1' is not installed: run 'sdz models fetch sd1'"):
        models.decoder_for(SD1, catalogue.NOT_NAMED, "psnr")


@pytest.mark.parametrize("name", ["unet/config.json", "tokenizer/vocab.json"])
def test_an_incomplete_denoiser_in_the_cache(cached: Path, name: str) -> None:
    in_cache(cached, name).unlink()
    spec = models.decoder_for(SD1, catalogue.NOT_NAMED, "psnr")
    models.load(spec)
    with pytest.raises(OSError, match="run 'sdz models fetch sd1 --denoiser'"):
        models.load_denoiser(spec)


def flip_last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_tampered_weights_in_the_cache(cached: Path) -> None:
    flip_last_bit(in_cache(cached, tiny.WEIGHTS))
    with pytest.raises(OSError, match="is damaged: its sha256 is"):
        models.load(models.spec("sd1"))


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_tampered_denoiser_in_the_cache(cached: Path, part: str) -> None:
    flip_last_bit(in_cache(cached, f"{part}/*.safetensors"))
    with pytest.raises(OSError, match="is damaged: its sha256 is"):
        embedding(models.spec("sd1"), "")


@pytest.mark.parametrize(
    "change", [{"scaling_factor": 0.13025}, {"shift_factor": 1.0}, {"latents_mean": [0, 0, 0, 1]}]
)
def test_a_tampered_configuration_in_the_cache(cached: Path, change: dict[str, Any]) -> None:
    path = in_cache(cached, "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(OSError, match=r"config\.json is damaged"):
        models.load(models.spec("sd1"))


def test_a_unet_for_other_latents_in_the_cache(cached: Path) -> None:
    path = in_cache(cached, "unet/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "in_channels": 9}))
    with pytest.raises(OSError, match="the U-Net has 9 in_channels, but the latents have 4"):
        models.load_denoiser(models.spec("sd1"))


def test_downloads_happen_only_where_they_are_allowed(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []

    def fetch(snapshot: Any) -> Path:
        fetched.append(snapshot.repository)
        return folder

    folder = in_cache(cached, "config.json").parent
    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(hub, "locate", lambda snapshot: None)
    with pytest.raises(OSError, match="sdz models fetch sd1"):
        models.load(models.spec("sd1"))
    assert fetched == []
    with options.override(ALLOW_DOWNLOADS=True):
        models.load(models.spec("sd1"))
    assert fetched == ["tiny/autoencoder"]


def test_what_is_not_pinned_is_not_downloaded(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = presets.PRESETS["sd1"]
    loose = preset._replace(autoencoder=preset.autoencoder._replace(revision=None))
    monkeypatch.setattr(models, "PRESETS", {"sd1": loose})
    with (
        options.override(ALLOW_DOWNLOADS=True),
        pytest.raises(OSError, match="sdz models fetch sd1 --pin"),
    ):
        models.load(models.spec("sd1"))


OFFLINE = """
import json, socket, sys

def refuse(*arguments, **_):
    raise SystemExit(f"the network is out of bounds: {arguments}")

socket.socket.connect = socket.getaddrinfo = refuse
import numpy as np
from pillow_sdz import models
from pillow_sdz.presets import PRESETS, File, Preset, Snapshot

def snapshot(repository, revision, files):
    return Snapshot(repository, revision, tuple(File(*file) for file in files))

given = json.load(sys.stdin)
snapshots = {name: snapshot(*given.pop(name)) for name in ("autoencoder", "denoiser")}
models.PRESETS = {"sd1": Preset(**given, **snapshots)}
sd1 = models.spec("sd1")
model = models.load(models.decoder_for(sd1, sd1.digest, "psnr"))
denoiser = models.load_denoiser(models.spec("sd1"))
latents = model.encode(np.zeros((8, 8, 3), np.uint8))
print(next(model.decode(latents))[1].shape, tuple(denoiser.embed("a cat").shape))
"""


@pytest.mark.slow
def test_offline_with_the_hubs_own_variables(cached: Path, environment: dict[str, str]) -> None:
    (cached.parent / "home").mkdir()
    cached.rename(cached.parent / "home" / "hub")
    for link in (cached.parent / "home").rglob("snapshots/*/**/*"):
        if link.is_symlink():
            target = Path(str(link.readlink()).replace(str(cached), f"{cached.parent}/home/hub"))
            link.unlink()
            link.symlink_to(target)
    offline = {"HF_HOME": str(cached.parent / "home"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        input=json.dumps(models.PRESETS["sd1"]._asdict()),
        env={**environment, **offline},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout == f"(8, 8, 3) (1, {tiny.TOKENS}, 8)\n", run.stderr
