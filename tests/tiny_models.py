"""Tiny Stable Diffusion models with random weights, in diffusers' and the hub's layouts on disk.

Only the sizes and the weights are not real. The latents have 4 channels and a factor of 8, like
those of Stable Diffusion 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from pillow_sdz import presets
from pillow_sdz.presets import File, Preset, Snapshot

diffusers = pytest.importorskip("diffusers", reason="needs the extra sd")
transformers = pytest.importorskip("transformers", reason="needs the extra sd")

WEIGHTS = presets.WEIGHTS
TOKENS = 77  # in a prompt, as in CLIP


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def autoencoder_kl(seed: int = 0, channels: int = 4, **config: Any) -> Any:
    with seeded(seed):
        return diffusers.AutoencoderKL(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=channels,
            norm_num_groups=2,
            **config,
        ).eval()


def autoencoder_tiny(seed: int = 0, channels: int = 4) -> Any:
    with seeded(seed):
        return diffusers.AutoencoderTiny(
            encoder_block_out_channels=(4, 4, 4, 4),
            decoder_block_out_channels=(4, 4, 4, 4),
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
            latent_channels=channels,
        ).eval()


def unet(channels: int = 4) -> Any:
    """A U-Net that takes no text."""
    with seeded(1):
        return diffusers.UNet2DModel(
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        ).eval()


def conditional_unet(channels: int = 4) -> Any:
    with seeded(2):
        return diffusers.UNet2DConditionModel(
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=8,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ).eval()


def scheduler() -> Any:
    """Stable Diffusion 1's schedule."""
    return diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )


def text_encoder() -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=len(_vocabulary()),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=0,
        eos_token_id=1,
    )
    with seeded(3):
        return transformers.CLIPTextModel(config).eval()


def _vocabulary() -> dict[str, int]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    return {token: number for number, token in enumerate(tokens)}


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of single letters."""
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(_vocabulary()))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def save_pipeline(folder: Path, conditional: bool = True) -> Path:
    """A whole pipeline: an autoencoder, a U-Net and the rest."""
    autoencoder_kl().save_pretrained(folder / "vae")
    scheduler().save_pretrained(folder / "scheduler")
    if conditional:
        conditional_unet().save_pretrained(folder / "unet")
        text_encoder().save_pretrained(folder / "text_encoder")
        save_tokenizer(folder / "tokenizer")
    else:
        unet().save_pretrained(folder / "unet")
    return folder


def pipeline_parts(folder: Path) -> dict[str, Any]:
    """The parts of a pipeline like Stable Diffusion 1's. Its tokenizer is in the folder."""
    save_tokenizer(folder / "tokenizer")
    unet = conditional_unet()
    # Pipelines look for this in Stable Diffusion 1's configuration.
    unet.register_to_config(sample_size=64)
    noises = scheduler()
    noises.register_to_config(steps_offset=1)
    return {
        "vae": autoencoder_kl(),
        "unet": unet,
        "scheduler": noises,
        "text_encoder": text_encoder(),
        "tokenizer": transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cached(cache: Path, repository: str, revision: str, folder: Path) -> Snapshot:
    """Lay out a folder as in the hub's cache, and return what it is pinned to."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(revision)
    files = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        digest = sha256(path)
        (root / "blobs" / digest).write_bytes(path.read_bytes())
        link = root / "snapshots" / revision / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(root / "blobs" / digest)
        pinned = name.endswith(".safetensors")
        files.append(File(name, path.stat().st_size, digest) if pinned else File(name))
    files.sort(key=lambda file: file.sha256 is not None)  # the weights of an autoencoder come last
    return Snapshot(repository, revision, tuple(files))


def pinned(preset: Preset, cache: Path, autoencoder: Path, denoiser: Path | None = None) -> Preset:
    """A preset like this one, but with the files of these folders in the cache."""
    return preset._replace(
        autoencoder=cached(cache, "tiny/autoencoder", "1" * 40, autoencoder),
        denoiser=cached(cache, "tiny/denoiser", "2" * 40, denoiser) if denoiser else None,
    )
