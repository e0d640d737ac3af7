"""Writes `.sdz` files from latents instead of pictures: `save_latents`, and other tools' files.

It needs neither a model nor torch, because the package's own priors code latents of any
autoencoder.  Only the latents of `mini` need its networks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from . import chunks, codec, container, decoding, interchange, keywords, mask, scaling, shapes
from .atomic import replacing
from .catalogue import DEFAULT_FAMILY, NOT_NAMED, ModelSpec, known, whole_of
from .codings.coding import Frame
from .container import Chunk
from .contents import contents
from .header import MAX_FRAMES, Header
from .interchange import LatentFile, Origin
from .opening import MAX_VALUES, Latents, open_latents, too_much_work

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]


def save_latents(
    latents: ArrayLike | torch.Tensor,
    fp: str | os.PathLike[str] | IO[bytes],
    *,
    model: str,
    factor: int | None = None,
    size: tuple[int, int] | None = None,
    quality: float | None = None,
    step: float | None = None,
    lossless: str | bool | None = None,
    coding: str | None = None,
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
    """Write latents as an `.sdz` file.  `Image.open` shows it if the model is installed.

    ``latents`` is a numpy array or a torch tensor of floating point values, on any device.  Its
    shape is (C, h, w), or (B, C, h, w) for a batch, which becomes the frames of one file.  Families
    of videos have (B, C, T, h, w).  A packed sequence (B, n, D), as pipelines of FLUX.1, FLUX.2,
    Qwen-Image and LTX return it, needs ``size``.  An array such as (16, 64, 64) with "flux" may
    also be one picture (C, h, w): then it is that picture, unless ``size`` says otherwise.

    By default the latents are scaled and shifted as diffusers' pipelines return them with
    ``output_type="latent"``.  With ``scaled=False`` they are as the VAE encodes them, and ``step``
    is in their unit.  ``scaled=False`` needs a family whose scaling is known here.

    ``fp`` is a path or a file.  A path is written completely or not at all.  ``model`` is the name
    of the model or family that the latents belong to, such as "sd1" or "flux2"; its weights are not
    needed.  For a name that is not known here, ``factor`` is the number of pixels along one side
    of a latent, 1 to 255.  ``size`` is the picture's (width, height), by default (factor w,
    factor h).  The last column and row of latents may reach beyond it.

    One of these says how exactly values are kept:

    - ``quality``, 1 to 100, as in ``Image.save``; the default is 75.  It is the same everywhere.
      A map of qualities needs the picture: `Image.save` makes it.
    - ``step``, the distance between two quantised values, 1/1024 to 63.99, rounded to 1/1024.
    - ``lossless``, "bfloat16", "float16" or "float32", keeps latents of this dtype bit for bit.
      Latents of another dtype are refused unless they are exact in it.  With True, it is the first
      of these dtypes in which the latents are exact.
    - ``coding="palette"`` has one precision.

    ``effort``, 0 to 9, trades time for bytes.  Below 3, no value changes by more than half a step;
    from 3 on, by up to a whole step.  From 2 on, latents of more than 13 channels also take longer
    to read.  The default is 4, and 0 if ``step`` is given.

    The file also keeps ``prompt`` and ``denoise`` for denoising, and ``exif``, ``icc_profile`` and
    ``xmp``, all as in ``Image.save``.  ``provenance`` is a mapping that JSON can hold.
    ``alpha_mask`` (height, width) has values n/255, as exactly as its dtype holds them.  If the
    picture was rounded down to whole latents, the mask may be up to ``factor`` - 1 pixels larger.

    ValueError for what cannot be written, before anything is written.
    """
    given = shapes.frames(latents, model, factor, size)
    spec, frames, _ = given
    _check_count(frames)
    size = shapes.checked_size(size, given)
    if not scaled:
        step = keywords.scaled_step(step, scaling.scaling(spec)[0])
    # If the user gives a step, values must keep to it.  A quality may be reached with another step.
    effort = keywords.effort(effort, keywords.DEFAULT_EFFORT if step is None else 0)
    if lossless is True:
        lossless = _exact_dtype(frames, spec)
    found, quantisation = keywords.precision(
        spec, coding, quality=quality, step=step, lossless=lossless
    )
    quality = keywords.quality(quality)
    if not scaled and found.unscaled is not None:
        scaling.check_others_can_scale(spec)
        quantisation = found.unscaled
    elif not scaled:
        with np.errstate(over="ignore"):  # infinite values are refused below
            frames = scaling.scaled(frames, spec, 1)

    options = {"exif": exif, "icc_profile": icc_profile, "xmp": xmp}
    for_decoding = {"prompt": prompt, "denoise": denoise}
    about = [
        *keywords.known_metadata(options),
        *keywords.for_decoding(for_decoding, spec, found),
        *_provenance_chunk(provenance),
        *_mask_chunk(alpha_mask, size, spec.factor),
    ]
    if given.steps > 1:
        about.append(keywords.chunk(chunks.CLIP, given.steps))
    coder = decoding.coder_of(spec, found)
    if quantisation is None:
        quantisation = coder.quantisation(quality)
    frames = coder.prepare(frames, quantisation)
    header = Header(
        "RGB",
        size,
        spec.name,
        spec.digest,
        spec.channels,
        spec.factor,
        quantisation,
        found.number,
        len(frames),
    )
    if (rows := coder.band_rows(*header.latents[1:])) is not None:
        about.append(keywords.chunk(chunks.BANDS, rows))
    encode = coder.encoder(quantisation, effort)
    coded = [encode(Frame(frame.transpose(1, 2, 0))) for frame in frames]
    written = sum(len(chunk.data) for frame in coded for chunk in frame)
    if complaint := too_much_work(header, coder, written):
        raise ValueError(complaint)
    data = codec.write(container.assemble(header, about, coded))
    if isinstance(fp, (str, os.PathLike)):
        with replacing(Path(fp)) as file:
            file.write(data)
    else:
        fp.write(data)


def imported(part: LatentFile, fp: IO[bytes], *, model: str, **options: Any) -> None:
    """Save latents that `interchange.read` has read; ``options`` are those of `save_latents`."""
    given = shapes.frames(part.latents, model, options.get("factor"), options.get("size"))
    origin, values = part.origin, part.latents
    if shapes.is_sequence(values, given):
        origin = replace(origin, shape=values.shape)
    unit = _unit(origin.layout, given.model, origin)
    if unit is not None and unit != 1:
        values = values.astype(np.float32) / np.float32(unit)
        if options.get("lossless") and not np.array_equal(
            _in_unit(values, unit).astype(part.latents.dtype), part.latents
        ):
            msg = f"{given.model.name} latents of this file cannot come back exactly: give a step"
            raise ValueError(msg)
    save_latents(
        values,
        fp,
        model=model,
        scaled=unit is None,
        provenance=origin.json(),
        alpha_mask=part.alpha_mask,
        **options,
    )


def family_of(part: LatentFile, model: str | None, factor: int | None) -> tuple[str, bool]:
    """The model that the latents in a file belong to, and whether it is only assumed.

    ``model`` and ``factor`` are what the user says.  If nobody says anything, latents that fit it
    are assumed to be of the default family.  ValueError for others, or if the file says something
    else than the user, or if it names a family that is not known here and the user says nothing.
    """
    if (found := _family_said(part, model, factor)) is not None:
        return found, False
    shape = part.latents.shape
    fit = shapes.fitting(shape)
    if DEFAULT_FAMILY not in fit:
        if fit:
            known_ones = f"give --model, such as {', '.join(fit)}; for another family, "
        else:
            known_ones = "no family that is known here has such latents: "
        msg = (
            f"nothing says which latents of the shape {shape} these are: {known_ones}"
            "give --model with a name of your choice, and --factor"
        )
        raise ValueError(msg)
    return DEFAULT_FAMILY, True


def _family_said(part: LatentFile, model: str | None, factor: int | None) -> str | None:
    """The model that the file or the user names; None if neither does."""
    said = part.family
    if said is None:
        return model
    if known(said) is None:
        if model is None and factor is None:
            msg = (
                f"its latents are of {said!r}, which is not known here: give the model that they "
                "belong to, or the factor of its autoencoder"
            )
            raise ValueError(msg)
        return model or said
    if model is None:
        return said
    with suppress(keywords.UnknownModelError):
        wanted = keywords.model_named(model)
        whole = whole_of(wanted)
        if said in (wanted.latent_space, whole and whole.latent_space):
            return model
    msg = f"the file says that its latents are of {said}, not of {model}"
    raise ValueError(msg)


def together(paths: Iterable[Path], format: str) -> list[list[Path]]:
    """The `.sdz` files, in lists.  Files that are the parts of one cache share a list.

    ``format`` is that of the files to be written.  A cache of another format is not put together.

    A file that cannot be read is alone in its list.  `exported` then says why.
    """
    origins = ((path, origin_of(path)) for path in paths)
    return interchange.together(
        (path, origin if origin and origin.format == format else None) for path, origin in origins
    )


def origin_of(path: Path) -> Origin | None:
    """The origin of a file's latents; None if the file has none, or is damaged."""
    try:
        with path.open("rb") as file:
            values = contents(container.Reader(file), (chunks.PROVENANCE,)).values
        provenance = values.get(chunks.PROVENANCE.keyword)
        return None if provenance is None else interchange.parse_origin(provenance)
    except (OSError, ValueError):
        return None


