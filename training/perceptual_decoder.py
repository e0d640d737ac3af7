"""Train `mini-perceptual`: a second decoder of mini's latents, for what looks real at low rates.

    python -m training.perceptual_decoder --photos DIR --run DIR --minutes 55

The encoder, the gain and the prior stay as they are and the decoder starts as mini's, so the
files do not change.  Goes on from the run's checkpoint if there is one.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from evaluation.feature_distance import FeatureDistance
from evaluation.photos import photo_paths
from pillow_sdz.models.mini.network import Autoencoder, Decoder
from pillow_sdz.models.mini.shape import CHANNELS
from pillow_sdz.models.ssimulacra2 import ssimulacra2
from training import data
from training.features import Classifier
from training.mini import BATCH, distortion_weight, shipped
from training.run import Run, add_options

RATES = (0.1, 0.2, 0.35, 0.5)  # of the reports: about 0.08, 0.11, 0.19 and 0.32 bits per pixel
SIDE = 32  # pixels of a window in which statistics are compared; two latents.  Chosen.
# Of mini's decoder in the weights that are written: interpolated weights trade realism for
# fidelity continuously (Wang et al., "ESRGAN", 2018).  From the table in training/README.md.
FIDELITY = 0.2
OUTPUT = "mini_perceptual.safetensors"
CELL = 4  # pixels that the decoder's last convolution makes of one position


@dataclass(frozen=True)
class Shares:
    """What weighs how much in the decoder's loss; of trials, see training/README.md."""

    anchor: float = 1.0  # squared error, in mini's measure
    ssimulacra2: float = 1.5  # mini's is 0.35
    features: float = 0.35
    statistics: float = 0.6
    weave: float = 0.5
    adversarial: float = 0.2


class Discriminator(nn.Module):
    """Images (B, 3, H, W) and their latents (B, C, H/16, W/16) to logits (B, 1, H/8, W/8).

    It is told the latents, so that what it asks for is a texture that belongs to them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.condition = spectral_norm(nn.Conv2d(CHANNELS, 32, 1))
        self.at2 = spectral_norm(nn.Conv2d(3, 48, 4, 2, 1))
        self.at4 = spectral_norm(nn.Conv2d(48, 96, 4, 2, 1))
        self.at8 = spectral_norm(nn.Conv2d(96, 128, 4, 2, 1))
        self.joint = spectral_norm(nn.Conv2d(128 + 32, 128, 3, 1, 1))
        self.leave = nn.Conv2d(128, 1, 3, 1, 1)  # free to be as sure as it is

    def forward(self, images: Tensor, latents: Tensor) -> Tensor:
        condition = F.interpolate(self.condition(latents), scale_factor=2)
        x = F.leaky_relu(self.at2(images), 0.2)
        x = F.leaky_relu(self.at4(x), 0.2)
        x = F.leaky_relu(self.at8(x), 0.2)
        x = F.leaky_relu(self.joint(torch.cat([x, condition], dim=1)), 0.2)
        logits: Tensor = self.leave(x).float()
        return logits


class Players(nn.Module):
    """What is trained: the decoder and its discriminator, in one step of one optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder()
        self.discriminator = Discriminator()


def pointwise(features: list[Tensor], originals: list[Tensor]) -> Tensor:
    """Distances (B,) of feature vectors of length 1, position by position, as in LPIPS."""
    total = torch.zeros(len(features[0]), device=features[0].device)
    for a, b in zip(features, originals, strict=True):
        a, b = (F.normalize(v.float(), dim=1) for v in (a, b))
        total = total + ((a - b) ** 2).sum(1).mean((1, 2))
    return total / len(features)


