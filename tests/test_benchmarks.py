"""The benchmarks: each codec makes its best file within the budget, and the reports are right."""

from __future__ import annotations

import csv
import io
import itertools
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

for module in ("ssimulacra2", "matplotlib", "tqdm"):
    pytest.importorskip(module, reason='the benchmarks need pip install ".[bench]"')
# The benchmarks are not part of the installed package. Only the checkout has them.
sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import (  # noqa: E402
    against,
    effort,
    latent_cache,
    metrics,
    perception,
    prior,
    quality_scale,
    rate_distortion,
    speed,
    texture,
)
from benchmarks.codecs import CODECS, Codec  # noqa: E402
from evaluation import feature_distance  # noqa: E402
from pillow_sdz import demo  # noqa: E402
from sample_latents import correlated_latents  # noqa: E402


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """The smallest picture for the five scales of MS-SSIM: it has 11 samples at 1/16."""
    return demo.photo().resize((264, 176), Image.Resampling.LANCZOS)


def available(name: str) -> Codec:
    codec = CODECS[name]
    if reason := codec.missing():
        pytest.skip(reason)
    return codec


def test_metrics_of_equal_pictures(picture: Image.Image) -> None:
    fidelity = metrics.measure(picture, picture)
    assert fidelity.psnr == float("inf")
    assert fidelity.ms_ssim == pytest.approx(1)
    assert fidelity.ssimulacra2 == pytest.approx(100)


def test_metrics_fall_with_blur(picture: Image.Image) -> None:
    blurs = [picture.filter(ImageFilter.GaussianBlur(r)) for r in (0.5, 1, 2)]
    sharp, middle, soft = (metrics.measure(picture, blurred) for blurred in blurs)
    for name in ("psnr", "ms_ssim", "ssimulacra2"):
        assert getattr(sharp, name) > getattr(middle, name) > getattr(soft, name)


def test_ms_ssim_of_flat_pictures() -> None:
    # Only the mean differs, and it counts only at the coarsest scale.
    a, b = np.full((180, 190, 3), 50, np.uint8), np.full((180, 190, 3), 80, np.uint8)
    c1 = (0.01 * 255) ** 2
    luminance = (2 * 50 * 80 + c1) / (50**2 + 80**2 + c1)
    assert metrics.ms_ssim(a, b) == pytest.approx(luminance**0.1333)


def test_ms_ssim_never_gets_complex(picture: Image.Image) -> None:
    negative = Image.eval(picture, lambda level: 255 - level)
    assert metrics.ms_ssim(np.asarray(picture), np.asarray(negative)) == 0


def test_feature_distance_is_st_lpips(picture: Image.Image) -> None:
    """The package `stlpips-pytorch` 0.0.2 itself computed the expected values."""
    pytest.importorskip("stlpips_pytorch")
    assert feature_distance.feature_distance(picture, picture) == 0
    for radius, expected in ((0.5, 0.02473), (1, 0.18941), (2, 0.48650)):
        blurred = picture.filter(ImageFilter.GaussianBlur(radius))
        distance = feature_distance.feature_distance(picture, blurred)
        assert distance == pytest.approx(expected, rel=1e-3)


@pytest.mark.skipif(not shutil.which(metrics.BUTTERAUGLI), reason="libjxl's tool is not installed")
def test_butteraugli_rises_with_blur(picture: Image.Image) -> None:
    assert metrics.butteraugli(picture, picture) == 0
    little, much = (
        metrics.butteraugli(picture, picture.filter(ImageFilter.GaussianBlur(r))) for r in (0.5, 2)
    )
    assert 0 < little < much


@pytest.mark.parametrize("name", ["jpeg", "webp", "jxl"])
def test_files_are_the_best_within_the_budget(picture: Image.Image, name: str) -> None:
    codec = available(name)
    budgets = [3000, 6000]
    small, large = codec.fit(picture, budgets)
    for file, budget in zip((small, large), budgets, strict=True):
        assert file.fits
        assert len(file.data) <= budget
        # The next setting does not fit.
        index = codec.qualities.index(file.options["quality"])
        better = codec.encode(picture, {"quality": codec.qualities[index + 1]})
        assert len(better) > budget
        assert codec.decode(file.data).size == picture.size


