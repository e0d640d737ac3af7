"""The embedded autoencoder `mini`: a lapped transform learnt from data, with a CNN beside it.

Both directions are the sum of a linear path, an overlapped block transform of 32x32
samples at a stride of 16, and a residual path, a small CNN that works at 1/4, 1/8 and
1/16 of the resolution.  The linear path alone is a competent transform coder; the CNN
adds what a linear transform cannot: edges without ringing, and a reconstruction that
knows how coarsely the latents were quantised.  See training/README.md for the figures.
"""

from __future__ import annotations

import copy
import functools
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import options
from ..prior import HyperPrior
from . import tiles
from .tiles import WHOLE, Area, Sides

if TYPE_CHECKING:
    from .reduced import Reduced
    from .refinement import RateModel

FACTOR = 16
CHANNELS = 160
WIDTHS = (40, 80, 144)  # channels at 1/4, 1/8 and 1/16 of the resolution
DEPTHS_ENCODER = (4, 3, 2)  # residual blocks at each of them
DEPTHS_DECODER = (5, 5, 2)
RATE_FEATURES = 3

# Latents along a side of what is encoded or decoded at once, within the memory budget.  Measured,
# on 12 megapixels: smaller tiles spend more on their margins, larger ones on fresh memory for each
# activation.
LARGEST_TILE = 112
# How many latents beyond a tile are looked at, by all of the decoder, and from its stages at 1/8
# and at 1/4 of the resolution on.  A 3x3 convolution reaches one place further: in all 5 latents,
# 10 eighths and 11 quarters, each rounded up.
DECODER_MARGIN, DECODER_MARGIN_8, DECODER_MARGIN_4 = 13, 8, 3
# By all of the encoder, and from its stages at 1/8 and 1/16 on.  They reach 11, 9 and 5 latents,
# but what is beyond these moves a latent by less than 1e-4 (a test), and the reach costs an eighth.
ENCODER_MARGIN, ENCODER_MARGIN_8, ENCODER_MARGIN_16 = 6, 5, 3

SMALLEST_TILE = 2 * DECODER_MARGIN
# Bytes that each latent of a tile takes, its margin included: to be decoded or encoded with a CNN
# in float32; in bfloat16 it is a little less.  Then what the model itself and the integers of
# bands take, and what is left between them.  Measured (benchmarks.memory).
DECODER_MEMORY, ENCODER_MEMORY = 24_000, 36_000
FIXED_MEMORY = 150_000_000

WEIGHTS = Path(__file__).parent / "weights" / "mini.safetensors"
PERCEPTUAL_WEIGHTS = WEIGHTS.with_name("mini_perceptual.safetensors")


def rate_features(rate: Tensor) -> Tensor:
    """The position on the rate axis, (B,) in [0, 1], as (B, RATE_FEATURES) smooth features."""
    u = 2 * rate - 1
    return torch.stack([u, u * u, u * u * u], dim=1)


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), both 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(torch.as_tensor(self.second.bias))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(F.relu(self.first(x)))
        return x + y


def blocks(channels: int, depth: int) -> nn.Sequential:
    """Residual blocks one after another."""
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(depth)))


class Encoder(nn.Module):
    """Images (B, 3, H, W) in [-0.5, 0.5], H and W multiples of 16, to
    latents (B, C, H/16, W/16).
    """

    def __init__(self) -> None:
        super().__init__()
        n4, n8, n16 = WIDTHS
        d4, d8, d16 = DEPTHS_ENCODER
        # A 32x32 convolution at stride 16 is a 2x2 convolution over 16x16 blocks.
        self.linear = nn.Conv2d(3 * FACTOR * FACTOR, CHANNELS, 2)
        self.enter = nn.Conv2d(48, n4, 3, padding=1)
        self.at4 = blocks(n4, d4)
        self.down8 = nn.Conv2d(n4, n8, 4, stride=2, padding=1)
        self.at8 = blocks(n8, d8)
        self.down16 = nn.Conv2d(n8, n16, 4, stride=2, padding=1)
        self.at16 = blocks(n16, d16)
        self.leave = nn.Conv2d(n16, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor, sides: Sides = WHOLE) -> Tensor:
        """Of a tile, latents without its margin of `ENCODER_MARGIN`."""
        # As few copies of all pixels at once as may be: they take the most memory.
        near = F.pad(sides.trim(x, (ENCODER_MARGIN - 1) * FACTOR), (8, 8, 8, 8), mode="replicate")
        latents = sides.trim(self.linear(F.pixel_unshuffle(near, FACTOR)), 1)
        del near
        y = self.enter(F.pixel_unshuffle(x.to(self.enter.weight.dtype), 4))
        y = sides.trim(self.down8(self.at4(y)), 2 * (ENCODER_MARGIN - ENCODER_MARGIN_8))
        y = sides.trim(self.down16(self.at8(y)), ENCODER_MARGIN_8 - ENCODER_MARGIN_16)
        return latents + sides.trim(self.leave(self.at16(y)), ENCODER_MARGIN_16)


