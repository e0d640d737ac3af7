"""Stable Diffusion's own networks, run by diffusers: autoencoders, U-Nets, text encoders."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import forks, options
from ..arrays import Area, Latents, Pixels, Samples
from ..catalogue import SPACES
from ..presets import Preset
from . import hub, sources
from .sources import DenoiserParts, Folder

try:
    import diffusers
except ImportError as e:
    msg = f"this model {hub.NEEDS_EXTRA}"
    raise OSError(msg) from e

# Chosen: the size that Stable Diffusion 1 was made for.
TILE = 512  # pixels along a side
# Chosen for 4 GB of memory: docs/measurements.md#stable_diffusion.
TILE_ABOVE = 1024 * 1024  # pixels

# One network runs at a time, because threads share a module's tiling and the memory.
_running = forks.Lock()


def device() -> torch.device:
    """The device of networks, from `options.DEVICE`; ValueError if torch cannot run there."""
    if options.DEVICE is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.empty(0, device=options.DEVICE).device
    except (AssertionError, ImportError, NotImplementedError, RuntimeError) as e:
        msg = f"options.DEVICE is {options.DEVICE!r}, but torch has no such device here: {e}"
        raise ValueError(msg) from e


def dtype(device: torch.device) -> torch.dtype:
    """The number format of networks on a device, from `options.DTYPE`."""
    gains = device.type in ("cuda", "mps")
    found: torch.dtype = getattr(torch, options.DTYPE or ("float16" if gains else "float32"))
    return found


def digest(module: torch.nn.Module) -> str:
    """The sha256 of a loaded network's weights, in hexadecimal.

    It is taken over the tensors of the state dict, in the order of their names.  Each gives its
    name, a zero byte, the number of axes and their lengths as little-endian u32, and the values as
    little-endian float16.  So a network has one digest, loaded in float32 or in float16.
    """
    sha256 = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        sha256.update(name.encode() + b"\0")
        sha256.update(np.array([tensor.ndim, *tensor.shape], "<u4").tobytes())
        sha256.update(tensor.to("cpu", torch.float16).numpy().astype("<f2").tobytes())
    return sha256.hexdigest()


class _Way(NamedTuple):
    """How a network is run."""

    device: torch.device
    dtype: torch.dtype
    tiled: bool


class DiffusersAutoencoder:
    """An AutoencoderKL or AutoencoderTiny: pixels <-> latents as pipelines scale them, in numpy.

    If the memory is too small, the network is run in tiles, and then on the CPU.  If values leave
    float16's range, it is run in float32.  Each of these gives a warning.
    """

    def __init__(self, weights: Any, preset: Preset | None = None) -> None:
        """``weights`` is a folder or the module itself; OSError if it is not ``preset``'s."""
        self._weights = weights
        self._channels, self._factor = sources.shape(weights)
        self._kind = sources.config(weights)["_class_name"]
        # diffusers' AutoencoderTiny (0.42) assumes that tiles have 4 channels at a factor of 8.
        self._tileable = self._kind == "AutoencoderKL" or (self._channels, self._factor) == (4, 8)
        self._overflows = False  # whether values have left float16's range
        self._module: Any = None
        if not isinstance(weights, Folder):
            self._module = weights
            _check_finite(weights, "this autoencoder")
        config = (self._module or self._in(self._preferred()[1])).config
        shift = config.get("latents_mean") or config.get("shift_factor") or 0
        # Pipelines divide by latents_std if a model has it.
        scale = config.scaling_factor / torch.tensor(config.get("latents_std") or 1.0)
        if preset is not None:
            found = (self._kind, self._channels, self._factor, config.scaling_factor, shift)
            space = SPACES[preset.latent_space]
            expected = (
                preset.class_name,
                space.channels,
                space.factor,
                preset.scaling,
                preset.shift,
            )
            if found != expected:
                msg = f"{weights.path / 'config.json'} is damaged: {found} instead of {expected}"
                raise OSError(msg)
        self._shift = torch.tensor(shift, dtype=torch.float32).reshape(1, -1, 1, 1)
        self._scale = scale.reshape(1, -1, 1, 1)

    def encode(self, pixels: Samples) -> Latents:
        """Pixels (H, W, 3) to latents (ceil(H/f), ceil(W/f), C): the mode of the posterior."""
        height, width = (-n % self._factor for n in pixels.shape[:2])
        padded = np.pad(pixels[:, :], ((0, height), (0, width), (0, 0)), mode="edge")
        images = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 127.5 - 1

        def encoder(module: Any, images: Tensor) -> Tensor:
            out = module.encode(images)
            mode: Tensor = out.latents if "latents" in out else out.latent_dist.mode()
            return mode

        latents = (self._run(encoder, images, padded[..., 0].size) - self._shift) * self._scale
        scaled: Latents = latents[0].permute(1, 2, 0).contiguous().numpy()
        return scaled

    def decode(
        self, latents: Samples, quantisation: int = 0, *, area: Area | None = None, scale: int = 1
    ) -> Iterator[tuple[Area, Pixels]]:
        """Latents (h, w, C) to pixels (f h, f w, 3), in one piece."""
        whole = latents[:, :]
        x = torch.tensor(whole).permute(2, 0, 1)[None] / self._scale + self._shift

        def decoder(module: Any, latents: Tensor) -> Tensor:
            images: Tensor = module.decode(latents).sample
            return images

        images = self._run(decoder, x, whole[..., 0].size * self._factor**2)
        levels = torch.round((images[0].clamp(-1, 1) + 1) * 127.5).to(torch.uint8)
        pixels: Pixels = levels.permute(1, 2, 0).contiguous().numpy()
        yield (slice(0, pixels.shape[0]), slice(0, pixels.shape[1])), pixels

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
        _warn(f"out of memory on {way.device}, running the {self._kind} {remedy} instead")
        return smaller

    def _more_precise(self, way: _Way) -> _Way:
        """How to run with a wider range of numbers; OSError if there is none."""
        if way.dtype == torch.float32:
            msg = f"the {self._kind} returned values that are infinite or not a number"
            raise OSError(msg)
        _warn(f"the {self._kind} leaves the range of {way.dtype}, running it in float32 instead")
        self._overflows = True
        return way._replace(dtype=torch.float32)

    def _preferred(self) -> tuple[torch.device, torch.dtype]:
        if isinstance(self._weights, Folder):
            where = device()
            numbers = dtype(where)
        else:
            where, numbers = self._module.device, self._module.dtype
        return where, torch.float32 if self._overflows else numbers

    def _in(self, dtype: torch.dtype) -> Any:
        """The network with this number format, on any device."""
        if self._module is None or self._module.dtype != dtype:
            self._module = None  # two at a time may not fit
            # From the file, because float16 has lost precision.
            self._module = _load(getattr(diffusers, self._kind), self._weights, dtype)
        return self._module

    def _on(self, device: torch.device, dtype: torch.dtype) -> Any:
        """The network on this device and with this number format."""
        if isinstance(self._weights, Folder):
            return self._in(dtype).to(device)
        if (device, dtype) == (self._module.device, self._module.dtype):
            return self._module
        copy = type(self._module).from_config(self._module.config)
        copy.load_state_dict({name: t.cpu() for name, t in self._module.state_dict().items()})
        return copy.to(device, dtype)


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


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether this error of torch says that memory is full."""
    # The errors of MPS and the CPU have no type of their own.
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(
        text in str(error)
        for text in ("out of memory", "can't allocate memory", "not enough memory")
    )


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def _load(cls: Any, folder: Folder, dtype: torch.dtype) -> Any:
    """A folder's network, on the CPU; OSError if its weights are damaged or have another hash."""
    weights = sources.weights_file(folder.path)
    sources.check_weights(folder)
    try:
        module, report = cls.from_pretrained(
            folder.path,
            variant="fp16" if weights.name.endswith(".fp16.safetensors") else None,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as e:  # from diffusers, transformers, accelerate, safetensors or torch
        msg = f"{folder.path} could not be loaded as {cls.__name__}: {e}"
        raise OSError(msg) from e
    # Missing weights would be random.
    if missing := sorted(report["missing_keys"]):
        msg = f"{weights} is damaged: it lacks {len(missing)} tensors, such as {missing[0]}"
        raise OSError(msg)
    _check_finite(module, weights)
    return module.eval()


def _check_finite(module: torch.nn.Module, name: object) -> None:
    for tensor, values in module.state_dict().items():
        # Tensors that accelerate has offloaded are on "meta", without values.
        if values.is_floating_point() and not values.is_meta and not values.isfinite().all():
            msg = f"{name} is damaged: {tensor} has values that are infinite or not a number"
            raise OSError(msg)


@dataclass(frozen=True)
class Denoiser:
    """A U-Net that predicts the noise in latents, its scheduler, and the embedding of prompts.

    ``embed`` turns a prompt into the U-Net's encoder_hidden_states (1, tokens, features), on its
    device and in its dtype.  It is None if the U-Net takes no prompt.
    """

    unet: Any
    scheduler: Any
    embed: Callable[[str], Tensor] | None

    @classmethod
    def load(cls, parts: DenoiserParts, channels: int) -> Denoiser:
        """Load the parts; OSError if one is missing, damaged or not made for so many channels.

        If the U-Net does not fit into the GPU's memory, it stays on the CPU, with a warning.
        """
        sources.check_denoiser(parts, channels)
        kind = sources.config(parts.unet)["_class_name"]
        unet = parts.unet
        if isinstance(unet, Folder):
            where = device()
            unet = _load(getattr(diffusers, kind), unet, dtype(where))
            try:
                unet = unet.to(where)
            except RuntimeError as e:
                if not is_out_of_memory(e):
                    msg = f"the U-Net cannot be run on {where}: {e}"
                    raise OSError(msg) from e
                _warn(f"out of memory on {where}, running the U-Net on the CPU instead")
                unet = unet.to("cpu", torch.float32)
        else:
            _check_finite(unet, "this U-Net")
        scheduler = parts.scheduler
        if isinstance(scheduler, Folder):
            scheduler = _load_scheduler(scheduler)
        embed = None if kind == "UNet2DModel" else _embedding(unet, parts)
        return cls(unet, scheduler, embed)


def _load_scheduler(folder: Folder) -> Any:
    settings = sources.config(folder, "scheduler_config.json")
    name = str(settings.get("_class_name"))
    cls: Any = getattr(diffusers, name, None)
    if not hasattr(cls, "set_timesteps") or not hasattr(cls, "from_config"):
        msg = f"{folder.path} holds no scheduler that diffusers knows: {name}"
        raise OSError(msg)
    try:
        return cls.from_config(settings)
    except Exception as e:  # its arithmetic may raise anything for bad values
        msg = f"{folder.path} could not be loaded as {name}: {e}"
        raise OSError(msg) from e


def _embedding(unet: Any, parts: DenoiserParts) -> Callable[[str], Tensor]:
    """A function that embeds prompts for the U-Net.  Its first call loads the text encoder."""

    @functools.cache
    def encoder() -> tuple[Any, Any]:
        import transformers

        text_encoder, tokenizer = parts.text_encoder, parts.tokenizer
        if isinstance(text_encoder, Folder):
            with _no_progress_bar():
                text_encoder = _load(transformers.CLIPTextModel, text_encoder, unet.dtype)
            text_encoder = text_encoder.to(unet.device)
        else:
            _check_finite(text_encoder, "this text encoder")
        if isinstance(tokenizer, Folder):
            try:
                tokenizer = transformers.CLIPTokenizer.from_pretrained(
                    tokenizer.path, local_files_only=True
                )
            except Exception as e:  # from transformers or tokenizers
                msg = f"{tokenizer.path} could not be loaded as CLIPTokenizer: {e}"
                raise OSError(msg) from e
        return text_encoder, tokenizer

    @functools.lru_cache(maxsize=16)  # chosen: the files of a batch mostly have one prompt
    @torch.no_grad()
    def embed(prompt: str) -> Tensor:
        text_encoder, tokenizer = encoder()
        tokens = tokenizer(
            prompt,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        states: Tensor = text_encoder(tokens.input_ids.to(text_encoder.device))[0]
        return states.to(unet.device, unet.dtype)

    return embed


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Hide the bar that transformers shows while it loads, which takes a second."""
    import transformers

    logging: Any = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
