"""Transformers of flow models, in pipelines that are loaded: SD3, FLUX.1, FLUX.2, Qwen-Image.

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
from .denoiser import Denoiser, Scaling

TIMES = 1000  # in diffusers, the time of a flow is its share of noise, in thousandths
SIDE = 2  # a token is 2x2 latents, in all kinds of transformers
# The guidance of distilled FLUX.1 and FLUX.2: the defaults of diffusers' pipelines.
GUIDANCE, GUIDANCE_2 = 3.5, 4.0
# For each token, a block keeps this many times the token's width in memory.  Counted in diffusers'
# blocks.  FLUX.2 keeps the most: 9 for a layer, 6 for its activation, 4 that are joined, and 1 for
# the result.
WIDTHS = 20


class Flow:
    """The steps of a flow by Euler's method, without new noise."""

    def last(self, strength: float, steps: int) -> list[tuple[int, int]]:
        """The last times, from ``strength`` of noise on, each with the time after it."""
        first = max(1, round(strength * TIMES))
        steps = min(steps, first)
        times = [first * (steps - number) // steps for number in range(steps + 1)]
        return [*itertools.pairwise(times)]

    def noisy(self, latents: Tensor, time: int) -> Tensor:
        """Latents whose error counts as noise, scaled as noisy latents are."""
        return latents * (1 - time / TIMES)

    def step(self, x: Tensor, predicted: Tensor, time: int, after: int) -> Tensor:
        """Noisy latents at ``time`` to those at ``after``."""
        return x + (after - time) / TIMES * predicted


class _Texts(NamedTuple):
    """What a pipeline makes of a prompt: features of its tokens, and perhaps of the whole."""

    tokens: Tensor
    pooled: Tensor | None = None


def load(pipeline: Any, channels: int) -> Denoiser:
    """The denoiser of a loaded pipeline; OSError if it is not for latents of these channels."""
    transformer: Any = getattr(pipeline, "transformer", None)
    kind = sources.config(transformer)["_class_name"]
    if kind not in KINDS:
        msg = f"{type(pipeline).__name__} has a {kind}, not one of {', '.join(KINDS)}"
        raise OSError(msg)
    of_kind = KINDS[kind]
    settings = sources.config(transformer)
    fitting = [s for s in of_kind.sides if channels * s**2 == settings.get("in_channels")]
    if not fitting:
        wanted = channels * of_kind.sides[0] ** 2
        msg = f"this {kind} has {settings.get('in_channels')} in_channels, not {wanted}"
        raise OSError(msg)
    loading.check_finite(transformer, f"this {kind}")

    @functools.lru_cache(maxsize=16)  # chosen: the files of a batch mostly have one prompt
    @torch.no_grad()
    def embed(prompt: str) -> _Texts:
        tokens, pooled = of_kind.embed(pipeline, prompt, transformer.device)
        where = transformer.device, transformer.dtype
        return _Texts(tokens.to(*where), None if pooled is None else pooled.to(*where))

    width = settings["num_attention_heads"] * settings["attention_head_dim"]
    side = fitting[0]
    multiple = side * of_kind.patch
    own = of_kind.own(pipeline, side)
    return Denoiser(
        functools.partial(of_kind.predict, transformer, side),
        Flow(),
        transformer.device,
        transformer.dtype,
        multiple=multiple,
        embed=embed,
        memory=WIDTHS * width * transformer.dtype.itemsize // multiple**2,
        kind=kind,
        own=own,
    )


def _as_they_are(pipeline: Any, side: int) -> Scaling | None:
    """The transformer knows latents as the pipeline returns them."""
    return None


def _batch_norm(pipeline: Any, side: int) -> Scaling | None:
    """The transformer works on 2x2 patches, scaled by the autoencoder's batch norm.

    Pipelines return these patches.  The autoencoder decodes unscaled latents.
    """
    if side == 1:
        return None
    norm = getattr(getattr(pipeline, "vae", None), "bn", None)
    if norm is None:
        msg = f"{type(pipeline).__name__} has no autoencoder with a batch norm"
        raise OSError(msg)
    variance = norm.running_var.float() + pipeline.vae.config.batch_norm_eps
    found = torch.stack([norm.running_mean.float(), variance.sqrt()]).cpu()
    if not torch.isfinite(found).all() or (found[1] <= 0).any():
        msg = "the batch norm of the pipeline's autoencoder has values that cannot be used"
        raise OSError(msg)
    mean, deviation = found.view(2, -1, side, side)
    return Scaling(mean, deviation)


def _cut(x: Tensor, side: int) -> Tensor:
    """Latents (1, C, h, w) as tokens (1, places, C side side)."""
    _, channels, height, width = x.shape
    cut = x.view(channels, height // side, side, width // side, side).permute(1, 3, 0, 2, 4)
    return cut.reshape(1, -1, channels * side**2)


def _joined(tokens: Tensor, like: Tensor, side: int) -> Tensor:
    """The inverse of `_cut`, for latents of this shape."""
    _, channels, height, width = like.shape
    cut = tokens.view(height // side, width // side, channels, side, side).permute(2, 0, 3, 1, 4)
    return cut.reshape(like.shape)


def _guidance(transformer: Any, guidance: float, x: Tensor) -> dict[str, Tensor]:
    """The guidance, if the transformer was distilled from several of them."""
    if not transformer.config.guidance_embeds:
        return {}
    return {"guidance": torch.full((1,), guidance, device=x.device)}


def _embed_sd3(pipeline: Any, prompt: str, device: torch.device) -> tuple[Tensor, Tensor]:
    texts = dict.fromkeys(("prompt", "prompt_2", "prompt_3"), prompt)
    tokens, _, pooled, _ = pipeline.encode_prompt(
        **texts, device=device, do_classifier_free_guidance=False
    )
    return tokens, pooled


def _predict_sd3(transformer: Any, side: int, x: Tensor, time: int, texts: _Texts) -> Tensor:
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


def _predict_flux(transformer: Any, side: int, x: Tensor, time: int, texts: _Texts) -> Tensor:
    rows, columns = x.shape[2] // side, x.shape[3] // side
    places = torch.zeros(rows, columns, 3, device=x.device, dtype=x.dtype)
    places[..., 1] += torch.arange(rows, device=x.device)[:, None]
    places[..., 2] += torch.arange(columns, device=x.device)
    predicted = transformer(
        hidden_states=_cut(x, side),
        timestep=torch.full((1,), time / TIMES, device=x.device, dtype=x.dtype),
        encoder_hidden_states=texts.tokens,
        pooled_projections=texts.pooled,
        img_ids=places.view(-1, 3),
        txt_ids=torch.zeros(texts.tokens.shape[1], 3, device=x.device, dtype=x.dtype),
        **_guidance(transformer, GUIDANCE, x),
    ).sample
    return _joined(predicted, x, side)


def _embed_tokens(pipeline: Any, prompt: str, device: torch.device) -> tuple[Tensor, None]:
    tokens, _ = pipeline.encode_prompt(prompt=prompt, device=device)
    return tokens, None


def _predict_flux2(transformer: Any, side: int, x: Tensor, time: int, texts: _Texts) -> Tensor:
    rows, columns, words = x.shape[2] // side, x.shape[3] // side, texts.tokens.shape[1]
    one = torch.arange(1, device=x.device)
    lines, rests, tokens = (torch.arange(n, device=x.device) for n in (rows, columns, words))
    predicted = transformer(
        hidden_states=_cut(x, side),
        timestep=torch.full((1,), time / TIMES, device=x.device, dtype=x.dtype),
        encoder_hidden_states=texts.tokens,
        img_ids=torch.cartesian_prod(one, lines, rests, one),
        txt_ids=torch.cartesian_prod(one, one, one, tokens),
        **_guidance(transformer, GUIDANCE_2, x),
    ).sample
    return _joined(predicted, x, side)


def _predict_qwen(transformer: Any, side: int, x: Tensor, time: int, texts: _Texts) -> Tensor:
    predicted = transformer(
        hidden_states=_cut(x, side),
        timestep=torch.full((1,), time / TIMES, device=x.device, dtype=x.dtype),
        encoder_hidden_states=texts.tokens,
        img_shapes=[[(1, x.shape[2] // side, x.shape[3] // side)]],
    ).sample
    return _joined(predicted, x, side)


class _Kind(NamedTuple):
    """How a kind of pipelines is called."""

    embed: Callable[[Any, str, torch.device], tuple[Tensor, Tensor | None]]
    predict: Callable[[Any, int, Tensor, int, Any], Tensor]
    #: A token is this many latents high and wide, before the transformer makes patches of its own.
    sides: tuple[int, ...] = (SIDE,)
    patch: int = 1
    own: Callable[[Any, int], Scaling | None] = _as_they_are


#: The kinds of pipelines, by the class of the transformer.
KINDS = {
    "SD3Transformer2DModel": _Kind(_embed_sd3, _predict_sd3, sides=(1,), patch=SIDE),
    "FluxTransformer2DModel": _Kind(_embed_flux, _predict_flux),
    "Flux2Transformer2DModel": _Kind(
        _embed_tokens, _predict_flux2, sides=(SIDE, 1), own=_batch_norm
    ),
    "QwenImageTransformer2DModel": _Kind(_embed_tokens, _predict_qwen),
}
