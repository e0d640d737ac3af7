"""Train `mini`: autoencoder and floating-point prior together, for all rates at once.

    python -m training.mini --photos DIR --run DIR --minutes 90

starts from a linear transform fitted to the photos, or goes on from the run's checkpoint
if there is one.  ``--warm-start FILE`` begins with another run's averaged weights,
``--warm-start shipped`` with those of the package.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from evaluation.photos import photo_paths
from pillow_sdz.models.mini.network import Autoencoder
from pillow_sdz.models.mini.shape import CHANNELS, FACTOR
from pillow_sdz.models.ssimulacra2 import ssimulacra2
from pillow_sdz.weights import MINI
from training import data
from training.prior import Prior
from training.run import Run, add_options

# Weight of the distortion at both ends of the rate axis, in bits per pixel for a squared
# grey level.  Chosen so that Kodak-sized photos run from about 0.05 to 1.2 bits per pixel.
LAMBDA_LOW, LAMBDA_HIGH = 1e-4, 0.06
BATCH = 16


# The floats behind the integer prior that ships, without which training could not go on.
PRIOR = Path(__file__).parent / "mini_prior.safetensors"


def shipped() -> dict[str, Tensor]:
    """The weights that ship, as training takes them up again."""
    tensors = load_file(MINI.path)
    weights = {k: v for k, v in tensors.items() if k.startswith("autoencoder.")}
    weights |= {f"prior.{k}": v for k, v in tensors.items() if k.startswith("analysis.")}
    return weights | load_file(PRIOR)


class Model(nn.Module):
    """What is trained: the autoencoder that ships and the prior it is trained with."""

    def __init__(self) -> None:
        super().__init__()
        self.autoencoder = Autoencoder()
        self.prior = Prior()

    def forward(self, images: Tensor, rate: Tensor, *, hard: bool) -> tuple[Tensor, Tensor]:
        """Reconstructions (B, 3, H, W) and bits per pixel (B,)."""
        # Rounding has no useful gradient: with it, what makes the latents stays as it is.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not hard):
            gain = self.autoencoder.gain(rate)
            latents = self.autoencoder.encoder(images) * gain
        bits = self.prior.bits(latents, rate, hard=hard)
        # The decoder sees what it will see in a file: rounded latents.
        rounded = latents + (torch.round(latents) - latents).detach()
        reconstruction = self.autoencoder.decoder(rounded / gain, rate).float()
        return reconstruction, bits / (images.shape[2] * images.shape[3])


def distortion_weight(rate: Tensor) -> Tensor:
    """Lagrangian weight of the squared error at places of the rate axis in [0, 1]."""
    return LAMBDA_LOW * torch.exp(rate * math.log(LAMBDA_HIGH / LAMBDA_LOW))


def loss_of(model: Model, images: Tensor, rate: Tensor, *, hard: bool, perceptual: float) -> Tensor:
    """Rate-distortion loss, balanced so that every rate pulls about equally."""
    reconstruction, bpp = model(images, rate, hard=hard)
    weight = distortion_weight(rate)
    squared = ((reconstruction - images) ** 2).mean((1, 2, 3)) * 255**2
    loss = bpp + weight * squared
    if perceptual:
        # On half of the batch: it costs as much as the networks.  The power of the weight
        # keeps its share of the slope near constant, since a halving of the bits costs
        # about as many points of the score at any rate.
        half = slice(len(images) // 2)
        # The variances in the metric are differences of near equals: not for bfloat16.
        with torch.autocast(images.device.type, enabled=False):
            distance = 1 - ssimulacra2(reconstruction[half], images[half]) / 100
        share = 2 * perceptual * 0.35 * (weight[half] / 9e-4) ** 0.47
        loss = torch.cat([loss[half] + share * distance, loss[len(images) // 2 :]])
    balanced: Tensor = (loss / weight.sqrt()).mean() * 0.05
    return balanced


def channels_last(model: Model) -> Model:
    """The model with its weights laid out as convolutions are fastest."""
    moved: Model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def lapped_transform(size: int) -> Tensor:
    """The modulated lapped transform, (size, 2 * size); Malvar, IEEE TASSP 1990."""
    n = torch.arange(2 * size, dtype=torch.float64)
    k = torch.arange(size, dtype=torch.float64)[:, None]
    window = torch.sin(math.pi * (n + 0.5) / (2 * size)) * math.sqrt(2 / size)
    return (window * torch.cos(math.pi / size * (n + 0.5 + size / 2) * (k + 0.5))).float()


def block_weight(filters: Tensor) -> Tensor:
    """32x32 filters (C, 3, 32, 32) as a 2x2 convolution over 16x16 blocks (C, 768, 2, 2)."""
    c = filters.shape[0]
    blocks = filters.reshape(c, 3, 2, FACTOR, 2, FACTOR).permute(0, 1, 3, 5, 2, 4)
    return blocks.reshape(c, 3 * FACTOR * FACTOR, 2, 2).contiguous()


@torch.no_grad()
def set_linear(model: Model, analysis: Tensor, synthesis: Tensor) -> None:
    """Linear paths from analysis and synthesis filters, both (C, 3, 32, 32)."""
    model.autoencoder.encoder.linear.weight.copy_(block_weight(analysis))
    # A transposed convolution is a convolution with its filter turned by half a circle.
    turned = block_weight(synthesis).flip(2, 3).transpose(0, 1)
    model.autoencoder.decoder.linear.weight.copy_(turned)


@torch.no_grad()
def initialise(model: Model, photos: list[np.ndarray], rng: random.Random) -> None:
    """Linear paths from the principal components of lapped-transform coefficients."""
    basis = lapped_transform(FACTOR)
    images = data.crops(photos, 600, 128, rng)
    windows = F.pad(images, (8,) * 4, mode="reflect").unfold(2, 32, 16).unfold(3, 32, 16)
    coefficients = torch.einsum("in,brhwnm,jm->bhwrij", basis, windows, basis)
    flat = coefficients.reshape(-1, 3 * FACTOR * FACTOR)
    _, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    components = vectors[:, -CHANNELS:].flip(1).reshape(3, FACTOR, FACTOR, CHANNELS)
    filters = torch.einsum("rijc,in,jm->crnm", components, basis, basis)
    # Latents of about unit variance: the root mean square of the components.  Measured.
    set_linear(model, filters * 5, filters / 5)
    encoder, decoder = model.autoencoder.encoder, model.autoencoder.decoder
    for layer in (encoder.leave, decoder.leave):
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    nn.init.normal_(encoder.leave.weight, 0, 1e-3)
    nn.init.zeros_(torch.as_tensor(encoder.linear.bias))
    model.autoencoder.gain.coefficients[0] = -1.2
    model.autoencoder.gain.coefficients[1] = 4.5


@torch.no_grad()
def score(model: Model, photos: list[np.ndarray], rates: list[float]) -> str:
    """Bits per pixel (estimated), PSNR and SSIMULACRA2 on whole photos, hard rounding."""
    out = []
    for value in rates:
        rows = []
        for photo in photos:
            height, width = (n // 32 * 32 for n in photo.shape[:2])
            image = data.to_tensor(photo[:height, :width])
            rate = torch.tensor([value])
            reconstruction, bpp = model(image, rate, hard=True)
            reconstruction = torch.round(reconstruction.clamp(-0.5, 0.5) * 255) / 255
            mse = ((reconstruction - image) ** 2).mean().item()
            rows.append(
                (bpp.item(), -10 * math.log10(mse), ssimulacra2(reconstruction, image).item())
            )
        out.append("{:.3f} {:.2f} {:.1f}".format(*np.mean(rows, 0)))
    return " | ".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="checkpoint, log and weights")
    parser.add_argument("--minutes", type=float, required=True, help="length of the whole run")
    parser.add_argument("--warm-start", help="averaged weights of another run, or: shipped")
    parser.add_argument("--crop", type=int, nargs="+", default=[128], help="one is drawn per step")
    parser.add_argument("--perceptual", type=float, default=0.0, help="share of SSIMULACRA2")
    parser.add_argument("--hard", action="store_true", help="round; train decoder and prior only")
    add_options(parser, learning_rate=6e-4, flat=0.3)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    options.run.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    photos = data.load(photo_paths(options.photos, held_out=False))
    held_out = data.load(photo_paths(options.photos, held_out=True))[::3]
    model = Model()
    if options.warm_start:
        weights = shipped() if options.warm_start == "shipped" else load_file(options.warm_start)
        model.load_state_dict({k: v.float() for k, v in weights.items()})
    elif not (options.run / "checkpoint.pt").exists():
        torch.manual_seed(0)
        initialise(model, photos, rng)
    model = channels_last(model.to(options.device))
    run = Run(model, options, rng)

    def report() -> None:
        averaged = Model()
        averaged.load_state_dict({k: v.float().cpu() for k, v in run.mean.items()})
        run.report(score(averaged, held_out, [0.2, 0.35, 0.5, 0.7, 1.0]))
        half = {k: v.half().cpu().contiguous() for k, v in run.mean.items()}
        save_file(half, options.run / "averaged.safetensors")

    while run.unfinished:
        run.begin()
        crop = rng.choice(options.crop)
        # As many pixels in a step whatever the crop, within reason for small ones.
        batch = min(max(BATCH * 128**2 // crop**2, 1), 4 * BATCH)
        images = data.crops(photos, batch, crop, rng).to(options.device)
        # Most often where a few kilobytes are: the mode is near 0.15 bits per pixel.
        rate = torch.tensor([rng.triangular(0, 1, 0.35) for _ in range(batch)])
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            loss = loss_of(
                model,
                images,
                rate.to(images.device),
                hard=options.hard,
                perceptual=options.perceptual,
            )
        if run.descend(loss):
            report()
    report()


if __name__ == "__main__":
    main()
