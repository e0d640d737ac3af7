"""`sdz encode` and `sdz decode`: pictures to .sdz, and .sdz to pictures.

Files of latents that `encode` is given go to `latents`.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from PIL import Image

from .arguments import (
    Commands,
    add_coding,
    add_inputs,
    add_output,
    add_size,
    given,
    positive,
    refuse,
)
from .files import Job, Targets, jobs, open_sdz, output_file, sdz_files
from .latents import LATENT_SUFFIXES, LatentEncoder, latent_files
from .messages import complain_of_frames
from .metadata import metadata, options_for
from .running import each

# What `sdz encode FOLDER` takes from a folder, as far as Pillow can read it. Pillow knows more
# names, but a film or a PostScript file in a folder of photos is no photo.
# fmt: off
PICTURE_SUFFIXES = frozenset((
    ".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".j2k",
    ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".jxl", ".pbm", ".pgm", ".png", ".pnm",
    ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp",
))
# fmt: on

# Formats whose frames are shown one after another. In other formats several frames may be the
# pages of a document, or what a telephone stores besides the photo.
ANIMATIONS = frozenset(("AVIF", "GIF", "PNG", "WEBP"))

# A decoded picture has lost quality once. Pillow's default of 75 would visibly damage it again.
LOSSY_QUALITY = {"JPEG": 95, "WEBP": 95, "AVIF": 95}


def add_encode(commands: Commands) -> None:
    """Add `encode` to the commands of `sdz`."""
    parser = commands.add_parser(
        "encode",
        help="convert pictures, or files of latents, to .sdz",
        description="Convert pictures to .sdz files, and also files of latents: ComfyUI's .latent"
        " files, sd-scripts' .npz caches, and others. From a folder all pictures are taken or, if"
        " it has none, all files of latents.",
    )
    add_inputs(parser)
    add_output(parser)
    precision = add_size(parser)
    precision.add_argument(
        "--step",
        type=positive,
        metavar="X",
        help="for latents: the quantisation step, in units of a latent; 0.3 is quality 75",
    )
    precision.add_argument(
        "--lossless",
        action="store_const",
        const="float16",
        help="for latents: keep them exactly; float16 must be able to hold them exactly",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the model that encodes pictures, default: mini; for latents: the model that made"
        " them, default: as sd-scripts names its caches, or sd1",
    )
    add_coding(parser)
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help="what the picture shows; it guides the denoising when the file is decoded",
    )
    parser.set_defaults(run=_run_encode, parser=parser)


def _run_encode(options: argparse.Namespace) -> int:
    target = output_file(options)
    if target is not None and target.suffix.lower() != ".sdz":
        refuse(options, f"-o {target}: encode writes .sdz files")
    targets = Targets(options)
    latents = LatentEncoder(options, targets)
    names = ("quality", "target_size", "model", "coding", "effort", "tune", "prompt")
    save_options = given(options, *names)

    def encode(job: Job) -> None:
        if job.source.suffix.lower() in LATENT_SUFFIXES:
            latents.encode(job)
            return
        if wrong := given(options, "step", "lossless"):
            msg = f"--{next(iter(wrong))} is for latents, this is a picture"
            raise ValueError(msg)
        if not targets.wanted(job):
            return
        with Image.open(job.source) as image:
            frames = _frames_to_encode(job.source, image)
            image.load()
            # In memory first, because encoding may take long: a process that is killed then
            # leaves no temporary file.
            encoded = io.BytesIO()
            image.save(encoded, "SDZ", **save_options, **metadata(image), **frames)
            with targets.open(job) as file:
                file.write(encoded.getbuffer())
            _report(options, job, image, all_frames=bool(frames))

    def wanted(paths: list[Path]) -> list[Path]:
        # sd-scripts keeps its caches beside the pictures.
        pictures = [] if given(options, "step", "lossless") else _pictures(paths)
        return pictures or latent_files(paths)

    def named(path: Path) -> str:
        return path.stem + ".sdz"

    found, missing = jobs(options, wanted, named, target)
    complete = each(found, encode, lambda job: job.source)
    latents.print_total()
    return int(missing or not complete)


def _pictures(paths: list[Path]) -> list[Path]:
    suffixes = PICTURE_SUFFIXES & Image.registered_extensions().keys()
    return [path for path in paths if path.suffix.lower() in suffixes]


def _frames_to_encode(path: Path, image: Image.Image) -> dict[str, Any]:
    """Options that save all frames of an animation."""
    if image.format in ANIMATIONS and getattr(image, "n_frames", 1) > 1:
        # A GIF that does not say how often it is shown is shown once.
        return {"save_all": True, "loop": image.info.get("loop", int(image.format == "GIF"))}
    complain_of_frames(path, image)
    return {}


def add_decode(commands: Commands) -> None:
    """Add `decode` to the commands of `sdz`."""
    parser = commands.add_parser(
        "decode",
        help="convert .sdz to pictures",
        description="Convert .sdz files, and all .sdz files in folders, to PNG or another format.",
    )
    add_inputs(parser)
    add_output(parser)
    parser.add_argument(
        "--format", help="png, jpg, webp, ...; default: what the name after -o ends in, or png"
    )
    parser.set_defaults(run=_run_decode, parser=parser)


def _run_decode(options: argparse.Namespace) -> int:
    target = output_file(options)
    suffix = _suffix(options, target)
    format = _format(options, suffix)
    targets = Targets(options)

    def decode(job: Job) -> None:
        if not targets.wanted(job):
            return
        with open_sdz(job.source) as image:
            all_frames = format in Image.SAVE_ALL
            if not all_frames:
                complain_of_frames(job.source, image)
            frames = _frames_to_decode(image, format) if all_frames else {}
            image.load()
            quality = {"quality": LOSSY_QUALITY[format]} if format in LOSSY_QUALITY else {}
            with targets.open(job) as file:
                image.save(file, format, **quality, **options_for(image, format), **frames)
            _report(options, job, image, all_frames=all_frames)

    def named(path: Path) -> str:
        return path.stem + suffix

    found, missing = jobs(options, sdz_files, named, target)
    complete = each(found, decode, lambda job: job.source)
    return int(missing or not complete)


def _suffix(options: argparse.Namespace, target: Path | None) -> str:
    """The suffix of the pictures to write, as --format or -o says."""
    of_target = ".png" if target is None else target.suffix.lower()
    if options.format is None:
        return of_target
    asked: str = "." + options.format.lower().removeprefix(".")
    if target is not None and _writable(asked) != _writable(of_target):
        refuse(options, f"--format {options.format} contradicts -o {target}")
    return asked


def _format(options: argparse.Namespace, suffix: str) -> str:
    """Pillow's name of the format to write; a wrong command line if it cannot be written."""
    format = _writable(suffix)
    if format is None:
        refuse(options, f"Pillow cannot write pictures to {suffix} files here")
    return format


