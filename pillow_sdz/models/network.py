"""The contract between the codec and every autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from ..arrays import Area, Latents, Mapped, Pixels, Quantisation, Samples
from ..catalogue import ModelSpec

#: A header's quantisation, and that of each area if there may be a map.
Qualities = int | Mapped


class Network(Protocol):
    """Pixels (H, W, 3) <-> latents (ceil(H/factor), ceil(W/factor), C), in numpy arrays.

    Latents are scaled as pipelines return them.  The caller's settings of torch do not change the
    results, and a network does not change these settings.
    """

    def encode(self, pixels: Samples, quantisation: Quantisation) -> Latents:
        """The latents of pixels, which are read area by area.

        ``quantisation`` is the one with which they will be coded.
        """
        ...

    def decode(
        self,
        latents: Samples,
        quantisation: Qualities,
        *,
        area: Area | None = None,
        scale: int = 1,
    ) -> Iterator[tuple[Area, Pixels]]:
        """The pixels of latents, piece by piece: each piece's place in the picture, and its pixels.

        ``quantisation`` is the one with which they were coded.  It is asked for an area after the
        area's latents.  If the model's specification has `by_area`, the pieces cover at least
        ``area`` of the latents, otherwise the whole picture.  ``scale`` is one of the
        specification's scales.  Pictures are at 1/scale of their size, and places are in pixels of
        these pictures.
        """
        ...


#: Makes the network of an embedded model; OSError if its weights are damaged.  The argument is
#: `models.load`.  A network that has parts of another one needs it.
Loader = Callable[[Callable[[ModelSpec], Network]], Network]
