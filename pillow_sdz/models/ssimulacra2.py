"""SSIMULACRA2 with gradients, for refinement and training.

This is Jon Sneyers' SSIMULACRA 2.1 (JPEG XL's reference software).  It has error maps of SSIM, of
ringing and of blur in the colour space XYB, at up to six scales.  Each map is pooled in two ways
and weighted.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


class Weights(NamedTuple):
    """The weights of a channel's maps.

    Each map has two: for its mean, and for the fourth root of the mean of its fourth powers.
    """

    ssim: tuple[float, float] = (0, 0)
    ringing: tuple[float, float] = (0, 0)
    blur: tuple[float, float] = (0, 0)


X, Y, B = range(3)
# The weights by scale and channel.  The metric has 108; these are the ones above 0.01.  Measured:
# the others hardly matter (docs/measurements.md#ssimulacra2).
WEIGHTS: tuple[dict[int, Weights], ...] = (
    {Y: Weights(ssim=(0, 7.466890328078848), blur=(0, 17.445833984131262))},
    {
        X: Weights(ssim=(0, 1.1041726426657346)),
        Y: Weights(ssim=(0, 6.683678146179332), blur=(0, 1.027889937768264)),
    },
    {
        X: Weights(ssim=(0, 1.8422455520539298), ringing=(0, 11.441172603757666)),
        Y: Weights(ssim=(225.20515300849274, 19.213238186143016)),
    },
    {
        X: Weights(ssim=(0, 1.8787594979546387), ringing=(0, 10.94906990605142)),
        Y: Weights(ssim=(176.39317598450694, 24.43300999870476), ringing=(0, 0.28520802612117757)),
        B: Weights(ssim=(0, 8.826982764996862), ringing=(0, 23.19243343998926)),
    },
    {
        X: Weights(ringing=(0.9677937080626833, 0.9981766977854967)),
        Y: Weights(ssim=(0, 34.77906344483772), ringing=(0, 44.835625328877896)),
        B: Weights(
            ssim=(95.1080498811086, 0),
            ringing=(0.9863978034400682, 171.2667255897307),
            blur=(0.9834382792465353, 0.9807858872435379),
        ),
    },
)
SMALLEST = 8  # pixels along a side; the metric skips smaller scales
C2 = 0.0009
# The matrix from linear RGB to the responses; their cube roots give XYB.
ABSORBANCE = (
    (0.3, 0.622, 0.078),
    (0.23, 0.692, 0.078),
    (0.24342268924547819, 0.20476744424496821, 0.5518098665095536),
)
BIAS = 0.0037930732552754493


class Reference:
    """Scores pictures against one batch of originals.

    The originals are (B, 3, H, W), float32 in [-0.5, 0.5], with H and W at least `SMALLEST`.
    Everything that depends on the originals alone is computed once.
    """

    def __init__(self, originals: Tensor) -> None:
        self._scales = []
        linear = _linear(originals)
        for scale, channels in enumerate(WEIGHTS[: _scales(originals)]):
            if scale:
                linear = F.avg_pool2d(linear, 2)
            x = _xyb(linear, list(channels))
            mean = _blur(x)
            self._scales.append((x, mean, _blur(x * x) - mean * mean))

    def score(self, pictures: Tensor) -> Tensor:
        """The scores (B,) of pictures of the originals' shape; 100 for identical ones."""
        linear = _linear(pictures)
        total = pictures.new_zeros(len(pictures))
        for scale, (channels, (x, mean_x, variance_x)) in enumerate(
            zip(WEIGHTS, self._scales, strict=False)
        ):
            if scale:
                linear = F.avg_pool2d(linear, 2)
            y = _xyb(linear, list(channels))
            mean_y, squares, products = _blur(torch.stack([y, y * y, x * y]))
            variance_y = squares - mean_y * mean_y
            structure = 2 * (products - mean_x * mean_y) + C2
            similarity = (1 - (mean_x - mean_y) ** 2) * structure / (variance_x + variance_y + C2)
            edges = (1 + (y - mean_y).abs()) / (1 + (x - mean_x).abs()) - 1
            for i, weights in enumerate(channels.values()):
                for map, pair in (
                    (1 - similarity[:, i], weights.ssim),
                    (edges[:, i], weights.ringing),
                    (-edges[:, i], weights.blur),
                ):
                    if any(pair):
                        total = total + _pooled(map.clamp_min(0), pair)
        v = total * 0.9562382616834844
        v = 2.326765642916932 * v - 0.020884521182843837 * v**2 + 6.248496625763138e-05 * v**3
        return 100 - 10 * v.clamp_min(1e-3) ** 0.6276336467831387


def ssimulacra2(pictures: Tensor, originals: Tensor) -> Tensor:
    """The scores (B,), 100 for identical pictures; both (B, 3, H, W), float32 in [-0.5, 0.5]."""
    return Reference(originals).score(pictures)


def _scales(pictures: Tensor) -> int:
    scales = 1
    while (min(pictures.shape[-2:]) >> scales) >= SMALLEST:
        scales += 1
    return scales


def _pooled(map: Tensor, weights: tuple[float, float]) -> Tensor:
    """Weighted norms (B,) of a map (B, H, W)."""
    total = weights[0] * map.mean((1, 2))
    if weights[1]:
        total = total + weights[1] * (((map * map) ** 2).mean((1, 2)) + 1e-20) ** 0.25
    return total


def _linear(pictures: Tensor) -> Tensor:
    """The linear light of sRGB in [-0.5, 0.5]."""
    srgb = (pictures + 0.5).clamp(0, 1)
    # The clamp keeps the gradient of the power finite if the other branch is taken.
    return torch.where(
        srgb <= 0.04045, srgb / 12.92, ((srgb.clamp_min(0.04) + 0.055) / 1.055) ** 2.4
    )


def _xyb(linear: Tensor, channels: list[int]) -> Tensor:
    """Some channels (B, C, H, W) of XYB, scaled and shifted as in the metric."""
    matrix = linear.new_tensor(ABSORBANCE)[: 3 if B in channels else 2]
    responses = torch.einsum("ij,bjhw->bihw", matrix, linear) + BIAS
    root = responses.clamp_min(1e-6) ** (1 / 3) - BIAS ** (1 / 3)
    y = 0.5 * (root[:, 0] + root[:, 1])
    made = []
    for channel in channels:
        if channel == X:
            made.append(0.5 * (root[:, 0] - root[:, 1]) * 14 + 0.42)
        else:
            made.append(y + 0.01 if channel == Y else root[:, 2] - y + 0.55)
    return torch.stack(made, dim=1)


@functools.lru_cache(16)  # chosen: enough for both sides of a picture at all scales
def _blur_matrix(size: int) -> NDArray[np.float32]:
    """A Gaussian of sigma 1.5 and radius 5, mirrored at the borders, as a (size, size) matrix."""
    offsets = np.arange(-5, 6)
    taps = np.exp(-0.5 * (offsets / 1.5) ** 2)
    columns = np.arange(size)[:, None] + offsets
    columns = np.where(columns < 0, -1 - columns, columns)
    columns = np.where(columns >= size, 2 * size - 1 - columns, columns)
    matrix = np.zeros((size, size), np.float32)
    np.add.at(matrix, (np.arange(size)[:, None], columns), taps / taps.sum())
    return matrix


def _blur(x: Tensor) -> Tensor:
    # Products of matrices are faster than convolutions: docs/measurements.md#ssimulacra2.
    rows, columns = (torch.from_numpy(_blur_matrix(n)).to(x) for n in x.shape[-2:])
    return rows @ x @ columns.T
