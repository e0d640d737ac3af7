"""Caches of training latents: bytes and latents per second, beside numpy, safetensors and zstd.

    python -m benchmarks.latent_cache --images DIR

The latents come from two autoencoders and the pictures in DIR. `sd-mini` makes latents of 4
channels in float16, from the left and the right part of each picture, 64 x 64 each. The public
taef2 (for FLUX.2) makes latents of 32 channels in bfloat16, 64 x 96 from each picture. It is left
out unless the environment variable TAEF2 names its weights. The trained prior of `sd-mini` should
not have seen the pictures. Each latent is a file in memory.

Rates are in CPU time of one core, for one file after another, and for `open_latents_batch`. Every
file is decoded and compared. zstd has level 19. "Shuffled" means that it gets the first bytes of
all values, then the second bytes.
"""

from __future__ import annotations

import argparse
import io
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load, save
from threadpoolctl import threadpool_limits

from pillow_sdz import catalogue, models, open_latents, open_latents_batch, save_latents

SIZE = 64  # latents a side, for a picture of 512 pixels
FACTOR = 8
STEPS = (0.1, 0.25, 0.5)

Latents = NDArray[Any]  # (C, h, w)


class Format(NamedTuple):
    """How latents become a file, and how files become latents, one by one and together."""

    name: str
    encode: Callable[[Latents], bytes]
    decode: Callable[[bytes], Latents]
    together: Callable[[Sequence[bytes]], Iterable[Latents]] | None = None
    error: float = 0  # the largest error that is allowed


def numpy_file(dtype: type, compressed: bool) -> Format:
    write = np.savez_compressed if compressed else np.savez

    def encode(latents: Latents) -> bytes:
        file = io.BytesIO()
        write(file, latents=latents.astype(dtype))
        return file.getvalue()

    def decode(data: bytes) -> Latents:
        latents: Latents = np.load(io.BytesIO(data))["latents"]
        return latents

    return Format(f"`np.{write.__name__}`, {dtype.__name__}", encode, decode)


def safetensors_file(dtype: type) -> Format:
    def encode(latents: Latents) -> bytes:
        return save({"latents": np.ascontiguousarray(latents, dtype)})

    return Format(f"safetensors, {dtype.__name__}", encode, lambda data: load(data)["latents"])


def safetensors_zstd(dtype: type) -> Format:
    plain = safetensors_file(dtype)
    packed, unpacked = zstandard.ZstdCompressor(level=19), zstandard.ZstdDecompressor()
    return Format(
        f"{plain.name}, zstd",
        lambda latents: packed.compress(plain.encode(latents)),
        lambda data: plain.decode(unpacked.decompress(data)),
    )


def shuffled_zstd(shape: tuple[int, ...], brain: bool) -> Format:
    """The first bytes of all values, then the second bytes; bfloat16 if ``brain``, or float16."""
    packed, unpacked = zstandard.ZstdCompressor(level=19), zstandard.ZstdDecompressor()

    def encode(latents: Latents) -> bytes:
        if brain:
            values = (latents.astype("<f4").view("<u4") >> 16).astype("<u2")
        else:
            values = latents.astype("<f2").view("<u2")
        return packed.compress(values.reshape(-1, 1).view(np.uint8).T.tobytes())

    def decode(data: bytes) -> Latents:
        planes = np.frombuffer(unpacked.decompress(data), np.uint8).reshape(2, -1)
        values = np.ascontiguousarray(planes.T).view("<u2").reshape(shape)
        return (values.astype("<u4") << 16).view("<f4") if brain else values.view("<f2")

    return Format(f"zstd, shuffled {'bfloat16' if brain else 'float16'}", encode, decode)


def sdz(name: str, kept: float | str, about: dict[str, Any]) -> Format:
    """`.sdz` files with a step, or with a dtype that is kept exactly."""
    precision: dict[str, Any] = {"lossless" if isinstance(kept, str) else "step": kept}

    def encode(latents: Latents) -> bytes:
        file = io.BytesIO()
        save_latents(latents, file, **precision, **about)
        return file.getvalue()

    step = 0 if isinstance(kept, str) else round(kept * 1024) / 1024
    return Format(
        name,
        encode,
        lambda data: open_latents(io.BytesIO(data)).latents,
        lambda files: (x.latents for x in open_latents_batch(io.BytesIO(f) for f in files)),
        step / 2 * (1 + 2**-10),  # float32 also rounds
    )


