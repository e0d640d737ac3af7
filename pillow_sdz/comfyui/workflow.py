"""The prompt and the workflow that ComfyUI keeps in its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from PIL import ExifTags, Image

from ..chunks import EXIF, PROVENANCE
from ..contents import contents
from ..reading import Reader

# Pictures keep them where ComfyUI's WebP files do: "prompt:{...}" and "workflow:{...}".
_TAGS = {"prompt": ExifTags.Base.Model, "workflow": ExifTags.Base.Make}
_NAMES = tuple(_TAGS)


def metadata(prompt: Any, extra: Mapping[str, Any] | None) -> dict[str, str]:
    """What ComfyUI hands to a node that saves, as texts of JSON by name."""
    found = {} if prompt is None else {"prompt": json.dumps(prompt)}
    return found | {name: json.dumps(value) for name, value in (extra or {}).items()}


def exif(texts: Mapping[str, str]) -> Image.Exif:
    """The EXIF of a picture with these texts; the names that have no tag are left out."""
    found = Image.Exif()
    for name, tag in _TAGS.items():
        if name in texts:
            found[tag] = f"{name}:{texts[name]}"
    return found


def workflow_of(data: bytes) -> dict[str, Any]:
    """The prompt and the workflow in an `.sdz` file; OSError or ValueError if it is damaged."""
    values = contents(Reader(BytesIO(data)), (PROVENANCE, EXIF)).values
    texts: dict[str, str] = {}
    kept = values.get(PROVENANCE.keyword, {}).get("metadata")
    if isinstance(kept, dict):
        texts = {name: kept[name] for name in _NAMES if isinstance(kept.get(name), str)}
    if EXIF.keyword in values:
        found = Image.Exif()
        found.load(values[EXIF.keyword])
        for name, tag in _TAGS.items():
            text = str(found.get(tag, ""))
            if text.startswith(f"{name}:"):
                texts[name] = text.removeprefix(f"{name}:")
    return {name: json.loads(text) for name, text in texts.items()}
