"""The user's models file: what `sdz models add` and `sdz models fetch --pin` recorded.

The file is JSON: an object with a record for each name.  It lies in the folder that the platform
has for such files, or at the path in the environment variable ``SDZ_MODELS``.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from ..atomic import replacing
from ..header import MAX_CHANNELS, MAX_FACTOR, is_name

REVISION = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Directory:
    """A model in a folder in diffusers' layout, and the sha256 of its autoencoder's weights.

    ``unet`` and ``text_encoder`` are the sha256 of these parts' weights, or empty if it has none.
    """

    directory: str
    sha256: str
    latent_space: str
    channels: int
    factor: int
    unet: str = ""
    text_encoder: str = ""

    def sound_fields(self) -> dict[str, bool]:
        """Whether each field has a value that a list may hold."""
        return {
            "directory": os.path.isabs(self.directory),
            "sha256": bool(_SHA256.fullmatch(self.sha256)),
            "latent_space": is_name(self.latent_space),
            "channels": 1 <= self.channels <= MAX_CHANNELS,
            "factor": 1 <= self.factor <= MAX_FACTOR,
            "unet": not self.unet or bool(_SHA256.fullmatch(self.unet)),
            "text_encoder": not self.text_encoder or bool(_SHA256.fullmatch(self.text_encoder)),
        }


@dataclass(frozen=True)
class Pin:
    """The commit and the weights of a preset that this package has not pinned itself."""

    revision: str
    sha256: str

    def sound_fields(self) -> dict[str, bool]:
        """Whether each field has a value that a list may hold."""
        return {
            "revision": bool(REVISION.fullmatch(self.revision)),
            "sha256": bool(_SHA256.fullmatch(self.sha256)),
        }


Record = Directory | Pin


class Homeless(OSError):
    """The user has no home directory, where the models file would be."""


def path() -> Path:
    """Where the models file is, or would be; OSError if there is no home directory."""
    if chosen := os.environ.get("SDZ_MODELS"):
        return Path(chosen)
    try:
        return _folder() / "pillow-sdz" / "models.json"
    except RuntimeError as e:  # from Path.home
        msg = f"there is no place for the list of added models: {e}: set SDZ_MODELS to a file"
        raise Homeless(msg) from e


def _folder() -> Path:
    """The folder that the platform has for such files."""
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def read() -> dict[str, Record]:
    """The records by name; OSError if the file cannot be read or is damaged."""
    try:
        text = _text()
    except FileNotFoundError:
        return {}
    sound, lost = _parse(text)
    if lost:
        msg = f"the list of added models {path()} is damaged: run 'sdz models repair'"
        raise OSError(msg)
    return sound


def _text() -> bytes:
    """What the file has; OSError if it is a pipe or a device, which is not read."""
    where = path()
    if where.exists() and not (where.is_file() or where.is_dir()):
        msg = f"the list of added models {where} is no file: set SDZ_MODELS to one"
        raise OSError(msg)
    return where.read_bytes()


def _parse(text: bytes) -> tuple[dict[str, Record], list[str]]:
    """The records in the file's text by name, and the names of those that are damaged."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict):
        return {}, ["everything"]
    sound, lost = {}, []
    for name, fields in entries.items():
        try:
            sound[name] = _record(name, fields)
        except (TypeError, ValueError):
            lost.append(name)
    return sound, lost


def _record(name: str, fields: object) -> Record:
    """A record as the file has it; ValueError with what is wrong, or TypeError."""
    if not isinstance(fields, dict):
        msg = f"the record of {name!r} is not an object"
        raise TypeError(msg)
    kind: type[Record] = Directory if "directory" in fields else Pin
    record = kind(**fields)
    for field, value in asdict(record).items():
        if type(value).__name__ != kind.__annotations__[field]:
            msg = f"its {field} is {value!r}"
            raise TypeError(msg)
    for field, is_sound in record.sound_fields().items():
        if not is_sound:
            msg = f"its {field} is {getattr(record, field)!r}"
            raise ValueError(msg)
    if not is_name(name):
        msg = f"{name!r} is not a model's name"
        raise ValueError(msg)
    return record


def write(name: str, record: Record) -> None:
    """Add a record, or replace the one of this name; OSError for one that `read` would refuse."""
    try:
        _record(name, json.loads(json.dumps(asdict(record))))
    except (TypeError, ValueError) as e:
        msg = f"the model {name!r} cannot be added: {e}"
        raise OSError(msg) from e
    _write({**read(), name: record})


def _write(records: Mapping[str, Record]) -> None:
    where = path()
    _check_link(where)
    entries = {name: asdict(record) for name, record in records.items()}
    where.parent.mkdir(parents=True, exist_ok=True)
    with replacing(where) as file:
        file.write(json.dumps(entries, indent=2).encode() + b"\n")


def _check_link(where: Path) -> None:
    """OSError if the file is a symbolic link to nothing, or one that another user has made."""
    if not where.is_symlink():
        return
    foreign = hasattr(os, "getuid") and where.lstat().st_uid != os.getuid()
    if foreign or not where.exists():
        kind = "of another user" if foreign else "to nothing"
        msg = f"the list of added models {where} is a symbolic link {kind}: it is not written"
        raise OSError(msg)


class Repair(NamedTuple):
    """A repaired file: the names that were kept, the names that were lost, and the old file."""

    kept: list[str]
    lost: list[str]
    aside: Path


def repair() -> Repair | None:
    """Write the sound records again, after keeping a copy of the damaged file; None if it is sound.

    FileNotFoundError if there is no file.
    """
    where, text = path(), _text()
    sound, lost = _parse(text)
    if not lost:
        return None
    aside = next(free for free in _names_aside(where) if not os.path.lexists(free))
    with replacing(aside, exclusive=True) as file:
        file.write(text)
    _write(sound)
    return Repair([*sound], lost, aside)


def _names_aside(where: Path) -> Iterator[Path]:
    yield where.with_name(where.name + ".damaged")
    for number in itertools.count(2):
        yield where.with_name(f"{where.name}.damaged-{number}")
