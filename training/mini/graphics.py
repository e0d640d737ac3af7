"""Draw pictures that are no photos: text, windows, charts, gradients and line art.

They need no licence, because this code draws them.  A model that was trained on photos alone fails
on such pictures, so they have a small share in the training.
"""

from __future__ import annotations

import colorsys
import io
import random
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

mpl.use("Agg")
from matplotlib import pyplot as plt

SIZE = 384  # pixels along a side.  Chosen: crops have 256 at most.
WORDS = """
    the of and a to in is you that it he was for on are as with his they I at be this have
    from or one had by word but not what all were we when your can said there use an each
    which she do how their if will up other about out many then them these so some her would
    make like him into time has look two more write go see number no way could people my than
    first water been call who oil its now find long down day did get come made may part 2026
    12:45 3.14 -0.5 100% (a) [b] {c} x=y/z; return None; def f(): #17 @home $9.99 https://sdz
""".split()  # noqa: SIM905

Colour = tuple[int, int, int]


def fonts() -> list[Path]:
    """The TrueType fonts of the system and of matplotlib."""
    brought = Path(mpl.get_data_path()) / "fonts" / "ttf"
    folders = [Path("/usr/share/fonts"), brought]
    found = [p for f in folders for p in f.rglob("*.ttf")]
    return sorted(p for p in found if not p.name.startswith(("cm", "STIX")))


def colour(rng: random.Random, *, saturated: bool = False) -> Colour:
    hue = rng.random()
    saturation = rng.uniform(0.7, 1) if saturated else rng.random() ** 2
    r, g, b = colorsys.hsv_to_rgb(hue, saturation, rng.random() ** 0.5)
    return round(r * 255), round(g * 255), round(b * 255)


def ink_and_paper(rng: random.Random) -> tuple[Colour, Colour]:
    """Two colours in which text can be read."""
    kind = rng.random()
    if kind < 0.4:
        return (0, 0, 0), (255, 255, 255)
    if kind < 0.6:
        grey = rng.randint(0, 60)
        return (220, 220, 220), (grey, grey, grey)
    while True:
        ink, paper = colour(rng, saturated=rng.random() < 0.5), colour(rng)
        if abs(sum(ink) - sum(paper)) > 250:
            return ink, paper


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def text(rng: random.Random, faces: list[Path]) -> Image.Image:
    """Lines of text in one font and a few sizes."""
    ink, paper = ink_and_paper(rng)
    picture = Image.new("RGB", (SIZE, SIZE), paper)
    draw = ImageDraw.Draw(picture)
    face, y = rng.choice(faces), rng.randint(-4, 10)
    while y < SIZE:
        size = rng.choice([9, 10, 11, 12, 13, 14, 16, 18, 24, 36])
        font = ImageFont.truetype(str(face), size)
        for _ in range(rng.randint(1, 6)):
            draw.text((rng.randint(-20, 12), y), sentence(rng, 14), fill=ink, font=font)
            y += round(size * 1.25)
    return picture


