"""What users ask for when they save, checked: keywords -> values and chunks.

ValueError for what cannot be, naming the keyword, before anything is written.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from PIL import Image

from . import container, models
from .container import Animation, Chunk

# What is recommended for the denoising of palettes, in the latent spaces whose U-Nets this
# package knows: the article's for Stable Diffusion 1; for sd-mini a little less, which on photos
# held out from its training was a point of SSIMULACRA2 better (training/README.md).
RECOMMENDED = {
    "sd1": container.ARTICLES_DENOISING,
    "sd-mini": container.Denoising(strength=30, steps=3),
}

DEFAULT_EFFORT = 4  # chosen: the middle of 0..9


def model_named(name: object) -> models.ModelSpec:
    """The model that is asked for, by default the embedded one."""
    if name is None:
        return models.MINI
    try:
        found = models.spec(name)  # type: ignore[arg-type]  # whatever it is
    except (KeyError, TypeError):
        known = (known for known in models.names() if known != models.MINI_PERCEPTUAL.name)
        msg = f"model must be one of {', '.join(known)}, not {name!r}"
        raise ValueError(msg) from None
    if found is models.MINI_PERCEPTUAL:
        msg = f"model {name!r} only decodes: save with model='mini', tune='perceptual'"
        raise ValueError(msg)
    return found


def coding_for(name: object, model: models.ModelSpec) -> str:
    """The coding that is asked for, which must be one for the model's latents."""
    if name is None:
        return "context"
    if not isinstance(name, str) or name not in container.CODINGS:
        msg = f"coding must be one of {', '.join(container.CODINGS)}, not {name!r}"
        raise ValueError(msg)
    if model is models.MINI and name != "context":
        msg = f"coding {name!r} is for latents like Stable Diffusion's, model 'mini' has others"
        raise ValueError(msg)
    return name


def tune(value: object, model: models.ModelSpec) -> str:
    """What the picture is tuned for, one of `container.TUNES`; `mini` has the choice."""
    if value is None:
        return container.TUNES[0]
    if not isinstance(value, str) or value not in container.TUNES:
        msg = f"tune must be one of {', '.join(container.TUNES)}, not {value!r}"
        raise ValueError(msg)
    if value != container.TUNES[0] and model is not models.MINI:
        msg = f"tune {value!r} is for model 'mini', {model.name!r} has one decoder"
        raise ValueError(msg)
    return value


def effort(value: object, default: int = DEFAULT_EFFORT) -> int:
    """0 to 9."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) <= 9:
        msg = f"effort must be an integer from 0 to 9, not {value!r}"
        raise ValueError(msg)
    return int(value)


def for_decoding(options: Mapping[str, Any], model: models.ModelSpec, coding: str) -> list[Chunk]:
    """What a reader's U-Net is told: the recommended denoising, and the prompt."""
    chunks = []
    strength = options.get("denoise")
    # A palette made for a size may have many more entries than the article's, and less noise.
    article = coding == "palette" and options.get("target_size") is None
    if strength is None and article and model.latent_space in RECOMMENDED:
        chunks.append(Chunk(container.DENOISING, RECOMMENDED[model.latent_space].pack()))
    elif strength is not None and strength is not False:
        most = container.MAX_STRENGTH / 1000
        # Written so that NaN fails too.
        if isinstance(strength, bool) or not isinstance(strength, Real) or not 0 < strength <= most:  # type: ignore[operator]
            msg = f"denoise must be False or a strength above 0, at most {most}, not {strength!r}"
            raise ValueError(msg)
        thousandths = max(1, round(1000 * float(strength)))
        recommended = container.ARTICLES_DENOISING._replace(strength=thousandths)
        chunks.append(Chunk(container.DENOISING, recommended.pack()))
    prompt = options.get("prompt")
    if prompt is not None:
        if not isinstance(prompt, str):
            msg = f"prompt must be a string, not {type(prompt).__name__}"
            raise ValueError(msg)
        chunks.append(Chunk(container.PROMPT, container.pack_prompt(prompt)))
    return chunks


