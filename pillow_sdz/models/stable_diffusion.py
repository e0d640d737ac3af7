"""Stable Diffusion's own autoencoders, through diffusers."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import forks
from ..arrays import Area, Latents, Pixels, Quantisation, Samples
from ..catalogue import all_spaces
from ..presets import Preset
from . import devices, loading, sources
from .configurations import AUTOENCODERS
from .network import Qualities
from .running import is_out_of_memory, undisturbed
from .sources import Folder

if TYPE_CHECKING:
    from .any_autoencoder import Conventions

# Chosen: the size that Stable Diffusion 1 was made for.
TILE = 512  # pixels along a side
# Chosen for 4 GB of memory: docs/measurements.md#stable_diffusion.
TILE_ABOVE = 1024 * 1024  # pixels

# One network runs at a time, because threads share a module's tiling and the memory.
_running = forks.Lock()


def digest(module: torch.nn.Module) -> str:
    """The sha256 of a loaded network's weights, in hexadecimal.

    It is taken over the tensors of the state dict, in the order of their names.  For each tensor,
    the name, a zero byte, the number of axes and their lengths as little-endian u32, and the values
    as little-endian float16 follow each other.  So a network has the same digest in float32 and in
    float16.
    """
    sha256 = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        sha256.update(name.encode() + b"\0")
        sha256.update(np.array([tensor.ndim, *tensor.shape], "<u4").tobytes())
        sha256.update(tensor.to("cpu", torch.float16).numpy().astype("<f2").tobytes())
    return sha256.hexdigest()


def where(network: Any) -> tuple[torch.device, torch.dtype]:
    """The device and the number format of a loaded network's weights."""
    weights = network.parameters() if hasattr(network, "parameters") else iter(())
    first = next((w for w in weights if w.is_floating_point()), torch.empty(0, device="cpu"))
    return first.device, first.dtype


class _Way(NamedTuple):
    """How a network is run."""

    device: torch.device
    dtype: torch.dtype
    tiled: bool


