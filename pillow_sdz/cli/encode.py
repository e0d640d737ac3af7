"""`sdz encode`: pictures to .sdz. It hands files of latents to `latents`."""

from __future__ import annotations

import argparse
import io
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from PIL import Image

from .. import catalogue
from ..chunks import MAX_METADATA
from ..header import MAX_FACTOR
from .arguments import (
    STREAM,
    Commands,
    add_coding,
    add_inputs,
    add_jobs,
    add_output,
    add_size,
    add_strip,
    given,
    integer,
    pixels,
    positive,
    refuse,
)
from .files import LATENT_SUFFIXES, Job, find, jobs, readable, size_of, target_file, without_clashes
from .latents import LatentEncoder, is_of_latents
from .messages import reason
from .metadata import UPRIGHT, metadata, orientation, upright, upright_metadata
from .pictures import (
    changed_frames,
    frame_count,
    is_animation,
    is_picture,
    needs_scaling,
    open_picture,
    scaled,
    warn_of_frames,
)
from .reports import Report
from .running import close, each
from .targets import Targets

AnyPath = TypeVar("AnyPath", str, Path)

#: The options that are for latents, and not for pictures.
FOR_LATENTS = ("step", "lossless", "factor", "size")


def add_encode(commands: Commands) -> None:
    """Add `encode` to the commands of `sdz`."""
    parser = commands.add_parser(
        "encode",
        help="convert pictures, or files of latents, to .sdz",
        description="Convert pictures to .sdz files, and also files of latents: ComfyUI's .latent"
        " files, sd-scripts' .npz caches, and others. From a folder all pictures are taken or, if"
        " it has none or an option is for latents, all files of latents.",
    )
    add_inputs(parser, "a picture or a file of latents")
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
        const=True,
        help="for latents: keep them exactly, in bfloat16, float16 or float32",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help=f"the model that encodes pictures, default: {catalogue.DEFAULT.name}; for latents: the"
        " model that made them, default: as the file or its name says, or"
        f" {catalogue.DEFAULT_FAMILY}",
    )
    parser.add_argument(
        "--factor",
        type=integer(1, MAX_FACTOR),
        metavar="N",
        help="for latents of a model that is not known: the pixels along one side of a latent",
    )
    parser.add_argument(
        "--size",
        type=pixels,
        metavar="WxH",
        help="for latents: the picture's size in pixels; packed sequences need it",
    )
    add_coding(parser)
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help="what the picture shows; it guides the denoising when the file is decoded",
    )
    parser.add_argument(
        "--no-regions",
        dest="regions",
        action="store_false",
        default=None,
        help="let the model reconstruct text and other graphics, which otherwise are kept exactly",
    )
    parser.add_argument(
        "--protect",
        metavar="MASK",
        help="give more bytes to some places, and fewer to the rest; the value is a picture that is"
        ' white at these places, or "faces"',
    )
    add_strip(parser)
    add_jobs(parser)
    parser.set_defaults(run=_run, parser=parser)


def _run(options: argparse.Namespace) -> int:
    target = target_file(options)
    if target is not None and target != STREAM and target.suffix.lower() != ".sdz":
        refuse(options, f"-o {target}: encode writes .sdz files")
    for_latents = given(options, *FOR_LATENTS)
    wanted = partial(wanted_of, of_latents=bool(for_latents))
    found = find(options.inputs, wanted, kind_of(for_latents))
    planned = without_clashes(jobs(options, found, ".sdz", target))
    targets = Targets(options.force, options.skip_existing)
    names = ("quality", "target_size", "model", "coding", "effort", "tune", "prompt", "regions")
    encoder = Encoder(
        {**given(options, *names), **_protected(options)},
        tuple(for_latents),
        LatentEncoder.of(options, targets, planned),
        targets,
        strip=options.strip,
        verbose=options.verbose,
    )
    summary = each(encoder, planned, jobs=options.jobs, stdout_is_data=target == STREAM)
    return close(summary, found, several=len(planned) > 1)


def wanted_of(paths: list[AnyPath], *, of_latents: bool) -> list[AnyPath]:
    """The files of a folder to encode: its pictures or, if it has none, its files of latents.

    Trainers keep their caches beside the pictures.  ``of_latents`` says that only these are wanted.
    """
    pictures = [] if of_latents else [path for path in paths if is_picture(path)]
    return pictures or [path for path in paths if is_of_latents(path)]


