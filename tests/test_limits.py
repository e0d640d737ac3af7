"""The limits that docs/format.md promises are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pillow_sdz import chunks, copies, exact, header, order, spaces
from pillow_sdz.codings import changes, palette, whole_frames

FORMAT = Path(__file__).parent.parent / "docs" / "format.md"
MIB = 1 << 20


# What the table limits, and the numbers in its second column.
LIMITS = {
    "width, height": [header.MAX_SIDE],
    "channels": [whole_frames.MAX_CHANNELS, palette.MAX_CHANNELS],
    "chunks in a file, besides those of frames": [order.MAX_CHUNKS],
    "data of a metadata chunk, of `oRIG`, of `mASK` or of an unknown chunk": [
        chunks.MAX_METADATA // MIB
    ],
    "`oRIG`, inflated": [chunks.MAX_METADATA // MIB],
    "data of `pRMT`": [chunks.MAX_PROMPT],
    "data of `LATN` or `DIFF`": [order.MAX_BYTES_PER_LATENT, order.SLACK],
    "bands of all frames": [order.MAX_CODED],
    "latents in a band of `mini`": [spaces.HYPERPRIOR.band_latents],
    "`DIFF` of a band in a row, and `ALPH` of method 2": [order.MAX_CHANGES],
    "changes in the `DIFF` of a band in a row": [
        changes.WORK_PER_CELL,
        changes.FREE_WORK,
        changes.WORK_OF_ONE,
    ],
    "data of `EXCT`": [order.MAX_BYTES_PER_EXACT, order.SLACK],
    "`EXCT` that build on the frame before, in a row": [order.MAX_CHANGES],
    "pixels in the bitstreams of such a row, and of the `EXCT` before it": [
        exact.MOST_PIXELS,
        copies.PIXELS_OF_WORK,
    ],
    "copies in a part of `EXCT`": [1, copies.PIXELS_PER_COPY],
    "data of `ALPH`": [order.MAX_BYTES_PER_ALPHA, order.SLACK],
}


def documented() -> dict[str, str]:
    """The table of limits: what is limited, and the most that it may be."""
    section = FORMAT.read_text(encoding="utf-8").partition("\n## Limits\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| .+ \|$", section, re.MULTILINE)
    return {what: most for what, most in rows if what != "what"}


@pytest.mark.parametrize("what", LIMITS)
def test_the_specification_has_the_limits_of_the_code(what: str) -> None:
    assert [int(number) for number in re.findall(r"\d+", documented()[what])] == LIMITS[what]


def test_all_limits_of_the_specification_are_tested() -> None:
    assert documented().keys() == LIMITS.keys()


def test_a_band_of_the_widest_picture() -> None:
    """The text names the rows of a band of `mini` in the widest picture."""
    text = FORMAT.read_text(encoding="utf-8")
    (rows,) = re.findall(r"For the widest picture, that is (\d+) rows", text)
    columns = -(-header.MAX_SIDE // 16)
    assert spaces.HYPERPRIOR.band_latents is not None
    assert int(rows) == spaces.HYPERPRIOR.band_latents // columns
