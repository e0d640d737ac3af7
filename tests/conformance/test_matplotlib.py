"""What matplotlib's tests of imread and imsave check of a format, checked with `.sdz`.

Each test names matplotlib's tests (3.11, lib/matplotlib/tests/test_image.py) that check the same
with other formats. matplotlib itself handles only PNG. Pillow handles all other extensions.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdz_files import assert_similar, decode

figure = pytest.importorskip("matplotlib.figure", reason="needs matplotlib")
backend_agg = pytest.importorskip("matplotlib.backends.backend_agg")
image = pytest.importorskip("matplotlib.image")


class TestImread:
    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
    def test_array(self, photo: Image.Image, tmp_path: Path, mode: str) -> None:
        """test_imread_pil_uint16 and others: Pillow's array of whole numbers, not of 0 to 1."""
        path = tmp_path / "photo.sdz"
        photo.convert(mode).save(path)
        array = image.imread(path)
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, np.asarray(decode(path.read_bytes())))

    def test_names(self, path: Path) -> None:
        """test_imread_fspath: a path object or a string."""
        np.testing.assert_array_equal(image.imread(path), image.imread(str(path)))

    def test_stream(self, path: Path, data: bytes) -> None:
        """matplotlib assumes that a stream without a name is a PNG."""
        with path.open("rb") as stream:
            expected = image.imread(stream)
        np.testing.assert_array_equal(image.imread(BytesIO(data), format="sdz"), expected)

    def test_imshow(self, data: bytes) -> None:
        """test_imshow_pil: a picture that is not loaded yet, in place of its array."""
        axes = figure.Figure().add_subplot()
        with Image.open(BytesIO(data)) as im:
            shown = axes.imshow(im)
        np.testing.assert_array_equal(shown.get_array(), np.asarray(decode(data)))


class TestImsave:
    def test_extension(self, photo: Image.Image, tmp_path: Path) -> None:
        """test_imsave_fspath, test_imsave: RGBA, which matplotlib makes of every picture."""
        image.imsave(tmp_path / "photo.sdz", np.asarray(photo))
        assert_similar(decode((tmp_path / "photo.sdz").read_bytes()), photo.convert("RGBA"), 8)

    def test_format(self, photo: Image.Image) -> None:
        """test_imsave: to a stream in the requested format."""
        stream = BytesIO()
        image.imsave(stream, np.asarray(photo), format="sdz")
        assert_similar(decode(stream.getvalue()), photo.convert("RGBA"), 8)

    def test_options(self, photo: Image.Image) -> None:
        """test_imsave_pil_kwargs_png, _tiff: Pillow's options are passed on."""
        for quality in (20, 90):
            stream = BytesIO()
            options = {"quality": quality}
            image.imsave(stream, np.asarray(photo), format="sdz", pil_kwargs=options)
            assert decode(stream.getvalue()).info["sdz"]["quality"] == quality

    def test_colour_map(self, photo: Image.Image) -> None:
        """test_imsave: one band, through a colour map."""
        grey = photo.convert("L")
        stream = BytesIO()
        image.imsave(stream, np.asarray(grey), format="sdz", cmap="gray", vmin=0, vmax=255)
        assert_similar(decode(stream.getvalue()), grey.convert("RGBA"), 8)

    def test_alpha(self, photo: Image.Image) -> None:
        """test_imsave_color_alpha: alpha comes back unchanged."""
        alpha = photo.convert("L")
        transparent = photo.copy()
        transparent.putalpha(alpha)
        stream = BytesIO()
        image.imsave(stream, np.asarray(transparent), format="sdz")
        assert_similar(decode(stream.getvalue()).getchannel("A"), alpha, 0)


def test_figure(tmp_path: Path) -> None:
    """matplotlib has its own list of formats for figures. Their pixels save like any others."""
    fig = figure.Figure(figsize=(1, 1), dpi=50)
    canvas = backend_agg.FigureCanvasAgg(fig)
    fig.add_subplot().plot([1, 3, 2])
    with pytest.raises(ValueError, match="Format 'sdz' is not supported"):
        fig.savefig(tmp_path / "figure.sdz")
    canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).save(tmp_path / "figure.sdz")
    with Image.open(tmp_path / "figure.sdz") as im:
        assert (im.mode, im.size) == ("RGBA", (50, 50))


def test_snippet(snippet: Callable[[str], dict[str, Any]]) -> None:
    """The lines of docs/tools.md do what the page says."""
    snippet("matplotlib")
    with Image.open("photo.sdz") as im:
        assert (im.mode, im.info["sdz"]["quality"]) == ("RGBA", 60)