def test_sdz_fits_by_its_target_size(picture: Image.Image) -> None:
    (file,) = CODECS["sdz"].fit(picture, [6000])
    assert file.fits
    assert len(file.data) <= 6000
    assert file.options == {"target_size": 6000}


@pytest.mark.slow
@pytest.mark.parametrize("name", CODECS)
def test_what_cannot_fit_is_the_smallest_and_marked(picture: Image.Image, name: str) -> None:
    codec, part = available(name), picture.crop((0, 0, 66, 44))
    (file,) = codec.fit(part, [50])
    assert not file.fits
    assert len(file.data) > 50
    assert codec.decode(file.data).size == part.size


def test_averages_count_misses_and_take_median_times() -> None:
    def row(image: str, bpp: float, fits: bool, ms: float) -> rate_distortion.Row:
        values = {"psnr": 30.0, "ms_ssim": 0.9, "ssimulacra2": 10 * bpp}
        return rate_distortion.Row(
            image=image,
            codec="jpeg",
            rate=0.1,
            fits=fits,
            setting="quality=1",
            bytes=1,
            bpp=bpp,
            encode_ms=ms,
            decode_ms=ms,
            **values,
        )

    rows = [row("a", 0.1, True, 1), row("b", 0.1, True, 2), row("c", 0.4, False, 30)]
    (point,) = rate_distortion.averages(rows)
    assert (point.images, point.misses, point.encode_ms) == (3, 1, 2)
    assert point.bpp == pytest.approx(0.2)
    assert point.ssimulacra2 == pytest.approx(2)
    assert "| 1 of 3 |" in rate_distortion.table([point])


def test_a_printed_table_is_read_again(tmp_path: Path) -> None:
    points = [
        rate_distortion.Point("sdz", 0.1, 0, 0, 0.099, 27.09, 0.9114, 2.7, 0.0, 0.0),
        rate_distortion.Point("avif444", 0.1, 0, 0, 0.098, 26.96, 0.9016, -8.5, 0.0, 0.0),
    ]
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n{rate_distortion.table(points)}\n\n| another |\n|---|\n")
    assert rate_distortion.read_table(page.read_text()) == points
    assert rate_distortion.main(["--table", str(page), "--output", str(tmp_path)]) == 0
    with Image.open(tmp_path / "rate_distortion.png") as plot:
        assert plot.format == "PNG"


