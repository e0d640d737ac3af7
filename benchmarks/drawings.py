"""Graphics made on the spot: text, code, charts, maps, windows, logos, pixel art, QR codes, scans.

There are two sets with different seeds and fonts. ``tuning`` is for choosing constants, and
``judging`` only for figures.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

mpl.use("Agg")
from matplotlib import pyplot as plt

Colour = tuple[int, int, int]

VARIANTS = 3  # drawings of each kind in a set: two themes and sizes, and one more. Chosen.

WORDS = """
    river window paper yellow quarter machine people morning simple number garden silver letter
    travel winter market picture summer doctor bridge island coffee engine forest history member
    mountain office planet quality reason season station teacher village weather account balance
    between capital certain chapter chicken college company connect country current develop
    electric evening example express failure feature finance foreign freedom general history
    imagine include journey kitchen library measure message million minute natural network
""".split()  # noqa: SIM905

NAMES = [
    "value",
    "index",
    "total",
    "result",
    "buffer",
    "offset",
    "handle",
    "length",
    "parser",
    "writer",
    "cursor",
]


class Drawing(NamedTuple):
    """A picture, its kind, and the words or the message in it."""

    name: str
    kind: str
    picture: Image.Image  # of mode RGB
    words: tuple[str, ...] = ()
    message: str = ""  # what a QR code says


class _Set(NamedTuple):
    """The random numbers and the fonts of a drawing."""

    chance: random.Random
    families: tuple[str, ...]

    def font(self, size: int, family: int = 0) -> ImageFont.FreeTypeFont:
        return ImageFont.truetype(self.families[family % len(self.families)], size)


# For each set: fonts without serifs, with serifs, and for code. The judging set has Debian's
# Liberation and Roboto if they are installed.
_DEJAVU = ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf")
_OTHERS = ("Roboto-Regular.ttf", "LiberationSerif-Regular.ttf", "LiberationMono-Regular.ttf")
_DEJAVUS_OTHERS = ("DejaVuSans-Bold.ttf", "DejaVuSerif-Italic.ttf", "DejaVuSansMono-Bold.ttf")


def drawings(name: str, photos: list[Image.Image]) -> list[Drawing]:
    """All graphics of the set ``tuning`` or ``judging``; the photos go into screenshots."""
    if name == "tuning":
        seed, families = 1, _found(_DEJAVU)
    else:
        seed, families = 2, _found(_OTHERS, _DEJAVUS_OTHERS)
    found = []
    for kind, draw in KINDS.items():
        for variant in range(VARIANTS):
            chance = random.Random(f"{seed} {kind} {variant}")
            drawn = draw(_Set(chance, families), variant, photos)
            found.append(drawn._replace(name=f"{kind}{variant}", kind=kind))
    return found


def _found(*choices: tuple[str, ...]) -> tuple[str, ...]:
    brought = Path(mpl.get_data_path()) / "fonts" / "ttf"
    for names in choices:
        try:
            for name in names:
                ImageFont.truetype(name, 12)
            return names
        except OSError:
            continue
    return tuple(str(brought / name) for name in choices[-1])


def _drawing(picture: Image.Image, words: list[str] | None = None, message: str = "") -> Drawing:
    return Drawing("", "", picture.convert("RGB"), tuple(words or ()), message)


def _text(
    of: _Set,
    picture: Image.Image,
    box: tuple[int, int, int, int],
    size: int,
    ink: Colour,
    family: int = 0,
) -> list[str]:
    """Fill a box with words; returns them."""
    draw, font, words = ImageDraw.Draw(picture), of.font(size, family), []
    left, top, right, bottom = box
    x, y, space = left, top, font.getlength(" ")
    while y + 1.3 * size < bottom:
        word = of.chance.choice(WORDS)
        if x + font.getlength(word) > right:
            x, y = left, y + round(1.4 * size)
            continue
        draw.text((x, y), word, ink, font)
        words.append(word)
        x += round(font.getlength(word) + space)
    return words


def _page(of: _Set, variant: int, photos: list[Image.Image]) -> Drawing:
    paper, ink = [
        ((255, 255, 255), (0, 0, 0)),
        ((24, 26, 32), (220, 222, 226)),
        ((250, 244, 228), (60, 50, 40)),
    ][variant]
    picture = Image.new("RGB", (640, 720), paper)
    ImageDraw.Draw(picture).text((48, 40), "The history of the river", ink, of.font(28))
    words = _text(of, picture, (48, 100, 600, 690), (13, 15, 18)[variant], ink, variant)
    return _drawing(picture, words)


def _code(of: _Set, variant: int, photos: list[Image.Image]) -> Drawing:
    dark = variant != 1
    paper = ((30, 30, 30), (255, 255, 255), (40, 42, 54))[variant]
    kinds = [(86, 156, 214), (206, 145, 120), (106, 153, 85), (212, 212, 212)]
    if not dark:
        kinds = [(0, 0, 255), (163, 21, 21), (0, 128, 0), (0, 0, 0)]
    picture, size = Image.new("RGB", (720, 540), paper), (13, 14, 16)[variant]
    draw, font, words = ImageDraw.Draw(picture), of.font(size, 2), []
    for line, y in enumerate(range(12, 520, round(1.45 * size))):
        draw.text((12, y), f"{line + 1:3}", (128, 128, 128), font)
        x = 56.0 + 4 * of.chance.randint(0, 3) * font.getlength(" ")
        for _ in range(of.chance.randint(2, 7)):
            word = of.chance.choice([*NAMES, *WORDS[:20]])
            piece = word + of.chance.choice(["(", ")", " = ", ".", ", ", ": "])
            if x + font.getlength(piece) > 700:
                break
            draw.text((x, y), piece, of.chance.choice(kinds), font)
            words.append(word)
            x += font.getlength(piece + " ")
    return _drawing(picture, words)


def _chart(of: _Set, variant: int, photos: list[Image.Image]) -> Drawing:
    chance = np.random.default_rng(of.chance.randrange(1 << 30))
    figure, axes = plt.subplots(figsize=(6.4, 4.4), dpi=100)
    if variant == 0:
        for n in range(4):
            axes.plot(chance.normal(size=60).cumsum(), label=f"series {n}")
        axes.legend()
    elif variant == 1:
        axes.bar(range(9), chance.uniform(1, 9, 9), color=["C0", "C1", "C2"])
    else:
        xs, ys = chance.normal(size=(2, 150))
        axes.scatter(xs, ys, c=chance.uniform(size=150), alpha=0.7)
    axes.set_title(" ".join(of.chance.sample(WORDS, 3)))
    axes.grid(variant != 1)
    file = io.BytesIO()
    figure.savefig(file)
    plt.close(figure)
    return _drawing(Image.open(file))


def _map(of: _Set, variant: int, photos: list[Image.Image]) -> Drawing:
    size = 640, 480
    big = Image.new("RGB", (2 * size[0], 2 * size[1]), (242, 239, 233))
    draw = ImageDraw.Draw(big)
    chance = of.chance

    def point() -> tuple[int, int]:
        return chance.randint(-100, big.width + 100), chance.randint(-100, big.height + 100)

    for colour in ((170, 211, 223), (200, 235, 190), (222, 222, 210), (205, 235, 176)):
        x, y = point()
        outline = [(x + chance.randint(-300, 300), y + chance.randint(-250, 250)) for _ in range(7)]
        draw.polygon(outline, colour)
    for width, colour in [(8, (255, 255, 255))] * 22 + [(14, (252, 214, 164))] * 5:
        line = [point(), point(), point()]
        draw.line(line, (190, 180, 170), width + 4, joint="curve")
        draw.line(line, colour, width, joint="curve")
    picture = big.resize(size, Image.Resampling.BOX)
    names, labels = of.font(13, variant), ImageDraw.Draw(picture)
    for _ in range(22):
        word = chance.choice(WORDS).capitalize()
        at = chance.randint(5, 540), chance.randint(5, 450)
        labels.text(at, word, (60, 60, 60), names, stroke_width=2, stroke_fill=(255, 255, 255))
    return _drawing(picture)


def _window(of: _Set, variant: int, photos: list[Image.Image]) -> Drawing:
    dark = variant == 1
    paper, bar, ink = ((245, 246, 248), (255, 255, 255), (33, 37, 41))
    if dark:
        paper, bar, ink = (32, 33, 36), (45, 46, 50), (232, 234, 237)
    picture = Image.new("RGB", (720, 480), paper)
    draw, font = ImageDraw.Draw(picture), of.font((13, 14, 16)[variant])
    words: list[str] = []
    accent = [(25, 118, 210), (138, 180, 248), (46, 125, 50)][variant]
    draw.rectangle((0, 0, 720, 44), bar)
    draw.text((16, 13), "Settings of the account", ink, of.font(16))
    for n, y in enumerate(range(64, 440, 46)):
        draw.rounded_rectangle((12, y, 180, y + 36), 8, accent if n == 1 else paper)
        word = of.chance.choice(WORDS)
        draw.text((28, y + 9), word, (255, 255, 255) if n == 1 and not dark else ink, font)
        words.append(word)
        draw.rounded_rectangle((200, y, 700, y + 38), 6, bar, (128, 132, 140))
        row = of.chance.sample(WORDS, 4)
        draw.text((214, y + 10), " ".join(row), ink, font)
        words.extend(row)
        draw.ellipse((660, y + 10, 678, y + 28), accent if n % 3 else (160, 164, 170))
    return _drawing(picture, words)


def _logo(of: _Set, variant: int, photos: list[Image.Image]) -> Drawing:
    big = Image.new("RGB", (1600, 1600), [(255, 255, 255), (18, 52, 86), (255, 214, 0)][variant])
    draw, chance = ImageDraw.Draw(big), of.chance
    for _ in range(5):
        x, y, r = chance.randint(300, 1300), chance.randint(300, 1000), chance.randint(100, 380)
        colour = chance.choice([(220, 20, 60), (0, 150, 136), (63, 81, 181), (255, 87, 34)])
        draw.ellipse((x - r, y - r, x + r, y + r), colour)
    draw.text((300, 1300), chance.choice(WORDS).upper(), (0, 0, 0), of.font(200))
    return _drawing(big.resize((400, 400), Image.Resampling.LANCZOS))


def _pixel_art(of: _Set, variant: int, photos: list[Image.Image]) -> Drawing:
    chance = np.random.default_rng(of.chance.randrange(1 << 30))
    side, scale = (16, 24, 32)[variant], (16, 12, 10)[variant]
    colours = chance.integers(0, 256, (12, 3), np.uint8)
    half = chance.integers(0, 12, (side, side // 2))
    half[chance.uniform(size=half.shape) < 0.5] = 0
    picture = Image.fromarray(colours[np.concatenate([half, half[:, ::-1]], 1)])
    return _drawing(picture.resize((side * scale, side * scale), Image.Resampling.NEAREST))


def _qr(of: _Set, variant: int, photos: list[Image.Image]) -> Drawing:
    import segno

    message = "https://example.org/" + "-".join(of.chance.sample(WORDS, 2 + 3 * variant))
    file = io.BytesIO()
    segno.make(message, error="m").save(file, kind="png", scale=(1, 3, 6)[variant], border=4)
    return _drawing(Image.open(file), message=message)


def _mixed(of: _Set, variant: int, photos: list[Image.Image]) -> Drawing:
    """A screenshot with photos inside."""
    drawn = _page(of, variant, photos)
    picture = Image.new("RGB", (960, 720), drawn.picture.getpixel((2, 2)))
    picture.paste(drawn.picture, (0, 0))
    for n in range(2):
        photo = photos[(2 * variant + n) % len(photos)]
        part = photo.resize((290 - 7 * variant, 217), Image.Resampling.LANCZOS)
        picture.paste(part, (643 + 3 * variant, 90 + 7 * variant + 260 * n))
    return drawn._replace(picture=picture)


def _slide(of: _Set, variant: int, photos: list[Image.Image]) -> Drawing:
    """A slide over a gradient."""
    ramp = np.linspace(0, 1, 800)[None, :, None] * np.ones((450, 1, 1))
    if variant == 1:
        ramp = (ramp + np.linspace(0, 1, 450)[:, None, None]) / 2
    first, last = (
        np.array([[20, 30, 90], [230, 240, 255], [0, 90, 90]][variant]),
        np.array([[60, 90, 190], [180, 210, 250], [0, 160, 120]][variant]),
    )
    picture = Image.fromarray(np.rint(first + (last - first) * ramp).astype(np.uint8))
    ink = (10, 20, 40) if variant == 1 else (255, 255, 255)
    ImageDraw.Draw(picture).text((50, 40), "Results of the quarter", ink, of.font(36))
    words = _text(of, picture, (60, 130, 740, 420), 22, ink, variant)
    return _drawing(picture, words)


def _scan(of: _Set, variant: int, photos: list[Image.Image]) -> Drawing:
    """A page that was printed and scanned: turned a little, blurred, uneven and noisy."""
    page = Image.new("RGB", (1280, 1440), (255, 255, 255))
    words = _text(of, page, (120, 120, 1180, 1340), 34 + 4 * variant, (20, 20, 25), 1)
    turned = page.rotate(
        of.chance.uniform(-1, 1), Image.Resampling.BICUBIC, fillcolor=(255, 255, 255)
    )
    soft = turned.filter(ImageFilter.GaussianBlur(1)).resize((640, 720), Image.Resampling.BOX)
    chance = np.random.default_rng(of.chance.randrange(1 << 30))
    light = np.linspace(0.97, 0.9, 640)[None, :, None]
    noisy = np.asarray(soft) * light + chance.normal(0, 2 + variant, (720, 640, 3))
    return _drawing(Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)), words)


KINDS: dict[str, Callable[[_Set, int, list[Image.Image]], Drawing]] = {
    "page": _page,
    "code": _code,
    "chart": _chart,
    "map": _map,
    "window": _window,
    "logo": _logo,
    "pixel art": _pixel_art,
    "QR code": _qr,
    "mixed": _mixed,
    "slide": _slide,
    "scan": _scan,
}
