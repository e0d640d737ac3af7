"""Flow models denoise latents: SD3, FLUX.1, FLUX.2, Qwen-Image, tiny ones with random weights."""

from __future__ import annotations

import dataclasses
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_models as tiny
from model_registry import no_network, registry
from pillow_sdz import models, options, register_model, save_latents
from pillow_sdz.models import denoise
from pillow_sdz.models.flow import Flow
from sample_latents import correlated_latents

__all__ = ["no_network", "registry"]

diffusers = tiny.diffusers
transformers = tiny.transformers


def tokenizer(folder: Path) -> Any:
    if not folder.is_dir():
        tiny.save_tokenizer(folder)
    return transformers.CLIPTokenizer.from_pretrained(folder)


def flow_scheduler() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


def projecting() -> Any:
    config = tiny.text_encoder().config
    config.projection_dim = 8
    with tiny.seeded(4):
        return transformers.CLIPTextModelWithProjection(config).eval()


def sd3(folder: Path) -> Any:
    with tiny.seeded(5):
        transformer = diffusers.SD3Transformer2DModel(
            sample_size=32,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pooled_projection_dim=16,
        ).eval()
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow_scheduler(),
        vae=tiny.autoencoder_kl(channels=16),
        text_encoder=projecting(),
        tokenizer=tokenizer(folder),
        text_encoder_2=projecting(),
        tokenizer_2=tokenizer(folder),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def flux(folder: Path) -> Any:
    config = transformers.T5Config(
        vocab_size=100, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2
    )
    with tiny.seeded(6):
        encoder = transformers.T5EncoderModel(config).eval()
        transformer = diffusers.FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=8,
            guidance_embeds=True,
            axes_dims_rope=(2, 2, 4),
        ).eval()
    return diffusers.FluxPipeline(
        transformer=transformer,
        scheduler=flow_scheduler(),
        vae=tiny.autoencoder_kl(channels=16),
        text_encoder=tiny.text_encoder(),
        tokenizer=tokenizer(folder),
        text_encoder_2=encoder,
        tokenizer_2=tokenizer(folder),
    )


# Templates of chats: FLUX.2's messages have parts, and those of its small models are texts.
PARTS = "{% for m in messages %}{{ m['content'][0]['text'] }}{% endfor %}"
TEXTS = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def language_model(layers: int) -> Any:
    config = transformers.MistralConfig(
        vocab_size=100,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=4,
    )
    with tiny.seeded(7):
        return transformers.MistralModel(config).eval()


def flux2_transformer(in_channels: int = 128, *, distilled: bool) -> Any:
    with tiny.seeded(8):
        return diffusers.Flux2Transformer2DModel(
            in_channels=in_channels,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=24,
            timestep_guidance_channels=8,
            axes_dims_rope=(2, 2, 2, 2),
            guidance_embeds=distilled,
        ).eval()


def flux2_autoencoder() -> Any:
    with tiny.seeded(9):
        vae = diffusers.AutoencoderKLFlux2(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=2,
        ).eval()
        vae.bn.running_mean.normal_(0, 0.3)
        vae.bn.running_var.uniform_(0.5, 2)
    return vae


def flux2(folder: Path) -> Any:
    talking = tokenizer(folder)
    talking.chat_template = PARTS
    return diffusers.Flux2Pipeline(
        transformer=flux2_transformer(distilled=True),
        scheduler=flow_scheduler(),
        vae=flux2_autoencoder(),
        text_encoder=language_model(30),
        tokenizer=talking,
    )


def klein(folder: Path) -> Any:
    talking = tokenizer(folder)
    talking.chat_template = TEXTS
    return diffusers.Flux2KleinPipeline(
        transformer=flux2_transformer(distilled=False),
        scheduler=flow_scheduler(),
        vae=flux2_autoencoder(),
        text_encoder=language_model(27),
        tokenizer=talking,
    )


def qwen(folder: Path) -> Any:
    with tiny.seeded(10):
        transformer = diffusers.QwenImageTransformer2DModel(
            in_channels=64,
            out_channels=16,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            axes_dims_rope=(4, 2, 2),
        ).eval()
        vae = diffusers.AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1).eval()
    return diffusers.QwenImagePipeline(
        transformer=transformer,
        scheduler=flow_scheduler(),
        vae=vae,
        text_encoder=language_model(1),
        tokenizer=tokenizer(folder),
    )


PIPELINES = [
    (sd3, "sd3"),
    (flux, "flux"),
    (flux2, "flux2"),
    (klein, "flux2"),
    (qwen, "qwen-image"),
]
CHANNELS = {"flux2": 32}


def latents(space: str = "flux", rows: int = 16, columns: int = 24) -> Any:
    found = correlated_latents(rows, columns, CHANNELS.get(space, 16))
    return np.float32(found.transpose(2, 0, 1))


def saved(space: str, **about: Any) -> bytes:
    file = BytesIO()
    save_latents(latents(space), file, model="ours", step=0.5, prompt="a b", **about)
    return file.getvalue()


