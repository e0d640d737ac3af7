"""Caches of diffusion-pipe, written here as its utils/cache.py writes them, there and back."""

from __future__ import annotations

import io
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pillow_sdz import interchange, open_latents
from pillow_sdz.cli import main

Item = dict[str, Any]
FINGERPRINT = "0f3ad2b79c1e55aa"


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def write_cache(folder: Path, shards: list[list[Item]], *, fingerprint: str = FINGERPRINT) -> Path:
    """A cache as diffusion-pipe's Cache writes it.

    Torch saves the items, and tables have their places.
    """
    folder.mkdir(parents=True)
    path = folder / "metadata.db"
    with closing(sqlite3.connect(path)) as con:
        con.execute("CREATE TABLE IF NOT EXISTS fingerprint(value)")
        con.execute("INSERT INTO fingerprint VALUES(?)", (fingerprint,))
        con.execute("CREATE TABLE IF NOT EXISTS items(shard, shard_index)")
        con.commit()
        for shard, items in enumerate(shards):
            con.execute(f"CREATE TABLE shard_{shard}(offset, size)")
            with (folder / f"shard_{shard}.bin").open("wb") as file:
                for index, item in enumerate(items):
                    buffer = io.BytesIO()
                    torch.save(item, buffer)
                    con.execute("INSERT INTO items VALUES(?, ?)", (shard, index))
                    entry = (file.tell(), len(buffer.getbuffer()))
                    con.execute(f"INSERT INTO shard_{shard} VALUES (?, ?)", entry)
                    file.write(buffer.getbuffer())
            con.commit()
    return path


def read_cache(folder: Path) -> tuple[str, list[tuple[int, int]], list[Item]]:
    """Read a cache as diffusion-pipe's Cache does: the fingerprint, the rows, and the items."""
    with closing(sqlite3.connect(folder / "metadata.db")) as con:
        (fingerprint,) = con.execute("SELECT value FROM fingerprint").fetchone()
        rows = con.execute("SELECT shard, shard_index FROM items").fetchall()
        items = []
        for shard, index in rows:
            entries = con.execute(f"SELECT offset, size FROM shard_{shard}").fetchall()
            offset, size = entries[index]
            with (folder / f"shard_{shard}.bin").open("rb") as file:
                file.seek(offset)
                items.append(torch.load(io.BytesIO(file.read(size)), weights_only=True))
    return fingerprint, rows, items


def assert_same(item: Any, again: Any) -> None:
    """The same values, types, shapes and bits."""
    assert type(again) is type(item)
    if isinstance(item, Tensor):
        assert (again.dtype, again.shape) == (item.dtype, item.shape)
        assert torch.equal(again, item)
    elif isinstance(item, dict):
        assert again.keys() == item.keys()
        for name in item:
            assert_same(item[name], again[name])
    else:
        assert again == item


def item(latents: Tensor, number: int, **more: Any) -> Item:
    """An item as latents_map_fn returns it, and as SizeBucketDataset hands it to the cache."""
    return {
        "latents": latents,
        "image_spec": [None, f"/photos/a dog {number}.jpg"],
        "mask": None,
        "caption": [f"a dog, number {number}", "l'été"],
        **more,
    }


def mask_of(height: int, width: int) -> Tensor:
    """A mask in half precision, as torchvision's to_tensor makes it."""
    levels = torch.arange(height * width).reshape(height, width) % 256
    return (levels.to(torch.float32) / 255).to(torch.float16)


FLUX = [
    [item(normal(16, 8, 6, seed=n), n, mask=mask_of(64, 48) if n == 1 else None) for n in range(3)],
    [item(normal(16, 8, 6, seed=3), 3)],
]
CACHES = {
    "flux": (FLUX, "flux"),
    "sdxl": ([[item(normal(4, 8, 6, dtype=torch.float16), 0)]], "sdxl"),
    "flux2": (
        [[item(normal(128, 4, 3), 0, control_latents=normal(128, 4, 3, seed=1))]],
        "flux2-patches",
    ),
    "qwen_image": (
        [[item(normal(16, 1, 8, 6, dtype=torch.float32), n) for n in (0, 1)]],
        "qwen-image",
    ),
    "wan_i2v": (
        [
            [
                item(
                    normal(16, 5, 4, 3),
                    0,
                    y=normal(16, 5, 4, 3, seed=1),
                    clip_context=normal(7, 9, seed=2),
                )
            ]
        ],
        "wan21",
    ),
    "wan2.2_5b": ([[item(normal(48, 3, 4, 3), 0)]], "wan22"),
}


