"""`sdz decode`: .sdz to pictures."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .arguments import STREAM, Commands, add_inputs, add_jobs, add_output, add_strip, refuse
from .files import (
    Job,
    find,
    jobs,
    open_sdz,
    readable,
    sdz_files,
    size_of,
    target_file,
    without_clashes,
)
from .formats import Writer
from .pictures import frame_count, register_plugins, warn_of_frames
from .reports import Report
from .running import close, each
from .targets import Targets


def add_decode(commands: Commands) -> None:
    """Add `decode` to the commands of `sdz`."""
    parser = commands.add_parser(
        "decode",
        help="convert .sdz to pictures",
        description="Convert .sdz files, and all .sdz files in folders, to PNG or another format.",
    )
    add_inputs(parser, "an .sdz file")
    add_output(parser)
    parser.add_argument(
        "--format", help="png, jpg, webp, ...; default: what the name after -o ends in, or png"
    )
    add_strip(parser)
    add_jobs(parser)
    parser.set_defaults(run=_run, parser=parser)


def _run(options: argparse.Namespace) -> int:
    register_plugins()
    target = target_file(options)
    suffix = _suffix(options, target)
    format = _writable(suffix)
    if format is None:
        refuse(options, f"Pillow cannot write pictures to {suffix or 'such'} files here")

    found = find(options.inputs, sdz_files, ".sdz files")
    planned = without_clashes(jobs(options, found, suffix, target))
    targets = Targets(options.force, options.skip_existing)
    decoder = Decoder(format, targets, strip=options.strip, verbose=options.verbose)
    summary = each(decoder, planned, jobs=options.jobs, stdout_is_data=target == STREAM)
    return close(summary, found, several=len(planned) > 1)


def _suffix(options: argparse.Namespace, target: Path | None) -> str:
    """The suffix of the pictures to write, as --format or -o says."""
    named = target is not None and target != STREAM
    of_target = target.suffix.lower() if target is not None and named else ".png"
    if options.format is None:
        return of_target
    asked: str = "." + options.format.lower().removeprefix(".")
    if named and _writable(asked) != _writable(of_target):
        refuse(options, f"--format {options.format} contradicts -o {target}")
    return asked


def _writable(suffix: str) -> str | None:
    """The format that Pillow writes to files with this suffix; None for .sdz itself."""
    format = Image.registered_extensions().get(suffix)
    return format if format in Image.SAVE and format != "SDZ" else None


@dataclass(frozen=True)
class Decoder:
    """Decodes one .sdz file."""

    format: str
    targets: Targets
    strip: bool
    verbose: bool

    def __call__(self, job: Job, report: Report) -> None:
        register_plugins()
        if not self.targets.wanted(job):
            report.skipped = True
            return
        source = readable(job.source)
        report.before = size_of(source)
        with open_sdz(source) as image:
            all_frames = self.format in Image.SAVE_ALL
            if not all_frames:
                warn_of_frames(image, report)
            image.load()
            data = Writer(image, self.format, report).write(strip=self.strip)
            self.targets.write(job, data)
            report.after = len(data)
            if self.verbose:
                frames = frame_count(image) if all_frames else 1
                report.say_written(job.target, image.width * image.height * frames)