class Decoder(nn.Module):
    """Latents (B, C, h, w) and their place on the rate axis (B,) to images (B, 3, 16h, 16w)."""

    def __init__(self) -> None:
        super().__init__()
        n4, n8, n16 = WIDTHS
        d4, d8, d16 = DEPTHS_DECODER
        self.linear = nn.Conv2d(CHANNELS, 3 * FACTOR * FACTOR, 2, padding=1, bias=False)
        self.enter = nn.Conv2d(CHANNELS, n16, 3, padding=1)
        self.at16 = blocks(n16, d16)
        self.up8 = nn.Conv2d(n16, n8 * 4, 1)
        self.at8 = blocks(n8, d8)
        self.up4 = nn.Conv2d(n8, n4 * 4, 1)
        self.at4 = blocks(n4, d4)
        self.leave = nn.Conv2d(n4, 48, 3, padding=1)
        # What the reconstruction should smooth depends on the quantisation step.
        self.rate = nn.ModuleList(nn.Linear(RATE_FEATURES, n) for n in (n16, n8, n4))
        for layer in self.rate:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, latents: Tensor, rate: Tensor, sides: Sides = WHOLE) -> Tensor:
        """Of a tile, the image without its margin of `DECODER_MARGIN`."""
        dtype = self.enter.weight.dtype
        features = rate_features(rate).to(dtype)
        r16, r8, r4 = (layer(features)[:, :, None, None] for layer in self.rate)
        y = self.at16(self.enter(latents.to(dtype)) + r16)
        y = sides.trim(y, DECODER_MARGIN - DECODER_MARGIN_8)
        y = self.at8(F.pixel_shuffle(self.up8(y), 2) + r8)
        y = sides.trim(y, 2 * (DECODER_MARGIN_8 - DECODER_MARGIN_4))
        y = self.at4(F.pixel_shuffle(self.up4(y), 2) + r4)
        y = F.pixel_shuffle(sides.trim(self.leave(y), 4 * DECODER_MARGIN_4), 4)
        # Only now, and in place: it takes more memory than all of the above.
        near = sides.trim(latents, DECODER_MARGIN - 1)
        image = F.pixel_shuffle(self.linear(near), FACTOR)[..., 8:-8, 8:-8]
        return sides.trim(image, FACTOR).add_(y)


class Gain(nn.Module):
    """The quantisation step of every channel, as a function of the place on the rate axis.

    Latents are multiplied by exp(a + b t + c t^2) before rounding and divided by it after:
    one model for all rates (Cui et al., "Asymmetric Gained Deep Image Compression With
    Continuous Rate Adaptation", CVPR 2021).
    """

    def __init__(self) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(3, CHANNELS))

    def forward(self, rate: Tensor) -> Tensor:
        powers = torch.stack([torch.ones_like(rate), rate, rate * rate], dim=1)
        return torch.exp(powers @ self.coefficients)[:, :, None, None]


