"""Products of latents in digits of 8 bits are those of the latents, as far as they must be."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pillow_sdz.models import runtime
from pillow_sdz.models.mini import digits

pytest.importorskip("onnx", reason='building graphs needs pip install ".[train]"')
sys.path.append(str(Path(__file__).parent.parent))

import onnx

from training import digits as in_graphs
from training.graph import Graph


@pytest.mark.parametrize("unit", [digits.UNIT, 0.1])
def test_sums_of_digits_are_exact(unit: float) -> None:
    """Latents are as large as they get, and neighbouring weights have the same sign."""
    torch.manual_seed(0)
    weight = torch.randn(4, 1, 3, 3).sign().expand(4, 8, 3, 3).numpy()
    x = 96 * torch.randn(12, 12, 1).sign().expand(12, 12, 8)
    found = by_digits(weight, x.numpy(), steps=np.ones((1, 1), np.float32), unit=unit)
    assert np.abs(found - convolved(weight, x.numpy())).max() < 0.5


def test_digits_of_a_finer_cell() -> None:
    """A cell with a quality far above that of the picture loses no more than another picture."""
    torch.manual_seed(0)
    weight = torch.randint(-1, 2, (4, 96, 3, 3)).float().numpy()  # exact in 8 bits
    x = 3 * torch.randn(12, 12, 96).numpy()
    steps = np.full((12, 12), 2, np.float32)
    steps[2:8, 2:8] = 0.1
    exact = convolved(weight, x)
    fine, coarse, cell = (
        np.abs(by_digits(weight, x, steps=at, unit=unit) - exact)[3:7, 3:7].max()
        for at, unit in ((steps[:1, :1], digits.UNIT), (steps[:1, :1], 0.2), (steps, 0.2))
    )
    assert cell < 1.5 * fine < coarse / 4


def by_digits(
    weight: NDArray[np.float32], x: NDArray[np.float32], *, steps: NDArray[np.float32], unit: float
) -> NDArray[np.float32]:
    """A convolution of x (h, w, C) in digits, for a picture with this unit."""
    tensors, graph = {"layer.weight": weight}, Graph({"layer.weight": weight}, int8=True)
    result = in_graphs.conv(graph, in_graphs.digits(graph), "layer", trimmed=0)
    file = graph.finish(result, in_graphs.INPUTS, onnx.TensorProto.FLOAT)
    session = runtime.session(file, runtime.quantised(file, tensors, {}))
    found: NDArray[np.float32]
    (found,) = session.run(["result"], digits.inputs(x, steps, np.float32(unit)))
    return found


def convolved(weight: NDArray[np.float32], x: NDArray[np.float32]) -> NDArray[np.float32]:
    planes = torch.from_numpy(x.copy()).permute(2, 0, 1)[None]
    exact = torch.nn.functional.conv2d(planes, torch.from_numpy(weight.copy()), padding=1)
    found: NDArray[np.float32] = exact[0].permute(1, 2, 0).numpy()
    return found
