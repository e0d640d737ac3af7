"""Files of latents that other tools have <-> arrays; nothing here knows of `.sdz`.

`LAYOUTS` has a row for each tool, and `FORMATS` one for each kind of file.  CONTRIBUTING.md says
how to add a row.  If a file holds something that cannot be written again, a warning names it.  The
order of bytes and of dimensions in memory is not kept, because it changes no value.  Whatever the
bytes, reading raises only OSError (the file is damaged) or ValueError (it is sound, but has no
latents).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import IO, Any

from . import numpy_files, safetensors_files, torch_files
from .ai_toolkit import AI_TOOLKIT
from .comfyui import COMFYUI
from .contracts import Format, Layout
from .kohya import KOHYA
from .musubi import MUSUBI
from .numpy_files import as_numpy
from .one_trainer import ONE_TRAINER
from .origin import LatentFile, Origin, parse, shown
from .parts import numbered, targets, together
from .plain import PLAIN
from .tensors import kept

__all__ = [
    "FORMATS",
    "LAYOUTS",
    "LatentFile",
    "Origin",
    "arrays_of",
    "is_of_text",
    "is_scaled",
    "kept",
    "layout_for",
    "model_named_by",
    "parse_origin",
    "read",
    "targets",
    "together",
    "write",
]

#: The kinds of files, by the suffixes of their names.
FORMATS: Mapping[str, Format] = {
    ".latent": safetensors_files.LATENT,
    ".npz": numpy_files.NPZ,
    ".npy": numpy_files.NPY,
    ".safetensors": safetensors_files.SAFETENSORS,
    ".pt": torch_files.PT,
}
#: The layouts, in the order in which they are asked whether a file is theirs.  The last one takes
#: every file.
LAYOUTS: tuple[Layout, ...] = (COMFYUI, KOHYA, MUSUBI, AI_TOOLKIT, ONE_TRAINER, PLAIN)

# sd-scripts and musubi-tuner cache what text encoders return beside the latents, under these names.
TEXT_ENDINGS = ("_te", "_te_outputs")
# ai-toolkit and OneTrainer have folders for that.
AI_TOOLKITS_TEXT, ONE_TRAINERS_TEXT = "_t_e_cache", "text"
AGGREGATE = "aggregate.pt"  # OneTrainer's list of paths, beside its caches

_NAMES_IN_WARNING = 8  # chosen: a line that can still be read


def read(path: Path) -> list[LatentFile]:
    """Read the latents in a file.  There are several parts if its layout has them.

    Warns of other things in the file, which cannot be written again.
    """
    suffix = path.suffix.lower()
    format = FORMATS.get(suffix)
    if format is None:
        msg = f"latents are read from {', '.join(FORMATS)}"
        raise ValueError(msg)
    with format.open(path) as contents:
        layout = next(row for row in LAYOUTS if suffix in row.formats and row.claims(contents))
        family = layout.said(contents) or model_named_by(path)
        found = [replace(part, family=family) for part in layout.read(contents)]
    for text in (*_not_kept(set(contents.names) - contents.known), *contents.notes):
        warnings.warn(f"{path}: {text}", stacklevel=2)
    found = numbered(path, found)
    for part in found:
        shape = part.latents.shape
        if len(shape) not in (3, 4, 5) or 0 in shape:
            msg = (
                f"an array of the shape {shape} is not latents (C, h, w), (B, C, h, w) or "
                "(B, C, T, h, w)"
            )
            raise ValueError(msg)
        if part.latents.dtype.kind != "f" or part.latents.dtype.itemsize > 8:
            msg = f"an array of {part.latents.dtype} is not latents"
            raise ValueError(msg)
    return found


def _not_kept(names: set[str]) -> Iterator[str]:
    """Text for a warning of arrays that are not kept, if there are any."""
    if names:
        listed = [shown(name) for name in sorted(names)]
        more = len(listed) - _NAMES_IN_WARNING
        yield (
            f"not kept: {', '.join(listed[:_NAMES_IN_WARNING])}"
            f"{f' and {more} more' if more > 0 else ''}"
        )


def write(file: IO[bytes], format: str, parts: Sequence[LatentFile]) -> None:
    """Write a file of one of the `FORMATS`.  Only some layouts have several parts.

    Each part's latents must have the values that `layout_for` and `is_scaled` say.  Warns of what
    the file has no place for, and of parts that are missing.
    """
    first = parts[0].origin
    layout = _layout(layout_for(format, first))
    if len(parts) > 1 and not layout.has_parts:
        msg = f"{len(parts)} resolutions do not fit into one {format} file"
        raise ValueError(msg)
    arrays = layout.arrays(parts)
    if lost := dict.fromkeys(name for part in parts for name in _lost(part, format, layout)):
        warnings.warn(f"a {format} file has no place for {', '.join(lost)}", stacklevel=2)
    if layout.has_parts and len(parts) < first.parts:
        msg = f"only {len(parts)} of this cache's {first.parts} resolutions are there"
        warnings.warn(msg, stacklevel=2)
    FORMATS[format].write(file, arrays, first.metadata)


def _lost(part: LatentFile, format: str, layout: Layout) -> Iterator[str]:
    """The things for which a file of this format and layout has no place."""
    others = {
        "original_size": part.origin.original_size,
        "crop_ltrb": part.origin.crop_ltrb,
        "alpha_mask": part.alpha_mask,
    }
    for name, value in others.items():
        if value is not None and name not in layout.keeps:
            yield name
    if part.origin.metadata and not FORMATS[format].has_metadata:
        yield "metadata"


def arrays_of(part: LatentFile, layout: str) -> dict[str, Any]:
    """The arrays, by name, of a file of this layout with one part."""
    return {name: as_numpy(stored) for name, stored in _layout(layout).arrays([part]).items()}


def is_of_text(path: str) -> bool:
    """Whether a trainer's file of this name holds what a text encoder returns, or no latents."""
    where = PurePath(path)
    return (
        where.stem.endswith(TEXT_ENDINGS)
        or where.parent.name == AI_TOOLKITS_TEXT
        or (where.suffix == ".pt" and (where.name == AGGREGATE or ONE_TRAINERS_TEXT in where.parts))
    )


def layout_for(format: str, origin: Origin) -> str:
    """The layout of a file of this format for latents that came from ``origin``."""
    return origin.layout if format == origin.format else FORMATS[format].usual_layout


def is_scaled(
    layout: str, latent_space: str, metadata: Mapping[str, str] = MappingProxyType({})
) -> bool:
    """Whether the latents of a layout are scaled and shifted as pipelines return them.

    If not, they are as the VAE encodes them.  ``metadata`` is that of their file.
    """
    return _layout(layout).is_scaled(latent_space, metadata)


def model_named_by(path: Path) -> str | None:
    """The family of latents that the name of a tool's file stands for, or None.

    The catalogue need not know the family.
    """
    for layout in LAYOUTS:
        for ending, family in layout.families.items():
            if path.suffix.lower() in layout.formats and path.stem.endswith(ending):
                return family
    return None


def parse_origin(data: Mapping[str, Any]) -> Origin:
    """Read the origin that `Origin.json` wrote; ValueError if it cannot have written this."""
    return parse(data, {layout.name: layout.formats for layout in LAYOUTS})


def _layout(name: str) -> Layout:
    return next(layout for layout in LAYOUTS if layout.name == name)
