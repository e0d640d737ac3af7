"""ST-LPIPS, the shift-tolerant variant of LPIPS: a distance fitted to people's ratings.

Ghildyal and Liu, "Shift-tolerant Perceptual Similarity Metric", ECCV 2022. The weights come from
the PyPI package `stlpips-pytorch`. Its code is not imported because it needs torchvision and
IPython.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

WEIGHTS = "weights/vST0.0/alex_shift_tolerant.pth"
# ImageNet's mean and deviation on the [-1, 1] scale, as in the file of the weights.
SCALE = ("scaling_layer.shift", "scaling_layer.scale")


def missing() -> str | None:
    """Why the distance cannot be computed here, or None if it can."""
    if importlib.util.find_spec("stlpips_pytorch") is None:
        return "stlpips-pytorch is not installed"
    return None


def _half(x: Tensor) -> Tensor:
    """Halve the size after a binomial filter of 3x3. Mirror two samples past the border."""
    taps = torch.tensor([0.25, 0.5, 0.25])
    kernel = (taps[:, None] * taps).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


class FeatureDistance(nn.Module):
    """AlexNet with filtered strides, and a weight for every feature."""

    def __init__(self) -> None:
        super().__init__()
        spec = importlib.util.find_spec("stlpips_pytorch")
        if spec is None or spec.origin is None:
            msg = "the feature distance needs its weights: pip install --no-deps stlpips-pytorch"
            raise ModuleNotFoundError(msg)
        tensors = torch.load(
            Path(spec.origin).parent / WEIGHTS, weights_only=True, map_location="cpu"
        )
        self._shift, self._scale = (tensors[name] for name in SCALE)
        self._layers = [
            (tensors[f"net.{name}.weight"], tensors[f"net.{name}.bias"])
            for name in ("slice1.0", "slice2.5", "slice3.9", "slice4.11", "slice5.13")
        ]
        self._importance = [tensors[f"lin{i}.model.1.weight"] for i in range(5)]

    def _features(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [-0.5, 0.5] to features of five layers, each of length 1."""
        x = (2 * images - self._shift) / self._scale
        features = []
        for i, (weight, bias) in enumerate(self._layers):
            if i in (1, 2):
                x = _half(F.max_pool2d(x, 3, stride=1))
            x = F.conv2d(x, weight, bias, padding=2 if i < 2 else 1)
            x = F.relu(_half(x) if i == 0 else x)
            features.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return features

    @torch.inference_mode()
    def forward(self, reconstruction: Tensor, original: Tensor) -> Tensor:
        """Distances (B,) of images (B, 3, H, W) in [-0.5, 0.5]. Equal pictures have 0."""
        total = torch.zeros(len(original))
        layers = zip(
            self._features(reconstruction), self._features(original), self._importance, strict=True
        )
        for a, b, importance in layers:
            total += F.conv2d((a - b) ** 2, importance).mean((1, 2, 3))
        return total


@functools.cache
def _network() -> FeatureDistance:
    return FeatureDistance()


def feature_distance(original: Image.Image, distorted: Image.Image) -> float:
    """The distance of two RGB pictures of one size. Less is better."""
    a, b = (
        torch.from_numpy(np.array(p.convert("RGB"))).permute(2, 0, 1)[None].float() / 255 - 0.5
        for p in (original, distorted)
    )
    return float(_network()(b, a))
