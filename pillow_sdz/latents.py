"""Latents in and out: `.sdz` files for those who have the latents, and not a picture of them.

No model is needed for that, nor torch: the latents are coded and decoded by this package's own
priors, whatever autoencoder they belong to. (Those of `mini` alone need its networks.)
"""

from __future__ import annotations

import json
import operator
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from . import adaptive, codec, container, interchange, mask, models, save_options
from .atomic import replacing
from .container import Chunk, Denoising, Header
from .entropy import SYMBOL_LIMIT
from .interchange import LatentFile, Origin
from .models.presets import PRESETS
from .SdzImagePlugin import check_shape

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]

# Values of all frames together: a gigabyte of float32, 16,384 images of 512x512 in 4 channels.
MAX_VALUES = 1 << 28
# Work (`adaptive.work`) of all frames together that any file may ask for.  Chosen: about 20
# seconds.  But for thousands of frames with nothing in them, all is within it and what its bytes
# add.
FREE_WORK = 1 << 21


@dataclass(frozen=True, eq=False)
class Latents:
    """What `open_latents` finds in a file.

    ``latents`` are (C, h, w), or (B, C, h, w) where there are several frames, scaled and shifted
    as diffusers' pipelines hand them over with ``output_type="latent"``: float32, or, coded
    without loss, float16.  ``size`` is the picture's (width, height) in pixels, ``factor`` the
    pixels per latent along each side, ``step`` the quantisation step that was used (None where it
    is not one for all values).  ``info`` holds what else the file says, named as the keywords of
    `save_latents` that write it: prompt, denoise, exif, icc_profile, xmp, provenance, alpha_mask.
    """

    latents: NDArray[np.float32] | NDArray[np.float16]
    model: str
    size: tuple[int, int]
    factor: int
    coding: str
    step: float | None
    info: dict[str, Any]
    _stored: NDArray[np.float16] | None = field(default=None, repr=False)  # if not scaled

    def torch(self) -> torch.Tensor:
        """The latents as a tensor on the CPU, which shares their memory."""
        import torch

        return torch.from_numpy(self.latents)

    def unscaled(self) -> NDArray[np.float32] | NDArray[np.float16]:
        """The latents as the model's VAE encodes them; ValueError where its scaling is not known.

        Latents that were saved with ``scaled=False`` and ``lossless`` are what they were, bit for
        bit.
        """
        if self._stored is not None:
            return self._stored
        return codec.unscaled(self.latents, save_options.model_named(self.model))