@pytest.mark.slow
def test_rate_distortion_command(
    picture: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, output = tmp_path / "images", tmp_path / "new" / "output"
    images.mkdir()
    for name in ("a", "b", "c"):
        picture.save(images / f"{name}.png")
    arguments = ["--images", str(images), "--output", str(output), "--jobs", "1", "--limit", "2"]
    arguments += ["--codecs", "sdz", "jpeg", "--rates", "1.5", "0.5"]
    assert rate_distortion.main(arguments) == 0

    printed = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:2] for line in printed[2:]] == [
        ["| 0.50", "sdz"],
        ["| 0.50", "JPEG"],
        ["| 1.50", "sdz"],
        ["| 1.50", "JPEG"],
    ]
    with (output / "rate_distortion.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2
    assert {row["image"] for row in rows} == {"a.png", "b.png"}
    for row in rows:
        assert float(row["bpp"]) == pytest.approx(8 * int(row["bytes"]) / (264 * 176), abs=1e-4)
        assert row["fits"] == str(int(row["bytes"]) <= float(row["rate"]) * 264 * 176 / 8)
    with Image.open(output / "rate_distortion.png") as plot:
        assert plot.format == "PNG"

    earlier = ["--images", str(images), "--output", str(tmp_path / "later"), "--jobs", "1"]
    earlier += ["--limit", "2", "--codecs", "webp", "--rates", "1.5"]
    earlier += ["--earlier", str(output / "rate_distortion.csv")]
    assert rate_distortion.main(earlier) == 0
    together = capsys.readouterr().out.splitlines()
    assert [line for line in together if "WebP" not in line] == printed
    assert len(rate_distortion.read_csv(tmp_path / "later" / "rate_distortion.csv")) == 8 + 2


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--images", "nowhere"],
        ["--images", "."],
        ["--images", ".", "--codecs", "gif"],
        ["--table", "nowhere"],
    ],
)
def test_wrong_command_lines(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        rate_distortion.main(arguments)
    assert exit.value.code == 2


def test_an_absent_codec_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert rate_distortion.usable(["jpeg", "jxl"]) == ["jpeg"]
    assert capsys.readouterr().err == "jxl is left out: pillow-jxl-plugin is not installed\n"


def test_calls_take_turns() -> None:
    order: list[str] = []
    times = speed.alternate([lambda: order.append("a"), lambda: order.append("b")], repeats=2)
    assert "".join(order) == "ababab"  # the first turn warms up
    assert len(times) == 2


def test_memory_is_that_of_the_process_alone() -> None:
    # This process is already large. A fresh Python that makes 50 MB is not.
    ballast = b"x" * 300_000_000
    peak = speed._peak_memory("data = b'x' * 50_000_000", threads=None)
    assert 50 < peak < len(ballast) / 1e6


def test_speed_table_gives_ratios_where_there_are_two_figures() -> None:
    both = speed.comparison("decode", "ms", [50.0, 200.0])
    alone = speed.comparison("import", "ms", [1234.0])
    fast = speed.comparison("open", "ms", [0.04, 0.02], "PNG")
    assert speed.table([both, alone, fast]).splitlines()[2:] == [
        "| decode | 50 ms | AutoencoderTiny | 200 ms | 0.25 |",
        "| import | 1,234 ms |  |  |  |",
        "| open | 0.040 ms | PNG | 0.020 ms | 2.00 |",
    ]


def test_speed_without_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SIZES", ((32, 48),))
    warm = speed.warm((32, 48), repeats=1, with_tiny=False)
    assert [c.what for c in warm] == ["encode 32x48", "decode 32x48"]
    assert all(c.other is None and c.sdz > 0 for c in warm)
    with Image.open(io.BytesIO(speed.sdz_encode(speed.photo((32, 48))))) as image:
        assert image.size == (32, 48)


def test_speed_of_many_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SMALL", (24, 16))
    encode, decode = speed.many(2, repeats=1)
    assert encode.what.startswith("encode 2 pictures 24x16, ")
    assert decode.what.startswith("decode 2 pictures 24x16, ")
    for c in (encode, decode):
        assert c.sdz > 0
        assert c.other is not None
        assert c.beside == "one after another"


def test_speed_per_megapixel(capsys: pytest.CaptureFixture[str]) -> None:
    assert speed.main(["--megapixels", "0.0016", "0.0025"]) == 0
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert [row.split(" | ")[0] for row in rows] == ["| 0.0016", "| 0.0025"]


@pytest.mark.slow
def test_drafts_are_compared_with_a_load() -> None:
    found = speed.drafts(repeats=1)
    assert [c.what for c in found] == [f"draft at 1/{n} of 768x512" for n in (2, 4, 8)]
    assert all(c.beside == "a load" and c.other and c.sdz > 0 for c in found)
    assert speed.cpu_time() > 0


def test_a_cold_start_is_taken_apart() -> None:
    parts = speed.cold_start_parts(threads=1).splitlines()
    assert parts[0].startswith("import pillow_sdz and Pillow: ")
    assert all(part.endswith(" ms") for part in parts)


def test_bytes_at_equal_error_are_read_off_a_power_law() -> None:
    points = [effort.Coded(round(1e9 * error**-0.5), error, 0.0) for error in (0.1, 0.2, 0.4)]
    assert effort.at_error(points, 0.3) == pytest.approx(1e9 * 0.3**-0.5)
    with pytest.raises(ValueError, match="lies outside"):
        effort.at_error(points, 0.5)


def test_latent_cache_formats_are_as_exact_as_they_say() -> None:
    latents = correlated_latents(64, 64, 4).transpose(2, 0, 1).astype(np.float16)
    formats = [
        latent_cache.numpy_file(np.float32, compressed=False),
        latent_cache.safetensors_file(np.float16),
        latent_cache.numpy_file(np.float16, compressed=True),
        latent_cache.shuffled_zstd(latents.shape, brain=False),
        latent_cache.sdz("exact", "float16", {"model": "sd-mini"}),
        latent_cache.sdz("rounded", 0.5, {"model": "sd-mini"}),
    ]
    rows = [latent_cache.measure(format, [latents]) for format in formats]
    sizes = [int(row.split("|")[2].replace(",", "")) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    too_exact = formats[-1]._replace(error=0.1)
    with pytest.raises(AssertionError, match="does not decode"):
        latent_cache.measure(too_exact, [latents])


def test_any_file_of_latents_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Types may differ. Batches and clips are as many pictures, and other tensors none."""
    for module in ("zstandard", "pillow_jxl"):
        pytest.importorskip(module, reason='the benchmarks need pip install ".[bench]"')
    import torch
    from safetensors.torch import save_file

    from benchmarks import any_latents

    plane = torch.from_numpy(correlated_latents(8, 6, 4).transpose(2, 0, 1).copy()).float()
    tensors = {
        "picture": plane.bfloat16(),
        "batch": torch.stack([plane, -plane]),
        "clip": torch.stack([plane, 2 * plane, 3 * plane], 1)[None],
        "indices": torch.arange(4),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    clip = any_latents.of_file(tmp_path / "a.safetensors")[2:5]
    assert [torch.equal(one.latents, n * plane) for n, one in enumerate(clip, 1)] == [True] * 3
    command = ["any_latents", "--latents", str(tmp_path / "a.safetensors"), "--model", "mine"]
    monkeypatch.setattr(sys, "argv", [*command, "--steps", "0.5"])
    any_latents.main()
    out = capsys.readouterr().out
    assert out.startswith("6 latents of bfloat16, float32\n")
    assert "| 0.5 | " in out


@pytest.mark.slow
def test_perception_has_a_file_of_each_tune(
    picture: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture.save(tmp_path / "coffee.png")
    arguments = ["--images", str(tmp_path), "--rates", "0.3", "--output", str(tmp_path)]
    assert perception.main(arguments) == 0
    with (tmp_path / "perception.csv").open(newline="") as file:
        rows = {row["codec"]: row for row in csv.DictReader(file)}
    faithful, perceptual = rows["sdz, psnr"], rows["sdz, perceptual"]
    assert float(faithful["psnr"]) > float(perceptual["psnr"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == list(rows)


@pytest.mark.slow
def test_perception_shows_parts_of_pictures(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "coffee.png")
    output = tmp_path / "sheet.webp"
    arguments = ["--images", str(tmp_path), "--sheet", str(output), "--sheet-rate", "0.3"]
    assert perception.main([*arguments, "--crops", "coffee.png:20,0"]) == 0
    with Image.open(output) as sheet:
        across = (sheet.width - perception.MARGIN) / (perception.CROP + perception.MARGIN)
        down = (sheet.height - perception.MARGIN) / (perception.CROP + perception.LABEL)
    assert (across, down) == (1 + len(perception.SHEET_CODECS), 1)


def test_perception_leaves_out_what_cannot_be_measured() -> None:
    row = perception.Row("a", "JPEG", 0.1, False, 0.12, 20.0, 0.7, -60.0, None, 0.4)
    assert perception.table([row]).splitlines()[-1] == (
        "| 0.10 | JPEG | 0.120 | 20.00 | 0.7000 | -60.0 |  | 0.400 | 1 of 1 |"
    )


def test_a_higher_quality_takes_more_bits_and_scores_higher(
    picture: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture.save(tmp_path / "coffee.png")
    assert quality_scale.main(["--images", str(tmp_path), "--qualities", "20", "50", "80"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    rows = [[float(cell) for cell in line.strip("| ").split("|")] for line in lines]
    assert [row[0] for row in rows] == [20, 50, 80]
    for lower, higher in itertools.pairwise(rows):
        assert all(a < b for a, b in zip(lower, higher, strict=True))


def test_the_hand_made_model_sees_what_is_around() -> None:
    smooth = np.rint(8 * correlated_latents(40, 60, 4)).astype(np.int64)
    flat = np.random.default_rng(0).permuted(smooth.reshape(-1, 4), axis=0)
    shuffled = flat.reshape(smooth.shape)
    for symbols, least, most in ((smooth, 0.5, 0.95), (shuffled, 0.98, 1.1)):
        model = prior.HandMade([symbols[:20], symbols[20:]])
        assert least < model.bits(symbols) / prior.order_0(symbols) < most


def test_prior_command(
    picture: Image.Image,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, left in (("a", 0), ("b", 60), ("c", 120)):
        picture.crop((left, 0, left + 144, 176)).save(tmp_path / f"{name}.png")
    monkeypatch.setattr(prior, "QUALITIES", (50,))
    prior.main(["--images", str(tmp_path)])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:-1]]
    bits = {name: float(value) for name, value in rows}
    assert 0 < bits[prior.HYPER] < bits[prior.IDEAL] <= bits[prior.PRIOR] < bits[prior.HAND_MADE]
    assert all(bits[prior.PRIOR] < bits[name] for name in prior.PARTS)
    with pytest.raises(SystemExit):
        prior.main(["--images", str(tmp_path), "--limit", "2"])


@pytest.mark.slow
def test_against_another_checkout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each program runs in both checkouts. This checkout stands for both here."""
    what = "import pillow_sdz"
    monkeypatch.setattr(against, "PROGRAMS", {what: against.PROGRAMS[what]})
    assert against.main([str(against.HERE), "--repeats", "2"]) == 0
    name, before, now, ratio, _ = (
        cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].strip("|").split("|")
    )
    assert name == what
    assert 0.2 < float(ratio) < 5
    assert all(0 < float(time.removesuffix(" ms")) < 1000 for time in (before, now))
    with pytest.raises(SystemExit):
        against.main([str(tmp_path)])
    assert "is no checkout of this package" in capsys.readouterr().err


def test_ratios_against_another_checkout() -> None:
    """Ratios are those of neighbouring runs, so a slow moment of the machine slows both."""
    row = against.table({"x": [[0.001, 0.1, 0.003], [0.002, 0.1, 0.003]]}).splitlines()[-1]
    assert row == "| x | 3 ms | 3 ms | 1.00 | 1.00, 2.00 |"


class TestTexture:
    def test_a_pattern_of_fine_periods_is_measured_and_others_are_not(self) -> None:
        columns = np.arange(64)[None, :, None] * np.ones((64, 1, 3))
        flat = np.full((64, 64, 3), (200.0, 40.0, 120.0))
        original = Image.fromarray(flat.astype(np.uint8))
        for period, least, most in ((4, 6, 8), (3.2, 6, 8), (16, 0, 0.7)):
            waves = flat + 10 * np.sin(2 * np.pi * columns / period)
            shown = Image.fromarray(np.rint(waves).astype(np.uint8))
            found = texture.woven(original, shown)
            assert len(found) == 4
            assert least <= min(found) <= max(found) <= most
        assert texture.woven(original, original) == [0] * 4

    def test_only_flat_saturated_tiles_count(self) -> None:
        assert texture.tiles(Image.new("RGB", (64, 64), (120, 120, 130))) == []
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        assert texture.tiles(Image.fromarray(noise)) == []
        assert all(texture.tiles(picture) for picture in texture.pictures())