@pytest.mark.parametrize("model", CACHES)
def test_a_cache_there_and_back(model: str, tmp_path: Path) -> None:
    shards, family = CACHES[model]
    bucket = f"cache/{model}/cache_1.000x48x64x1/latents"
    path = write_cache(tmp_path / bucket, shards)
    assert main(["encode", str(tmp_path / "cache"), "-o", str(tmp_path / "sdz"), "--lossless"]) == 0
    files = sorted((tmp_path / "sdz").rglob("*.sdz"))
    assert len(files) == sum(map(len, shards))
    assert {open_latents(file).model for file in files} == {family}
    out = tmp_path / "back" / "cache"
    assert main(["latents", str(tmp_path / "sdz"), "-o", str(out), "--format", "db"]) == 0
    again = read_cache(tmp_path / "back" / bucket)
    expected = read_cache(path.parent)
    assert again[:2] == expected[:2]
    assert len(again[2]) == len(expected[2])
    for one, other in zip(expected[2], again[2], strict=True):
        assert_same(one, other)


def test_each_picture_is_a_file_with_its_name(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache/flux/cache_1.000x48x64x1/latents", FLUX)
    assert main(["encode", str(tmp_path), "-o", str(tmp_path / "sdz"), "--step", "0.1"]) == 0
    files = sorted((tmp_path / "sdz").rglob("*.sdz"))
    names = ["metadata.a_dog_1.sdz", "metadata.a_dog_2.sdz", "metadata.a_dog_3.sdz", "metadata.sdz"]
    assert [file.name for file in files] == names
    found = open_latents(files[0])
    np.testing.assert_allclose(found.latents, FLUX[0][1]["latents"].float(), atol=0.0501)
    np.testing.assert_allclose(found.info["alpha_mask"], FLUX[0][1]["mask"], atol=2.5e-4)


def test_masks_that_are_no_levels(tmp_path: Path) -> None:
    """They are kept as other small tensors are."""
    shards = [[item(normal(16, 8, 6), 0, mask=normal(64, 48, dtype=torch.float16))]]
    path = write_cache(tmp_path / "cache/flux/cache_1.000x48x64x1/latents", shards)
    assert main(["encode", str(path), "-o", str(tmp_path / "x.sdz"), "--lossless"]) == 0
    assert main(["latents", str(tmp_path / "x.sdz"), "-o", str(tmp_path / "x.db")]) == 0
    with closing(sqlite3.connect(tmp_path / "x.db")) as con:
        assert con.execute("SELECT * FROM shard_0").fetchall() != []
    (tmp_path / "x.db").rename(tmp_path / "metadata.db")
    assert_same(read_cache(tmp_path)[2][0], shards[0][0])


def test_caches_of_text_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "cache/sdxl"
    write_cache(root / "cache_1.000x48x64x1/latents", [[item(normal(4, 8, 6), 0)]])
    text = {"prompt_embeds": normal(77, 8), "image_spec": [None, "/photos/a.jpg"]}
    write_cache(root / "ar_frames_1.000_1/text_embeddings_1", [[text]])
    write_cache(root / "uncond_text_embeddings_1", [[text]])
    (tmp_path / "Thumbs.db").write_bytes(b"no cache")
    assert main(["encode", str(tmp_path), "-o", str(tmp_path / "sdz"), "--lossless"]) == 0
    assert len(list((tmp_path / "sdz").rglob("*.sdz"))) == 1


def test_a_part_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the missing part, the trainer would take the next picture's latents instead."""
    path = write_cache(tmp_path / "cache/flux/cache_1.000x48x64x1/latents", FLUX)
    assert main(["encode", str(path), "-o", str(tmp_path / "sdz/")]) == 0
    (tmp_path / "sdz/metadata.a_dog_1.sdz").unlink()
    assert (
        main(["latents", str(tmp_path / "sdz"), "-o", str(tmp_path / "back/"), "--format", "db"])
        == 1
    )
    assert "only 3 of this cache's 4 parts are there" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()


def test_existing_shards_are_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_cache(tmp_path / "cache/flux/cache_1.000x48x64x1/latents", FLUX)
    assert main(["encode", str(path), "-o", str(tmp_path / "sdz/"), "--lossless"]) == 0
    back = tmp_path / "back"
    back.mkdir()
    (back / "shard_1.bin").write_bytes(b"another")
    command = ["latents", str(tmp_path / "sdz"), "-o", str(back), "--format", "db"]
    assert main(command) == 1
    assert "shard_1.bin" in capsys.readouterr().err
    assert (back / "shard_1.bin").read_bytes() == b"another"
    assert not (back / "metadata.db").exists()
    assert main([*command, "-f"]) == 0
    assert len(read_cache(back)[2]) == 4


def test_other_latents_are_not_written_as_such_a_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", normal(4, 8, 6).float().numpy())
    assert main(["encode", str(tmp_path / "x.npy")]) == 0
    assert main(["latents", str(tmp_path / "x.sdz"), "-o", str(tmp_path / "x.db")]) == 1
    assert "only what was a .db cache is written as one" in capsys.readouterr().err


def test_a_model_that_nobody_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the model, and --model says whose latents these are."""
    path = write_cache(
        tmp_path / "cache/tomorrow/cache_1.000x48x64x1/latents", [[item(normal(16, 8, 6), 0)]]
    )
    assert main(["encode", str(path), "-o", str(tmp_path / "x.sdz")]) == 1
    message = "its latents are of 'tomorrow', which is not known here: give the model"
    assert message in capsys.readouterr().err
    assert main(["encode", str(path), "-o", str(tmp_path / "x.sdz"), "--model", "flux"]) == 0
    assert open_latents(tmp_path / "x.sdz").model == "flux"


# Damaged and hostile caches


def test_pickles_in_shards_run_nothing(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    hostile = item(normal(16, 8, 6), 0, x=Hostile())
    (parts,) = [interchange.read(write_cache(tmp_path / "latents", [[hostile]]))]
    with pytest.raises(OSError, match="no file of tensors alone"):
        parts[0]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("DROP TABLE items", "it lacks the tables fingerprint and items"),
        ("DELETE FROM items", "no items in it"),
        (
            "UPDATE items SET shard_index = 1",
            "item 0 is not where diffusion-pipe would have put it",
        ),
        ("UPDATE items SET shard = 7", "item 0 is not where diffusion-pipe would have put it"),
        ("UPDATE shard_0 SET offset = -1", "item 0 has no place in its shard"),
        ("UPDATE shard_0 SET size = 'x'", "item 0 has no place in its shard"),
        ("UPDATE shard_0 SET size = 1000000000000", "shard_0.bin ends before item 0"),
        ("UPDATE fingerprint SET value = x'00'", "its fingerprint is not a short text"),
        ("UPDATE fingerprint SET value = 5", "its fingerprint is not a short text"),
        (
            "DROP TABLE items; CREATE TABLE items(shard, shard_index AS (zeroblob(100000000)));"
            " INSERT INTO items VALUES (0)",
            "item 0 is not where diffusion-pipe would have put it",
        ),
        (
            "DROP TABLE items; CREATE VIEW items AS WITH RECURSIVE c(shard, shard_index) AS"
            " (VALUES (0, 0) UNION ALL SELECT 0, 0 FROM c) SELECT * FROM c",
            "it lacks the tables",
        ),
    ],
)
def test_databases_that_the_tool_did_not_write(change: str, message: str, tmp_path: Path) -> None:
    path = write_cache(tmp_path / "latents", [[item(normal(16, 8, 6), 0)]])
    with closing(sqlite3.connect(path)) as con:
        con.executescript(change)
        con.commit()
    with pytest.raises((OSError, ValueError), match=message):
        interchange.read(path)[0]


def test_an_endless_query_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An expression may compute a column, and may take as long as an attacker likes."""
    monkeypatch.setattr("pillow_sdz.interchange.diffusion_pipe._MAX_STEPS", 1024)
    path = write_cache(tmp_path / "latents", [[item(normal(16, 8, 6), 0)]])
    with closing(sqlite3.connect(path)) as con:
        con.executemany("INSERT INTO shard_0 VALUES(?, ?)", [(0, 0)] * 5000)
        con.commit()
    with pytest.raises(OSError, match="no database of a cache: interrupted"):
        interchange.read(path)


def test_damaged_databases(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "latents", [[item(normal(16, 8, 6), 0)]])
    data = path.read_bytes()
    rng = np.random.default_rng(7)
    refused = 0
    for _ in range(100):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            assert interchange.read(path)[0].latents.shape == (16, 8, 6)
        except (OSError, ValueError) as e:
            assert str(e)  # noqa: PT017
            refused += 1
    assert refused
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(OSError, match="no database of a cache"):
        interchange.read(path)
