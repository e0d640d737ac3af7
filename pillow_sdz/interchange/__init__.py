"""Files of latents that other tools have <-> arrays; nothing here knows of `.sdz`.

`LAYOUTS` has a row for each tool, and `FORMATS` one for each kind of file.  CONTRIBUTING.md says
how to add a row.  If a file holds something that cannot be written again, a warning names it.  The
order of bytes and of dimensions in memory is not kept, because it changes no value.  Whatever the
bytes, reading raises only OSError (the file is damaged) or ValueError (it is sound, but has no
latents).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import IO, Any

from . import numpy_files, safetensors_files, torch_files
from .ai_toolkit import AI_TOOLKIT
from .comfyui import COMFYUI
from .contracts import MAIN, Contents, Format, Layout, OpenFile
from .diffusion_pipe import DATABASE, DIFFUSION_PIPE, is_cache
from .kohya import KOHYA
from .musubi import MUSUBI
from .numpy_files import as_numpy
from .one_trainer import ONE_TRAINER
from .origin import LatentFile, Origin, parse, shown
from .parts import Lazily, numbered, targets, together
from .plain import PLAIN
from .tensors import kept

__all__ = [
    "FORMATS",
    "LAYOUTS",
    "LatentFile",
    "Origin",
    "arrays_of",
    "check_whole",
    "has_batches",
    "is_of_text",
    "is_one_file",
    "kept",
    "kinds",
    "layout_for",
    "model_named_by",
    "parse_origin",
    "read",
    "targets",
    "together",
    "unit",
    "write",
    "write_several",
]

#: The kinds of files, by the suffixes of their names.
FORMATS: Mapping[str, Format] = {
    ".latent": safetensors_files.LATENT,
    ".npz": numpy_files.NPZ,
    ".npy": numpy_files.NPY,
    ".safetensors": safetensors_files.SAFETENSORS,
    ".pt": torch_files.PT,
    ".db": DATABASE,
}
#: The layouts, in the order in which they are asked whether a file is theirs.  The last one takes
#: every file.
LAYOUTS: tuple[Layout, ...] = (
    COMFYUI,
    KOHYA,
    MUSUBI,
    AI_TOOLKIT,
    ONE_TRAINER,
    DIFFUSION_PIPE,
    PLAIN,
)

# sd-scripts and musubi-tuner cache what text encoders return beside the latents, under these names.
TEXT_ENDINGS, TEXT_SUFFIXES = ("_te", "_te_outputs"), (".npz", ".safetensors")
AI_TOOLKITS_TEXT = "_t_e_cache"  # ai-toolkit has a folder for that
# OneTrainer too, with a folder for each group of pictures and each variation.  Each of these also
# has a list of paths, next to its caches.
ONE_TRAINERS = re.compile(r"(^|/)(text/([^/]+/)?variation-\d+/[^/]+|variation-\d+/aggregate)\.pt$")

_NAMES_IN_WARNING = 8  # chosen: a line that can still be read


def read(path: Path) -> Sequence[LatentFile]:
    """Read the latents in a file.  There are several parts if its layout has them.

    The parts of a file that leads to many pictures are read when they are asked for.  Warns of
    other things in the file, which cannot be written again.
    """
    suffix = path.suffix.lower()
    format = FORMATS.get(suffix)
    if format is None:
        msg = f"latents are read from {', '.join(FORMATS)}"
        raise ValueError(msg)
    with format.open(path) as contents:
        layout = next(row for row in LAYOUTS if suffix in row.formats and row.claims(contents))
        family = layout.said(contents) or model_named_by(path)
        found: Sequence[LatentFile] = [] if contents.items else layout.read(contents)
    if contents.items:
        return numbered(path, Lazily(contents.items, lambda _, item: _part(layout, item, family)))
    for text in _not_kept(contents):
        warnings.warn(f"{path}: {text}", stacklevel=2)
    return [_checked(part, family) for part in numbered(path, found)]


def _part(layout: Layout, item: Contents, family: str | None) -> LatentFile:
    """The part that an item of a file is."""
    (part,) = layout.read(item)
    for text in _not_kept(item):
        warnings.warn(f"{item.path}: {text}", stacklevel=2)
    return _checked(part, family)


def _checked(part: LatentFile, family: str | None) -> LatentFile:
    """The part with its family; ValueError if it is not latents."""
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
    return replace(part, family=family)


def _not_kept(contents: Contents) -> Iterator[str]:
    """Texts for warnings of what is not kept."""
    yield from contents.notes
    if names := set(contents.names) - contents.known:
        listed = [shown(name) for name in sorted(names)]
        more = len(listed) - _NAMES_IN_WARNING
        yield (
            f"not kept: {', '.join(listed[:_NAMES_IN_WARNING])}"
            f"{f' and {more} more' if more > 0 else ''}"
        )


def write(file: IO[bytes], format: str, parts: Sequence[LatentFile]) -> None:
    """Write a file of one of the `FORMATS`.  Only some layouts have several parts.

    Each part's latents must have the values that `layout_for` and `unit` say.  Warns of what the
    file has no place for, and of parts that are missing if the others are of use without them.
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
        msg = f"only {len(parts)} of this cache's {first.parts} parts are there"
        if not layout.parts_alone:
            raise ValueError(msg)
        warnings.warn(msg, stacklevel=2)
    write_one = FORMATS[format].write
    if write_one is None:
        msg = f"a {format} file needs others beside it, and cannot be written alone"
        raise ValueError(msg)
    write_one(file, arrays, first.metadata)


