"""Latent files that people already have <-> arrays; nothing here knows of `.sdz`.

Three layouts are read and written:

- ``comfyui``: what ComfyUI's SaveLatent writes, `.latent`, a safetensors file with a batch of the
  VAE's unscaled latents (read from its nodes.py);
- ``kohya``: the `.npz` caches of kohya's sd-scripts, one file for an image, perhaps at several
  resolutions (read from its library/strategy_base.py);
- ``plain``: one array alone in an `.npz`, `.npy` or `.safetensors` file, which is taken to hold
  latents as diffusers' pipelines hand them over with ``output_type="latent"``.

What such a file holds besides is written again with it, or a warning names it; but for the order of
bytes and of dimensions in memory, which change no value. Whatever the bytes, reading raises OSError
(damaged) or ValueError (sound, but no latents).
"""

from __future__ import annotations

import hashlib
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

FORMATS = (".latent", ".npz", ".npy", ".safetensors")

# The multiplier of ComfyUI's latents from before it marked them, whatever their model.
LEGACY_SCALING = 0.18215
MARKER = "latent_format_version_0"

# How sd-scripts ends the names of its caches, and the models whose latents they hold. Those of
# before it trained other models than Stable Diffusion 1, 2 and XL end in a mere `.npz`.
KOHYA_MODELS = {"_sd": "sd1", "_sdxl": "sdxl", "_sd3": "sd3", "_flux": "flux"}

# Inflated, a file may take this much, or its own size where that is more. Chosen: the float32
# latents of 4096x4096 pixels in 16 channels are 16 MiB, its alpha mask 64 MiB.
MAX_INFLATED = 256 << 20

# The files in which each layout is found.
_FORMATS_OF = {"comfyui": (".latent", ".safetensors"), "kohya": (".npz",), "plain": FORMATS}
# What safetensors calls the types that latents may have.
_FLOATS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
# The types of sd-scripts' other arrays, as it writes them, and those they may have instead.
_USUAL = {"original_size": "int64", "crop_ltrb": "int64", "alpha_mask": "float32"}
_NUMBERS = frozenset(np.dtype(code).name for code in "?bBhHiIqQefd")

# Resolutions of one cache.  Chosen: sd-scripts' lists of them have a dozen at most.
MAX_PARTS = 1000
_WARNED_OF = 8  # names in one warning, chosen: a line that can still be read

_KOHYA_LATENTS = re.compile(r"latents((?:_\d{1,5}x\d{1,5})?)")
_KEY = re.compile(r"[\w.-]{1,64}", re.ASCII)
_CACHE = re.compile(r"(?:[0-9a-f]{32})?")


