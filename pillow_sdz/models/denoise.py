"""Removes the noise of quantisation from latents with their U-Net or transformer.

To a diffusion model, latents with a palette's dither look like latents in the last steps of
generation.  The U-Net runs these steps, and no noise is added.  The method is from M. Buehlmann
("Stable Diffusion Based Image Compression", 2022).  The strength is the part of the noise schedule
that is run.  The file or the user sets it.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import models, options, progress
from ..arrays import Latents
from ..catalogue import ModelSpec
from ..chunks import ARTICLES_DENOISING, Denoising
from . import tiles
from .denoiser import Denoiser, Steps
from .running import is_out_of_memory, undisturbed

# Latents along a side of a tile without its margin, and of the margin.  Chosen: pictures of 768x768
# are one tile.  With this margin, the pixels of sd-mini differ on average by less than 0.2 from
# those without tiles.  A tile of sd-mini takes 61 MB with its margins (measured), which is less
# than the least value of `options.MEMORY_BUDGET`.
TILE, MARGIN = 96, 16

# The most steps, and the most latents times steps, that a file alone can ask for.  The user can ask
# for more with `options.DENOISE` or `options.DENOISE_STEPS`.  Chosen: the article's steps, which
# this package writes, for 4 megapixels at a factor of 8.  Larger pictures get fewer steps.  A step
# of sd-mini takes half as long as decoding (measured), and up to 1.8 times as long with its
# margins.
UNASKED_STEPS = ARTICLES_DENOISING.steps
UNASKED_WORK = UNASKED_STEPS * 256 * 256


def wanted(recommended: Denoising | None, latents: int) -> tuple[float, int] | None:
    """Strength in (0, 1] and number of steps, from `options` or the file; None to not denoise.

    ``latents`` is rows times columns.  If only the file asks for denoising, many latents limit the
    steps, perhaps to 0.
    """
    asked = options.DENOISE
    if asked == 0 or (asked is None and recommended is None):
        return None
    strength, steps = recommended or ARTICLES_DENOISING
    if options.DENOISE_STEPS is not None:
        steps = options.DENOISE_STEPS
    elif asked is None:
        steps = min(steps, UNASKED_STEPS, UNASKED_WORK // latents)
    if asked is None or asked is True:
        return strength / 1000, steps
    return float(asked), steps


def refiner(
    model: ModelSpec, recommended: Denoising | None, prompt: str, size: tuple[int, int]
) -> Callable[[Latents], Latents] | None:
    """A function that denoises latents (h, w, C) of a model, or None if that is not wanted.

    ``size`` is (h, w).  If the user asked for denoising and there is no denoiser, this is an
    OSError.  If only the file recommends it, the result is None with a warning, also if there are
    too many latents.  Then nothing is downloaded.
    """
    rows, columns = size
    settings = wanted(recommended, rows * columns)
    if settings is None:
        return None
    strength, steps = settings
    unasked = options.DENOISE is None
    try:
        if steps == 0:
            msg = f"{rows}x{columns} latents are too many: set options.DENOISE to True"
            raise OSError(msg)
        with options.override(**({"ALLOW_DOWNLOADS": False} if unasked else {})):
            denoiser = models.load_denoiser(model)
    except OSError as e:
        if not unasked:
            raise
        warnings.warn(f"decoded without the denoising that the file recommends: {e}", stacklevel=2)
        return None

    @undisturbed()
    def refine(latents: Latents) -> Latents:
        nonlocal denoiser
        while True:
            where = denoiser.device
            try:
                return denoise(latents, denoiser, strength, steps, prompt)
            except (LookupError, RuntimeError, TypeError, ValueError) as e:  # from the libraries
                full = isinstance(e, RuntimeError) and is_out_of_memory(e)
                if not full or where.type == "cpu":
                    msg = f"the {denoiser.kind} failed: {e}"
                    raise OSError(msg) from e
            try:
                denoiser = models.load_denoiser(model, on_cpu=True)
            except OSError as e:
                msg = f"the {denoiser.kind} needs more memory than there is on {where}: {e}"
                raise OSError(msg) from e
            text = f"out of memory on {where}, running the {denoiser.kind} on the CPU"
            warnings.warn(text, stacklevel=2)

    return refine


@torch.inference_mode()
def denoise(
    latents: Latents, denoiser: Denoiser, strength: float, steps: int, prompt: str = ""
) -> Latents:
    """Latents (h, w, C) after the last ``steps`` steps of the schedule; see `last_steps`.

    OSError if the network returns values that are not finite, which may happen in float16.
    """
    x = torch.from_numpy(latents).permute(2, 0, 1)[None].to(denoiser.device, torch.float32)
    rows, columns = x.shape[2:]
    # A U-Net halves the resolution several times, and adds the results to the full resolution.  A
    # transformer cuts latents into patches.
    multiple = denoiser.multiple
    x = F.pad(x, (0, -columns % multiple, 0, -rows % multiple), mode="replicate")
    condition = None if denoiser.embed is None else denoiser.embed(prompt)
    predict = functools.partial(_in_tiles, denoiser, condition)
    if denoiser.own is not None:
        x = denoiser.own.scaled(x)
    x = last_steps(x, predict, denoiser.schedule, strength, steps)
    if denoiser.own is not None:
        x = denoiser.own.unscaled(x)
    refined: Latents = x[0, :, :rows, :columns].permute(1, 2, 0).cpu().numpy()
    if not np.isfinite(refined).all():
        what = f"the {denoiser.kind} in {denoiser.dtype}"
        msg = f"{what} returned values that are infinite or not a number"
        if denoiser.dtype != torch.float32:
            msg += ": set options.DTYPE to float32"
        raise OSError(msg)
    return refined


def last_steps(
    latents: Tensor,
    predict: Callable[[Tensor, int], Tensor],
    schedule: Steps,
    strength: float,
    steps: int,
) -> Tensor:
    """Latents (B, C, h, w) after the last steps of a schedule.

    The latents count as noisy latents at ``strength``, in (0, 1], of the schedule's noise.  No
    noise is added, so the same latents give the same result.  There are at most as many steps as
    the schedule has up to that strength.  ``predict`` runs the network, at a timestep.
    """
    times = schedule.last(strength, steps)
    x = schedule.noisy(latents, times[0][0])
    for time, after in times:
        x = schedule.step(x, predict(x, time), time, after)
    return x


def _in_tiles(denoiser: Denoiser, condition: Any, x: Tensor, time: int) -> Tensor:
    """What the network predicts of noisy latents (1, C, h, w), each tile blended into the next."""
    multiple = denoiser.multiple
    margin = max(1, MARGIN // multiple)
    longest = TILE
    if denoiser.memory:
        longest = min(TILE, math.isqrt(options.MEMORY_BUDGET // denoiser.memory) - 2 * MARGIN)
    side = max(longest // multiple, 4 * margin)  # so that the margins of a tile do not meet
    rows, columns = (length // multiple for length in x.shape[2:])
    predicted = torch.zeros_like(x)
    area = tiles.everything(rows, columns)
    for tile in progress.told("denoising", list(tiles.tiles(area, rows, columns, side, margin))):
        needed = ..., *tiles.scaled(tile.needed, multiple)
        part = denoiser.predict(x[needed].to(denoiser.dtype), time, condition).float()
        predicted[needed] += part * _weights(part, tile.sides, margin * multiple)
    return predicted


def _weights(part: Tensor, sides: tiles.Sides, margin: int) -> Tensor:
    """The weight of each latent (h, w) of a tile.  A latent's weights in all tiles sum to 1."""
    rising = (torch.arange(2 * margin, device=part.device, dtype=torch.float32) + 0.5) / (
        2 * margin
    )
    rows, columns = (torch.ones(n, device=part.device, dtype=torch.float32) for n in part.shape[2:])
    for weights, starts, ends in (
        (rows, sides.top, sides.bottom),
        (columns, sides.left, sides.right),
    ):
        if starts:
            weights[: 2 * margin] = rising
        if ends:
            weights[-2 * margin :] = rising.flip(0)
    return rows[:, None] * columns