def is_one_file(format: str) -> bool:
    """Whether a file of this format needs no others beside it."""
    return FORMATS[format].write_several is None


def write_several(file: OpenFile, name: str, format: str, parts: Iterable[LatentFile]) -> None:
    """Write a cache of several files.

    ``file`` opens one of them by its name, and ``name`` is that of the one that leads to the
    others.  ``parts`` are all parts of the cache, see `check_whole`.
    """
    write = FORMATS[format].write_several
    assert write is not None
    write(file, name, parts)


def check_whole(format: str, origins: Sequence[Origin | None]) -> None:
    """ValueError unless these are the origins of a whole cache of several files, in its order.

    A trainer finds the parts of such a cache by their numbers.
    """
    for number, origin in enumerate(origins):
        if origin is None or origin.format != format:
            msg = f"only what was a {format} cache is written as one"
            raise ValueError(msg)
        if origin.part != number or origin.parts != len(origins):
            msg = f"only {len(origins)} of this cache's {origin.parts} parts are there"
            raise ValueError(msg)


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
    if part.origin.layout != layout.name:  # it has its own names for other arrays
        for name in part.origin.others:
            is_mask = part.origin.channels is not None and name == part.origin.key
            yield f"the mask in {name}" if is_mask else name
    if part.origin.metadata and not FORMATS[format].has_metadata:
        yield "metadata"


def arrays_of(part: LatentFile, layout: str) -> dict[str, Any]:
    """The arrays, by name, of a file of this layout with one part."""
    return {name: as_numpy(stored) for name, stored in _layout(layout).arrays([part]).items()}


def is_of_text(path: str) -> bool:
    """Whether a trainer's file of this name holds what a text encoder returns, or no latents."""
    where = PurePath(path)
    return (
        (where.stem.endswith(TEXT_ENDINGS) and where.suffix.lower() in TEXT_SUFFIXES)
        or where.parent.name == AI_TOOLKITS_TEXT
        or (where.suffix == ".db" and not is_cache(where))
        or ONE_TRAINERS.search(where.as_posix()) is not None
    )


def layout_for(format: str, origin: Origin) -> str:
    """The layout of a file of this format for latents that came from ``origin``."""
    return origin.layout if format == origin.format else FORMATS[format].usual_layout


def has_batches(layout: str) -> bool:
    """Whether latents from elsewhere are a batch in this layout, even if there is only one."""
    return _layout(layout).batches


def unit(layout: str, latent_space: str, origin: Origin) -> float | None:
    """Which values the latents of a layout have.

    None: they are scaled and shifted as pipelines return them.  A number: they are what the VAE
    encodes, times this number.
    """
    return _layout(layout).unit(latent_space, origin)


def kinds(origin: Origin | None, count: int) -> list[str]:
    """What kind of latents each picture of a part is, if the part has ``count`` pictures.

    "latents" are those of a picture or a video itself, and "flipped" those of the mirrored picture.
    Other latents have the name that they have in the trainer's cache, such as "latents_control_0".
    """
    if origin is None:
        return [MAIN] * count
    if origin.stacked:
        found = [*origin.stacked]
    else:
        found = [_layout(origin.layout).kind(origin.key)] * count
        if origin.flipped:
            found[1:] = ["flipped"] * (count - 1)
    if len(found) != count:
        msg = f"{count} pictures are not those of {', '.join(found)}"
        raise ValueError(msg)
    return found


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
