"""What the search for better latents needs of `mini`: its decoder and prior in torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ... import forks
from ...arrays import CELL, Ints, Samples
from ..running import built, undisturbed
from .network import Decoder, Gain
from .rate import RateModel
from .refinement import refine
from .shape import BASE, CHANNELS


@contextmanager
def one_thread() -> Iterator[None]:
    """Give torch one thread, and the caller's number again at the end.

    More threads save little on a tile, and they spin on a busy machine while they wait.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_lock = forks.Lock()
_callers: list[str | None] = []  # the caller's precision of products, once for each search


def _precision() -> str | None:
    """The precision of products in torch, or None if each library has one of its own."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


@contextmanager
def float32_products() -> Iterator[None]:
    """Let torch multiply in float32, and as the caller has set it again at the end.

    With ``torch.set_float32_matmul_precision("medium")``, some CPUs multiply in bfloat16.  Then a
    file of effort 6 had 1.24 times the bytes and lost 1 dB (160x120, Xeon with AMX).  All threads
    share this setting, so the last search restores it.
    """
    with _lock:
        before = _callers[0] if _callers else _precision()
        _callers.append(before)
        if before is not None:
            torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        with _lock:
            _callers.pop()
            if before is not None and not _callers:
                torch.set_float32_matmul_precision(before)


class Search:
    """The search.  It gets the tensors of `mini`'s file, without the prefix of the autoencoder."""

    @torch.inference_mode(False)
    @undisturbed()
    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        found = {name: torch.from_numpy(values) for name, values in tensors.items()}

        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(f"{name}."): v for k, v in found.items() if k.startswith(name)}

        decoder, self._gain = built(Decoder, part("decoder")), built(Gain, part("gain"))
        # The decoder of the base alone takes less time.
        self._decoders = {CHANNELS: decoder, BASE: decoder.of_base()}
        self._rate_model = RateModel(part("prior"))

    @one_thread()
    @float32_products()
    @undisturbed()
    @torch.inference_mode(False)  # the search needs gradients
    def refine(
        self,
        pixels: Samples | None,
        steps: NDArray[np.float32],
        hyper: NDArray[np.float32],
        *,
        places: Ints,
        effort: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `refinement.refine`."""
        return refine(
            self._rate_model, self._decode, pixels, steps, hyper, places=places, effort=effort
        )

    def _decode(self, latents: Tensor, rate: Tensor) -> Tensor:
        channels, height, width = latents.shape[1:]
        gain = self._gain(rate, CELL, height, width)[:, :channels]
        pictures: Tensor = self._decoders[channels](latents / gain, rate)
        return pictures
