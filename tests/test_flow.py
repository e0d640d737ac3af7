"""Flow models denoise latents: Stable Diffusion 3 and FLUX.1, tiny ones with random weights."""

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


PIPELINES = [(sd3, "sd3"), (flux, "flux")]


def latents(rows: int = 16, columns: int = 24) -> Any:
    return np.float32(correlated_latents(rows, columns, 16).transpose(2, 0, 1))


def saved(space: str, **about: Any) -> bytes:
    file = BytesIO()
    save_latents(latents(), file, model="ours", step=0.5, prompt="a b", **about)
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
    x = torch.from_numpy(latents())[None]
    start = 0.8 * x
    with torch.inference_mode():
        if space == "sd3":
            tokens, _, pooled, _ = pipe.encode_prompt("a b", "a b", "a b", device="cpu")
            predicted = pipe.transformer(start, tokens[:1], pooled[:1], torch.tensor([200])).sample
        else:
            tokens, pooled, text_ids = pipe.encode_prompt("a b", "a b", device="cpu")
            packed = pipe._pack_latents(start, 1, 16, 16, 24)
            ids = pipe._prepare_latent_image_ids(1, 8, 12, "cpu", torch.float32)
            sequence = pipe.transformer(
                packed, tokens, pooled, torch.tensor([0.2]), ids, text_ids, torch.tensor([3.5])
            ).sample
            predicted = pipe._unpack_latents(sequence, 128, 192, 8)
    wanted = (start - 0.2 * predicted)[0].permute(1, 2, 0)
    denoiser = models.load_denoiser(spec)
    found = denoise.denoise(latents().transpose(1, 2, 0), denoiser, 0.2, 1, "a b")
    torch.testing.assert_close(torch.from_numpy(found), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("make", "space"), PIPELINES)
def test_tiles_keep_the_memory_budget(make: Any, space: str, tmp_path: Path) -> None:
    pipe = make(tmp_path / "tokenizer")
    spec = register_model("ours", pipe.vae, pipeline=pipe, latent_space=space)
    seen: list[int] = []
    predict = models.load_denoiser(spec).predict

    def counting(x: torch.Tensor, time: int, texts: Any) -> torch.Tensor:
        seen.append(x.shape[2] * x.shape[3])
        return predict(x, time, texts)

    # As much for each latent as a large transformer takes: a budget has a least size.
    real = models.load_denoiser(spec)
    assert 0 < real.memory < 1000
    denoiser = dataclasses.replace(real, predict=counting, memory=50_000)
    many = latents(90, 94).transpose(1, 2, 0)
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
    """A file's word is not enough where nobody has registered a pipeline."""
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
        pytest.raises(OSError, match="no U-Net for flux latents is known"),
    ):
        im.load()


def test_pipelines_that_cannot_be_used(tmp_path: Path) -> None:
    pipe = flux(tmp_path / "tokenizer")
    vae = tiny.autoencoder_kl(channels=8)
    with pytest.raises(OSError, match="this FluxTransformer2DModel has 64 in_channels, not 32"):
        register_model("ours", vae, pipeline=pipe)
    with pytest.raises(OSError, match="not one of SD3Transformer2DModel, FluxTransformer2DModel"):
        register_model("ours", vae, pipeline=object())
    pipe.transformer.train()
    with pytest.raises(ValueError, match="in training mode"):
        register_model("ours", pipe.vae, pipeline=pipe, latent_space="flux")
