"""The bytes of an animation as `.sdz`, animated WebP and AVIF at an equal SSIMULACRA2.

    python -m benchmarks.frames --images DIR

The animations are made from photos. There are four kinds, and they are the same in each run. `.sdz`
codes each at a few qualities, the other codecs at many. Their curves of bytes over score say how
many bytes they need for the score of `.sdz`. The score is the mean of all frames.
"""

from __future__ import annotations

import argparse
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageSequence
from tqdm import tqdm

import pillow_sdz  # noqa: F401  # registers the format SDZ
from benchmarks.metrics import ssimulacra2
from evaluation.photos import photo_paths

SIZE = 384, 256
FRAMES = 16
DURATION = 80  # milliseconds
QUALITIES = 35, 65  # of `.sdz`
SPEED = 1.5  # pixels that the pan moves in each frame
NOISE = 2.0  # chosen: standard deviation of a camera's noise in good light, in grey levels

# WebP uses its highest effort and may choose which frames to code by themselves. AVIF has the same
# options as in the other benchmarks.
OTHERS: dict[str, dict[str, Any]] = {
    "WEBP": {"method": 6, "minimize_size": True},
    "AVIF": {"speed": 4},
}
CURVES = {"WEBP": (0, 5, 15, 30, 50, 70, 85), "AVIF": (5, 15, 25, 35, 45, 55, 65)}


def still(photo: Image.Image, _: Image.Image) -> list[Image.Image]:
    """A picture that does not move."""
    return [photo.crop((0, 0, *SIZE))] * FRAMES


