"""What a coding is: the contract between the codec and every way of coding latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from ..arrays import Latents, Samples
from ..container import Chunk
from .target_size import EncodedLatents


class Frame(NamedTuple):
    """Latents (h, w, C) to be coded, and the pixels (H, W, 3) that they stand for, if there are."""

    latents: NDArray[Any]
    pixels: Samples | None = None


#: Codes the next frame of a file: its chunks, one for each band.  ValueError for what no reader
#: would accept.
FrameEncoder = Callable[[Frame], list[Chunk]]


class Coding(Protocol):
    """Latents (h, w, C) of one model <-> the payloads of chunks.

    ``quantisation`` is the header's, in the units of the coding's `catalogue.CodingSpec`.
    """

    def quantisation(self, quality: float, effort: int) -> int:
        """The quantisation of a quality of 1 to 100; of a coding that has no choice, its one."""
        ...

    def band_rows(self, height: int, width: int) -> int | None:
        """How many rows of latents a band has; None where a frame is one band."""
        ...

    def work(self, height: int, width: int) -> int:
        """How long a frame of latents (height, width) takes to decode, in `adaptive.work`.

        0 where the time grows with the bytes alone.
        """
        ...

    def prepare(self, latents: NDArray[Any], quantisation: int) -> NDArray[Any]:
        """Latents of any shape as `encoder` takes them; ValueError for values it cannot keep."""
        ...

    def encoder(self, quantisation: int, effort: int, *, predict: bool = False) -> FrameEncoder:
        """What codes the frames of a file, one after another.

        ``effort``, 0 to 9, trades time for bytes.  With ``predict``, a frame may be stored as the
        difference from the frame before.
        """
        ...

    def fit(
        self, frames: Sequence[Frame], limit: int, effort: int, *, predict: bool = False
    ) -> EncodedLatents:
        """The best that all chunks of the frames hold in ``limit`` bytes; or `DoesNotFit`."""
        ...

    def decode(
        self,
        payload: bytes,
        shape: tuple[int, int],
        quantisation: int,
        before: Any = None,
        *,
        complete: bool = True,
    ) -> Any:
        """The integers of a band of latents of ``shape`` (h, w); `DamagedPayload` if it has none.

        ``before`` are those of the same band in the frame before, in a chunk of what changes.  If
        the payload is not ``complete``, what it lacks is what is likeliest.
        """
        ...

    def latents(self, integers: Any, quantisation: int) -> Latents | NDArray[Any]:
        """The latents (h, w, C) that decoded integers stand for, in float32 or a lossless dtype."""
        ...
