"""Writes pictures of any mode to a file: what `Image.save` does."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import IO, NamedTuple

from PIL import Image

from . import alpha, chunks, codec, container, keywords, layering, models, protection
from .arrays import CELL
from .catalogue import ModelSpec
from .container import Chunk
from .header import MAX_SIDE, MODES, Header
from .keywords import Timing
from .order import MAX_CHANGES
from .pillow_private import is_read_from

# The mode that each mode is saved as. A picture of mode 1, L, P or RGB that has transparency (in
# its info or its palette) is saved with alpha, as LA or RGBA.
SAVED_AS: Mapping[str, str] = {
    "L": "L",
    "LA": "LA",
    "RGB": "RGB",
    "RGBA": "RGBA",
    "1": "L",
    "P": "RGB",
    "PA": "RGBA",
    "La": "LA",
    "RGBa": "RGBA",
    "RGBX": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "HSV": "RGB",
    "LAB": "RGB",
}

# Modes of more than 8 bits. Pillow's own conversion clips values instead of scaling them,
# which is silently wrong for most pictures. So the caller has to say what the values mean.
CONVERT_FIRST: Mapping[str, str] = {
    "I": "L",
    "F": "L",
    "I;16": "L",
    "I;16L": "L",
    "I;16B": "L",
    "I;16N": "L",
}


def save(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    """Write one picture, with the options in ``im.encoderinfo``."""
    _write(im, fp, [im])


def save_all(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    """Write all frames of a picture, and of the pictures in its option ``append_images``."""
    options = im.encoderinfo
    timing = Timing(options.get("duration"), options.get("loop"))
    others = keywords.append_images(options.get("append_images"))
    # One frame alone is a picture.
    is_animated = getattr(im, "n_frames", 1) > 1 or bool(options.get("append_images"))
    with contextlib.closing(_frames_of(itertools.chain([im], others), fp)) as frames:
        _write(im, fp, frames, timing if is_animated else None)


def _frames_of(images: Iterable[Image.Image], fp: IO[bytes]) -> Generator[Image.Image]:
    """Every frame of every image.  Afterwards each image is at its old frame again.

    Pillow has emptied the target ``fp`` by now.  If an image still reads this file, only its loaded
    frame is left.
    """
    for image in images:
        if image.format != "SDZ" and is_read_from(image, fp):
            keywords.warn(f"{fp.name} has been emptied for writing: only one frame is left")
            yield image
            continue
        frames = getattr(image, "n_frames", 1)
        if frames == 1:
            yield image
            continue
        shown = image.tell()
        try:
            for number in range(frames):
                image.seek(number)
                yield image.copy()
        finally:
            image.seek(shown)


class _Beside(NamedTuple):
    """What a file keeps of a frame in addition to its latents."""

    is_colour: bool
    alpha: bytes | None  # the data of an ALPH chunk
    is_grey: bool = False  # although its mode is that of a colour picture


class _Picture(NamedTuple):
    """A frame as it is encoded."""

    given: layering.Given
    beside: _Beside

    def beside_of(self, coded: Sequence[Chunk]) -> _Beside:
        """What the file keeps in addition to these chunks."""
        has_alpha = layering.have_alpha(coded)
        return self.beside._replace(alpha=alpha.IN_EXACT) if has_alpha else self.beside


def _pictures(
    frames: Iterable[Image.Image], size: tuple[int, int], timing: Timing | None, *, exact: bool
) -> Iterator[_Picture]:
    """The frames one by one; ValueError for a frame that cannot go into this file."""
    for number, frame in enumerate(frames):
        frame.load()  # this may change its mode
        if frame.size != size:
            msg = f"frame {number} has the size {frame.size}, but the first frame has {size}"
            raise ValueError(msg)
        if timing is not None:
            timing.add(frame.info.get("duration"))
        image = _convert(frame)
        is_colour = image.mode.startswith("RGB")
        coded_alpha = hidden = transparency = None
        if image.mode.endswith("A"):
            transparency = image.getchannel("A")
            coded_alpha = alpha.encode(transparency)
            if not exact and not transparency.getextrema()[0]:
                hidden = transparency.point([255, *[0] * 255])
        if image.mode != "RGB":
            image = image.convert("RGB")
        is_grey = is_colour and _is_grey(image)
        if transparency is not None and alpha.constant(transparency):
            transparency = None
        given = layering.Given(image, hidden, transparency, len(coded_alpha or b""))
        yield _Picture(given, _Beside(is_colour, coded_alpha, is_grey))


def _is_grey(image: Image.Image) -> bool:
    """Whether a picture of mode RGB has no colour."""
    red, green, blue = (band.tobytes() for band in image.split())
    return red == green == blue


class _Shell(NamedTuple):
    """What a file has in addition to the chunks of its latents."""

    header: Header
    about: list[Chunk]
    profile: Chunk | None
    timing: Timing | None

    def file(
        self,
        besides: Sequence[_Beside],
        latents: Sequence[Sequence[Chunk]],
        quantisation: int,
    ) -> list[Chunk]:
        """All chunks of the file with these frames."""
        # The file has colour if a frame has colour, and alpha if a frame has alpha.
        colour = any(beside.is_colour for beside in besides)
        alphas = _alphas([beside.alpha for beside in besides])
        header = self.header._replace(
            mode=("RGB" if colour else "L") + ("A" if alphas else ""),
            frames=len(besides),
            quantisation=quantisation,
        )
        about = self.about
        if self.profile is not None and _fits(self.profile.data, header.mode):
            about = [self.profile, *about]
        if colour and all(beside.is_grey or not beside.is_colour for beside in besides):
            about = [*about, keywords.chunk(chunks.GREY, True)]
        if self.timing is not None and len(besides) > 1:
            about = [*about, keywords.chunk(chunks.ANIMATION, self.timing.animation())]
        frames = zip(latents, alphas or [[]] * len(besides), strict=True)
        return container.assemble(header, about, ([*coded, *own] for coded, own in frames))


def _alphas(alphas: Sequence[bytes | None]) -> list[list[Chunk]]:
    """The ALPH chunk of every frame, or an empty list if no frame has alpha."""
    if not any(alphas):
        return []
    whole = (alpha.OPAQUE if one is None else one for one in alphas)
    return [[Chunk(chunks.ALPHA, data)] for data in alpha.in_turn(whole, MAX_CHANGES)]


class _Start(NamedTuple):
    """What codes the frames of a file with one model, and what the file has besides."""

    coder: layering.Coder
    shell: _Shell
    coarser_below: float  # with a lower quality, another model is better


def _write(
    im: Image.Image, fp: IO[bytes], frames: Iterable[Image.Image], timing: Timing | None = None
) -> None:
    """Write frames to a file, with the options and the metadata of ``im``.

    Without ``timing`` there is exactly one frame.
    """
    options = im.encoderinfo
    keywords.warn_of_others(options)
    model = keywords.model_named(options.get("model"))
    target_size = None
    if options.get("target_size") is not None:
        if options.get("quality") is not None:
            msg = "quality and target_size exclude each other: give one of them"
            raise ValueError(msg)
        target_size = keywords.target_size(options["target_size"])
    exact = keywords.exact(options.get("exact"))
    start = _started(im, model, timing)
    pictures = _pictures(frames, im.size, timing, exact=exact)
    if target_size is None:
        file = _encoded(start, pictures)
    else:
        others = [] if options.get("model") is not None else model.coarser
        coarser = (_started(im, keywords.model_named(name), timing) for name in others)
        file = _fitted(itertools.chain([start], coarser), list(pictures), target_size)
    is_kept = any(chunk.type == chunks.ICC_PROFILE.type for chunk in file)
    if options.get("icc_profile") and not is_kept:
        mode = Header.parse(file[0].data).mode
        keywords.warn(f"icc_profile is not written: it is not for mode {mode}")
    fp.write(codec.write(file))


def _started(im: Image.Image, model: ModelSpec, timing: Timing | None) -> _Start:
    """The start of a file of this model, with the options and the metadata of ``im``."""
    options = im.encoderinfo
    coding = keywords.coding_for(options.get("coding"), model)
    effort = keywords.effort(options.get("effort"))
    tune = keywords.tune(options.get("tune"), model)
    if not coding.graded and options.get("quality") is not None:
        msg = f"the coding {coding.name!r} has one precision: leave out quality"
        raise ValueError(msg)
    quality = keywords.quality(options.get("quality"))
    offsets = None
    if options.get("protect") is not None:
        offsets = protection.offsets(options["protect"], im, CELL * model.factor)
        if not model.space.quality_map:
            msg = f"protect needs a model whose quality may vary over the picture, not {model.name}"
            raise ValueError(msg)
    profile = _profile(im)
    about = [*_metadata(im), *keywords.for_decoding(options, model, coding)]
    if tune != model.space.tunes[0]:
        about.append(keywords.chunk(chunks.TUNE, tune))
    width, height = im.size
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        msg = f"cannot write {width}x{height} as SDZ: a side must have 1 to {MAX_SIDE} pixels"
        raise ValueError(msg)

    encoder = codec.Encoder(
        model,
        coding,
        quality=quality,
        effort=effort,
        predict=timing is not None,
        offsets=offsets,
    )
    header = Header(
        MODES[0],
        im.size,
        model.name,
        model.digest,
        model.channels,
        model.factor,
        encoder.quantisation,
        coding.number,
    )
    if (rows := encoder.band_rows(*header.latents[1:])) is not None:
        about.append(keywords.chunk(chunks.BANDS, rows))
    coder = layering.Coder(
        encoder,
        header.latents[1:],
        wanted=keywords.regions(options.get("regions"), model),
        quality=quality,
        animated=timing is not None,
    )
    decoder = model.space.decoders.get(tune)
    limit = (models.spec(decoder) if decoder else model).coarser_below
    return _Start(coder, _Shell(header, about, profile, timing), limit)


def _encoded(start: _Start, pictures: Iterable[_Picture]) -> list[Chunk]:
    """The chunks of the file.  Only one picture at a time is in memory."""
    coder, shell, _ = start
    besides, coded = [], []
    for picture in pictures:
        coded.append(coder.encode(picture.given))
        besides.append(picture.beside_of(coded[-1]))
    return shell.file(besides, coded, shell.header.quantisation)


def _fitted(
    starts: Iterable[_Start], pictures: Sequence[_Picture], target_size: int
) -> list[Chunk]:
    """The chunks of the best file of at most ``target_size`` bytes; ValueError if none fits.

    It has the first of the ``starts`` that is not better replaced with the next one.
    """
    file: list[Chunk] = []
    smallest = []
    besides = [picture.beside for picture in pictures]
    for coder, shell, coarser_below in starts:
        # Only the chunks of latents and of exact regions depend on the quality.
        others = container.size(shell.file(besides, [[]] * len(besides), shell.header.quantisation))
        try:
            fitted = coder.fit([picture.given for picture in pictures], target_size - others)
        except codec.DoesNotFit as e:
            smallest.append(others + e.smallest)
            continue
        of_frames = zip(pictures, fitted.frames, strict=True)
        own = [picture.beside_of(coded) for picture, coded in of_frames]
        file = shell.file(own, fitted.frames, fitted.quantisation)
        if coder.quality_of(fitted) >= coarser_below:
            break
    if not file:
        msg = f"target_size is {target_size}, but the smallest file has {min(smallest)} bytes"
        raise ValueError(msg)
    return file


def _convert(im: Image.Image) -> Image.Image:
    """The picture in the mode that it is saved as; ValueError if its mode cannot be saved."""
    if im.mode in CONVERT_FIRST:
        msg = f"cannot write mode {im.mode} as SDZ: scale it to 8 bits, then convert it to 'L'"
        raise ValueError(msg)
    if im.mode not in SAVED_AS:
        msg = f"cannot write mode {im.mode} as SDZ: convert it to 'RGB'"
        raise ValueError(msg)
    mode = SAVED_AS[im.mode]
    if im.mode in ("1", "L", "P", "RGB") and im.has_transparency_data:
        mode += "A"
    if mode == im.mode:
        return im
    try:
        return im.convert(mode)
    except (ImportError, TypeError, ValueError) as e:  # littleCMS missing, odd transparency
        msg = f"cannot convert mode {im.mode} to {mode} for SDZ: {e}"
        raise ValueError(msg) from e


def _metadata(im: Image.Image) -> list[Chunk]:
    """The chunks of the metadata that was asked for.

    EXIF, XMP and unknown chunks are written only if they are given, as with Pillow's own formats.
    They may say where a photo was taken.  They may also say how to turn a picture, although it is
    upright by now.
    """
    return [
        *keywords.known_metadata({**im.encoderinfo, "icc_profile": None}),
        *keywords.other_chunks(im.encoderinfo.get("chunks")),
    ]


def _profile(im: Image.Image) -> Chunk | None:
    """The profile that was asked for, otherwise the picture's own; None if there is none."""
    asked = im.encoderinfo.get("icc_profile", im.info.get("icc_profile"))
    found = keywords.known_metadata({"icc_profile": asked})
    return found[0] if found else None


def _fits(profile: bytes, mode: str) -> bool:
    """Whether a profile is for pixels of this mode.  True for data that is no ICC profile."""
    # Bytes 16 to 19 name its colour space, 36 to 39 are "acsp" (ICC.1:2022, 7.2).
    space, signature = profile[16:20], profile[36:40]
    return signature != b"acsp" or space == (b"RGB " if mode.startswith("RGB") else b"GRAY")
