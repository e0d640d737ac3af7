"""Train the CNN of `mini-half`, which makes decoded pictures twice as wide and high.

    python -m training.half --packs PACKS --run DIR --minutes 30

It learns from crops of photos at half of their size, as the shipped `mini` encodes and decodes
them.  If the run has a checkpoint, it goes on from there.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from pillow_sdz import catalogue, models
from pillow_sdz.codings.rate_axis import LAST
from pillow_sdz.models.mini import Mini
from pillow_sdz.models.mini_half import AROUND, DEPTH, WIDTH, Halved
from pillow_sdz.models.ssimulacra2 import ssimulacra2
from training.mini.data import Crops, Photo, corner, photos, to_tensor
from training.run import Run, add_options

OUTPUT = "mini_half.safetensors"
BATCH, SIDE = 3, 192  # crops in a step, and pixels along a side of a crop.  Chosen.
# Qualities of the crops: the lowest, the highest, and the likeliest one.  Chosen: target sizes for
# which `mini-half` is taken give it qualities of 10 to 70 (docs/measurements.md#catalogue).
QUALITIES = (3, 75, 35)
SCORED = (10, 25, 40, 60)  # qualities of the report
POINTS = 0.1  # the decibels that a point of SSIMULACRA2 is worth.  Chosen.


class Enlarger(nn.Module):
    """Pictures (B, 3, h, w) and places on the rate axis (B, 1, 1, 1) to (B, 3, 2h, 2w).

    The CNN sees the differences of pixels from the mean around them.  It would see little of them
    beside the picture's colours.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(13, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.leave = nn.Conv2d(WIDTH, 48, 3, padding=1)
        with torch.no_grad():
            self.enter.weight[:, :12] *= 8  # the differences are small
            self.leave.weight.zero_()
            torch.as_tensor(self.leave.bias).zero_()

    def forward(self, pictures: Tensor, places: Tensor) -> Tensor:
        return twice(pictures) + self.added(pictures, places)

    def added(self, pictures: Tensor, places: Tensor) -> Tensor:
        """What the CNN adds to the filter's pictures."""
        y = F.pixel_unshuffle(pictures - around(pictures), 2)
        y = self.enter(torch.cat([y, places.expand(-1, 1, *y.shape[2:])], 1))
        for block in self.blocks:
            y = block(y)
        return F.pixel_shuffle(self.leave(F.relu(y)), 4)


class Block(nn.Module):
    """y + second(relu(first(relu(y))))."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.second = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        with torch.no_grad():
            self.second.weight *= 0.3  # chosen: at first, a block changes little

    def forward(self, y: Tensor) -> Tensor:
        found: Tensor = y + self.second(F.relu(self.first(F.relu(y))))
        return found


def around(pictures: Tensor) -> Tensor:
    """The means of the squares around all pixels."""
    half = AROUND // 2
    return F.avg_pool2d(F.pad(pictures, (half,) * 4, mode="replicate"), AROUND, 1)


def twice(pictures: Tensor) -> Tensor:
    """Pictures at twice their size, by the filter alone."""
    return F.interpolate(pictures, scale_factor=2, mode="bicubic", antialias=True)


class Coded:
    """`mini`, which encodes and decodes the halves of pictures."""

    def __init__(self) -> None:
        mini = models.load(catalogue.MINI)
        assert isinstance(mini, Mini)
        self._mini = mini

    def __call__(self, pixels: Photo, quality: float) -> tuple[Tensor, float]:
        """The decoded half (1, 3, H/2, W/2), and its place on the rate axis."""
        hundredths = round(100 * quality)
        gain = self._mini.gain(hundredths)
        latents = np.rint(self._mini.encode(Halved(pixels), hundredths) * gain) / gain
        height, width = (n // 2 for n in pixels.shape[:2])
        shown: NDArray[np.uint8] = np.empty((height, width, 3), np.uint8)
        for place, decoded in self._mini.decode(latents, hundredths):
            shown[place] = decoded
        return to_tensor(shown), float(self._mini.axis.places(hundredths)) / LAST


def decibels(pictures: Tensor, originals: Tensor) -> Tensor:
    """The error of each picture in decibels, without its sign: PSNR has the opposite one."""
    return 10 * torch.log10(((pictures - originals) ** 2).mean((1, 2, 3)) + 1e-6)


def loss_of(pictures: Tensor, originals: Tensor) -> Tensor:
    """The mean of logarithms: so a picture that is coded badly counts as much as a good one."""
    points = ssimulacra2(pictures, originals)
    return decibels(pictures, originals).mean() - POINTS * points.mean()


@torch.no_grad()
def score(network: Enlarger, coded: Coded, held_out: list[Photo]) -> str:
    """PSNR and SSIMULACRA2 of the filter alone and of the network, at some qualities."""
    parts = []
    for quality in SCORED:
        rows = []
        for photo in held_out:
            half, place = coded(photo, quality)
            original = to_tensor(photo)
            for picture in (twice(half), network(half, torch.full((1, 1, 1, 1), place))):
                levels = ((picture.clamp(-0.5, 0.5) + 0.5) * 255).round() / 255 - 0.5
                rows += [-decibels(levels, original).item(), ssimulacra2(levels, original).item()]
        mean = np.reshape(rows, (-1, 4)).mean(0)
        parts.append("{:.2f} {:.1f} > {:.2f} {:.1f}".format(*mean))
    return " | ".join(parts)


def batch(coded: Coded, crops: Crops, rng: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    """Decoded halves, their places, and the originals."""
    originals = crops.batch(BATCH, SIDE)
    halves, places = [], []
    for original in originals:
        levels = ((original.permute(1, 2, 0) + 0.5) * 255).round().to(torch.uint8).numpy()
        low, high, likeliest = QUALITIES
        half, place = coded(np.ascontiguousarray(levels), rng.triangular(low, high, likeliest))
        halves.append(half)
        places.append(place)
    return torch.cat(halves), torch.tensor(places).view(-1, 1, 1, 1), originals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packs", type=Path, required=True, help="with train and validation")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="of training, in all")
    add_options(parser, learning_rate=1e-3, flat=0.3)
    options = parser.parse_args()
    options.run.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rng = random.Random(0)
    crops = Crops([options.packs / "train"], rng)
    held_out = [corner(photo, 640) for photo in photos(options.packs / "validation", 6, 640)]
    coded, network = Coded(), Enlarger()
    run = Run(network, options, rng)

    def report() -> None:
        """Score the averaged weights, and write them."""
        averaged = Enlarger()
        averaged.load_state_dict(run.mean)
        run.report(score(averaged, coded, held_out))
        tensors = {name: values.half().contiguous() for name, values in run.mean.items()}
        save_file(tensors, options.run / OUTPUT)

    while run.unfinished:
        run.begin()
        halves, places, originals = batch(coded, crops, rng)
        if run.descend(loss_of(network(halves, places), originals)):
            report()
    report()


if __name__ == "__main__":
    main()
