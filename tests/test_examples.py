"""The scripts in examples/, run with tiny pipelines of random weights that are made here."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pillow_sdz
import tiny_models

diffusers = pytest.importorskip("diffusers", reason="needs the extra sd")
transformers = pytest.importorskip("transformers", reason="needs the extra sd")

EXAMPLES = Path(__file__).parent.parent / "examples"
SETTINGS = {"height": 64, "width": 48, "num_inference_steps": 3}


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_models.pipeline_parts(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def pipe(parts: dict[str, Any]) -> Any:
    pipe = diffusers.StableDiffusionPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_save_from_pipeline(pipe: Any, tmp_path: Path) -> None:
    """The file has the pipeline's last latents, within a quantisation step."""
    path = tmp_path / "x.sdz"
    script = example("save_from_pipeline")
    picture = script["main"](pipe, "a cat", path, generator=seed(), **SETTINGS)
    expected = pipe("a cat", output_type="latent", generator=seed(), **SETTINGS).images[0]
    kept = pillow_sdz.open_latents(path)
    assert kept.step is not None
    assert kept.info["prompt"] == "a cat"
    assert kept.size == picture.size == (48, 64)
    assert (kept.torch() - expected).abs().max() <= kept.step * 1.001


def test_save_from_flux2(tmp_path: Path) -> None:
    """A tiny FLUX.2: the callback gets packed patches, and the pipeline returns them whole."""
    with tiny_models.seeded(0):
        transformer = diffusers.Flux2Transformer2DModel(
            in_channels=128,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
        )
        vae = diffusers.AutoencoderKLFlux2(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=2,
            layers_per_block=1,
        )
    pipe = diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae.eval(),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer.eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    settings = {"prompt_embeds": torch.zeros(1, 7, 24), "guidance_scale": 1.0, **SETTINGS}
    path = tmp_path / "x.sdz"
    script = example("save_from_pipeline")
    picture = script["main"](pipe, "a cat", path, model="flux2", generator=seed(), **settings)
    kept = pillow_sdz.open_latents(path)
    assert (kept.model, kept.size, picture.size) == ("flux2-patches", (48, 64), (48, 64))
    own = pipe(output_type="latent", generator=seed(), **settings).images
    pillow_sdz.save_latents(own, path, model="flux2", lossless="float32")
    whole = pillow_sdz.open_latents(path)
    assert (whole.model, whole.size) == ("flux2", (48, 64))
    # This pipeline undoes the batch norm with the statistics of its own weights, 0 and 1 here.
    patches = diffusers.Flux2KleinPipeline._patchify_latents(whole.torch()[None])[0]
    assert kept.step is not None
    assert (kept.torch() - patches / (1 + 1e-4) ** 0.5).abs().max() <= 1.01 * kept.step


def test_a_batch_becomes_frames(pipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.sdz"
    script = example("save_from_pipeline")
    script["without_a_picture"](pipe, ["a cat", "a dog"], path, **SETTINGS)
    assert pillow_sdz.open_latents(path).latents.shape == (2, 4, 8, 6)


def test_a_batch_of_packed_latents(tmp_path: Path) -> None:
    """A pipeline that returns what FluxPipeline does: a sequence, whose size nothing else says."""

    class Result:
        images = torch.zeros(2, 12, 64)

    path = tmp_path / "x.sdz"
    script = example("save_from_pipeline")
    pipe = lambda prompts, **settings: Result  # noqa: E731
    script["without_a_picture"](pipe, ["a cat", "a dog"], path, model="flux", **SETTINGS)
    assert pillow_sdz.open_latents(path).latents.shape == (2, 16, 8, 6)
    assert pillow_sdz.open_latents(path).size == (48, 64)


def test_img2img_from_latents(pipe: Any, parts: dict[str, Any], tmp_path: Path) -> None:
    """The pipeline starts from the file's latents. Its VAE encodes nothing."""
    path = tmp_path / "x.sdz"
    latents = np.random.default_rng(3).normal(size=(4, 8, 6)).astype(np.float32)
    pillow_sdz.save_latents(latents, path, model="sd1", step=0.01)
    img2img = diffusers.StableDiffusionImg2ImgPipeline(**parts)
    img2img.set_progress_bar_config(disable=True)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the VAE was asked to encode")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(img2img.vae, "encode", refuse)
        settings = {"num_inference_steps": 4, "generator": seed()}
        picture = example("img2img_from_latents")["main"](img2img, path, "a cat", **settings)
    assert picture.size == (48, 64)


def test_train_on_latents(pipe: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    for number in range(5):
        latents = rng.normal(size=(4, 8, 8)).astype(np.float32)
        pillow_sdz.save_latents(latents, tmp_path / f"{number}.sdz", model="sd1")
    before = [p.detach().clone() for p in pipe.unet.parameters()]
    script = example("train_on_latents")
    losses = script["main"](pipe, tmp_path, epochs=2, batch_size=2, workers=0)
    assert len(losses) == 6
    assert np.isfinite(losses).all()
    assert any(not torch.equal(p, q) for p, q in zip(pipe.unet.parameters(), before, strict=True))
