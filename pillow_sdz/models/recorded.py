"""The user's models file: what `sdz models add` and `sdz models fetch --pin` recorded.

JSON: an object with a record for each name, in the folder that the platform has for such files or
where the environment variable ``SDZ_MODELS`` says.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ..atomic import replacing
from ..header import MAX_CHANNELS, MAX_FACTOR, NAME

REVISION = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Directory:
    """A model in a folder in diffusers' layout, and the sha256 of its autoencoder's weights.

    ``unet`` and ``text_encoder`` are the sha256 of theirs, empty where it has none.
    """

    directory: str
    sha256: str
    latent_space: str
    channels: int
    factor: int
    unet: str = ""
    text_encoder: str = ""

    def is_sound(self) -> bool:
        return (
            os.path.isabs(self.directory)
            and bool(_SHA256.fullmatch(self.sha256))
            and bool(NAME.fullmatch(self.latent_space))
            and 1 <= self.channels <= MAX_CHANNELS
            and 1 <= self.factor <= MAX_FACTOR
            and all(not sha or _SHA256.fullmatch(sha) for sha in (self.unet, self.text_encoder))
        )


@dataclass(frozen=True)
class Pin:
    """The commit and the weights of a preset that this package has not pinned itself."""

    revision: str
    sha256: str

    def is_sound(self) -> bool:
        return bool(REVISION.fullmatch(self.revision) and _SHA256.fullmatch(self.sha256))


Record = Directory | Pin


def path() -> Path:
    """Where the models file is, or would be."""
    if chosen := os.environ.get("SDZ_MODELS"):
        return Path(chosen)
    if sys.platform == "win32":
        folder = Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Application Support"
    else:
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return folder / "pillow-sdz" / "models.json"


def read() -> dict[str, Record]:
    """The records by name; OSError where the file cannot be read or is damaged."""
    try:
        text = path().read_bytes()
    except FileNotFoundError:
        return {}
    try:
        entries = json.loads(text)
        if not isinstance(entries, dict):
            raise TypeError
        return {name: _record(name, fields) for name, fields in entries.items()}
    except (ValueError, TypeError, RecursionError) as e:
        msg = f"the models file {path()} is damaged: mend it or delete it"
        raise OSError(msg) from e


def _record(name: str, fields: Mapping[str, object]) -> Record:
    """ValueError or TypeError where it is none."""
    kind: type[Record] = Directory if "directory" in fields else Pin
    record = kind(**fields)  # type: ignore[arg-type]
    for field, value in asdict(record).items():
        if type(value).__name__ != kind.__annotations__[field]:
            raise TypeError
    if not NAME.fullmatch(name) or not record.is_sound():
        raise ValueError
    return record


def write(name: str, record: Record) -> None:
    """Add a record, or replace the one of this name."""
    entries = {key: asdict(value) for key, value in {**read(), name: record}.items()}
    path().parent.mkdir(parents=True, exist_ok=True)
    with replacing(path()) as file:
        file.write(json.dumps(entries, indent=2).encode() + b"\n")