def window(rng: random.Random, faces: list[Path]) -> Image.Image:
    """Panels, buttons, lists and icons, as a user interface has them."""
    base = rng.choice([245, 255, 236, 40, 30, 24])
    picture = Image.new("RGB", (SIZE, SIZE), (base, base, base))
    draw = ImageDraw.Draw(picture)
    face = rng.choice(faces)
    ink = (30, 30, 30) if base > 128 else (230, 230, 230)
    for _ in range(rng.randint(6, 18)):
        x, y = rng.randint(-40, SIZE - 20), rng.randint(-20, SIZE - 10)
        w, h = rng.randint(20, 240), rng.choice([18, 24, 28, 40, 90, 160])
        grey = min(255, max(0, base + rng.randint(-30, 30)))
        fill = colour(rng, saturated=True) if rng.random() < 0.35 else (grey, grey, grey)
        radius = rng.choice([0, 0, 3, 6, 12])
        outline = None if rng.random() < 0.5 else colour(rng)
        draw.rounded_rectangle((x, y, x + w, y + h), radius, fill=fill, outline=outline)
        size = rng.choice([10, 11, 12, 13, 14, 16])
        font = ImageFont.truetype(str(face), size)
        for row in range(max(1, h // (size + 8))):
            place = (x + 6, y + 4 + row * (size + 8))
            shown = ink if sum(fill) > 380 or base < 128 else (255, 255, 255)
            draw.text(place, sentence(rng, max(1, w // 45)), fill=shown, font=font)
        if rng.random() < 0.4:
            r = rng.randint(4, 12)
            draw.ellipse((x + w, y, x + w + 2 * r, y + 2 * r), fill=colour(rng, saturated=True))
    return picture


def chart(rng: random.Random, faces: list[Path]) -> Image.Image:
    """A plot by matplotlib."""
    del faces
    numbers = np.random.default_rng(rng.randrange(2**32))
    with plt.style.context(rng.choice(["default", "ggplot", "dark_background", "bmh"])):
        figure, axes = plt.subplots(figsize=(SIZE / 100, SIZE / 100), dpi=100)
        x = np.linspace(0, 10, 200)
        kind = rng.randrange(4)
        for _ in range(rng.randint(1, 5)):
            if kind == 0:
                axes.plot(x, np.cumsum(numbers.normal(size=200)), lw=rng.choice([0.8, 1.5, 2.5]))
            elif kind == 1:
                across, up = numbers.normal(size=(2, 80))
                axes.scatter(across, up, s=rng.choice([4, 16, 40]), alpha=0.7)
        if kind == 2:
            axes.bar(range(8), numbers.random(8), color=[f"C{i}" for i in range(8)])
        elif kind == 3:
            shown = numbers.normal(size=(24, 24)).cumsum(0).cumsum(1)
            axes.imshow(shown, cmap=rng.choice(["viridis", "jet", "gray", "coolwarm"]))
        axes.set_title(sentence(rng, 3).replace("$", ""))
        axes.grid(rng.random() < 0.5)
        file = io.BytesIO()
        figure.savefig(file, format="png")
        plt.close(figure)
    return Image.open(file).convert("RGB")


def gradient(rng: random.Random, _: list[Path]) -> Image.Image:
    """A smooth change between a few colours; a decoder must not make bands of it."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    total = np.zeros((SIZE, SIZE, 3))
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    if rng.random() < 0.4:
        along = np.hypot(x - rng.random(), y - rng.random())
    stops = np.linspace(along.min(), along.max(), rng.randint(2, 4))
    strength = rng.choice([1, 1, 0.3, 0.1])  # some are faint, as a sky is
    middle = np.array(colour(rng), float)
    ends = [middle + strength * (np.array(colour(rng)) - middle) for _ in stops]
    for c in range(3):
        total[..., c] = np.interp(along, stops, [e[c] for e in ends])
    return Image.fromarray(np.clip(np.round(total), 0, 255).astype(np.uint8))


def line_art(rng: random.Random, faces: list[Path]) -> Image.Image:
    """Lines, curves and filled shapes on a plain ground, with smooth edges."""
    del faces
    ink, paper = ink_and_paper(rng)
    scale = 3
    picture = Image.new("RGB", (SIZE * scale, SIZE * scale), paper)
    draw = ImageDraw.Draw(picture)

    def point() -> tuple[int, int]:
        return rng.randint(0, SIZE * scale), rng.randint(0, SIZE * scale)

    for _ in range(rng.randint(5, 40)):
        width = scale * rng.choice([1, 1, 2, 3, 6])
        shade = ink if rng.random() < 0.6 else colour(rng, saturated=True)
        kind = rng.randrange(4)
        if kind == 0:
            draw.line([point() for _ in range(rng.randint(2, 6))], fill=shade, width=width)
        elif kind == 1:
            (x, y), r = point(), rng.randint(5, 200) * scale
            draw.arc((x, y, x + r, y + r), 0, rng.randint(90, 360), fill=shade, width=width)
        elif kind == 2 and rng.random() < 0.4:
            draw.polygon([point() for _ in range(3)], fill=shade)
        else:
            x, y = point()
            w, h = rng.randint(9, 300), rng.randint(9, 300)
            draw.rectangle((x, y, x + w, y + h), outline=shade, width=width)
    return picture.resize((SIZE, SIZE), Image.Resampling.BOX)


def flat(rng: random.Random, _: list[Path]) -> Image.Image:
    """Areas of saturated colour with a little light and shade, and with soft or hard borders."""
    parts = [np.array(colour(rng, saturated=rng.random() < 0.8), float) for _ in range(5)]
    numbers = np.random.default_rng(rng.randrange(2**32))
    small = numbers.normal(size=(5, rng.choice([4, 6, 10]), rng.choice([4, 6, 10])))
    fields = np.stack(
        [np.asarray(Image.fromarray(s.astype(np.float32)).resize((SIZE, SIZE), 3)) for s in small]
    )
    share = np.exp(rng.choice([2, 8, 60]) * (fields - fields.max(0)))
    share /= share.sum(0)
    picture = np.einsum("kyx,kc->yxc", share, np.stack(parts))
    picture *= 1 + rng.choice([0, 0, 0.1, 0.2]) * fields[:1].transpose(1, 2, 0)
    return Image.fromarray(np.clip(np.round(picture), 0, 255).astype(np.uint8))


KINDS = (text, window, chart, gradient, gradient, line_art, flat, flat)


def pictures(count: int, seed: int) -> list[NDArray[np.uint8]]:
    """``count`` pictures (SIZE, SIZE, 3) of all kinds."""
    rng = random.Random(seed)
    faces = fonts()
    return [np.asarray(KINDS[i % len(KINDS)](rng, faces)) for i in range(count)]