def save_latents(
    latents: ArrayLike | torch.Tensor,
    fp: str | os.PathLike[str] | IO[bytes],
    *,
    model: str,
    size: tuple[int, int] | None = None,
    quality: float | None = None,
    step: float | None = None,
    lossless: str | None = None,
    coding: str = "context",
    effort: int | None = None,
    scaled: bool = True,
    prompt: str | None = None,
    denoise: float | None = None,
    exif: bytes | Image.Exif | None = None,
    icc_profile: bytes | None = None,
    xmp: bytes | str | None = None,
    provenance: Mapping[str, Any] | None = None,
    alpha_mask: ArrayLike | torch.Tensor | None = None,
) -> None:
    """Write latents as an `.sdz` file, which `Image.open` shows where the model is installed.

    ``latents`` is an array of numpy's or a tensor of torch's, of floating point values and on any
    device: (C, h, w), or a batch (B, C, h, w), whose latents become the frames of one file.  They
    are taken to be scaled and shifted as diffusers' pipelines hand them over with
    ``output_type="latent"``; with ``scaled=False``, to be as the VAE encodes them.
    Without loss, that is for the models that this package knows by name: readers must know how.

    ``fp`` is a path, which is written completely or not at all, or a file.  ``model`` is the name
    of the model whose latents they are, such as "sd1" or "sdxl"; its weights are not needed.
    ``size`` is the picture's (width, height), by default (factor w, factor h); the latents must be
    those of a picture of this size, whose last column and row of latents may reach beyond it.

    How exactly the values are kept is one of: ``quality``, 1 to 100, as in ``Image.save`` (75 where
    nothing is said); ``step``, the distance of two values that can be told apart, 1/1024 to 63.99,
    rounded to 1/1024; ``lossless="float16"``: float16 latents come back bit for bit, and others
    are refused unless they are exact in float16; ``coding="palette"``, which has one precision.
    ``effort``, 0 to 9, trades time for bytes: below 3 no value is changed by more than half a
    step, which is what ``step`` means where no effort is given; above, by up to a whole one.
    Otherwise it is 4.

    The rest is kept in the file: ``prompt`` and ``denoise`` for the denoising of the picture,
    ``exif``, ``icc_profile`` and ``xmp``, all as in ``Image.save``; ``provenance``, an object that
    JSON knows; and ``alpha_mask``, whose values are n/255 as any type of floats has them, (height,
    width), or up to ``factor`` - 1 more of each where the picture was rounded down to its latents.

    ValueError for what cannot be written, before anything is.
    """
    spec = save_options.model_named(model)
    frames = _frames(latents, spec)
    size = _checked_size(size, frames.shape[-2:], spec.factor)
    # Who gives a step counts on it; a quality is free to be reached with another one.
    effort = save_options.effort(effort, save_options.DEFAULT_EFFORT if step is None else 0)
    coding, quantisation = _precision(spec, coding, quality, step, lossless, effort)
    if coding == "float16":
        frames = _exact_halves(frames)
        if not scaled:
            _check_scaling_is_known(spec)
            quantisation = codec.UNSCALED
    else:
        with np.errstate(over="ignore"):  # infinite values are refused below
            frames = frames.astype(np.float32)
            if not scaled:
                frames = codec.scaled(frames, spec)
        _check_values(frames, coding, quantisation, spec)

    options = {"exif": exif, "icc_profile": icc_profile, "xmp": xmp}
    for_decoding = {"prompt": prompt, "denoise": denoise}
    about = [
        *save_options.known_metadata(options),
        *save_options.for_decoding(for_decoding, spec, coding),
        *_provenance_chunk(provenance),
        *_mask_chunk(alpha_mask, size, spec.factor),
    ]
    header = Header(
        "RGB",
        size,
        spec.name,
        spec.digest,
        spec.channels,
        spec.factor,
        quantisation,
        coding,
        len(frames),
    )
    head = Chunk(container.HEAD, header.pack())
    coded = [
        chunk
        for frame in frames
        for chunk in codec.encode_bands(
            frame.transpose(1, 2, 0),
            model=spec,
            coding=coding,
            quantisation=quantisation,
            effort=effort,
        )
    ]
    rows = codec.band_rows(spec, *header.latents[1:])
    if rows is not None:
        about.append(Chunk(container.BANDS, container.pack_bands(rows)))
    if complaint := _too_much_work(header, coded):
        raise ValueError(complaint)
    data = container.write([head, *about, *coded, Chunk(container.DONE, b"")])
    if isinstance(fp, (str, os.PathLike)):
        with replacing(Path(fp)) as file:
            file.write(data)
    else:
        fp.write(data)


