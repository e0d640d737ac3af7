"""What a loaded model is: the contract between the codec and every autoencoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from ..arrays import Area, Latents, Pixels, Samples


class Network(Protocol):
    """Pixels (H, W, 3) <-> latents (ceil(H/factor), ceil(W/factor), C), in numpy arrays.

    Latents are scaled as pipelines have them.  Whatever the caller has set of torch for its own
    networks, the result is the same, and the settings stay.
    """

    def encode(self, pixels: Samples) -> Latents:
        """The latents of pixels, which are asked for area by area."""
        ...

    def decode(
        self, latents: Samples, quantisation: int, *, area: Area | None = None, scale: int = 1
    ) -> Iterator[tuple[Area, Pixels]]:
        """The pixels of latents, piece by piece: where in the picture, and the pixels.

        ``quantisation`` is the header's.  Of a model whose specification has `by_area`, the pieces
        cover ``area`` of the latents, at least; of others, the whole picture.  ``scale`` is one of
        the specification's: pictures are so much smaller, and places are in their pixels.
        """
        ...