def quality(value: object) -> float:
    """1 to 100."""
    if value is None:
        return 75
    # Written so that NaN fails too.
    if isinstance(value, bool) or not isinstance(value, Real) or not 1 <= value <= 100:  # type: ignore[operator]
        msg = f"quality must be a number from 1 to 100, not {value!r}"
        raise ValueError(msg)
    return float(value)


def target_size(value: object) -> int:
    """Bytes, at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        msg = f"target_size must be a number of bytes, not {value!r}"
        raise ValueError(msg)
    return int(value)


def append_images(value: object) -> Iterator[Image.Image]:
    """What follows the first image; each is checked when it is asked for."""
    if value is not None and not isinstance(value, Iterable):
        msg = f"append_images must be images, not {type(value).__name__}"
        raise ValueError(msg)
    return map(_image, value or ())


def _image(value: object) -> Image.Image:
    if not isinstance(value, Image.Image):
        msg = f"append_images must be images, not {type(value).__name__}"
        raise ValueError(msg)
    return value


class Timing:
    """How often an animation is shown, and for how long each of its frames, which are added.

    ``duration`` is milliseconds, for all frames or a list with those of each, None: as each frame
    itself says.  ``loop`` is how often, 0 or None for ever.
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
        """Add a frame that says to be shown for ``own``; None or 0: as long as the first."""
        number = len(self._durations)
        if number == container.MAX_FRAMES:
            msg = f"more than {container.MAX_FRAMES} frames"
            raise ValueError(msg)
        if isinstance(self._given, Sequence):
            if number == len(self._given):
                msg = f"duration has {number} values, but there are more frames"
                raise ValueError(msg)
            self._durations.append(self._given[number])
        elif self._given is not None:
            self._durations.append(self._given)
        elif own:
            self._durations.append(_milliseconds(own))
        else:
            self._durations.append(self._durations[0] if self._durations else 0)

    def animation(self) -> Animation:
        """Of the frames that were added; ValueError where durations of others were given."""
        if isinstance(self._given, Sequence) and len(self._given) != len(self._durations):
            msg = f"duration has {len(self._given)} values for {len(self._durations)} frames"
            raise ValueError(msg)
        # Rounded so that no frame begins too late by what the others' have lost.
        begins = [round(time) for time in itertools.accumulate(self._durations, initial=0)]
        durations = tuple(end - begin for begin, end in itertools.pairwise(begins))
        return Animation(self._loop, durations if len(set(durations)) > 1 else durations[:1])


def _milliseconds(value: object) -> float:
    most = container.MAX_DURATION
    # Written so that NaN fails too.
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= most:  # type: ignore[operator]
        msg = f"duration must be from 0 to {most} milliseconds, not {value!r}"
        raise ValueError(msg)
    return float(value)


def known_metadata(options: Mapping[str, Any]) -> list[Chunk]:
    """The chunks of the profile, EXIF and XMP among the options of a save."""
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

    known = (
        Chunk(container.ICC_PROFILE, _bytes("icc_profile", options.get("icc_profile"))),
        Chunk(container.EXIF, _bytes("exif", exif).removeprefix(container.EXIF_PREFIX)),
        Chunk(container.XMP, _bytes("xmp", xmp)),
    )
    return [chunk for chunk in known if chunk.data]


def _bytes(name: str, value: object) -> bytes:
    if value is None:
        return b""
    if not isinstance(value, (bytes, bytearray)):
        msg = f"{name} must be bytes, not {type(value).__name__}"
        raise ValueError(msg)
    if len(value) > container.MAX_METADATA:
        msg = f"{name} has {len(value)} bytes, more than the limit of {container.MAX_METADATA}"
        raise ValueError(msg)
    return bytes(value)


def other_chunks(value: object) -> list[Chunk]:
    """The chunks that this version does not know, as a list of (type, data)."""
    if value is None:
        return []
    msg = "chunks must be a list of (type, data), of types that readers may skip"
    # Of the 1000 that a file may have, eight are this version's own.
    if not isinstance(value, (list, tuple)) or len(value) > container.MAX_CHUNKS - 8:
        raise ValueError(msg)
    chunks = []
    for pair in value:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(msg)
        type, data = pair
        if not isinstance(type, bytes) or not container.is_skippable(type):
            raise ValueError(msg)
        chunks.append(Chunk(type, _bytes(f"chunk {type!r}", data)))
    return chunks