def exported(fp: str | os.PathLike[str] | IO[bytes], format: str) -> LatentFile:
    """The latents of an `.sdz` file, as `interchange.write` needs them for another format."""
    found = open_latents(fp)
    provenance = found.info.get("provenance", {})
    has_origin = "layout" in provenance
    if has_origin:
        origin = interchange.parse_origin(provenance)
    else:
        layout = interchange.FORMATS[format].usual_layout
        origin = Origin(layout, format, found.latents.dtype.name, batched=found.latents.ndim == 4)
    if not origin.key and format != origin.format:  # only a .pt file has a tensor without a name
        origin = replace(origin, key="latents")
    layout = interchange.layout_for(format, origin)
    model = _model_of(found)
    latents: Array = found.latents
    if layout == origin.layout == "plain" and origin.shape is not None and len(origin.shape) == 3:
        latents = shapes.packed(shapes.frames(latents, found.model, found.factor, found.size))
    unit = _unit(layout, model, origin)
    if unit is not None:
        latents = _in_unit(found.unscaled(), unit)
    if layout == origin.layout and found.steps > 1 and shapes.is_time_first(origin.shape, model):
        latents = latents.swapaxes(-4, -3)
    is_from_elsewhere = not has_origin or layout != origin.layout
    if is_from_elsewhere and interchange.has_batches(layout):
        latents = _batch(latents, found.steps)
        if found.steps == 1 and model.space.video:
            latents = latents[:, :, None]
    return LatentFile(latents, origin, found.info.get("alpha_mask"))


