"""What the commands say on stderr: errors, warnings, and why a file could not be done."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

from PIL import Image, UnidentifiedImageError


def complain(about: str | Path, message: str) -> None:
    """Print one line about a file, above the progress bar if there is one."""
    line = f"sdz: {about}: {message}"
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr)


def complain_of_frames(path: Path, image: Image.Image) -> None:
    """Say so if only the first of several frames is used."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        complain(path, f"only the first of its {frames} frames is kept")


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line; a replacement for `warnings.showwarning`."""
    complain("warning", " ".join(str(message).split()))


def reason(error: Exception, about: Path | None = None) -> str:
    """Say in one line what went wrong; the file ``about`` is not named again."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture that Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        other = error.filename is not None and str(error.filename) != str(about)
        return f"{error.filename}: {error.strerror}" if other else error.strerror
    text = " ".join(str(error).split())
    if isinstance(error, (OSError, ValueError)) and text:
        return text
    return f"{type(error).__name__}: {text}"
