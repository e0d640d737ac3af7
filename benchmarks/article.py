"""The pipeline of the 2022 article, part by part: what each part does to latents and picture.

    python -m benchmarks.article --images DIR [--model sd-mini] [--rate 0.155]

Each row measures real payloads, which are decoded again. Bytes are those of whole files. A palette
of 256 entries sets the number of bytes. The coding "context", JPEG and WebP get the same number.
With --rate, all codecs get this many bits per pixel, and palettes use it for more entries. The
latent error is the difference from the encoder's exact latents.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import pillow_sdz  # noqa: F401  # registers the format SDZ
from benchmarks.codecs import CODECS
from benchmarks.metrics import measure
from benchmarks.rate_distortion import load
from pillow_sdz import catalogue, chunks, codec, container, decoding, models, spaces
from pillow_sdz.arrays import Area, Latents, Pixels, Samples
from pillow_sdz.codings.dithering import STEP, encode
from pillow_sdz.codings.target_size import EncodedLatents
from pillow_sdz.container import Chunk
from pillow_sdz.models import denoise

# The changes that are made to latents before decoding. The key is the name in the table.
Refinements = Mapping[str, Callable[[Latents], Latents]]


@dataclass(frozen=True)
class Row:
    """One coding of one photo after decoding. The latent error is None if there are no latents."""

    coding: str
    bpp: float
    latent_error: float | None
    psnr: float
    ms_ssim: float
    ssimulacra2: float


def rows(
    picture: Image.Image, model: catalogue.ModelSpec, rate: float | None, refinements: Refinements
) -> list[Row]:
    """All rows of one photo of mode RGB."""
    pixels = picture.width * picture.height
    exact = models.load(model).encode(np.asarray(picture), 0)  # the same for any quantisation
    size = {} if rate is None else {"target_size": int(rate * pixels / 8)}
    file = io.BytesIO()
    picture.save(file, "SDZ", model=model.name, coding="palette", **size)
    payload = next(c.data for c in container.read(file.getvalue()) if c.type == chunks.LATENTS)
    chunk = Chunk(chunks.LATENTS, payload)
    framing = len(file.getvalue()) - container.chunk_size(len(payload))
    budget = size.get("target_size", len(file.getvalue()))

    codings = {"palette, dithered": (spaces.PALETTE, EncodedLatents([[chunk]], STEP))}
    if rate is None:
        plain = encode(exact, step=STEP, dither=False)
        chunk = Chunk(chunks.LATENTS, plain)
        codings["palette, not dithered"] = spaces.PALETTE, EncodedLatents([[chunk]], STEP)
    encoder = codec.Encoder(model, spaces.CONTEXT)
    codings["context"] = spaces.CONTEXT, encoder.fit([picture], budget - framing)

    found = []
    for name, (coding, encoded) in codings.items():
        coder, quantisation = decoding.coder_of(model, coding), encoded.quantisation
        integers = coder.decode(encoded.frames[0][0].data, exact.shape[:2], quantisation)
        latents = coder.latents(integers, quantisation)
        bpp = 8 * (len(encoded.frames[0][0].data) + framing) / pixels
        refined = {f"{name}, {label}": refine(latents) for label, refine in refinements.items()}
        for label, decoded in {name: latents, **refined}.items():
            pieces = models.load(model).decode(decoded, quantisation)
            whole = assembled(pieces, decoded, model.factor)
            decoded_pixels = whole[: picture.height, : picture.width]
            error = float(np.mean((decoded - exact) ** 2))
            found.append(_row(label, bpp, error, picture, Image.fromarray(decoded_pixels)))
    for name in ("jpeg", "webp"):
        (best,) = CODECS[name].fit(picture, [budget])
        bpp = 8 * len(best.data) / pixels
        found.append(_row(name, bpp, None, picture, CODECS[name].decode(best.data)))
    return found


def assembled(pieces: Iterable[tuple[Area, Pixels]], latents: Samples, factor: int) -> Pixels:
    """The pieces that a network decodes all latents to, as one picture."""
    rows, columns = latents.shape[:2]
    pixels = np.empty((factor * rows, factor * columns, 3), np.uint8)
    for place, piece in pieces:
        pixels[place] = piece
    return pixels


def _row(
    coding: str, bpp: float, error: float | None, original: Image.Image, decoded: Image.Image
) -> Row:
    fidelity = measure(original, decoded)
    return Row(coding, bpp, error, fidelity.psnr, fidelity.ms_ssim, fidelity.ssimulacra2)


def table(found: list[Row]) -> str:
    """A Markdown table of the averages over all photos."""
    lines = [
        "| coding | bpp | latent MSE | PSNR dB | MS-SSIM | SSIMULACRA2 |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for coding in dict.fromkeys(row.coding for row in found):
        group = [dataclasses.astuple(row)[1:] for row in found if row.coding == coding]
        means = [
            None if None in column else statistics.fmean(column)
            for column in zip(*group, strict=True)
        ]
        bpp, error, psnr, ms_ssim, ssimulacra2 = means
        shown = "" if error is None else f"{error:.4f}"
        lines.append(
            f"| {coding} | {bpp:.3f} | {shown} | {psnr:.2f} | {ms_ssim:.4f} | {ssimulacra2:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="a folder of photos")
    parser.add_argument("--model", default="sd-mini")
    parser.add_argument("--rate", type=float, help="bits per pixel; default: those of the palette")
    parser.add_argument(
        "--strength", type=float, nargs="*", default=[0.03, 0.04], help="strength of the denoising"
    )
    parser.add_argument("--steps", type=int, default=3, help="steps of the denoising")
    options = parser.parse_args()
    model = models.spec(options.model)
    refinements = {
        f"U-Net at {strength:g}": functools.partial(
            denoise.denoise,
            denoiser=models.load_denoiser(model),
            strength=strength,
            steps=options.steps,
        )
        for strength in options.strength
    }
    found = []
    for path in sorted(p for p in options.images.iterdir() if p.is_file()):
        found += rows(load(path), model, options.rate, refinements)
    print(table(found))


if __name__ == "__main__":
    main()
