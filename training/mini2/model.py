"""What is trained: the networks of `mini`, second generation, with their priors and the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pillow_sdz.models.ssimulacra2 import ssimulacra2
from training.mini2.network import KNOTS, Autoencoder, spread
from training.mini2.prior import DetailPrior, Prior

# Weight of the distortion at both ends of the rate axis, in bits per pixel for a squared
# grey level.  The lower end is the first generation's, whose upper end was 0.06.  At high
# rates the best step is sqrt(6 * 3 / ln 2 / weight) grey levels, and its error a twelfth of
# the step's square: 0.6 asks for 42.4 dB at least.
LAMBDA_LOW, LAMBDA_HIGH = 1e-4, 0.6
# The best step in grey levels times the root of the weight.
STEP = math.sqrt(18 / math.log(2))
# The base alone goes from 0 to the first place, with details from the second to 1.  At the two
# a picture takes about as many bits, and looks as good, so that a scale of qualities can go
# over from one to the other.  Measured (training/README.md).
BASE_TO, DETAILS_FROM = 0.6, 0.4

# Errors in flat blocks of 8x8 pixels count up to so many times more: the woven texture, the
# bands of a gradient.  And those of an 8x8 mean: tints.  Chosen.
FLAT_WEIGHT, FLAT_DEVIATION = 3.0, 4.0  # deviation in grey levels
MEAN_WEIGHT = 4.0


class Coded(NamedTuple):
    """Pictures as they would be decoded, (B, 3, H, W), and bits per pixel (B,) of the parts."""

    picture: Tensor
    base: Tensor
    detail: Tensor


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.autoencoder = Autoencoder()
        self.prior = Prior()
        self.detail_prior = DetailPrior()

    def forward(self, images: Tensor, rate: Tensor, *, details: bool, hard: bool) -> Coded:
        """Of images (B, 3, H, W) in [-0.5, 0.5] at rates (B, 1, ...) as `network` has them.

        With ``details``, cells have them where their rate is at least `DETAILS_FROM`.
        """
        pixels = images.shape[2] * images.shape[3]
        parts = self.autoencoder
        latents = parts.encoder(images).float()
        height, width = latents.shape[2:]
        gain = parts.gain(rate, 2, height, width)
        if not details:
            # Beyond, the base's steps are as details want them, not as the base alone would.
            below = spread((rate < DETAILS_FROM).float(), 2, height, width)
            gain = gain * below + gain.detach() * (1 - below)
        latents = latents * gain
        bits, features = self.prior.bits(latents, rate, hard=hard)
        # The decoder sees what it will see in a file: rounded latents.
        rounded = latents + (torch.round(latents) - latents).detach()
        picture, decoded = parts.decoder(rounded / gain, rate)
        if not details:
            return Coded(picture, bits / pixels, torch.zeros_like(bits))
        layer = parts.details
        with torch.autocast(images.device.type, enabled=False):
            # No details where the rate is below that.
            active = (rate >= DETAILS_FROM).float()
            size = 4, 2 * height, 2 * width
            gain = layer.gain(rate, *size)
            left = layer.transform(images - picture) * spread(active, *size)
            steps = left * gain
            detail_bits = self.detail_prior.bits(
                steps, torch.round(latents).detach(), features, rate, hard=hard
            )
            # What is rounded does not follow the base: where details are zero, the base's
            # error stays.  Only the gain learns what a step of its costs.
            scaled = left.detach() * gain
            rounded = scaled + (torch.round(scaled) - scaled).detach()
            detail = layer.reconstruct(rounded, gain)
            picture = picture + detail
        step = spread(STEP / distortion_weight(rate).sqrt(), 8, *decoded.shape[2:]) / 255
        restored = parts.restoration(picture, detail, step, decoded, rate)
        picture = picture + restored * spread(active, 32, *images.shape[2:])
        return Coded(picture, bits / pixels, detail_bits / pixels)


def distortion_weight(rate: Tensor) -> Tensor:
    """Lagrangian weight of the squared error at places of the rate axis in [0, 1]."""
    return LAMBDA_LOW * torch.exp(rate * math.log(LAMBDA_HIGH / LAMBDA_LOW))


def distortion(picture: Tensor, images: Tensor) -> Tensor:
    """Squared error in grey levels of each 8x8 block, (B, 1, H/8, W/8), with its weights."""
    error = (picture - images) * 255
    squared = F.avg_pool2d((error * error).mean(1, keepdim=True), 8)
    mean = F.avg_pool2d(error, 8)
    levels = images.mean(1, keepdim=True) * 255
    variance = F.avg_pool2d(levels * levels, 8) - F.avg_pool2d(levels, 8) ** 2
    flat = torch.exp(-variance / FLAT_DEVIATION**2)
    tint = (mean * mean).mean(1, keepdim=True)
    return squared * (1 + FLAT_WEIGHT * flat) + MEAN_WEIGHT * tint


def loss_of(coded: Coded, images: Tensor, rate: Tensor, *, perceptual: float) -> Tensor:
    """Rate-distortion loss, balanced so that every rate pulls about equally."""
    weights = distortion_weight(rate)
    errors = distortion(coded.picture, images)
    weighted = errors * spread(weights, 4, *errors.shape[2:])
    loss = coded.base + coded.detail + weighted.mean((1, 2, 3))
    weight = torch.exp(torch.log(weights).mean((1, 2, 3)))
    if perceptual:
        # On half of the batch: it costs as much as the networks.  The power of the weight
        # keeps its share of the slope near constant, since a halving of the bits costs
        # about as many points of the score at any rate.
        half = slice((len(images) + 1) // 2)
        # The variances in the metric are differences of near equals: not for bfloat16.
        with torch.autocast(images.device.type, enabled=False):
            distance = 1 - ssimulacra2(coded.picture[half], images[half]) / 100
        share = 2 * perceptual * 0.35 * (weight[half] / 9e-4) ** 0.47
        loss = torch.cat([loss[half] + share * distance, loss[half.stop :]])
    balanced: Tensor = (loss / weight.sqrt()).mean() * 0.05
    return balanced


# The first generation's axis in terms of the second's: the same weight of the distortion.
STRETCH = math.log(LAMBDA_HIGH / LAMBDA_LOW) / math.log(0.06 / 1e-4)


@torch.no_grad()
def take_over(model: Model, first: Mapping[str, Tensor]) -> None:
    """Begin with the weights of the first generation (`training.mini.shipped`)."""
    first = {k: v.float() for k, v in first.items()}
    state = model.state_dict()
    # Its rate axis ended at 0.06, and all was a polynomial of it; beyond, the decoder begins
    # as it was there.
    then = STRETCH * torch.linspace(0, 1, KNOTS)
    u = 2 * then.clamp(max=1) - 1
    for name, value in state.items():
        if name.startswith("autoencoder.decoder.rate."):
            stem = name.rsplit(".", 1)[0]
            biases = first[f"{stem}.weight"] @ torch.stack([u, u * u, u * u * u])
            value.copy_((biases + first[f"{stem}.bias"][:, None])[:, :, None, None])
        elif name.startswith(("autoencoder.details.", "autoencoder.restoration.")):
            continue
        elif name.startswith(("autoencoder.encoder.", "autoencoder.decoder.", "prior.analysis.")):
            value.copy_(first[name])
        elif name == "autoencoder.gain.logarithms":
            powers = torch.stack([torch.ones_like(then), then, then * then], 1)
            value.copy_(powers @ first["autoencoder.gain.coefficients"])
    state["prior.hyper_scale.coefficients"].copy_(
        first["prior.hyper_scale"] * torch.tensor([1, STRETCH])[:, None]
    )
    # A convolution has come in before the upsampling: both signs of what it had.
    z = state["prior.synthesis.weight"].shape[1]
    state["prior.synthesis.weight"].zero_()
    state["prior.synthesis.bias"].zero_()
    for i in range(z):
        state["prior.synthesis.weight"][i, i, 1, 1] = 1
        state["prior.synthesis.weight"][z + i, i, 1, 1] = -1
    up = first["prior.synthesis_up.weight"]
    state["prior.synthesis_up.weight"][: 2 * z] = torch.cat([up, -up])
    state["prior.synthesis_up.bias"].copy_(first["prior.synthesis_up.bias"])
    context = state["prior.context.weight"]
    context.copy_(first["prior.context.weight"][: len(context)])


@torch.no_grad()
def begin_details(model: Model) -> None:
    """Steps of the details as a rate-distortion optimal uniform quantiser has them."""
    weights = distortion_weight(torch.linspace(0, 1, KNOTS))
    gains = model.autoencoder.details.gain.logarithms
    gains.copy_(torch.log(255 / STEP * weights.sqrt())[:, None].expand_as(gains))


def channels_last(model: Model) -> Model:
    """The model with its weights laid out as convolutions are fastest."""
    moved: Model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved
