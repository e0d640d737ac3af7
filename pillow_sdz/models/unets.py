"""U-Nets of diffusers, from a pipeline's folder or already loaded."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from . import devices, loading, prompts, sources
from .denoiser import Denoiser
from .running import is_out_of_memory, undisturbed
from .schedule import Schedule
from .sources import DenoiserParts, Folder


@torch.inference_mode(False)
@undisturbed()
def load(parts: DenoiserParts, channels: int) -> Denoiser:
    """OSError if a part is missing, damaged or not made for latents of these channels.

    If the U-Net does not fit into the GPU's memory, it is left on the CPU, with a warning.
    """
    sources.check_denoiser(parts, channels)
    kind = sources.config(parts.unet)["_class_name"]
    if isinstance(parts.unet, Folder):
        where = devices.device()
        unet = _moved(loading.network(kind, parts.unet, devices.dtype(where)), where)
    else:
        unet = parts.unet
        loading.check_finite(unet, "this U-Net")

    def predict(x: Tensor, timestep: int, condition: Tensor | None) -> Tensor:
        given = {} if condition is None else {"encoder_hidden_states": condition}
        predicted: Tensor = unet(x, timestep, **given).sample
        return predicted

    return Denoiser(
        predict,
        Schedule.of(*_scheduler(parts.scheduler)),
        unet.device,
        unet.dtype,
        multiple=2 ** (len(unet.config.block_out_channels) - 1),
        embed=None if kind == "UNet2DModel" else prompts.embedding(unet, parts),
        unet=unet,
    )


def _moved(unet: Any, where: torch.device) -> Any:
    try:
        return unet.to(where)
    except RuntimeError as e:
        if not is_out_of_memory(e):
            msg = f"the U-Net cannot be run on {where}: {e}"
            raise OSError(msg) from e
    warnings.warn(f"out of memory on {where}, running the U-Net on the CPU instead", stacklevel=2)
    return unet.to("cpu", torch.float32)


def _scheduler(scheduler: Any) -> tuple[Any, object]:
    """The configuration of a scheduler, and what to call it."""
    if isinstance(scheduler, Folder):
        name = "scheduler_config.json"
        return sources.config(scheduler, name), scheduler.path / name
    return sources.config(scheduler), f"this {type(scheduler).__name__}"
