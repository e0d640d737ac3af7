"""Files of latents to .sdz (`sdz encode`), and back (`sdz latents`)."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import Commands, add_inputs, add_output, given, refuse
from .files import Job, Targets, jobs, output_file, sdz_files
from .messages import complain
from .running import each

if TYPE_CHECKING:
    from ..interchange import LatentFile

# As `interchange.FORMATS`, which takes numpy to import.
LATENT_SUFFIXES = frozenset((".latent", ".npz", ".npy", ".safetensors"))

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


class LatentEncoder:
    """Encodes files of latents, and counts the bytes before and after."""

    def __init__(self, options: argparse.Namespace, targets: Targets) -> None:
        self._options = options
        self._targets = targets
        self._files = self._before = self._after = 0
        self._assumed = False

    def encode(self, job: Job) -> None:
        """Encode a file; if it has several resolutions, write a file for each."""
        from .. import interchange

        if wrong := given(self._options, "target_size", "tune"):
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
        from .. import latents

        if not self._targets.wanted(job):
            return
        settings = ("quality", "step", "lossless", "coding", "effort", "prompt")
        with self._targets.open(job) as file:
            latents.imported(
                part, file, model=self._model(job, part), **given(self._options, *settings)
            )
        _report(self._options, job)

    def _model(self, job: Job, part: LatentFile) -> str:
        from .. import interchange

        model: str | None = self._options.model or interchange.model_named_by(job.source)
        if model is not None:
            return model
        channels = part.latents.shape[-3]
        if channels != 4:
            msg = f"latents of {channels} channels: say with --model whose (sd3, flux, ...)"
            raise ValueError(msg)
        if not self._assumed:
            complain(job.source, "assumed to be latents of sd1 (--model names another model)")
            self._assumed = True
        return "sd1"

    def print_total(self) -> None:
        """If any latents were encoded, print what that saved."""
        if self._files:
            files = "1 file" if self._files == 1 else f"{self._files:,} files"
            sizes = f"{self._before:,} bytes -> {self._after:,} bytes"
            print(f"latents of {files}: {sizes}, ratio {self._before / self._after:.2f}")


def add_latents(commands: Commands) -> None:
    """Add `latents` to the commands of `sdz`."""
    parser = commands.add_parser(
        "latents",
        help="convert .sdz to files of latents",
        description="Write the latents of .sdz files, and of all .sdz files in folders, as"
        " ComfyUI's .latent, as sd-scripts' .npz, or as plain .npz, .npy or .safetensors files.",
    )
    add_inputs(parser)
    add_output(parser)
    parser.add_argument(
        "--format",
        choices=sorted(suffix[1:] for suffix in LATENT_SUFFIXES),
        help="default: what the name after -o ends in, or npz",
    )
    parser.set_defaults(run=_run_latents, parser=parser)


def _run_latents(options: argparse.Namespace) -> int:
    target = output_file(options, LATENT_SUFFIXES)
    suffix = _suffix(options, target)
    targets = Targets(options)

    def named(path: Path) -> str:
        match = RESOLUTION.fullmatch(path.stem) if suffix == ".npz" else None
        return (match[1] if match else path.stem) + suffix

    def convert(job: Job) -> None:
        from .. import interchange, latents

        if not targets.wanted(job):
            return
        parts = [latents.exported(path, suffix) for path in (job.source, *job.others)]
        with targets.open(job) as file:
            interchange.write(file, suffix, parts)
        _report(options, job)

    found, missing = jobs(options, sdz_files, named, target)
    complete = each(_together(found), convert, lambda job: job.source)
    return int(missing or not complete)


def _suffix(options: argparse.Namespace, target: Path | None) -> str:
    """The suffix of the files to write, as --format or -o says."""
    suffix = f".{options.format or 'npz'}"
    if target is None:
        return suffix
    if options.format is not None and target.suffix.lower() != suffix:
        refuse(options, f"--format {options.format} contradicts -o {target}")
    if target.suffix.lower() not in LATENT_SUFFIXES:
        refuse(options, f"-o {target}: latents are not written in this format")
    return target.suffix.lower()


def _together(found: list[Job]) -> list[Job]:
    """The jobs; those whose sources are the resolutions of one former cache are joined."""
    joined: dict[object, Job] = {}
    for job in found:
        together = RESOLUTION.fullmatch(job.source.stem) and job.target.stem != job.source.stem
        key = (job.source.parent, job.target) if together else (job.source, len(joined))
        first = joined.setdefault(key, job)
        if first is not job:
            joined[key] = replace(first, others=(*first.others, job.source))
    return list(joined.values())


def _report(options: argparse.Namespace, job: Job) -> None:
    """With --verbose: print what was written, and its size."""
    if options.verbose:
        print(f"{job.source} -> {job.target}: {job.target.stat().st_size:,} bytes")
