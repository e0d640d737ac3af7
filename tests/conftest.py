"""Pictures and files that more than one test needs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

# pytest-xdist's workers share the cores. Several threads in each would get in each other's way.
# Libraries read the variable when they are imported, so this stands before their imports.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image, ImageFile

import pillow_sdz
from sdz_files import encode

PACKAGE = Path(pillow_sdz.__file__).parent


def pytest_report_header() -> str:
    return f"pillow_sdz: {PACKAGE}"


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A picture as smooth as a photo, with grain and another gradient in each band: 61x43."""
    across = Image.linear_gradient("L").rotate(90).resize((61, 43))
    down = Image.linear_gradient("L").resize((61, 43))
    around = Image.radial_gradient("L").resize((61, 43))
    smooth = np.asarray(Image.merge("RGB", (across, down, around)))
    grain = np.random.default_rng(0).normal(0, 1.5, smooth.shape).round()
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def small_file(photo: Image.Image) -> bytes:
    """A real file with every known chunk, so small that tests can damage each of its bytes."""
    alpha = Image.new("L", (5, 3), 200)
    alpha.putpixel((2, 1), 7)
    picture = photo.resize(alpha.size)
    picture.putalpha(alpha)
    return encode(
        picture,
        quality=1,
        regions=False,  # so few pixels would be exact, and there would be no latents
        icc_profile=b"profile",
        exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0",
        xmp=b"<x/>",
        chunks=[(b"teSt", b"unknown")],
    )


@pytest.fixture
def load_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the command line work in the test's own process, however long the first file takes."""
    monkeypatch.setattr("pillow_sdz.cli.running.cores", lambda: 1)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let Ctrl-C reach child processes, even if the shell runs this job in the background.

    Shells make such jobs ignore SIGINT, and child processes inherit that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment with which a child process imports the package under test from any folder."""
    return {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
