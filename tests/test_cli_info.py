"""`sdz info` shows everything that is in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from pillow_sdz import container, save_latents
from pillow_sdz.catalogue import SD_MINI
from pillow_sdz.cli import main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def told(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """The description of x.sdz: the lines of the text by their names, and the object of JSON."""
    assert main(["info", "x.sdz"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "x.sdz"
    assert main(["info", "--json", "x.sdz"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    return {line[2:14].strip(): line[14:] for line in lines[1:]}, entry


def test_every_chunk(photo: Image.Image, capsys: pytest.CaptureFixture[str]) -> None:
    """The type, the number and the bytes of each kind of chunk, also of unknown ones."""
    photo.save(
        "x.sdz",
        save_all=True,
        append_images=[photo, photo.rotate(90)],
        duration=40,
        chunks=[(b"teSt", b"unknown"), (b"teST", b"not safe to copy")],
    )
    text, entry = told(capsys)
    chunks = container.read(Path("x.sdz").read_bytes())
    assert {chunk.type for chunk in chunks} >= {b"aNIM", b"LATN", b"teSt", b"teST"}
    assert entry["chunks"] == [
        {
            "type": type.decode(),
            "count": sum(chunk.type == type for chunk in chunks),
            "bytes": sum(len(chunk.data) for chunk in chunks if chunk.type == type),
        }
        for type in dict.fromkeys(chunk.type for chunk in chunks)
    ]
    assert "teSt 7, teST 16, " in text["chunks"]
    assert text["chunks"].endswith(", DONE 0")


def test_what_the_decoder_is_told(photo: Image.Image, capsys: pytest.CaptureFixture[str]) -> None:
    photo.save("x.sdz", model="sd-mini", prompt="a cat", denoise=0.04)
    text, entry = told(capsys)
    assert text["prompt"] == "a cat"
    assert text["denoise"] == "strength 0.04, 3 steps"
    assert entry["sdz"]["denoise"] == {"strength": 0.04, "steps": 3}
    assert text["weights"] == entry["weights"] == SD_MINI.digest.hex()
    photo.save("x.sdz", tune="perceptual")
    text, entry = told(capsys)
    assert text["tune"] == entry["sdz"]["tune"] == "perceptual"


def test_what_came_with_latents(capsys: pytest.CaptureFixture[str]) -> None:
    provenance = {"layout": "mine", "numbers": [1, 2, 3]}
    save_latents(
        np.zeros((4, 8, 6), np.float32),
        "x.sdz",
        model="sd1",
        provenance=provenance,
        alpha_mask=np.ones((64, 48), np.float32),
    )
    text, entry = told(capsys)
    assert entry["provenance"] == provenance
    assert text["provenance"] == json.dumps(provenance)
    assert (entry["alpha_mask"], text["alpha mask"]) == (True, "yes")


def test_long_texts_are_cut_for_people_only(capsys: pytest.CaptureFixture[str]) -> None:
    provenance = {"workflow": "x" * 5000}
    latents = np.zeros((4, 8, 6), np.float32)
    save_latents(latents, "x.sdz", model="sd1", provenance=provenance, prompt="y" * 5000)
    text, entry = told(capsys)
    for name in ("provenance", "prompt"):
        assert len(text[name]) < 350
        assert text[name].endswith("... (--json prints all)")
    assert entry["provenance"] == provenance
    assert entry["sdz"]["prompt"] == "y" * 5000


@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (2, "mirrored"),
        (3, "turned by 180 degrees"),
        (6, "turned by 90 degrees to the right"),
        (8, "turned by 90 degrees to the left"),
    ],
)
def test_how_it_is_shown_and_where_it_was_taken(
    photo: Image.Image, orientation: int, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
    photo.save("x.sdz", exif=exif)
    text, entry = told(capsys)
    assert (entry["orientation"], text["shown"]) == (orientation, shown)
    assert entry["place"] is True
    size = entry["metadata"]["exif"]
    assert text["metadata"] == f"exif {size} bytes, with the place where it was taken"
    photo.save("x.sdz")
    text, entry = told(capsys)
    assert (entry["orientation"], entry["place"]) == (1, False)
    assert not {"shown", "metadata"} & text.keys()


def test_a_file_that_ends_too_early(photo: Image.Image, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints what it could read, says what is wrong, and fails."""
    photo.save("x.sdz")
    Path("x.sdz").write_bytes(Path("x.sdz").read_bytes()[:-30])
    assert main(["info", "--json", "x.sdz"]) == 1
    out, err = capsys.readouterr()
    (entry,) = json.loads(out)
    assert (entry["width"], entry["chunks"][0]["type"]) == (61, "HEAD")
    assert entry["truncated"].startswith("truncated SDZ file: ")
    assert err == f"sdz: x.sdz: {entry['truncated']}\n"