def details(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) to 2x2 Haar details of luma and two chroma, (B, 9, H - 1, W - 1).

    What a classifier that begins with a stride of 2 is half blind to.
    """
    red, green, blue = images.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue  # BT.601
    x = torch.stack([luma, red - luma, blue - luma], dim=1)
    top, bottom = x[..., :-1, :], x[..., 1:, :]
    low, high = top + bottom, top - bottom
    bands = [high[..., :-1] + high[..., 1:]]
    bands += [v[..., :-1] - v[..., 1:] for v in (low, high)]
    return torch.cat(bands, dim=1)


def statistics(features: list[Tensor], originals: list[Tensor], strides: list[int]) -> Tensor:
    """Distances (B,) of each feature's mean and deviation in windows of SIDE pixels.

    A Wasserstein distance of Gaussians: a texture may lie elsewhere than in the original
    (Qiu, Ballé et al., "Wasserstein distortion: unifying fidelity and realism", 2024).  It is
    relative to the deviations there, since what is busy masks.
    """
    total = torch.zeros(len(features[0]), device=features[0].device)
    for a, b, stride in zip(features, originals, strides, strict=True):
        side = SIDE // stride
        moments = []
        for x in (a.float(), b.float()):
            mean = F.avg_pool2d(x, side, side // 2)
            square = F.avg_pool2d(x * x, side, side // 2)
            moments.append((mean, (square - mean * mean).clamp_min(0)))
        (mean_a, variance_a), (mean_b, variance_b) = moments
        # A tenth of the feature's variance in the batch stays where there is none.  Chosen.
        floor = 0.1 * b.float().var((0, 2, 3), keepdim=True) + 1e-6
        deviations = torch.sqrt(variance_a + floor) - torch.sqrt(variance_b + floor)
        distance = ((mean_a - mean_b) ** 2 + deviations**2) / (variance_a + variance_b + floor)
        total = total + distance.mean((1, 2, 3))
    return total / len(features)


def weave(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Energy (B,) of what the error repeats every CELL pixels, relative to the original's details.

    A decoder whose last layer writes cells of pixels finds grain there cheapest that is the same
    in each of them, and classifiers like it better than none.
    """
    b, c, h, w = images.shape
    windows, count = (h // SIDE, w // SIDE), SIDE // CELL
    error = (reconstruction - images).reshape(
        b, c, windows[0], count, CELL, windows[1], count, CELL
    )
    repeated = error.mean((3, 6)).var((3, 5), correction=0)
    details = images - F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    masking = F.avg_pool2d(details**2, SIDE) + 1 / 255**2  # a grey level is seen anywhere
    return (repeated / masking).mean((1, 2, 3))


def appearance(
    classifier: Classifier, reconstruction: Tensor, images: Tensor, shares: Shares
) -> Tensor:
    """How different they look to the classifier (B,), by its features and their statistics."""
    # At a random place, lest the decoder learn the phases of a network with strides.
    top, left = (int(v) for v in torch.randint(0, 16, (2,)))
    size = images.shape[2] - 16
    a, b = (v[..., top : top + size, left : left + size] for v in (reconstruction, images))
    features, originals = classifier(a), classifier(b)
    # The windows are too few samples of what the classifier sees at 1/16.
    textures, textures_b = [details(a), *features[:3]], [details(b), *originals[:3]]
    return shares.features * pointwise(features, originals) + shares.statistics * statistics(
        textures, textures_b, [1, 2, 4, 8]
    )


def contest(
    discriminator: Discriminator, reconstruction: Tensor, images: Tensor, latents: Tensor
) -> tuple[Tensor, Tensor]:
    """The decoder's loss (B,) and the discriminator's; neither has a gradient from the other's.

    Each position is compared with the same one of the original: the relativistic pairs of
    Jolicoeur-Martineau, "The relativistic discriminator", ICLR 2019.
    """
    real, fake = (discriminator(v, latents) for v in (images, reconstruction.detach()))
    discriminator.requires_grad_(False)
    logits = discriminator(reconstruction, latents)
    discriminator.requires_grad_(True)
    return F.softplus(real.detach() - logits).mean((1, 2, 3)), F.softplus(fake - real).mean()


def loss_of(
    players: Players,
    autoencoder: Autoencoder,
    classifier: Classifier,
    images: Tensor,
    rate: Tensor,
    shares: Shares,
) -> Tensor:
    """The sum of both players' losses; images (B, 3, H, W), H and W multiples of 32 from 64."""
    with torch.no_grad():
        gain = autoencoder.gain(rate)
        latents = torch.round(autoencoder.encoder(images) * gain) / gain
    reconstruction = players.decoder(latents, rate).float()
    doubt, opposed = contest(players.discriminator, reconstruction, images, latents)
    loss = appearance(classifier, reconstruction, images, shares)
    loss = loss + shares.weave * weave(reconstruction, images) + shares.adversarial * doubt
    # As training.mini: on half of the batch, not in bfloat16.
    half = slice(len(images) // 2)
    with torch.autocast(images.device.type, enabled=False):
        distance = 1 - ssimulacra2(reconstruction[half], images[half]) / 100
    loss[half] += 2 * shares.ssimulacra2 * 0.35 * distance
    # And as there: keeps the shares of the slope near constant over the rates.
    weight = distortion_weight(rate)
    loss = (weight / 9e-4) ** 0.47 * loss
    squared = ((reconstruction - images) ** 2).mean((1, 2, 3)) * 255**2
    loss = loss + shares.anchor * weight * squared
    balanced: Tensor = (loss / weight.sqrt()).mean() * 0.05 + opposed
    return balanced


@torch.inference_mode()
def score(
    decoder: Decoder, autoencoder: Autoencoder, photos: list[np.ndarray], judge: FeatureDistance
) -> str:
    """PSNR, SSIMULACRA2 and the judge's distance on whole photos, at each of RATES."""
    out = []
    for value in RATES:
        rows = []
        rate = torch.tensor([value])
        gain = autoencoder.gain(rate)
        for photo in photos:
            height, width = (n // 16 * 16 for n in photo.shape[:2])
            image = data.to_tensor(photo[:height, :width])
            latents = torch.round(autoencoder.encoder(image) * gain) / gain
            decoded = decoder(latents, rate).clamp(-0.5, 0.5)
            decoded = torch.round((decoded + 0.5) * 255) / 255 - 0.5
            psnr = -10 * torch.log10(((decoded - image) ** 2).mean())
            values = (psnr, ssimulacra2(decoded, image), judge(decoded, image))
            rows.append([v.item() for v in values])
        out.append("{:.2f} {:.1f} {:.4f}".format(*np.mean(rows, 0)))
    return " | ".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="checkpoint, log and weights")
    parser.add_argument("--minutes", type=float, required=True, help="length of the whole run")
    parser.add_argument("--autoencoder", type=Path, help="averaged weights of a run of mini")
    parser.add_argument("--warm-start", type=Path, help="a decoder to begin with, not mini's")
    parser.add_argument("--crop", type=int, nargs="+", default=[128], help="one is drawn per step")
    for field in fields(Shares):
        parser.add_argument(f"--{field.name}", type=float, default=field.default, help="share")
    add_options(parser, learning_rate=3e-4, flat=0.3)
    options = parser.parse_args()
    shares = Shares(**{field.name: getattr(options, field.name) for field in fields(Shares)})

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    options.run.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    photos = data.load(photo_paths(options.photos, held_out=False))
    held_out = data.load(photo_paths(options.photos, held_out=True))[::3]
    weights = load_file(options.autoencoder) if options.autoencoder else shipped()
    own = {k: v.float() for k, v in weights.items() if k.startswith("autoencoder.")}
    autoencoder = Autoencoder()
    autoencoder.load_state_dict({k.removeprefix("autoencoder."): v for k, v in own.items()})
    players = Players()
    players.decoder.load_state_dict(autoencoder.decoder.state_dict())
    if options.warm_start:
        trained = load_file(options.warm_start)
        players.decoder.load_state_dict({k.removeprefix("decoder."): v for k, v in trained.items()})
    classifier = Classifier()
    for module in (autoencoder.requires_grad_(False), players, classifier):
        module.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = Run(players, options, rng)
    judge = FeatureDistance()

    def report() -> None:
        encoder = Autoencoder()
        encoder.load_state_dict({k: v.cpu() for k, v in autoencoder.state_dict().items()})
        mixed = {
            f"decoder.{k}": torch.lerp(run.mean[f"decoder.{k}"].cpu(), v, FIDELITY).half()
            for k, v in encoder.decoder.state_dict().items()
        }
        decoder = Decoder()
        decoder.load_state_dict({k.removeprefix("decoder."): v for k, v in mixed.items()})
        run.report(score(decoder, encoder, held_out, judge))
        save_file({k: v.contiguous() for k, v in mixed.items()}, options.run / OUTPUT)

    while run.unfinished:
        run.begin()
        crop = rng.choice(options.crop)
        batch = max(BATCH * 128**2 // crop**2, 1)
        images = data.crops(photos, batch, crop, rng).to(options.device)
        # Two thirds of them in the lower half of the axis, most near 0.1 bits per pixel.
        rate = torch.tensor([rng.triangular(0, 1, 0.15) for _ in range(batch)])
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            loss = loss_of(
                players, autoencoder, classifier, images, rate.to(options.device), shares
            )
        if run.descend(loss):
            report()
    report()


if __name__ == "__main__":
    main()
