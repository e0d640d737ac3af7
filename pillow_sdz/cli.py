"""The `sdz` command: encode, decode, info and demo.

Exit status: 0 where everything was done, 1 where a file could not be (the others were),
2 for a wrong command line, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import secrets
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO, TypeVar

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from . import __version__, models_cli

# What `sdz encode FOLDER` takes from a folder, where Pillow can read it. Not everything that
# Pillow has a name for: a film or a PostScript file in a folder of photos is no photo.
# fmt: off
PICTURE_SUFFIXES = frozenset((
    ".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".j2k",
    ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".jxl", ".pbm", ".pgm", ".png", ".pnm",
    ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp",
))
# fmt: on
# A decoded picture is a reconstruction already; Pillow's default of 75 would visibly damage
# it a second time.
LOSSY_QUALITY = {"JPEG": 95, "WEBP": 95, "AVIF": 95}

UNITS = {"": 1, "k": 1000, "m": 1000**2, "ki": 1024, "mi": 1024**2}

Item = TypeVar("Item")


@dataclass(frozen=True)
class Job:
    """One picture to read, and the file to write."""

    source: Path
    target: Path


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sdz", description="Keep pictures as .sdz, a few kilobytes each, and get them back."
    )
    parser.add_argument("--version", action="version", version=f"sdz {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    size = argparse.ArgumentParser(add_help=False)
    size_options = size.add_mutually_exclusive_group()
    size_options.add_argument(
        "-q",
        "--quality",
        type=_integer(1, 100),
        metavar="N",
        help="1 (smallest) to 100 (best); default 75",
    )
    size_options.add_argument(
        "-t",
        "--target-size",
        type=byte_count,
        metavar="SIZE",
        help="the best quality in at most so many bytes: 5000, 5kB, 4KiB",
    )

    output = argparse.ArgumentParser(add_help=False)
    output.add_argument(
        "-o",
        "--output",
        type=Path,
        help="a file name for one input, otherwise a folder; default: beside each input",
    )
    output.add_argument("-f", "--force", action="store_true", help="replace files that exist")
    output.add_argument("-v", "--verbose", action="store_true", help="a line for each file written")

    encode = commands.add_parser(
        "encode",
        parents=[size, output],
        help="pictures to .sdz",
        description="Encode pictures, and all pictures in folders, to .sdz files.",
    )
    encode.add_argument("inputs", nargs="+", type=Path, metavar="INPUT")
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

    info = commands.add_parser(
        "info", help="what is in .sdz files", description="Tell what is in .sdz files."
    )
    info.add_argument("inputs", nargs="+", type=Path, metavar="INPUT")
    info.add_argument("--json", action="store_true", help="a JSON list with an object per file")
    info.set_defaults(run=_run_info, parser=info)

    models_cli.add_parser(commands)

    demo = commands.add_parser(
        "demo",
        parents=[size],
        help="compare .sdz, JPEG and WebP on a photo",
        description="Encode a photo that the package carries, as .sdz and, in as many bytes, as"
        " JPEG and WebP; print how close each is and write them side by side.",
    )
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

    save_options = {
        name: getattr(options, name)
        for name in ("quality", "target_size")
        if getattr(options, name) is not None
    }

    def encode(job: Job) -> None:
        with Image.open(job.source) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                _complain(job.source, f"only the first of its {frames} frames is kept")
            image.load()
            with _replacing(job) as file:
                image.save(file, "SDZ", **save_options, **_metadata(image))
            _tell(options, job, image.width * image.height)

    def is_picture(path: Path) -> bool:
        return path.suffix.lower() in PICTURE_SUFFIXES & Image.registered_extensions().keys()

    return _convert(options, encode, is_picture, ".sdz", output if to_file else None)


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

    def decode(job: Job) -> None:
        with _open_sdz(job.source) as image:
            image.load()
            with _replacing(job) as file:
                image.save(file, format, **_output_options(image, format))
            _tell(options, job, image.width * image.height)

    def is_sdz(path: Path) -> bool:
        return path.suffix.lower() == ".sdz"

    return _convert(options, decode, is_sdz, suffix, output if to_file else None)


def _names_file(output: Path, options: argparse.Namespace) -> bool:
    """Whether -o is a file's name: for one input that is no folder, by its known suffix."""
    if len(options.inputs) != 1 or options.inputs[0].is_dir() or output.is_dir():
        if output.exists() and not output.is_dir():
            options.parser.error(f"-o {output} is not a folder")
        return False
    if output.exists() or output.suffix.lower() in Image.registered_extensions():
        return True
    if output.suffix[1:].isalpha():
        # Rather than a folder of that name, which nobody wanted; a folder v1.2 is one.
        options.parser.error(f"-o {output}: no picture format is called {output.suffix}")
    return False


