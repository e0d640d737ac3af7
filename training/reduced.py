"""Fit the heads of `mini`'s decoders for small pictures by least squares.

    python -m training.reduced --packs PACKS --output mini_reduced.safetensors

The targets are the full decoder's pictures of training photos, at random qualities, reduced by the
mean of pixels.  The command prints how far the results are from these pictures and from the reduced
originals, on held-out photos.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pillow_sdz import spaces, weights
from pillow_sdz.arrays import CELL
from pillow_sdz.codings.rate_axis import LAST
from pillow_sdz.models.mini import Mini, borders
from pillow_sdz.models.mini.network import Decoder, knots, spread
from pillow_sdz.models.mini.shape import BASE, CHANNELS, DECODERS, FACTOR, SHOWN, WIDTHS
from pillow_sdz.models.mini.tensors import reduced_gate, reduced_linear
from pillow_sdz.models.running import built
from training.mini.data import Photo, photos

SCALES = (2, 4, 8)
SIDE = 384  # of a crop, in pixels
RIDGE = 1e-3  # as a part of the inputs' mean square
QUALITIES = (1000, 3000, 6000, 9000)  # the qualities that are scored, in hundredths
SCORED = 16  # the number of photos that are scored


class Reducing(nn.Module):
    """Latents (B, C, h, w) and the rate at each cell to images (B, 3, 16h / scale, 16w / scale).

    The linear path is the decoder's, reduced.  `features` are the decoder's layers up to some
    block, or the base latents with a scale of 8.  The head replaces all layers after them.  The
    head's output is multiplied by the decoder's gate, reduced.
    """

    def __init__(self, decoder: Decoder, scale: int) -> None:
        super().__init__()
        self.scale, self.side = scale, FACTOR // scale  # the side of a latent, in pixels
        self.decoder = decoder
        linear = reduced_linear(decoder.linear.weight.detach().numpy(), scale)
        self.linear = nn.Conv2d(CHANNELS, len(linear), 2, padding=1, bias=False)
        self.linear.weight = nn.Parameter(torch.from_numpy(linear), requires_grad=False)
        gate = torch.from_numpy(reduced_gate(decoder.gate.weight.detach().numpy(), scale))
        self.gate = nn.Parameter(gate, requires_grad=False)
        self.blocks = DECODERS[scale][:2] if scale in DECODERS else (0, 0)
        width = WIDTHS[0] if self.blocks[1] else WIDTHS[1] if self.blocks[0] else BASE
        # Each place becomes 2x2 pixels.
        self.head = nn.Conv2d(width, 3 * 2**2, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(torch.as_tensor(self.head.bias))

    def forward(self, latents: Tensor, rate: Tensor) -> Tensor:
        seen = self.features(latents, rate)
        added = self.head(seen) * self.gates(rate, *seen.shape[2:])
        cut = self.side // 2
        image = F.pixel_shuffle(self.linear(latents), self.side)[..., cut:-cut, cut:-cut]
        for dim in (2, 3):
            factor = torch.from_numpy(borders.along(image.shape[dim], self.scale))
            image = image * (factor[:, None] if dim == 2 else factor)
        return image + F.pixel_shuffle(added, 2)

    def gates(self, rate: Tensor, height: int, width: int) -> Tensor:
        """The factors of the head's output at its (height, width) places."""
        gate = torch.einsum("bkhw,kc->bchw", knots(rate), self.gate)
        return spread(gate, CELL * self.side // 2, height, width)

    def features(self, latents: Tensor, rate: Tensor) -> Tensor:
        """The head's input."""
        at8, at4 = self.blocks
        if not at8:
            return latents[:, :BASE]
        decoder, (height, width) = self.decoder, latents.shape[2:]
        r16, r8, r4 = (
            spread(layer(knots(rate)), CELL * n, n * height, n * width)
            for layer, n in zip(decoder.rate, (1, 2, 4), strict=True)
        )
        y = decoder.at16(decoder.enter(latents) + r16)
        out: Tensor = decoder.at8[:at8](F.pixel_shuffle(decoder.up8(y), 2) + r8)
        if at4:
            out = decoder.at4[:at4](F.pixel_shuffle(decoder.up4(out), 2) + r4)
        return out


class Shown:
    """A crop of a photo: its quantised latents (1, C, h, w), their rate, and the original."""

    def __init__(self, mini: Mini, photo: Photo, quality: int) -> None:
        size = min(SIDE, *(n // FACTOR * FACTOR for n in photo.shape[:2]))
        left, top = (random.randint(0, n - size) for n in (photo.shape[1], photo.shape[0]))
        pixels = np.ascontiguousarray(photo[top : top + size, left : left + size])
        gain = mini.gain(quality)
        latents = np.rint(mini.encode(pixels, quality) * gain) / gain
        self.latents = torch.from_numpy(latents).permute(2, 0, 1)[None]
        self.original = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        self.rate = torch.full((1, 1, 1, 1), float(mini.axis.places(quality)) / LAST)

    def at(self, scale: int) -> Tensor:
        """The latents with zeros in the channels that a picture at 1/scale does not use."""
        known = self.latents.clone()
        known[:, SHOWN.get(scale, CHANNELS) :] = 0
        return known


def fit(mini: Mini, decoder: Decoder, photos: list[Photo]) -> dict[int, Reducing]:
    found = {scale: Reducing(decoder, scale) for scale in SCALES}
    squares: dict[int, Tensor] = defaultdict(lambda: torch.zeros(()))
    products: dict[int, Tensor] = defaultdict(lambda: torch.zeros(()))
    for photo in photos:
        quality = random.randint(spaces.LOWEST_QUALITY, spaces.HIGHEST_QUALITY)
        shown = Shown(mini, photo, quality)
        picture = decoder(shown.latents, shown.rate)
        for scale, network in found.items():
            latents = shown.at(scale)
            missing = F.avg_pool2d(picture, scale) - network(latents, shown.rate)
            gates = network.gates(shown.rate, 1, 1)
            targets = (F.pixel_unshuffle(missing, 2) / gates)[0].flatten(1).T
            seen = network.features(latents, shown.rate)
            patches = F.unfold(seen, 3, padding=1)[0].T
            # The gates of all outputs are about the same, so one weight serves for all.
            weight = gates.mean()
            inputs = weight * torch.cat([patches, torch.ones(len(patches), 1)], 1).double()
            squares[scale] = squares[scale] + inputs.T @ inputs
            products[scale] = products[scale] + inputs.T @ (weight * targets).double()
    for scale, network in found.items():
        ridge = RIDGE * squares[scale].diagonal().mean() * torch.eye(len(squares[scale]))
        solution = torch.linalg.solve(squares[scale] + ridge, products[scale]).float().T
        network.head.weight.copy_(solution[:, :-1].unflatten(1, (-1, 3, 3)))
        torch.as_tensor(network.head.bias).copy_(solution[:, -1])
    return found


def scores(
    mini: Mini, decoder: Decoder, fitted: dict[int, Reducing], photos: list[Photo]
) -> Iterator[tuple[int, int, list[float]]]:
    """Each quality and scale, with three values of PSNR of reduced pictures.

    They compare the heads' pictures with the decoder's, the heads' with the originals, and the
    decoder's with the originals.
    """
    for quality in QUALITIES:
        random.seed(0)
        found: dict[int, list[list[float]]] = defaultdict(list)
        for photo in photos:
            shown = Shown(mini, photo, quality)
            picture = _levels(decoder(shown.latents, shown.rate))
            for scale, network in fitted.items():
                out = _levels(network(shown.at(scale), shown.rate))
                truth, reduced = F.avg_pool2d(shown.original, scale), F.avg_pool2d(picture, scale)
                pairs = ((out, reduced), (out, truth), (reduced, truth))
                found[scale].append([_psnr(a, b) for a, b in pairs])
        for scale, values in found.items():
            yield quality, scale, np.mean(values, 0).tolist()


def _levels(image: Tensor) -> Tensor:
    return ((image + 0.5) * 255).round().clamp(0, 255)


def _psnr(a: Tensor, b: Tensor) -> float:
    return float(10 * torch.log10(255**2 / ((a - b) ** 2).mean().clamp_min(1e-6)))


def decoder_of(path: Path) -> Decoder:
    """The decoder of `mini`'s file."""
    name = "autoencoder.decoder."
    tensors = load_file(path)
    return built(
        Decoder, {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--packs", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=300, help="photos to fit to")
    parser.add_argument("--output", type=Path, default=weights.MINI_REDUCED.path)
    given = parser.parse_args()
    random.seed(0)
    mini, decoder = Mini(weights.MINI.path), decoder_of(weights.MINI.path)
    with torch.inference_mode():
        fitted = fit(mini, decoder, photos(given.packs / "train", given.limit))
        tensors = {
            f"{scale}.head.{name}": tensor.half().contiguous()
            for scale, network in fitted.items()
            for name, tensor in network.head.state_dict().items()
        }
        save_file(tensors, given.output)
        held_out = photos(given.packs / "validation", SCORED)
        for quality, scale, (to_decoder, to_original, decoders) in scores(
            mini, decoder, fitted, held_out
        ):
            print(
                f"quality {quality // 100}, 1/{scale}: {to_decoder:.1f} dB to the decoder's,"
                f" {to_original:.1f} to the original (the decoder's {decoders:.1f})"
            )


if __name__ == "__main__":
    main()
