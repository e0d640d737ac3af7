"""Checks the keywords of `Image.save` and `save_latents`, and turns them into values and chunks.

A bad value raises ValueError before anything is written.  The message names the keyword.
"""

from __future__ import annotations

import difflib
import itertools
import os
import struct
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from . import chunks, models, order
from .animation import Animation
from .catalogue import DEFAULT, ModelSpec, known
from .chunks import Denoising, Kind
from .container import Chunk
from .header import MAX_FRAMES, STEP_UNITS
from .spaces import CodingSpec

DEFAULT_QUALITY = 75
DEFAULT_EFFORT = 4  # chosen: the middle of 0..9

#: The options of `Image.save`.  A single picture ignores those of animations.
OPTIONS = (
    "quality",
    "target_size",
    "effort",
    "model",
    "coding",
    "tune",
    "denoise",
    "prompt",
    "exact",
    "regions",
    "protect",
    "exif",
    "icc_profile",
    "xmp",
    "chunks",
    "save_all",
    "append_images",
    "duration",
    "loop",
)


def warn_of_others(options: Mapping[str, Any]) -> None:
    """Warn of options that this format does not have.

    An error would break tools that pass the options of several formats.
    """
    for name in options:
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, n=1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            warn(f"SDZ has no option {name!r}{hint}")


def warn(message: str) -> None:
    """Warn the caller of `Image.save`, which is outside of Pillow and this package."""
    inside = os.path.dirname(__file__), os.path.dirname(PIL.__file__)
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and os.path.dirname(frame.f_code.co_filename) in inside:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def exact(value: object) -> bool:
    """Whether the colours of transparent pixels are kept."""
    if value is not None and not isinstance(value, bool):
        msg = f"exact must be True or False, not {value!r}"
        raise ValueError(msg)
    return bool(value)


def regions(value: object, model: ModelSpec) -> bool:
    """Whether text and other graphics are kept exactly.  With None, the model's latents decide."""
    if value is None:
        return model.space.regions
    if not isinstance(value, bool):
        msg = f"regions must be True or False, not {value!r}"
        raise ValueError(msg)
    return value


class UnknownModelError(ValueError):
    """Nobody knows a model of this name."""


def model_named(name: object) -> ModelSpec:
    """The model of this name; the default model for None."""
    if name is None:
        return DEFAULT
    try:
        found = models.spec(name)  # type: ignore[arg-type]  # a TypeError is caught
    except (KeyError, TypeError):
        family = known(name) if isinstance(name, str) else None
        if family is not None:
            return family
        msg = f"model must be one of {', '.join(models.encoders())}, not {name!r}"
        raise UnknownModelError(msg) from None
    if not found.encodes:
        tunes = (tune for tune, decoder in found.space.decoders.items() if decoder == name)
        msg = (
            f"model {name!r} only decodes: save with model={found.latent_space!r}, "
            f"tune={next(tunes)!r}"
        )
        raise ValueError(msg)
    return found


def coding_for(name: object, model: ModelSpec) -> CodingSpec:
    """The coding of this name, which the model's latents must have; their default for None."""
    codings = model.space.codings
    if name is None:
        return codings[0]
    found = model.space.coding(name) if isinstance(name, str) else None
    if found is None:
        names = ", ".join(coding.name for coding in codings)
        msg = f"coding must be one of {names} with model {model.name!r}, not {name!r}"
        raise ValueError(msg)
    return found


def tune(value: object, model: ModelSpec) -> str:
    """The value of ``tune``.  Only some models have a choice."""
    tunes = model.space.tunes
    if value is None:
        return tunes[0]
    if not isinstance(value, str) or value not in tunes:
        msg = f"tune must be one of {', '.join(tunes)} with model {model.name!r}, not {value!r}"
        raise ValueError(msg)
    return value


def effort(value: object, default: int = DEFAULT_EFFORT) -> int:
    """The effort, 0 to 9."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) <= 9:
        msg = f"effort must be an integer from 0 to 9, not {value!r}"
        raise ValueError(msg)
    return int(value)


def for_decoding(options: Mapping[str, Any], model: ModelSpec, coding: CodingSpec) -> list[Chunk]:
    """The chunks for a reader's U-Net: the recommended denoising, and the prompt."""
    found = []
    strength = options.get("denoise")
    if strength is None:
        # With a target_size, a palette may have more entries than the article's, and less noise.
        dithered = coding.dithered and options.get("target_size") is None
        if dithered and model.space.denoising is not None:
            found.append(chunk(chunks.DENOISING, model.space.denoising))
    elif strength is not False:
        most = chunks.MAX_STRENGTH / 1000
        # `not ... <` also refuses NaN.
        if isinstance(strength, bool) or not isinstance(strength, Real) or not 0 < strength <= most:  # type: ignore[operator]
            msg = f"denoise must be False or a strength above 0, at most {most}, not {strength!r}"
            raise ValueError(msg)
        thousandths = max(1, round(1000 * float(strength)))
        steps = chunks.ARTICLES_DENOISING.steps
        found.append(chunk(chunks.DENOISING, Denoising(thousandths, steps)))
    prompt = options.get("prompt")
    if prompt is not None:
        if not isinstance(prompt, str):
            msg = f"prompt must be a string, not {type(prompt).__name__}"
            raise ValueError(msg)
        found.append(chunk(chunks.PROMPT, prompt))
    return found