def _writable(suffix: str) -> str | None:
    """The format that Pillow writes to files with this suffix; None for .sdz itself."""
    format = Image.registered_extensions().get(suffix)
    return format if format in Image.SAVE and format != "SDZ" else None


def _frames_to_decode(image: Image.Image, format: str) -> dict[str, Any]:
    """Options that save all frames of an .sdz file, each for its time."""
    frames = getattr(image, "n_frames", 1)
    if frames == 1:
        return {}
    options: dict[str, Any] = {"save_all": True}
    if "duration" in image.info:
        durations = []
        for number in range(frames):
            image.seek(number)
            durations.append(image.info["duration"])
        image.seek(0)
        options["duration"] = durations
        # A GIF that is shown once does not say how often it is shown.
        once = format == "GIF" and image.info["loop"] == 1
        options["loop"] = None if once else image.info["loop"]
    return options


def _report(options: argparse.Namespace, job: Job, image: Image.Image, *, all_frames: bool) -> None:
    """With --verbose: print what was written, its size and its rate."""
    if not options.verbose:
        return
    size = job.target.stat().st_size
    frames = getattr(image, "n_frames", 1) if all_frames else 1
    bits = 8 * size / (image.width * image.height * frames)
    print(f"{job.source} -> {job.target}: {size:,} bytes, {bits:.3f} bits per pixel")
