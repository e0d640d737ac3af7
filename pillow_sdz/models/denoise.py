"""Removes the noise of quantisation from latents with their U-Net.

To a diffusion model, latents with a palette's dither look like latents in the last steps of
generation.  The U-Net runs these steps, and no noise is added.  The method is M. Buehlmann's
("Stable Diffusion Based Image Compression", 2022).  The strength is the part of the noise schedule
that is run.  The file or the user fixes it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import models, options
from ..arrays import Latents
from ..catalogue import ModelSpec
from ..chunks import ARTICLES_DENOISING, Denoising


def wanted(recommended: Denoising | None) -> tuple[float, int] | None:
    """Strength in (0, 1] and number of steps, from `options` or the file; None: do not denoise."""
    asked = options.DENOISE
    if asked == 0 or (asked is None and recommended is None):
        return None
    strength, steps = recommended or ARTICLES_DENOISING
    if options.DENOISE_STEPS is not None:
        steps = options.DENOISE_STEPS
    if asked is None or asked is True:
        return strength / 1000, steps
    return float(asked), steps


def refiner(
    model: ModelSpec, recommended: Denoising | None, prompt: str
) -> Callable[[Latents], Latents] | None:
    """A function that denoises latents (h, w, C) of a model, or None if that is not wanted.

    If there is no U-Net: OSError if the user asked for denoising.  If only the file recommends it,
    a warning and None.
    """
    settings = wanted(recommended)
    if settings is None:
        return None
    try:
        denoiser = models.load_denoiser(model)
    except OSError as e:
        if options.DENOISE is not None:
            raise
        warnings.warn(f"decoded without the denoising that the file recommends: {e}", stacklevel=2)
        return None
    strength, steps = settings

    def refine(latents: Latents) -> Latents:
        nonlocal denoiser
        from .stable_diffusion import is_out_of_memory

        while True:
            where = denoiser.unet.device
            try:
                return denoise(latents, denoiser, strength, steps, prompt)
            except (RuntimeError, TypeError, ValueError) as e:  # from torch and diffusers
                full = isinstance(e, RuntimeError) and is_out_of_memory(e)
                if not full or where.type == "cpu":
                    msg = f"the U-Net failed: {e}"
                    raise OSError(msg) from e
            try:
                denoiser = models.load_denoiser(model, on_cpu=True)
            except OSError as e:
                msg = f"the U-Net needs more memory than there is on {where}: {e}"
                raise OSError(msg) from e
            warnings.warn(f"out of memory on {where}, running the U-Net on the CPU", stacklevel=2)

    return refine


@torch.inference_mode()
def denoise(
    latents: Latents, denoiser: models.Denoiser, strength: float, steps: int, prompt: str = ""
) -> Latents:
    """Latents (h, w, C) after the last ``steps`` steps of DDIM; see `last_steps`.

    OSError if the U-Net returns values that are not finite, which may happen in float16.
    """
    unet = denoiser.unet
    x = torch.from_numpy(latents).permute(2, 0, 1)[None].to(unet.device, torch.float32)
    rows, columns = x.shape[2:]
    # A U-Net halves the resolution several times, and adds the results to the full resolution.
    multiple = 2 ** (len(unet.config.block_out_channels) - 1)
    x = F.pad(x, (0, -columns % multiple, 0, -rows % multiple), mode="replicate")
    condition = {} if denoiser.embed is None else {"encoder_hidden_states": denoiser.embed(prompt)}
    x = last_steps(x, unet, denoiser.scheduler, strength, steps, **condition)
    refined: Latents = x[0, :, :rows, :columns].permute(1, 2, 0).cpu().numpy()
    if not np.isfinite(refined).all():
        msg = f"the U-Net in {unet.dtype} returned values that are infinite or not a number"
        if unet.dtype != torch.float32:
            msg += ": set options.DTYPE to float32"
        raise OSError(msg)
    return refined


def last_steps(
    latents: Tensor, unet: Any, scheduler: Any, strength: float, steps: int, **condition: Tensor
) -> Tensor:
    """Latents (B, C, h, w) after the last steps of DDIM (Song et al. 2021), eta 0.

    The latents count as noisy latents at ``strength``, in (0, 1], of the scheduler's noise.  No
    noise is added, so the same latents give the same result.  There are at most as many steps as
    the schedule has up to that strength.  OSError if the scheduler is not one of a diffusion model.
    """
    from diffusers import DDIMScheduler

    if not hasattr(scheduler, "alphas_cumprod"):
        msg = (
            "denoising needs the scheduler of a diffusion model, "
            f"but this model has {type(scheduler).__name__}"
        )
        raise OSError(msg)
    ddim = DDIMScheduler.from_config(  # type: ignore[no-untyped-call]
        scheduler.config,
        timestep_spacing="trailing",  # so that the first step is the strength's
        set_alpha_to_one=True,  # and the last one ends without noise
        clip_sample=False,
    )
    in_all = ddim.config.num_train_timesteps
    steps = min(steps, max(1, round(strength * in_all)))
    ddim.set_timesteps(min(round(steps / strength), in_all))
    last = ddim.timesteps[-steps:]
    x: Tensor = latents * ddim.alphas_cumprod[last[0]].sqrt()
    for t in last:
        noise = unet(x.to(unet.dtype), t, **condition).sample.float()
        x = ddim.step(noise, t, x, eta=0.0).prev_sample
    return x
