"""Files of latents to .sdz (`sdz encode`), and back (`sdz latents`)."""

from __future__ import annotations

import argparse
import io
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from .arguments import STREAM, Commands, add_inputs, add_jobs, add_output, given, refuse
from .files import (
    LATENT_SUFFIXES,
    Job,
    find,
    jobs,
    readable,
    sdz_files,
    size_of,
    target_file,
    without_clashes,
)
from .reports import Report
from .running import close, each
from .targets import Targets

if TYPE_CHECKING:
    from ..interchange import LatentFile

# sd-scripts caches what its text encoders return beside the latents, under these names.
TEXT_ENDINGS = ("_te", "_te_outputs")

# A cache with several resolutions becomes several .sdz files, whose names end in this.
RESOLUTION = re.compile(r"(.+)\.(\d+x\d+)")


def latent_files(paths: list[Path]) -> list[Path]:
    """Those of the paths whose names are those of files of latents."""
    return [
        path
        for path in paths
        if path.suffix.lower() in LATENT_SUFFIXES and not path.stem.endswith(TEXT_ENDINGS)
    ]


@dataclass(frozen=True)
class LatentEncoder:
    """Encodes one file of latents."""

    settings: dict[str, Any]
    model: str | None
    for_pictures: tuple[str, ...]  # options that were given, but are not for latents
    targets: Targets
    verbose: bool

    @classmethod
    def of(cls, options: argparse.Namespace, targets: Targets) -> Self:
        """The encoder for a command line."""
        return cls(
            given(options, "quality", "step", "lossless", "coding", "effort", "prompt"),
            options.model,
            tuple(given(options, "target_size", "tune")),
            targets,
            options.verbose,
        )

    def __call__(self, job: Job, report: Report) -> None:
        """Encode a file; if it has several resolutions, write a file for each."""
        from .. import interchange

        if self.for_pictures:
            name = self.for_pictures[0].replace("_", "-")
            msg = f"--{name} is for pictures, these are latents"
            raise ValueError(msg)
        source = readable(job.source)
        parts = interchange.read(job.source)
        targets = [job.target]
        if len(parts) > 1:
            if job.target == STREAM:
                msg = f"it has {len(parts)} resolutions, standard output takes one file"
                raise ValueError(msg)
            targets = [job.target.with_suffix(f".{p.origin.resolution[1:]}.sdz") for p in parts]
        written = [
            self._encode(part, replace(job, target=target), report)
            for part, target in zip(parts, targets, strict=True)
        ]
        report.skipped = not any(written)
        if not report.skipped:
            report.before = size_of(source)

    def _encode(self, part: LatentFile, job: Job, report: Report) -> bool:
        """Write one .sdz file; False if it is there already and skipped."""
        from .. import latents

        if not self.targets.wanted(job):
            return False
        file = io.BytesIO()
        latents.imported(part, file, model=self._model(job, part, report), **self.settings)
        data = file.getbuffer()
        self.targets.write(job, data)
        report.after += len(data)
        if self.verbose:
            report.say(f"{job.source} -> {job.target}: {len(data):,} bytes")
        return True

    def _model(self, job: Job, part: LatentFile, report: Report) -> str:
        from .. import interchange

        model = self.model or interchange.model_named_by(job.source)
        if model is not None:
            return model
        channels = part.latents.shape[-3]
        if channels != 4:
            msg = f"latents of {channels} channels: say with --model whose (sd3, flux, ...)"
            raise ValueError(msg)
        report.remark("latents are assumed to be of sd1 (--model names another model)")
        return "sd1"


def add_latents(commands: Commands) -> None:
    """Add `latents` to the commands of `sdz`."""
    parser = commands.add_parser(
        "latents",
        help="convert .sdz to files of latents",
        description="Write the latents of .sdz files, and of all .sdz files in folders, as"
        " ComfyUI's .latent, as sd-scripts' .npz, or as plain .npz, .npy or .safetensors files.",
    )
    add_inputs(parser, "an .sdz file")
    add_output(parser)
    parser.add_argument(
        "--format",
        choices=sorted(suffix[1:] for suffix in LATENT_SUFFIXES),
        help="default: what the name after -o ends in, or npz",
    )
    add_jobs(parser)
    parser.set_defaults(run=_run, parser=parser)


def _run(options: argparse.Namespace) -> int:
    target = target_file(options)
    suffix = _suffix(options, target)

    def named(path: Path) -> str:
        match = RESOLUTION.fullmatch(path.stem) if suffix == ".npz" else None
        return (match[1] if match else path.stem) + suffix

    found = find(options.inputs, sdz_files, ".sdz files")
    planned = without_clashes(_together(jobs(options, found, named, target)))
    targets = Targets(options.force, options.skip_existing)
    converter = Converter(suffix, targets, options.verbose)
    summary = each(converter, planned, jobs=options.jobs, stdout_is_data=target == STREAM)
    return close(summary, found, several=len(planned) > 1)


def _suffix(options: argparse.Namespace, target: Path | None) -> str:
    """The suffix of the files to write, as --format or -o says."""
    suffix = f".{options.format or 'npz'}"
    if target is None or target == STREAM:
        return suffix
    if options.format is not None and target.suffix.lower() != suffix:
        refuse(options, f"--format {options.format} contradicts -o {target}")
    if target.suffix.lower() not in LATENT_SUFFIXES:
        refuse(options, f"-o {target}: latents are not written in this format")
    return target.suffix.lower()


@dataclass(frozen=True)
class Converter:
    """Writes the latents of one .sdz file, or of several that were one cache."""

    suffix: str
    targets: Targets
    verbose: bool

    def __call__(self, job: Job, report: Report) -> None:
        from .. import interchange, latents

        if not self.targets.wanted(job):
            report.skipped = True
            return
        sources = [readable(path) for path in (job.source, *job.others)]
        report.before = sum(map(size_of, sources))
        parts = [latents.exported(source, self.suffix) for source in sources]
        file = io.BytesIO()
        interchange.write(file, self.suffix, parts)
        data = file.getbuffer()
        self.targets.write(job, data)
        report.after = len(data)
        if self.verbose:
            report.say(f"{job.source} -> {job.target}: {len(data):,} bytes")


def _together(planned: list[Job]) -> list[Job]:
    """The jobs; those whose sources are the resolutions of one former cache are joined."""
    joined: dict[object, Job] = {}
    for job in planned:
        together = RESOLUTION.fullmatch(job.source.stem) and job.target.stem != job.source.stem
        key = (job.source.parent, job.target) if together else (job.source, len(joined))
        first = joined.setdefault(key, job)
        if first is not job:
            joined[key] = replace(first, others=(*first.others, job.source))
    return list(joined.values())
