"""Turns latents from pipelines and trainers into frames, and finds the model that they belong to.

All of them become frames (N, C, h, w): the pictures of a batch, or the time steps of clips.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import catalogue, keywords, models
from .catalogue import NOT_NAMED, ModelSpec, all_spaces
from .header import ANY_NAME, MAX_CHANNELS, MAX_FACTOR, is_name
from .spaces import Space

Array = NDArray[Any]

# A sequence and a plane of latents may have the same shape.  If a plane would be this many times as
# high as wide, it counts as a sequence.  Chosen: no pipeline makes such pictures, and the sequences
# of pictures of 256 x 256 pixels or more are longer.
NARROW = 4
# For unknown families, an array (B, n, D) also counts as a sequence if B is below the first number,
# and D at least the second.  Chosen: autoencoders have 3 channels or more, and the shortest places
# of pipelines have 64 values.  A picture of this shape needs a size.
FEWEST_CHANNELS, SHORTEST_PLACE = 3, 64


class Frames(NamedTuple):
    """Latents (N, C, h, w) of ``model``.  A clip has ``steps`` of the N frames, and a picture 1."""

    model: ModelSpec
    latents: Array
    steps: int = 1


class Packing(NamedTuple):
    """How a pipeline makes a sequence (B, n, D) of latents.

    A place of the sequence stands for ``side`` x ``side`` latents, so D is C ``side``^2.  The
    latents have a multiple of ``multiple`` rows and columns.  The rest of the picture is left out.
    """

    side: int
    multiple: int

    def shape(self, size: tuple[int, int], factor: int) -> tuple[int, int]:
        """The rows and columns of latents for a picture of (width, height) pixels."""
        width, height = (n // (factor * self.multiple) * self.multiple for n in size)
        return height, width


#: By the name in `spaces.Space.packing`.  Specified: diffusers' pipelines, _pack_latents.
PACKINGS = {
    "patches": Packing(side=2, multiple=2),
    "places": Packing(side=1, multiple=1),
    "even places": Packing(side=1, multiple=2),
}


def frames(latents: Any, name: object, factor: object, size: Any) -> Frames:
    """The latents as frames, in their own dtype, and the model that they belong to.

    ``name`` and ``factor`` are `save_latents`' model and factor.  ``size`` is the picture's (width,
    height) in pixels, or None; a sequence needs it.  ValueError for other shapes.
    """
    array = _array(latents)
    model = _model(name, factor, array.shape, size)
    space = model.space
    if packing := _packed(array.shape, space, size):
        return _unpacked(array, model, packing, size)
    if array.ndim == 5 or _is_clip(array.shape, space):
        clips = array if array.ndim == 5 else array[None]
        if is_time_first(clips.shape, model):
            clips = clips.swapaxes(1, 2)
        _check_channels(clips.shape[1], model)
        batch, channels, steps, height, width = clips.shape
        planes = clips.swapaxes(1, 2).reshape(batch * steps, channels, height, width)
        return Frames(model, planes, steps)
    planes = array if array.ndim == 4 else array[None]
    _check_channels(planes.shape[1], model)
    return Frames(model, planes)


def is_time_first(shape: tuple[int, ...] | None, model: ModelSpec) -> bool:
    """Whether an array of this shape has clips (B, T, C, h, w)."""
    if shape is None or len(shape) != 5:
        return False
    return model.space.time_first and shape[2] == model.channels


def clips(frames: Array, steps: int) -> Array:
    """Frames (N, C, h, w) of clips as (B, C, T, h, w)."""
    count, channels, height, width = frames.shape
    return frames.reshape(count // steps, steps, channels, height, width).swapaxes(1, 2)


def _array(latents: Any) -> Array:
    """The latents as an array in their own dtype, bfloat16 and narrower ones as float32."""
    if hasattr(latents, "detach"):  # a tensor; torch is not imported to find out
        # numpy lacks bfloat16 and other narrow dtypes.  All of them are exact in float32.
        narrow = latents.is_floating_point() and latents.element_size() < 4
        is_half = str(latents.dtype) == "torch.float16"
        try:
            latents = (latents.float() if narrow and not is_half else latents).numpy(force=True)
        except (RuntimeError, TypeError) as e:  # such as sparse tensors
            msg = f"latents cannot be read: {e}"
            raise ValueError(msg) from e
    array = np.asarray(latents)
    if array.dtype.kind != "f":
        msg = f"latents must be floating point values, not {array.dtype}"
        raise ValueError(msg)
    if array.ndim not in (3, 4, 5) or 0 in array.shape:
        msg = (
            "latents must have the shape (C, h, w), (B, C, h, w) or (B, C, T, h, w), or be a "
            f"sequence (B, n, D) of a family that packs them, not {array.shape}"
        )
        raise ValueError(msg)
    return array


def _model(name: object, factor: object, shape: tuple[int, ...], size: Any) -> ModelSpec:
    """The model of a name.  If nobody knows the name, the latents say their channels."""
    try:
        model = keywords.model_named(name)
    except keywords.UnknownModelError:
        if (
            factor is None
            or not is_name(name)
            or _if_fits(catalogue.has_latents_of(name), shape) is not None
        ):
            raise ValueError(_unknown(name, factor, shape)) from None
        found = _whole("factor", factor, MAX_FACTOR)
        _check_is_plane(shape, name, found, size)
        channels = shape[1] if len(shape) == 5 else shape[-3]
        return ModelSpec(name, _whole("channels", channels, MAX_CHANNELS), found, NOT_NAMED, name)
    patches = all_spaces().get(model.space.patches or "")
    if patches is not None and _is_patches(shape, model, patches, size):
        model = ModelSpec(patches.name, patches.channels, patches.factor, NOT_NAMED, patches.name)
    if factor is not None and _whole("factor", factor, MAX_FACTOR) != model.factor:
        msg = f"model {model.name} has a factor of {model.factor}, not {factor}"
        raise ValueError(msg)
    return model


def _unknown(name: object, factor: object, shape: tuple[int, ...]) -> str:
    """What is wrong with a name that nobody knows: which names there are."""
    if isinstance(name, str):
        if family := _if_fits(catalogue.has_latents_of(name), shape):
            return f"{name} has the latents of {family}: give model={family!r}, not {name!r}"
        guess = _if_fits(catalogue.meant(name), shape)
    else:
        guess = None
    if factor is not None:
        known = f"{guess!r}, which it seems to be" if guess else "a family that is known here"
        return f"model must be {known}, or another name of {ANY_NAME}, not {name!r}"
    fit = fitting(shape)
    others = ", ".join(sorted({*catalogue.names(), *models.encoders()} - {*fit}))
    first = f"{', '.join(fit)} (for latents of this shape), or of " if fit else ""
    hint = f"; it seems to be {guess!r}" if guess else ""
    return (
        f"model must be one of {first}{others}, not {name!r}{hint}; for latents of another model, "
        "give its factor, such as factor=8"
    )


def _if_fits(family: str | None, shape: tuple[int, ...]) -> str | None:
    """The family, if latents of it may have this shape."""
    patches = catalogue.all_spaces()[family].patches if family in catalogue.all_spaces() else None
    return family if {family, patches} & {*fitting(shape)} else None


def _check_is_plane(shape: tuple[int, ...], name: str, factor: int, size: Any) -> None:
    """ValueError if latents of an unknown family seem to be a packed sequence (B, n, D)."""
    if len(shape) != 3 or shape[2] < SHORTEST_PLACE:
        return
    rows, columns = shape[1:]
    may_be_sequence = shape[0] < FEWEST_CHANNELS or rows >= NARROW * columns
    if size is not None:
        width, height = pixel_size(size)
        may_be_sequence &= (-(-height // factor), -(-width // factor)) != (rows, columns)
    if may_be_sequence:
        msg = (
            f"{shape} seems to be a packed sequence, and it is not known here how those of {name} "
            "are packed: unpack it, or name the family that packs like this; if it is a picture "
            f"of {shape[0]} channels, give size=({columns * factor}, {rows * factor})"
        )
        raise ValueError(msg)


def fitting(shape: tuple[int, ...]) -> list[str]:
    """The names of the families that may have latents of this shape, sorted."""
    return [name for name in sorted(catalogue.names()) if _fits(shape, name)]


def _fits(shape: tuple[int, ...], name: str) -> bool:
    model = catalogue.known(name)
    assert model is not None
    space = model.space
    packing = PACKINGS.get(space.packing or "")
    if len(shape) == 3 and packing is not None and shape[2] == space.channels * packing.side**2:
        return True
    if len(shape) == 5:
        at = shape[1:3] if space.time_first else shape[1:2]
        return space.video and space.channels in at
    return shape[-3] == space.channels or _is_clip(shape, space)


def _is_patches(shape: tuple[int, ...], model: ModelSpec, patches: Space, size: Any) -> bool:
    """Whether latents of this shape are 2x2 patches of a model's latents, not these themselves."""
    if len(shape) != 3:
        return shape[1] == patches.channels
    if shape[0] == patches.channels or shape[2] != patches.channels:
        return shape[0] == patches.channels
    # This is a sequence of patches, or a plane of the model's own latents that is as wide as
    # patches have channels.
    if size is None:
        return shape[0] != model.channels or shape[1] >= NARROW * shape[2]
    rows, columns = PACKINGS[patches.packing or "places"].shape(pixel_size(size), patches.factor)
    return shape[0] != model.channels or shape[1] == rows * columns