class DiffusersAutoencoder:
    """An AutoencoderKL or AutoencoderTiny: pixels <-> latents as pipelines scale them, in numpy.

    If the memory is too small, the network runs in tiles.  If it is still too small, the network
    runs on the CPU.  If values leave float16's range, it runs in float32.  Each of these gives a
    warning.
    """

    @torch.inference_mode(False)
    @undisturbed()
    def __init__(
        self,
        weights: Any,
        preset: Preset | None = None,
        how: Conventions | None = None,
        *,
        deviation_alone: bool = False,
    ) -> None:
        """``weights`` is a folder or the module itself; OSError if it is not that of ``preset``.

        With ``how``, the configuration of diffusers is not read.  ``deviation_alone`` is that of a
        `Space`.
        """
        self._weights = weights
        known = how or sources.shape(weights)
        self._channels, self._factor = known.channels, known.factor
        self._kind = sources.config(weights)["_class_name"]
        shape = self._channels, self._factor
        self._tileable = how is None and AUTOENCODERS[self._kind].tiles in (None, shape)
        self._overflows = False  # whether values have left float16's range
        self._module: Any = None
        if not isinstance(weights, Folder):
            self._module = weights
            if hasattr(weights, "parameters"):
                loading.check_finite(weights, "this autoencoder")
        if how is not None:
            scaling, shift = how.scaling, how.shift
        else:
            config = (self._module or self._in(self._preferred()[1])).config
            shift = config.get("latents_mean") or config.get("shift_factor") or 0
            scale, deviation = config.scaling_factor, config.get("latents_std") or 1.0
            if preset is not None:
                self._check_preset(preset, scale, shift)
            if deviation_alone and config.get("latents_std"):
                scale = 1.0
            # Pipelines do this with models that have latents_std.
            scaling = scale / torch.tensor(deviation, dtype=torch.float32)
        self._shift = torch.as_tensor(shift, dtype=torch.float32).reshape(1, -1, 1, 1)
        self._scale = torch.as_tensor(scaling, dtype=torch.float32).reshape(1, -1, 1, 1)

    def _check_preset(self, preset: Preset, scaling: float, shift: Any) -> None:
        """OSError if the configuration is not the one that this package knows."""
        space = all_spaces()[preset.latent_space]
        found = (self._kind, self._channels, self._factor, scaling, shift)
        expected = preset.class_name, space.channels, space.factor, preset.scaling, preset.shift
        if found != expected:
            path = self._weights.path / "config.json"
            msg = f"{path} is damaged: {found} instead of {expected}"
            raise OSError(msg)

    @undisturbed()
    def encode(self, pixels: Samples, quantisation: Quantisation = 0) -> Latents:
        """Pixels (H, W, 3) to latents (ceil(H/f), ceil(W/f), C): the mode of the posterior."""
        height, width = (-n % self._factor for n in pixels.shape[:2])
        padded = np.pad(pixels[:, :], ((0, height), (0, width), (0, 0)), mode="edge")
        images = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = (
            self._run(self._encoded, images, padded[..., 0].size) - self._shift
        ) * self._scale
        scaled: Latents = latents[0].permute(1, 2, 0).contiguous().numpy()
        return scaled

    def decode(
        self,
        latents: Samples,
        quantisation: Qualities = 0,
        *,
        area: Area | None = None,
        scale: int = 1,
    ) -> Iterator[tuple[Area, Pixels]]:
        """Latents (h, w, C) to pixels (f h, f w, 3), in one piece."""
        pixels = self._decoded(latents[:, :])
        yield (slice(0, pixels.shape[0]), slice(0, pixels.shape[1])), pixels

    @undisturbed()
    def _decoded(self, latents: Latents) -> Pixels:
        x = torch.tensor(latents).permute(2, 0, 1)[None] / self._scale + self._shift
        images = self._run(self._decoded_by, x, latents[..., 0].size * self._factor**2)
        levels = torch.round((images[0].clamp(-1, 1) + 1) * 127.5).to(torch.uint8)
        pixels: Pixels = levels.permute(1, 2, 0).contiguous().numpy()
        return pixels

    def _encoded(self, module: Any, images: Tensor) -> Tensor:
        """What the network makes of images (1, 3, H, W) in -1..1."""
        out = module.encode(images)
        mode: Tensor = out.latents if "latents" in out else out.latent_dist.mode()
        return mode

    def _decoded_by(self, module: Any, latents: Tensor) -> Tensor:
        """The images (1, 3, H, W) in -1..1 that the network makes of its own latents."""
        images: Tensor = module.decode(latents).sample
        return images

    @torch.inference_mode()
    def _run(self, network: Callable[[Any, Tensor], Tensor], x: Tensor, pixels: int) -> Tensor:
        """The network's output for ``x``, in float32 on the CPU."""
        with _running:
            way = _Way(*self._preferred(), tiled=self._tileable and pixels > TILE_ABOVE)
            while True:
                try:
                    module = self._on(way.device, way.dtype)
                    with _tiling(module, way.tiled, self._factor):
                        out = network(module, x.to(way.device, way.dtype)).float().cpu()
                except RuntimeError as e:
                    if not is_out_of_memory(e):
                        msg = f"the {self._kind} failed: {e}"
                        raise OSError(msg) from e
                    way = self._smaller(way)
                else:
                    if out.isfinite().all():
                        return out
                    way = self._more_precise(way)

    def _smaller(self, way: _Way) -> _Way:
        """How to run in less memory; OSError if there is no other way."""
        if self._tileable and not way.tiled:
            smaller = way._replace(tiled=True)
            remedy = "in tiles"
        elif way.device.type != "cpu":
            smaller = way._replace(device=torch.device("cpu"), dtype=torch.float32)
            remedy = "on the CPU"
        else:
            msg = f"the {self._kind} needs more memory than there is: use a smaller picture"
            raise OSError(msg)
        msg = f"out of memory on {way.device}, running the {self._kind} {remedy} instead"
        warnings.warn(msg, stacklevel=2)
        return smaller

    def _more_precise(self, way: _Way) -> _Way:
        """How to run with a wider range of numbers; OSError if there is none."""
        if way.dtype == torch.float32:
            msg = f"the {self._kind} returned values that are infinite or not a number"
            raise OSError(msg)
        msg = f"the {self._kind} leaves the range of {way.dtype}, running it in float32 instead"
        warnings.warn(msg, stacklevel=2)
        self._overflows = True
        return way._replace(dtype=torch.float32)

    def _preferred(self) -> tuple[torch.device, torch.dtype]:
        if isinstance(self._weights, Folder):
            place = devices.device()
            numbers = devices.dtype(place)
        else:
            place, numbers = where(self._module)
        return place, torch.float32 if self._overflows else numbers

    def _in(self, dtype: torch.dtype) -> Any:
        """The network with this number format, on any device."""
        if self._module is None or self._module.dtype != dtype:
            self._module = None  # memory may be too small for two of them
            # The weights are read from the file, because float16 has lost some bits for good.
            self._module = loading.network(self._kind, self._weights, dtype)
        return self._module

    def _on(self, device: torch.device, dtype: torch.dtype) -> Any:
        """The network on this device and with this number format."""
        if isinstance(self._weights, Folder):
            return self._in(dtype).to(device)
        if (device, dtype) == where(self._module):
            return self._module
        return loading.copied(self._module, device, dtype)


@contextmanager
def _tiling(module: Any, wanted: bool, factor: int) -> Iterator[None]:
    """Switch diffusers' tiling on for a while.  If it is on already, nothing changes."""
    if not wanted or module.use_tiling:
        yield
        return
    sizes = module.tile_sample_min_size, module.tile_latent_min_size
    module.tile_sample_min_size, module.tile_latent_min_size = TILE, TILE // factor
    module.enable_tiling()
    try:
        yield
    finally:
        module.disable_tiling()
        module.tile_sample_min_size, module.tile_latent_min_size = sizes