def test_steps_are_those_of_diffusers() -> None:
    x = torch.from_numpy(latents())[None]
    predicted = torch.linspace(-1, 1, x.numel()).reshape(x.shape)
    theirs = flow_scheduler()
    theirs.set_timesteps(sigmas=[0.12, 0.08, 0.04])
    ours = Flow()
    assert ours.last(0.12, 3) == [(120, 80), (80, 40), (40, 0)]
    assert ours.last(0.002, 9) == [(2, 1), (1, 0)]
    assert ours.last(0.0001, 5) == [(1, 0)]
    mine = their = ours.noisy(x, 120)
    for (time, after), timestep in zip(ours.last(0.12, 3), theirs.timesteps, strict=True):
        assert timestep.item() == pytest.approx(time)
        mine = ours.step(mine, predicted, time, after)
        their = theirs.step(predicted, timestep, their).prev_sample
    torch.testing.assert_close(mine, their)


def test_who_knows_the_noise_removes_it() -> None:
    clean = torch.from_numpy(latents())[None]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    rounded = clean + 0.1 / 0.9 * noise  # its error, scaled, is a tenth of noise

    def predict(x: torch.Tensor, time: int) -> torch.Tensor:
        torch.testing.assert_close(x, clean * (1 - time / 1000) + noise * time / 1000)
        return noise - clean

    found = denoise.last_steps(rounded, predict, Flow(), 0.1, 4)
    torch.testing.assert_close(found, clean)


@pytest.mark.parametrize(("make", "space"), PIPELINES)
def test_the_pipelines_transformer_is_run(make: Any, space: str, tmp_path: Path) -> None:
    pipe = make(tmp_path / "tokenizer")
    spec = register_model("ours", pipe.vae, pipeline=pipe, latent_space=space)
    with Image.open(BytesIO(saved(space))) as im:
        plain = np.asarray(im.convert("RGB"), np.float32)
    with options.override(DENOISE=0.2), Image.open(BytesIO(saved(space))) as im:
        denoised = np.asarray(im.convert("RGB"), np.float32)
    assert np.abs(denoised - plain).max() > 0

    # The same by diffusers' own functions, in one step.
    x = torch.from_numpy(latents(space))[None]
    start = 0.8 * x
    with torch.inference_mode():
        if space == "sd3":
            tokens, _, pooled, _ = pipe.encode_prompt("a b", "a b", "a b", device="cpu")
            predicted = pipe.transformer(start, tokens[:1], pooled[:1], torch.tensor([200])).sample
        elif space == "flux2":
            wanted = by_flux2(pipe, x)
        elif space == "qwen-image":
            tokens, mask = pipe.encode_prompt("a b", device="cpu")
            sequence = pipe.transformer(
                pipe._pack_latents(start, 1, 16, 16, 24),
                tokens,
                mask,
                torch.tensor([0.2]),
                [[(1, 8, 12)]],
            ).sample
            predicted = pipe._unpack_latents(sequence, 128, 192, 8)[:, :, 0]
        else:
            tokens, pooled, text_ids = pipe.encode_prompt("a b", "a b", device="cpu")
            packed = pipe._pack_latents(start, 1, 16, 16, 24)
            ids = pipe._prepare_latent_image_ids(1, 8, 12, "cpu", torch.float32)
            sequence = pipe.transformer(
                packed, tokens, pooled, torch.tensor([0.2]), ids, text_ids, torch.tensor([3.5])
            ).sample
            predicted = pipe._unpack_latents(sequence, 128, 192, 8)
    if space != "flux2":
        wanted = start - 0.2 * predicted
    denoiser = models.load_denoiser(spec)
    found = denoise.denoise(latents(space).transpose(1, 2, 0), denoiser, 0.2, 1, "a b")
    again = torch.from_numpy(found).permute(2, 0, 1)[None]
    torch.testing.assert_close(again, wanted, atol=1e-5, rtol=1e-4)


def by_flux2(pipe: Any, x: torch.Tensor) -> torch.Tensor:
    """A step of FLUX.2 from a fifth of noise, on patches that the batch norm has scaled."""
    mean = pipe.vae.bn.running_mean.view(1, -1, 1, 1)
    deviation = (pipe.vae.bn.running_var.view(1, -1, 1, 1) + pipe.vae.config.batch_norm_eps).sqrt()
    start = 0.8 * (pipe._patchify_latents(x) - mean) / deviation
    tokens, text_ids = pipe.encode_prompt("a b", device="cpu")
    ids = pipe._prepare_latent_ids(start)
    distilled = pipe.transformer.config.guidance_embeds
    sequence = pipe.transformer(
        pipe._pack_latents(start),
        tokens,
        torch.tensor([0.2]),
        ids,
        text_ids,
        torch.tensor([4.0]) if distilled else None,
    ).sample
    predicted = pipe._unpack_latents_with_ids(sequence, ids)
    return pipe._unpatchify_latents((start - 0.2 * predicted) * deviation + mean)


