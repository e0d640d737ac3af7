"""`sdz demo`: one photo as .sdz, JPEG and WebP of the same size, in figures and side by side."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .fidelity import psnr, ssim

# The size at which Stable Diffusion based compression was first shown, for 512x512 pixels.
DEFAULT_TARGET_SIZE = 5000

_MARGIN = 8  # pixels around each picture of the comparison
_LABEL = 28  # height of the line above it


@dataclass(frozen=True)
class Version:
    """The photo as one codec keeps it."""

    name: str
    data: bytes
    picture: Image.Image
    psnr: float  # dB
    ssim: float  # at most 1
    note: str = ""

    @property
    def bits_per_pixel(self) -> float:
        """Bits of the whole file for each pixel of the picture."""
        return 8 * len(self.data) / (self.picture.width * self.picture.height)


@dataclass(frozen=True)
class Demo:
    """A photo and its versions, the first of them .sdz."""

    original: Image.Image
    versions: tuple[Version, ...]

    def table(self) -> str:
        """The versions' sizes and fidelities as text to print."""
        lines = [f"{'':<8}{'bytes':>8}{'bits/pixel':>12}{'PSNR dB':>10}{'SSIM':>8}"]
        for v in self.versions:
            size = f"{v.name:<8}{len(v.data):>8,}{v.bits_per_pixel:>12.3f}"
            lines.append(f"{size}{v.psnr:>10.2f}{v.ssim:>8.3f}  {v.note}".rstrip())
        return "\n".join(lines)

    def comparison(self) -> Image.Image:
        """The original and its versions side by side, each under its name and size."""
        labelled = [(f"original, {self.original.width}x{self.original.height}", self.original)]
        labelled += [(f"{v.name}, {len(v.data):,} bytes", v.picture) for v in self.versions]
        width = self.original.width + 2 * _MARGIN
        height = self.original.height + _LABEL + _MARGIN
        sheet = Image.new("RGB", (2 * width, height * -(-len(labelled) // 2)), "white")
        draw = ImageDraw.Draw(sheet)
        font = ImageFont.load_default(size=18)
        for i, (label, picture) in enumerate(labelled):
            x, y = i % 2 * width + _MARGIN, i // 2 * height
            draw.text((x, y + _LABEL / 2), label, fill="black", font=font, anchor="lm")
            sheet.paste(picture, (x, y + _LABEL))
        return sheet

    def write(self, folder: Path) -> list[Path]:
        """Write the .sdz file and the comparison into the folder; their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        sdz, comparison = folder / "sdz-demo.sdz", folder / "sdz-demo.png"
        sdz.write_bytes(self.versions[0].data)
        self.comparison().save(comparison, optimize=True)
        return [sdz, comparison]


def photo() -> Image.Image:
    """The photo that the package carries, 600x400 in RGB; see pictures/NOTICE.md."""
    file = resources.files(__package__) / "pictures" / "coffee.webp"
    with file.open("rb") as stream, Image.open(stream) as picture:
        return picture.convert("RGB")


def run(*, quality: float | None = None, target_size: int | None = None) -> Demo:
    """Encode the photo at this quality, or in so many bytes, and in as many with JPEG and WebP.

    ``target_size`` is 5000 where neither is given. ValueError where no .sdz is that small.
    """
    original = photo()
    if quality is None and target_size is None:
        target_size = DEFAULT_TARGET_SIZE
    options = {"quality": quality, "target_size": target_size}
    sdz = _encode(original, "SDZ", {k: v for k, v in options.items() if v is not None})
    return Demo(
        original,
        (
            _version("sdz", original, sdz, len(sdz)),
            _fitted("JPEG", original, {"optimize": True, "progressive": True}, len(sdz)),
            _fitted("WebP", original, {"method": 6}, len(sdz)),
        ),
    )


def _fitted(name: str, original: Image.Image, options: dict[str, Any], budget: int) -> Version:
    """The version of the best quality setting that keeps to the budget, or else the smallest."""

    def at(quality: int) -> bytes:
        return _encode(original, name.upper(), {**options, "quality": quality})

    return _version(name, original, at(_best_quality(lambda q: len(at(q)) <= budget)), budget)


def _best_quality(fits: Callable[[int], bool]) -> int:
    """The highest quality of 0..100 that fits, by bisection; 0 where none does."""
    low, high = 0, 100
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _version(name: str, original: Image.Image, data: bytes, budget: int) -> Version:
    with Image.open(io.BytesIO(data)) as file:
        picture = file.convert("RGB")
    before, after = np.asarray(original), np.asarray(picture)
    note = "" if len(data) <= budget else "(its smallest file)"
    return Version(name, data, picture, psnr(before, after), ssim(before, after), note)


def _encode(picture: Image.Image, format: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()
