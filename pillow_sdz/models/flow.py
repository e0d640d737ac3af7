"""Transformers of flow models, in pipelines that are loaded: Stable Diffusion 3 and FLUX.1.

A flow model's noisy latents are (1 - s) latents + s noise, where s falls from 1 to 0 (Lipman et
al., "Flow Matching for Generative Modeling", 2023).  The model predicts noise - latents.  Only a
pipeline that the user has registered is run: nothing is imported or loaded for it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import loading, sources
from .denoiser import Denoiser

TIMES = 1000  # in diffusers, the time of a flow is its share of noise, in thousandths
SIDE = 2  # a token is 2x2 latents, in both kinds of transformers
GUIDANCE = 3.5  # of a distilled FLUX.1, as diffusers' pipeline has it
# A block keeps so many numbers of a token's width at once: queries, keys, values, what attention
# returns, and the 4 widths inside of a layer, twice.  Counted in diffusers' blocks.
WIDTHS = 16


class Flow:
    """The steps of a flow, without noise: Euler's."""

    def last(self, strength: float, steps: int) -> list[tuple[int, int]]:
        """The last times, from ``strength`` of noise on, each with the one after it."""
        first = max(1, round(strength * TIMES))
        steps = min(steps, first)
        times = [first * (steps - number) // steps for number in range(steps + 1)]
        return [*itertools.pairwise(times)]

    def noisy(self, latents: Tensor, time: int) -> Tensor:
        """Latents whose error counts as noise, scaled as noisy ones are."""
        return latents * (1 - time / TIMES)

    def step(self, x: Tensor, predicted: Tensor, time: int, after: int) -> Tensor:
        """Noisy latents at ``time`` to those at ``after``."""
        return x + (after - time) / TIMES * predicted


class _Texts(NamedTuple):
    """What a pipeline makes of a prompt: features of its tokens, and of the whole."""

    tokens: Tensor
    pooled: Tensor


def load(pipeline: Any, channels: int) -> Denoiser:
    """The denoiser of a loaded pipeline; OSError if it is not one for latents of these channels."""
    transformer: Any = getattr(pipeline, "transformer", None)
    kind = sources.config(transformer)["_class_name"]
    if kind not in KINDS:
        msg = f"{type(pipeline).__name__} has a {kind}, not one of {', '.join(KINDS)}"
        raise OSError(msg)
    of_kind = KINDS[kind]
    settings = sources.config(transformer)
    wanted = channels * of_kind.channels_of_token
    if settings.get("in_channels") != wanted:
        msg = f"this {kind} has {settings.get('in_channels')} in_channels, not {wanted}"
        raise OSError(msg)
    loading.check_finite(transformer, f"this {kind}")

    @functools.lru_cache(maxsize=16)  # chosen: the files of a batch mostly have one prompt
    @torch.no_grad()
    def embed(prompt: str) -> _Texts:
        found = of_kind.embed(pipeline, prompt, transformer.device)
        return _Texts(*(x.to(transformer.device, transformer.dtype) for x in found))

    width = settings["num_attention_heads"] * settings["attention_head_dim"]
    return Denoiser(
        functools.partial(of_kind.predict, transformer),
        Flow(),
        transformer.device,
        transformer.dtype,
        multiple=SIDE,
        embed=embed,
        memory=WIDTHS * width * transformer.dtype.itemsize // SIDE**2,
    )


def _embed_sd3(pipeline: Any, prompt: str, device: torch.device) -> tuple[Tensor, Tensor]:
    texts = dict.fromkeys(("prompt", "prompt_2", "prompt_3"), prompt)
    tokens, _, pooled, _ = pipeline.encode_prompt(
        **texts, device=device, do_classifier_free_guidance=False
    )
    return tokens, pooled


def _predict_sd3(transformer: Any, x: Tensor, time: int, texts: _Texts) -> Tensor:
    predicted: Tensor = transformer(
        hidden_states=x,
        timestep=torch.full((1,), time, device=x.device),
        encoder_hidden_states=texts.tokens,
        pooled_projections=texts.pooled,
    ).sample
    return predicted


def _embed_flux(pipeline: Any, prompt: str, device: torch.device) -> tuple[Tensor, Tensor]:
    tokens, pooled, _ = pipeline.encode_prompt(prompt=prompt, prompt_2=prompt, device=device)
    return tokens, pooled


def _predict_flux(transformer: Any, x: Tensor, time: int, texts: _Texts) -> Tensor:
    _, channels, height, width = x.shape
    rows, columns = height // SIDE, width // SIDE
    cut = x.view(channels, rows, SIDE, columns, SIDE).permute(1, 3, 0, 2, 4)
    places = torch.zeros(rows, columns, 3, device=x.device, dtype=x.dtype)
    places[..., 1] += torch.arange(rows, device=x.device)[:, None]
    places[..., 2] += torch.arange(columns, device=x.device)
    given = {}
    if transformer.config.guidance_embeds:
        given["guidance"] = torch.full((1,), GUIDANCE, device=x.device)
    predicted: Tensor = transformer(
        hidden_states=cut.reshape(1, rows * columns, -1),
        timestep=torch.full((1,), time / TIMES, device=x.device, dtype=x.dtype),
        encoder_hidden_states=texts.tokens,
        pooled_projections=texts.pooled,
        img_ids=places.view(-1, 3),
        txt_ids=torch.zeros(texts.tokens.shape[1], 3, device=x.device, dtype=x.dtype),
        **given,
    ).sample
    cut = predicted.view(rows, columns, channels, SIDE, SIDE).permute(2, 0, 3, 1, 4)
    return cut.reshape(1, channels, height, width)


class _Kind(NamedTuple):
    """How a kind of pipelines is called."""

    channels_of_token: int  # for each channel of the latents
    embed: Callable[[Any, str, torch.device], tuple[Tensor, Tensor]]
    predict: Callable[[Any, Tensor, int, Any], Tensor]


#: By the classes of their transformers.
KINDS = {
    "SD3Transformer2DModel": _Kind(1, _embed_sd3, _predict_sd3),
    "FluxTransformer2DModel": _Kind(SIDE**2, _embed_flux, _predict_flux),
}
