"""The data of the HEAD chunk: what can be known of a picture without its pixels."""

# This file does not have `from __future__ import annotations`, because it would compile the type of
# each field of a NamedTuple when the file is imported.  The same holds for other files with a
# NamedTuple that are imported to open a picture.

from struct import Struct
from typing import NamedTuple, Self, TypeGuard

VERSION = 1

# The index is the byte in the header.
MODES = ("L", "RGB", "LA", "RGBA")

MAX_SIDE = 65535  # what the header's u16 holds
MAX_FRAMES = 65535  # what the header's u16 holds
MAX_CHANNELS = 0xFFFF  # what the header's u16 holds
MAX_FACTOR = 0xFF  # what the header's u8 holds

STEP_UNITS = 1024  # quantisation steps are in 1/1024 of a latent

_IN_NAMES = "abcdefghijklmnopqrstuvwxyz0123456789._-"
_LONGEST_NAME = 32

_BEFORE_MODEL = Struct(">BBHHHB")
_AFTER_MODEL = Struct(">4sHBBH")
#: The most bytes that the data may have.
LONGEST = _BEFORE_MODEL.size + 0xFF + _AFTER_MODEL.size

#: What `is_name` asks for, in words.
ANY_NAME = f"1 to {_LONGEST_NAME} characters of a-z 0-9 . _ -, the first one of a-z 0-9"


def is_name(text: object) -> TypeGuard[str]:
    """Whether this may be the name of a model or a latent space.

    A path or a repository of the hub may not.
    """
    return (
        isinstance(text, str)
        and 1 <= len(text) <= _LONGEST_NAME
        and text[0] not in "._-"
        and not text.strip(_IN_NAMES)
    )


class Header(NamedTuple):
    """The data of the HEAD chunk.

    ``size`` is (width, height) in pixels.  ``digest`` is the first 4 bytes of the sha256 of the
    model's weights.  ``channels`` is the number of channels of the latents, ``factor`` the number
    of pixels along one side of a latent.  ``coding`` is the coding's number.  ``quantisation``,
    0..65535, says how finely it quantises; see `spaces.CodingSpec`.  `catalogue.judge` checks
    whether all this fits the model.
    """

    mode: str
    size: tuple[int, int]
    model: str
    digest: bytes
    channels: int
    factor: int
    quantisation: int
    coding: int = 0
    frames: int = 1

    @property
    def latents(self) -> tuple[int, int, int]:
        """The latents' shape (channels, height, width)."""
        width, height = self.size
        return self.channels, -(-height // self.factor), -(-width // self.factor)

    @property
    def has_alpha(self) -> bool:
        return self.mode.endswith("A")

    def pack(self) -> bytes:
        """The data of the HEAD chunk; ValueError if a field cannot be written."""
        if complaint := self._complaint():
            raise ValueError(complaint)
        name = self.model.encode("ascii")
        mode = MODES.index(self.mode)
        before = _BEFORE_MODEL.pack(VERSION, mode, *self.size, self.frames, len(name))
        after = _AFTER_MODEL.pack(
            self.digest, self.channels, self.factor, self.coding, self.quantisation
        )
        return before + name + after

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The header in the data of a HEAD chunk; OSError if it is damaged or of a newer format."""
        if data and data[0] != VERSION:
            msg = (
                f"SDZ format version {data[0]}: a newer version of pillow-sdz is needed, "
                f"this one reads version {VERSION}"
            )
            raise OSError(msg)
        if len(data) < _BEFORE_MODEL.size:
            msg = f"damaged SDZ header: {len(data)} bytes"
            raise OSError(msg)
        _, mode, width, height, frames, name_length = _BEFORE_MODEL.unpack_from(data)
        expected = _BEFORE_MODEL.size + name_length + _AFTER_MODEL.size
        if len(data) != expected:
            msg = f"damaged SDZ header: {len(data)} bytes instead of {expected}"
            raise OSError(msg)
        if mode >= len(MODES):
            msg = f"damaged SDZ header: unknown mode {mode}"
            raise OSError(msg)
        after_name = _BEFORE_MODEL.size + name_length
        # Bytes that are not ASCII become a character that no name may have.
        name = data[_BEFORE_MODEL.size : after_name].decode("ascii", "replace")
        digest, channels, factor, coding, quantisation = _AFTER_MODEL.unpack_from(data, after_name)
        size = width, height
        header = cls(
            MODES[mode], size, name, digest, channels, factor, quantisation, coding, frames
        )
        if complaint := header._complaint():
            msg = f"damaged SDZ header: {complaint}"
            raise OSError(msg)
        return header

    def _complaint(self) -> str | None:
        """What is wrong with the fields, or None.  Reader and writer share this check."""
        width, height = self.size
        if self.mode not in MODES:
            return f"mode {self.mode}"
        if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
            return f"size {width}x{height}, each side must have 1 to {MAX_SIDE} pixels"
        if not is_name(self.model):
            return f"model name {self.model!r}"
        if len(self.digest) != 4:
            return f"digest of {len(self.digest)} bytes"
        if not 1 <= self.channels <= MAX_CHANNELS:
            return f"{self.channels} latent channels"
        if not 1 <= self.factor <= MAX_FACTOR:
            return f"factor {self.factor}"
        if not 0 <= self.coding <= 0xFF:
            return f"coding {self.coding}"
        if not 0 <= self.quantisation <= 0xFFFF:
            return f"a quantisation of {self.quantisation}"
        if not 1 <= self.frames <= MAX_FRAMES:
            return f"{self.frames} frames"
        return None
