"""Writing a decoded picture in a format that may hold less than the picture has.

A tiny picture is written and read again to find out what a format holds. Pillow has no table for
this, some formats drop without a word what they cannot hold, and other packages add more formats.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator
from typing import Any

from PIL import ExifTags, Image

from .messages import reason
from .metadata import TURNS, metadata, orientation, save_options, upright
from .pictures import changed_frames, frame_count
from .reports import Report

# A decoded picture has lost quality once. Pillow's default of 75 would visibly damage it again.
LOSSY_QUALITY = {"JPEG": 95, "WEBP": 95, "AVIF": 95, "HEIF": 95, "MPO": 95}

PROBE = (32, 16)  # pixels of the tiny picture; not square, so that turning it shows

TURNED = 6  # the orientation of a picture to be turned by 90 degrees


class Writer:
    """Writes a loaded picture, with the part of its metadata that the format takes."""

    def __init__(self, image: Image.Image, format: str, report: Report) -> None:
        self._image = image
        self._format = format
        self._report = report
        self._mode = self._mode_for(image.mode)

    def write(self, *, strip: bool) -> bytes:
        """The picture as a file; the report says what is lost."""
        kept = metadata(self._image)
        if strip:
            kept = {name: data for name, data in kept.items() if name == "icc_profile"}
        try:
            data = self._saved(kept)
        except Exception:  # Pillow's plugins raise anything
            self._saved({})  # if this fails as well, its error is the one to report
            kept = self._accepted(kept)
            data = self._saved(kept)
        self._report.metadata = sum(map(len, kept.values()))
        return data

    def _accepted(self, kept: dict[str, bytes]) -> dict[str, bytes]:
        """The part of the metadata that the format takes."""
        accepted: dict[str, bytes] = {}
        for name, data in kept.items():
            try:
                self._saved({**accepted, name: data})
            except Exception as error:
                self._report.warn(f"{self._format} does not take its {name}: {reason(error)}")
            else:
                accepted[name] = data
        return accepted

    def _saved(self, kept: dict[str, bytes]) -> bytes:
        turn = None
        if not ("exif" in kept and holds_orientation(self._format)):
            turn = TURNS.get(orientation(self._image))
        if turn is not None and kept:
            turned = metadata(upright(self._image))  # this metadata does not say how to turn it
            kept = {name: data for name, data in turned.items() if name in kept}
        options = _times(self._image, self._format)
        if self._format in LOSSY_QUALITY:
            options["quality"] = LOSSY_QUALITY[self._format]
        file = io.BytesIO()
        with _bare(self._image):
            picture = self._image
            if turn is not None or self._mode != picture.mode:
                picture, others = changed_frames(picture, lambda frame: self._changed(frame, turn))
                options |= others if "save_all" in options else {}
            picture.save(file, self._format, **options, **save_options(kept, self._format))
        return file.getvalue()

    def _changed(self, frame: Image.Image, turn: Image.Transpose | None) -> Image.Image:
        """A frame in the mode of the format, and turned if wanted."""
        if turn is not None:
            frame = frame.transpose(turn)
        if frame.mode.endswith("A") and not self._mode.endswith("A"):
            white = Image.new("RGBA", frame.size, "white")
            info = frame.info
            frame = Image.alpha_composite(white, frame.convert("RGBA"))
            frame.info = info
        return frame if frame.mode == self._mode else frame.convert(self._mode)

    def _mode_for(self, mode: str) -> str:
        """The mode to write; the picture's own, if no mode can be written."""
        opaque = mode.removesuffix("A")
        if mode != opaque:
            for found in (mode, "RGBA"):
                if holds_mode(self._format, found):
                    return found
            self._report.warn(f"put on white, because {self._format} holds no transparency")
        return next((m for m in (opaque, "RGB") if holds_mode(self._format, m)), mode)


@contextlib.contextmanager
def _bare(image: Image.Image) -> Iterator[None]:
    """Remove from the picture what formats would write without being asked."""
    names = ("exif", "xmp", "icc_profile")
    taken = {name: image.info.pop(name) for name in names if name in image.info}
    try:
        yield
    finally:
        image.info.update(taken)


def _times(image: Image.Image, format: str) -> dict[str, Any]:
    """Options that save all frames of an .sdz file, each for its time, if the format has frames."""
    frames = frame_count(image)
    if frames == 1 or format not in Image.SAVE_ALL:
        return {}
    options: dict[str, Any] = {"save_all": True}
    if "duration" in image.info:
        durations = []
        for number in range(frames):
            image.seek(number)
            durations.append(image.info["duration"])
        image.seek(0)
        options["duration"] = durations
        # A GIF that is shown once does not say how often it is shown.
        once = format == "GIF" and image.info["loop"] == 1
        options["loop"] = None if once else image.info["loop"]
    return options


@functools.cache
def holds_mode(format: str, mode: str) -> bool:
    """Whether the format takes pictures of this mode, and keeps their transparency if any."""
    picture = Image.new(mode, PROBE)
    if mode.endswith("A"):
        alpha = Image.new("L", PROBE)
        alpha.paste(255, (0, 0, PROBE[0] // 2, PROBE[1]))
        picture.putalpha(alpha)
    file = io.BytesIO()
    try:
        picture.save(file, format)
    except Exception:  # Pillow's plugins raise anything
        return False
    found = _reopened(file)
    return found is None or not mode.endswith("A") or found.has_transparency_data


@functools.cache
def holds_orientation(format: str) -> bool:
    """Whether a picture of this format is shown turned if its EXIF says so."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = TURNED
    file = io.BytesIO()
    try:
        options = save_options({"exif": exif.tobytes()}, format)
        Image.new("RGB", PROBE).save(file, format, **options)
    except Exception:  # as above
        return False
    found = _reopened(file)
    return found is not None and upright(found).size == (PROBE[1], PROBE[0])


def _reopened(file: io.BytesIO) -> Image.Image | None:
    """The picture in the file; None if Pillow only writes the format."""
    file.seek(0)
    try:
        with Image.open(file) as found:
            found.load()
            return found
    except Exception:  # as above
        return None
