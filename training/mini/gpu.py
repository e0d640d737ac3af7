"""Train `mini` on a GPU for minutes: large batches, crops in its memory, steps as CUDA graphs.

    python -m training.mini.gpu --crops DIR/0 DIR/1 DIR/2 --weights 1 3 1 --precise 2 \
        --state STATE --output OUT --seconds 560

The run begins with the averaged weights of ``--state``.  The learning rate falls to zero along half
a cosine.  `training.mini.compressed` makes the folders of crops.  Places at high rates use only the
first ``--precise`` folders: their crops should have smaller errors of AVIF.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pillow_sdz.models import ssimulacra2
from training.mini.compressed import Crops
from training.mini.eight_bits import round_blocks
from training.mini.model import TAIL_FROM, Model, channels_last, loss_of
from training.mini.train import parameter_groups
from training.run import AVERAGING, autocast

WARM_UP = 300  # steps
WAIT = 20  # after 20 steps the host waits for the device, so that the clock is right
REPORT = 15  # seconds between reports
# Sides of crops, and how often each is drawn.  Chosen: small pictures must look good too.
SIZES = {256: 0.5, 128: 0.3, 192: 0.12, 64: 0.05, 32: 0.03}
HIGH = 0.5  # the share of crops whose places are at TAIL_FROM and above
MAPS = 0.25  # the share of crops whose places vary within the crop
PARTS = 3  # files of averaged weights: large files may be hard to send from a rented GPU


def keep_constants(device: str) -> None:
    """Keep copies of the networks' constant arrays on the device, from their first use on.

    Nothing can be copied from the host while a graph is recorded.
    """
    kept: dict[tuple[bytes, tuple[int, ...]], Tensor] = {}

    def from_numpy(array: NDArray[np.float32]) -> Tensor:
        key = array.tobytes(), array.shape
        if key not in kept:
            kept[key] = torch.as_tensor(array).to(device)
        return kept[key]

    torch.from_numpy = from_numpy  # type: ignore[assignment]
    absorbance = torch.tensor(ssimulacra2.ABSORBANCE, device=device)
    ssimulacra2.ABSORBANCE = absorbance  # type: ignore[assignment]


def places(count: int, size: int, rng: np.random.Generator) -> tuple[Tensor, int]:
    """Random places on the rate axis: a map (count, 1, size / 32, size / 32) of each crop.

    Returns also how many crops have low places.  These come first.
    """
    low = count - int(count * HIGH)
    values = rng.uniform(0, TAIL_FROM + 0.1, count)
    values[low:] = rng.triangular(TAIL_FROM, TAIL_FROM + 0.1, 1, count - low)
    cells = max(size // 32, 1)
    maps = np.repeat(np.repeat(values[:, None, None], cells, 1), cells, 2)
    if cells > 1:
        varied = rng.random(count) < MAPS
        steps = rng.uniform(-0.3, 0.3, (count, 2, 2))
        steps = np.repeat(np.repeat(steps, cells // 2, 1), cells // 2, 2)
        maps = np.clip(maps + varied[:, None, None] * steps, 0, 1)
    return torch.as_tensor(maps[:, None].astype(np.float32)), low


class Step:
    """A step of the optimizer on crops of one size, recorded as a graph where there is CUDA."""

    def __init__(self, trainer: Trainer, size: int) -> None:
        self._size = size
        self._count = max(trainer.pixels // size**2, 2)
        self._trainer = trainer
        self._inputs = [t.to(trainer.device) for t in self._drawn()]
        self._graph: torch.cuda.CUDAGraph | None = None
        if trainer.device == "cuda":
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    trainer.descend(self._loss)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            trainer.optimizer.zero_grad(set_to_none=True)
            with torch.cuda.graph(graph):
                trainer.descend(self._loss)
            self._graph = graph

    def _drawn(self) -> list[Tensor]:
        """The inputs of one step: where its crops are, their colours, and their rates."""
        trainer, count = self._trainer, self._count
        maps, low = places(count, self._size, trainer.rng)
        crops = trainer.crops
        precise = crops.draw(count - low, self._size, trainer.precise)
        any_of_all = crops.draw(low, self._size, trainer.folders)
        # The order is random, because only the first half of the batch is scored by SSIMULACRA2.
        order = torch.as_tensor(trainer.rng.permutation(count))
        drawn = [torch.cat(pair)[order] for pair in zip(any_of_all, precise, strict=True)]
        return [*drawn, maps[order]]

    def _loss(self) -> Tensor:
        at, colours, rate = self._inputs
        trainer = self._trainer
        images = trainer.crops.cut(at, colours, self._size)
        with autocast(trainer.device):
            coded = trainer.model(images, rate, hard=False, whole=True)
            return loss_of(coded, images, rate, perceptual=trainer.perceptual)

    def __call__(self) -> None:
        for held, new in zip(self._inputs, self._drawn(), strict=True):
            if self._graph:
                new = new.pin_memory()
            held.copy_(new, non_blocking=True)
        if self._graph:
            self._graph.replay()
        else:
            self._trainer.descend(self._loss)


class Trainer:
    """The model under training, its optimizer and its averaged weights, on one device."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device: str = options.device
        self.pixels: int = options.pixels
        self.perceptual: float = options.perceptual
        self.precise, self.folders = options.precise, len(options.crops)
        self.rng = np.random.default_rng(options.seed)
        self.crops = Crops(options.crops, options.weights, self.device, options.seed)
        torch.manual_seed(options.seed)
        model = Model()
        model.load_state_dict({k: v.float() for k, v in load_file(options.state).items()})
        round_blocks(model)
        self.model = channels_last(model.to(self.device))
        groups = parameter_groups(self.model, options.learning_rate)
        for group in groups:
            group["lr"] = torch.zeros((), device=self.device)
        self.optimizer = torch.optim.Adam(
            groups, betas=(0.9, 0.99), fused=True, capturable=self.device == "cuda"
        )
        self.mean = {
            k: v.detach().clone()
            for k, v in self.model.state_dict().items()
            if v.is_floating_point()
        }
        self._current = [self.model.state_dict()[k] for k in self.mean]
        self.total = torch.zeros(2, device=self.device)  # sum of losses; steps left out
        self.step = 0

    def descend(self, loss_of_batch: Callable[[], Tensor]) -> None:
        """One step; nothing in it waits for the device."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = loss_of_batch()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        # If the gradient is not finite, the step is left out, as in training with mixed precision.
        left_out = (~torch.isfinite(norm)).float()
        self.optimizer.found_inf = left_out  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.mean.values()), self._current, 1 - AVERAGING)
            self.total += torch.stack([torch.nan_to_num(loss.detach()), left_out])

    def set_learning_rate(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"].fill_(group["base"] * factor)

    def write(self, folder: Path) -> None:
        """Write the averaged weights in parts: ``averaged0.safetensors`` and so on."""
        folder.mkdir(parents=True, exist_ok=True)
        half = {k: v.half().cpu().contiguous() for k, v in self.mean.items()}
        for i in range(PARTS):
            part = dict(list(half.items())[i::PARTS])
            save_file(part, folder / f"averaged{i}.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--crops", type=Path, nargs="+", required=True)
    parser.add_argument(
        "--weights", type=float, nargs="+", required=True, help="one number for each folder"
    )
    parser.add_argument(
        "--precise", type=int, required=True, help="how many folders serve high rates, too"
    )
    parser.add_argument("--state", type=Path, required=True, help="averaged weights")
    parser.add_argument("--output", type=Path, required=True, help="averaged weights, in parts")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--perceptual", type=float, default=0.28, help="share of SSIMULACRA2")
    parser.add_argument("--pixels", type=int, default=2**20, help="pixels in a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    began = time.perf_counter()
    torch.backends.cudnn.allow_tf32 = True  # not of products: SSIMULACRA2's blurs need float32
    torch.backends.cudnn.benchmark = True
    keep_constants(options.device)
    trainer = Trainer(options)

    def log(words: str) -> None:
        print(f"{time.perf_counter() - began:.0f}s {trainer.step} {words}", flush=True)

    log(f"{len(trainer.crops)} crops, {trainer.crops.pixels.numel() / 3e6:.0f} megapixels")
    trainer.set_learning_rate(0)  # recording a graph makes steps, which must not change weights
    steps = {}
    for size in SIZES:
        steps[size] = Step(trainer, size)
        log(f"crops of {size}")
    trainer.total.zero_()
    sizes, shares = list(SIZES), list(SIZES.values())
    started = reported = time.perf_counter()
    steps_then = 0
    while (spent := time.perf_counter() - started) < options.seconds:
        warm = min(1.0, (trainer.step + 1) / WARM_UP)
        falling = 0.5 + 0.5 * math.cos(math.pi * spent / options.seconds)
        trainer.set_learning_rate(warm * falling)
        steps[int(trainer.rng.choice(sizes, p=shares))]()
        trainer.step += 1
        if trainer.step % WAIT == 0 and trainer.device == "cuda":
            torch.cuda.synchronize()
        if time.perf_counter() - reported > REPORT:
            count = trainer.step - steps_then
            mean, left_out = trainer.total.tolist()
            rate = count / (time.perf_counter() - reported)
            log(f"loss {mean / count:.5f}, {left_out:.0f} left out, {rate:.1f} steps a second")
            trainer.total.zero_()
            reported, steps_then = time.perf_counter(), trainer.step
    trainer.write(options.output)
    log("written")


if __name__ == "__main__":
    main()