@dataclass(frozen=True)
class Origin:
    """What a latent file says besides its latents and its mask: enough to write it again.

    ``layout`` and ``format`` (the file name's suffix) say what it was, ``dtype`` and ``batched``
    what its array was like.  ``key`` is the array's name in the plain layout.  Of a kohya cache,
    ``resolution`` is the ending of its keys ("" or "_64x48"), ``original_size`` is (width, height)
    and ``crop_ltrb`` (left, top, right, bottom) in pixels, ``flipped`` says that the second latents
    are those of the mirrored image, and ``dtypes`` names the types of its other arrays, where they
    are not as sd-scripts writes them.  Where a cache has several resolutions, all of them have the
    same ``cache``, and this is number ``part`` of ``parts``.  Of a ComfyUI file, ``marked`` is
    whether the values were the VAE's own.  ``metadata`` is that of a safetensors file; ComfyUI's
    has the workflow in it.
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

    def json(self) -> dict[str, Any]:
        """Its fields, those with other than the default values, as JSON knows them."""
        default = asdict(Origin(self.layout, self.format))
        said = {name: value for name, value in asdict(self).items() if value != default[name]}
        return {"layout": self.layout, "format": self.format, **said}

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Origin:
        """The origin that `json` made this of; ValueError where it cannot have."""
        try:
            lists = ("original_size", "crop_ltrb")
            fields: dict[str, Any] = {k: tuple(v) if k in lists else v for k, v in data.items()}
            origin = cls(**fields)
        except TypeError as e:
            msg = f"no origin of latents: {str(e)[:100]}"
            raise ValueError(msg) from e
        if not origin._is_sound():
            msg = f"no origin of latents: {str(dict(data))[:100]}"
            raise ValueError(msg)
        return origin

    def _is_sound(self) -> bool:
        """Whether all fields, which may have come out of anyone's file, are what they must be."""
        return bool(
            isinstance(self.layout, str)
            and self.format in _FORMATS_OF.get(self.layout, ())
            and self.dtype in _FLOATS.values()
            and isinstance(self.key, str)
            and _KEY.fullmatch(self.key)
            and isinstance(self.resolution, str)
            and _KOHYA_LATENTS.fullmatch("latents" + self.resolution)
            and _are_integers(self.original_size, 2)
            and _are_integers(self.crop_ltrb, 4)
            and all(isinstance(f, bool) for f in (self.batched, self.flipped, self.marked))
            and isinstance(self.metadata, dict)
            and all(isinstance(text, str) for text in self.metadata.values())
            and isinstance(self.dtypes, dict)
            and self.dtypes.keys() <= _USUAL.keys()
            and all(isinstance(t, str) and t in _NUMBERS for t in self.dtypes.values())
            and isinstance(self.cache, str)
            and _CACHE.fullmatch(self.cache)
            and _are_integers((self.part, self.parts), 2)
            and 0 <= self.part < self.parts <= MAX_PARTS
        )


@dataclass(frozen=True)
class LatentFile:
    """What a latent file holds, or a kohya cache at one of its resolutions.

    ``latents`` are (C, h, w) or (B, C, h, w), of the dtype and with the values that the layout has
    (see `is_scaled`); those of a kohya cache with flipped latents are a batch of both.
    ``alpha_mask`` is (height, width) in 0..1.
    """

    latents: Array
    origin: Origin
    alpha_mask: Array | None = None


def is_scaled(layout: str, latent_space: str) -> bool:
    """Whether the latents of a layout are scaled and shifted as pipelines hand them over.

    If not, they are as the VAE encodes them.  sd-scripts caches what its VAE returns, and that of
    Flux (the original implementation's) has scaled and shifted already.
    """
    return layout == "plain" or (layout == "kohya" and latent_space == "flux")


def model_named_by(path: Path) -> str | None:
    """The model whose latents these are, by the name that sd-scripts gives its caches."""
    _, underscore, ending = path.stem.rpartition("_")
    return KOHYA_MODELS.get(underscore + ending) if path.suffix.lower() == ".npz" else None


def targets(target: Path, parts: Sequence[LatentFile]) -> list[Path]:
    """The files for a cache's resolutions: ``target``, and others beside it, no two alike.

    The names are for people. What belongs together, the files say themselves (`together`).
    """
    others = [part.origin.resolution[1:] or "latents" for part in parts[1:]]
    return [target, *(target.with_name(f"{target.stem}.{o}{target.suffix}") for o in others)]


def together(files: Iterable[tuple[Path, Origin | None]]) -> list[list[Path]]:
    """The files, those in one list that are one cache's, in the order of its resolutions.

    One cache's are those in the same folder whose origins say so, whatever they are called. Of two
    copies of a resolution each belongs to a cache of its own.
    """
    lists: list[dict[int, Path]] = []
    of_cache: dict[tuple[Path, str], list[dict[int, Path]]] = {}
    for path, origin in files:
        if origin is None or not origin.cache:
            lists.append({0: path})
            continue
        begun = of_cache.setdefault((path.parent, origin.cache), [])
        parts = next((parts for parts in begun if origin.part not in parts), None)
        if parts is None:
            parts = {}
            begun.append(parts)
            lists.append(parts)
        parts[origin.part] = path
    return [[parts[number] for number in sorted(parts)] for parts in lists]


