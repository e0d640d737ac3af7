"""`sdz demo` and the two metrics it prints."""

from __future__ import annotations

import math
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pillow_sdz import compare, demo
from pillow_sdz.cli import main
from pillow_sdz.fidelity import C1, luma, psnr, ssim


@pytest.fixture(scope="module")
def result() -> compare.Comparison:
    return demo.run()


def test_three_codecs_in_the_bytes_of_the_article(result: compare.Comparison) -> None:
    assert [v.codec for v in result.versions] == ["sdz", "JPEG", "WebP"]
    assert len(result.versions[0].data) <= demo.DEFAULT_TARGET_SIZE


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new"
    assert main(["demo", "-o", str(out), "--quality", "40"]) == 0
    printed = capsys.readouterr().out
    for name in ("sdz", "JPEG", "WebP"):
        assert re.search(rf"^{name} +[\d,]+ +0\.\d{{3}} +\d\d\.\d\d +0\.\d{{3}}", printed, re.M)
    assert printed.splitlines()[-2:] == [str(out / "sdz-demo.sdz"), str(out / "sdz-demo.png")]
    with Image.open(out / "sdz-demo.sdz") as image:
        assert (image.format, image.size) == ("SDZ", (600, 400))
        assert image.info["sdz"]["quality"] == 40
    with Image.open(out / "sdz-demo.png") as image:
        # Two by two, so that it fits on a screen.
        assert image.width > 2 * 600
        assert image.height > 2 * 400


def test_the_sheet_shows_every_picture(result: compare.Comparison) -> None:
    sheet = np.asarray(demo.sheet(result))
    height, width = sheet.shape[0] // 2, sheet.shape[1] // 2
    quarters = [sheet[y : y + height, x : x + width] for y in (0, height) for x in (0, width)]
    pictures = [result.original, *(v.picture for v in result.versions)]
    for quarter, picture in zip(quarters, pictures, strict=True):
        expected = np.asarray(picture)
        assert np.array_equal(quarter[28 : 28 + 400, 8 : 8 + 600], expected)
        assert (quarter[:28] < 128).any()  # its label


def test_an_impossible_size_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["demo", "-o", str(tmp_path), "-t", "10"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("sdz: demo: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_photo_comes_with_its_notice() -> None:
    pictures = resources.files("pillow_sdz") / "pictures"
    notice = (pictures / "NOTICE.md").read_text(encoding="utf-8")
    for file in pictures.iterdir():
        assert file.name == "NOTICE.md" or f"`{file.name}`" in notice
    assert demo.photo().size == (600, 400)


def test_psnr() -> None:
    a = np.full((4, 5, 3), 100, np.uint8)
    assert psnr(a, a) == math.inf
    assert psnr(a, a + 10) == pytest.approx(20 * math.log10(255 / 10))
    assert psnr(a + 10, a) == psnr(a, a + 10)  # no unsigned wrap


def test_ssim_of_flat_pictures() -> None:
    # Without any variance only the luminance term is left: equation 6 of the paper.
    a, b = np.full((12, 13, 3), 50, np.uint8), np.full((12, 13, 3), 80, np.uint8)
    assert ssim(a, b) == pytest.approx((2 * 50 * 80 + C1) / (50**2 + 80**2 + C1))
    assert ssim(a, a) == 1


def test_ssim_is_scikit_images() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    photo = demo.photo()
    a, b = np.asarray(photo), np.asarray(photo.filter(ImageFilter.GaussianBlur(1.5)))
    expected = metrics.structural_similarity(
        luma(a),
        luma(b),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
    )
    assert ssim(a, b) == pytest.approx(expected, abs=1e-9)  # the same sums in another order


def test_metrics_refuse_what_they_cannot_compare() -> None:
    a = np.zeros((20, 20, 3), np.uint8)
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match="different shapes"):
            metric(a, a[:-1])
    with pytest.raises(ValueError, match="at least 11"):
        ssim(a[:10], a[:10])
