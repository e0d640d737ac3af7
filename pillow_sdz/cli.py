"""The `sdz` command: encode, decode, latents, info, compare, models and demo.

Exit status: 0 where everything was done, 1 where a file could not be (the others were),
2 for a wrong command line, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO, TypeVar

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from . import __version__, catalogue, chunks, models_cli, progress
from .atomic import replacing

if TYPE_CHECKING:
    from .interchange import LatentFile

# What `sdz encode FOLDER` takes from a folder, where Pillow can read it. Not everything that
# Pillow has a name for: a film or a PostScript file in a folder of photos is no photo.
# fmt: off
PICTURE_SUFFIXES = frozenset((
    ".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".j2k",
    ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".jxl", ".pbm", ".pgm", ".png", ".pnm",
    ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp",
))
# fmt: on
# Formats whose frames follow one another in time. What others hold several of may be the pages of
# a document, or what a telephone has besides the photo.
ANIMATIONS = frozenset(("AVIF", "GIF", "PNG", "WEBP"))
# Files of latents, and what `sdz encode FOLDER` takes from a folder without pictures.
LATENT_SUFFIXES = frozenset((".latent", ".npz", ".npy", ".safetensors"))
# But not what sd-scripts caches of its text encoders beside them.
TEXT_ENDINGS = ("_te", "_te_outputs")
# How files are called that `sdz encode` made of a cache with several resolutions, up to the suffix.
RESOLUTION = re.compile(r"(.+)\.(\d+x\d+)")

# A decoded picture is a reconstruction already; Pillow's default of 75 would visibly damage
# it a second time.
LOSSY_QUALITY = {"JPEG": 95, "WEBP": 95, "AVIF": 95}

PATIENCE = 1  # seconds of a stage of a picture until its progress is shown; chosen

UNITS = {"": 1, "k": 1000, "m": 1000**2, "ki": 1024, "mi": 1024**2}

Item = TypeVar("Item")


@dataclass(frozen=True)
class Job:
    """A file to read, and the file to write.

    Where several are to be written together, ``others`` are those besides the first.
    """

    source: Path
    target: Path
    others: tuple[Path, ...] = ()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (``sys.argv`` unless given) and return the exit status."""
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        # File names need not be text that the terminal can show.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status: int = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader went away, as in `sdz info *.sdz | head`: be as quiet as a program that
        # the signal killed, also when Python flushes stdout on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # stdout is full, say
        _complain("stdout", _reason(error))
        return 1
    return status


def byte_count(text: str) -> int:
    """A size as people write it, in bytes: 5000, 5k, 5kB, 4KiB, 1.5MB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?((?:[km]i?)?)b?", text.strip(), re.IGNORECASE)
    size = round(float(match[1]) * UNITS[match[2].lower()]) if match else 0
    if size < 1:
        msg = f"not a size in bytes: {text!r} (such as 5000, 5kB or 4KiB)"
        raise argparse.ArgumentTypeError(msg)
    return size


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            msg = f"{text!r} is not a whole number from {low} to {high}"
            raise argparse.ArgumentTypeError(msg)
        return int(text)

    return parse


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        msg = f"{text!r} is not a number above 0"
        raise argparse.ArgumentTypeError(msg)
    return number


def _size_options(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """How large and how good a file shall be; the group to which more such options belong."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "-q",
        "--quality",
        type=_integer(1, 100),
        metavar="N",
        help="1 (smallest) to 100 (best); default 75",
    )
    group.add_argument(
        "-t",
        "--target-size",
        type=byte_count,
        metavar="SIZE",
        help="the best quality in at most so many bytes: 5000, 5kB, 4KiB",
    )
    return group


