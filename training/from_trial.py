"""Carry the weights of the project's first trial over into the present shape.

    python -m training.from_trial mini_trial.safetensors warm.safetensors

The trial had fewer residual blocks and a prior without groups of channels.  What it did not
have begins as the identity, so that the result is the same function as the trial but at the
picture's border, which the trial filled with grey and we with copies of the edge.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pillow_sdz.models.mini.shape import CHANNELS
from training.mini import LAMBDA_HIGH, LAMBDA_LOW, Model, set_linear
from training.prior import FEATURES, GROUPS

# The trial's distortion weight was 0.0009 exp(4.2 t), and its gain exp(g0 + g1 t + 3 t).
TRIAL_LAMBDA, TRIAL_SLOPE, TRIAL_GAIN = 9e-4, 4.2, 3.0

ENCODER = {"enter": 1, "at4.0": 2, "down8": 3, "at8.0": 4, "at8.1": 5, "down16": 6}
ENCODER |= {"at16.0": 7, "at16.1": 8, "leave": 9}
DECODER = {"enter": 0, "at16.0": 1, "at16.1": 2, "up8": 3, "at8.0": 5, "at8.1": 6, "up4": 7}
DECODER |= {"at4.0": 9, "at4.1": 10, "leave": 11}


@torch.no_grad()
def carry_over(weights: dict[str, Tensor], model: Model) -> None:
    def copy(layer: nn.Module, name: str) -> None:
        for key, parameter in layer.named_parameters():
            # A residual block's two convolutions were called a and b.
            old = key.replace("first.", "a.").replace("second.", "b.")
            parameter.copy_(weights[f"{name}.{old}"])

    encoder, decoder = model.autoencoder.encoder, model.autoencoder.decoder
    set_linear(model, weights["e.lin.weight"], weights["d.lin.weight"])
    torch.as_tensor(encoder.linear.bias).copy_(weights["e.lin.bias"])
    for ours, theirs in ENCODER.items():
        copy(encoder.get_submodule(ours), f"e.net.{theirs}")
    for ours, theirs in DECODER.items():
        copy(decoder.get_submodule(ours), f"d.net.{theirs}")
    torch.as_tensor(decoder.leave.bias).add_(weights["d.lin.bias"].repeat_interleave(16))

    slope = math.log(LAMBDA_HIGH / LAMBDA_LOW) / TRIAL_SLOPE
    start_at = math.log(LAMBDA_LOW / TRIAL_LAMBDA) / TRIAL_SLOPE
    base, growth = weights["gain"][0], weights["gain"][1] + TRIAL_GAIN
    model.autoencoder.gain.coefficients[0] = base + growth * start_at
    model.autoencoder.gain.coefficients[1] = growth * slope

    prior = model.prior
    copy(prior.analysis, "h.ha")
    copy(prior.synthesis_up, "h.hs.0")
    copy(prior.synthesis, "h.hs.2")
    prior.context.weight.copy_(weights["h.cx.weight"])
    prior.hyper_scale[0] = weights["h.zs"]
    first, last = weights["h.pm.0.weight"], weights["h.pm.2.weight"]
    bias = weights["h.pm.0.bias"] + first[:, FEATURES:, 0, 0] @ weights["h.cx.bias"]
    start = 0
    for i, group in enumerate(GROUPS):
        (weight, offset), (last_weight, last_offset) = prior.dense(i)
        weight.zero_()
        weight[:, : 2 * FEATURES] = first[:, :, 0, 0]
        offset.copy_(bias)
        rows = [*range(start, start + group), *range(CHANNELS + start, CHANNELS + start + group)]
        last_weight.copy_(last[rows][:, :, 0, 0])
        last_offset.copy_(weights["h.pm.2.bias"][rows])
        start += group


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trial", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)  # the first halves of the new residual blocks
    model = Model()
    carry_over({k: v.float() for k, v in load_file(options.trial).items()}, model)
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, options.output)


if __name__ == "__main__":
    main()
