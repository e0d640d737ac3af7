"""The layers over the latents of a frame: its alpha channel and its exact regions."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from PIL import Image

from . import alpha
from .header import Header
from .order import MAX_CHANGES
from .reading import Frames, Reader

if TYPE_CHECKING:
    from .arrays import Box
    from .exact import Regions


class Layers:
    """The layers of the frames of a file, which are read when they are asked for."""

    def __init__(self, header: Header, frames: Frames, reader: Reader) -> None:
        self._header, self._frames, self._reader = header, frames, reader
        # The frame whose exact regions were read last.  The regions of the next frame may build on
        # them.
        self._latest: tuple[int, Regions | None] = -1, None

    def alpha(self, number: int, box: Box, scale: int, *, lenient: bool) -> Image.Image:
        """A part of a frame's alpha channel, of mode L.

        ``box`` is in pixels of the picture at 1/scale of its size.  OSError if the alpha channel is
        damaged; with ``lenient``, it is opaque then.
        """
        try:
            return self._alpha(number, box, scale)
        except OSError as e:
            if not lenient:
                raise
            warnings.warn(f"{e}: the picture is opaque", stacklevel=5)
            return Image.new("L", (box[2] - box[0], box[3] - box[1]), 255)

    def _alpha(self, number: int, box: Box, scale: int) -> Image.Image:
        for frame in range(number, max(0, number - MAX_CHANGES) - 1, -1):
            entry = self._frames.alpha(frame)
            if entry is None:
                msg = "truncated SDZ file: it ends before the alpha channel does"
                raise OSError(msg)
            data = self._reader.data(entry)
            if data != alpha.AS_BEFORE:
                if data == alpha.IN_EXACT:
                    whole = self._alpha_in_exact()
                else:
                    whole = alpha.decode(data, self._header.size)
                return (whole.reduce(scale) if scale > 1 else whole).crop(box)
        msg = "damaged SDZ file: chunk ALPH repeats the frame before, which has no alpha"
        raise OSError(msg)

    def _alpha_in_exact(self) -> Image.Image:
        regions = self._exact(0) if self._header.frames == 1 else None
        if regions is None or not regions.has_alpha:
            msg = "damaged SDZ file: chunk ALPH refers to EXCT, which has no alpha"
            raise OSError(msg)
        return regions.alpha()

    def exact(self, number: int, *, lenient: bool) -> Regions | None:
        """The exact regions of a frame; None if it has none.

        OSError if they are damaged; with ``lenient``, the frame has none then.
        """
        try:
            return self._exact(number)
        except OSError as e:
            if not lenient:
                raise
            warnings.warn(f"{e}: text and other graphics are lost", stacklevel=5)
            return None

    def share(self, number: int) -> float:
        """The part of a frame's pixels that is exact, in 0..1; 0 if that cannot be read."""
        if number >= len(self._frames):
            return 0  # the file is truncated
        try:
            regions = self._exact(number)
        except OSError:
            return 0
        return 0 if regions is None else round(regions.share, 4)

    def _exact(self, number: int) -> Regions | None:
        if self._frames.exact(number) is None:
            return None
        from . import exact  # here, because it imports numpy, which most files do not need

        latest, regions = self._latest
        chain: list[bytes] = []
        for frame in range(number, max(0, number - MAX_CHANGES) - 1, -1):
            if frame == latest:
                break
            entry = self._frames.exact(frame)
            data = b"" if entry is None else self._reader.data(entry)
            chain.append(data)
            if not exact.builds_on_the_frame_before(data):
                regions = None
                break
        else:
            regions = None
        for data in reversed(chain):
            regions = exact.Regions(data, self._header.size, regions) if data else None
            if regions is not None and regions.has_alpha and not self._may_have_alpha(number):
                msg = "damaged SDZ file: chunk EXCT has alpha that chunk ALPH does not refer to"
                raise OSError(msg)
        self._latest = number, regions
        return regions

    def _may_have_alpha(self, number: int) -> bool:
        """Whether the EXCT chunk of a frame may have alpha.  ALPH may be missing at the end."""
        entry = self._frames.alpha(number)
        is_one = self._header.has_alpha and self._header.frames == 1
        return is_one and (entry is None or entry.length == len(alpha.IN_EXACT))
