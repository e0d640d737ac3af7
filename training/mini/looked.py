"""Train `mini`'s prior on the symbols of the package's files.

    python -m training.mini.looked --packs PACKS --state training/mini_state.safetensors \
        --files 2600 --run RUN --minutes 20 --share 0.5 --output STATE

The training of `mini` (`training.mini.train`) has no look at the result
(`pillow_sdz.codings.looking`), and the look changes the symbols.  So crops are encoded by the
package, and the prior learns from what their files hold.  All else stays as it is.  The crops are
few, and the prior would learn them by heart.  So only a ``--share`` of the way from the old weights
to the new ones is taken.  ``STATE`` has all averaged weights of `mini`, for
`training.mini.export`.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import pillow_sdz  # noqa: F401  (registers the format)
from pillow_sdz import catalogue, models
from pillow_sdz.codings import quality_map
from pillow_sdz.codings.banded import Banded
from pillow_sdz.codings.hyperprior import Coded
from pillow_sdz.codings.rate_axis import LAST
from pillow_sdz.models.mini import Mini
from pillow_sdz.models.mini.rate import logistic_bits
from pillow_sdz.models.mini.shape import BASE
from training.mini.data import Pack
from training.mini.model import TAIL_FROM, Model
from training.mini.prior import GROUPS, Prior
from training.run import WARM_UP, average

SIZE = 256  # pixels along a side of a crop.  Chosen.
QUALITIES = 3, 97  # of the files, all equally likely.  Chosen.
BATCH = 8
# Losses at high rates count so many times, because the prior learns their many symbols by heart
# first.  Chosen.
HIGH, HIGH_COUNTS = 0.55, 3.0
SCORED = (0.0, 0.2, 0.4, 0.6, 0.8, 1.01)  # ranges of the axis


class Symbols(NamedTuple):
    """Symbols (n, C, h, w), hyperlatents (n, Z, h/2, w/2), and rates (n, 1, h/2, w/2)."""

    latents: Tensor
    hyper: Tensor
    rate: Tensor

    def of(self, index: Tensor) -> Symbols:
        return Symbols(*(part[index].float() for part in self))


@contextmanager
def _noted() -> Iterator[list[tuple[Coded, int]]]:
    """The integers and the quality of each band that is decoded."""
    found: list[tuple[Coded, int]] = []
    decode = Banded.decode

    def noting(self: Banded, payload: bytes, *given: Any, **keys: Any) -> Coded:
        coded = decode(self, payload, *given, **keys)
        found.append((coded, given[1]))
        return coded

    Banded.decode = noting  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Banded.decode = decode  # type: ignore[method-assign]


def symbols_of_files(pack: Pack, count: int, rng: random.Random) -> Symbols:
    """What ``count`` files of crops of photos hold."""
    mini = models.load(catalogue.MINI)
    assert isinstance(mini, Mini)
    parts: list[tuple[Tensor, ...]] = []
    with _noted() as noted:
        while len(parts) < count:
            number = rng.randrange(len(pack))
            photo = pack[number]
            height, width = photo.shape[:2]
            if pack.groups[number] == "graphics" or min(height, width) < SIZE:
                continue
            top, left = rng.randrange(height - SIZE + 1), rng.randrange(width - SIZE + 1)
            crop = np.ascontiguousarray(photo[top : top + SIZE, left : left + SIZE])
            file = BytesIO()
            picture = Image.fromarray(crop)
            picture.save(file, "SDZ", quality=rng.uniform(*QUALITIES), regions=False)
            noted.clear()
            Image.open(file).load()
            (coded, quality) = noted[0]
            places = mini.axis.places(quality_map.qualities(quality, coded.offsets))
            at = np.broadcast_to(places / LAST, coded.hyper.shape[:2]).astype(np.float32)
            arrays = coded.symbols, coded.hyper, at[..., None]
            parts.append(tuple(torch.from_numpy(a.copy()).permute(2, 0, 1) for a in arrays))
    latents, hyper, rate = (torch.stack(part) for part in zip(*parts, strict=True))
    return Symbols(latents.short(), hyper.short(), rate)


def bits(prior: Prior, known: Symbols) -> Tensor:
    """Bits of each crop (n,)."""
    symbols, hyper, rate = known
    active = (rate >= TAIL_FROM).float().repeat_interleave(2, 2).repeat_interleave(2, 3)
    means, scales = prior.parameters_of(prior.features(hyper), symbols, rate, len(GROUPS))
    found = logistic_bits(symbols, means, scales)
    found = torch.cat([found[:, :BASE], found[:, BASE:] * active], 1).sum((1, 2, 3))
    total: Tensor = found + prior.hyper_scale(hyper, rate)
    return total


@torch.no_grad()
def all_bits(prior: Prior, known: Symbols) -> Tensor:
    """As `bits`, of many crops."""
    parts = torch.split(torch.arange(len(known.rate)), 2 * BATCH)
    return torch.cat([bits(prior, known.of(part)) for part in parts])


def score(prior: Prior, known: Symbols, before: Tensor) -> str:
    """How many percent of the bits ``before`` are saved (less than 0) in each range of `SCORED`."""
    place, now = known.rate.mean((1, 2, 3)), all_bits(prior, known)
    out = []
    for low, high in itertools.pairwise(SCORED):
        inside = (place >= low) & (place < high)
        out.append(f"{100 * (now[inside].sum() / before[inside].sum() - 1).item():+.3f}")
    return " ".join(out)


def blended(old: Prior, mean: dict[str, Tensor], share: float) -> Prior:
    """A prior between an old one and averaged weights."""
    found = copy.deepcopy(old)
    state = found.state_dict()
    for name, value in mean.items():
        state[name].lerp_(value, share)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--packs", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True, help="averaged weights of `mini`")
    parser.add_argument("--files", type=int, default=2600)
    parser.add_argument("--run", type=Path, required=True, help="the symbols of the files")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--report", type=float, default=3, help="minutes between scores")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.run.mkdir(parents=True, exist_ok=True)
    known = []
    for name, count, seed in (("train", options.files, 7), ("validation", 200, 5)):
        path = options.run / f"{name}.pt"
        if not path.exists():
            made = symbols_of_files(Pack(options.packs / name), count, random.Random(seed))
            torch.save(tuple(made), path)
        known.append(Symbols(*torch.load(path, weights_only=True)))
    train, validation = known
    model = Model()
    state = {k: v.float() for k, v in load_file(options.state).items()}
    model.load_state_dict(state)
    old, prior = copy.deepcopy(model.prior), model.prior
    prior.analysis.requires_grad_(False)
    learnt = [p for p in prior.parameters() if p.requires_grad]
    before, of_validation = all_bits(prior, train), all_bits(prior, validation)
    counts = 1 + (HIGH_COUNTS - 1) * (train.rate.mean((1, 2, 3)) > HIGH).float()
    counts /= counts.mean() * before
    optimizer = torch.optim.Adam(learnt, lr=options.learning_rate, betas=(0.9, 0.99))
    mean = {k: v.clone() for k, v in prior.state_dict().items() if v.is_floating_point()}
    began = reported = time.perf_counter()
    step = 0
    while (left := 1 - (time.perf_counter() - began) / (60 * options.minutes)) > 0:
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(1, (step + 1) / WARM_UP, 0.02 + 2 * left)
        index = torch.randint(len(before), (BATCH,))
        loss = (counts[index] * bits(prior, train.of(index))).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        step += 1
        average(mean, prior, step)
        if time.perf_counter() - reported > 60 * options.report:
            reported = time.perf_counter()
            new = blended(old, mean, options.share)
            print(f"{step} {score(new, validation, of_validation)}", flush=True)
    new = blended(old, mean, options.share)
    print(f"{step} {score(new, validation, of_validation)}")
    state |= {f"prior.{name}": value for name, value in new.state_dict().items()}
    save_file({k: v.half().contiguous() for k, v in state.items()}, options.output)


if __name__ == "__main__":
    main()
