"""One row for each kind of chunk before the latents: how it is read, and how it is written.

`Image.open`, `open_latents`, the writer and the fuzzers use this table, so a new kind of chunk is
one row of `KINDS`.  docs/format.md specifies the data.  For bad data, ``parse`` raises OSError and
nothing else.  ``pack`` takes values that `keywords` has checked.
"""

# Without `from __future__ import annotations`: header.py says why.

from collections.abc import Callable, Mapping
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from .rows import Row

if TYPE_CHECKING:
    from typing import Protocol

    import numpy as np
    from numpy.typing import NDArray

    from .animation import Animation

    class About(Protocol):
        """What parsing a chunk needs to know of the header."""

        @property
        def size(self) -> tuple[int, int]:
            """Width and height in pixels."""

        @property
        def factor(self) -> int: ...

        @property
        def frames(self) -> int: ...


HEAD = b"HEAD"
LATENTS = b"LATN"
CHANGES = b"DIFF"
ALPHA = b"ALPH"
EXACT = b"EXCT"
DONE = b"DONE"

CODED = frozenset({LATENTS, CHANGES})  # a band's latents, or their difference from the frame before
FRAME = CODED | {ALPHA, EXACT}  # every frame has its own

TUNES = ("psnr", "perceptual")  # a file without tUNE has the first one

MAX_METADATA = 8 << 20  # bytes of one chunk; libpng's limit
MAX_DURATION = (1 << 32) - 1  # milliseconds: what a u32 holds
MAX_PROMPT = 8192  # bytes.  Chosen: text encoders read 77 to 512 tokens.
# Chosen: five times the article's strength of 40 thousandths, and several times its 3 steps.  A
# step costs as much as a step of generating a picture.
MAX_STRENGTH = 200
MAX_DENOISING_STEPS = 20

# Pillow and JPEG have this before the TIFF stream.  The chunk eXIf has the stream alone.
EXIF_PREFIX = b"Exif\0\0"

_DENOISING = Struct(">HB")
_BANDS = Struct(">H")
_CLIP = Struct(">H")


class Kind(Row):
    """A row of the table.

    ``keyword`` is the value's name in `Image.save` and `save_latents`, and when it is read.
    ``parse`` turns data into the value; OSError if the data is damaged.  ``pack`` turns the value
    into data; ValueError if it cannot be written.  Data longer than ``limit`` bytes is refused
    before it is read.  `Image.open` reads the data only of kinds with ``at_open``.
    """

    type: bytes
    keyword: str
    parse: Callable[[bytes, "About"], Any]
    pack: Callable[[Any], bytes]
    limit: int = MAX_METADATA
    at_open: bool = True


class Denoising(NamedTuple):
    """The denoising that a file recommends.

    ``strength`` is in thousandths of the noise schedule (1..200).  ``steps`` is how often the U-Net
    runs (1..20).
    """

    strength: int
    steps: int

    def pack(self) -> bytes:
        """The data of the dNOI chunk; ValueError if a value is out of range."""
        if complaint := self._complaint():
            raise ValueError(complaint)
        return _DENOISING.pack(*self)

    @classmethod
    def parse(cls, data: bytes, about: "About") -> Self:
        """The recommendation in the data of a dNOI chunk; OSError if it is damaged."""
        if len(data) != _DENOISING.size:
            msg = f"damaged SDZ file: chunk dNOI has {len(data)} bytes"
            raise OSError(msg)
        denoising = cls(*_DENOISING.unpack(data))
        if complaint := denoising._complaint():
            msg = f"damaged SDZ file: chunk dNOI: {complaint}"
            raise OSError(msg)
        return denoising

    def _complaint(self) -> str | None:
        if not 1 <= self.strength <= MAX_STRENGTH:
            return f"a denoising strength of {self.strength / 1000:g}, not 0.001 to 0.2"
        if not 1 <= self.steps <= MAX_DENOISING_STEPS:
            return f"{self.steps} denoising steps, not 1 to {MAX_DENOISING_STEPS}"
        return None


# From the 2022 article: the last two or three of 66 steps, 0.04 of the schedule.
ARTICLES_DENOISING = Denoising(strength=40, steps=3)


def _parse_bytes(data: bytes, about: "About") -> bytes:
    return data


def _parse_exif(data: bytes, about: "About") -> bytes:
    # Pillow returns EXIF of JPEG and PNG with the prefix, and its JPEG writer expects the prefix.
    return EXIF_PREFIX + data


def _pack_exif(exif: bytes) -> bytes:
    return exif.removeprefix(EXIF_PREFIX)


def _parse_prompt(data: bytes, about: "About") -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        msg = "damaged SDZ file: chunk pRMT is not UTF-8"
        raise OSError(msg) from e


def _pack_prompt(prompt: str) -> bytes:
    data = prompt.encode("utf-8", "replace")
    if len(data) > MAX_PROMPT:
        msg = f"prompt has {len(data)} bytes, more than the limit of {MAX_PROMPT}"
        raise ValueError(msg)
    return data


def _parse_tune(data: bytes, about: "About") -> str:
    """One of `TUNES`; the first one for an unknown value, which a later version may have added."""
    if len(data) != 1:
        msg = f"damaged SDZ file: chunk tUNE has {len(data)} bytes"
        raise OSError(msg)
    return TUNES[data[0]] if data[0] < len(TUNES) else TUNES[0]