def read(path: Path) -> list[LatentFile]:
    """The latents in a file; more than one where a kohya cache has several resolutions.

    Warns of what is in the file besides, and cannot be written again.
    """
    readers = {
        ".latent": _read_safetensors,
        ".safetensors": _read_safetensors,
        ".npy": _read_npy,
        ".npz": _read_npz,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        msg = f"latents are read from {', '.join(FORMATS)}"
        raise ValueError(msg)
    parts = reader(path)
    for part in parts:
        shape = part.latents.shape
        if len(shape) not in (3, 4) or 0 in shape:
            msg = f"no latents (C, h, w) or (B, C, h, w): an array of the shape {shape}"
            raise ValueError(msg)
        if part.latents.dtype.kind != "f" or part.latents.dtype.itemsize > 8:
            msg = f"no latents: an array of {part.latents.dtype}"
            raise ValueError(msg)
    return parts


def write(file: IO[bytes], format: str, parts: Sequence[LatentFile]) -> None:
    """Write a file of one of the `FORMATS`; only a kohya cache may have more than one part.

    Each part's latents must have the values that `layout_for` and `is_scaled` say. Warns of what
    the file has no place for, and of resolutions that are missing.
    """
    layout = layout_for(format, parts[0].origin)
    if layout == "kohya":
        _write_kohya(file, parts)
        return
    if len(parts) > 1:
        msg = "only sd-scripts' caches have several resolutions"
        raise ValueError(msg)
    (part,) = parts
    if lost := _without_place(part, format):
        warnings.warn(f"a {format} file has no place for {', '.join(lost)}", stacklevel=2)
    if layout == "comfyui":
        file.write(_comfyui_bytes(part.latents, part.origin))
        return
    latents = part.latents
    if part.origin.batched and latents.ndim == 3:
        latents = latents[None]
    if format in (".latent", ".safetensors"):
        tensors = {part.origin.key: latents}
        file.write(_safetensors(tensors, part.origin.dtype, part.origin.metadata))
        return
    latents = latents.astype(_numpys(part.origin.dtype))
    if format == ".npy":
        np.save(file, latents, allow_pickle=False)
    else:
        _save_npz(file, {part.origin.key: latents})


def layout_for(format: str, origin: Origin) -> str:
    """The layout of a file of this format for latents that came from ``origin``."""
    if format == origin.format:
        return origin.layout
    return "comfyui" if format == ".latent" else "plain"


def _without_place(part: LatentFile, format: str) -> list[str]:
    """What a file of one array cannot hold."""
    kohyas = {
        "original_size": part.origin.original_size,
        "crop_ltrb": part.origin.crop_ltrb,
        "alpha_mask": part.alpha_mask,
    }
    lost = [name for name, value in kohyas.items() if value is not None]
    if part.origin.metadata and format in (".npy", ".npz"):
        lost.append("metadata")
    return lost


def _numpys(dtype: str) -> str:
    """The type as numpy has it; every bfloat16, which it has not, is a float32."""
    return "float32" if dtype == "bfloat16" else dtype


def _short(name: str) -> str:
    """An array's name, which anyone may have chosen, for a message: no terminal acts on it."""
    return repr(name if len(name) <= 64 else name[:61] + "...")


def _warn_of_rest(path: Path, rest: Collection[str]) -> None:
    """Warn of a file's arrays that are not kept, by their names."""
    if not rest:
        return
    names = [_short(name) for name in sorted(rest)]
    more = f" and {len(names) - _WARNED_OF} more" if len(names) > _WARNED_OF else ""
    msg = f"{path}: not kept: {', '.join(names[:_WARNED_OF])}{more}"
    warnings.warn(msg, stacklevel=4)


# safetensors, ComfyUI's and plain


def _read_safetensors(path: Path) -> list[LatentFile]:
    from safetensors import SafetensorError, safe_open

    # The library checks that the header's sizes are those of the file, so nothing inflates.
    try:
        with safe_open(path, "numpy") as file:
            metadata, keys = file.metadata() or {}, set(file.keys())
            key = _key_among(keys)
            dtype = file.get_slice(key).get_dtype()
            if dtype not in _FLOATS:
                msg = f"no latents: a tensor of {dtype}"
                raise ValueError(msg)
            array: Array
            if dtype == "BF16":
                with safe_open(path, "pt") as with_torch:
                    array = with_torch.get_tensor(key).float().numpy()
            else:
                array = file.get_tensor(key)
    except SafetensorError as e:
        msg = f"damaged safetensors file: {e}"
        raise OSError(msg) from e
    format, dtype = path.suffix.lower(), _FLOATS[dtype]
    if key != "latent_tensor":
        _warn_of_rest(path, keys - {key})
        origin = _plain_origin(path, array, format, key)
        return [LatentFile(array, replace(origin, dtype=dtype, metadata=metadata))]
    _warn_of_rest(path, keys - {key, MARKER})
    marked = MARKER in keys
    if not marked:
        array = array.astype(np.float32) * np.float32(1 / LEGACY_SCALING)
    return [LatentFile(array, Origin("comfyui", format, dtype, marked=marked, metadata=metadata))]


def _key_among(keys: Collection[str]) -> str:
    """The name of the latents among a safetensors file's."""
    for key in ("latent_tensor", "latents"):
        if key in keys:
            return key
    if len(keys) != 1:
        msg = f"{len(keys)} tensors, none of them called latents or latent_tensor"
        raise ValueError(msg)
    return next(iter(keys))


def _comfyui_bytes(latents: Array, origin: Origin) -> bytes:
    """A file as SaveLatent writes it, or as it did before there was the marker."""
    if latents.ndim == 3:
        latents = latents[None]
    if not origin.marked:
        latents = latents.astype(np.float32) * np.float32(LEGACY_SCALING)
    tensors = {"latent_tensor": latents}
    empty = {MARKER: np.zeros(0, np.float32)} if origin.marked else {}
    return _safetensors(tensors, origin.dtype, origin.metadata, empty)


def _safetensors(
    tensors: Mapping[str, Array],
    dtype: str,
    metadata: Mapping[str, str],
    others: Mapping[str, Array] | None = None,
) -> bytes:
    """A safetensors file of tensors of this type, and of others of their own."""
    arrays = {key: np.ascontiguousarray(t, _numpys(dtype)) for key, t in tensors.items()}
    if dtype == "bfloat16":
        import torch
        from safetensors.torch import save as save_torch

        halves = {key: torch.from_numpy(array).bfloat16() for key, array in arrays.items()}
        rest = {key: torch.from_numpy(array) for key, array in (others or {}).items()}
        return save_torch(halves | rest, dict(metadata) or None)
    from safetensors.numpy import save

    return save(arrays | dict(others or {}), dict(metadata) or None)


# numpy's files, kohya's and plain


def _read_npy(path: Path) -> list[LatentFile]:
    with path.open("rb") as file, _numpy_errors():
        array = _read_array(file, path.stat().st_size)
    return [LatentFile(array, _plain_origin(path, array, ".npy", "latents"))]


def _read_npz(path: Path) -> list[LatentFile]:
    with _numpy_errors(), zipfile.ZipFile(path) as archive:
        members = _members(archive, path.stat().st_size)
        used: set[str] = set()

        def array(key: str) -> Array | None:
            if key not in members:
                return None
            used.add(key)
            with archive.open(members[key]) as file:
                return _read_array(file, members[key].file_size)

        resolutions = [m[1] for key in members if (m := _KOHYA_LATENTS.fullmatch(key))]
        # Without it, as from someone's own np.savez(latents=...), they are not sd-scripts'.
        resolutions = [r for r in resolutions if "original_size" + r in members]
        parts = [_kohya_part(array, resolution) for resolution in resolutions]
        if not parts:
            key = _plain_key(members)
            plain = array(key)
    _warn_of_rest(path, members.keys() - used)
    if parts:
        return _numbered(path, parts)
    assert plain is not None
    return [LatentFile(plain, _plain_origin(path, plain, ".npz", key))]


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """An archive's arrays by name; ValueError where they would inflate to too much."""
    members = archive.infolist()
    inflated = sum(member.file_size for member in members)
    if inflated > max(MAX_INFLATED, size):
        msg = f"its arrays would take {inflated} bytes, the limit is {MAX_INFLATED}"
        raise ValueError(msg)
    named = {member.filename.removesuffix(".npy"): member for member in members}
    if len(named) < len(members):
        msg = "two arrays of the same name"
        raise ValueError(msg)
    return named


def _plain_key(members: Collection[str]) -> str:
    """The name of the latents in an archive that is none of sd-scripts'."""
    if "latents" in members:
        return "latents"
    if len(members) != 1:
        msg = f"{len(members)} arrays, none of them called latents"
        raise ValueError(msg)
    return next(iter(members))


def _numbered(path: Path, parts: list[LatentFile]) -> list[LatentFile]:
    """The resolutions of a cache, each of which says which of how many of which cache it is."""
    if len(parts) == 1:
        return parts
    if len(parts) > MAX_PARTS:
        msg = f"{len(parts)} resolutions, more than {MAX_PARTS}"
        raise ValueError(msg)
    # With its name: of two caches with the same content in one folder each is one of its own.
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(path.name.encode(errors="surrogateescape"))
    cache = digest.hexdigest()[:32]
    origins = (
        replace(part.origin, cache=cache, part=number, parts=len(parts))
        for number, part in enumerate(parts)
    )
    return [replace(part, origin=o) for part, o in zip(parts, origins, strict=True)]


def _kohya_part(array: Callable[[str], Array | None], resolution: str) -> LatentFile:
    latents = array("latents" + resolution)
    assert latents is not None
    flipped = array("latents_flipped" + resolution)
    if flipped is not None:
        if latents.ndim != 3 or (flipped.shape, flipped.dtype) != (latents.shape, latents.dtype):
            msg = f"latents_flipped{resolution} does not match latents{resolution}"
            raise ValueError(msg)
        latents = np.stack([latents, flipped])
    elif latents.ndim != 3:
        msg = f"latents{resolution} of the shape {latents.shape}, not (C, h, w)"
        raise ValueError(msg)
    others = {name: array(name + resolution) for name in _USUAL}
    dtypes = {name: values.dtype.name for name, values in others.items() if values is not None}
    for name, dtype in dtypes.items():
        if dtype not in _NUMBERS:
            msg = f"{name}{resolution} is an array of {dtype}"
            raise ValueError(msg)
    origin = Origin(
        "kohya",
        ".npz",
        latents.dtype.name,
        resolution=resolution,
        original_size=_integers(others, "original_size", 2, resolution),
        crop_ltrb=_integers(others, "crop_ltrb", 4, resolution),
        flipped=flipped is not None,
        dtypes={name: dtype for name, dtype in dtypes.items() if dtype != _USUAL[name]},
    )
    return LatentFile(latents, origin, others["alpha_mask"])


def _integers(
    arrays: Mapping[str, Array | None], name: str, count: int, resolution: str
) -> tuple[int, ...] | None:
    """So many integers in one of a cache's arrays, where it has that."""
    array = arrays[name]
    if array is None:
        return None
    values = tuple(array.tolist()) if array.shape == (count,) else ()
    if not _are_integers(values, count):
        msg = f"{name}{resolution} is not {count} integers below 2^31"
        raise ValueError(msg)
    return values


def _write_kohya(file: IO[bytes], parts: Sequence[LatentFile]) -> None:
    """A cache of these resolutions; ValueError where two of them are the same one."""
    arrays: dict[str, Array] = {}
    for part in parts:
        more = _kohya_arrays(part)
        if twice := arrays.keys() & more.keys():
            msg = f"two arrays called {min(twice)}"
            raise ValueError(msg)
        arrays |= more
    if len(parts) < parts[0].origin.parts:
        msg = f"only {len(parts)} of this cache's {parts[0].origin.parts} resolutions are there"
        warnings.warn(msg, stacklevel=3)
    _save_npz(file, arrays)


def _kohya_arrays(part: LatentFile) -> dict[str, Array]:
    """The arrays of one resolution, in sd-scripts' order."""
    origin, ending = part.origin, part.origin.resolution
    latents = part.latents.astype(_numpys(origin.dtype))
    if latents.ndim != (4 if origin.flipped else 3) or (origin.flipped and len(latents) != 2):
        msg = f"latents of the shape {latents.shape} do not fit their origin, {origin.json()}"
        raise ValueError(msg)
    arrays = {"latents": latents[0] if origin.flipped else latents}
    if origin.original_size is not None:
        arrays["original_size"] = np.array(origin.original_size, np.int64)
    if origin.crop_ltrb is not None:
        arrays["crop_ltrb"] = np.array(origin.crop_ltrb, np.int64)
    if origin.flipped:
        arrays["latents_flipped"] = latents[1]
    if part.alpha_mask is not None:
        arrays["alpha_mask"] = part.alpha_mask
    for name in arrays.keys() & _USUAL.keys():
        arrays[name] = arrays[name].astype(origin.dtypes.get(name, _USUAL[name]))
    return {name + ending: array for name, array in arrays.items()}


def _save_npz(file: IO[bytes], arrays: Mapping[str, Array]) -> None:
    """As `np.savez` does, which cannot take arrays of all names: its own parameter is ``file``."""
    with zipfile.ZipFile(file, "w") as archive:
        for key, array in arrays.items():
            with archive.open(key + ".npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def _read_array(file: IO[bytes], size: int) -> Array:
    """The array in an .npy stream of ``size`` bytes, nothing allocated before that is certain."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in readers:
        msg = f"an .npy stream of version {version}"
        raise ValueError(msg)
    shape, _, dtype = readers[version](file)
    count = 1
    for length in shape:
        count *= length
    if dtype.hasobject:
        msg = f"an array of {dtype}, which could run code when read"
        raise ValueError(msg)
    if min(shape, default=0) < 0 or file.tell() + count * dtype.itemsize != size:
        msg = f"an array said to be {dtype} of the shape {shape} in {size} bytes"
        raise ValueError(msg)
    file.seek(0)
    array: Array = np.lib.format.read_array(file, allow_pickle=False)
    # Of this machine's byte order.
    return array.astype(dtype.newbyteorder("="), copy=False)


@contextmanager
def _numpy_errors() -> Iterator[None]:
    """Whatever numpy and zipfile make of hostile bytes, as an OSError or a ValueError."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as e:
        kinds = (zipfile.BadZipFile, zlib.error, struct.error, EOFError)
        text = f"{e}" if isinstance(e, kinds) and str(e) else f"{type(e).__name__}: {e}"
        msg = f"damaged file of numpy's: {text}"
        raise OSError(msg) from e


def _plain_origin(path: Path, array: Array, format: str, key: str) -> Origin:
    if not _KEY.fullmatch(key):
        warnings.warn(f"{path}: its array {_short(key)} is called 'latents' here", stacklevel=4)
        key = "latents"
    return Origin("plain", format, array.dtype.name, key=key, batched=array.ndim == 4)


def _are_integers(values: object, count: int) -> bool:
    if values is None:
        return True
    return (
        isinstance(values, tuple)
        and len(values) == count
        and all(type(v) is int and abs(v) < 1 << 31 for v in values)
    )