def open_latents(fp: str | os.PathLike[str] | IO[bytes]) -> Latents:
    """The latents in an `.sdz` file, from wherever they came, decoded; see `Latents`.

    The model whose latents they are need not be installed, nor be known.  OSError for a file that
    is damaged, or no `.sdz` file; of a mask of too many pixels what Pillow has for pictures of so
    many, `Image.DecompressionBombError`.
    """
    if isinstance(fp, (str, os.PathLike)):
        with Path(fp).open("rb") as file:
            return open_latents(file)
    reader = container.Reader(fp)
    header = reader.header
    check_shape(header)
    channels, *shape = header.latents
    if header.frames * channels * shape[0] * shape[1] > MAX_VALUES:
        msg = f"{header.frames} frames of latents {header.latents} are more than the limit"
        raise OSError(msg)
    spec = _spec(header)

    coded: dict[container.Entry, Chunk] = {}
    info: dict[str, Any] = {}
    for entry in reader:
        data = reader.data(entry)
        if entry.type in container.CODED:
            coded[entry] = Chunk(entry.type, data)
        else:
            info |= _info(entry.type, data, header)
    if complaint := _too_much_work(header, coded.values()):
        raise OSError(complaint)
    found = codec.Frames(
        header,
        spec,
        reader.bands,
        container.frames(coded, len(reader.bands)),
        lambda entry: coded[entry].data,
    )
    frames = [
        np.concatenate([found.decode_stored(n, band) for band in range(len(reader.bands))])
        for n in range(header.frames)
    ]
    frames = [frame.transpose(2, 0, 1) for frame in frames]
    stored: Array = np.stack(frames) if len(frames) > 1 else frames[0]
    latents: Array = codec.as_pipelines_have(stored, spec, header.coding, header.quantisation)
    unscaled = False
    if header.coding == "float16":
        stored = stored.astype(np.float16)
        unscaled = header.quantisation == codec.UNSCALED
        latents = latents if unscaled else stored
    stepped = header.coding == "context" and not codec.has_hyperprior(spec)
    return Latents(
        latents,
        header.model,
        header.size,
        header.factor,
        header.coding,
        header.step if stepped else None,
        info,
        stored if unscaled else None,
    )


def imported(part: LatentFile, fp: IO[bytes], *, model: str, **options: Any) -> None:
    """Save what `interchange.read` found; ``options`` are those of `save_latents`."""
    space = save_options.model_named(model).latent_space
    save_latents(
        part.latents,
        fp,
        model=model,
        scaled=interchange.is_scaled(part.origin.layout, space),
        provenance=part.origin.json(),
        alpha_mask=part.alpha_mask,
        **options,
    )


def together(paths: Iterable[Path]) -> list[list[Path]]:
    """The `.sdz` files, those in one list that are the resolutions of one cache.

    Those that cannot be read are alone; `exported` says why.
    """
    return interchange.together((path, _origin(path)) for path in paths)


def _origin(path: Path) -> Origin | None:
    """Where a file says that its latents are from; None if it does not, or is damaged."""
    try:
        with path.open("rb") as file:
            reader = container.Reader(file)
            for entry in reader:
                if entry.type == container.PROVENANCE:
                    return Origin.parse(_parse_provenance(reader.data(entry)))
                if entry.type in container.CODED:
                    break
    except (OSError, ValueError):
        pass
    return None


def exported(path: Path, format: str) -> LatentFile:
    """What `interchange.write` needs to write the latents of an `.sdz` file in another format."""
    found = open_latents(path)
    provenance = found.info.get("provenance", {})
    if "layout" in provenance:
        origin = Origin.parse(provenance)
    else:
        layout = "comfyui" if format == ".latent" else "plain"
        origin = Origin(layout, format, found.latents.dtype.name, batched=found.latents.ndim == 4)
    layout = interchange.layout_for(format, origin)
    latents: Array = found.latents
    if layout != "plain" and not interchange.is_scaled(
        layout, save_options.model_named(found.model).latent_space
    ):
        latents = found.unscaled()
    return LatentFile(latents, origin, found.info.get("alpha_mask"))


# what is to be written