def _format(suffix: str) -> str | None:
    """The format that Pillow writes to files with this suffix, unless it is .sdz itself."""
    format = Image.registered_extensions().get(suffix)
    return format if format in Image.SAVE and format != "SDZ" else None


def _convert(
    options: argparse.Namespace,
    convert: Callable[[Job], None],
    wanted: Callable[[Path], bool],
    suffix: str,
    target: Path | None,
) -> int:
    """Convert every input to ``target``, or to its own name with ``suffix``; the exit status."""
    jobs: list[Job] = []
    failed = False
    for source in options.inputs:
        if not source.is_dir():
            folder = options.output or source.parent
            jobs.append(Job(source, target or folder / (source.stem + suffix)))
            continue
        found = _files_below(source, wanted)
        if not found:
            _complain(source, "nothing to convert in this folder")
            failed = True
        for path in found:
            folder = (options.output or source) / path.parent.relative_to(source)
            jobs.append(Job(path, folder / (path.stem + suffix)))

    taken: dict[Path, Path] = {}  # what this very command writes, and from what

    def checked(job: Job) -> None:
        other = taken.setdefault(job.target.absolute(), job.source)
        if other != job.source:
            msg = f"{job.target} is written from {other} already"
            raise FileExistsError(msg)
        if job.target.exists():
            if job.source.exists() and job.source.samefile(job.target):
                msg = "would overwrite itself"
                raise ValueError(msg)
            if not options.force:
                msg = f"{job.target} exists (--force replaces it)"
                raise FileExistsError(msg)
        convert(job)

    return int(not _each(jobs, checked, lambda job: job.source) or failed)


def _files_below(folder: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    return sorted(
        path
        for parent, _, names in os.walk(folder)
        for path in (Path(parent, name) for name in names)
        if wanted(path)
    )


def _open_sdz(path: Path) -> Image.Image:
    try:
        return Image.open(path, formats=["SDZ"])
    except UnidentifiedImageError as error:
        msg = "not an .sdz file"
        raise OSError(msg) from error


@contextlib.contextmanager
def _replacing(job: Job) -> Iterator[IO[bytes]]:
    """A file that takes the target's place once it is complete, and leaves no trace otherwise."""
    target = Path(os.path.realpath(job.target))  # a symbolic link stays one
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        # Not tempfile, whose files nobody else may read: this one's permissions follow the umask.
        with temporary.open("x+b") as file:
            yield file
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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


def _tell(options: argparse.Namespace, job: Job, pixels: int) -> None:
    if options.verbose:
        size = job.target.stat().st_size
        rate = 8 * size / pixels
        print(f"{job.source} -> {job.target}: {size:,} bytes, {rate:.3f} bits per pixel")


# info


def _run_info(options: argparse.Namespace) -> int:
    described: list[dict[str, Any]] = []

    def describe(path: Path) -> None:
        with _open_sdz(path) as image:
            size = path.stat().st_size
            described.append(
                {
                    "file": str(path),
                    "width": image.width,
                    "height": image.height,
                    "mode": image.mode,
                    "bytes": size,
                    "bits_per_pixel": round(8 * size / (image.width * image.height), 4),
                    "metadata": {name: len(data) for name, data in _metadata(image).items()},
                    "sdz": image.info["sdz"],
                }
            )

    paths: list[Path] = []
    for path in options.inputs:
        if path.is_dir():
            paths += _files_below(path, lambda p: p.suffix.lower() == ".sdz")
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
        ("bytes", f"{entry['bytes']:,} ({entry['bits_per_pixel']:.3f} bits per pixel)"),
        *((f"  {part}", f"{size:,}") for part, size in sdz["bytes"].items() if size),
        ("quality", f"{sdz['quality']:g}"),
        ("model", sdz["model"]),
        ("coding", sdz["coding"]),
        ("latents", "x".join(map(str, sdz["latents"])) + f", factor {sdz['factor']}"),
    ]
    if entry["metadata"]:
        parts = (f"{name} {size:,}" for name, size in entry["metadata"].items())
        lines.append(("metadata", ", ".join(parts) + " bytes"))
    return "\n".join([entry["file"], *(f"  {name:<12}{value}" for name, value in lines)])


# demo


def _run_demo(options: argparse.Namespace) -> int:
    from . import demo  # numpy, which the other commands need not wait for

    try:
        result = demo.run(quality=options.quality, target_size=options.target_size)
        paths = result.write(options.output)
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
