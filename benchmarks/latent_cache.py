"""Caches of training latents: bytes and latents per second, compared with numpy and safetensors.

    python -m benchmarks.latent_cache --latents FILE --priors DIR

FILE holds float16 latents (4, h, w) at a factor of 8, one tensor for each photo. They must be at
least 64 high and wide. The left 64 x 64 and the right 64 x 64 of each photo are cached, each in its
own file, as trainers do. DIR holds the priors of `benchmarks.latents`. No prior has seen the photo
that it codes.

Float32 files hold the same values. Values computed in float32 would compress less. Seconds are
those of one core, from latents to bytes in memory and back. Several cores can do this for more
files, in one process each. Every file is decoded and compared.
"""

from __future__ import annotations

import argparse
import io
import lzma
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, load_file, save
from threadpoolctl import threadpool_limits

from benchmarks.latents import FACTOR, FOLDS
from pillow_sdz import chunks, container, models
from pillow_sdz.catalogue import CONTEXT, FLOAT16, CodingSpec
from pillow_sdz.codings import float16
from pillow_sdz.codings.adaptive import AdaptivePrior
from pillow_sdz.codings.integers import STEP_UNITS
from pillow_sdz.codings.lattice import LatticePrior
from pillow_sdz.codings.quantize import Prior, Quantizer
from pillow_sdz.codings.range_coder import SymbolDecoder, Tables
from pillow_sdz.container import Chunk
from pillow_sdz.header import Header

SIZE = 64  # latents a side, for a picture of 512 pixels
STEPS = (0.1, 0.25, 0.5)

Latents = NDArray[np.floating[Any]]  # (4, 64, 64)


class Format(NamedTuple):
    """How latents become a file, and how a file becomes latents. ``photo`` is its number."""

    name: str
    encode: Callable[[Latents, int], bytes]
    decode: Callable[[bytes, int], Latents]
    error: float = 0  # the largest error that is allowed


def numpy_file(dtype: type, compressed: bool) -> Format:
    write = np.savez_compressed if compressed else np.savez

    def encode(latents: Latents, photo: int) -> bytes:
        file = io.BytesIO()
        write(file, latents=latents.astype(dtype))
        return file.getvalue()

    def decode(data: bytes, photo: int) -> Latents:
        latents: Latents = np.load(io.BytesIO(data))["latents"]
        return latents

    return Format(f"`np.{write.__name__}`, {dtype.__name__}", encode, decode)


def safetensors_file(dtype: type) -> Format:
    def encode(latents: Latents, photo: int) -> bytes:
        return save({"latents": np.ascontiguousarray(latents, dtype)})

    return Format(f"safetensors, {dtype.__name__}", encode, lambda data, _: load(data)["latents"])


