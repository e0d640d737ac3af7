"""The data of the aNIM chunk: how often frames are shown, and for how long."""

from __future__ import annotations

import itertools
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from .chunks import About

_LOOP = Struct(">H")
_DURATION = Struct(">I")


class Animation(NamedTuple):
    """How often the frames are shown, and for how long.

    ``loop`` is 1 to 65535 times, or 0 for ever.  ``durations`` are milliseconds: one for each
    frame, or one for all.
    """

    loop: int
    durations: tuple[int, ...]

    def pack(self) -> bytes:
        """The data of the aNIM chunk."""
        return _LOOP.pack(self.loop) + b"".join(map(_DURATION.pack, self.durations))

    @classmethod
    def parse(cls, data: bytes, about: About) -> Self:
        """The times in the data of an aNIM chunk; OSError if it is damaged."""
        if len(data) not in {_LOOP.size + n * _DURATION.size for n in (1, about.frames)}:
            msg = f"damaged SDZ file: chunk aNIM has {len(data)} bytes for {about.frames} frames"
            raise OSError(msg)
        (loop,) = _LOOP.unpack_from(data)
        durations = _DURATION.iter_unpack(data[_LOOP.size :])
        return cls(loop, tuple(duration for (duration,) in durations))

    def duration(self, frame: int) -> int:
        """How many milliseconds a frame is shown."""
        return self.durations[frame if len(self.durations) > 1 else 0]

    def timestamps(self, frames: int) -> list[int]:
        """When each of the ``frames`` begins, in milliseconds from the start."""
        durations = (self.duration(frame) for frame in range(frames - 1))
        return [*itertools.accumulate(durations, initial=0)]