def _whole(what: str, value: Any, most: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if not 1 <= number <= most or isinstance(value, bool):
        msg = f"{what} must be a whole number from 1 to {most}, not {value!r}"
        raise ValueError(msg)
    return number


def _check_channels(channels: int, model: ModelSpec) -> None:
    if channels != model.channels:
        msg = f"model {model.name} has latents of {model.channels} channels, not {channels}"
        raise ValueError(msg)


def _is_clip(shape: tuple[int, ...], space: Space) -> bool:
    """Whether this is one clip (C, T, h, w), or (T, C, h, w), and not a batch."""
    if len(shape) != 4 or not space.video:
        return False
    return shape[0] == space.channels != shape[1]


# Sequences


def _packed(shape: tuple[int, ...], space: Space, size: Any) -> Packing | None:
    """The packing, if latents of this shape are a sequence; ValueError if this is not clear."""
    packing = PACKINGS.get(space.packing or "")
    if packing is None or len(shape) != 3 or shape[2] != space.channels * packing.side**2:
        return None
    is_plane = shape[0] == space.channels
    if size is None:
        if is_plane and shape[1] < NARROW * shape[2]:
            return None
        msg = (
            f"{shape} is a packed sequence of {space.name} latents: give size=(width, height), "
            "the picture's in pixels"
        )
        raise ValueError(msg)
    rows, columns = packing.shape(pixel_size(size), space.factor)
    places = max(rows * columns // packing.side**2, 1)
    if shape[1] == places or (space.video and shape[1] % places == 0):
        return packing
    if is_plane:
        return None
    msg = (
        f"a sequence of {shape[1]} places is not a picture of {size[0]}x{size[1]} pixels, "
        f"which has {places} with {space.name} latents"
    )
    raise ValueError(msg)


def _unpacked(array: Array, model: ModelSpec, packing: Packing, size: Any) -> Frames:
    side = packing.side
    height, width = packing.shape(pixel_size(size), model.factor)
    rows, columns = height // side, width // side
    steps = array.shape[1] // (rows * columns)
    split = array.reshape(len(array) * steps, rows, columns, model.channels, side, side)
    planes = split.transpose(0, 3, 1, 4, 2, 5)
    return Frames(model, planes.reshape(len(split), model.channels, height, width), steps)


def is_sequence(latents: Array, given: Frames) -> bool:
    """Whether these latents are a packed sequence; ``given`` is what `frames` made of them."""
    return latents.ndim == 3 and latents.shape != given.latents.shape[1:]


def packed(given: Frames) -> Array:
    """The sequence (B, n, D) of these latents; ValueError if their family has none."""
    packing = PACKINGS.get(given.model.space.packing or "")
    if packing is None:
        msg = f"{given.model.name} latents are never packed"
        raise ValueError(msg)
    side = packing.side
    count, channels, height, width = given.latents.shape
    split = given.latents.reshape(count, channels, height // side, side, width // side, side)
    return split.transpose(0, 2, 4, 1, 3, 5).reshape(
        count // given.steps, -1, channels * side * side
    )


# Sizes


def pixel_size(size: Any) -> tuple[int, int]:
    """A size that a user gave, as (width, height); ValueError if it is none."""
    try:
        width, height = (operator.index(n) for n in size)
    except (TypeError, ValueError) as e:
        msg = f"size must be (width, height), not {size!r}"
        raise ValueError(msg) from e
    return width, height


def checked_size(size: Any, given: Frames) -> tuple[int, int]:
    """The picture's size in pixels, by default that of its latents.

    ValueError if the latents are not those of a picture of this size.  Pipelines that pack latents
    round the size down.
    """
    model = given.model
    rows, columns = given.latents.shape[-2:]
    whole = columns * model.factor, rows * model.factor
    if size is None:
        return whole
    width, height = found = pixel_size(size)
    if (-(-height // model.factor), -(-width // model.factor)) == (rows, columns):
        return found
    packing = PACKINGS.get(model.space.packing or "")
    if packing is not None and packing.shape(found, model.factor) == (rows, columns):
        return whole
    msg = (
        f"latents of {rows}x{columns} belong to a picture of {whole[0]}x{whole[1]}, or up to "
        f"{model.factor - 1} pixels less on each side, not of {width}x{height}"
    )
    raise ValueError(msg)
