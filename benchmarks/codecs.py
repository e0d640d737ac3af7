"""The codecs under comparison, each as "the best file of at most so many bytes"."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image, features

import pillow_sdz  # noqa: F401  # registers the format SDZ


@dataclass(frozen=True)
class Encoded:
    """A file, the options that make it again, and whether it kept to the budget."""

    data: bytes
    options: dict[str, Any]
    fits: bool


@dataclass(frozen=True)
class Codec:
    """A Pillow format with its fixed options and its quality settings, worst first."""

    name: str
    format: str
    options: dict[str, Any]
    qualities: tuple[float, ...]
    missing: Callable[[], str | None]  # why it cannot be used here, or None

    def encode(self, picture: Image.Image, options: dict[str, Any]) -> bytes:
        """The file that ``picture`` becomes with these options beside the fixed ones."""
        file = io.BytesIO()
        picture.save(file, self.format, **self.options, **options)
        return file.getvalue()

    def decode(self, data: bytes) -> Image.Image:
        """The picture in a file of this codec, in RGB; no other plugin is asked."""
        with Image.open(io.BytesIO(data), formats=[self.format]) as picture:
            return picture.convert("RGB")

    def fit(self, picture: Image.Image, budgets: list[int]) -> list[Encoded]:
        """For each budget in bytes the file with the best quality setting that fits.

        Where even the worst setting is larger than the budget, that smallest file, with
        ``fits`` False. Bisection, with each setting's file made once for all budgets; a
        codec whose size is not quite monotone in its setting may miss a better one.
        """
        made: dict[int, bytes] = {}

        def file(index: int) -> bytes:
            if index not in made:
                made[index] = self.encode(picture, {"quality": self.qualities[index]})
            return made[index]

        results = []
        for budget in budgets:
            low, high = 0, len(self.qualities) - 1
            while low < high:
                middle = (low + high + 1) // 2
                if len(file(middle)) <= budget:
                    low = middle
                else:
                    high = middle - 1
            data = file(low)
            options = {"quality": self.qualities[low]}
            results.append(Encoded(data, options, fits=len(data) <= budget))
        return results


class Sdz(Codec):
    """This package: it looks for the best quality within a budget itself."""

    def fit(self, picture: Image.Image, budgets: list[int]) -> list[Encoded]:
        """For each budget the file that ``target_size`` makes, or that of quality 1."""
        results = []
        for budget in budgets:
            options: dict[str, Any] = {"target_size": budget}
            try:
                data = self.encode(picture, options)
            except ValueError:  # nothing fits
                options = {"quality": 1}
                data = self.encode(picture, options)
            results.append(Encoded(data, options, fits=len(data) <= budget))
        return results


def _present() -> None:
    return None


def _without(feature: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        return None if features.check(feature) else f"this Pillow is built without {feature}"

    return missing


def _jpeg_xl() -> str | None:
    if importlib.util.find_spec("pillow_jxl") is None:
        return "pillow-jxl-plugin is not installed"
    importlib.import_module("pillow_jxl")  # registers the format JXL
    return None


CODECS = {
    codec.name: codec
    for codec in (
        Sdz("sdz", "SDZ", {}, (), _present),
        Sdz("sdz9", "SDZ", {"effort": 9}, (), _present),
        Codec(
            "jpeg",
            "JPEG",
            {"optimize": True, "progressive": True},
            tuple(range(1, 101)),
            _present,
        ),
        Codec("webp", "WEBP", {"method": 6}, tuple(range(101)), _without("webp")),
        Codec("avif", "AVIF", {"speed": 4}, tuple(range(101)), _without("avif")),
        # libjxl's setting is continuous; quality 0 is its worst (distance 25), and the
        # plugin takes 100 for lossless alone.
        Codec("jxl", "JXL", {"effort": 7}, tuple(q / 4 for q in range(400)), _jpeg_xl),
    )
}
