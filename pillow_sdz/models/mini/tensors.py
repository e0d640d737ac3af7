"""The tensors of `mini`'s networks, as its variants for less work need them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...arrays import Ints
from ...codings.rate_axis import APART, RateAxis
from .shape import BASE, FACTOR

Tensors = Mapping[str, NDArray[Any]]

# The encoder's tensors that have latents' channels, and the axis along which they have them.
ENCODER_CHANNELS = {
    "encoder.linear.weight": 0,
    "encoder.linear.bias": 0,
    "encoder.leave.weight": 0,
    "encoder.leave.bias": 0,
    "encoder.gate.weight": 1,
}


def knots(places: Ints) -> NDArray[np.float32]:
    """The weights of the knots at places on the rate axis, (..., KNOTS), which sum to 1."""
    return RateAxis.knots(places) / np.float32(APART)


def part(tensors: Tensors, name: str) -> dict[str, NDArray[Any]]:
    """The tensors whose names begin with this one."""
    return {k: v for k, v in tensors.items() if k.startswith(f"{name}.")}


def encoder_of_base(tensors: Tensors) -> dict[str, NDArray[Any]]:
    """The tensors of an encoder that finds the base alone."""
    found = dict(tensors)
    for name, axis in ENCODER_CHANNELS.items():
        found[name] = np.ascontiguousarray(found[name].take(range(BASE), axis))
    return found


def tensors_of_decoders(tensors: Tensors, heads: Tensors) -> dict[str, NDArray[Any]]:
    """All tensors of the decoders for full size, 1/2 and 1/4."""
    found = {**part(tensors, "decoder"), **heads}
    for scale in (2, 4):
        found[f"{scale}.linear.weight"] = reduced_linear(tensors["decoder.linear.weight"], scale)
        found[f"{scale}.gate.weight"] = reduced_gate(tensors["decoder.gate.weight"], scale)
    return found


def reduced_linear(weight: NDArray[Any], scale: int) -> NDArray[np.float32]:
    """The kernels of the linear path, reduced exactly: a mean of pixels is a mean of kernels."""
    side = FACTOR // scale
    kernels = weight.astype(np.float32).reshape(3, side, scale, side, scale, *weight.shape[1:])
    reduced: NDArray[np.float32] = kernels.mean((2, 4)).reshape(-1, *weight.shape[1:])
    return reduced


def reduced_gate(weight: NDArray[Any], scale: int) -> NDArray[np.float32]:
    """The gate (KNOTS, 48) of 4x4 pixels, reduced to the 2x2 pixels of one place of a head.

    The values are means.  From 1/4 on, each pixel has the mean of all 4x4.
    """
    side = min(scale, 4)
    gates = weight.astype(np.float32).reshape(-1, 3, 4 // side, side, 4 // side, side)
    # This is a copy, because nobody can write to a broadcast array.
    reduced = np.broadcast_to(gates.mean((3, 5)), (len(weight), 3, 2, 2)).copy()
    return reduced.reshape(len(weight), -1)


def adjoint_of_decoder(tensors: Tensors) -> dict[str, NDArray[Any]]:
    """The weights of the decoder's layers as `training.adjoint` needs them.

    The adjoint of a convolution is a convolution whose kernel is turned by half a circle, and whose
    inputs and outputs have changed places.
    """
    found: dict[str, NDArray[Any]] = {}
    for name, values in part(tensors, "decoder").items():
        if name.endswith(".weight") and values.ndim == 4:
            turned = values.swapaxes(0, 1)[..., ::-1, ::-1]
            found[name.replace("decoder.", "adjoint.", 1)] = np.ascontiguousarray(turned)
    return found
