"""Time and memory of sdz, as ratios to diffusers' AutoencoderTiny in the same run.

    python -m benchmarks.speed

AutoencoderTiny (TAESD's architecture, here with random weights, which cost the same time)
is the common small autoencoder that Stable Diffusion's users know. Encoding and decoding
are warm, from a Pillow image to the bytes of a file and back; the autoencoder has no file,
so that its encoding ends with the latents and its decoding begins with them. Importing,
opening and memory are measured in processes of their own, started for nothing else.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import pillow_sdz  # noqa: F401  # registers the format SDZ
from pillow_sdz import demo

SIZES = ((512, 512), (768, 512))

# What a cold process runs; {file} is an .sdz file, {picture} the same as a PNG.
IMPORT_SDZ = "import pillow_sdz"
IMPORT_TINY = "from diffusers import AutoencoderTiny"
OPEN_SDZ = """
import pillow_sdz
from PIL import Image
Image.open({file!r}).size
"""
OPEN_TINY = """
from diffusers import AutoencoderTiny
AutoencoderTiny()
"""
ROUND_TRIP_SDZ = """
import io
import pillow_sdz
from PIL import Image
file = io.BytesIO()
Image.open({picture!r}).save(file, "SDZ")
Image.open(file).load()
"""
ROUND_TRIP_TINY = """
from benchmarks.speed import tiny_autoencoder
from PIL import Image
encode, decode = tiny_autoencoder()
decode(encode(Image.open({picture!r})))
"""
# On Linux getrusage's figure is no use: a new process starts with its parent's.
PEAK_MEMORY = """
import os, re, resource
if os.path.exists("/proc/self/status"):
    print(1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes, on macOS
"""


@dataclass(frozen=True)
class Comparison:
    """One figure of sdz and, where diffusers is installed, of AutoencoderTiny."""

    what: str
    unit: str
    sdz: float
    tiny: float | None


def tiny_autoencoder() -> tuple[
    Callable[[Image.Image], object],
    Callable[[object], Image.Image],
]:
    """AutoencoderTiny's encoder and decoder, between an RGB picture and its latents."""
    import torch

    diffusers: Any = importlib.import_module("diffusers")  # its classes are not fully typed
    torch.manual_seed(0)
    model = diffusers.AutoencoderTiny().eval()

    def encode(picture: Image.Image) -> object:
        samples = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            return model.encode(samples.float() / 127.5 - 1).latents

    def decode(latents: object) -> Image.Image:
        with torch.inference_mode():
            samples = model.decode(latents).sample[0]
        levels = ((samples + 1) * 127.5).round().clamp(0, 255).byte()
        return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())

    return encode, decode


def sdz_encode(picture: Image.Image) -> bytes:
    """The picture as an .sdz file of the default quality."""
    file = io.BytesIO()
    picture.save(file, "SDZ")
    return file.getvalue()


def sdz_decode(data: bytes) -> Image.Image:
    """The picture in an .sdz file, its pixels loaded."""
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        return picture


def alternate(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Each call's median time in milliseconds.

    The calls take turns, so that whatever else the machine does falls on all of them; one
    turn before the first that counts warms everything up.
    """
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 1):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if turn:
                taken.append(1000 * (time.perf_counter() - start))
    return [statistics.median(taken) for taken in times]


def warm(size: tuple[int, int], repeats: int, with_tiny: bool) -> list[Comparison]:
    """Encoding and decoding a picture of this size in this process."""
    picture = photo(size)
    data = sdz_encode(picture)
    encode: list[Callable[[], object]] = [lambda: sdz_encode(picture)]
    decode: list[Callable[[], object]] = [lambda: sdz_decode(data)]
    if with_tiny:
        tiny_encode, tiny_decode = tiny_autoencoder()
        latents = tiny_encode(picture)
        encode.append(lambda: tiny_encode(picture))
        decode.append(lambda: tiny_decode(latents))
    name = f"{size[0]}x{size[1]}"
    return [
        comparison(f"encode {name}", "ms", alternate(encode, repeats)),
        comparison(f"decode {name}", "ms", alternate(decode, repeats)),
    ]


def cold(repeats: int, threads: int | None, with_tiny: bool) -> list[Comparison]:
    """Importing, opening and the memory of a round trip, in fresh processes."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {"file": f"{folder}/photo.sdz", "picture": f"{folder}/photo.png"}
        picture = photo((768, 512))
        picture.save(paths["picture"])
        picture.save(paths["file"])
        programs = [
            ("import", IMPORT_SDZ, IMPORT_TINY),
            ("import and open (AutoencoderTiny: build)", OPEN_SDZ, OPEN_TINY),
        ]
        for what, *sources in programs:
            chosen = [source.format(**paths) for source in sources[: 1 + with_tiny]]
            # Python's own start is in every one of them and no merit of either.
            calls = [functools.partial(_python, source, threads) for source in ["", *chosen]]
            start, *times = alternate(calls, repeats)
            results.append(comparison(what, "ms", [t - start for t in times]))
        memory = [
            _peak_memory(source.format(**paths), threads)
            for source in (ROUND_TRIP_SDZ, ROUND_TRIP_TINY)[: 1 + with_tiny]
        ]
        results.append(comparison("peak memory, 768x512 both ways", "MB", memory))
    return results


def comparison(what: str, unit: str, values: Sequence[float]) -> Comparison:
    """A figure of sdz, followed by that of AutoencoderTiny where it was measured."""
    return Comparison(what, unit, values[0], values[1] if len(values) > 1 else None)


def _peak_memory(source: str, threads: int | None) -> float:
    """The largest resident set of a process that runs ``source``, in megabytes."""
    return int(_python(source + PEAK_MEMORY, threads)) / 1e6


def _python(source: str, threads: int | None) -> str:
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    # From the checkout, as this module runs: `python -c` looks for modules where it starts.
    process = subprocess.run(
        [sys.executable, "-c", source],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=Path(__file__).parent.parent,
    )
    return process.stdout


def photo(size: tuple[int, int]) -> Image.Image:
    """The demo's photo, scaled to 768x512 and cropped to the middle where less is asked for."""
    picture = demo.photo().resize((768, 512), Image.Resampling.LANCZOS)
    left, top = (768 - size[0]) // 2, (512 - size[1]) // 2
    return picture.crop((left, top, left + size[0], top + size[1]))


def table(comparisons: Sequence[Comparison]) -> str:
    """The figures as a Markdown table."""
    lines = ["| | sdz | AutoencoderTiny | ratio |", "|---|--:|--:|--:|"]
    for c in comparisons:
        tiny, ratio = "", ""
        if c.tiny is not None:
            tiny, ratio = f"{c.tiny:,.0f} {c.unit}", f"{c.sdz / c.tiny:.2f}"
        lines.append(f"| {c.what} | {c.sdz:,.0f} {c.unit} | {tiny} | {ratio} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description="Time and memory of sdz, as ratios to diffusers' AutoencoderTiny.",
    )
    parser.add_argument("--threads", type=int, help="torch's threads (default: torch's own choice)")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.repeats < 1 or (options.threads is not None and options.threads < 1):
        parser.error("--threads and --repeats must be at least 1")

    with_tiny = importlib.util.find_spec("diffusers") is not None
    if not with_tiny:
        print("diffusers is not installed: figures without ratios", file=sys.stderr)
    import torch

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    results = [c for size in SIZES for c in warm(size, options.repeats, with_tiny)]
    results += cold(options.repeats, options.threads, with_tiny)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
