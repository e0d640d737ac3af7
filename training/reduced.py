"""Fits the heads of `mini`'s decoders for small pictures by least squares.

    python -m training.reduced --images DIR --output mini_reduced.safetensors

The targets are the decoder's own pictures of training photos at random qualities, reduced by the
mean; it prints how far the heads are from them, and from the reduced originals, on photos held out.
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
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from evaluation.photos import photo_paths
from pillow_sdz import catalogue, models, options
from pillow_sdz.models.mini import Mini, reduced_linear
from pillow_sdz.models.mini.network import Decoder, rate_features, rate_of
from pillow_sdz.models.mini.shape import CHANNELS, DECODERS, FACTOR, WIDTHS
from pillow_sdz.models.running import built
from pillow_sdz.weights import MINI

SCALES = (2, 4, 8)
SIDE = 384  # of a crop, in pixels
RIDGE = 1e-3  # of the mean of the squares
QUALITIES = (1000, 3000, 6000, 9000)  # of the scores


class Eighth(nn.Module):
    """Latents (B, C, h, w) and places on the rate axis (B,) to images (B, 3, 2h, 2w)."""

    def __init__(self) -> None:
        super().__init__()
        # Its inputs are the latents, and the latents times their place on the rate axis.
        self.head = nn.Conv2d(2 * CHANNELS, 3 * 2**2, 3, padding=1)

    def forward(self, latents: Tensor, rate: Tensor) -> Tensor:
        place = (2 * rate - 1)[:, None, None, None]
        return F.pixel_shuffle(self.head(torch.cat([latents, place * latents], 1)), 2)


class Reducing(nn.Module):
    """As `Eighth`, to images (B, 3, 16h / scale, 16w / scale), with a scale of 2 or 4.

    It shares all layers but the last with a `Decoder`.
    """

    def __init__(self, decoder: Decoder, scale: int) -> None:
        super().__init__()
        at8, self.blocks_at4, _ = DECODERS[scale]
        self.side = FACTOR // scale  # pixels of a latent, along a side
        self.linear = _reduced(decoder.linear, scale)
        self.enter, self.at16 = decoder.enter, decoder.at16
        self.up8, self.at8 = decoder.up8, decoder.at8[:at8]
        self.up4, self.at4 = decoder.up4, decoder.at4[: self.blocks_at4]
        self.rate = decoder.rate
        # Each place becomes 2x2 pixels.
        self.head = nn.Conv2d(WIDTHS[0] if self.blocks_at4 else WIDTHS[1], 3 * 2**2, 3, padding=1)

    def forward(self, latents: Tensor, rate: Tensor) -> Tensor:
        y = F.pixel_shuffle(self.head(self.features(latents, rate)), 2)
        cut = self.side // 2
        return F.pixel_shuffle(self.linear(latents), self.side)[..., cut:-cut, cut:-cut] + y

    def features(self, latents: Tensor, rate: Tensor) -> Tensor:
        """The head's input."""
        of_rate = rate_features(rate)
        r16, r8, r4 = (layer(of_rate)[:, :, None, None] for layer in self.rate)
        y = self.at16(self.enter(latents) + r16)
        out: Tensor = self.at8(F.pixel_shuffle(self.up8(y), 2) + r8)
        if self.blocks_at4:
            out = self.at4(F.pixel_shuffle(self.up4(out), 2) + r4)
        return out


def _reduced(linear: nn.Conv2d, scale: int) -> nn.Conv2d:
    """The linear path, reduced to means of ``scale`` x ``scale`` pixels."""
    weight = reduced_linear(linear.weight.detach().numpy(), scale)
    out = nn.Conv2d(weight.shape[1], len(weight), weight.shape[2:], padding=1, bias=False)
    out.weight = nn.Parameter(torch.from_numpy(weight), requires_grad=False)
    return out


def sample(mini: Mini, path: Path, quality: int) -> tuple[Tensor, Tensor]:
    """Of a crop of a photo, somewhat reduced: its latents (1, C, h, w), quantised, and itself."""
    image = Image.open(path).convert("RGB")
    scale = random.uniform(0.5, 1)
    image = image.resize(
        (max(SIDE, int(image.width * scale)), max(SIDE, int(image.height * scale)))
    )
    left, top = random.randint(0, image.width - SIDE), random.randint(0, image.height - SIDE)
    pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)))
    gain = mini.gain(quality)
    latents = np.rint(mini.encode(pixels) * gain) / gain
    original = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
    return torch.from_numpy(latents).permute(2, 0, 1)[None], original