def _pack_tune(tune: str) -> bytes:
    return bytes([TUNES.index(tune)])


def _parse_grey(data: bytes, about: "About") -> bool:
    if data:
        msg = f"damaged SDZ file: chunk gREY of {len(data)} bytes"
        raise OSError(msg)
    return True


def _pack_grey(is_grey: bool) -> bytes:
    return b""


def _parse_animation(data: bytes, about: "About") -> "Animation":
    from .animation import Animation

    return Animation.parse(data, about)


def _pack_animation(animation: "Animation") -> bytes:
    return animation.pack()


def _parse_bands(data: bytes, about: "About") -> int:
    if len(data) != _BANDS.size:
        msg = f"damaged SDZ file: chunk BAND has {len(data)} bytes"
        raise OSError(msg)
    (rows,) = _BANDS.unpack(data)
    return int(rows)


def _parse_clip(data: bytes, about: "About") -> int:
    (steps,) = _CLIP.unpack(data) if len(data) == _CLIP.size else (0,)
    if steps < 2 or about.frames % steps:
        msg = f"damaged SDZ file: chunk cLIP has {steps} time steps for {about.frames} frames"
        raise OSError(msg)
    return int(steps)


def _parse_provenance(data: bytes, about: "About") -> dict[str, Any]:
    import json
    import zlib

    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, MAX_METADATA)
        if not inflater.eof or inflater.unused_data:
            msg = "it ends too early or too late"
            raise ValueError(msg)
        parsed = json.loads(text)
    except (zlib.error, ValueError, RecursionError) as e:
        msg = f"damaged SDZ file: chunk oRIG: {e}"
        raise OSError(msg) from e
    if not isinstance(parsed, dict):
        msg = "damaged SDZ file: chunk oRIG is no JSON object"
        raise OSError(msg)
    return parsed


def _pack_provenance(provenance: Mapping[str, Any]) -> bytes:
    import json
    import zlib

    try:
        text = json.dumps(dict(provenance), separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as e:
        msg = f"provenance must be a mapping that JSON can hold: {e}"
        raise ValueError(msg) from e
    if len(text) > MAX_METADATA:
        msg = f"provenance has {len(text)} bytes, more than the limit of {MAX_METADATA}"
        raise ValueError(msg)
    return zlib.compress(text.encode("ascii"), 9)


def _parse_mask(data: bytes, about: "About") -> "NDArray[np.float32]":
    from . import mask

    return mask.decode(data, about.size, about.factor)


ICC_PROFILE = Kind(b"iCCP", "icc_profile", _parse_bytes, bytes)
EXIF = Kind(b"eXIf", "exif", _parse_exif, _pack_exif)
XMP = Kind(b"xMPm", "xmp", _parse_bytes, bytes)
DENOISING = Kind(b"dNOI", "denoise", Denoising.parse, Denoising.pack)
PROMPT = Kind(b"pRMT", "prompt", _parse_prompt, _pack_prompt, limit=MAX_PROMPT)
TUNE = Kind(b"tUNE", "tune", _parse_tune, _pack_tune)
ANIMATION = Kind(b"aNIM", "animation", _parse_animation, _pack_animation)
BANDS = Kind(b"BAND", "bands", _parse_bands, _BANDS.pack)
CLIP = Kind(b"cLIP", "clip", _parse_clip, _CLIP.pack)
GREY = Kind(b"gREY", "grey", _parse_grey, _pack_grey, limit=0)
# Imported latents have these two.  Only `open_latents` reads them.
PROVENANCE = Kind(b"oRIG", "provenance", _parse_provenance, _pack_provenance, at_open=False)
MASK = Kind(b"mASK", "alpha_mask", _parse_mask, bytes, at_open=False)  # see `mask.encode`

METADATA = (ICC_PROFILE, EXIF, XMP)

#: The kinds by type.  A file has each at most once, before the latents.
KINDS: dict[bytes, Kind] = {
    kind.type: kind
    for kind in (*METADATA, DENOISING, PROMPT, TUNE, ANIMATION, BANDS, CLIP, GREY, PROVENANCE, MASK)
}


_HOLDS = {
    **dict.fromkeys(CODED, "latents"),
    **dict.fromkeys((HEAD, DONE, BANDS.type, GREY.type), "container"),
    ALPHA: "alpha",
    EXACT: "exact",
}


def holds(type: bytes) -> str:
    """What the bytes of a chunk are counted as in ``info["sdz"]["bytes"]``."""
    return _HOLDS.get(type, "metadata")


def is_type(type: bytes) -> bool:
    """Whether these bytes may be the type of a chunk."""
    return len(type) == 4 and type.isalpha()


def is_known(type: bytes) -> bool:
    """Whether this version knows the type."""
    return type in KINDS or type in FRAME or type in (HEAD, DONE)


def is_critical(type: bytes) -> bool:
    """Whether a reader that does not know the type must refuse the file."""
    return type[:1].isupper()


def is_skippable(type: bytes) -> bool:
    """Whether this type is unknown here, and readers may skip it."""
    return is_type(type) and not is_known(type) and not is_critical(type)


def is_copied(type: bytes) -> bool:
    """Whether this type is unknown here, but stays true when the picture is edited and saved."""
    return not is_known(type) and type[3:4].islower()
