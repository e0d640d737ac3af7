"""Files of latents to .sdz (`sdz encode`), and back (`sdz latents`)."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import compress, count
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING, Any, Self

from .arguments import STREAM, Commands, add_inputs, add_jobs, add_output, given, refuse
from .files import (
    LATENT_SUFFIXES,
    Job,
    find,
    is_regular,
    jobs,
    named,
    readable,
    sdz_files,
    size_of,
    target_file,
    without_clashes,
)
from .reports import Report
from .running import close, each
from .targets import Targets, is_there

if TYPE_CHECKING:
    from ..interchange import LatentFile


# The options of `sdz encode` that `save_latents` takes as they are.
SETTINGS = ("quality", "step", "lossless", "coding", "effort", "prompt", "factor", "size")


def is_of_latents(path: str | Path) -> bool:
    """Whether the suffix is that of a file of latents, and its name not one of text embeddings."""
    if PurePath(path).suffix.lower() not in LATENT_SUFFIXES:
        return False  # without numpy, which takes time to import
    from .. import interchange

    return not interchange.is_of_text(str(path))


@dataclass(frozen=True)
class LatentEncoder:
    """Encodes one file of latents."""

    settings: dict[str, Any]
    model: str | None
    for_pictures: tuple[str, ...]  # options that were given, but are not for latents
    targets: Targets
    sources: dict[Path, Path]  # by target; a file of latents may have more than one target
    verbose: bool

    @classmethod
    def of(cls, options: argparse.Namespace, targets: Targets, planned: list[Job]) -> Self:
        """The encoder for a command line."""
        return cls(
            given(options, *SETTINGS),
            options.model,
            tuple(given(options, "target_size", "tune")),
            targets,
            {job.target.absolute(): job.source for job in reversed(planned)},
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
        if len(parts) > 1 and job.target == STREAM:
            msg = f"it has {len(parts)} parts, standard output takes one file"
            raise ValueError(msg)
        first, *others = interchange.targets(job.target, parts)
        if others and self.targets.skip and is_there(first) and not _holds(first, parts[0]):
            report.skipped = True  # the whole file: some of its resolutions alone help nobody
            return
        places = [first, *(self._place(*each, job) for each in zip(others, parts[1:], strict=True))]
        all_jobs = [replace(job, target=place) for place in places]
        wanted = [self.targets.wanted(one) for one in all_jobs]  # before anything is written
        chosen = compress(zip(parts, all_jobs, strict=True), wanted)
        encoded = ((one, self._encoded(part, report)) for part, one in chosen)
        source_suffix = job.source.suffix.lower()
        # If a part is refused, none is written.  The parts of a cache of several files may be very
        # many: they are written one by one, and a later run finishes what is missing.
        for one, data in list(encoded) if interchange.is_one_file(source_suffix) else encoded:
            self._write(data, one, report)
        report.skipped = not any(wanted)
        if not report.skipped:
            report.before = size_of(source)

    def _place(self, target: Path, part: LatentFile, job: Job) -> Path:
        """Where to write a resolution after the first: ``target``, or the next name that is free.

        The user has not chosen this name.  So a file that has it, or gets it from another source,
        is only replaced if it holds the same resolution.
        """
        names = (named(f"{target.stem}.{n}" if n > 1 else target.stem, ".sdz") for n in count(1))
        places = (target.with_name(name) for name in names)
        return next(
            place
            for place in places
            if self.sources.get(place.absolute(), job.source) == job.source
            and (not is_there(place) or _holds(place, part))
        )

    def _encoded(self, part: LatentFile, report: Report) -> bytes:
        """One .sdz file."""
        from .. import latents

        file = io.BytesIO()
        latents.imported(part, file, model=self._model(part, report), **self.settings)
        return file.getvalue()

    def _write(self, data: bytes, job: Job, report: Report) -> None:
        self.targets.write(job, data)
        report.after += len(data)
        if self.verbose:
            report.say(f"{job.source} -> {job.target}: {len(data):,} bytes")

    def _model(self, part: LatentFile, report: Report) -> str:
        """The model of the latents; the default family if nothing says it."""
        from .. import latents

        model, is_assumed = latents.family_of(part, self.model, self.settings.get("factor"))
        if is_assumed:
            report.remark(f"latents are assumed to be of {model} (--model names another model)")
        return model


def _holds(path: Path, part: LatentFile) -> bool:
    """Whether a file has this part of a cache, from this state of the cache."""
    from .. import latents

    origin = latents.origin_of(path) if is_regular(path) else None
    return origin is not None and (origin.cache, origin.part) == (
        part.origin.cache,
        part.origin.part,
    )


def add_latents(commands: Commands) -> None:
    """Add `latents` to the commands of `sdz`."""
    parser = commands.add_parser(
        "latents",
        help="convert .sdz to files of latents",
        description="Write the latents of .sdz files, and of all .sdz files in folders, as"
        " the caches that they came from, as ComfyUI's .latent, or as plain arrays.",
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

    found = find(options.inputs, sdz_files, ".sdz files")
    planned = jobs(options, found, suffix, target)
    planned = _together(planned, suffix)
    planned = without_clashes(planned)
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
        if not interchange.is_one_file(self.suffix):
            self._write_several(job, report)
            return
        parts = [latents.exported(source, self.suffix) for source in sources]
        file = io.BytesIO()
        interchange.write(file, self.suffix, parts)
        data = file.getbuffer()
        self.targets.write(job, data)
        report.after = len(data)
        if self.verbose:
            report.say(f"{job.source} -> {job.target}: {len(data):,} bytes")

    def _write_several(self, job: Job, report: Report) -> None:
        """Write a cache of several files, beside the job's target; one part is in memory."""
        from .. import interchange, latents

        if STREAM in (job.source, job.target):
            msg = f"{self.suffix} caches have several files: name files, no stream"
            raise ValueError(msg)
        sources = (job.source, *job.others)
        interchange.check_whole(self.suffix, [latents.origin_of(path) for path in sources])

        @contextmanager
        def opened(name: str) -> Iterator[IO[bytes]]:
            with self.targets.opened(job.target.with_name(name)) as file:
                yield file
                report.after += file.tell()

        parts = (latents.exported(path, self.suffix) for path in sources)
        interchange.write_several(opened, job.target.name, self.suffix, parts)
        if self.verbose:
            report.say(f"{job.source} -> {job.target}: {report.after:,} bytes")


def _together(planned: list[Job], suffix: str) -> list[Job]:
    """The jobs; those whose sources are the resolutions of one former cache are joined."""
    from .. import latents

    # Pipes and devices are not joined.  They are refused when their turn comes.
    lists = latents.together((job.source for job in planned if _is_file(job.source)), suffix)
    others = {first: tuple(rest) for first, *rest in lists}
    return [
        replace(job, others=others.get(job.source, ()))
        for job in planned
        if job.source in others or not _is_file(job.source)
    ]


def _is_file(path: Path) -> bool:
    return path != STREAM and is_regular(path)
