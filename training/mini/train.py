"""Train `mini` in a run that can be continued over many sessions.

    python -m training.mini.train --packs PACK/train --validation PACK/validation --run DIR

The run goes on from ``DIR/checkpoint.pt``.  If there is no checkpoint, it begins with the averaged
weights of another run (``--state FILE``).  Without these two, it begins with a plain lapped
transform, the CNNs of the package's `mini`, and a prior that is fitted to photos by least squares.

A signal or ``--minutes`` ends the run.  After the warm-up, the learning rate is constant.  The
averaged weights are scored and shipped, so the run may end at any moment.  ``--decay MINUTES`` lets
the learning rate fall to zero in the last minutes.  Use it for the very end.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pillow_sdz.models.ssimulacra2 import ssimulacra2
from pillow_sdz.weights import MINI
from training.mini.data import Crops, Pack, Photo, corner, photos, to_tensor
from training.mini.model import (
    TAIL_FROM,
    Model,
    begin,
    channels_last,
    fit_limits,
    fit_magnitudes,
    loss_of,
)
from training.run import WARM_UP, autocast, average, write_checkpoint

FITTED = 200  # a new prior is fitted to the photos among this many pictures.  Chosen.
LIMITED = 24  # the blocks' limits are set by this many photos.  Chosen.
PIXELS = 2**17  # pixels in a step.  Chosen: many small steps are best while much is new.
# Sides of crops, one for each step.  Most have one of two sizes; the smallest are 2x2 latents.
SIZES = (128, 128, 256, 256, 192, 192, 128, 256, 64, 32)
# Factors of the learning rate, by part of a parameter's name.  New parts learn faster than parts
# that were trained before.  Weights of the linear transforms are small (the decoder's are about
# 0.004).  With Adam's steps at the full rate, their errors keep PSNR at high rates below 40 dB.
FASTER = {"prior": 2.0, "gain": 6.0, "gate": 3.0}
SLOWER = {"encoder.linear": 0.1, "decoder.linear": 0.01, "magnitudes": 0.02}
BOOST, BOOST_STEPS = 3.0, 1000  # a prior that was only fitted learns faster in the first steps
SCORED = (0.1, 0.25, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)  # places on the axis
SCORED_PHOTOS, SCORED_SIZE = 8, 320


def rates(batch: int, size: int, high: bool, rng: random.Random) -> Tensor:
    """Random places on the rate axis.  In one batch of four they vary within a crop."""
    if high:
        # Places with about one bit per pixel are the most frequent.
        values = [rng.triangular(TAIL_FROM, 1, TAIL_FROM + 0.1) for _ in range(batch)]
    else:
        values = [rng.uniform(0, TAIL_FROM + 0.1) for _ in range(batch)]
    rate = torch.tensor(values).view(batch, 1, 1, 1)
    if rng.random() < 0.75 or size < 64:
        return rate
    cells = size // 32
    numbers = torch.rand(batch, 1, 2, 2) - 0.5  # a step or two across the crop
    patches = nn.functional.interpolate(numbers, size=(cells, cells), mode="nearest")
    return (rate + 0.6 * patches).clamp(0, 1)


def parameter_groups(model: Model, learning_rate: float) -> list[dict[str, object]]:
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        names = name.split(".")
        faster = max([1.0, *(v for k, v in FASTER.items() if k in names)])
        faster *= min([1.0, *(v for k, v in SLOWER.items() if k in name)])
        groups.setdefault((faster, "prior" in names[0]), []).append(parameter)
    return [
        {"params": p, "lr": learning_rate * f, "base": learning_rate * f, "prior": prior}
        for (f, prior), p in groups.items()
    ]


def scored_photos(folder: Path) -> list[Photo]:
    """The middles of a few validation photos."""
    out = []
    for photo in photos(folder, SCORED_PHOTOS, SCORED_SIZE):
        top, left = ((n - SCORED_SIZE) // 2 for n in photo.shape[:2])
        out.append(photo[top : top + SCORED_SIZE, left : left + SCORED_SIZE])
    return out


@torch.no_grad()
def score(model: Model, photos: list[Photo]) -> str:
    """Estimated bits per pixel (with the tail's part), PSNR and SSIMULACRA2, as from files."""
    out = []
    for place in SCORED:
        rows = []
        for photo in photos:
            image = to_tensor(photo)
            rate = torch.full((1, 1, 1, 1), place)
            coded = model(image, rate, hard=True)
            picture = torch.round(coded.picture.clamp(-0.5, 0.5) * 255) / 255
            mse = max(((picture - image) ** 2).mean().item(), 1e-9)
            bits = (coded.base + coded.tail).item(), coded.tail.item()
            rows.append((*bits, -10 * math.log10(mse), ssimulacra2(picture, image).item()))
        out.append("{:.3f} ({:.3f}) {:.2f} {:.1f}".format(*np.mean(rows, 0)))
    return " | ".join(out)


class Run:
    """The model under training, its optimizer and averaged weights, and their checkpoint.

    `training.run.Run` ends after a time that is known at the start.  This run may have no end, and
    each group of parameters has its own learning rate.
    """

    def __init__(self, model: Model, options: argparse.Namespace) -> None:
        self.model, self.options = model, options
        self.step, self.spent = 0, 0.0
        groups = parameter_groups(model, options.learning_rate)
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
        self.mean = {
            k: v.detach().clone() for k, v in model.state_dict().items() if v.is_floating_point()
        }
        self._checkpoint = options.run / "checkpoint.pt"
        if self._checkpoint.exists():
            saved = torch.load(self._checkpoint, map_location=options.device, weights_only=True)
            model.load_state_dict(saved["model"])
            # The learning rate is that of this command, not of the one that wrote the checkpoint.
            bases = [g["base"] for g in self.optimizer.param_groups]
            self.optimizer.load_state_dict(saved["optimizer"])
            for group, base in zip(self.optimizer.param_groups, bases, strict=True):
                group["base"] = base
            self.mean = saved["mean"]
            self.step, self.spent = saved["step"], saved["spent"]

    def descend(self, loss: Tensor, factor: float) -> bool:
        """Make one step.  Returns False, and changes nothing, if the gradient is not finite."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if not torch.isfinite(norm):
            return False
        for group in self.optimizer.param_groups:
            boost = 1.0
            if group["prior"] and not self.options.state:
                boost += BOOST * math.exp(-self.step / BOOST_STEPS)
            group["lr"] = group["base"] * factor * boost
        self.optimizer.step()
        self.step += 1
        average(self.mean, self.model, self.step)
        return True

    def save(self) -> None:
        write_checkpoint(
            self._checkpoint,
            self.model,
            self.optimizer,
            self.mean,
            step=self.step,
            spent=self.spent,
        )
        half = {k: v.half().cpu().contiguous() for k, v in self.mean.items()}
        save_file(half, self.options.run / "averaged.safetensors")

    def log(self, words: str) -> None:
        line = f"{time.strftime('%H:%M')} {self.step} {self.spent / 60:.1f}m {words}"
        print(line, flush=True)
        with open(self.options.run / "log.txt", "a") as log:
            log.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--packs", type=Path, nargs="+", required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="checkpoint, log and weights")
    parser.add_argument("--state", type=Path, help="averaged weights to begin with")
    parser.add_argument("--minutes", type=float, default=math.inf, help="length of the whole run")
    parser.add_argument(
        "--decay",
        type=float,
        default=0.0,
        help="the last minutes, in which the learning rate falls",
    )
    parser.add_argument(
        "--prior-first", type=int, default=0, help="steps that train the prior alone, at first"
    )
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--perceptual", type=float, default=0.3, help="share of SSIMULACRA2")
    parser.add_argument("--report", type=float, default=10, help="minutes between scores")
    parser.add_argument("--save", type=float, default=3, help="minutes between checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, help="default: from the clock")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    options.run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = Model()
    if options.state:
        model.load_state_dict({k: v.float() for k, v in load_file(options.state).items()})
    elif not (options.run / "checkpoint.pt").exists():
        pack = Pack(options.packs[0])
        numbers = range(0, len(pack), max(1, len(pack) // FITTED))
        fitted = [pack[i] for i in numbers if pack.groups[i] == "photos"]
        begin(model, load_file(MINI.path), fitted)
        fit_magnitudes(model, fitted)
        fit_limits(model, [corner(photo, SCORED_SIZE) for photo in fitted[:LIMITED]])
    model = channels_last(model.to(options.device))
    run = Run(model, options)
    # The order of the crops is another one after each restart.
    seed = options.seed if options.seed is not None else time.time_ns() % 2**32
    rng = random.Random(seed)
    torch.manual_seed(seed)
    crops = Crops(options.packs, rng)
    photos = scored_photos(options.validation)
    averaged = Model()

    def report() -> None:
        averaged.load_state_dict({k: v.float().cpu() for k, v in run.mean.items()})
        run.log(score(averaged, photos))

    saved = reported = run.spent
    totals: dict[str, list[float]] = {}
    autoencoder = list(model.autoencoder.parameters())
    while run.spent < 60 * options.minutes:
        started = time.perf_counter()
        frozen = run.step < options.prior_first
        for parameter in autoencoder:
            parameter.requires_grad_(not frozen)
        size = rng.choice(SIZES)
        batch = min(max(PIXELS // size**2, 1), 64)
        images = crops.batch(batch, size).to(options.device)
        high = rng.random() < 0.5
        rate = rates(batch, size, high, rng).to(options.device)
        with autocast(options.device):
            coded = model(images, rate, hard=False)
            if frozen:
                loss = (coded.base + coded.tail).mean()
            else:
                loss = loss_of(coded, images, rate, perceptual=options.perceptual)
        left = options.minutes - run.spent / 60
        factor = min(1.0, (run.step + 1) / WARM_UP)
        if options.decay and left < options.decay:
            factor *= max(left / options.decay, 0.01)
        if not run.descend(loss, factor):
            run.log("the gradient is not finite: this step is left out")
        totals.setdefault("high" if high else "low", []).append(loss.item())
        run.spent += time.perf_counter() - started
        if run.spent - saved > 60 * options.save:
            saved = run.spent
            run.save()
            means = {k: round(float(np.mean(v)), 4) for k, v in totals.items()}
            print(f"{run.step} {run.spent / 60:.1f}m mean loss {means}", flush=True)
            totals = {}
        if run.spent - reported > 60 * options.report:
            reported = run.spent
            report()
    run.save()
    report()


if __name__ == "__main__":
    main()
