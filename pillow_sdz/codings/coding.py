"""The contract between the codec and every coding of latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..arrays import Latents, Quantisation, Samples
from ..container import Chunk
from .target_size import EncodedLatents


class Frame(NamedTuple):
    """Latents (h, w, C) to be coded, and the pixels (H, W, 3) that they stand for, if known.

    If the latents depend on the header's quantisation, ``quantisation`` is the one that they were
    made for.  ``offsets`` is the map of `quality_map`, if the quality varies over the picture.
    ``unseen`` says of each cell of 2x2 latents whether nobody sees it, so that any latents will do.
    """

    latents: NDArray[Any]
    pixels: Samples | None = None
    offsets: NDArray[np.int32] | None = None
    quantisation: int | None = None
    unseen: NDArray[np.bool_] | None = None


#: The work that each byte of latents allows: see `Coding.work`.  Chosen:
#: docs/measurements.md#adaptive.
WORK_PER_BYTE = 384

#: Codes the next frame of a file into chunks, one for each band.  ValueError if readers would
#: refuse them.
FrameEncoder = Callable[[Frame], list[Chunk]]


def finite(latents: NDArray[Any]) -> NDArray[np.float32]:
    """Latents in float32; ValueError if some are infinite or not a number."""
    with np.errstate(over="ignore"):  # infinite values are refused below
        found = latents.astype(np.float32)
    if not np.isfinite(found).all():
        msg = "latents have values that are infinite or not a number"
        raise ValueError(msg)
    return found


class Coding(Protocol):
    """Latents (h, w, C) of one model <-> the payloads of chunks.

    ``quantisation`` is the header's.  The coding's `spaces.CodingSpec` has its unit.
    """

    def quantisation(self, quality: float) -> int:
        """The quantisation for a quality of 1 to 100; the only one if there is no choice."""
        ...

    def draft(self, scale: int) -> Coding:
        """The coding that decodes what a picture at 1/scale of its size shows, or more.

        Its latents may have the first channels alone.
        """
        ...

    def band_rows(self, height: int, width: int) -> int | None:
        """How many rows of latents a band has; None if a frame is one band."""
        ...

    def work(self, height: int, width: int) -> int:
        """The work to decode a frame of latents (height, width): the number of values.

        Values that take longer count more.  The work is 0 if the time depends on the bytes alone.
        """
        ...

    def prepare(self, latents: NDArray[Any], quantisation: int) -> NDArray[Any]:
        """Latents of any shape as `encoder` takes them; ValueError for values it cannot code."""
        ...

    def encoder(self, quantisation: int, effort: int, *, predict: bool = False) -> FrameEncoder:
        """A function that codes the frames of a file, one after another.

        ``effort``, 0 to 9, trades time for bytes.  With ``predict``, a frame may be stored as the
        difference from the frame before.
        """
        ...

    def fit(
        self, frames: Sequence[Frame], limit: int, effort: int, *, predict: bool = False
    ) -> EncodedLatents:
        """The best coding of the frames in ``limit`` bytes of chunks; DoesNotFit if none fits."""
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
        """The integers of a band of latents (h, w); `DamagedPayload` if the payload is damaged.

        For a DIFF chunk, ``before`` has the integers of the same band in the frame before.  If the
        payload is not ``complete``, the integers that it lacks are the likeliest ones.
        """
        ...

    def cells(self, integers: Any, quantisation: int) -> Quantisation:
        """The quantisation of each cell of decoded integers, or the header's if all have it."""
        ...

    def decode_together(
        self, payloads: Sequence[bytes], shape: tuple[int, int], quantisations: Sequence[int]
    ) -> list[Any]:
        """As `decode`, for the LATN chunks of many frames or files, which may share the work."""
        ...

    def latents(self, integers: Any, quantisation: int) -> Latents | NDArray[Any]:
        """The latents (h, w, C) of decoded integers, in float32 or in a lossless dtype."""
        ...
