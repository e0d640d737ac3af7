"""What fuzzing starts from: the fixtures, and small inputs made here, all of them sound."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pillow_sdz import codec, container, models, save_latents

from .targets import CASES, MAX_SIDE

FIXTURES = Path(__file__).parent.parent / "fixtures"


def seeds(target: str) -> list[bytes]:
    """What to begin with for one of `targets.TARGETS`, some dozens of inputs of up to 10 kB."""
    if target == "entropy":
        coded = [_entropy_input(case, side) for case in range(len(CASES)) for side in (1, MAX_SIDE)]
        return [*coded, bytes([len(CASES), 0]) + bytes(range(200))]
    paths = [*FIXTURES.glob("*.sdz"), *FIXTURES.glob("hostile/*.sdz")]
    files = [path.read_bytes() for path in sorted(paths)]
    return [*(data for data in files if len(data) <= 10_000), *_made()]


def _latents(side: int, channels: int) -> NDArray[np.float16]:
    return np.random.default_rng(side).normal(0, 1, (channels, side, side)).astype(np.float16)


def _entropy_input(number: int, side: int) -> bytes:
    case = CASES[number]
    payload = codec.encode_latents(
        _latents(side, case.model.channels).transpose(1, 2, 0).astype(np.float32),
        model=case.model,
        coding=case.coding,
        quantisation=case.quantisation,
        prior=case.prior,
    )
    return bytes([number, side - 1 << 4 | side - 1]) + payload


def _made() -> list[bytes]:
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
    for coding in container.CODINGS:
        save(model="sd-mini", coding=coding, denoise=0.04, prompt="x")
    mask = np.ones((16, 16), np.float32)
    mask[3:5] = 0
    for lossless in (None, "float16"):
        file = BytesIO()
        save_latents(
            np.stack([_latents(2, models.SD_MINI.channels)] * 3),
            file,
            model="sd-mini",
            lossless=lossless,
            alpha_mask=mask,
            provenance={"layout": "plain", "format": ".npy"},
        )
        files.append(file.getvalue())
    return files
