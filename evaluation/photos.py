"""Which of a folder's photos are trained on, and which are held out."""

from __future__ import annotations

from pathlib import Path

# Every 29th photo in name order is held out (50 of 1,449): enough for a rate-distortion
# point that is steady to about 0.03 dB, few enough to lose nothing in training.  Chosen.
HOLD_OUT_EVERY = 29


def photo_paths(directory: Path, *, held_out: bool) -> list[Path]:
    """The photos under ``directory`` that are, or are not, held out from training."""
    paths = sorted(p for p in directory.iterdir() if p.suffix in {".avif", ".png", ".webp", ".jpg"})
    return [p for i, p in enumerate(paths) if (i % HOLD_OUT_EVERY == 0) == held_out]