def lzma_of_bytes() -> Format:
    """Write all high bytes, then all low bytes. General packers do best on this order."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0}]

    def encode(latents: Latents, photo: int) -> bytes:
        planes = latents.astype(">f2").tobytes()
        return lzma.compress(planes[::2] + planes[1::2], lzma.FORMAT_RAW, filters=filters)

    def decode(data: bytes, photo: int) -> Latents:
        planes = np.frombuffer(lzma.decompress(data, lzma.FORMAT_RAW, filters=filters), np.uint8)
        together = planes.reshape(2, -1).T.tobytes()
        return np.frombuffer(together, ">f2").reshape(4, SIZE, SIZE).astype(np.float16)

    return Format("LZMA of bytes apart, float16", encode, decode)


def sdz_file(payload: bytes, coding: CodingSpec, quantisation: int) -> bytes:
    """The file that `pillow_sdz.save_latents` writes."""
    spec = models.spec("sd1")
    size = (FACTOR * SIZE, FACTOR * SIZE)
    header = Header(
        "RGB", size, spec.name, spec.digest, spec.channels, spec.factor, quantisation, coding.number
    )
    return container.write(container.assemble(header, [], [[Chunk(chunks.LATENTS, payload)]]))


def payload_of(data: bytes) -> bytes:
    reader = container.Reader(io.BytesIO(data))
    return next(reader.data(entry) for entry in reader if entry.type == chunks.LATENTS)


def lossless() -> Format:
    def encode(latents: Latents, photo: int) -> bytes:
        halves = latents.transpose(1, 2, 0).astype(np.float16)
        return sdz_file(float16.encode(halves), FLOAT16, 0)

    def decode(data: bytes, photo: int) -> Latents:
        return float16.decode(payload_of(data), SIZE, SIZE, 4).transpose(2, 0, 1)

    return Format("**sdz, lossless float16**", encode, decode)


def quantised(name: str, number: int, priors: list[Prior], step: float) -> Format:
    """Use a prior that has this number in files. Photo i has the prior i mod len(priors)."""
    units = round(step * STEP_UNITS)

    def encode(latents: Latents, photo: int) -> bytes:
        steps = latents.transpose(1, 2, 0).astype(np.float64) * (STEP_UNITS / units)
        quantizer = Quantizer(Tables.shipped(), steps, np.zeros(0))
        priors[photo % len(priors)].code(quantizer, SIZE, SIZE, units)
        return sdz_file(bytes([number]) + quantizer.bytes(), CONTEXT, units)

    def decode(data: bytes, photo: int) -> Latents:
        decoder = SymbolDecoder(Tables.shipped(), payload_of(data)[1:])
        symbols = priors[photo % len(priors)].code(decoder, SIZE, SIZE, units)
        decoder.finish()
        return (symbols * (units / STEP_UNITS)).astype(np.float32).transpose(2, 0, 1)

    error = units / STEP_UNITS / 2 * (1 + 2**-20)  # float32 also rounds
    return Format(f"sdz, step {step}, {name} prior", encode, decode, error)


def measure(format: Format, cache: list[tuple[int, Latents]]) -> str:
    """Measure a format and return its row of the table."""
    format.encode(cache[0][1], cache[0][0])  # load what is loaded only once
    start = time.process_time()
    files = [format.encode(latents, photo) for photo, latents in cache]
    middle = time.process_time()
    decoded = [format.decode(file, photo) for file, (photo, _) in zip(files, cache, strict=True)]
    end = time.process_time()
    for found, (_, latents) in zip(decoded, cache, strict=True):
        if np.abs(found - latents.astype(np.float64)).max() > format.error:
            msg = f"{format.name} does not decode to what was encoded"
            raise AssertionError(msg)
    average = sum(map(len, files)) / len(files)
    share = average / (cache[0][1].size * 2)
    rates = (len(files) / (middle - start), len(files) / (end - middle))
    return (
        f"| {format.name} | {average:,.0f} | {100 * share:.1f} % "
        f"| {rates[0]:,.0f} | {rates[1]:,.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Bytes and speed of cached latents.")
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument(
        "--priors", type=Path, required=True, help="folder with the priors of the folds"
    )
    args = parser.parse_args()
    trained: list[Prior] = [
        LatticePrior(load_file(args.priors / f"fold{k}.safetensors")) for k in range(FOLDS)
    ]
    adaptive: list[Prior] = [AdaptivePrior(4)]
    formats = [
        *(
            numpy_file(dtype, packed)
            for dtype in (np.float32, np.float16)
            for packed in (False, True)
        ),
        *(safetensors_file(dtype) for dtype in (np.float32, np.float16)),
        lzma_of_bytes(),
        lossless(),
        *(quantised("adaptive", 0, adaptive, step) for step in STEPS),
        *(quantised("trained", 1, trained, step) for step in STEPS),
    ]
    cache = [
        (i, part)
        for i, (_, photo) in enumerate(sorted(load_file(args.latents).items()))
        for part in (photo[:, :SIZE, :SIZE], photo[:, :SIZE, -SIZE:])
    ]
    print("| file | bytes per latent | of float16 | encoded/s | decoded/s |\n|---|---|---|---|---|")
    with threadpool_limits(1):
        for format in formats:
            print(measure(format, cache), flush=True)


if __name__ == "__main__":
    main()