def _coding_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--coding", choices=catalogue.CODING_NAMES, help="default context")
    parser.add_argument(
        "--effort", type=_integer(0, 9), metavar="N", help="0 (fast) to 9 (small); default 4"
    )
    parser.add_argument(
        "--tune", choices=chunks.TUNES, help="what the decoder aims at; default psnr"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sdz", description="Keep pictures as .sdz, a few kilobytes each, and get them back."
    )
    parser.add_argument("--version", action="version", version=f"sdz {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    output = argparse.ArgumentParser(add_help=False)
    output.add_argument(
        "-o",
        "--output",
        type=Path,
        help="a file name for one input, otherwise a folder; default: beside each input",
    )
    existing = output.add_mutually_exclusive_group()
    existing.add_argument("-f", "--force", action="store_true", help="replace files that exist")
    existing.add_argument(
        "--skip-existing", action="store_true", help="leave them, and go on with what is missing"
    )
    output.add_argument("-v", "--verbose", action="store_true", help="a line for each file written")

    encode = commands.add_parser(
        "encode",
        parents=[output],
        help="pictures, or files of latents, to .sdz",
        description="Encode pictures to .sdz files, and ComfyUI's .latent files, sd-scripts' .npz"
        " caches and other files of latents. Of a folder all pictures are taken, or, where it has"
        " none, all latents.",
    )
    encode.add_argument("inputs", nargs="+", type=Path, metavar="INPUT")
    precision = _size_options(encode)
    precision.add_argument(
        "--step",
        type=_positive,
        metavar="X",
        help="of latents: the quantisation step, in their own unit; 0.3 is quality 75",
    )
    precision.add_argument(
        "--lossless",
        action="store_const",
        const="float16",
        help="of latents: keep them exactly; they must be exact in float16",
    )
    encode.add_argument(
        "--model",
        metavar="NAME",
        help="the model to encode with, default mini; of latents: whose they are, default as"
        " sd-scripts names its caches, or sd1",
    )
    _coding_options(encode)
    encode.add_argument(
        "--prompt", metavar="TEXT", help="what the picture shows, for denoising when it is decoded"
    )
    encode.set_defaults(run=_run_encode, parser=encode)

    decode = commands.add_parser(
        "decode",
        parents=[output],
        help=".sdz to pictures",
        description="Decode .sdz files, and all of them in folders, to PNG or another format.",
    )
    decode.add_argument("inputs", nargs="+", type=Path, metavar="INPUT")
    decode.add_argument("--format", help="png, jpg, webp, ...; default: as -o ends, or png")
    decode.set_defaults(run=_run_decode, parser=decode)

    latents = commands.add_parser(
        "latents",
        parents=[output],
        help=".sdz to files of latents",
        description="Write the latents of .sdz files, and of all of them in folders, as ComfyUI's"
        " .latent, sd-scripts' .npz, or plain .npz, .npy or .safetensors files.",
    )
    latents.add_argument("inputs", nargs="+", type=Path, metavar="INPUT")
    latents.add_argument(
        "--format",
        choices=sorted(suffix[1:] for suffix in LATENT_SUFFIXES),
        help="default: as -o ends, or npz",
    )
    latents.set_defaults(run=_run_latents, parser=latents)

    info = commands.add_parser(
        "info", help="what is in .sdz files", description="Tell what is in .sdz files."
    )
    info.add_argument("inputs", nargs="+", type=Path, metavar="INPUT")
    info.add_argument("--json", action="store_true", help="a JSON list with an object per file")
    info.set_defaults(run=_run_info, parser=info)

    compare = commands.add_parser(
        "compare",
        help="pictures as .sdz, JPEG, WebP and AVIF of the same size",
        description="Encode pictures as .sdz and, in as many bytes, as JPEG, WebP and AVIF; print"
        " how close each is to the original, and write a page that shows them.",
    )
    compare.add_argument("inputs", nargs="+", type=Path, metavar="IMAGE")
    compare.add_argument(
        "--report",
        type=Path,
        metavar="FILE.html",
        help="write a page with the pictures, which needs nothing but itself and a browser;"
        " 5 to 8 bytes for each pixel of an original. A page of that name is replaced",
    )
    compare.add_argument("--json", action="store_true", help="a JSON list with an object per image")
    _size_options(compare)
    compare.add_argument(
        "--model", metavar="NAME", help="the model to encode .sdz with, default mini"
    )
    _coding_options(compare)
    compare.set_defaults(run=_run_compare, parser=compare)

    models_cli.add_parser(commands)

    demo = commands.add_parser(
        "demo",
        help="compare .sdz, JPEG and WebP on a photo",
        description="Encode a photo that the package carries, as .sdz and, in as many bytes, as"
        " JPEG and WebP; print how close each is and write them side by side.",
    )
    _size_options(demo)
    demo.add_argument(
        "-o", "--output", type=Path, default=Path("."), help="the folder to write to; default ."
    )
    demo.set_defaults(run=_run_demo, parser=demo)
    return parser


# encode and decode


def _run_encode(options: argparse.Namespace) -> int:
    output: Path | None = options.output
    to_file = output is not None and _names_file(output, options)
    if output is not None and to_file and output.suffix.lower() != ".sdz":
        options.parser.error(f"-o {output}: encode writes .sdz files")
    targets = _Targets(options)
    latents = _LatentEncoder(options, targets)
    names = ("quality", "target_size", "model", "coding", "effort", "tune", "prompt")
    save_options = _given(options, *names)

    def encode(job: Job) -> None:
        if job.source.suffix.lower() in LATENT_SUFFIXES:
            latents.encode(job)
            return
        if wrong := _given(options, "step", "lossless"):
            msg = f"--{next(iter(wrong))} is for latents, this is a picture"
            raise ValueError(msg)
        if not targets.wanted(job):
            return
        with Image.open(job.source) as image:
            frames: dict[str, Any] = {}
            if image.format in ANIMATIONS and getattr(image, "n_frames", 1) > 1:
                # A GIF that does not say how often is shown once.
                loop = image.info.get("loop", int(image.format == "GIF"))
                frames = {"save_all": True, "loop": loop}
            else:
                _complain_of_frames(job.source, image)
            image.load()
            # In memory first: a process that is killed while it encodes, which may take long,
            # leaves no temporary file.
            encoded = io.BytesIO()
            image.save(encoded, "SDZ", **save_options, **_metadata(image), **frames)
            with targets.open(job) as file:
                file.write(encoded.getbuffer())
            _tell(options, job, image, all_frames=bool(frames))

    def wanted(names: list[Path]) -> list[Path]:
        suffixes = PICTURE_SUFFIXES & Image.registered_extensions().keys()
        pictures = [path for path in names if path.suffix.lower() in suffixes]
        of_latents = [
            path
            for path in names
            if path.suffix.lower() in LATENT_SUFFIXES and not path.stem.endswith(TEXT_ENDINGS)
        ]
        # sd-scripts keeps its caches beside the pictures.
        if _given(options, "step", "lossless"):
            return of_latents
        return pictures or of_latents

    def named(path: Path) -> str:
        return path.stem + ".sdz"

    jobs, missing = _jobs(options, wanted, named, output if to_file else None)
    complete = _each(jobs, encode, lambda job: job.source)
    latents.tell_total()
    return int(missing or not complete)


def _complain_of_frames(path: Path, image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        _complain(path, f"only the first of its {frames} frames is kept")


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that were given."""
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _run_decode(options: argparse.Namespace) -> int:
    parser: argparse.ArgumentParser = options.parser
    output: Path | None = options.output
    to_file = output is not None and _names_file(output, options)
    suffix = ".png"
    if output is not None and to_file:
        suffix = output.suffix.lower()
    if options.format is not None:
        asked = "." + options.format.lower().removeprefix(".")
        if to_file and _format(asked) != _format(suffix):
            parser.error(f"--format {options.format} contradicts -o {output}")
        suffix = asked
    format = _format(suffix)
    if format is None:
        name = options.format or f"-o {output}"
        parser.error(f"{name}: no format that pictures can be written in here")

    targets = _Targets(options)

    def decode(job: Job) -> None:
        if not targets.wanted(job):
            return
        with _open_sdz(job.source) as image:
            all_frames = format in Image.SAVE_ALL
            if not all_frames:
                _complain_of_frames(job.source, image)
            frames = _frame_options(image, format) if all_frames else {}
            image.load()
            with targets.open(job) as file:
                image.save(file, format, **_output_options(image, format), **frames)
            _tell(options, job, image, all_frames=all_frames)

    def named(path: Path) -> str:
        return path.stem + suffix

    jobs, missing = _jobs(options, _sdz_files, named, output if to_file else None)
    complete = _each(jobs, decode, lambda job: job.source)
    return int(missing or not complete)


def _sdz_files(paths: list[Path]) -> list[Path]:
    return [path for path in paths if path.suffix.lower() == ".sdz"]


def _names_file(
    output: Path, options: argparse.Namespace, suffixes: Iterable[str] | None = None
) -> bool:
    """Whether -o is a file's name: for one input that is no folder, by its known suffix.

    Those are the given ``suffixes``, or those of pictures.
    """
    if len(options.inputs) != 1 or options.inputs[0].is_dir() or output.is_dir():
        if output.exists() and not output.is_dir():
            options.parser.error(f"-o {output} is not a folder")
        return False
    if output.exists() or output.suffix.lower() in (suffixes or Image.registered_extensions()):
        return True
    if output.suffix[1:].isalpha():
        # Rather than a folder of that name, which nobody wanted; a folder v1.2 is one.
        options.parser.error(f"-o {output}: no format is called {output.suffix} here")
    return False


def _format(suffix: str) -> str | None:
    """The format that Pillow writes to files with this suffix, unless it is .sdz itself."""
    format = Image.registered_extensions().get(suffix)
    return format if format in Image.SAVE and format != "SDZ" else None


def _jobs(
    options: argparse.Namespace,
    wanted: Callable[[list[Path]], list[Path]],
    named: Callable[[Path], str],
    target: Path | None,
) -> tuple[list[Job], bool]:
    """A job for every input, to ``target`` or by its new name, and whether a folder had none.

    ``wanted`` picks from the files of a folder, ``named`` says how the result is called.
    """
    jobs: list[Job] = []
    missing = False
    for source in options.inputs:
        if not source.is_dir():
            folder = options.output or source.parent
            jobs.append(Job(source, target or folder / named(source)))
            continue
        found = wanted(_files_below(source))
        if not found:
            _complain(source, "nothing to convert in this folder")
            missing = True
        for path in found:
            folder = (options.output or source) / path.parent.relative_to(source)
            jobs.append(Job(path, folder / named(path)))
    return jobs, missing


class _Targets:
    """The files that a command writes: none of them twice, none that exists unless forced."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._force: bool = options.force
        self._skip: bool = options.skip_existing
        self._taken: dict[Path, Path] = {}  # what this very command writes, and from what

    def wanted(self, job: Job) -> bool:
        """Whether to write the target, before any work is done; False where it is to be skipped.

        OSError or ValueError where it may not be written.
        """
        other = self._taken.setdefault(job.target.absolute(), job.source)
        if other != job.source:
            msg = f"{job.target} is written from {other} already"
            raise FileExistsError(msg)
        if job.target.exists():
            if job.source.exists() and job.source.samefile(job.target):
                msg = "would overwrite itself"
                raise ValueError(msg)
            if self._skip:
                return False
            if not self._force:
                msg = f"{job.target} exists (--force replaces it, --skip-existing leaves it)"
                raise FileExistsError(msg)
        return True

    @contextlib.contextmanager
    def open(self, job: Job) -> Iterator[IO[bytes]]:
        """The target, in a folder made for it; complete or not there."""
        folder = Path(os.path.realpath(job.target)).parent
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(job.target) as file:
            yield file


def _files_below(folder: Path) -> list[Path]:
    return sorted(Path(parent, name) for parent, _, names in os.walk(folder) for name in names)


def _open_sdz(path: Path) -> Image.Image:
    try:
        return Image.open(path, formats=["SDZ"])
    except UnidentifiedImageError as error:
        msg = "not an .sdz file"
        raise OSError(msg) from error


def _metadata(image: Image.Image) -> dict[str, bytes]:
    """The EXIF, XMP and ICC profile of a loaded picture, as options for saving it."""
    found: dict[str, Any] = {name: image.info.get(name) for name in ("icc_profile", "xmp", "exif")}
    if not found["exif"]:
        # Formats that keep EXIF elsewhere, TIFF above all. TIFF's own tags tell how its pixels
        # are stored, which is no property of the picture, so only those on it are taken.
        stored = image.getexif()
        kept = Image.Exif()
        for tag in (
            ExifTags.Base.ImageDescription,
            ExifTags.Base.Make,
            ExifTags.Base.Model,
            ExifTags.Base.Orientation,
            ExifTags.Base.Software,
            ExifTags.Base.DateTime,
            ExifTags.Base.Artist,
            ExifTags.Base.Copyright,
        ):
            if tag in stored:
                kept[tag] = stored[tag]
        for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            if tags := stored.get_ifd(ifd):
                kept[ifd] = tags
        found["exif"] = kept.tobytes() if len(kept) else None
    if isinstance(found["xmp"], str):
        found["xmp"] = found["xmp"].encode()
    return {name: data for name, data in found.items() if data}


def _output_options(image: Image.Image, format: str) -> dict[str, Any]:
    """Options that carry a decoded picture's metadata over, where the format has room for it."""
    options: dict[str, Any] = dict(_metadata(image))
    if format in LOSSY_QUALITY:
        options["quality"] = LOSSY_QUALITY[format]
    xmp = options.get("xmp")
    if xmp and format == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
        options["pnginfo"] = text
    if format == "TIFF":
        tags = Image.Exif()
        if "exif" in options:
            tags.load(options.pop("exif"))
        if xmp:
            tags[ExifTags.Base.XMLPacket] = xmp
        options["tiffinfo"] = tags
    return options


def _frame_options(image: Image.Image, format: str) -> dict[str, Any]:
    """Options with which all frames of an .sdz file are saved, shown as they are in it."""
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
        # A GIF that is shown once does not say how often.
        once = format == "GIF" and image.info["loop"] == 1
        options["loop"] = None if once else image.info["loop"]
    return options


def _tell(
    options: argparse.Namespace,
    job: Job,
    image: Image.Image | None = None,
    *,
    all_frames: bool = False,
) -> None:
    if options.verbose:
        size = job.target.stat().st_size
        rate = ""
        if image is not None:
            frames = getattr(image, "n_frames", 1) if all_frames else 1
            bits = 8 * size / (image.width * image.height * frames)
            rate = f", {bits:.3f} bits per pixel"
        print(f"{job.source} -> {job.target}: {size:,} bytes{rate}")


# latents


class _LatentEncoder:
    """Encodes files of latents, and counts what that saves."""

    def __init__(self, options: argparse.Namespace, targets: _Targets) -> None:
        self._options = options
        self._targets = targets
        self._files = self._before = self._after = 0
        self._assumed = False

    def encode(self, job: Job) -> None:
        """Encode a file; one with several resolutions to as many, named after them."""
        from . import interchange

        if wrong := _given(self._options, "target_size", "tune"):
            msg = f"--{next(iter(wrong)).replace('_', '-')} is for pictures, these are latents"
            raise ValueError(msg)
        parts = interchange.read(job.source)
        targets = [job.target]
        if len(parts) > 1:
            targets = [job.target.with_suffix(f".{p.origin.resolution[1:]}.sdz") for p in parts]
        for part, target in zip(parts, targets, strict=True):
            self._encode(part, replace(job, target=target))
        self._files += 1
        self._before += job.source.stat().st_size
        self._after += sum(target.stat().st_size for target in targets)

    def _encode(self, part: LatentFile, job: Job) -> None:
        from . import latents

        if not self._targets.wanted(job):
            return
        settings = ("quality", "step", "lossless", "coding", "effort", "prompt")
        with self._targets.open(job) as file:
            latents.imported(
                part, file, model=self._model(job, part), **_given(self._options, *settings)
            )
        _tell(self._options, job)

    def _model(self, job: Job, part: LatentFile) -> str:
        from . import interchange

        model: str | None = self._options.model or interchange.model_named_by(job.source)
        if model is not None:
            return model
        channels = part.latents.shape[-3]
        if channels != 4:
            msg = f"latents of {channels} channels: --model must say whose (sd3, flux, ...)"
            raise ValueError(msg)
        if not self._assumed:
            _complain(job.source, "taken for latents of sd1 (--model names another)")
            self._assumed = True
        return "sd1"

    def tell_total(self) -> None:
        """Print what was saved, where any latents were encoded."""
        if self._files:
            files = "1 file" if self._files == 1 else f"{self._files:,} files"
            sizes = f"{self._before:,} bytes -> {self._after:,} bytes"
            print(f"latents of {files}: {sizes}, ratio {self._before / self._after:.2f}")


def _run_latents(options: argparse.Namespace) -> int:
    output: Path | None = options.output
    to_file = output is not None and _names_file(output, options, LATENT_SUFFIXES)
    suffix = f".{options.format or 'npz'}"
    if output is not None and to_file:
        if options.format is not None and output.suffix.lower() != suffix:
            options.parser.error(f"--format {options.format} contradicts -o {output}")
        suffix = output.suffix.lower()
        if suffix not in LATENT_SUFFIXES:
            options.parser.error(f"-o {output}: no format of latents")
    targets = _Targets(options)

    def named(path: Path) -> str:
        match = RESOLUTION.fullmatch(path.stem) if suffix == ".npz" else None
        return (match[1] if match else path.stem) + suffix

    def convert(job: Job) -> None:
        from . import interchange, latents

        if not targets.wanted(job):
            return
        parts = [latents.exported(path, suffix) for path in (job.source, *job.others)]
        with targets.open(job) as file:
            interchange.write(file, suffix, parts)
        _tell(options, job)

    jobs, missing = _jobs(options, _sdz_files, named, output if to_file else None)
    complete = _each(_together(jobs), convert, lambda job: job.source)
    return int(missing or not complete)


def _together(jobs: list[Job]) -> list[Job]:
    """The jobs, those joined whose sources are the resolutions of what was one cache."""
    joined: dict[object, Job] = {}
    for job in jobs:
        together = RESOLUTION.fullmatch(job.source.stem) and job.target.stem != job.source.stem
        key = (job.source.parent, job.target) if together else (job.source, len(joined))
        first = joined.setdefault(key, job)
        if first is not job:
            joined[key] = replace(first, others=(*first.others, job.source))
    return list(joined.values())


# info


def _run_info(options: argparse.Namespace) -> int:
    described: list[dict[str, Any]] = []

    def describe(path: Path) -> None:
        with _open_sdz(path) as image:
            size = path.stat().st_size
            frames = getattr(image, "n_frames", 1)
            image.seek(frames - 1)
            described.append(
                {
                    "file": str(path),
                    "width": image.width,
                    "height": image.height,
                    "mode": image.mode,
                    "frames": frames,
                    "duration": image.info.get("timestamp", 0) + image.info.get("duration", 0),
                    "loop": image.info.get("loop"),
                    "bytes": size,
                    "bits_per_pixel": round(8 * size / (image.width * image.height * frames), 4),
                    "metadata": {name: len(data) for name, data in _metadata(image).items()},
                    "sdz": image.info["sdz"],
                }
            )

    paths: list[Path] = []
    for path in options.inputs:
        if path.is_dir():
            paths += _sdz_files(_files_below(path))
        else:
            paths.append(path)
    complete = _each(paths, describe, lambda path: path)
    if options.json:
        print(json.dumps(described, indent=2))
    elif described:
        print("\n\n".join(_text(entry) for entry in described))
    return int(not complete)


def _text(entry: dict[str, Any]) -> str:
    """What a person reads of one file."""
    sdz = entry["sdz"]
    lines = [
        ("size", f"{entry['width']}x{entry['height']} {entry['mode']}"),
        *([("frames", _frames_text(entry))] if entry["frames"] > 1 else []),
        ("bytes", f"{entry['bytes']:,} ({entry['bits_per_pixel']:.3f} bits per pixel)"),
        *((f"  {part}", f"{size:,}") for part, size in sdz["bytes"].items() if size),
        *((name, f"{sdz[name]:g}") for name in ("quality", "step") if name in sdz),
        ("model", sdz["model"]),
        ("coding", sdz["coding"]),
        ("latents", "x".join(map(str, sdz["latents"])) + f", factor {sdz['factor']}"),
    ]
    if "prompt" in sdz:
        # What a terminal might take for a command does not reach it.
        text = "".join(c if c.isprintable() else " " for c in sdz["prompt"])
        lines.append(("prompt", " ".join(text.split())))
    if entry["metadata"]:
        parts = (f"{name} {size:,}" for name, size in entry["metadata"].items())
        lines.append(("metadata", ", ".join(parts) + " bytes"))
    return "\n".join([entry["file"], *(f"  {name:<12}{value}" for name, value in lines)])


def _frames_text(entry: dict[str, Any]) -> str:
    """How many frames a file has, and when they are shown where it says so."""
    if entry["loop"] is None:
        return f"{entry['frames']:,}"
    seconds = f"{entry['duration'] / 1000:g}"
    often = f"{entry['loop']:,} times" if entry["loop"] else "for ever"
    return f"{entry['frames']:,} in {seconds} s, {often}"


# compare and demo


def _run_compare(options: argparse.Namespace) -> int:
    from . import compare  # numpy, which the other commands need not wait for

    page: Path | None = options.report
    if page is not None and page.suffix.lower() not in (".html", ".htm"):
        # Also so that no picture is ever replaced, named last by mistake.
        options.parser.error(f"--report {page}: the page is an .html file")
    names = ("quality", "target_size", "model", "coding", "effort", "tune")
    save_options = _given(options, *names)
    figures: list[dict[str, Any]] = []
    sections: list[str] = []

    def compare_one(path: Path) -> None:
        with Image.open(path) as image:
            _complain_of_frames(path, image)
            comparison = compare.compare(image, str(path), **save_options)
        if page is not None:
            sections.append(compare.section(comparison))
        figures.append(comparison.figures())
        if not options.json:
            print(f"{path}: {comparison.heading()}\n{comparison.table()}\n")

    complete = _each(options.inputs, compare_one, lambda path: path)
    if options.json:
        print(json.dumps(figures, indent=2))
    if page is not None and sections:
        try:
            page.parent.mkdir(parents=True, exist_ok=True)
            with replacing(page) as file:
                file.write(compare.report(sections).encode())
        except OSError as error:
            _complain(page, _reason(error, page))
            return 1
        if not options.json:
            print(page)
    return int(not complete)


def _run_demo(options: argparse.Namespace) -> int:
    from . import demo  # numpy, which the other commands need not wait for

    try:
        result = demo.run(quality=options.quality, target_size=options.target_size)
        paths = demo.write(result, options.output)
    except (OSError, ValueError) as error:
        _complain("demo", _reason(error))
        return 1
    print(result.table())
    print()
    for path in paths:
        print(path)
    return 0


# files one after another, and what is said about them


def _each(
    items: Sequence[Item], work: Callable[[Item], None], path: Callable[[Item], Path]
) -> bool:
    """Work on every item, failures or not; whether all succeeded."""
    complete = True
    for item in _progress(items):
        try:
            with _progress_within():
                work(item)
        except BrokenPipeError:
            raise
        except Exception as error:  # whatever a plugin raises, the other files are still done
            _complain(path(item), _reason(error, path(item)))
            complete = False
    return complete


def _progress(items: Sequence[Item]) -> Iterable[Item]:
    if len(items) < 2 or not sys.stderr.isatty():
        return items
    from tqdm import tqdm

    return tqdm(items, unit="file", file=sys.stderr)


@contextlib.contextmanager
def _progress_within() -> Iterator[None]:
    """Show how far a large picture has come, under the bar of the files."""
    if not sys.stderr.isatty():
        yield
        return
    from tqdm import tqdm

    bar: tqdm[Any] | None = None
    of_stage = ""

    def listener(stage: str, done: int, total: int) -> None:
        nonlocal bar, of_stage
        if bar is None or stage != of_stage:
            of_stage = stage
            if bar is not None:
                bar.close()
            bar = tqdm(
                desc=f"  {stage}",
                total=total,
                unit="part",
                file=sys.stderr,
                position=1,
                leave=False,
                delay=PATIENCE,
                mininterval=0,  # parts are few
            )
        bar.update(done - bar.n)

    try:
        with progress.listening(listener):
            yield
    finally:
        if bar is not None:
            bar.close()


def _reason(error: Exception, about: Path | None = None) -> str:
    """One line on what went wrong, for a message that names the file it is about already."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture that Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        other = error.filename is not None and str(error.filename) != str(about)
        return f"{error.filename}: {error.strerror}" if other else error.strerror
    text = " ".join(str(error).split())
    if isinstance(error, (OSError, ValueError)) and text:
        return text
    return f"{type(error).__name__}: {text}"


def _complain(about: str | Path, message: str) -> None:
    line = f"sdz: {about}: {message}"
    if "tqdm" in sys.modules:  # a progress bar may be on this line
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _complain("warning", " ".join(str(message).split()))
