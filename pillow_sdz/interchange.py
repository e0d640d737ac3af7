"""Latent files that people already have <-> arrays; nothing here knows of `.sdz`.

Three layouts are read and written:

- ``comfyui``: what ComfyUI's SaveLatent writes, `.latent`, a safetensors file with a batch of the
  VAE's unscaled latents (read from its nodes.py);
- ``kohya``: the `.npz` caches of kohya's sd-scripts, one file for an image, perhaps at several
  resolutions (read from its library/strategy_base.py);
- ``plain``: one array alone in an `.npz`, `.npy` or `.safetensors` file, which is taken to hold
  latents as diffusers' pipelines hand them over with ``output_type="latent"``.

Whatever the bytes, reading raises OSError (damaged) or ValueError (sound, but no latents).
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
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

_FLOATS = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
_KOHYA_LATENTS = re.compile(r"latents((?:_\d{1,5}x\d{1,5})?)")
_KEY = re.compile(r"[\w.-]{1,64}", re.ASCII)


@dataclass(frozen=True)
class Origin:
    """What a latent file says besides its latents and its mask: enough to write it again.

    ``layout`` and ``format`` (the file name's suffix) say what it was, ``dtype`` and ``batched``
    what its array was like.  ``key`` is the array's name in the plain layout.  Of a kohya cache,
    ``resolution`` is the ending of its keys ("" or "_64x48"), ``original_size`` is (width, height)
    and ``crop_ltrb`` (left, top, right, bottom) in pixels, and ``flipped`` says that the second
    latents are those of the mirrored image.  Of a ComfyUI file, ``marked`` is whether the values
    were the VAE's own, and ``metadata`` the workflow.
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
        sound = (
            origin.layout in ("comfyui", "kohya", "plain")
            and origin.format in FORMATS
            and origin.dtype in ("float16", "float32", "float64")
            and isinstance(origin.key, str)
            and _KEY.fullmatch(origin.key)
            and isinstance(origin.resolution, str)
            and _KOHYA_LATENTS.fullmatch("latents" + origin.resolution)
            and _are_integers(origin.original_size, 2)
            and _are_integers(origin.crop_ltrb, 4)
            and all(isinstance(f, bool) for f in (origin.batched, origin.flipped, origin.marked))
            and isinstance(origin.metadata, dict)
            and all(isinstance(text, str) for text in origin.metadata.values())
        )
        if not sound:
            msg = f"no origin of latents: {str(dict(data))[:100]}"
            raise ValueError(msg)
        return origin


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


def read(path: Path) -> list[LatentFile]:
    """The latents in a file; more than one where a kohya cache has several resolutions."""
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

    Each part's latents must have the values that `layout_for` and `is_scaled` say.
    """
    layout = layout_for(format, parts[0].origin)
    if layout == "kohya":
        arrays: dict[str, Array] = {}
        for part in parts:
            arrays |= _kohya_arrays(part)
        _save_npz(file, arrays)
        return
    if len(parts) > 1:
        msg = "only sd-scripts' caches have several resolutions"
        raise ValueError(msg)
    part = parts[0]
    latents = part.latents.astype(part.origin.dtype)
    if layout == "comfyui":
        file.write(_comfyui_bytes(latents, part.origin))
        return
    if part.origin.batched and latents.ndim == 3:
        latents = latents[None]
    key = part.origin.key
    if format == ".npy":
        np.save(file, latents, allow_pickle=False)
    elif format == ".npz":
        _save_npz(file, {key: latents})
    else:
        from safetensors.numpy import save

        file.write(save({key: np.ascontiguousarray(latents)}))


def layout_for(format: str, origin: Origin) -> str:
    """The layout of a file of this format for latents that came from ``origin``."""
    if format == ".latent":
        return "comfyui"
    return "kohya" if format == ".npz" and origin.layout == "kohya" else "plain"


# safetensors, ComfyUI's and plain


def _read_safetensors(path: Path) -> list[LatentFile]:
    from safetensors import SafetensorError, safe_open

    # The library checks that the header's sizes are those of the file, so nothing inflates.
    try:
        with safe_open(path, "numpy") as file:
            metadata, keys = file.metadata() or {}, set(file.keys())
            dtypes = {key: file.get_slice(key).get_dtype() for key in keys}
            if "latent_tensor" in keys:
                key = "latent_tensor"
            elif "latents" in keys or len(keys) == 1:
                key = "latents" if "latents" in keys else keys.pop()
            else:
                msg = f"{len(keys)} tensors, none of them called latents or latent_tensor"
                raise ValueError(msg)
            if dtypes[key] in _FLOATS:
                array: Array = file.get_tensor(key)
            elif dtypes[key] == "BF16":
                # numpy has no such type; every bfloat16 is a float32.
                with safe_open(path, "pt") as with_torch:
                    array = with_torch.get_tensor(key).float().numpy()
            else:
                msg = f"no latents: a tensor of {dtypes[key]}"
                raise ValueError(msg)
    except SafetensorError as e:
        msg = f"damaged safetensors file: {e}"
        raise OSError(msg) from e
    format = path.suffix.lower()
    if key != "latent_tensor":
        return [LatentFile(array, _plain_origin(array, format, key))]
    marked = MARKER in keys
    if not marked:
        array = array.astype(np.float32) * np.float32(1 / LEGACY_SCALING)
    dtype = array.dtype.name
    return [LatentFile(array, Origin("comfyui", format, dtype, marked=marked, metadata=metadata))]


def _comfyui_bytes(latents: Array, origin: Origin) -> bytes:
    """A file as SaveLatent writes it, or as it did before there was the marker."""
    from safetensors.numpy import save

    if latents.ndim == 3:
        latents = latents[None]
    if not origin.marked:
        latents = latents * latents.dtype.type(LEGACY_SCALING)
    tensors = {"latent_tensor": np.ascontiguousarray(latents)}
    if origin.marked:
        tensors[MARKER] = np.zeros(0, np.float32)
    return save(tensors, dict(origin.metadata) or None)


# numpy's files, kohya's and plain


def _read_npy(path: Path) -> list[LatentFile]:
    with path.open("rb") as file, _numpy_errors():
        array = _read_array(file, path.stat().st_size)
    return [LatentFile(array, _plain_origin(array, ".npy", "latents"))]


def _read_npz(path: Path) -> list[LatentFile]:
    with _numpy_errors(), zipfile.ZipFile(path) as archive:
        members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
        inflated = sum(member.file_size for member in archive.infolist())
        if inflated > max(MAX_INFLATED, path.stat().st_size):
            msg = f"its arrays would take {inflated} bytes, the limit is {MAX_INFLATED}"
            raise ValueError(msg)

        def array(key: str) -> Array | None:
            if key not in members:
                return None
            with archive.open(members[key]) as file:
                return _read_array(file, members[key].file_size)

        resolutions = [m[1] for key in members if (m := _KOHYA_LATENTS.fullmatch(key))]
        # Without it, as from someone's own np.savez(latents=...), they are not sd-scripts'.
        resolutions = [r for r in resolutions if "original_size" + r in members]
        if resolutions:
            return [_kohya_part(array, resolution) for resolution in resolutions]
        if "latents" not in members and len(members) != 1:
            msg = f"{len(members)} arrays, none of them called latents"
            raise ValueError(msg)
        key = "latents" if "latents" in members else next(iter(members))
        plain = array(key)
        assert plain is not None
        return [LatentFile(plain, _plain_origin(plain, ".npz", key))]


def _kohya_part(array: Any, resolution: str) -> LatentFile:
    latents = array("latents" + resolution)
    flipped = array("latents_flipped" + resolution)
    if flipped is not None:
        if latents.ndim != 3 or (flipped.shape, flipped.dtype) != (latents.shape, latents.dtype):
            msg = f"latents_flipped{resolution} does not match latents{resolution}"
            raise ValueError(msg)
        latents = np.stack([latents, flipped])
    elif latents.ndim != 3:
        msg = f"latents{resolution} of the shape {latents.shape}, not (C, h, w)"
        raise ValueError(msg)
    numbers: dict[str, tuple[int, ...] | None] = {}
    for name, count in (("original_size", 2), ("crop_ltrb", 4)):
        values = array(name + resolution)
        if values is not None and (values.shape != (count,) or values.dtype.kind not in "iu"):
            msg = f"{name}{resolution} is not {count} integers"
            raise ValueError(msg)
        numbers[name] = None if values is None else tuple(values.tolist())
    origin = Origin(
        "kohya",
        ".npz",
        latents.dtype.name,
        resolution=resolution,
        flipped=flipped is not None,
        **numbers,  # type: ignore[arg-type]
    )
    mask = array("alpha_mask" + resolution)
    return LatentFile(latents, origin, mask)


def _kohya_arrays(part: LatentFile) -> dict[str, Array]:
    """The arrays of one resolution, in sd-scripts' order."""
    origin, ending = part.origin, part.origin.resolution
    latents = part.latents.astype(origin.dtype)
    if latents.ndim != (4 if origin.flipped else 3) or (origin.flipped and len(latents) != 2):
        msg = f"latents of the shape {latents.shape} do not fit their origin, {origin.json()}"
        raise ValueError(msg)
    arrays = {"latents" + ending: latents[0] if origin.flipped else latents}
    if origin.original_size is not None:
        arrays["original_size" + ending] = np.array(origin.original_size)
    if origin.crop_ltrb is not None:
        arrays["crop_ltrb" + ending] = np.array(origin.crop_ltrb)
    if origin.flipped:
        arrays["latents_flipped" + ending] = latents[1]
    if part.alpha_mask is not None:
        arrays["alpha_mask" + ending] = part.alpha_mask
    return arrays


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


def _plain_origin(array: Array, format: str, key: str) -> Origin:
    key = key if _KEY.fullmatch(key) else "latents"
    origin = Origin("plain", format, array.dtype.name, key=key)
    return replace(origin, batched=array.ndim == 4)


def _are_integers(values: object, count: int) -> bool:
    if values is None:
        return True
    return (
        isinstance(values, tuple)
        and len(values) == count
        and all(type(v) is int and abs(v) < 1 << 31 for v in values)
    )