class Autoencoder(nn.Module):
    """Encoder, decoder and gain; latents are in the encoder's own units, before the gain."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.gain = Gain()


def cnn_dtype() -> torch.dtype:
    """What the CNNs beside the linear paths compute in.

    Where the CPU multiplies matrices of bfloat16 (AMX), that is three times as fast as float32,
    and elsewhere slower.  It changes a value in 20 of a decoded picture, by one grey level
    (docs/speed.md).
    """
    # Older versions of torch do not say what the CPU has.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    best = "bfloat16" if capabilities.get("amx_bf16") else "float32"
    return torch.bfloat16 if (options.DTYPE or best) == "bfloat16" else torch.float32


_building = threading.RLock()


def _unlock() -> None:
    """In a forked child: a thread that was building in the parent does not exist here."""
    global _building
    _building = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)

Owner = TypeVar("Owner")
Built = TypeVar("Built")


def built_once(build: Callable[[Owner], Built]) -> property:
    """A property that is built when it is first asked for, once, whatever threads ask for it."""
    name = f"built{build.__name__}"

    def get(owner: Owner) -> Built:
        with _building:
            if name not in owner.__dict__:
                owner.__dict__[name] = build(owner)
            built: Built = owner.__dict__[name]
            return built

    return property(get)


Network = TypeVar("Network", bound=nn.Module)


class Computing(Generic[Network]):
    """An encoder or decoder in float32, and a copy whose CNN computes in bfloat16."""

    def __init__(self, network: Network) -> None:
        self.in_float32: Network = frozen(network)

    def __call__(self) -> Network:
        """The one whose CNN is in `cnn_dtype`; linear path and sum are in float32 in both."""
        return self.in_float32 if cnn_dtype() == torch.float32 else self._in_bfloat16

    @built_once
    @torch.inference_mode(False)
    def _in_bfloat16(self) -> Network:
        other: Network = copy.deepcopy(self.in_float32)
        for name, part in other.named_children():
            if name != "linear":
                part.to(torch.bfloat16)
        return other


Module = TypeVar("Module", bound=nn.Module)


def frozen(module: Module) -> Module:
    """The module in float32, for inference, laid out as convolutions are fastest: by an eighth."""
    module.float().eval().requires_grad_(False)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


Method = TypeVar("Method", bound=Callable[..., Any])


def undisturbed(method: Method) -> Method:
    """The method, whatever default device and autocast the caller has set for its own networks."""

    @functools.wraps(method)
    def calling(*args: Any, **keywords: Any) -> Any:
        with torch.device("cpu"), torch.autocast("cpu", enabled=False):
            return method(*args, **keywords)

    return calling  # type: ignore[return-value]


class HyperAnalysis(nn.Sequential):
    """Latents (B, C, h, w) in steps, h and w even, to hyperlatents (B, 32, h/2, w/2).

    Only the encoder runs it, so it may be floating point.
    """

    def __init__(self, hyper: int = 32, width: int = 96) -> None:
        super().__init__(
            nn.Conv2d(CHANNELS, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, hyper, 3, padding=1),
        )


class Mini:
    """`mini`, loaded: pixels <-> latents in quantisation steps, in numpy arrays.

    ``quality`` is the header's, in hundredths (100..10000).
    """

    @torch.inference_mode(False)
    @undisturbed
    def __init__(self, weights: Path) -> None:
        tensors = load_file(weights)

        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}

        autoencoder = Autoencoder()
        autoencoder.load_state_dict(part("autoencoder."))
        self._encoder = Computing(autoencoder.encoder)
        self.decoder = Computing(autoencoder.decoder)
        self._gain = frozen(autoencoder.gain)
        analysis = HyperAnalysis()
        analysis.load_state_dict(part("analysis."))
        self._analysis = frozen(analysis)
        self._prior_tensors = part("prior.")
        self.prior = HyperPrior({k: v.numpy() for k, v in self._prior_tensors.items()})

    @undisturbed
    def gain(self, quality: int) -> NDArray[np.float32]:
        """Steps in a unit of latent, (C,)."""
        gain: NDArray[np.float32] = self._gain(rate_of(quality)).numpy().ravel()
        return gain

    @undisturbed
    def encode(self, pixels: tiles.Samples) -> NDArray[np.float32]:
        """Pixels (H, W, 3) to latents (ceil(H/16), ceil(W/16), C)."""
        # Of one column, oneDNN's strided convolution in bfloat16 with AMX (brg_conv_fwd, torch
        # 2.13) adds what was in the memory before, of whomever.
        narrow = pixels.shape[1] <= FACTOR
        network = self._encoder.in_float32 if narrow else self._encoder()

        def latents(levels: Tensor, sides: Sides) -> Tensor:
            out: Tensor = network(levels.div_(255).sub_(0.5), sides)
            return out

        side = tile_side(ENCODER_MEMORY, ENCODER_MARGIN)
        shape = {"channels": CHANNELS, "factor": FACTOR, "margin": ENCODER_MARGIN}
        return tiles.encode(pixels, latents, side=side, **shape)

    @undisturbed
    def hyperlatents(self, steps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Latents in steps (h, w, C) to hyperlatents (ceil(h/2), ceil(w/2), 32), not rounded."""
        height, width = (n % 2 for n in steps.shape[:2])
        even = np.pad(steps, ((0, height), (0, width), (0, 0)))
        with torch.inference_mode():
            out = self._analysis(torch.from_numpy(even).permute(2, 0, 1)[None])
        hyper: NDArray[np.float32] = out[0].permute(1, 2, 0).numpy()
        return hyper

    @undisturbed
    def refine(
        self,
        pixels: tiles.Samples | None,
        steps: NDArray[np.float32],
        quality: int,
        effort: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Latents in steps (h, w, C), found by `encode`, and hyperlatents, as `effort` has them.

        They are not yet rounded; see `refinement.refine`.
        """
        from . import refinement

        hyper = self.hyperlatents(steps)
        with torch.inference_mode(False):  # whatever the caller has set: gradients are needed
            network, rate = self.decoder(), rate_of(quality)
            gain = self._gain(rate)
            return refinement.refine(
                self._rate_model,
                lambda latents: network(latents / gain, rate),
                pixels,
                steps,
                hyper,
                quality=quality,
                effort=effort,
            )

    @built_once
    def _rate_model(self) -> RateModel:
        from .refinement import RateModel

        return RateModel(self._prior_tensors)

    def decode(self, latents: tiles.Samples, quality: int) -> NDArray[np.uint8]:
        """Latents (h, w, C), the gain taken off, to pixels (16 h, 16 w, 3)."""
        return tiles.assembled(self.decode_area(latents, quality), latents, FACTOR)

    def decode_area(
        self, latents: tiles.Samples, quality: int, *, area: Area | None = None, scale: int = 1
    ) -> Iterator[tuple[Area, NDArray[np.uint8]]]:
        """As `decode`, but tile by tile, and at least ``area`` of the latents.

        With a ``scale`` of 2, 4 or 8, pictures are so much smaller; places are in their pixels.
        """
        if scale == 1:
            return decoded(self.decoder, latents, quality, area)
        reduced: Reduced = self._reduced
        return reduced.decode_area(latents, quality, area, scale)

    @built_once
    def _reduced(self) -> Reduced:
        from .reduced import Reduced

        return Reduced(self.decoder.in_float32)


class MiniPerceptual:
    """The second decoder of `mini`'s latents, loaded."""

    @torch.inference_mode(False)
    @undisturbed
    def __init__(self, weights: Path, mini: Callable[[], Mini]) -> None:
        decoder = Decoder()
        tensors = load_file(weights)
        decoder.load_state_dict({k.removeprefix("decoder."): v for k, v in tensors.items()})
        self.decoder = Computing(decoder)
        self._mini = mini

    def decode(self, latents: tiles.Samples, quality: int) -> NDArray[np.uint8]:
        """As `Mini.decode`."""
        return tiles.assembled(self.decode_area(latents, quality), latents, FACTOR)

    def decode_area(
        self, latents: tiles.Samples, quality: int, *, area: Area | None = None, scale: int = 1
    ) -> Iterator[tuple[Area, NDArray[np.uint8]]]:
        """As `Mini.decode_area`; reduced, there is little texture to invent, and `mini` decodes."""
        if scale == 1:
            return decoded(self.decoder, latents, quality, area)
        return self._mini().decode_area(latents, quality, area=area, scale=scale)


def rate_of(quality: int) -> Tensor:
    """The place on the rate axis, (1,) in [0, 1], of a header's quality."""
    return torch.tensor([(quality - 100) / 9900], dtype=torch.float32)


def tile_side(memory: int, margin: int, columns: int = 0) -> int:
    """How many latents along a side fit the memory budget at once, so many bytes for each.

    ``columns`` are those of the latents that are decoded for a row of tiles.
    """
    # The positive root of memory n^2 + row n - budget, with n the side and its margins.
    row = columns * CHANNELS * 4
    budget = max(0, options.MEMORY_BUDGET - FIXED_MEMORY)
    side = (math.isqrt(row * row + 4 * memory * budget) - row) // (2 * memory)
    return min(max(side - 2 * margin, SMALLEST_TILE), LARGEST_TILE)


def decoded(
    network: Computing[Decoder], latents: tiles.Samples, quality: int, area: Area | None
) -> Iterator[tuple[Area, NDArray[np.uint8]]]:
    """Tile by tile the pixels of latents (h, w, C), the gain taken off: places and pixels."""

    @undisturbed
    def levels(part: Tensor, sides: Sides) -> Tensor:
        out: Tensor = network()(part, rate_of(quality), sides).add_(0.5).mul_(255)
        return out

    side = tile_side(DECODER_MEMORY, DECODER_MARGIN, latents.shape[1])
    return tiles.decode(latents, levels, area=area, factor=FACTOR, side=side, margin=DECODER_MARGIN)
