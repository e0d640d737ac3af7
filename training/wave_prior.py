"""Train `pillow_sdz.codings.wave_prior.WavePrior` for FLUX.2's latents, and turn it into integers.

    python -m training.wave_prior --packs PACKS --run RUN --minutes 60 --output FILE

PACKS are packs of training photos and of photos for scores, ``train`` and ``validation``
(`training.mini.data`).  First RUN gets latents of crops of these photos, by the autoencoder of
`evaluation.taef2`.  Then the prior is trained, and its integers are written.  An interrupted run
goes on where it was.  The loss is the rate itself, the discretised logistic's negative log2
likelihood, at random places and random steps.

On a GPU, ``--compressed DIR...`` names folders of `training.mini.compressed` for training, and
PACKS is not needed if RUN has the latents for scores.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor, nn

from evaluation import taef2
from pillow_sdz.codings.integers import EXACT_SINGLE, LOG_UNITS, STEP_UNITS
from pillow_sdz.codings.wave_prior import (
    AROUND,
    FARTHER,
    FINER,
    HIDDEN_LIMIT,
    LOG_LIMIT,
    VALUE_LIMIT,
    known_inputs,
)
from pillow_sdz.codings.waves import ABOVE, BELOW, BESIDE
from training.lattice_prior import logistic_bits
from training.mini.compressed import Crops
from training.mini.data import Pack
from training.run import Run, add_options

HIDDEN = (160, 96)  # of the wide prior.  Chosen: docs/measurements.md#waves.
# Crops have this many pixels, rows and columns.  Chosen: few places are at a border.
CROP = (256, 384)
SQUARE = 256  # of crops of compressed folders
MISSING = "the weights of taef2 are not there: TAEF2=FILE"
CROPS, SCORED_CROPS = 500, 8
GROUPS = ("photos", "photos-full")
AT_ONCE = 50  # crops between two saves
BATCH, PLACES = 16, 32  # crops of a batch, and places of each; all channels of a place are used
FITTED, CALIBRATED = 30, 8  # batches: of the first fit, and to see how large activations are
LEARNING_RATE = 3e-3
STEPS = (2.0**-4, 3.0)  # from the finest step that the prior knows to one that few people want
SCORED_STEPS = (0.1, 0.5, 2.0)
VALUES = STEP_UNITS // FINER  # of the latents' unit, and of octaves: what the prior sees
# `Samples.around` has the places above and before in a row of its own channel.
NEAR = [(0, -1), (-1, -1), (-1, 0), (-1, 1)]


def crops(pack: Pack, count: int) -> list[NDArray[np.uint8]]:
    """Random crops (H, W, 3) of different photos of a pack."""
    rng = random.Random(1)
    height, width = CROP
    large = [
        number
        for number, group in enumerate(pack.groups)
        if group in GROUPS and pack[number].shape[0] >= height and pack[number].shape[1] >= width
    ]
    found = []
    rng.shuffle(large)
    for number in large[:count]:
        photo = pack[number]
        top = rng.randint(0, photo.shape[0] - height)
        left = rng.randint(0, photo.shape[1] - width)
        found.append(photo[top : top + height, left : left + width])
    return found


def latents(file: Path, pack: Path, count: int) -> Tensor:
    """Latents (N, C, h, w) of crops, kept in a file; those that the file lacks are made."""
    made = list(np.load(file)) if file.exists() else []
    photos = crops(Pack(pack), count) if len(made) < count else made[:count]
    weights = taef2.weights()
    if len(made) < len(photos):
        if weights is None:
            raise SystemExit(MISSING)
        module = taef2.load(weights)
    while len(made) < len(photos):
        for photo in photos[len(made) : len(made) + AT_ONCE]:
            image = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None] / 255
            with torch.inference_mode():
                made.append(module.encode(image)[0].half().numpy())
        with file.with_suffix(".tmp").open("wb") as to:
            np.save(to, np.stack(made))
        file.with_suffix(".tmp").replace(file)
        print(f"latents of {len(made)} crops", flush=True)
    return torch.from_numpy(np.stack(made[: len(photos)]).astype(np.float32))


@torch.inference_mode()
def latents_of_compressed(folders: Sequence[Path], count: int, device: str) -> Tensor:
    """Latents (N, C, h, w) of random square crops, encoded on the device and kept in its memory."""
    weights = taef2.weights()
    if weights is None:
        raise SystemExit(MISSING)
    module = taef2.load(weights).to(device)
    crops = Crops(folders, [1.0] * len(folders), device, 0)
    made = []
    for _ in range(0, count, AT_ONCE):
        places, colours = (x.to(device) for x in crops.draw(AT_ONCE, SQUARE, len(folders)))
        made.append(module.encode(crops.cut(places, colours, SQUARE) + 0.5).half())
    return torch.cat(made)


class Samples(NamedTuple):
    """What the prior sees at some places, and the values there.

    ``around`` is (n, 9 C), ``farther`` (C, n, 5), ``target`` (C, n), ``step`` (n,).
    """

    around: Tensor
    farther: Tensor
    target: Tensor
    step: Tensor

    @classmethod
    def at(cls, quantised: Tensor, step: Tensor, rows: Tensor, columns: Tensor) -> Self:
        """Places (N, n) of quantised latents (N, C, h, w), which have a step (N,) each."""
        count, channels, height, width = quantised.shape
        values = bordered(torch.floor(quantised * VALUES + 0.5).clamp(-VALUE_LIMIT, VALUE_LIMIT))
        stride = values.shape[2]
        places = (rows + ABOVE) * stride + columns + BESIDE
        places = (
            places + torch.arange(count, device=rows.device)[:, None] * values.shape[1] * stride
        )
        flat = values.reshape(-1, channels) / VALUES

        def moved(offsets: list[tuple[int, int]]) -> Tensor:
            by = torch.tensor([y * stride + x for y, x in offsets], device=rows.device)
            return flat[places.reshape(-1, 1) + by]

        whole = quantised.permute(1, 0, 2, 3).reshape(channels, count, height * width)
        return cls(
            moved(AROUND).flatten(1),
            moved(FARTHER).permute(2, 0, 1),
            whole.gather(2, (rows * width + columns).expand(channels, -1, -1)).flatten(1),
            step[:, None].expand_as(rows).reshape(-1),
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        around, farther, target, step = zip(*parts, strict=True)
        return cls(torch.cat(around), torch.cat(farther, 1), torch.cat(target, 1), torch.cat(step))


def bordered(values: Tensor) -> Tensor:
    """Values (N, C, h, w) with the border of `waves.Layout`, (N, h + 3, w + 4, C)."""
    count, channels, height, width = values.shape
    found = values.new_zeros(count, height + ABOVE + BELOW, width + 2 * BESIDE, channels)
    values = values.permute(0, 2, 3, 1)
    found[:, ABOVE:-BELOW, BESIDE:-BESIDE] = values
    found[:, ABOVE + 1 :, 0] = found[:, ABOVE + 1 :, 1] = values[:, :, 0]
    found[:, ABOVE:-BELOW, -BESIDE] = values[:, :, -1]
    found[:, -BELOW, BESIDE:-BESIDE] = values[:, -1]
    found[:, 0, 2 * BESIDE :] = found[:, 1, 2 * BESIDE :] = values[:, 0]
    return found


def random_samples(photos: Tensor, batch: int = BATCH) -> Samples:
    device = photos.device
    some = photos[torch.randint(len(photos), (batch,), device=device)].float()
    low, high = map(math.log2, STEPS)
    step = torch.exp2(low + (high - low) * torch.rand(batch, device=device))
    height, width = photos.shape[2:]
    rows = torch.randint(height, (batch, PLACES), device=device)
    columns = torch.randint(width, (batch, PLACES), device=device)
    unit = step[:, None, None, None]
    return Samples.at(torch.round(some / unit) * unit, step, rows, columns)


class FloatPrior(nn.Module):
    """The same prior in floating point, for values in the latents' unit."""

    mask: Tensor

    def __init__(self, channels: int, hidden: Sequence[int] = HIDDEN) -> None:
        super().__init__()
        around, farther = len(AROUND) * channels, len(FARTHER)
        mask = torch.ones(channels, around + farther)
        mask[:, :around] = torch.from_numpy(known_inputs(channels).reshape(channels, -1))
        self.register_buffer("mask", mask[:, None], persistent=False)
        self._around = around
        deviation = 0.7 * mask.sum(1)[:, None, None] ** -0.5
        first = torch.randn(channels, hidden[0] + 1, around + farther) * deviation
        first[:, -1] = 0  # the last output is linear: a part of the mean
        self.first = nn.Parameter(first)
        self.first_log = nn.Parameter(torch.zeros(channels, hidden[0] + 1))
        self.first_bias = nn.Parameter(torch.zeros(channels, hidden[0] + 1))
        second = torch.randn(channels, hidden[1], hidden[0]) * hidden[0] ** -0.5
        self.second = nn.Parameter(second)
        self.second_bias = nn.Parameter(torch.zeros(channels, hidden[1]))
        # The correction of the mean, and log2 of the scale.
        self.last = nn.Parameter(torch.zeros(channels, 2, hidden[1]))
        self.last_bias = nn.Parameter(torch.tensor([0.0, -1.7]).repeat(channels, 1))

    def hidden(self, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
        """The linear part of the mean (C, n), and the hidden layers (C, n, k)."""
        first = self.first * self.mask
        channels, outputs, _ = first.shape
        of_around = samples.around @ first[:, :, : self._around].reshape(channels * outputs, -1).T
        logs = torch.log2(samples.step)[None, :, None].expand(channels, -1, 1)
        others = torch.cat([samples.farther, logs, torch.ones_like(logs)], 2)
        of_others = [first[:, :, self._around :], self.first_log[..., None]]
        weight = torch.cat([*of_others, self.first_bias[..., None]], 2)
        both = of_around.reshape(-1, channels, outputs).transpose(0, 1)
        both = torch.baddbmm(both, others, weight.transpose(1, 2))
        h1 = torch.relu(both[..., :-1])
        h2 = torch.relu(torch.baddbmm(self.second_bias[:, None], h1, self.second.transpose(1, 2)))
        return both[..., -1], h1, h2

    def forward(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """The means (C, n), and the logarithms of the scales to base 2."""
        linear, _, hidden = self.hidden(samples)
        last = torch.baddbmm(self.last_bias[:, None], hidden, self.last.transpose(1, 2))
        return linear + last[..., 0], last[..., 1]

    def bits(self, samples: Samples) -> Tensor:
        """Bits (C, n) of the values."""
        mean, scale = self(samples)
        residual = (samples.target - mean) / samples.step
        return logistic_bits(residual, scale - torch.log2(samples.step))

    @torch.no_grad()
    def begin(self, samples: Samples) -> None:
        """Fit the linear part by least squares; samples count less where values vary more."""
        for c, farther in enumerate(samples.farther):
            inputs = torch.cat([samples.around, farther], 1)
            used = self.mask[c, 0] > 0
            inputs = inputs[:, used]
            channels = len(self.first)
            beside = [samples.around[:, AROUND.index(o) * channels + c] for o in NEAR]
            weight = 1 / (sum((x - beside[0]).abs() for x in beside[1:]) + 0.3)  # chosen
            moments = inputs.T * weight @ inputs
            moments += 2e-3 * len(inputs) * torch.eye(len(moments))  # chosen
            fitted = torch.linalg.solve(moments, inputs.T * weight @ samples.target[c])
            self.first[c, -1, used] = fitted


def layer(
    name: str,
    weight: Tensor,
    bias: Tensor,
    limits: list[int],
    kind: type[np.signedinteger[Any]] = np.int8,
) -> dict[str, NDArray[Any]]:
    """The integers of a layer of all channels, from weights in the units of integers.

    ``limits`` has the largest magnitude of each input.  Each output is as precise as the integers
    and their sums allow.
    """
    reals, offset = weight.double().numpy(), bias.double().numpy()
    shift = np.full(offset.shape, -1)
    for more in range(EXACT_SINGLE.bit_length()):
        finer = np.abs(np.rint(reals * 2.0**more))
        sums = finer @ np.array(limits) + np.abs(np.rint((offset + 0.5) * 2.0**more))
        fits = (finer.max(2) <= np.iinfo(kind).max) & (sums < EXACT_SINGLE)
        shift[fits & (shift == more - 1)] = more
    if shift.min() < 0:
        msg = f"the weights of {name} are too large"
        raise ValueError(msg)
    unit = 2.0**shift
    return {
        f"{name}.weight": np.rint(reals * unit[..., None]).astype(kind),
        f"{name}.bias": np.rint((offset + 0.5) * unit).astype(np.int32),  # rounds to the nearest
        f"{name}.shift": shift.astype(np.uint8),
    }


def full_range(weight: Tensor, activations: Tensor) -> Tensor:
    """Factors (C, k) for a hidden layer's outputs, from its weights and activations (C, n, k).

    With a margin of 1.5, activations stay below `HIDDEN_LIMIT`.  Some outputs are never active;
    these count as 0.25.  Both are chosen.  The largest weight becomes a power of two times 127, so
    that 8 bits are used completely.
    """
    factor = HIDDEN_LIMIT / 1.5 / activations.amax(1).clamp_min(0.25)
    largest = weight.abs().amax(2) * factor
    return factor * torch.exp2(torch.floor(torch.log2(largest / 127))) * 127 / largest


@torch.no_grad()
def integers(model: FloatPrior, samples: Samples) -> dict[str, NDArray[Any]]:
    """All tensors of `WavePrior`.  The samples say how large activations are."""
    _, h1, h2 = model.hidden(samples)
    weight = torch.cat([model.first * model.mask, model.first_log[..., None]], 2) / VALUES
    limits = [VALUE_LIMIT] * (weight.shape[2] - 1) + [LOG_LIMIT]
    of_first = full_range(weight[:, :-1], h1)
    of_second = full_range(model.second / of_first[:, None], h2)
    units = torch.tensor([STEP_UNITS, LOG_UNITS])
    hidden = [HIDDEN_LIMIT]
    return {
        **layer(
            "first",
            weight[:, :-1] * of_first[..., None],
            model.first_bias[:, :-1] * of_first,
            limits,
        ),
        **layer(
            "linear",
            weight[:, -1:] * STEP_UNITS,
            model.first_bias[:, -1:] * STEP_UNITS,
            limits,
            np.int16,
        ),
        **layer(
            "second",
            model.second / of_first[:, None] * of_second[..., None],
            model.second_bias * of_second,
            hidden * h1.shape[2],
        ),
        **layer(
            "last",
            model.last / of_second[:, None] * units[:, None],
            model.last_bias * units,
            hidden * h2.shape[2],
            np.int16,
        ),
    }


@torch.no_grad()
def score(model: FloatPrior, photos: Tensor) -> str:
    """Bits of a value at each of `SCORED_STEPS`."""
    height, width = photos.shape[2:]
    rows, columns = torch.meshgrid(
        *(torch.arange(n, device=photos.device) for n in (height, width)), indexing="ij"
    )
    rows, columns = (x.reshape(1, -1).repeat(len(photos), 1) for x in (rows, columns))
    found = []
    for step in SCORED_STEPS:
        steps = torch.full((len(photos),), step, device=photos.device)
        samples = Samples.at(torch.round(photos / step) * step, steps, rows, columns)
        found.append(f"{model.bits(samples).mean().item():.4f}")
    return " ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packs", type=Path, default=Path())
    parser.add_argument("--compressed", type=Path, nargs="+", help="crops for training on a GPU")
    parser.add_argument("--run", type=Path, required=True, help="latents, checkpoint and log")
    parser.add_argument("--minutes", type=float, required=True, help="of the whole run")
    parser.add_argument("--output", type=Path, required=True, help="the integers")
    parser.add_argument("--crops", type=int, default=CROPS)
    parser.add_argument("--batch", type=int, default=BATCH, help="crops of a batch")
    parser.add_argument("--hidden", type=int, nargs=2, default=HIDDEN, help="widths of the layers")
    add_options(parser, learning_rate=LEARNING_RATE, flat=0.2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.run.mkdir(parents=True, exist_ok=True)
    if options.compressed:
        photos = latents_of_compressed(options.compressed, options.crops, options.device)
    else:
        photos = latents(options.run / "latents.npy", options.packs / "train", options.crops)
    scored = latents(options.run / "scored.npy", options.packs / "validation", SCORED_CROPS)
    scored = scored.to(options.device)
    torch.manual_seed(0)
    channels = photos.shape[1]
    model = FloatPrior(channels, options.hidden)
    if not (options.run / "checkpoint.pt").exists():
        some = photos[: BATCH * FITTED].cpu()
        model.begin(Samples.joined([random_samples(some) for _ in range(FITTED)]))
    run = Run(model.to(options.device), options, random.Random(0))
    averaged = FloatPrior(channels, options.hidden).to(options.device)
    while run.unfinished:
        run.begin()
        if run.descend(model.bits(random_samples(photos, options.batch)).mean()):
            averaged.load_state_dict(run.mean)
            run.report(score(averaged, scored))
    averaged.load_state_dict(run.mean)
    run.report(score(averaged, scored))
    samples = Samples.joined([random_samples(photos.cpu()) for _ in range(CALIBRATED)])
    save_file(integers(averaged.cpu(), samples), options.output)


if __name__ == "__main__":
    main()
