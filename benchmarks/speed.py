"""Time and memory of sdz, compared with diffusers' AutoencoderTiny and others in the same run.

    python -m benchmarks.speed
    python -m benchmarks.speed --cpu
    python -m benchmarks.speed --megapixels 0.25 1 4 12 24

AutoencoderTiny has TAESD's architecture. It is the small autoencoder that users of Stable Diffusion
know. Here it has random weights, which cost the same time. Encoding and decoding are measured when
everything is loaded, from a Pillow image to the bytes of a file and back. The autoencoder has no
file, so its encoding ends with the latents and its decoding begins with them. Imports, cold starts
and memory are measured in processes that do nothing else. With ``--megapixels``, only pictures of
those sizes are measured, which takes minutes. With ``--cpu``, CPU time is measured, of all threads
and of child processes: on a busy machine, elapsed times mean nothing.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import io
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import pillow_sdz  # noqa: F401  # registers the format SDZ
from pillow_sdz import demo
from pillow_sdz.cores import cores

SIZES = ((512, 512), (768, 512))
SMALL = (256, 256)  # the size of the small pictures
OPENED = 100  # times in a row, because one is too short for the clock

TINY = "AutoencoderTiny"
FORMATS = ("AVIF", "WEBP", "JPEG")  # Pillow's, with their defaults
SCALES = (2, 4, 8)  # of drafts

# What a cold process runs. {file} is a small .sdz file, {picture} is a photo as PNG.
IMPORT_PILLOW = "import PIL.Image"
IMPORT_SDZ = "import PIL.Image, pillow_sdz"
IMPORT_TINY = "from diffusers import AutoencoderTiny"
LOAD_SDZ = """
import pillow_sdz
from PIL import Image
with Image.open({file!r}) as im:
    im.draft(None, (im.width // {scale}, im.height // {scale}))
    im.load()
"""
# The parts of a cold start. Each part prints its name and its milliseconds.
PARTS = """
import time
start = time.perf_counter()
def done(part):
    global start
    print(f"{{part}}: {{1000 * (time.perf_counter() - start):.0f}} ms")
    start = time.perf_counter()
import pillow_sdz
from PIL import Image
done("import pillow_sdz and Pillow")
image = Image.open({file!r})
done("open")
from pillow_sdz import catalogue, codec, models
from pillow_sdz.models import mini
done("import the codec, with numpy, constriction and safetensors")
models.load(catalogue.MINI)
done("load the model, its hash checked")
image.load()
done("load the pixels")
Image.open({file!r}).load()
done("open and load the pixels again")
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
# On Linux, getrusage is of no use: a new process starts with its parent's figure.
PEAK_MEMORY = """
import os, re, resource
if os.path.exists("/proc/self/status"):
    print(1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes, on macOS
"""


@dataclass(frozen=True)
class Comparison:
    """One figure of sdz, and one of something else if there is one."""

    what: str
    unit: str
    sdz: float
    other: float | None
    beside: str = TINY


def tiny_autoencoder() -> tuple[
    Callable[[Image.Image], object],
    Callable[[object], Image.Image],
]:
    """AutoencoderTiny's encoder and decoder, from an RGB picture to latents and back."""
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
    """Encode the picture as an .sdz file of the default quality."""
    file = io.BytesIO()
    picture.save(file, "SDZ")
    return file.getvalue()


def sdz_decode(data: bytes) -> Image.Image:
    """Open an .sdz file and load its pixels."""
    return decoded(data)


def decoded(data: bytes, scale: int = 1) -> Image.Image:
    """Open a file of any format and load its pixels, at a part of its size."""
    with Image.open(io.BytesIO(data)) as picture:
        picture.draft(None, (picture.width // scale, picture.height // scale))
        picture.load()
        return picture


def cpu_time() -> float:
    """The CPU seconds of this process and of its children that have ended."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


#: What `alternate` measures: elapsed time, or `cpu_time`.
clock: Callable[[], float] = time.perf_counter


def alternate(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """The median time of each call in milliseconds.

    The calls take turns, so that other work of the machine slows all of them. The first turn
    warms everything up and does not count.
    """
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 1):
        for call, taken in zip(calls, times, strict=True):
            start = clock()
            call()
            if turn:
                taken.append(1000 * (clock() - start))
    return [statistics.median(taken) for taken in times]


def warm(size: tuple[int, int], repeats: int, with_tiny: bool) -> list[Comparison]:
    """Encode and decode a picture of this size in this process."""
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


def beside_pillow(repeats: int) -> list[Comparison]:
    """Encode, decode and open, compared with Pillow's own formats, in this process."""
    picture = photo((768, 512))
    data = sdz_encode(picture)

    def save(format: str) -> bytes:
        file = io.BytesIO()
        picture.save(file, format)
        return file.getvalue()

    def opened(format: str) -> Callable[[], None]:
        file = io.BytesIO(save(format))

        def call() -> None:
            for _ in range(OPENED):
                Image.open(file).size  # noqa: B018

        return call

    results = []
    for format in FORMATS:
        encode = alternate([lambda: sdz_encode(picture), functools.partial(save, format)], repeats)
        load = functools.partial(decoded, save(format))
        decode = alternate([lambda: sdz_decode(data), load], repeats)
        beside = f"Pillow's {format}, its defaults"
        results.append(comparison("encode 768x512", "ms", encode, beside))
        results.append(comparison("decode 768x512", "ms", decode, beside))
    opening = [t / OPENED for t in alternate([opened("SDZ"), opened("PNG")], repeats)]
    return [*results, comparison("Image.open and .size", "ms", opening, "PNG")]


def drafts(repeats: int) -> list[Comparison]:
    """Decode at a reduced scale, compared with the whole picture."""
    data = sdz_encode(photo((768, 512)))
    calls = [functools.partial(decoded, data, scale) for scale in (1, *SCALES)]
    whole, *times = alternate(calls, repeats)
    return [
        comparison(f"draft at 1/{scale} of 768x512", "ms", [taken, whole], "a load")
        for scale, taken in zip(SCALES, times, strict=True)
    ]


def many(count: int, repeats: int) -> list[Comparison]:
    """Small pictures a second: a pool of as many threads as there are cores, and a loop."""
    threads = cores()
    picture = demo.photo()
    places = np.random.default_rng(0).integers(0, np.subtract(picture.size, SMALL), (count, 2))
    pictures = [picture.crop((x, y, x + SMALL[0], y + SMALL[1])) for x, y in places.tolist()]
    files = [sdz_encode(small) for small in pictures]

    def loop(function: Callable[[Any], object], items: Iterable[Any]) -> None:
        for item in items:
            function(item)

    def pool(function: Callable[[Any], object], items: Iterable[Any]) -> None:
        with ThreadPoolExecutor(threads) as executor:
            for _ in executor.map(function, items):
                pass

    results = []
    for what, function, items in (("encode", sdz_encode, pictures), ("decode", sdz_decode, files)):
        calls = [functools.partial(way, function, items) for way in (pool, loop)]
        rates = [1000 * count / t for t in alternate(calls, repeats)]
        name = f"{what} {count} pictures {SMALL[0]}x{SMALL[1]}, {threads} threads"
        results.append(comparison(name, "/s", rates, "one after another"))
    return results


def per_megapixel(megapixels: float) -> str:
    """A row: seconds per megapixel to encode and decode a picture of this many megapixels."""
    side = round(1000 * megapixels**0.5)
    picture = Image.new("RGB", (side, side))
    part = demo.photo()
    for left in range(0, side, part.width):
        for top in range(0, side, part.height):
            picture.paste(part, (left, top))
    data = sdz_encode(picture)
    calls: list[Callable[[], object]] = [lambda: sdz_encode(picture), lambda: sdz_decode(data)]
    # Repeat small pictures more often, so that all sizes take about as long.
    encode, decode = alternate(calls, repeats=min(max(1, round(4 / megapixels)), 16))
    scale = 1e6 / side**2
    return f"| {megapixels:g} | {encode * scale:,.0f} ms | {decode * scale:,.0f} ms |"


def cold(repeats: int, threads: int | None, with_tiny: bool) -> list[Comparison]:
    """Importing, a cold start and the memory of a round trip, in fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        paths = _files(Path(folder))

        def above(base: str, *sources: str) -> list[float]:
            """How much longer the programs take than ``base``."""
            chosen = [base, *sources]
            calls = [functools.partial(_python, source, threads) for source in chosen]
            start, *times = alternate(calls, repeats)
            return [t - start for t in times]

        results = [comparison("import, above PIL.Image", "ms", above(IMPORT_PILLOW, IMPORT_SDZ))]
        for what, scale in (("picture", 1), ("thumbnail", 8)):
            (taken,) = above("", LOAD_SDZ.format(file=paths["large"], scale=scale))
            name = f"first {what} of 768x512 in a fresh process, above Python's start"
            results.append(comparison(name, "ms", [taken]))
        if with_tiny:
            # Both include Python's own start.
            imports = above("", IMPORT_SDZ, IMPORT_TINY)
            results.append(comparison("import, with Pillow", "ms", imports))
        memory = [
            _peak_memory(source.format(**paths), threads)
            for source in (ROUND_TRIP_SDZ, ROUND_TRIP_TINY)[: 1 + with_tiny]
        ]
        results.append(comparison("peak memory, 768x512 both ways", "MB", memory))
    return results


def cold_start_parts(threads: int | None) -> str:
    """The parts of a cold start, one line each."""
    with tempfile.TemporaryDirectory() as folder:
        return _python(PARTS.format(**_files(Path(folder))), threads)


def _files(folder: Path) -> dict[str, str]:
    """The files that the programs use: a photo, and a small one as .sdz."""
    names = {"file": "small.sdz", "large": "large.sdz", "picture": "photo.png"}
    paths = {key: str(folder / name) for key, name in names.items()}
    photo(SMALL).save(paths["file"])
    photo((768, 512)).save(paths["large"])
    photo((768, 512)).save(paths["picture"])
    return paths


def comparison(what: str, unit: str, values: Sequence[float], beside: str = TINY) -> Comparison:
    """A figure of sdz, and the other one if it was measured."""
    return Comparison(what, unit, values[0], values[1] if len(values) > 1 else None, beside)


def _peak_memory(source: str, threads: int | None) -> float:
    """The largest resident set of a process that runs ``source``, in megabytes."""
    return int(_python(source + PEAK_MEMORY, threads)) / 1e6


def _python(source: str, threads: int | None) -> str:
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    # Run from the checkout, as this module does: `python -c` imports from its working directory.
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
    """The demo's photo, scaled to 768x512. A smaller size is cropped from the middle."""
    picture = demo.photo().resize((768, 512), Image.Resampling.LANCZOS)
    left, top = (768 - size[0]) // 2, (512 - size[1]) // 2
    return picture.crop((left, top, left + size[0], top + size[1]))


def table(comparisons: Sequence[Comparison]) -> str:
    """The figures as a Markdown table."""
    lines = ["| | sdz | beside | | ratio |", "|---|--:|---|--:|--:|"]
    for c in comparisons:
        beside = other = ratio = ""
        if c.other is not None:
            beside, other, ratio = c.beside, shown(c.other, c.unit), f"{c.sdz / c.other:.2f}"
        lines.append(f"| {c.what} | {shown(c.sdz, c.unit)} | {beside} | {other} | {ratio} |")
    return "\n".join(lines)


def shown(value: float, unit: str) -> str:
    """A figure with the digits that matter."""
    return f"{value:,.0f} {unit}" if value >= 1 else f"{value:.3f} {unit}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description="Time and memory of sdz, as ratios to diffusers' AutoencoderTiny.",
    )
    parser.add_argument("--threads", type=int, help="AutoencoderTiny's (default: torch's choice)")
    parser.add_argument("--cpu", action="store_true", help="CPU time instead of elapsed time")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--pictures", type=int, default=32, help="small pictures; default: %(default)s"
    )
    parser.add_argument(
        "--megapixels", type=float, nargs="+", help="measure only the time of these sizes"
    )
    options = parser.parse_args(arguments)
    if min(options.repeats, options.pictures, options.threads or 1) < 1:
        parser.error("--threads, --repeats and --pictures must be at least 1")
    if min(options.megapixels or [1]) <= 0:
        parser.error("--megapixels must be positive")

    if options.cpu:
        global clock
        clock = cpu_time
    with_tiny = importlib.util.find_spec("diffusers") is not None
    if not with_tiny:
        print("diffusers is not installed, so there are no ratios", file=sys.stderr)
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    if options.megapixels:
        print("| megapixels | encode, per megapixel | decode, per megapixel |\n|--:|--:|--:|")
        for megapixels in options.megapixels:
            print(per_megapixel(megapixels), flush=True)
        return 0
    results = [c for size in SIZES for c in warm(size, options.repeats, with_tiny)]
    results += beside_pillow(options.repeats)
    results += drafts(options.repeats)
    results += many(options.pictures, options.repeats)
    results += cold(options.repeats, options.threads, with_tiny)
    print(table(results))
    print(f"\nA cold start:\n{cold_start_parts(options.threads)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