def test_latents_as_flux2s_pipeline_hands_them_over(tmp_path: Path) -> None:
    """A file of patches is decoded and denoised like a file of the autoencoder's own latents."""
    pipe = flux2(tmp_path / "tokenizer")
    register_model("ours", pipe.vae, pipeline=pipe, latent_space="flux2")
    file = BytesIO()
    handed = torch.randn(1, 8 * 12, 128, generator=torch.Generator().manual_seed(0))
    save_latents(handed, file, model="flux2", size=(192, 128), step=0.5, prompt="a b")
    pictures = []
    for strength in (0.0, 0.2):
        with (
            options.override(DENOISE=strength, DECODER="ours"),
            Image.open(BytesIO(file.getvalue())) as im,
        ):
            assert im.size == (192, 128)
            pictures.append(np.asarray(im.convert("RGB"), np.float32))
    assert np.abs(pictures[0] - pictures[1]).max() > 0


def test_a_transformer_that_fails_is_called_what_it_is(tmp_path: Path) -> None:
    pipe = qwen(tmp_path / "tokenizer")
    spec = register_model("ours", pipe.vae, pipeline=pipe, latent_space="qwen-image")
    with pytest.raises(OSError, match="the pipeline was registered already loaded"):
        models.load_denoiser(spec, on_cpu=True)

    def broken(*args: Any, **kwargs: Any) -> Any:
        msg = "broken"
        raise RuntimeError(msg)

    pipe.transformer.forward = broken
    with (
        options.override(DENOISE=0.2),
        Image.open(BytesIO(saved("qwen-image"))) as im,
        pytest.raises(OSError, match="the QwenImageTransformer2DModel failed: broken"),
    ):
        im.load()


def test_flux2_without_its_batch_norm(tmp_path: Path) -> None:
    pipe = flux2(tmp_path / "tokenizer")
    vae = pipe.vae
    pipe.vae = None
    with pytest.raises(OSError, match="Flux2Pipeline has no autoencoder with a batch norm"):
        register_model("ours", vae, pipeline=pipe, latent_space="flux2")
    vae.bn.running_var[0] = -1
    pipe.vae = vae
    with pytest.raises(OSError, match="the batch norm of the pipeline's autoencoder"):
        register_model("ours", vae, pipeline=pipe, latent_space="flux2")


@pytest.mark.parametrize(("make", "space"), PIPELINES)
def test_tiles_keep_the_memory_budget(make: Any, space: str, tmp_path: Path) -> None:
    pipe = make(tmp_path / "tokenizer")
    spec = register_model("ours", pipe.vae, pipeline=pipe, latent_space=space)
    seen: list[int] = []
    predict = models.load_denoiser(spec).predict

    def counting(x: torch.Tensor, time: int, texts: Any) -> torch.Tensor:
        seen.append(x.shape[2] * x.shape[3])
        return predict(x, time, texts)

    # Each latent takes as much as with a large transformer, because a budget has a least size.
    real = models.load_denoiser(spec)
    assert 0 < real.memory < 1000
    denoiser = dataclasses.replace(real, predict=counting, memory=50_000)
    many = latents(space, 90, 94).transpose(1, 2, 0)
    with options.override(MEMORY_BUDGET=1 << 31):
        denoise.denoise(many, denoiser, 0.1, 1)
    assert seen == [90 * 94]
    seen.clear()
    budget = 80 * 80 * denoiser.memory
    with options.override(MEMORY_BUDGET=budget):
        cut = denoise.denoise(many, denoiser, 0.1, 1)
    assert len(seen) >= 4
    assert max(seen) * denoiser.memory <= budget
    assert np.isfinite(cut).all()


def test_a_file_alone_runs_no_flow_model(tmp_path: Path) -> None:
    """A file cannot start one if nobody has registered a pipeline."""
    register_model("ours", tiny.autoencoder_kl(channels=16), latent_space="flux")
    data = saved("flux", denoise=0.05)
    with (
        Image.open(BytesIO(data)) as im,
        pytest.warns(UserWarning, match="without the denoising that the file recommends"),
    ):
        im.load()
    with (
        options.override(DENOISE=True),
        Image.open(BytesIO(data)) as im,
        pytest.raises(OSError, match="no denoiser of flux latents is known"),
    ):
        im.load()


def test_pipelines_that_cannot_be_used(tmp_path: Path) -> None:
    pipe = flux(tmp_path / "tokenizer")
    vae = tiny.autoencoder_kl(channels=8)
    with pytest.raises(OSError, match="this FluxTransformer2DModel has 64 in_channels, not 32"):
        register_model("ours", vae, pipeline=pipe)
    with pytest.raises(OSError, match="not one of SD3Transformer2DModel, FluxT"):
        register_model("ours", vae, pipeline=object())
    pipe.transformer.train()
    with pytest.raises(ValueError, match="in training mode"):
        register_model("ours", pipe.vae, pipeline=pipe, latent_space="flux")
