"""Train `mini-perceptual` on a GPU in minutes, after `training.mini.gpu`.

    python -m training.perceptual_gpu --crops DIR/0 DIR/1 --state NEW... --before OLD_DECODER \
        OLD_STATE --output DIR --seconds 120

``--state`` has the averaged weights of the new `mini`, in parts.  ``--before`` has an older second
decoder, and the `mini` that it was trained for.  The decoder begins with the new `mini`'s decoder,
to which the change of the older one is added.  If the older file has a discriminator, the training
begins with it.  The output has both; `training.perceptual_decoder` can go on from it with
``--warm-start``.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pillow_sdz.models.mini.network import Autoencoder, Decoder
from training.features import Classifier
from training.mini.compressed import Crops
from training.mini.eight_bits import round_blocks
from training.mini.gpu import WARM_UP, keep_constants
from training.perceptual_decoder import FIDELITY, OF_MINI, Players, Shares, loss_of, rates
from training.run import AVERAGING, autocast

SIZES = (128, 256, 256)  # sides of crops: one is drawn for each step


def loaded(paths: list[Path]) -> dict[str, Tensor]:
    """Tensors of several files, in float32."""
    return {k: v.float() for path in paths for k, v in load_file(path).items()}


def begun(
    decoder: Decoder, new: Mapping[str, Tensor], old: Mapping[str, Tensor], second: Path
) -> None:
    """Load the weights that the decoder begins with.

    ``new`` and ``old`` are weights of `mini`.  ``second`` is the older second decoder.  Its weights
    contain a share (FIDELITY) of `mini`'s decoder, which is taken out again.
    """
    trained = {k.removeprefix("decoder."): v.float() for k, v in load_file(second).items()}
    state = {}
    for name in decoder.state_dict():
        full = f"autoencoder.decoder.{name}"
        state[name] = new[full].clone()
        if name != OF_MINI:
            state[name] += (trained[name] - old[full]) / (1 - FIDELITY)
    decoder.load_state_dict(state)


def of_discriminator(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the discriminator among those of both players."""
    return {k: v.float() for k, v in tensors.items() if k.startswith("discriminator.")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--crops", type=Path, nargs="+", required=True)
    parser.add_argument(
        "--state", type=Path, nargs="+", required=True, help="averaged weights of the new mini"
    )
    parser.add_argument("--before", type=Path, nargs=2, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--pixels", type=int, default=2**19, help="pixels in a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    torch.backends.cudnn.allow_tf32 = True
    keep_constants(options.device)
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    crops = Crops(options.crops, [1.0] * len(options.crops), options.device, options.seed)
    state = loaded(options.state)
    autoencoder = Autoencoder().requires_grad_(False)
    prefix = "autoencoder."
    autoencoder.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    )
    players, classifier = Players(), Classifier()
    second, old = options.before
    begun(players.decoder, state, loaded([old]), second)
    players.load_state_dict(players.state_dict() | of_discriminator(load_file(second)))
    round_blocks(autoencoder)
    round_blocks(players)
    for module in (autoencoder, players, classifier):
        module.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(players.parameters(), lr=options.learning_rate, fused=True)
    decoder = players.decoder.state_dict()
    mean = {k: v.detach().clone() for k, v in decoder.items()}
    shares = Shares()
    step, started = 0, time.perf_counter()
    total = torch.zeros((), device=options.device)
    while (spent := time.perf_counter() - started) < options.seconds:
        falling = 0.5 + 0.5 * math.cos(math.pi * spent / options.seconds)
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(1, (step + 1) / WARM_UP) * falling
        size = rng.choice(SIZES)
        count = max(options.pixels // size**2, 2)
        at, colours = (t.to(options.device) for t in crops.draw(count, size, len(options.crops)))
        images = crops.cut(at, colours, size)
        rate = rates(count, rng).to(options.device)
        with autocast(options.device):
            loss = loss_of(players, autoencoder, classifier, images, rate, shares)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(players.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(mean.values()), [decoder[k] for k in mean], 1 - AVERAGING)
            total += loss.detach()
        step += 1
        if step % 200 == 0:
            print(f"{spent:.0f}s {step} loss {total.item() / 200:.4f}", flush=True)
            total.zero_()
    options.output.mkdir(parents=True, exist_ok=True)
    written = {f"decoder.{k}": v.half().cpu().contiguous() for k, v in mean.items()}
    written |= {k: v.cpu().contiguous() for k, v in of_discriminator(players.state_dict()).items()}
    save_file(written, options.output / "second_decoder.safetensors")
    print(f"{step} steps", flush=True)


if __name__ == "__main__":
    main()
