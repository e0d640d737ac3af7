"""A training run that can be interrupted.  Several trainers use it."""

from __future__ import annotations

import math
import random
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch
from torch import Tensor, nn

AVERAGING = 0.999
WARM_UP = 200  # steps
SAVED_EVERY = 180  # seconds.  An interruption loses at most this much training.  Chosen.


def add_options(parser: ArgumentParser, *, learning_rate: float, flat: float) -> None:
    """Add the options that these trainers share."""
    parser.add_argument("--learning-rate", type=float, default=learning_rate)
    parser.add_argument("--flat", type=float, default=flat, help="part of the run before decay")
    parser.add_argument("--report", type=int, default=1000, help="steps between reports")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: str | torch.device) -> torch.autocast:
    """Computes in bfloat16, or in float32 on CPUs without instructions for bfloat16.

    They imitate it, which takes ten times as long as float32 (measured with AVX2).
    """
    kind = torch.device(device).type
    able = torch.cpu.get_capabilities()
    fast = kind != "cpu" or able.get("avx512_bf16", False) or able.get("amx_bf16", False)
    return torch.autocast(kind, torch.bfloat16, enabled=fast)


@torch.no_grad()
def average(mean: dict[str, Tensor], model: nn.Module, step: int) -> None:
    """Move the averaged weights towards the model's."""
    decay = min(AVERAGING, (1 + step) / (10 + step))
    current = model.state_dict()
    torch._foreach_lerp_(list(mean.values()), [current[k] for k in mean], 1 - decay)


def write_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    mean: dict[str, Tensor],
    *,
    step: int,
    spent: float,
) -> None:
    """Write a checkpoint.  If that fails, the old one stays.  ``spent`` is in seconds."""
    state = {
        "model": model.state_dict(),
        "mean": mean,
        "optimizer": optimizer.state_dict(),
        "step": step,
        "spent": spent,
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


class Run:
    """A model under training, its averaged weights, and a clock for ``options.minutes``.

    If ``options.run`` has a checkpoint, the run goes on from there.
    """

    def __init__(self, model: nn.Module, options: Namespace, rng: random.Random) -> None:
        self._model, self._options = model, options
        self.step, self.spent = 0, 0.0
        self._optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate, fused=True)
        self._checkpoint = options.run / "checkpoint.pt"
        saved = None
        if self._checkpoint.exists():
            saved = torch.load(self._checkpoint, weights_only=True)
            model.load_state_dict(saved["model"])
            self._optimizer.load_state_dict(saved["optimizer"])
            self.step, self.spent = saved["step"], saved["spent"]
            rng.seed(self.step)
            torch.manual_seed(self.step)
        self._saved_at = self.spent
        current = saved["mean"] if saved else model.state_dict()
        self.mean = {
            k: v.detach().to(options.device, copy=True)
            for k, v in current.items()
            if v.is_floating_point()
        }

    @property
    def unfinished(self) -> bool:
        return self.spent < 60 * float(self._options.minutes)

    def begin(self) -> None:
        """Begin a step: start its clock, and set its learning rate."""
        self._started = time.perf_counter()
        done = self.spent / (self._options.minutes * 60)
        decay = max(0.0, (done - self._options.flat) / (1 - self._options.flat))
        for group in self._optimizer.param_groups:
            group["lr"] = (
                self._options.learning_rate
                * min(1, (self.step + 1) / WARM_UP)
                * (0.5 + 0.5 * math.cos(math.pi * decay) + 0.01)
            )

    def descend(self, loss: Tensor) -> bool:
        """End a step.  Returns whether a report is due."""
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        if not torch.isfinite(norm):
            msg = f"the gradient is not finite at step {self.step}"
            raise RuntimeError(msg)
        self._optimizer.step()
        self.step += 1
        average(self.mean, self._model, self.step)
        self.spent += time.perf_counter() - self._started
        if self.spent - self._saved_at > SAVED_EVERY:
            self._save()
        return bool(self.step % self._options.report == 0)

    def report(self, score: str) -> None:
        """Print and log a score, and write the checkpoint."""
        line = f"{self.step} {self.spent / 60:.1f}m {score}"
        print(line, flush=True)
        with open(self._options.run / "log.txt", "a") as log:
            log.write(line + "\n")
        self._save()

    def _save(self) -> None:
        self._saved_at = self.spent
        write_checkpoint(
            self._checkpoint,
            self._model,
            self._optimizer,
            self.mean,
            step=self.step,
            spent=self.spent,
        )