def kinds_of(found: Latents) -> list[str]:
    """What kind of latents each picture (or clip) of a file is: see `interchange.kinds`."""
    provenance = found.info.get("provenance", {})
    origin = interchange.parse_origin(provenance) if "layout" in provenance else None
    return interchange.kinds(origin, len(pictures_of(found)))


def pictures_of(found: Latents) -> Array:
    """The latents of a file with an axis of pictures, or clips, even if there is only one."""
    return _batch(found.latents, found.steps)


def _batch(latents: Array, steps: int) -> Array:
    """The latents of pictures, or of clips of several ``steps``, with an axis for their number."""
    is_one = latents.ndim == (3 if steps == 1 else 4)
    return latents[None] if is_one else latents


def _model_of(found: Latents) -> ModelSpec:
    """The model of latents that were read; what the file says if nobody knows the name."""
    try:
        return keywords.model_named(found.model)
    except keywords.UnknownModelError:
        channels = found.latents.shape[-3 if found.steps == 1 else -4]
        return ModelSpec(found.model, channels, found.factor, NOT_NAMED, found.model)


def _unit(layout: str, model: ModelSpec, origin: Origin) -> float | None:
    """The unit of the values of a layout, see `interchange.unit`.

    If nobody knows the model, its latents are kept as they are.
    """
    if model.space.scaling is None and known(model.name) is None:
        return None
    return interchange.unit(layout, model.latent_space, origin)


def _in_unit(unscaled: Array, unit: float) -> Array:
    return unscaled if unit == 1 else unscaled * np.float32(unit)


# Writing


def _exact_dtype(frames: Array, spec: ModelSpec) -> str | None:
    """The first lossless dtype in which latents are exact; the last one if there is none."""
    dtypes = [coding for coding in spec.space.codings if coding.lossless]
    for coding in dtypes:
        with suppress(ValueError):
            decoding.coder_of(spec, coding).prepare(frames, 0)
            return coding.lossless
    return dtypes[-1].lossless if dtypes else "float32"


def _check_count(frames: Array) -> None:
    if len(frames) > MAX_FRAMES or frames.size > MAX_VALUES:
        msg = f"latents of the shape {frames.shape} are too many for one file: write several files"
        raise ValueError(msg)


# Provenance and mask


def _provenance_chunk(provenance: Mapping[str, Any] | None) -> list[Chunk]:
    return [keywords.chunk(chunks.PROVENANCE, provenance)] if provenance else []


def _mask_chunk(
    given: ArrayLike | torch.Tensor | None, size: tuple[int, int], factor: int
) -> list[Chunk]:
    return [] if given is None else [Chunk(chunks.MASK.type, mask.encode(given, size, factor))]
