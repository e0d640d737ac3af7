"""The model under training: the networks of `mini`, their prior, and the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pillow_sdz.codings.rate_axis import KNOTS, LAST
from pillow_sdz.models.mini import shape
from pillow_sdz.models.mini.network import Autoencoder, LimitedBlock, beyond, spread
from pillow_sdz.models.mini.shape import BASE, CHANNELS, FACTOR
from pillow_sdz.models.ssimulacra2 import ssimulacra2
from training.mini.data import Photo, to_tensor
from training.mini.lapped import block_weight, lapped_transform
from training.mini.ms_ssim import ms_ssim
from training.mini.prior import LARGEST, Magnitudes, Prior

TAIL_FROM = shape.TAIL_FROM / LAST  # where on the axis the channels beyond the base begin

# Weight of the distortion at both ends of the rate axis, in bits per pixel for a squared grey
# level.  The lower end is that of the first generation, whose upper end was 0.06.  At high rates
# the best step is sqrt(6 * 3 / ln 2 / weight) grey levels, and the squared error is a twelfth of
# the step's square.  So a weight of 0.6 asks for at least 42.4 dB.
LAMBDA_LOW, LAMBDA_HIGH = 1e-4, 0.6
# The best step in grey levels, multiplied by the root of the weight.
STEP = math.sqrt(18 / math.log(2))
# Latents are five times the coefficients of an orthonormal transform of images in [-0.5, 0.5].
# Chosen, in the first generation.
SCALE = 5.0

# Orthonormal: grey, red against blue, green against both.
COLOUR = (
    (3**-0.5, 3**-0.5, 3**-0.5),
    (2**-0.5, 0.0, -(2**-0.5)),
    (6**-0.5, -2 * 6**-0.5, 6**-0.5),
)
RIDGE = 1e-4  # of the fits, as a part of the inputs' mean square.  Chosen.
FAINT = 1 / 255  # a grey level: coefficients below it hardly count in the order of channels

# Errors in flat blocks of 8x8 pixels count up to four times: woven texture and the bands of a
# gradient are seen there.  The error of the mean of a block, a tint, counts four times more.
# Chosen.
FLAT_WEIGHT, FLAT_DEVIATION = 3.0, 4.0  # deviation in grey levels
MEAN_WEIGHT = 4.0

# The share of SSIMULACRA2 grows with a power of the weight of the squared error.  The first power
# is for weights below PERCEPTUAL_AT, the second one for those above it.  Chosen.
PERCEPTUAL_AT, PERCEPTUAL_POWERS = 7.3e-3, (0.75, 0.52)
# The same for MS-SSIM, whose share is `STRUCTURE` bits per pixel at the first number.  Below it,
# pictures are far ahead of other codecs' in MS-SSIM anyway.  Chosen.
STRUCTURE, STRUCTURE_AT, STRUCTURE_POWERS = 8.0, 0.018, (1.5, 0.65)

# The limits of a block are so many times the mean, over photos and places, of what is largest.
# Chosen: in 8 bits, the decoder loses 0.022 dB at a quality of 75 with 1.2, 0.018 with 1, and 0.036
# with limits that no photo reaches (14 validation photos, weights without limits).
SPARE = 1.1
LEAST_LIMIT = 0.02  # of the limit of the input, for blocks that do next to nothing.  Chosen.
LIMITED_PLACES = (0.0, 0.2, 0.4, 0.6, 0.75, 0.85, 1.0)


class Coded(NamedTuple):
    """Pictures as they would be decoded, (B, 3, H, W), and bits per pixel (B,) of the parts."""

    picture: Tensor
    base: Tensor
    tail: Tensor


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.autoencoder = Autoencoder()
        self.prior = Prior()

    def forward(self, images: Tensor, rate: Tensor, *, hard: bool, whole: bool = False) -> Coded:
        """Code images (B, 3, H, W) in [-0.5, 0.5] at rates (B, 1, ...), as in `network`.

        With ``whole``, the tail is always computed.  Without it, the host asks the device whether
        there is a tail, and has to wait for the answer.
        """
        pixels = images.shape[2] * images.shape[3]
        latents, gain, active = self.in_steps(images, rate)
        whole = whole or bool(active.any())
        base_bits, tail_bits, symbols = self.prior(latents, active, rate, hard=hard, whole=whole)
        picture = self.autoencoder.decoder(symbols / gain, rate)
        return Coded(picture, base_bits / pixels, tail_bits / pixels)

    def in_steps(self, images: Tensor, rate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, C, h, w) in quantisation steps, and the gains that they were multiplied by.

        The third result is 1 where there is a tail, (B, 1, h, w) or (B, 1, 1, 1).  Elsewhere, the
        rate is too low for the tail, and it is zero.
        """
        latents = self.autoencoder.encoder(images, rate)
        height, width = latents.shape[2:]
        gain = self.autoencoder.gain(rate, 2, height, width)
        latents = latents * gain
        active = spread((rate >= TAIL_FROM).float(), 2, height, width)
        return torch.cat([latents[:, :BASE], latents[:, BASE:] * active], 1), gain, active


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
    """Rate-distortion loss, balanced so that all rates have gradients of about the same size."""
    weights = distortion_weight(rate)
    errors = distortion(coded.picture, images)
    weighted = errors * spread(weights, 4, *errors.shape[2:])
    loss = coded.base + coded.tail + weighted.mean((1, 2, 3))
    weight = torch.exp(torch.log(weights).mean((1, 2, 3)))
    if perceptual:
        # SSIMULACRA2 sees half of the batch, because it costs as much as the networks.  Its share
        # grows with the weight, since at high rates a point of the score takes more bits.  At low
        # rates the score is far ahead of other codecs', so a smaller share improves PSNR instead.
        # MS-SSIM sees the other half.
        half = slice((len(images) + 1) // 2)
        rest = slice(half.stop, None)
        # The metrics' variances are differences of nearly equal numbers: bfloat16 is too coarse.
        with torch.autocast(images.device.type, enabled=False):
            distance = 1 - ssimulacra2(coded.picture[half], images[half]) / 100
            unlike = 1 - ms_ssim(coded.picture[rest].float(), images[rest])
        share = 2 * perceptual * _of_weight(weight[half] / PERCEPTUAL_AT, PERCEPTUAL_POWERS)
        structure = 2 * STRUCTURE * _of_weight(weight[rest] / STRUCTURE_AT, STRUCTURE_POWERS)
        loss = torch.cat([loss[half] + share * distance, loss[rest] + structure * unlike])
    balanced: Tensor = (loss / weight.sqrt()).mean() * 0.05
    return balanced


def _of_weight(relative: Tensor, powers: tuple[float, float]) -> Tensor:
    """The first power of weights below 1, and the second one of those above."""
    return torch.minimum(*(relative**p for p in powers))


@torch.no_grad()
def begin(model: Model, state: Mapping[str, Tensor], photos: list[Photo]) -> None:
    """Begin with the CNNs of ``state``, an older `mini`, and a plain lapped transform.

    Channels are the transform's coefficients in the order of their energy in ``photos``.  Principal
    components are not used: those of similar energy mix directions and frequencies, so a texture in
    one direction appears in many channels.
    """
    own = model.state_dict()
    for name, value in state.items():
        if name not in own or "prior" in name:
            continue
        target = own[name]
        if target.shape == value.shape:
            target.copy_(value)
        elif target.dim() == value.dim():
            target.zero_()
            target[tuple(slice(n) for n in value.shape)] = value
    basis = lapped_transform(FACTOR)
    transform = torch.einsum("rc,in,jm->rijcnm", torch.tensor(COLOUR), basis, basis).flatten(0, 2)
    weight = block_weight(transform)
    energy = torch.zeros(len(transform))
    covariance = torch.zeros(len(transform), len(transform))
    for photo in photos:
        height, width = (n // FACTOR * FACTOR for n in photo.shape[:2])
        blocks = F.pixel_unshuffle(beyond(to_tensor(photo[:height, :width])), FACTOR)
        c = F.conv2d(blocks, weight)[0].flatten(1)
        energy += torch.log((c * c).mean(1) + FAINT**2)
        covariance += c @ c.T / c.shape[1] / len(photos)
    order = torch.argsort(energy, descending=True)[:CHANNELS]
    filters, rows = transform[order], weight[order]
    then = own["autoencoder.encoder.linear.weight"][:BASE].clone()
    own["autoencoder.encoder.linear.weight"].copy_(SCALE * rows)
    own["autoencoder.encoder.linear.bias"].zero_()
    # A transposed convolution is a convolution with its filter turned by half a circle.
    turned = block_weight(filters).flip(2, 3).transpose(0, 1)
    own["autoencoder.decoder.linear.weight"].copy_(turned / SCALE)
    # The CNNs' inputs and outputs are converted from the old channels to the new ones.
    old = then.flatten(1) @ weight.flatten(1).T
    new = SCALE * torch.eye(len(transform))[order[:BASE]]
    there = new @ covariance @ old.T @ torch.linalg.inv(old @ covariance @ old.T)
    back = old @ covariance @ new.T @ torch.linalg.inv(new @ covariance @ new.T)
    leave, enter = (own[f"autoencoder.{n}.weight"] for n in ("encoder.leave", "decoder.enter"))
    leave[:BASE] = torch.einsum("ij,jcyx->icyx", there, leave[:BASE])
    bias = own["autoencoder.encoder.leave.bias"]
    bias[:BASE] = there @ bias[:BASE]
    enter[:, :BASE] = torch.einsum("cjyx,ji->ciyx", enter[:, :BASE], back)
    weights = distortion_weight(torch.linspace(0, 1, KNOTS))
    gains = torch.log(255 / SCALE / STEP * weights.sqrt())
    own["autoencoder.gain.logarithms"].copy_(gains[:, None].expand(-1, CHANNELS))
    # At high rates, where steps are small, it is best to begin with the linear transform alone.
    fading = ((0.7 - torch.linspace(0, 1, KNOTS)) / 0.5).clamp(0, 1)[:, None]
    own["autoencoder.encoder.gate.weight"].copy_(fading.expand(-1, CHANNELS))
    own["autoencoder.decoder.gate.weight"].copy_(fading.expand(-1, 48))


@torch.no_grad()
def fit_limits(model: Model, photos: list[Photo]) -> None:
    """Set the limits of all blocks by what photos lead to."""
    largest: dict[LimitedBlock, list[list[float]]] = {}

    def note(block: nn.Module, given: tuple[Tensor], _: Tensor) -> None:
        assert isinstance(block, LimitedBlock)
        hidden = F.relu(block.first(given[0]))
        seen = given[0], hidden, block.second(hidden)
        largest.setdefault(block, []).append([v.abs().max().item() for v in seen])

    found = [m for m in model.modules() if isinstance(m, LimitedBlock)]
    for block in found:
        block.limits.fill_(torch.inf)
    hooks = [block.register_forward_hook(note) for block in found]
    for photo in photos:
        for place in LIMITED_PLACES:
            model(to_tensor(photo), torch.full((1, 1, 1, 1), place), hard=True)
    for hook in hooks:
        hook.remove()
    for block, values in largest.items():
        limits = SPARE * torch.tensor(values).mean(0)
        block.limits.copy_(limits.clamp_min(LEAST_LIMIT * limits[0].item()))


@torch.no_grad()
def fit_magnitudes(model: Model, photos: list[Photo]) -> None:
    """Fit the prior's linear predictions of magnitudes to the latents of photos."""
    samples = []
    for i, photo in enumerate(photos):
        height, width = (n // 32 * 32 for n in photo.shape[:2])
        rate = torch.full((1, 1, 1, 1), (i * 0.618) % 1)
        latents = model.autoencoder.encoder(to_tensor(photo[:height, :width]), rate)
        latents = latents * model.autoencoder.gain(rate, 2, *latents.shape[2:])
        if rate.item() < TAIL_FROM:
            latents[:, BASE:] = 0
        samples.append((torch.round(latents).abs().clamp(max=LARGEST), rate))
    for prediction in model.prior.magnitudes:
        assert isinstance(prediction, Magnitudes)
        tail = prediction.before >= BASE
        chosen = [s for s in samples if not tail or s[1].item() >= TAIL_FROM]
        prediction.fit(chosen, RIDGE)


def channels_last(model: Model) -> Model:
    """The model with its weights in the memory layout that makes convolutions fastest."""
    moved: Model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved
