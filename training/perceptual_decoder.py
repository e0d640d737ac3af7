"""Train `mini-perceptual`, a second decoder of mini's latents, which looks more real at low rates.

    python -m training.perceptual_decoder --packs PACKS --run DIR --minutes 25

The encoder, the gain and the prior are mini's and stay as they are, so files do not change.  They
come from the package, or from ``--state``, the averaged weights of a run of `training.mini.train`.
The decoder begins as mini's decoder.  If the run has a checkpoint, it goes on from there.
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
from pillow_sdz.models.mini.network import Autoencoder, Decoder
from pillow_sdz.models.mini.shape import BASE, FACTOR
from pillow_sdz.models.ssimulacra2 import ssimulacra2
from pillow_sdz.weights import MINI
from training.features import Classifier
from training.mini.data import Crops, Photo, to_tensor
from training.mini.eight_bits import round_blocks
from training.mini.model import TAIL_FROM, distortion, distortion_weight
from training.mini.train import PIXELS, scored_photos
from training.run import Run, add_options, autocast

# Places on the rate axis that are scored: about 0.08, 0.15, 0.31 and 1.24 bits per pixel.
SCORED = (0.1, 0.25, 0.4, 0.7)
# The losses for realism fade between these places, about 0.3 and 0.8 bits per pixel.  Above them,
# only mini's own losses are left, because mini's decoder leaves little blur there.  Chosen.
FADES_FROM, FADES_TO = 0.4, 0.6
HIGH = 0.2  # share of crops from FADES_FROM on, so that the decoder keeps high rates.  Chosen.
MINI_SSIMULACRA2 = 0.3  # the share of SSIMULACRA2 in mini's loss
SIDE = 32  # pixels along a side of the windows for statistics; two latents.  Chosen.
# The share of mini's decoder in the weights that are written.  Interpolated weights trade realism
# for fidelity without steps (Wang et al., "ESRGAN", 2018).  Chosen from the table in
# training/README.md.
FIDELITY = 0.2
OUTPUT = "mini_perceptual.safetensors"
OF_MINI = "linear.weight"  # the linear path is mini's, and is not written again
CELL = 4  # pixels along a side that the decoder's last convolution makes of one position


@dataclass(frozen=True)
class Shares:
    """The weights of the parts of the decoder's loss, from trials (see training/README.md)."""

    anchor: float = 1.0  # the error as mini's loss has it
    ssimulacra2: float = 1.5
    features: float = 0.35
    statistics: float = 0.6
    weave: float = 0.5
    adversarial: float = 0.2


class Discriminator(nn.Module):
    """Images (B, 3, H, W) and base latents (B, BASE, H/16, W/16) to logits (B, 1, H/8, W/8).

    It also sees the latents, so it asks for textures that belong to them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.condition = spectral_norm(nn.Conv2d(BASE, 32, 1))
        self.at2 = spectral_norm(nn.Conv2d(3, 48, 4, 2, 1))
        self.at4 = spectral_norm(nn.Conv2d(48, 96, 4, 2, 1))
        self.at8 = spectral_norm(nn.Conv2d(96, 128, 4, 2, 1))
        self.joint = spectral_norm(nn.Conv2d(128 + 32, 128, 3, 1, 1))
        self.leave = nn.Conv2d(128, 1, 3, 1, 1)  # not normalised, so logits have no limit

    def forward(self, images: Tensor, latents: Tensor) -> Tensor:
        condition = F.interpolate(self.condition(latents), scale_factor=2)
        x = F.leaky_relu(self.at2(images), 0.2)
        x = F.leaky_relu(self.at4(x), 0.2)
        x = F.leaky_relu(self.at8(x), 0.2)
        x = F.leaky_relu(self.joint(torch.cat([x, condition], dim=1)), 0.2)
        logits: Tensor = self.leave(x).float()
        return logits


class Players(nn.Module):
    """The decoder and its discriminator, which one optimizer trains in the same step."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder()
        # The linear path is not trained: realism is the work of the CNN.  Adam's steps would be
        # large beside these small weights, and harm high rates (training.mini.train.SLOWER).
        self.decoder.linear.requires_grad_(False)
        self.discriminator = Discriminator()


def rates(count: int, rng: random.Random) -> Tensor:
    """Random places on the rate axis (count, 1, 1, 1), most for 0.06 to 0.4 bits per pixel."""
    low, high = (0, 0.5, 0.2), (FADES_FROM, 1, FADES_FROM)
    places = [rng.triangular(*(high if rng.random() < HIGH else low)) for _ in range(count)]
    return torch.tensor(places).view(count, 1, 1, 1)


def coded(autoencoder: Autoencoder, images: Tensor, rate: Tensor) -> Tensor:
    """The latents of these images after coding, in the encoder's units."""
    gain = autoencoder.gain(rate, 2, *(n // FACTOR for n in images.shape[2:]))
    latents: Tensor = torch.round(autoencoder.encoder(images, rate) * gain) / gain
    latents[:, BASE:] *= rate >= TAIL_FROM
    return latents


def pointwise(features: list[Tensor], originals: list[Tensor]) -> Tensor:
    """Distances (B,) of feature vectors of length 1, position by position, as in LPIPS."""
    total = torch.zeros(len(features[0]), device=features[0].device)
    for a, b in zip(features, originals, strict=True):
        a, b = (F.normalize(v.float(), dim=1) for v in (a, b))
        total = total + ((a - b) ** 2).sum(1).mean((1, 2))
    return total / len(features)


def details(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) to 2x2 Haar details of luma and two chroma, (B, 9, H - 1, W - 1).

    A classifier that begins with a stride of 2 sees these only in part.
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

    This is a Wasserstein distance of Gaussians, so a texture need not lie at the same place as in
    the original (Qiu, Ballé et al., "Wasserstein distortion: unifying fidelity and realism", 2024).
    It is relative to the deviations there, because busy textures hide differences.
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
        # The floor, a tenth of the feature's variance in the batch, is for flat windows.  Chosen.
        floor = 0.1 * b.float().var((0, 2, 3), keepdim=True) + 1e-6
        deviations = torch.sqrt(variance_a + floor) - torch.sqrt(variance_b + floor)
        distance = ((mean_a - mean_b) ** 2 + deviations**2) / (variance_a + variance_b + floor)
        total = total + distance.mean((1, 2, 3))
    return total / len(features)


def weave(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Energy (B,) of the error's pattern with a period of CELL pixels, relative to the details.

    The decoder's last layer writes cells of pixels.  It makes grain most easily by giving all cells
    the same pattern, and classifiers prefer such grain to none.  This loss prevents it.
    """
    b, c, h, w = images.shape
    windows, count = (h // SIDE, w // SIDE), SIDE // CELL
    error = (reconstruction - images).reshape(
        b, c, windows[0], count, CELL, windows[1], count, CELL
    )
    repeated = error.mean((3, 6)).var((3, 5), correction=0)
    details = images - F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    masking = F.avg_pool2d(details**2, SIDE) + 1 / 255**2  # at least a grey level
    return (repeated / masking).mean((1, 2, 3))


def appearance(
    classifier: Classifier, reconstruction: Tensor, images: Tensor, shares: Shares
) -> Tensor:
    """Distances (B,) of the pictures' features in the classifier, and of their statistics."""
    # The place is random, so the decoder cannot learn the positions of the classifier's strides.
    top, left = (int(v) for v in torch.randint(0, 16, (2,)))
    size = images.shape[2] - 16
    a, b = (v[..., top : top + size, left : left + size] for v in (reconstruction, images))
    features, originals = classifier(a), classifier(b)
    # Features at 1/16 are left out of the statistics: a window has too few of them.
    textures, textures_b = [details(a), *features[:3]], [details(b), *originals[:3]]
    return shares.features * pointwise(features, originals) + shares.statistics * statistics(
        textures, textures_b, [1, 2, 4, 8]
    )


def contest(
    discriminator: Discriminator, reconstruction: Tensor, images: Tensor, latents: Tensor
) -> tuple[Tensor, Tensor]:
    """The decoder's losses (B,) and the discriminator's.

    Neither part gets a gradient from the loss of the other.  Each position is compared with the
    same position of the original.  These are the relativistic pairs of Jolicoeur-Martineau, "The
    relativistic discriminator", ICLR 2019.
    """
    real, fake = (discriminator(v, latents) for v in (images, reconstruction.detach()))
    discriminator.requires_grad_(False)
    logits = discriminator(reconstruction, latents)
    discriminator.requires_grad_(True)
    doubt, opposed = (F.softplus(v).mean((1, 2, 3)) for v in (real.detach() - logits, fake - real))
    return doubt, opposed


def loss_of(
    players: Players,
    autoencoder: Autoencoder,
    classifier: Classifier,
    images: Tensor,
    rate: Tensor,
    shares: Shares,
) -> Tensor:
    """The sum of both players' losses for images (B, 3, H, W).

    H and W are multiples of 32, and at least 64.

    ``rate`` has the place of each image on the rate axis, (B, 1, 1, 1).
    """
    with torch.no_grad():
        latents = coded(autoencoder, images, rate)
    reconstruction = players.decoder(latents, rate).float()
    doubt, opposed = contest(players.discriminator, reconstruction, images, latents[:, :BASE])
    looks = appearance(classifier, reconstruction, images, shares)
    looks = looks + shares.weave * weave(reconstruction, images) + shares.adversarial * doubt
    place = rate.flatten()
    strength = ((FADES_TO - place) / (FADES_TO - FADES_FROM)).clamp(0, 1)
    loss = strength * looks
    # SSIMULACRA2 sees half of the batch, and not in bfloat16, as in training.mini.
    half = slice((len(images) + 1) // 2)
    with torch.autocast(images.device.type, enabled=False):
        distance = 1 - ssimulacra2(reconstruction[half], images[half]) / 100
    share = MINI_SSIMULACRA2 + strength[half] * (shares.ssimulacra2 - MINI_SSIMULACRA2)
    loss[half] += 2 * 0.35 * share * distance
    # This is as in training.mini, too.  It keeps the shares of the gradient about equal at all
    # rates.
    weight = distortion_weight(place)
    loss = (weight / 9e-4) ** 0.47 * loss
    loss = loss + shares.anchor * weight * distortion(reconstruction, images).mean((1, 2, 3))
    balanced: Tensor = (loss / weight.sqrt()).mean() * 0.05 + (strength * opposed).mean()
    return balanced


@torch.inference_mode()
def score(
    decoder: Decoder, autoencoder: Autoencoder, photos: list[Photo], judge: FeatureDistance
) -> str:
    """PSNR, SSIMULACRA2 and the feature distance on photos, at each place of SCORED."""
    out = []
    for place in SCORED:
        rows = []
        rate = torch.full((1, 1, 1, 1), place)
        for photo in photos:
            image = to_tensor(photo)
            decoded = decoder(coded(autoencoder, image, rate), rate).clamp(-0.5, 0.5)
            decoded = torch.round((decoded + 0.5) * 255) / 255 - 0.5
            psnr = -10 * torch.log10(((decoded - image) ** 2).mean())
            values = (psnr, ssimulacra2(decoded, image), judge(decoded, image))
            rows.append([v.item() for v in values])
        out.append("{:.2f} {:.1f} {:.4f}".format(*np.mean(rows, 0)))
    return " | ".join(out)


def loaded(path: Path) -> Autoencoder:
    """The autoencoder of `mini`'s file, or of a run's averaged weights."""
    tensors, names = load_file(path), Autoencoder().state_dict()
    autoencoder = Autoencoder().requires_grad_(False)
    autoencoder.load_state_dict({k: tensors[f"autoencoder.{k}"].float() for k in names})
    return autoencoder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--packs", type=Path, required=True, help="of training.mini.data")
    parser.add_argument("--run", type=Path, required=True, help="checkpoint, log and weights")
    parser.add_argument("--minutes", type=float, required=True, help="length of the whole run")
    parser.add_argument("--state", type=Path, default=MINI.path, help="mini's weights")
    parser.add_argument(
        "--warm-start", type=Path, help="a decoder to begin with, perhaps with its discriminator"
    )
    parser.add_argument(
        "--crop", type=int, nargs="+", default=[128, 256], help="sides; each step draws one"
    )
    for field in fields(Shares):
        parser.add_argument(f"--{field.name}", type=float, default=field.default, help="share")
    add_options(parser, learning_rate=3e-4, flat=0.3)
    options = parser.parse_args()
    shares = Shares(**{field.name: getattr(options, field.name) for field in fields(Shares)})

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    options.run.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    crops = Crops([options.packs / "train"], rng)
    held_out = scored_photos(options.packs / "validation")
    encoder = loaded(options.state)  # for the reports
    autoencoder = loaded(options.state)
    players = Players()
    players.decoder.load_state_dict(autoencoder.decoder.state_dict())
    if options.warm_start:
        trained = {k: v.float() for k, v in load_file(options.warm_start).items()}
        players.load_state_dict(players.state_dict() | trained)
    round_blocks(autoencoder)
    round_blocks(players)
    classifier = Classifier()
    for module in (autoencoder, players, classifier):
        module.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = Run(players, options, rng)
    judge = FeatureDistance()

    def report() -> None:
        mixed = {
            k: torch.lerp(run.mean[f"decoder.{k}"].cpu(), v, FIDELITY).half()
            for k, v in encoder.decoder.state_dict().items()
        }
        decoder = Decoder()
        decoder.load_state_dict(mixed)
        run.report(score(decoder, encoder, held_out, judge))
        written = {f"decoder.{k}": v.contiguous() for k, v in mixed.items() if k != OF_MINI}
        save_file(written, options.run / OUTPUT)

    if not run.step:
        report()  # the score of the decoder that the run begins with
    while run.unfinished:
        run.begin()
        crop = rng.choice(options.crop)
        batch = max(PIXELS // crop**2, 1)
        images = crops.batch(batch, crop).to(options.device)
        rate = rates(batch, rng).to(options.device)
        with autocast(images.device):
            loss = loss_of(players, autoencoder, classifier, images, rate, shares)
        if run.descend(loss):
            report()
    report()


if __name__ == "__main__":
    main()
