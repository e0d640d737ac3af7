"""The codecs that are compared. Each one makes the best file within a number of bytes."""

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
    """A file, the options that make it again, and whether it fits the budget."""

    data: bytes
    options: dict[str, Any]
    fits: bool


@dataclass(frozen=True)
class Codec:
    """A Pillow format with its fixed options, and its quality settings from worst to best."""

    name: str
    format: str
    options: dict[str, Any]
    qualities: tuple[float, ...]
    missing: Callable[[], str | None]  # the reason why it cannot be used here, or None

    def encode(self, picture: Image.Image, options: dict[str, Any]) -> bytes:
        """Encode ``picture`` with these options and the fixed ones."""
        file = io.BytesIO()
        picture.save(file, self.format, **self.options, **options)
        return file.getvalue()

    def decode(self, data: bytes) -> Image.Image:
        """Decode a file of this codec to RGB. No other plugin may open it."""
        with Image.open(io.BytesIO(data), formats=[self.format]) as picture:
            return picture.convert("RGB")

    def fit(self, picture: Image.Image, budgets: list[int]) -> list[Encoded]:
        """For each budget in bytes, find the best quality setting whose file fits.

        If even the worst setting makes a larger file, return that file with ``fits`` False.
        The search is a bisection, and makes the file of a setting once for all budgets. It may
        miss a better setting if a codec's size does not always grow with its setting.
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
    """This package. It searches for the best quality within a budget by itself."""

    def fit(self, picture: Image.Image, budgets: list[int]) -> list[Encoded]:
        """For each budget, the file that ``target_size`` makes, or the file of quality 1."""
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
        Sdz("sdz3", "SDZ", {"effort": 3}, (), _present),
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
        # At high rates, colour at half the resolution costs more than it saves.
        Codec(
            "avif444",
            "AVIF",
            {"speed": 4, "subsampling": "4:4:4"},
            tuple(range(101)),
            _without("avif"),
        ),
        # libjxl's setting is continuous. Quality 0 is its worst (distance 25). The plugin
        # takes 100 only for lossless files.
        Codec("jxl", "JXL", {"effort": 7}, tuple(q / 4 for q in range(400)), _jpeg_xl),
    )
}
