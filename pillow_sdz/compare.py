"""Compares a picture as .sdz, JPEG, WebP and AVIF of the same size: figures, and an HTML page."""

from __future__ import annotations

import base64
import functools
import io
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image, ImageOps, features

from .fidelity import WINDOW, psnr, ssim
from .saving import CONVERT_FIRST

WEBP_LARGEST_SIDE = 16383  # WEBP_MAX_DIMENSION of libwebp's encode.h


@dataclass(frozen=True)
class Codec:
    """A format of Pillow that .sdz is compared with.  Its quality settings are 0 to 100."""

    feature: str  # what Pillow must be built with
    options: dict[str, Any]
    largest_side: int  # in pixels


# The options of the rate-distortion benchmark.
CODECS = {
    "JPEG": Codec("jpg", {"optimize": True, "progressive": True}, 65500),  # JPEG_MAX_DIMENSION
    "WebP": Codec("webp", {"method": 6}, WEBP_LARGEST_SIDE),
    "AVIF": Codec("avif", {"speed": 4}, 32768),  # AVIF_DEFAULT_IMAGE_DIMENSION_LIMIT
}


@dataclass(frozen=True)
class Version:
    """A picture, encoded and decoded by one codec."""

    codec: str
    data: bytes
    picture: Image.Image  # RGB, as decoded
    fits: bool  # no more bytes than .sdz; otherwise this is the codec's smallest file
    psnr: float  # dB
    ssim: float | None  # at most 1; None if the picture is smaller than the window

    @property
    def bits_per_pixel(self) -> float:
        """Bits of the whole file for each pixel of the picture."""
        return 8 * len(self.data) / (self.picture.width * self.picture.height)


@dataclass(frozen=True)
class Comparison:
    """A picture and its versions.  The first version is .sdz."""

    file: str
    original: Image.Image  # as it was compared: upright, in RGB, on white, without metadata
    mode: str  # the mode of the picture as it was given
    transparent: bool  # whether that picture had transparency
    versions: tuple[Version, ...]

    def heading(self) -> str:
        """The picture's size, and how it was converted if it was not plain RGB."""
        heading = f"{self.original.width}x{self.original.height}"
        if self.mode != "RGB" or self.transparent:
            heading += f", {self.mode} compared in RGB"
        return f"{heading} on white" if self.transparent else heading

    def table(self) -> str:
        """The versions' sizes and fidelities as text to print."""
        lines = [f"{'':<8}{'bytes':>10}{'bits/pixel':>12}{'PSNR dB':>10}{'SSIM':>8}"]
        for v in self.versions:
            likeness = "-" if v.ssim is None else f"{v.ssim:.3f}"
            note = "" if v.fits else "  (its smallest file)"
            size = f"{v.codec:<8}{len(v.data):>10,}{v.bits_per_pixel:>12.3f}"
            lines.append(f"{size}{v.psnr:>10.2f}{likeness:>8}{note}")
        return "\n".join(lines)

    def figures(self) -> dict[str, Any]:
        """The same for programs, as an object for JSON."""
        return {
            "file": self.file,
            "width": self.original.width,
            "height": self.original.height,
            "mode": self.mode,
            "transparent": self.transparent,
            "versions": [
                {
                    "codec": v.codec,
                    "bytes": len(v.data),
                    "bits_per_pixel": round(v.bits_per_pixel, 4),
                    # The PSNR of equal pictures is infinite, and JSON has no infinity.
                    "psnr": round(v.psnr, 3) if math.isfinite(v.psnr) else None,
                    "ssim": None if v.ssim is None else round(v.ssim, 5),
                    "fits": v.fits,
                }
                for v in self.versions
            ],
        }


def compare(
    picture: Image.Image, file: str, codecs: Iterable[str] = CODECS, **options: Any
) -> Comparison:
    """Encode a picture as .sdz and with ``codecs``, in no more bytes than .sdz.

    ``options`` are those of `Image.save` for .sdz. Each codec gets the highest quality setting that
    fits, or 0 if none fits. Codecs that Pillow lacks, or that cannot hold a picture of this size,
    are left out. ``file`` is the picture's name. ValueError for bad options and for pictures of
    more than 8 bits.
    """
    original = _plain(picture)
    sdz = _encode(original, "SDZ", options)
    versions = [_version("sdz", original, sdz, len(sdz))]
    for name in codecs:
        codec = CODECS[name]
        if features.check(codec.feature) and max(original.size) <= codec.largest_side:
            data = _best_within(len(sdz), functools.partial(_encode_at, original, name))
            versions.append(_version(name, original, data, len(sdz)))
    transparent = picture.has_transparency_data
    return Comparison(file, original, picture.mode, transparent, tuple(versions))


def _plain(picture: Image.Image) -> Image.Image:
    """The picture upright, in RGB and on white.  Its metadata would cost bytes, and is left out."""
    if picture.mode in CONVERT_FIRST:
        msg = f"pictures of mode {picture.mode} have more than 8 bits: scale them to 8 bits first"
        raise ValueError(msg)
    upright = ImageOps.exif_transpose(picture)
    if upright.has_transparency_data:
        colours = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    plain = upright.convert("RGB")
    plain.info.clear()
    return plain


def _best_within(budget: int, at: Callable[[int], bytes]) -> bytes:
    """The file of the highest quality, 0 to 100, within the budget; quality 0 if none fits."""
    at = functools.cache(at)  # the end asks for the best one again
    low, high = 0, 100
    while low < high:
        middle = (low + high + 1) // 2
        if len(at(middle)) <= budget:
            low = middle
        else:
            high = middle - 1
    return at(low)


def _encode_at(picture: Image.Image, codec: str, quality: int) -> bytes:
    return _encode(picture, codec.upper(), {**CODECS[codec].options, "quality": quality})


def _encode(picture: Image.Image, format: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def _version(codec: str, original: Image.Image, data: bytes, budget: int) -> Version:
    with Image.open(io.BytesIO(data), formats=[codec.upper()]) as file:
        picture = file.convert("RGB")
    before, after = np.asarray(original), np.asarray(picture)
    likeness = ssim(before, after) if min(original.size) >= WINDOW else None
    return Version(codec, data, picture, len(data) <= budget, psnr(before, after), likeness)


def section(comparison: Comparison) -> str:
    """A comparison as JSON, for a page: its figures, and its pictures without loss."""
    pictures = [comparison.original, *(v.picture for v in comparison.versions)]
    described = {
        **comparison.figures(),
        "file": PurePath(comparison.file).name,  # the name of the folder may be private
        "heading": comparison.heading(),
        "pictures": [_data_url(picture) for picture in pictures],
    }
    # Inside <script>, "</script" and "<!--" have a meaning even within a string.
    return json.dumps(described).replace("<", "\\u003c")


def report(sections: Iterable[str]) -> str:
    """A page of HTML with these sections, which loads no other file."""
    page = resources.files(__package__).joinpath("report.html").read_text("utf-8")
    return page.replace("{{sections}}", ",\n".join(sections))


def _data_url(picture: Image.Image) -> str:
    # Lossless WebP takes a fifth less than PNG, if Pillow has it.
    webp = features.check("webp") and max(picture.size) <= WEBP_LARGEST_SIDE
    format = "webp" if webp else "png"
    data = _encode(picture, format, {"lossless": True} if webp else {})
    return f"data:image/{format};base64,{base64.b64encode(data).decode('ascii')}"