def networks(decoder: Decoder) -> dict[int, Reducing | Eighth]:
    """Those to be fitted, their heads as yet 0."""
    found: dict[int, Reducing | Eighth] = {s: Reducing(decoder, s) for s in (2, 4)} | {8: Eighth()}
    for network in found.values():
        torch.nn.init.zeros_(network.head.weight)
        torch.nn.init.zeros_(torch.as_tensor(network.head.bias))
    return found


def inputs(network: Reducing | Eighth, latents: Tensor, rate: Tensor) -> Tensor:
    """What the head looks at: (places, 9 channels, and 1)."""
    if isinstance(network, Reducing):
        seen = network.features(latents, rate)
    else:
        seen = torch.cat([latents, (2 * rate - 1) * latents], 1)
    patches = F.unfold(seen, 3, padding=1)[0].T
    return torch.cat([patches, torch.ones(len(patches), 1)], 1)


def fit(mini: Mini, decoder: Decoder, paths: list[Path]) -> dict[int, Reducing | Eighth]:
    found = networks(decoder)
    squares: dict[int, Tensor] = defaultdict(lambda: torch.zeros(()))
    products: dict[int, Tensor] = defaultdict(lambda: torch.zeros(()))
    for path in paths:
        quality = random.randint(catalogue.LOWEST_QUALITY, catalogue.HIGHEST_QUALITY)
        latents, _ = sample(mini, path, quality)
        rate = rate_of(quality)
        picture = decoder(latents, rate)
        for scale, network in found.items():
            missing = F.avg_pool2d(picture, scale) - network(latents, rate)
            targets = F.pixel_unshuffle(missing, 2)[0].flatten(1).T.double()
            seen = inputs(network, latents, rate).double()
            squares[scale] = squares[scale] + seen.T @ seen
            products[scale] = products[scale] + seen.T @ targets
    for scale, network in found.items():
        ridge = RIDGE * squares[scale].diagonal().mean() * torch.eye(len(squares[scale]))
        solution = torch.linalg.solve(squares[scale] + ridge, products[scale]).float().T
        network.head.weight.copy_(solution[:, :-1].unflatten(1, (-1, 3, 3)))
        torch.as_tensor(network.head.bias).copy_(solution[:, -1])
    return found


def scores(
    mini: Mini, decoder: Decoder, fitted: dict[int, Reducing | Eighth], paths: list[Path]
) -> Iterator[tuple[int, int, list[float]]]:
    """Quality, scale, and PSNR: of the heads to the decoder's, to the originals, of the decoder's
    to the originals; all reduced."""
    for quality in QUALITIES:
        random.seed(0)
        found: dict[int, list[list[float]]] = defaultdict(list)
        for path in paths:
            latents, original = sample(mini, path, quality)
            rate = rate_of(quality)
            picture = _levels(decoder(latents, rate))
            for scale, network in fitted.items():
                out = _levels(network(latents, rate))
                truth, reduced = F.avg_pool2d(original, scale), F.avg_pool2d(picture, scale)
                pairs = ((out, reduced), (out, truth), (reduced, truth))
                found[scale].append([_psnr(a, b) for a, b in pairs])
        for scale, values in found.items():
            yield quality, scale, np.mean(values, 0).tolist()


def _levels(image: Tensor) -> Tensor:
    return ((image + 0.5) * 255).round().clamp(0, 255)


def _psnr(a: Tensor, b: Tensor) -> float:
    return float(10 * torch.log10(255**2 / ((a - b) ** 2).mean()))


def shipped_decoder() -> Decoder:
    """The decoder that ships."""
    tensors = load_file(MINI.path)
    name = "autoencoder.decoder."
    return built(
        Decoder, {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=400, help="photos to fit to")
    parser.add_argument("--output", type=Path, required=True)
    options_given = parser.parse_args()
    options.DTYPE = "float32"
    random.seed(0)
    paths = photo_paths(options_given.images, held_out=False)
    random.shuffle(paths)
    mini = models.load(catalogue.MINI)
    assert isinstance(mini, Mini)
    decoder = shipped_decoder()
    with torch.inference_mode():
        fitted = fit(mini, decoder, paths[: options_given.limit])
        tensors = {
            f"{scale}.head.{name}": tensor.half().contiguous()
            for scale, network in fitted.items()
            for name, tensor in network.head.state_dict().items()
        }
        save_file(tensors, options_given.output)
        held_out = photo_paths(options_given.images, held_out=True)[:16]
        for quality, scale, (to_decoder, to_original, decoders) in scores(
            mini, decoder, fitted, held_out
        ):
            print(
                f"quality {quality // 100}, 1/{scale}: {to_decoder:.1f} dB to the decoder's,"
                f" {to_original:.1f} to the original (the decoder's {decoders:.1f})"
            )


if __name__ == "__main__":
    main()
