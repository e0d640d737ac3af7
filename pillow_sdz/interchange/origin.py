"""`Origin` and `LatentFile`: what a file of latents holds, whichever tool wrote it."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Other = tuple[str, tuple[int, ...], str]  # an array: dtype, shape, and bytes in base64

#: The types that numpy lacks, by torch's names.  Arrays of them are float32 here.
NARROW = frozenset(("bfloat16", "float8_e4m3fn", "float8_e5m2"))
#: The types that latents may have.
FLOATS = NARROW | {"float16", "float32", "float64"}
#: The types that the other arrays of a kohya cache may have.
NUMBERS = frozenset(np.dtype(code).name for code in "?bBhHiIqQefd")
#: The other arrays of a kohya cache, with the types that sd-scripts writes.
KOHYA_TYPES = {"original_size": "int64", "crop_ltrb": "int64", "alpha_mask": "float32"}
#: Names of arrays that an origin can keep.
KEY = re.compile(r"[\w.-]{1,64}", re.ASCII)
#: Bytes of an array besides latents that an origin keeps.  Chosen: a float32 mask of 1024x1024
#: pixels has as many.
MAX_OTHER = 4 << 20
#: Axes of an array, and other arrays of an origin.  Chosen: caches have 5 and a dozen.
MAX_AXES, MAX_OTHERS = 8, 64
#: How the names of a kohya cache's arrays end.
RESOLUTION = re.compile(r"(?:_\d{1,5}x\d{1,5})?")
#: Parts of one cache.  Chosen: a million pictures.  (Caches of several resolutions have a dozen.)
MAX_PARTS = 1 << 20
#: The fingerprint by which a trainer recognises its dataset.
FINGERPRINT = re.compile(r"[\w.-]{0,64}", re.ASCII)

_CACHE = re.compile(r"(?:[0-9a-f]{32})?")
# In JSON, these are lists or null.
_SIZES = {"original_size": 2, "crop_ltrb": 4, "channels": 2}


@dataclass(frozen=True)
class Origin:
    """What a file of latents says besides its latents and its mask: enough to write it again.

    ``layout`` is the name of a row of `interchange.LAYOUTS`, ``format`` the suffix of the file's
    name.  ``dtype`` is the type of the latents.  ``metadata`` is that of a safetensors file;
    ComfyUI keeps the workflow there.  If a file has several parts, all of them have the same
    ``cache``, and this is number ``part`` of ``parts``.

    The other fields belong to one layout.  Plain: ``batched`` says whether the array had four
    dimensions, and ``key`` is its name, or "" for a tensor alone in a .pt file.  ComfyUI:
    ``marked`` says whether the values were the VAE's own.  Kohya: ``resolution`` is the ending of
    the arrays' names ("" or "_64x48"), ``original_size`` is (width, height) and ``crop_ltrb``
    (left, top, right, bottom), in pixels.
    ``flipped`` says that the second latents are those of the mirrored picture.  ``dtypes`` has the
    types of the other arrays if they are not `KOHYA_TYPES`.  Trainers' tensors: ``key`` is the
    name, ``shape`` that of the tensor in the file, and ``others`` has small tensors by name: their
    dtype, their shape, and their bytes in base64.  If only some of a tensor's channels are latents,
    ``channels`` has the first of these and the one after their last.  ``others`` has the rest by
    the tensor's own name, with a length of 1 along axes along which it does not change.
    Diffusion-pipe: ``stacked`` has the names of the tensors that are one batch here, if there are
    several.  ``shard`` is the number of the item's shard, and ``fingerprint`` that of the dataset.
    """

    layout: str
    format: str
    dtype: str = "float32"
    batched: bool = False
    key: str = "latents"
    resolution: str = ""
    original_size: tuple[int, ...] | None = None
    crop_ltrb: tuple[int, ...] | None = None
    flipped: bool = False
    marked: bool = True
    metadata: Mapping[str, str] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    cache: str = ""
    part: int = 0
    parts: int = 1
    shape: tuple[int, ...] | None = None
    others: Mapping[str, Other] = field(default_factory=dict)
    stacked: tuple[str, ...] = ()
    shard: int = 0
    fingerprint: str = ""
    channels: tuple[int, int] | None = None

    def json(self) -> dict[str, Any]:
        """The fields that do not have their default values, as JSON knows them."""
        default = asdict(Origin(self.layout, self.format))
        said = {name: value for name, value in asdict(self).items() if value != default[name]}
        return {"layout": self.layout, "format": self.format, **said}


@dataclass(frozen=True)
class LatentFile:
    """The latents in a file, or those of one part of it.

    ``latents`` are (C, h, w) or (B, C, h, w).  They have the type and the values of their layout
    (see `interchange.unit`).  A kohya cache with flipped latents is a batch of two.
    ``alpha_mask`` is (height, width) in 0..1.
    """

    latents: Array
    origin: Origin
    alpha_mask: Array | None = None
    #: The family that the file says it is of, or None.
    family: str | None = None
    #: What to call this part, for people, or "".
    name: str = ""

    def with_others(self, others: Mapping[str, Other]) -> LatentFile:
        """This part, with other arrays of its file in its origin."""
        return replace(self, origin=replace(self.origin, others=others))


def held_as(dtype: str) -> np.dtype[Any]:
    """The type that numpy has for values of a type."""
    return np.dtype("float32" if dtype in NARROW else dtype)


def as_bits(array: Array, dtype: str) -> bytes:
    """The bytes of an array, little-endian; those of types that numpy lacks as float32."""
    return np.ascontiguousarray(array, held_as(dtype).newbyteorder("<")).tobytes()


def from_bits(data: bytes, dtype: str) -> Array:
    """The inverse of `as_bits`, as one row; ValueError if the bytes are not whole values."""
    kind = held_as(dtype)
    return np.frombuffer(data, kind.newbyteorder("<")).astype(kind)


def parse(data: Mapping[str, Any], formats: Mapping[str, Collection[str]]) -> Origin:
    """Read what `Origin.json` returned; ValueError if it cannot have returned this.

    Anyone may have made the file that ``data`` comes from.  ``formats`` has the suffixes of each
    layout's files.
    """
    if unknown := data.keys() - {known.name for known in fields(Origin)}:
        msg = f"not an origin of latents: {shown(min(unknown))} is unknown"
        raise ValueError(msg)
    if missing := {"layout", "format"} - data.keys():
        msg = f"not an origin of latents: {min(missing)} is missing"
        raise ValueError(msg)
    values: dict[str, Any] = {
        name: tuple(value)
        if name in (*_SIZES, "shape", "stacked") and isinstance(value, list)
        else value
        for name, value in data.items()
    }
    origin = Origin(**values)
    for name, sound in _checks(origin, formats):
        if not sound:
            msg = f"not an origin of latents: {name} is {shown(getattr(origin, name))}"
            raise ValueError(msg)
    return origin


def _checks(o: Origin, formats: Mapping[str, Collection[str]]) -> Iterator[tuple[str, bool]]:
    """The names of all fields, and whether their values are possible."""
    is_known = isinstance(o.layout, str) and o.layout in formats
    yield "layout", is_known
    yield "format", is_known and o.format in formats[o.layout]
    yield "dtype", isinstance(o.dtype, str) and o.dtype in FLOATS
    yield "batched", isinstance(o.batched, bool)
    yield "key", _matches(KEY, o.key) or (o.layout, o.format, o.key) == ("plain", ".pt", "")
    yield "resolution", _matches(RESOLUTION, o.resolution)
    for name, count in _SIZES.items():
        sizes = getattr(o, name)
        yield name, sizes is None or are_integers(sizes, count)
    yield "flipped", isinstance(o.flipped, bool)
    yield "marked", isinstance(o.marked, bool)
    yield "metadata", _are_texts(o.metadata)
    yield "dtypes", _are_texts(o.dtypes) and o.dtypes.keys() <= KOHYA_TYPES.keys()
    yield "dtypes", all(dtype in NUMBERS for dtype in o.dtypes.values())
    yield "cache", _matches(_CACHE, o.cache)
    yield "parts", are_integers((o.parts,), 1) and 0 < o.parts <= MAX_PARTS
    yield "shape", o.shape is None or _is_shape(o.shape)
    yield "others", _are_others(o.others)
    yield "stacked", _are_names(o.stacked)
    yield "shard", are_integers((o.shard,), 1) and o.shard >= 0
    yield "fingerprint", _matches(FINGERPRINT, o.fingerprint)
    yield "part", are_integers((o.part,), 1) and 0 <= o.part < o.parts


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _are_names(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= MAX_OTHERS
        and all(_matches(KEY, name) for name in value)
        and len(set(value)) == len(value)
    )


def _are_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_shape(value: object) -> bool:
    return (
        isinstance(value, (tuple, list))
        and len(value) <= MAX_AXES
        and are_integers(tuple(value), len(value))
        and all(length >= 0 for length in value)
    )


def _are_others(value: object) -> bool:
    if not isinstance(value, dict) or len(value) > MAX_OTHERS:
        return False
    return all(KEY.fullmatch(str(name)) and _is_other(other) for name, other in value.items())


def _is_other(value: object) -> bool:
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        return False
    dtype, shape, text = value
    if not isinstance(dtype, str) or dtype not in FLOATS | NUMBERS or not _is_shape(shape):
        return False
    size = math.prod(shape) * held_as(dtype).itemsize
    if not isinstance(text, str) or size > MAX_OTHER:
        return False
    try:
        return len(base64.b64decode(text, validate=True)) == size
    except ValueError:
        return False


def are_integers(values: object, count: int) -> bool:
    """Whether this is a tuple of this many integers below 2^31 in magnitude."""
    return (
        isinstance(values, tuple)
        and len(values) == count
        and all(type(v) is int and abs(v) < 1 << 31 for v in values)
    )


def shown(value: object) -> str:
    """A value from somebody's file for a message: short, and harmless for a terminal."""
    text = repr(value)
    return text if len(text) <= 66 else f"{text[:62]}...{text[-1]}"