def measure(format: Format, cache: Sequence[Latents]) -> str:
    """Measure a format and return its row of the table."""
    format.decode(format.encode(cache[0]))  # some things are loaded once, at the first call
    times = [time.process_time()]
    files = [format.encode(latents) for latents in cache]
    times.append(time.process_time())
    decoded = [format.decode(file) for file in files]
    times.append(time.process_time())
    together = [*format.together(files)] if format.together else decoded
    times.append(time.process_time())
    for found in (decoded, together):
        for got, latents in zip(found, cache, strict=True):
            if np.abs(got.astype(np.float64) - latents).max() > format.error:
                msg = f"{format.name} does not decode to what was encoded"
                raise AssertionError(msg)
    average = sum(map(len, files)) / len(files)
    rates = [f"{len(files) / max(b - a, 1e-9):,.0f}" for a, b in itertools.pairwise(times)]
    if not format.together:
        rates[2] = ""
    share = 100 * average / (cache[0].size * 2)
    return f"| {format.name} | {average:,.0f} | {share:.1f} % | {' | '.join(rates)} |"


def pictures_in(folder: Path) -> list[Image.Image]:
    """The pictures with at least 512 pixels a side. Portraits are turned."""
    found = []
    for path in sorted(folder.iterdir()):
        with Image.open(path) as im:
            picture = im.convert("RGB")
        if picture.width < picture.height:
            picture = picture.transpose(Image.Transpose.ROTATE_90)
        if min(picture.size) >= SIZE * FACTOR:
            found.append(picture)
    return found


def of_sd_mini(pictures: Iterable[Image.Image]) -> list[Latents]:
    network = models.load(catalogue.SD_MINI)
    found = []
    for picture in pictures:
        latents = network.encode(np.asarray(picture), 0).transpose(2, 0, 1).astype(np.float16)
        found += [latents[:, :SIZE, :SIZE], latents[:, :SIZE, -SIZE:]]
    return found


def of_flux2(pictures: Iterable[Image.Image]) -> list[Latents]:
    """Latents of the real taef2, exact in bfloat16. The list is empty without its weights."""
    import torch

    from evaluation import taef2

    if (weights := taef2.weights()) is None:
        return []
    module = taef2.load(weights)
    found = []
    for picture in pictures:
        part = picture.crop((0, 0, min(768, picture.width), 512))
        images = torch.from_numpy(np.array(part)).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            found.append(module.encode(images)[0].bfloat16().float().numpy().copy())
    return found


def formats_of_sd_mini() -> list[Format]:
    own: dict[str, Any] = {"model": "sd-mini"}
    other: dict[str, Any] = {"model": "other-4", "factor": FACTOR}
    return [
        *(numpy_file(np.float32, compressed=packed) for packed in (False, True)),
        *(numpy_file(np.float16, compressed=packed) for packed in (False, True)),
        safetensors_file(np.float16),
        safetensors_zstd(np.float16),
        shuffled_zstd((4, SIZE, SIZE), brain=False),
        sdz("**sdz, lossless float16**", "float16", own),
        *(sdz(f"sdz, step {step}", step, own) for step in STEPS),
        sdz("sdz of an unknown family, lossless float16", "float16", other),
        sdz("sdz of an unknown family, step 0.1", 0.1, other),
    ]


def formats_of_flux2(shape: tuple[int, ...]) -> list[Format]:
    about: dict[str, Any] = {"model": "flux2", "factor": FACTOR}
    return [
        numpy_file(np.float32, compressed=False),
        safetensors_zstd(np.float32),
        shuffled_zstd(shape, brain=True),
        sdz("**sdz, lossless bfloat16**", "bfloat16", about),
        *(sdz(f"sdz, step {step}", step, about) for step in STEPS),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Bytes and speed of cached latents.")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="use only this many pictures")
    args = parser.parse_args()
    pictures = pictures_in(args.images)[: args.limit]
    four, many = of_sd_mini(pictures), of_flux2(pictures)
    tables = [(four, formats_of_sd_mini())]
    tables += [(many, formats_of_flux2(many[0].shape))] if many else []
    with threadpool_limits(1):
        for cache, formats in tables:
            print(f"{len(cache)} latents of {'x'.join(map(str, cache[0].shape))}\n")
            print("| file | bytes per latent | of 16 bits | encoded/s | decoded/s | together/s |")
            print("|---|--:|--:|--:|--:|--:|")
            for format in formats:
                print(measure(format, cache), flush=True)
            print()


if __name__ == "__main__":
    main()