def kind_of(for_latents: Collection[str]) -> str:
    """What a folder without files to encode has none of, if options for latents were given."""
    return "files of latents" if for_latents else "pictures and no files of latents"


def _protected(options: argparse.Namespace) -> dict[str, Any]:
    """The option for the places to protect; ends the program if the mask cannot be read."""
    from ..protection import FACES  # numpy comes with it

    if options.protect in (None, FACES):
        return given(options, "protect")
    try:
        with Image.open(options.protect) as mask:
            return {"protect": mask.convert("L")}
    except (OSError, ValueError) as error:
        refuse(options, f"--protect {options.protect}: {reason(error, Path(options.protect))}")


@dataclass(frozen=True)
class Encoder:
    """Encodes one picture, or hands a file of latents on."""

    save_options: dict[str, Any]
    for_latents: tuple[str, ...]  # options that were given, but are not for pictures
    latents: LatentEncoder
    targets: Targets
    strip: bool
    verbose: bool

    def __call__(self, job: Job, report: Report) -> None:
        if job.source.suffix.lower() in LATENT_SUFFIXES:
            self.latents(job, report)
            return
        check_for_picture(self.for_latents)
        if not self.targets.wanted(job):
            report.skipped = True
            return
        source = readable(job.source)
        report.before = size_of(source)
        data = encoded_picture(source, report, self.save_options, strip=self.strip)
        self.targets.write(job, data)
        with Image.open(io.BytesIO(data), formats=["SDZ"]) as written:
            report.after = len(data)
            report.metadata = written.info["sdz"]["bytes"]["metadata"]
            if self.verbose:
                pixels = written.width * written.height * frame_count(written)
                report.say_written(job.target, pixels)


def check_for_picture(for_latents: Iterable[str]) -> None:
    """ValueError if options were given that are for latents only."""
    for name in for_latents:
        msg = f"--{name} is for latents, this is a picture"
        raise ValueError(msg)


def encoded_picture(
    source: Path | IO[bytes],
    report: Report,
    options: dict[str, Any],
    *,
    strip: bool = False,
    turned: bool = False,
) -> bytes:
    """The picture as an .sdz file in memory: a killed process leaves no half-written file.

    ``strip`` leaves out its metadata.  If ``turned``, its pixels are turned upright.
    """
    with open_picture(source) as image:
        deep = needs_scaling(image, report)
        frames = _frame_options(image, report)
        image.load()
        kept = {} if strip else _kept(image, report)
        # Chunks of another .sdz file that this version does not know.
        unknown = [] if strip else image.info.get("sdz_chunks", [])
        turn = (strip or turned) and orientation(image) != UPRIGHT
        if not (deep or turn):
            return _saved(image, kept, options, frames, unknown)

        def changed(frame: Image.Image) -> Image.Image:
            frame = scaled(frame) if deep else frame
            return upright(frame) if turn else frame

        first, others = changed_frames(image, changed)
        if turn:
            kept = upright_metadata(kept, first)
        return _saved(first, kept, options, {**frames, **others} if frames else {}, unknown)


def _saved(
    picture: Image.Image,
    kept: dict[str, bytes],
    options: dict[str, Any],
    frames: dict[str, Any],
    unknown: list[tuple[bytes, bytes]],
) -> bytes:
    about: dict[str, Any] = {"exif": b"", "xmp": b"", "chunks": unknown, **kept}
    encoded = io.BytesIO()
    try:
        picture.save(encoded, "SDZ", **options, **about, **frames)
    except ValueError as error:
        size = sum(map(len, kept.values()))
        if "target_size" not in options or not size:
            raise
        msg = f"{error}; {size:,} bytes of metadata are kept (--strip leaves them out)"
        raise ValueError(msg) from error
    return encoded.getvalue()


def _frame_options(image: Image.Image, report: Report) -> dict[str, Any]:
    """Options that save all frames of an animation."""
    if is_animation(image):
        # A GIF that does not say how often it is shown is shown once.
        return {"save_all": True, "loop": image.info.get("loop", int(image.format == "GIF"))}
    warn_of_frames(image, report)
    return {}


def _kept(picture: Image.Image, report: Report) -> dict[str, bytes]:
    """The EXIF and XMP to keep. (The plugin itself keeps the profile, if it fits the pixels.)"""
    kept = {}
    for name, data in metadata(picture).items():
        if name == "icc_profile":
            continue
        if len(data) > MAX_METADATA:
            report.warn(f"its {name.upper()} is not kept: {len(data):,} bytes are too many")
        else:
            kept[name] = data
    return kept