def slide(photo: Image.Image, _: Image.Image) -> list[Image.Image]:
    """A page with a picture. Every third frame adds a line of text."""
    page = Image.new("RGB", SIZE, (24, 40, 72))
    page.paste(photo.crop((0, 0, *SIZE)).resize((168, 112)), (200, 72))
    frames = []
    for number in range(FRAMES):
        frame = page.copy()
        draw = ImageDraw.Draw(frame)
        draw.text((16, 16), "What changes is coded", "white", ImageFont.load_default(28))
        for line in range(1 + number // 3):
            place = 16, 72 + 28 * line
            draw.text(place, f"{line + 1}. A line appears", "white", ImageFont.load_default(18))
        frames.append(frame)
    return frames


def camera(photo: Image.Image, other: Image.Image) -> list[Image.Image]:
    """A camera on a tripod, with noise. A small round thing flies through the picture."""
    random = np.random.default_rng(0)
    background = photo.crop((0, 0, *SIZE))
    thing = other.crop((0, 0, 256, 256)).resize((64, 64), Image.Resampling.LANCZOS)
    mask = Image.new("L", (256, 256))
    ImageDraw.Draw(mask).ellipse((8, 8, 247, 247), 255)
    mask = mask.resize(thing.size, Image.Resampling.LANCZOS)
    frames = []
    for number in range(FRAMES):
        frame = background.copy()
        angle = np.pi * number / FRAMES
        place = round(160 - 140 * np.cos(angle)), round(150 - 110 * np.sin(angle))
        frame.paste(thing, place, mask)
        frames.append(noisy(frame, random))
    return frames


def pan(photo: Image.Image, _: Image.Image) -> list[Image.Image]:
    """A camera that turns slowly, so that everything moves."""
    random = np.random.default_rng(0)
    frames = []
    for number in range(FRAMES):
        shift = (1, 0, SPEED * number, 0, 1, 0)
        moved = photo.transform(SIZE, Image.Transform.AFFINE, shift, Image.Resampling.BICUBIC)
        frames.append(noisy(moved, random))
    return frames


def noisy(frame: Image.Image, random: np.random.Generator) -> Image.Image:
    noise = random.normal(0, NOISE, (frame.height, frame.width, 3))
    return Image.fromarray(np.clip(np.asarray(frame) + noise, 0, 255).round().astype(np.uint8))


Scene = Callable[[Image.Image, Image.Image], list[Image.Image]]
SCENES: dict[str, Scene] = {
    "nothing moves": still,
    "a page, lines of text appear": slide,
    "still camera with noise, a small thing moves": camera,
    "slow pan": pan,
}


class Coded(NamedTuple):
    """An animation in a file."""

    bytes: int
    score: float  # SSIMULACRA2, the mean of the frames


def code(frames: Sequence[Image.Image], format: str, **options: Any) -> Coded:
    """Encode the frames, decode them and measure."""
    file = io.BytesIO()
    first, *others = frames
    first.save(file, format, save_all=True, append_images=others, duration=DURATION, **options)
    shown: list[Image.Image] = []
    with Image.open(file) as again:
        for frame in ImageSequence.Iterator(again):
            picture = frame.convert("RGB")
            # WebP joins equal frames. If only one is left, the file has no duration.
            times = round(frame.info["duration"] / DURATION) or len(frames)
            shown += [picture] * times
    scores = [ssimulacra2(a, b) for a, b in zip(frames, shown, strict=True)]
    return Coded(len(file.getvalue()), float(np.mean(scores)))


def bytes_at(score: float, curve: Sequence[Coded]) -> float:
    """The bytes that a codec needs for a score, read between its files.

    Beyond the files, the line through the last two goes on. Bytes are assumed to grow exponentially
    with the score.
    """
    marks = sorted((c.score, np.log(c.bytes)) for c in curve)
    pairs = list(itertools.pairwise(marks))
    (low, below), (high, above) = next((p for p in pairs if score <= p[1][0]), pairs[-1])
    return float(np.exp(below + (above - below) * (score - low) / (high - low)))


def table(photos: Sequence[Image.Image]) -> str:
    """A Markdown table with two lines for each kind of animation: means over the photos."""
    lines = ["| frames | SSIMULACRA2 | sdz | WebP | AVIF |", "|---|--:|--:|--:|--:|"]
    pairs = list(zip(photos, [*photos[1:], photos[0]], strict=True))
    runs = len(QUALITIES) + sum(map(len, CURVES.values()))
    with tqdm(total=len(SCENES) * len(pairs) * runs, leave=False) as progress:

        def coded(frames: Sequence[Image.Image], format: str, **options: Any) -> Coded:
            progress.update()
            return code(frames, format, **options)

        for name, scene in SCENES.items():
            rows: dict[int, list[tuple[float, ...]]] = {quality: [] for quality in QUALITIES}
            for photo, other in pairs:
                frames = scene(photo, other)
                curves = [
                    [coded(frames, format, quality=q, **options) for q in CURVES[format]]
                    for format, options in OTHERS.items()
                ]
                for quality, row in rows.items():
                    own = coded(frames, "SDZ", quality=quality)
                    theirs = [bytes_at(own.score, curve) for curve in curves]
                    row.append((own.score, own.bytes, *theirs))
            for row in rows.values():
                score, own_bytes, *others = np.mean(row, 0)
                cells = "".join(f" {n:,.0f} ({n / own_bytes:.2f}) |" for n in others)
                lines.append(f"| {name} | {score:.0f} | {own_bytes:,.0f} |{cells}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Bytes of animations at equal SSIMULACRA2.")
    parser.add_argument("--images", type=Path, required=True, help="the folder of training photos")
    parser.add_argument(
        "--limit", type=int, default=4, help="use only this many of the photos held out"
    )
    options = parser.parse_args()
    width, height = SIZE[0] + round(SPEED * FRAMES), SIZE[1]
    photos = []
    for path in photo_paths(options.images, held_out=True):
        photo = Image.open(path).convert("RGB")
        if photo.width >= width and photo.height >= height:
            photos.append(photo)
    if len(photos) < options.limit:
        parser.error(
            f"{options.images}: {len(photos)} photos of {width}x{height} pixels are held out"
        )
    print(table(photos[:: len(photos) // options.limit][: options.limit]))


if __name__ == "__main__":
    main()
