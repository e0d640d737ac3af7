"""The inputs that fuzzing starts from: fixtures, and small inputs made here. All are valid."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pillow_sdz import alpha, catalogue, chunks, container, exact, models, save_latents
from pillow_sdz.animation import Animation
from pillow_sdz.arrays import Ints
from pillow_sdz.codings import changes
from pillow_sdz.codings.coding import Frame
from pillow_sdz.codings.hyperprior import Coded
from pillow_sdz.codings.range_coder import Prediction, SymbolEncoder, Tables
from pillow_sdz.container import Chunk
from pillow_sdz.header import Header
from pillow_sdz.models.mini import Mini

from .targets import CASES, MAX_SIDE

FIXTURES = Path(__file__).parent.parent / "fixtures"


def seeds(target: str) -> list[bytes]:
    """The first inputs for one of `targets.TARGETS`: some dozens, of up to 10 kB."""
    if target == "entropy":
        coded = [_entropy_input(case, side) for case in range(len(CASES)) for side in (1, MAX_SIDE)]
        still = bytes([len(CASES), 0x22]) + unchanged(3, 3)
        return [*coded, still, bytes([len(CASES) + 1, 0]) + bytes(range(100))]
    paths = [*FIXTURES.glob("*.sdz"), *FIXTURES.glob("hostile/*.sdz")]
    files = [path.read_bytes() for path in sorted(paths)]
    return [*(data for data in files if len(data) <= 10_000), *made()]


def _latents(side: int, channels: int) -> NDArray[np.float16]:
    return np.random.default_rng(side).normal(0, 1, (channels, side, side)).astype(np.float16)


def _entropy_input(number: int, side: int) -> bytes:
    case = CASES[number]
    latents = _latents(side, case.model.channels).transpose(1, 2, 0).astype(np.float32)
    (chunk,) = case.coder().encoder(case.quantisation, effort=4)(Frame(latents))
    return bytes([number, side - 1 << 4 | side - 1]) + chunk.data


class _Zeros:
    """A `range_coder.Coder` that writes zeros, or ones if a map says what changes."""

    def __init__(self, changed: int = 0) -> None:
        self.encoder = SymbolEncoder(Tables.shipped())
        self._changed = changed

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        symbols = np.full(len(mean), self._changed * (volume == "changed"), np.int64)
        self.encoder.encode(symbols, Prediction.of(mean, scale))
        return symbols


def unchanged(height: int, width: int) -> bytes:
    """The data of a DIFF chunk in which no latents (height, width) of `mini` change."""
    coder = _Zeros()
    changes.code(coder, -(-height // 2), -(-width // 2))
    return coder.encoder.bytes()


def all_changed(height: int, width: int) -> bytes:
    """The data of a DIFF chunk in which all latents (height, width) of `mini` change to zeros."""
    mini = models.load(catalogue.MINI)
    assert isinstance(mini, Mini)
    shape = mini.prior.hyper_shape(height, width)
    before = Coded(np.zeros((height, width, catalogue.MINI.channels), int), np.zeros(shape, int))
    coder = _Zeros(changed=1)
    mini.prior.code(coder, height, width, 5000, before)
    return coder.encoder.bytes()


def _animation() -> bytes:
    """Three frames in three bands. The latents are the likeliest, or do not change."""
    model = catalogue.MINI
    header = Header(
        "LA", (20, 90), model.name, model.digest, model.channels, model.factor, 5000, frames=3
    )
    likeliest, same = Chunk(chunks.LATENTS, b""), Chunk(chunks.CHANGES, unchanged(2, 2))
    clear, as_before = Chunk(chunks.ALPHA, b"\0\xff"), Chunk(chunks.ALPHA, alpha.AS_BEFORE)
    about = [
        Chunk(chunks.BANDS.type, chunks.BANDS.pack(2)),
        Chunk(chunks.ANIMATION.type, Animation(0, (40, 80, 40)).pack()),
    ]
    frames = [
        [likeliest, likeliest, likeliest, clear],
        [same, same, same, as_before],
        [same, likeliest, same, clear],
    ]
    return container.write(container.assemble(header, about, frames))


def _regions() -> bytes:
    """Three frames with exact regions: some, some that change, and the same again.

    Latents show through a pixel of one of the blocks.
    """
    model = catalogue.MINI
    channels = model.channels
    header = Header("RGB", (20, 12), model.name, model.digest, channels, 16, 5000, frames=3)
    picture = Image.linear_gradient("L").resize((20, 12)).convert("RGBA")
    picture.putpixel((17, 9), (0, 0, 0, 0))
    blocks = np.array([[True, True, False], [False, True, True]])
    coder, frames = exact.Encoder(255), []
    for number in range(3):
        if number == 1:
            picture.putpixel((1, 1), (200, 0, 0, 255))
        data = coder.encode(picture, blocks)
        frames.append([Chunk(chunks.EXACT, data), Chunk(chunks.LATENTS, b"")])
    about = [Chunk(chunks.GREY.type, b"")]
    return container.write(container.assemble(header, about, frames))


def _copies() -> bytes:
    """Exact regions in which a shape repeats.  Latents show through a pixel."""
    model = catalogue.MINI
    header = Header("RGB", (64, 32), model.name, model.digest, model.channels, model.factor, 5000)
    picture = Image.new("RGBA", (64, 32), (250, 250, 245, 255))
    shape = Image.radial_gradient("L").resize((12, 11)).convert("RGBA")
    for at in ((1, 2), (20, 2), (40, 3), (3, 17), (24, 18), (45, 17)):
        picture.paste(shape, at)
    picture.putpixel((63, 31), (0, 0, 0, 0))
    data = exact.Encoder(0).encode(picture, np.ones((4, 8), np.bool_))
    frame = [Chunk(chunks.EXACT, data), Chunk(chunks.LATENTS, b"")]
    return container.write(container.assemble(header, [], [frame]))


def _alpha(*, in_exact: bool) -> bytes:
    """A picture that is exact as a whole.  Its alpha channel is in EXCT, or a chunk of its own."""
    model = catalogue.MINI
    header = Header("RGBA", (20, 12), model.name, model.digest, model.channels, model.factor, 5000)
    picture = Image.linear_gradient("L").resize((20, 12)).convert("RGB")
    levels = Image.radial_gradient("L").resize((20, 12))
    if in_exact:
        picture.putalpha(levels)
        data, coded = exact.with_alpha(picture, keeps_hidden=False), alpha.IN_EXACT
    else:
        data = exact.Encoder(0).encode(picture, np.ones((2, 3), np.bool_))
        coded = alpha.encode(levels)
    frame = [Chunk(chunks.EXACT, data), Chunk(chunks.LATENTS, b""), Chunk(chunks.ALPHA, coded)]
    return container.write(container.assemble(header, [], [frame]))


def made() -> list[bytes]:
    """Files of a few pixels, with every chunk and every coding."""
    picture = Image.linear_gradient("L").resize((5, 3)).convert("RGBA")
    picture.putalpha(Image.radial_gradient("L").resize((5, 3)))
    files = []

    def save(**options: Any) -> None:
        file = BytesIO()
        picture.save(file, "SDZ", **options)
        files.append(file.getvalue())

    about: dict[str, Any] = {
        "exif": b"MM\0*\0\0\0\x08\0\0",
        "xmp": b"<x/>",
        "icc_profile": b"profile",
    }
    save(quality=1, tune="perceptual", chunks=[(b"teSt", b"unknown")], **about)
    for coding in catalogue.SD_MINI.space.codings:
        save(model="sd-mini", coding=coding.name, denoise=0.04, prompt="x")
    files += [_animation(), _regions(), _copies(), _alpha(in_exact=True), _alpha(in_exact=False)]
    mask = np.ones((16, 16), np.float32)
    mask[3:5] = 0
    for lossless in (None, "float16"):
        file = BytesIO()
        save_latents(
            np.stack([_latents(2, catalogue.SD_MINI.channels)] * 3),
            file,
            model="sd-mini",
            lossless=lossless,
            alpha_mask=mask,
            provenance={"layout": "plain", "format": ".npy"},
        )
        files.append(file.getvalue())
    file = BytesIO()
    clip = np.stack([_latents(2, catalogue.SD_MINI.channels)] * 3, axis=1)
    save_latents(clip[None], file, model="sd-mini", lossless="float32")
    files.append(file.getvalue())
    return files
