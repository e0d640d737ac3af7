"""What the search for better latents needs of `mini`: its decoder and prior in torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...arrays import Samples
from ..running import built, undisturbed
from . import refinement
from .network import Autoencoder, rate_of


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


class Search:
    """Built from the tensors of `mini`'s file, without the prefix of the autoencoder."""

    @torch.inference_mode(False)
    @undisturbed()
    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        found = {name: torch.from_numpy(values) for name, values in tensors.items()}

        def part(*names: str) -> dict[str, Tensor]:
            return {k: v for k, v in found.items() if k.partition(".")[0] in names}

        self._autoencoder = built(Autoencoder, part("encoder", "decoder", "gain"))
        prior = {k.removeprefix("prior."): v for k, v in part("prior").items()}
        self._rate_model = refinement.RateModel(prior)

    @one_thread()
    @undisturbed()
    @torch.inference_mode(False)  # the search needs gradients
    def refine(
        self,
        pixels: Samples | None,
        steps: NDArray[np.float32],
        hyper: NDArray[np.float32],
        *,
        quality: int,
        effort: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `refinement.refine`."""
        rate = rate_of(quality)
        gain = self._autoencoder.gain(rate)
        return refinement.refine(
            self._rate_model,
            lambda latents: self._autoencoder.decoder(latents / gain, rate),
            pixels,
            steps,
            hyper,
            quality=quality,
            effort=effort,
        )
