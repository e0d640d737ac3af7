"""SSIMULACRA2 as a differentiable loss.

The formula is Jon Sneyers' SSIMULACRA 2.1 (JPEG XL reference software); its constants are
read from the `ssimulacra2` package.  The Gaussian is a banded matrix, which is what a CPU
multiplies fastest on small crops.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from ssimulacra2 import ssimulacra2 as reference
from torch import Tensor

SCALES = 6
SMALLEST = 8  # pixels; the metric skips smaller scales


@functools.cache
def _feature_weights(scales: int) -> tuple[Tensor, Tensor]:
    """(scales, 3, 2) weights of the SSIM maps and (scales, 3, 4) of the edge maps."""
    w = torch.tensor(reference.weights, dtype=torch.float32).reshape(3, SCALES, 2, 3)
    w = w[:, :scales].permute(1, 0, 2, 3)  # scale, channel, norm, (ssim, ringing, blur)
    edges = torch.stack([w[:, :, 0, 1], w[:, :, 1, 1], w[:, :, 0, 2], w[:, :, 1, 2]], dim=2)
    return w[..., 0].contiguous(), edges


@functools.cache
def _blur_matrix(size: int) -> Tensor:
    """Gaussian of sigma 1.5, radius 5, mirrored at the borders, as a (size, size) matrix."""
    taps = torch.exp(-0.5 * (torch.arange(-5, 6) / 1.5) ** 2)
    taps = taps / taps.sum()
    matrix = torch.zeros(size, size)
    for row in range(size):
        for offset in range(-5, 6):
            column = row + offset
            column = -1 - column if column < 0 else column
            column = 2 * size - 1 - column if column >= size else column
            matrix[row, column] += taps[offset + 5]
    return matrix


def _blur(x: Tensor) -> Tensor:
    rows, columns = _blur_matrix(x.shape[-2]).to(x), _blur_matrix(x.shape[-1]).to(x)
    return rows @ x @ columns.T


def _linear(srgb: Tensor) -> Tensor:
    return torch.where(
        srgb <= 0.04045, srgb / 12.92, ((srgb.clamp_min(0.04) + 0.055) / 1.055) ** 2.4
    )


def _xyb(linear: Tensor) -> Tensor:
    matrix = torch.as_tensor(reference.kOpsinAbsorbanceMatrix, dtype=linear.dtype).reshape(3, 3)
    bias = float(reference.kB0)
    mixed = torch.einsum("ij,bjhw->bihw", matrix.to(linear.device), linear) + bias
    root = mixed.clamp_min(1e-6) ** (1 / 3) - bias ** (1 / 3)
    y = 0.5 * (root[:, 0] + root[:, 1])
    x = 0.5 * (root[:, 0] - root[:, 1])
    return torch.stack([x * 14 + 0.42, y + 0.01, root[:, 2] - y + 0.55], dim=1)


def _norms(x: Tensor) -> Tensor:
    """(B, 3, H, W) to (B, 3, 2): mean, and fourth root of the mean fourth power."""
    fourth = ((x * x) ** 2).mean((2, 3))
    return torch.stack([x.mean((2, 3)), (fourth + 1e-12) ** 0.25], dim=2)


def ssimulacra2(reconstruction: Tensor, original: Tensor) -> Tensor:
    """Scores (B,), 100 for identical pictures; both (B, 3, H, W) float32 in [-0.5, 0.5]."""
    linear1, linear2 = (_linear((v + 0.5).clamp(0, 1)) for v in (original, reconstruction))
    size = min(original.shape[-2:])
    scales = 1
    while scales < SCALES and (size >> scales) >= SMALLEST:
        scales += 1
    ssim_weights, edge_weights = (w.to(original.device) for w in _feature_weights(scales))
    total = torch.zeros(len(original), device=original.device)
    for scale in range(scales):
        if scale:
            linear1, linear2 = F.avg_pool2d(linear1, 2), F.avg_pool2d(linear2, 2)
        a, b = _xyb(linear1), _xyb(linear2)
        mu1, mu2 = _blur(a), _blur(b)
        s11, s22, s12 = _blur(a * a), _blur(b * b), _blur(a * b)
        luminance = 1 - (mu1 - mu2) ** 2
        structure = 2 * (s12 - mu1 * mu2) + reference.kC2
        contrast = (s11 - mu1 * mu1) + (s22 - mu2 * mu2) + reference.kC2
        ssim = (1 - luminance * structure / contrast).clamp_min(0)
        edge = (1 + (b - mu2).abs()) / (1 + (a - mu1).abs()) - 1
        total = total + (_norms(ssim) * ssim_weights[scale]).sum((1, 2))
        edges = torch.cat([_norms(edge.clamp_min(0)), _norms((-edge).clamp_min(0))], dim=2)
        total = total + (edges * edge_weights[scale]).sum((1, 2))
    v = total * 0.9562382616834844
    v = 2.326765642916932 * v - 0.020884521182843837 * v**2 + 6.248496625763138e-05 * v**3
    return 100 - 10 * v.clamp_min(1e-3) ** 0.6276336467831387
