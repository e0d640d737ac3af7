"""The `sdz` command: what it writes where, what it refuses, and with which exit status."""

from __future__ import annotations

import argparse
import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms, ImageSequence, features
from safetensors import safe_open
from safetensors.torch import save_file

from pillow_sdz import __version__, interchange, open_latents, save_latents
from pillow_sdz.catalogue import MINI
from pillow_sdz.cli import main
from pillow_sdz.cli.arguments import byte_count

pytestmark = pytest.mark.usefixtures("one_process")

posix_only = pytest.mark.skipif(os.name != "posix", reason="permissions and pipes of POSIX")


@pytest.fixture
def folder(photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a few pictures: a.jpg, b.png, trip/c.jpg and trip/notes.txt."""
    monkeypatch.chdir(tmp_path)
    photo.save("a.jpg")
    photo.save("b.png")
    Path("trip").mkdir()
    photo.save("trip/c.jpg")
    Path("trip/notes.txt").write_text("no picture")
    return tmp_path


@pytest.fixture
def sdz(folder: Path, photo: Image.Image) -> Path:
    """x.sdz in the working directory."""
    photo.save("x.sdz")
    return Path("x.sdz")


def files(folder: Path = Path()) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_encode_writes_beside_the_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "a.jpg", "trip/c.jpg"]) == 0
    assert {"a.sdz", "trip/c.sdz"} <= files()
    with Image.open("a.sdz") as image:
        assert (image.format, image.size) == ("SDZ", (61, 43))
    before = sum(Path(name).stat().st_size for name in ("a.jpg", "trip/c.jpg"))
    after = sum(Path(name).stat().st_size for name in ("a.sdz", "trip/c.sdz"))
    assert capsys.readouterr() == (
        f"2 done, 0 skipped, 0 failed: {before:,} bytes -> {after:,} bytes,"
        f" ratio {before / after:.2f}\n",
        "",
    )


def test_one_file_is_converted_without_a_word(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["encode", "a.jpg"]) == 0
    assert main(["decode", "a.sdz"]) == 0
    assert main(["latents", "a.sdz"]) == 0
    assert capsys.readouterr() == ("", "")


def test_decode_writes_png_beside_the_input(sdz: Path) -> None:
    assert main(["decode", "x.sdz"]) == 0
    with Image.open("x.png") as image, Image.open(sdz) as expected:
        assert image.format == "PNG"
        assert image.tobytes() == expected.tobytes()


def test_output_file(sdz: Path) -> None:
    assert main(["encode", "a.jpg", "-o", "new.SDZ"]) == 0
    assert main(["decode", "x.sdz", "-o", "new.webp"]) == 0
    with Image.open("new.SDZ") as image:
        assert image.format == "SDZ"
    with Image.open("new.webp") as image:
        assert image.format == "WEBP"


@pytest.mark.parametrize("inputs", [["a.jpg"], ["a.jpg", "b.png"]])
def test_output_folder_is_made(folder: Path, inputs: list[str]) -> None:
    assert main(["encode", *inputs, "-o", "out/v1.2"]) == 0
    assert files(Path("out/v1.2")) == {f"{Path(name).stem}.sdz" for name in inputs}


def test_folders_are_searched_and_their_tree_is_kept(folder: Path) -> None:
    assert main(["encode", ".", "-o", "../out"]) == 0
    out = folder.parent / "out"
    assert files(out) == {"a.sdz", "b.sdz", "trip/c.sdz"}
    assert main(["decode", str(out), "--format", "jpg"]) == 0
    assert {"a.jpg", "b.jpg", "trip/c.jpg"} <= files(out)


def test_a_folder_without_pictures_is_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["decode", "trip"]) == 1
    assert capsys.readouterr().err == "sdz: trip: this folder has no .sdz files\n"


def test_quality_and_target_size_reach_the_encoder(folder: Path) -> None:
    for quality in ("5", "95"):
        assert main(["encode", "a.jpg", "-q", quality, "-o", f"{quality}.sdz"]) == 0
    low, high = Path("5.sdz").stat().st_size, Path("95.sdz").stat().st_size
    assert low < high
    budget = (low + high) // 2
    assert main(["encode", "a.jpg", "-t", f"{budget}B", "-o", "t.sdz"]) == 0
    assert low <= Path("t.sdz").stat().st_size <= budget


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5000", 5000),
        ("5k", 5000),
        ("5kB", 5000),
        ("5 KB", 5000),
        ("4KiB", 4096),
        ("4ki", 4096),
        ("1.5MB", 1_500_000),
        ("2MiB", 2 << 20),
        ("700B", 700),
    ],
)
def test_byte_count(text: str, size: int) -> None:
    assert byte_count(text) == size


@pytest.mark.parametrize("text", ["", "0", "-5", "5x", "k", "5kBB", "5iB", "1e3", "nan", "0.1"])
def test_byte_count_refuses(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="not a size in bytes"):
        byte_count(text)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["encode"],
        ["encode", "a.jpg", "--quality", "0"],
        ["encode", "a.jpg", "--quality", "101"],
        ["encode", "a.jpg", "--target-size", "tiny"],
        ["encode", "a.jpg", "--quality", "5", "--target-size", "5k"],
        ["encode", "a.jpg", "--force", "--skip-existing"],
        ["encode", "a.jpg", "-o", "new.png"],
        ["encode", "a.jpg", "b.png", "-o", "trip/notes.txt"],
        ["encode", "a.jpg", "--step", "0.3", "--lossless"],
        ["encode", "a.jpg", "--step", "0.3", "--quality", "5"],
        ["encode", "a.jpg", "--step", "0"],
        ["encode", "a.jpg", "--step", "nan"],
        ["encode", "a.jpg", "--effort", "10"],
        ["encode", "a.jpg", "--coding", "nonsense"],
        ["latents", "x.sdz", "-o", "new.png"],
        ["latents", "x.sdz", "--format", "png"],
        ["latents", "x.sdz", "--format", "npz", "-o", "new.latent"],
        ["decode", "x.sdz", "-o", "new.sdz"],
        ["decode", "x.sdz", "-o", "new.xyz"],
        ["decode", "x.sdz", "--format", "sdz"],
        ["decode", "x.sdz", "--format", "nonsense"],
        ["decode", "x.sdz", "--format", "jpg", "-o", "new.png"],
        ["demo", "--quality", "5", "--target-size", "5k"],
    ],
)
def test_wrong_command_lines_write_nothing(sdz: Path, arguments: list[str]) -> None:
    before = files()
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert files() == before


def test_an_existing_file_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.sdz").write_bytes(b"precious")
    assert main(["encode", "a.jpg"]) == 1
    assert Path("a.sdz").read_bytes() == b"precious"
    assert capsys.readouterr().err == (
        "sdz: a.jpg: a.sdz exists (--force replaces it, --skip-existing leaves it)\n"
    )


@pytest.mark.parametrize("command", ["encode", "decode", "latents"])
def test_skip_existing_goes_on_with_what_is_missing(
    sdz: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("y.sdz").write_bytes(sdz.read_bytes())
    sources, suffix = {
        "encode": (["a.jpg", "b.png"], "sdz"),
        "decode": (["x.sdz", "y.sdz"], "png"),
        "latents": (["x.sdz", "y.sdz"], "npz"),
    }[command]
    first, second = (Path(source).with_suffix(f".{suffix}") for source in sources)
    first.write_bytes(b"precious")
    assert main([command, *sources, "--skip-existing"]) == 0
    assert first.read_bytes() == b"precious"
    assert second.stat().st_size > 8
    out, err = capsys.readouterr()
    assert out.startswith("1 done, 1 skipped, 0 failed: ")
    assert err == ""


def test_skip_existing_does_not_hide_that_two_inputs_become_one_file(
    folder: Path, photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    photo.save("a.png")
    assert main(["encode", "a.jpg", "a.png", "--skip-existing"]) == 1
    assert main(["encode", "a.jpg", "a.png", "--skip-existing"]) == 1
    assert capsys.readouterr().err == "sdz: a.png: a.sdz is already written from a.jpg\n" * 2


def test_force_replaces_it(folder: Path) -> None:
    Path("a.sdz").write_bytes(b"old")
    assert main(["encode", "a.jpg", "--force"]) == 0
    assert Path("a.sdz").read_bytes() != b"old"


@pytest.mark.parametrize("name", ["same.sdz", "link.sdz"])
def test_the_input_is_never_overwritten(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("b.png").rename("same.sdz")
    Path("link.sdz").symlink_to("same.sdz")
    before = Path("same.sdz").read_bytes()
    assert main(["encode", "same.sdz", "--force", "-o", name]) == 1
    assert Path("same.sdz").read_bytes() == before
    assert capsys.readouterr().err == "sdz: same.sdz: would overwrite itself\n"


def test_two_inputs_never_become_one_file(
    folder: Path, photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    photo.save("a.png")
    assert main(["encode", "a.jpg", "a.png", "--force"]) == 1
    assert capsys.readouterr().err == "sdz: a.png: a.sdz is already written from a.jpg\n"


def test_a_failure_leaves_what_was_there(sdz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = sdz.read_bytes()
    sdz.write_bytes(data[:-20])
    Path("x.png").write_bytes(b"precious")
    before = files()
    assert main(["decode", "x.sdz", "--force"]) == 1
    assert Path("x.png").read_bytes() == b"precious"
    assert files() == before
    assert capsys.readouterr().err.startswith("sdz: x.sdz: ")


def test_a_failure_while_writing_leaves_what_was_there(
    sdz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("x.msp").write_bytes(b"precious")
    before = files()
    assert main(["decode", "x.sdz", "-o", "x.msp", "--force"]) == 1  # which is black and white
    assert Path("x.msp").read_bytes() == b"precious"
    assert files() == before
    assert capsys.readouterr().err == "sdz: x.sdz: cannot write mode RGB as MSP\n"


def test_one_bad_file_does_not_stop_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["encode", "missing.jpg", "trip/notes.txt", "a.jpg", "b.png"]) == 1
    assert {"a.sdz", "b.sdz"} <= files()
    assert capsys.readouterr().err.splitlines() == [
        "sdz: missing.jpg: No such file or directory",
        "sdz: trip/notes.txt: not a picture that Pillow can read",
    ]


def test_a_message_names_the_file_that_it_is_about(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken").write_text("no folder")
    assert main(["encode", "a.jpg", "-o", "taken/below"]) == 1
    assert capsys.readouterr().err.startswith(f"sdz: a.jpg: {folder / 'taken'}")


def test_other_files_are_no_sdz(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "a.jpg"]) == 1
    assert main(["info", "a.jpg"]) == 1
    assert capsys.readouterr().err == "sdz: a.jpg: not an .sdz file\n" * 2


def test_an_unreachable_target_size_says_what_is_possible(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["encode", "a.jpg", "-t", "10"]) == 1
    assert "the smallest file has" in capsys.readouterr().err
    assert "a.sdz" not in files()


def test_lost_frames_are_mentioned(
    folder: Path, photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pages of a document are no animation, and some formats hold one picture."""
    several = {"save_all": True, "append_images": [photo.rotate(180)]}
    photo.save("two.tiff", **several)
    assert main(["encode", "two.tiff"]) == 0
    assert capsys.readouterr().err == "sdz: two.tiff: only the first of its 2 frames is kept\n"
    photo.save("two.sdz", **several)
    assert main(["decode", "two.sdz", "--format", "jpg"]) == 0
    assert capsys.readouterr().err == "sdz: two.sdz: only the first of its 2 frames is kept\n"


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "avif"])
def test_animations_both_ways(
    folder: Path, photo: Image.Image, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    """All frames are kept, with their times and the number of loops."""
    if suffix not in ("gif", "png") and not features.check(suffix):
        pytest.skip(f"this Pillow is built without {suffix}")
    durations = [40, 200, 80]
    turned = [photo.rotate(120), photo.rotate(240)]
    timing: dict[str, Any] = {"duration": durations, "loop": 2}
    photo.save(f"three.{suffix}", save_all=True, append_images=turned, **timing)
    assert main(["encode", f"three.{suffix}", "-o", "three.sdz"]) == 0
    assert main(["decode", "three.sdz", "-o", f"again.{suffix}"]) == 0
    assert capsys.readouterr().err == ""
    for name in ("three.sdz", f"again.{suffix}"):
        with Image.open(name) as image:
            assert image.n_frames == 3
            for number, frame in enumerate(ImageSequence.Iterator(image)):
                frame.load()
                assert frame.info["duration"] == durations[number]
            if suffix != "avif":  # which does not say
                assert image.info["loop"] == 2


def test_a_gif_that_is_shown_once(folder: Path, photo: Image.Image) -> None:
    photo.save("two.gif", save_all=True, append_images=[photo.rotate(180)])
    assert main(["encode", "two.gif"]) == 0
    assert main(["decode", "two.sdz", "-o", "again.gif"]) == 0
    with Image.open("two.sdz") as image, Image.open("again.gif") as again:
        assert image.info["loop"] == 1
        assert "loop" not in again.info


def test_info_of_an_animation(
    folder: Path, photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    several = [photo.rotate(120), photo.rotate(240)]
    photo.save("three.sdz", save_all=True, append_images=several, duration=[40, 200, 80], loop=2)
    assert main(["info", "--json", "three.sdz"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["frames"], told["duration"], told["loop"]) == (3, 320, 2)
    assert main(["info", "three.sdz"]) == 0
    assert "3 in 0.32 s, 2 times" in capsys.readouterr().out


def test_ctrl_c(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(image: Image.Image, file: io.BytesIO, *_: object, **__: object) -> None:
        file.write(b"the first bytes of it")
        raise KeyboardInterrupt

    before = files()
    monkeypatch.setattr(Image.Image, "save", interrupted)
    assert main(["encode", "a.jpg", "b.png"]) == 130
    assert files() == before


@posix_only
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_follow_the_umask(folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert main(["encode", "a.jpg"]) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path("a.sdz").stat().st_mode) == 0o666 & ~umask


@posix_only
def test_a_symbolic_link_stays_one(folder: Path) -> None:
    Path("trip/c.sdz").write_bytes(b"old")
    Path("a.sdz").symlink_to("trip/c.sdz")
    assert main(["encode", "a.jpg", "--force"]) == 0
    assert Path("a.sdz").is_symlink()
    with Image.open("trip/c.sdz") as image:
        assert image.format == "SDZ"


@pytest.fixture
def annotated(folder: Path, photo: Image.Image) -> dict[str, bytes]:
    """The metadata of annotated.jpg in the working directory."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Artist] = "Vivian"
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.ISOSpeedRatings: 400}
    metadata = {
        "exif": exif.tobytes(),
        "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        "xmp": b'<x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>',
    }
    photo.save("annotated.jpg", "JPEG", **metadata)
    return metadata


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "avif", "tif"])
def test_metadata_both_ways(annotated: dict[str, bytes], suffix: str) -> None:
    assert main(["encode", "annotated.jpg"]) == 0
    assert main(["decode", "annotated.sdz", "-o", f"back.{suffix}"]) == 0
    for name in ("annotated.sdz", f"back.{suffix}"):
        with Image.open(name) as image:
            exif = image.getexif()
            assert exif[ExifTags.Base.Orientation] == 6
            assert exif[ExifTags.Base.Artist] == "Vivian"
            assert exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] == 400
            assert image.info["icc_profile"] == annotated["icc_profile"]
            assert image.info["xmp"] == annotated["xmp"]


def test_tiff_keeps_its_description_and_not_its_layout(folder: Path, photo: Image.Image) -> None:
    tags = Image.Exif()
    tags[ExifTags.Base.Artist] = "Vivian"
    tags[ExifTags.IFD.Exif] = {ExifTags.Base.ISOSpeedRatings: 400}
    photo.save("t.tif", exif=tags.tobytes())
    assert main(["encode", "t.tif"]) == 0
    with Image.open("t.sdz") as image:
        exif = image.getexif()
    assert exif[ExifTags.Base.Artist] == "Vivian"
    assert exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] == 400
    assert ExifTags.Base.Compression not in exif
    assert ExifTags.Base.StripOffsets not in exif


def test_a_tiff_keeps_its_place_both_ways(folder: Path, photo: Image.Image) -> None:
    tags = Image.Exif()
    tags[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
    photo.save("t.tif", exif=tags.tobytes())
    assert main(["encode", "t.tif"]) == 0
    assert main(["decode", "t.sdz", "-o", "u.tif"]) == 0
    for name in ("t.sdz", "u.tif"):
        with Image.open(name) as image:
            place = image.getexif().get_ifd(ExifTags.IFD.GPSInfo)
        assert place[ExifTags.GPS.GPSLatitudeRef] == "N"


def test_no_metadata_adds_none(folder: Path) -> None:
    assert main(["encode", "b.png"]) == 0
    with Image.open("b.sdz") as image:
        assert image.info["sdz"]["bytes"]["metadata"] == 0


def test_verbose_says_what_was_written(sdz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "a.jpg", "-v"]) == 0
    size = Path("a.sdz").stat().st_size
    assert capsys.readouterr().out.startswith(f"a.jpg -> a.sdz: {size:,} bytes, ")


def test_info_json(sdz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json", "x.sdz", "."]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first == second
    size = sdz.stat().st_size
    with Image.open(sdz) as image:
        described = json.loads(json.dumps(image.info["sdz"]))
    assert first == {
        "file": "x.sdz",
        "width": 61,
        "height": 43,
        "mode": "RGB",
        "frames": 1,
        "duration": 0,
        "loop": None,
        "bytes": size,
        "bits_per_pixel": round(8 * size / (61 * 43), 4),
        "metadata": {},
        "place": False,
        "orientation": 1,
        "sdz": described,
        "weights": MINI.digest.hex(),
        "truncated": None,
        "provenance": None,
        "alpha_mask": False,
        "chunks": [
            {"type": "HEAD", "count": 1, "bytes": 23},
            {"type": "LATN", "count": 1, "bytes": described["bytes"]["latents"]},
            {"type": "DONE", "count": 1, "bytes": 0},
        ],
    }


def test_info_json_is_a_list_even_of_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", "--json", "missing.sdz"]) == 1
    assert json.loads(capsys.readouterr().out) == []


def test_info_text(annotated: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "annotated.jpg", "-q", "60"]) == 0
    assert main(["info", "annotated.sdz"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["annotated.sdz"]
    told = dict(lines[1:])
    assert told["size"] == "61x43 RGB"
    assert told["quality"] == "60"
    assert told["model"] == "mini"
    assert told["bytes"].startswith(f"{Path('annotated.sdz').stat().st_size:,} (")
    assert "icc_profile" in lines[-1][1]


# latents


def cached(resolution: str = "", h: int = 8, w: int = 6, *, flipped: bool = True) -> dict[str, Any]:
    """What sd-scripts' save_latents_to_disk gives to np.savez, from a VAE in half precision."""
    rng = np.random.default_rng(h)
    first, second = (5 * rng.normal(size=(2, 4, h, w))).astype(np.float16).astype(np.float32)
    arrays = {
        "latents": first,
        "original_size": np.array((812, 1033)),
        "crop_ltrb": np.array((0, 12, 48, 76)),
        **({"latents_flipped": second} if flipped else {}),
        "alpha_mask": rng.integers(0, 256, (8 * h, 8 * w)).astype(np.float32) / 255.0,
    }
    return {key + resolution: array for key, array in arrays.items()}


def assert_same_npz(a: Path, b: Path, tolerance: float = 0) -> None:
    """The keys, their order and the types are the same. Only the values of latents may differ."""
    with np.load(a) as first, np.load(b) as second:
        assert second.files == first.files
        for key in first.files:
            assert second[key].dtype == first[key].dtype, key
            allowed = tolerance if key.startswith("latents") else 0
            np.testing.assert_allclose(second[key], first[key], rtol=0, atol=allowed, err_msg=key)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with sd-scripts' caches in cache/ and cache/more/."""
    monkeypatch.chdir(tmp_path)
    Path("cache/more").mkdir(parents=True)
    np.savez("cache/a_0048x0064_sd.npz", **cached())
    np.savez("cache/more/b_0048x0064_sd.npz", **cached(flipped=False))
    return Path("cache")


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [([], 0.298 / 0.18215), (["--step", "0.02"], 0.0101 / 0.18215), (["--lossless"], 0)],
)
def test_caches_there_and_back(
    cache: Path, options: list[str], tolerance: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """All keys come back. Latents are exact, or off by at most the step or half of it."""
    np.savez("cache/a_te_outputs.npz", hidden_state1=np.zeros((77, 8), np.float32))
    assert main(["encode", "cache", "-o", "out", *options]) == 0
    Path("cache/a_te_outputs.npz").unlink()
    assert files(Path("out")) == {"a_0048x0064_sd.sdz", "more/b_0048x0064_sd.sdz"}
    before = sum(path.stat().st_size for path in cache.rglob("*.npz"))
    after = sum(path.stat().st_size for path in Path("out").rglob("*.sdz"))
    assert capsys.readouterr() == (
        f"2 done, 0 skipped, 0 failed, 1 other file left out: {before:,} bytes -> {after:,} bytes,"
        f" ratio {before / after:.2f}\n",
        "",
    )
    assert main(["latents", "out", "-o", "back"]) == 0
    assert files(Path("back")) == files(cache)
    for name in files(cache):
        assert_same_npz(cache / name, Path("back") / name, tolerance)


def test_caches_beside_their_pictures(cache: Path) -> None:
    """sd-scripts keeps caches beside the pictures.

    An option that only latents have takes the caches.
    """
    Image.new("RGB", (64, 48)).save(cache / "a.png")
    assert main(["encode", "cache", "-o", "out", "--step", "0.1"]) == 0
    assert files(Path("out")) == {"a_0048x0064_sd.sdz", "more/b_0048x0064_sd.sdz"}
    assert main(["encode", "cache", "-o", "pictures"]) == 0
    assert files(Path("pictures")) == {"a.sdz"}


def test_a_prompt_cannot_speak_to_the_terminal(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (8, 8)).save("x.sdz", model="sd-mini", prompt="a\x1b]0;title\x07 cat")
    assert main(["info", "x.sdz"]) == 0
    out = capsys.readouterr().out
    assert r"a\x1b]0;title\x07 cat" in out
    assert "\x1b" not in out


def test_a_cache_with_several_resolutions(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It becomes several files. They say that they belong together, whatever their names are."""
    path = cache / "c_0048x0064_sd.npz"
    np.savez(path, **cached("_8x6"), **cached("_12x4", 12, 4))
    assert main(["encode", str(path), "-o", "out", "--lossless"]) == 0
    made = {"c_0048x0064_sd.sdz", "c_0048x0064_sd.12x4.sdz"}
    assert files(Path("out")) == made
    capsys.readouterr()
    assert main(["encode", str(path), "-o", "out"]) == 1  # neither is replaced
    assert "exists (--force replaces it, " in capsys.readouterr().err
    Path("out/c_0048x0064_sd.12x4.sdz").rename("out/b.sdz")
    assert main(["latents", "out/c_0048x0064_sd.sdz", "out/b.sdz", "-o", "back"]) == 0
    assert files(Path("back")) == {path.name}
    with np.load(path) as first, np.load("back/" + path.name) as second:
        assert set(second.files) == set(first.files)
        for key in first.files:
            np.testing.assert_array_equal(second[key], first[key])


def test_names_that_look_like_resolutions_mean_nothing(cache: Path) -> None:
    """Several files stay several files."""
    for name in ("wall.96x64", "wall.64x96"):
        np.savez(f"{name}.npz", latents=np.zeros((4, 8, 6), np.float32))
    assert main(["encode", "wall.96x64.npz", "wall.64x96.npz", "-o", "out", "--lossless"]) == 0
    assert main(["latents", "out", "-o", "back"]) == 0
    assert files(Path("back")) == {"wall.96x64.npz", "wall.64x96.npz"}


def test_folders_for_the_result_are_made(cache: Path) -> None:
    assert main(["encode", str(cache / "a_0048x0064_sd.npz"), "-o", "new/and/deep/x.sdz"]) == 0
    assert files(Path("new")) == {"and/deep/x.sdz"}


def test_a_resolution_never_takes_another_inputs_name(cache: Path) -> None:
    """It gets another name, because the user has not asked for this one."""
    np.savez("c.npz", **cached("_8x6"), **cached("_12x4", 12, 4))
    np.savez("c.12x4.npz", latents=np.zeros((4, 8, 6), np.float32))
    for inputs in (["c.npz", "c.12x4.npz"], ["c.12x4.npz", "c.npz"]):
        assert main(["encode", *inputs, "-o", "out", "--lossless", "--force"]) == 0
        assert files(Path("out")) == {"c.sdz", "c.12x4.sdz", "c.12x4.2.sdz"}
        assert open_latents("out/c.12x4.sdz").latents.shape == (4, 8, 6)
    assert main(["latents", "out", "-o", "back"]) == 0
    assert files(Path("back")) == {"c.npz", "c.12x4.npz"}
    for name in files(Path("back")):
        assert_same_npz(Path(name), Path("back", name))


@pytest.mark.parametrize("option", ["--force", "--skip-existing"])
def test_a_resolution_takes_no_name_of_an_earlier_command(cache: Path, option: str) -> None:
    np.savez("c.12x4.npz", latents=np.zeros((4, 8, 6), np.float32))
    np.savez("c.npz", **cached("_8x6"), **cached("_12x4", 12, 4))
    assert main(["encode", "c.12x4.npz", "-o", "out", "--lossless"]) == 0
    for _ in range(2):  # the second time, its own files are there
        assert main(["encode", "c.npz", "-o", "out", "--lossless", option]) == 0
        assert files(Path("out")) == {"c.sdz", "c.12x4.sdz", "c.12x4.2.sdz"}
    assert main(["latents", "out", "-o", "back"]) == 0
    for name in ("c.npz", "c.12x4.npz"):
        assert_same_npz(Path(name), Path("back", name))


def test_what_a_killed_run_left_of_a_cache_is_completed(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez("c.npz", **cached("_8x6"), **cached("_12x4", 12, 4))
    for lost, kept in (("c.sdz", "c.12x4.sdz"), ("c.12x4.sdz", "c.sdz")):
        assert main(["encode", "c.npz", "-o", "out", "--lossless", "--force"]) == 0
        Path("out", lost).unlink()
        before = Path("out", kept).stat().st_mtime_ns
        assert main(["encode", "c.npz", "-o", "out", "--lossless"]) == 1  # and writes nothing
        assert files(Path("out")) == {kept}
        assert main(["encode", "c.npz", "-o", "out", "--lossless", "--skip-existing"]) == 0
        assert files(Path("out")) == {"c.sdz", "c.12x4.sdz"}
        assert Path("out", kept).stat().st_mtime_ns == before
    assert main(["latents", "out/c.sdz", "out/c.12x4.sdz", "-o", "back"]) == 0
    assert_same_npz(Path("c.npz"), Path("back/c.npz"))


def test_a_cache_whose_name_is_taken_is_skipped_as_a_whole(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A single resolution of it would be of no use, and the cache would look finished."""
    np.savez("c.npz", **cached("_8x6"), **cached("_12x4", 12, 4))
    Path("out").mkdir()
    Image.new("RGB", (8, 8)).save("out/c.sdz")
    before = Path("out/c.sdz").read_bytes()
    assert main(["encode", "c.npz", "-o", "out/", "-v", "--skip-existing"]) == 0
    assert files(Path("out")) == {"c.sdz"}
    assert Path("out/c.sdz").read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="names of POSIX")
def test_a_name_that_gets_too_long_is_cut(cache: Path) -> None:
    """It is not cut in the middle of a letter, and two long names stay different."""
    stem = "ä" * 125  # 250 bytes, with .npz 254
    np.savez(f"{stem}.npz", **cached("_8x6"), **cached("_12x4", 12, 4))
    np.savez(f"{stem}x.npz", **cached("_8x6"))
    names = [f"{stem}.npz", f"{stem}x.npz"]
    assert main(["encode", *names, "-o", "out", "--lossless"]) == 0
    made = files(Path("out"))
    assert len(made) == 3
    assert {f"{stem}.sdz", f"{stem}x.sdz"} < made
    assert main(["latents", "out", "-o", "back"]) == 0
    for name in names:
        assert_same_npz(Path(name), Path("back", name))
    for _ in range(2):
        sources = [f"out/{stem}.sdz", f"out/{stem}x.sdz"]
        command = ["latents", *sources, "--format", "safetensors", "-o", "long"]
        assert main([*command, "--skip-existing"]) == 0
        assert len(files(Path("long"))) == 2


def test_comfyui_there_and_back(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = torch.from_numpy(cached()["latents"])[None]
    metadata = {"prompt": '{"3": {"class_type": "KSampler"}}', "workflow": '{"version": 0.4}'}
    tensors = {"latent_tensor": samples, "latent_format_version_0": torch.tensor([])}
    save_file(tensors, "x.latent", metadata=metadata)
    assert main(["encode", "x.latent", "--lossless"]) == 0
    assert (
        capsys.readouterr().err
        == "sdz: latents are assumed to be of sd1 (--model names another model)\n"
    )
    assert main(["latents", "x.sdz", "-o", "y.latent"]) == 0
    with safe_open("y.latent", "pt") as file:
        assert file.metadata() == metadata
        assert set(file.keys()) == set(tensors)
        for key, tensor in tensors.items():
            assert torch.equal(file.get_tensor(key), tensor)


@pytest.mark.parametrize("format", ["npz", "npy", "safetensors"])
def test_latents_of_a_pipeline_in_plain_files(
    cache: Path, format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are scaled in both files.

    They keep their type, and the axis of the batch if they have one.
    """
    np.save("p.npy", np.random.default_rng(3).normal(size=(2, 4, 8, 6)).astype(np.float16))
    assert main(["encode", "p.npy", "--model", "sd1", "--lossless"]) == 0
    assert main(["latents", "p.sdz", "--format", format, "-o", "out"]) == 0
    (part,) = interchange.read(Path(f"out/p.{format}"))
    assert part.latents.dtype == np.float16
    np.testing.assert_array_equal(part.latents, np.load("p.npy"))


def test_latents_of_a_file_that_was_a_picture(sdz: Path) -> None:
    assert main(["latents", "x.sdz"]) == 0
    with np.load("x.npz") as arrays:
        assert arrays.files == ["latents"]
        assert (arrays["latents"].shape, arrays["latents"].dtype) == ((384, 3, 4), np.float32)


def test_a_folder_with_pictures_is_one_of_pictures(folder: Path) -> None:
    np.savez("latents.npz", **cached())
    assert main(["encode", ".", "-o", "out"]) == 0
    assert files(Path("out")) == {"a.sdz", "b.sdz", "trip/c.sdz"}


def test_the_model_of_latents(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The name of sd-scripts' file says it, or --model. Latents of 16 channels need --model."""
    np.savez("x.npz", latents=np.zeros((16, 8, 6), np.float32))
    np.savez("x_sdxl.npz", latents=np.zeros((4, 8, 6), np.float32))
    assert main(["encode", "x.npz", "x_sdxl.npz", "--lossless", "-v"]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("sdz: x.npz: nothing says which latents of the shape (16, 8, 6) these ")
    assert out.startswith("x_sdxl.npz -> x_sdxl.sdz: ")
    assert open_latents("x_sdxl.sdz").model == "sdxl"
    assert main(["encode", "x.npz", "--lossless", "--model", "flux"]) == 0
    assert open_latents("x.sdz").model == "flux"
    assert main(["encode", "x.npz", "--model", "nothing", "-o", "y.sdz"]) == 1
    assert "model must be one of" in capsys.readouterr().err
    assert not Path("y.sdz").exists()


def test_options_of_the_other_kind_of_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez("x.npz", latents=np.zeros((4, 8, 6), np.float32))
    assert main(["encode", "a.jpg", "--step", "0.3"]) == 1
    assert main(["encode", "a.jpg", "--lossless"]) == 1
    assert main(["encode", "a.jpg", "--factor", "8"]) == 1
    assert main(["encode", "a.jpg", "--size", "64x48"]) == 1
    assert main(["encode", "x.npz", "-t", "5k"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "sdz: a.jpg: --step is for latents, this is a picture",
        "sdz: a.jpg: --lossless is for latents, this is a picture",
        "sdz: a.jpg: --factor is for latents, this is a picture",
        "sdz: a.jpg: --size is for latents, this is a picture",
        "sdz: x.npz: --target-size is for pictures, these are latents",
    ]


def test_bad_latents_do_not_stop_the_others(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("cache/0.npz").write_bytes(b"no archive")
    np.savez("cache/1.npz", labels=np.zeros((4, 8, 6), np.int32))
    assert main(["encode", "cache", "-o", "out"]) == 1
    assert files(Path("out")) == {"a_0048x0064_sd.sdz", "more/b_0048x0064_sd.sdz"}
    assert capsys.readouterr().err.splitlines() == [
        "sdz: cache/0.npz: damaged numpy file: File is not a zip file",
        "sdz: cache/1.npz: an array of int32 is not latents",
    ]


def test_foreign_provenance(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other people's provenance is ignored. If it claims to be this package's, it must be sound."""
    array = np.zeros((4, 8, 6), np.float32)
    save_latents(array, "x.sdz", model="sd1", provenance={"by": "me"})
    save_latents(array, "y.sdz", model="sd1", provenance={"layout": "kohya", "format": 5})
    assert main(["latents", "x.sdz", "y.sdz"]) == 1
    assert files() >= {"x.npz"}
    assert not Path("y.npz").exists()
    assert capsys.readouterr().err.startswith("sdz: y.sdz: not an origin of latents: ")


def test_options_for_pictures_reach_the_encoder(folder: Path) -> None:
    assert main(["encode", "a.jpg", "--model", "mini", "--coding", "context", "--effort", "0"]) == 0
    assert main(["encode", "b.png", "--prompt", "a gradient"]) == 0
    with Image.open("b.sdz") as image:
        assert image.info["sdz"]["prompt"] == "a gradient"


def test_info_of_frames(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_latents(np.zeros((2, 4, 8, 6), np.float32), "x.sdz", model="sd1", step=0.25, prompt="a\nb")
    assert main(["info", "x.sdz"]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    assert (told["frames"], told["step"], told["prompt"]) == ("2", "0.25", "a b")
    assert "quality" not in told


def test_decoding_a_batch(sdz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The frames of a batch have no times."""
    latents = np.stack([open_latents(sdz).latents] * 2)
    save_latents(latents, "two.sdz", model="mini", size=(61, 43))
    assert main(["decode", "two.sdz", "-o", "two.tiff"]) == 0
    assert capsys.readouterr().err == ""
    with Image.open("two.tiff") as image:
        assert (image.n_frames, image.size) == (2, (61, 43))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("inputs", "shown"), [(["a.jpg", "b.png"], True), (["a.jpg"], False)])
def test_progress_for_more_than_one_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], shown: bool
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["encode", *inputs]) == 0
    assert ("2/2" in terminal.getvalue()) is shown
    assert shown or terminal.getvalue() == ""


def test_progress_within_a_picture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow picture shows the progress of each stage, counted in its parts."""
    monkeypatch.setattr("pillow_sdz.cli.running.PATIENCE", 0)
    monkeypatch.setattr("pillow_sdz.models.mini.memory.LARGEST_TILE", 26)
    monkeypatch.setattr("pillow_sdz.codings.banded.BAND_ROWS", 32)
    Image.open("a.jpg").resize((500, 900)).save("large.png")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["encode", "large.png"]) == 0
    shown = terminal.getvalue()
    assert "encoding" in shown
    assert "6/6" in shown  # 57x32 latents
    # One bar for all parts of a stage.
    assert shown.count(" 0/6 ") == 1
    assert "coding" in shown
    assert "2/2" in shown
    assert main(["decode", "large.sdz", "-o", "decoded.png"]) == 0
    assert "decoding" in terminal.getvalue()


def test_as_a_module(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pillow_sdz", "--version"]
    process = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert process.stdout == f"sdz {__version__}\n"


# These modules take long to import.
HEAVY = ["diffusers", "numpy", "torch", "transformers"]


@pytest.mark.parametrize("command", [["--help"], ["info", "x.sdz"], ["models", "list"]])
def test_what_needs_no_network_imports_none(
    sdz: Path, environment: dict[str, str], command: list[str]
) -> None:
    program = f"""
import contextlib, sys
from pillow_sdz.cli import main
with contextlib.suppress(SystemExit):
    main({command})
print(sorted(set({HEAVY}) & sys.modules.keys()))
"""
    arguments = [sys.executable, "-c", program]
    process = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)
    assert process.stdout.splitlines()[-1] == "[]"


@posix_only
def test_a_closed_pipe_is_no_error_message(sdz: Path, environment: dict[str, str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "pillow_sdz", "info", str(sdz)]
    try:
        process = subprocess.run(
            command, stdout=writing, stderr=subprocess.PIPE, check=False, env=environment
        )
    finally:
        os.close(writing)
    assert (process.returncode, process.stderr) == (141, b"")