def _frames(latents: Any, spec: models.ModelSpec) -> Array:
    """The latents as (B, C, h, w) in an array, of the dtype that they have."""
    if hasattr(latents, "detach"):  # torch's, which is not imported for others
        tensor = latents.detach().cpu()
        # numpy has no bfloat16 and the like, all of which are exact in float32.
        narrow = tensor.is_floating_point() and tensor.element_size() < 4
        latents = (tensor.float() if narrow else tensor).numpy()
    array = np.asarray(latents)
    if array.dtype.kind != "f":
        msg = f"latents are floating point values, not {array.dtype}"
        raise ValueError(msg)
    if array.ndim not in (3, 4) or 0 in array.shape:
        msg = f"latents have the shape (C, h, w) or (B, C, h, w), not {array.shape}"
        raise ValueError(msg)
    frames = array if array.ndim == 4 else array[None]
    if frames.shape[1] != spec.channels:
        msg = f"model {spec.name} has latents of {spec.channels} channels, not {frames.shape[1]}"
        raise ValueError(msg)
    if len(frames) > container.MAX_FRAMES or frames.size > MAX_VALUES:
        msg = f"latents of the shape {frames.shape} are too many for one file: write several"
        raise ValueError(msg)
    return frames


def _checked_size(size: Any, shape: tuple[int, ...], factor: int) -> tuple[int, int]:
    height, width = (n * factor for n in shape)
    if size is None:
        return width, height
    try:
        given_width, given_height = (operator.index(n) for n in size)
    except (TypeError, ValueError) as e:
        msg = f"size must be (width, height), not {size!r}"
        raise ValueError(msg) from e
    if (-(-given_width // factor), -(-given_height // factor)) != (shape[1], shape[0]):
        msg = (
            f"latents of {shape[1]}x{shape[0]} are those of a picture of {width}x{height} "
            f"or up to {factor - 1} less, not of {given_width}x{given_height}"
        )
        raise ValueError(msg)
    return given_width, given_height


def _precision(
    spec: models.ModelSpec,
    coding: object,
    quality: float | None,
    step: float | None,
    lossless: str | None,
    effort: int,
) -> tuple[str, int]:
    """The coding and the header's quantisation; of a palette and of `mini`, theirs."""
    given = [
        n
        for n, v in (("quality", quality), ("step", step), ("lossless", lossless))
        if v is not None
    ]
    if len(given) > 1:
        msg = f"{' and '.join(given)} exclude each other"
        raise ValueError(msg)
    if lossless is not None:
        if lossless != "float16" or coding not in ("context", "float16"):
            msg = f"lossless must be 'float16', without another coding, not {lossless!r}"
            raise ValueError(msg)
        return save_options.coding_for("float16", spec), 0
    coding = save_options.coding_for(coding, spec)
    if coding == "float16":
        return coding, 0
    if coding == "palette":
        if given:
            msg = f"the coding 'palette' has one precision; it takes no {given[0]}"
            raise ValueError(msg)
        return coding, codec.PALETTE_STEP
    if step is None:
        return coding, codec.quantisation_of(save_options.quality(quality), spec, effort)
    if codec.has_hyperprior(spec):
        msg = "the latents of mini are quantised by quality, not by step"
        raise ValueError(msg)
    # Written so that NaN fails too.
    if isinstance(step, bool) or not isinstance(step, Real) or not 0 < step < 64:
        msg = f"step must be a number above 0 and below 64, not {step!r}"
        raise ValueError(msg)
    quantisation = round(float(step) * container.STEP_UNITS)
    if not 1 <= quantisation <= 0xFFFF:
        msg = f"step must be 1/{container.STEP_UNITS} to 63.99, not {step!r}"
        raise ValueError(msg)
    return coding, quantisation


def _exact_halves(frames: Array) -> Array:
    with np.errstate(over="ignore"):
        halves = frames.astype(np.float16)
    if not np.array_equal(halves.astype(frames.dtype), frames, equal_nan=True):
        msg = (
            f"these {frames.dtype} latents are not exact in float16: convert them to float16 "
            "first if that is precise enough, or give a step instead"
        )
        raise ValueError(msg)
    return halves


def _check_values(frames: Array, coding: str, quantisation: int, spec: models.ModelSpec) -> None:
    largest = float(np.abs(frames).max())
    if not np.isfinite(largest):
        msg = "latents have values that are infinite or not a number"
        raise ValueError(msg)
    stepped = coding == "context" and not codec.has_hyperprior(spec)
    if stepped and largest * container.STEP_UNITS > SYMBOL_LIMIT * quantisation:
        msg = f"latents of {largest:g} are more than {SYMBOL_LIMIT} steps from 0"
        raise ValueError(msg)


def _check_scaling_is_known(spec: models.ModelSpec) -> None:
    """ValueError where only this computer's registry knows it: readers need it too."""
    codec.scaling(spec)
    if spec.name not in models.EMBEDDED and spec.name not in PRESETS:
        msg = (
            f"how latents of {spec.name} are scaled is not known to other computers, so that "
            "without loss they cannot be kept unscaled"
        )
        raise ValueError(msg)


def _too_much_work(header: Header, coded: Iterable[Chunk]) -> str | None:
    """What is wrong where so few bytes would take so long to decode."""
    if header.model == models.MINI.name:  # coded without waves
        return None
    channels, height, width = header.latents
    size = sum(len(chunk.data) for chunk in coded)
    work = header.frames * adaptive.work(height, width, channels)
    if work <= FREE_WORK + adaptive.WORK_PER_BYTE * size:
        return None
    return f"{header.frames} frames of latents {header.latents} in {size} bytes are too many"


# provenance and mask


def _provenance_chunk(provenance: Mapping[str, Any] | None) -> list[Chunk]:
    if not provenance:
        return []
    try:
        text = json.dumps(dict(provenance), separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as e:
        msg = f"provenance must be an object that JSON knows: {e}"
        raise ValueError(msg) from e
    if len(text) > container.MAX_METADATA:
        msg = f"provenance has {len(text)} bytes, more than {container.MAX_METADATA}"
        raise ValueError(msg)
    return [Chunk(container.PROVENANCE, zlib.compress(text.encode("ascii"), 9))]


def _parse_provenance(data: bytes) -> dict[str, Any]:
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, container.MAX_METADATA)
        if not inflater.eof or inflater.unused_data:
            msg = "it does not end where it should"
            raise ValueError(msg)
        parsed = json.loads(text)
    except (zlib.error, ValueError, RecursionError) as e:
        msg = f"damaged SDZ file: chunk oRIG: {e}"
        raise OSError(msg) from e
    if not isinstance(parsed, dict):
        msg = "damaged SDZ file: chunk oRIG is no JSON object"
        raise OSError(msg)
    return parsed


def _mask_chunk(
    given: ArrayLike | torch.Tensor | None, size: tuple[int, int], factor: int
) -> list[Chunk]:
    return [] if given is None else [Chunk(container.MASK, mask.encode(given, size, factor))]


# what has been read


def _spec(header: Header) -> models.ModelSpec:
    """The file's model, or what can be said of one that is not known here."""
    try:
        spec = models.spec(header.model)
    except KeyError:
        return models.ModelSpec(
            header.model, header.channels, header.factor, header.digest, latent_space=header.model
        )
    if spec == models.MINI and header.digest != spec.digest:
        msg = f"this SDZ file needs 'mini' with the weights {header.digest.hex()}, not installed"
        raise OSError(msg)
    return spec


def _info(type: bytes, data: bytes, header: Header) -> dict[str, Any]:
    """What a chunk before the latents says, named as the keyword of `save_latents`."""
    if type == container.EXIF:
        return {"exif": container.EXIF_PREFIX + data}
    if type == container.ICC_PROFILE:
        return {"icc_profile": data}
    if type == container.XMP:
        return {"xmp": data}
    if type == container.PROMPT:
        return {"prompt": container.parse_prompt(data)}
    if type == container.DENOISING:
        return {"denoise": Denoising.parse(data).strength / 1000}
    if type == container.PROVENANCE:
        return {"provenance": _parse_provenance(data)}
    if type == container.MASK:
        return {"alpha_mask": mask.decode(data, header.size, header.factor)}
    return {}