def chunk(kind: Kind, value: Any) -> Chunk:
    """The chunk of a value; ValueError if it cannot be written."""
    return Chunk(kind.type, kind.pack(value))


def quality(value: object) -> float:
    """The quality, 1 to 100."""
    if value is None:
        return DEFAULT_QUALITY
    # `not ... <=` also refuses NaN.
    if isinstance(value, bool) or not isinstance(value, Real) or not 1 <= value <= 100:  # type: ignore[operator]
        msg = f"quality must be a number from 1 to 100, not {value!r}"
        raise ValueError(msg)
    return float(value)


def target_size(value: object) -> int:
    """The size of the file in bytes, at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        msg = f"target_size must be a number of bytes, at least 1, not {value!r}"
        raise ValueError(msg)
    return int(value)


def append_images(value: object) -> Iterator[Image.Image]:
    """The images after the first one.  Each is checked when the iterator reaches it."""
    if value is not None and not isinstance(value, Iterable):
        msg = f"append_images must be a sequence of images, not {type(value).__name__}"
        raise ValueError(msg)
    return map(_image, value or ())


def _image(value: object) -> Image.Image:
    if not isinstance(value, Image.Image):
        msg = f"append_images must hold images, not {type(value).__name__}"
        raise ValueError(msg)
    return value


class Timing:
    """How often an animation is shown, and how long each frame that is added is shown.

    ``duration`` is in milliseconds: a number for all frames, or a list with one for each frame.
    With None, each frame has its own.  ``loop`` is how often the animation is shown; 0 or None is
    for ever.
    """

    def __init__(self, duration: object, loop: object) -> None:
        self._given: Sequence[float] | float | None = None
        if isinstance(duration, (list, tuple)):
            self._given = [_milliseconds(each) for each in duration]
        elif duration is not None:
            self._given = _milliseconds(duration)
        if loop is None:
            loop = 0
        if isinstance(loop, bool) or not isinstance(loop, Integral) or not 0 <= int(loop) <= 0xFFFF:
            msg = f"loop must be a number from 0, for ever, to {0xFFFF}, not {loop!r}"
            raise ValueError(msg)
        self._loop = int(loop)
        self._durations: list[float] = []

    def add(self, own: object) -> None:
        """Add a frame with its ``own`` duration.  None or 0 means that of the first frame."""
        number = len(self._durations)
        if number == MAX_FRAMES:
            msg = f"more than {MAX_FRAMES} frames"
            raise ValueError(msg)
        if isinstance(self._given, Sequence):
            if number == len(self._given):
                msg = f"duration has {number} values, but there are more frames: give one for each"
                raise ValueError(msg)
            self._durations.append(self._given[number])
        elif self._given is not None:
            self._durations.append(self._given)
        elif own:
            self._durations.append(_milliseconds(own))
        else:
            self._durations.append(self._durations[0] if self._durations else 0)

    def animation(self) -> Animation:
        """The timing of the frames that were added; ValueError if there were too many durations."""
        if isinstance(self._given, Sequence) and len(self._given) != len(self._durations):
            msg = f"duration has {len(self._given)} values for {len(self._durations)} frames"
            raise ValueError(msg)
        # The times are rounded, not the durations: so rounding errors do not add up.
        begins = [round(time) for time in itertools.accumulate(self._durations, initial=0)]
        durations = tuple(end - begin for begin, end in itertools.pairwise(begins))
        return Animation(self._loop, durations if len(set(durations)) > 1 else durations[:1])


def _milliseconds(value: object) -> float:
    most = chunks.MAX_DURATION
    # `not ... <=` also refuses NaN.
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= most:  # type: ignore[operator]
        msg = f"duration must be from 0 to {most} milliseconds, not {value!r}"
        raise ValueError(msg)
    return float(value)


def known_metadata(options: Mapping[str, Any]) -> list[Chunk]:
    """The chunks of the ICC profile, EXIF and XMP in the options of a save."""
    exif = options.get("exif")
    if isinstance(exif, Image.Exif):
        try:
            exif = exif.tobytes() if exif else b""
        except (AttributeError, KeyError, OverflowError, TypeError, struct.error) as e:
            msg = f"exif cannot be written: {e}"
            raise ValueError(msg) from e

    xmp = options.get("xmp")
    if isinstance(xmp, str):
        xmp = xmp.encode()

    given = {
        chunks.ICC_PROFILE: options.get("icc_profile"),
        chunks.EXIF: exif,
        chunks.XMP: xmp,
    }
    found = (chunk(kind, _bytes(kind.keyword, value)) for kind, value in given.items())
    return [one for one in found if one.data]


def _bytes(name: str, value: object) -> bytes:
    if value is None:
        return b""
    if not isinstance(value, (bytes, bytearray)):
        msg = f"{name} must be bytes, not {type(value).__name__}"
        raise ValueError(msg)
    if len(value) > chunks.MAX_METADATA:
        msg = f"{name} has {len(value)} bytes, more than the limit of {chunks.MAX_METADATA}"
        raise ValueError(msg)
    return bytes(value)


def other_chunks(value: object) -> list[Chunk]:
    """Chunks that this version does not know; ``value`` is a list of (type, data)."""
    if value is None:
        return []
    msg = "chunks must be a list of (type, data), with types that are unknown and may be skipped"
    if not isinstance(value, (list, tuple)):
        raise ValueError(msg)
    if len(value) > order.MAX_OTHERS:
        msg = f"chunks must have at most {order.MAX_OTHERS} entries, not {len(value)}"
        raise ValueError(msg)
    found = []
    for pair in value:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(msg)
        type, data = pair
        if not isinstance(type, bytes) or not chunks.is_skippable(type):
            raise ValueError(msg)
        found.append(Chunk(type, _bytes(f"chunk {type!r}", data)))
    return found


def precision(
    model: ModelSpec, coding: object, *, quality: object, step: object, lossless: object
) -> tuple[CodingSpec, int | None]:
    """How exactly latents are kept: the coding, and the header's quantisation for a ``step``.

    The quantisation is None if no step is given: the coding makes it from the quality.
    """
    choices = {"quality": quality, "step": step, "lossless": lossless}
    given = [name for name, value in choices.items() if value is not None]
    if len(given) > 1:
        msg = f"{' and '.join(given)} exclude each other: give one of them"
        raise ValueError(msg)
    if lossless is not None:
        return _lossless(model, coding, lossless), None
    found = coding_for(coding, model)
    if given and not found.graded:
        msg = f"the coding {found.name!r} has one precision: leave out {given[0]}"
        raise ValueError(msg)
    if step is None:
        return found, None
    if found.unit != "step":
        msg = f"the latents of {model.name} are quantised by quality: give quality, not step"
        raise ValueError(msg)
    # `not ... <` also refuses NaN.
    if isinstance(step, bool) or not isinstance(step, Real) or not 0 < step < 64:  # type: ignore[operator]
        msg = f"step must be a number above 0 and below 64, not {step!r}"
        raise ValueError(msg)
    quantisation = round(float(step) * STEP_UNITS)
    if not found.lowest <= quantisation <= found.highest:
        msg = f"step must be 1/{STEP_UNITS} to 63.99, not {step!r}"
        raise ValueError(msg)
    return found, quantisation


def scaled_step(step: float | None, scaling: NDArray[np.float32]) -> float | None:
    """A step for unscaled latents as a step for scaled ones.

    It is rounded down, and fits the channel with the least scaling, so that it holds in all
    channels.
    """
    if isinstance(step, bool) or not isinstance(step, Real) or not step > 0:
        return step  # `precision` says what is wrong
    units = int(float(step) * float(scaling.min()) * STEP_UNITS)
    if units == 0:
        msg = f"step {step!r} of unscaled latents is too fine: keep them without loss"
        raise ValueError(msg)
    return units / STEP_UNITS


def _lossless(model: ModelSpec, coding: object, dtype: object) -> CodingSpec:
    """The coding that keeps a dtype bit for bit; ValueError if there is none."""
    codings = model.space.codings
    found = next((c for c in codings if c.lossless is not None and c.lossless == dtype), None)
    if found is None:
        dtypes = [repr(c.lossless) for c in codings if c.lossless]
        known = " or ".join(dtypes) if dtypes else f"left out with model {model.name!r}"
        msg = f"lossless must be {known}, not {dtype!r}"
        raise ValueError(msg)
    if coding not in (None, codings[0].name, found.name):
        msg = f"lossless={dtype!r} and coding={coding!r} exclude each other"
        raise ValueError(msg)
    return found
