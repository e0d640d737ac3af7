"""The common part of the codings that code a frame as one payload."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from numpy.typing import NDArray

from .. import chunks
from ..arrays import Latents
from ..container import Chunk
from ..threads import one_blas_thread
from . import adaptive
from .coding import Frame, FrameEncoder, finite
from .range_coder import DamagedPayload

# Chosen: the widest known latents have 768 channels (autoencoders on pretrained features).
MAX_CHANNELS = 1024


class WholeFrames:
    """Codes each frame as one payload, independent of the frames before.

    A subclass has `payload`, its inverse `stored`, `quantisation` and `fit`.
    """

    def __init__(self, channels: int) -> None:
        self._channels = channels

    def payload(self, latents: NDArray[Any], quantisation: int, effort: int) -> bytes:
        """The payload of latents (h, w, C)."""
        raise NotImplementedError

    def stored(
        self, payloads: Sequence[bytes], shape: tuple[int, int], quantisations: Sequence[int]
    ) -> list[NDArray[Any]]:
        """The latents (h, w, C) of each payload; DamagedPayload if one is damaged."""
        raise NotImplementedError

    def begun(self, payload: bytes, shape: tuple[int, int], quantisation: int) -> NDArray[Any]:
        """The latents of a payload that ends too early."""
        msg = "it ends too early"
        raise DamagedPayload(msg)

    def learns(self, payload: bytes) -> bool:
        """Whether decoding takes as long as `adaptive.work` says, even if there are few bytes."""
        return True

    def draft(self, scale: int) -> Self:
        return self

    def band_rows(self, height: int, width: int) -> int | None:
        return None

    def work(self, height: int, width: int) -> int:
        return adaptive.work(height, width, self._channels)

    def prepare(self, latents: NDArray[Any], quantisation: int) -> NDArray[Any]:
        return finite(latents)

    def encoder(self, quantisation: int, effort: int, *, predict: bool = False) -> FrameEncoder:
        return lambda frame: [self._chunk(frame, quantisation, effort)]

    def _chunk(self, frame: Frame, quantisation: int, effort: int) -> Chunk:
        self._check_channels()
        with one_blas_thread():
            payload = self.payload(frame.latents, quantisation, effort)
        self._check(payload, frame.latents.shape)
        return Chunk(chunks.LATENTS, payload)

    def decode(
        self,
        payload: bytes,
        shape: tuple[int, int],
        quantisation: int,
        before: Any = None,
        *,
        complete: bool = True,
    ) -> NDArray[Any]:
        if complete:
            return self.decode_together([payload], shape, [quantisation])[0]
        self._check(payload, shape)
        with one_blas_thread():
            return self.begun(payload, shape, quantisation)

    def decode_together(
        self, payloads: Sequence[bytes], shape: tuple[int, int], quantisations: Sequence[int]
    ) -> list[NDArray[Any]]:
        for payload in payloads:
            self._check(payload, shape)
        with one_blas_thread():
            return self.stored(payloads, shape, quantisations)

    def cells(self, integers: NDArray[Any], quantisation: int) -> int:
        return quantisation

    def latents(self, integers: NDArray[Any], quantisation: int) -> Latents | NDArray[Any]:
        return integers

    def _check_channels(self) -> None:
        if self._channels > MAX_CHANNELS:
            msg = f"latents of {self._channels} channels, more than the limit of {MAX_CHANNELS}"
            raise DamagedPayload(msg)

    def _check(self, payload: bytes, shape: tuple[int, ...]) -> None:
        """DamagedPayload if there are too many channels, or too few bytes for the work."""
        self._check_channels()
        if self.learns(payload):
            adaptive.check_work(shape[0], shape[1], self._channels, len(payload))
