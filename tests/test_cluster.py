"""Shards of `.sdz`: encoded on a real local Ray cluster of two workers, and read back."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from safetensors.torch import save_file

fsspec = pytest.importorskip("fsspec", reason="needs the extra ray")

from pillow_sdz import demo, open_latents  # noqa: E402
from pillow_sdz.cluster import Settings, ShardedLatents, encode, plan, shards, work  # noqa: E402
from sample_latents import correlated_latents  # noqa: E402

FS = fsspec.filesystem("file")


def caches(folder: Path, count: int) -> Path:
    """Caches as sd-scripts writes them, of two sizes, and two files that are damaged."""
    folder.mkdir()
    for number in range(count):
        height, width = (8, 6) if number % 3 else (6, 8)
        arrays = {
            f"latents_{height}x{width}": np.float32(
                correlated_latents(height, width, 4).transpose(2, 0, 1) + number
            ),
            f"original_size_{height}x{width}": np.array([48, 64]),
            f"crop_ltrb_{height}x{width}": np.array([0, 0, 48, 64]),
        }
        np.savez(folder / f"{number:03}_0048x0064_sdxl.npz", **arrays)  # type: ignore[arg-type]
    (folder / "bad_sdxl.npz").write_bytes(b"PK nonsense")
    (folder / "worse.npy").write_bytes(b"\x93NUMPY")
    Image.new("RGB", (6, 8)).save(folder / "picture.png")  # with options for latents, left out
    np.savez(folder / "000_sdxl_te.npz", hidden=np.zeros((7, 5)))  # of a text encoder
    return folder


def made(tmp_path: Path, count: int = 8, number: int = 3, format: str = "tar") -> Path:
    """Shards that were made without Ray."""
    source = caches(tmp_path / "source", count)
    target = tmp_path / "target"
    target.mkdir()
    settings = Settings(lossless=True)
    found = plan.sources(FS, str(source), settings).files
    for shard in plan.plan(found, str(target), number, format, settings).shards:
        work.do(FS, FS, shard, format, settings)
    return target


def everything(target: Path) -> list[shards.Item]:
    return [item for path in shards.paths(FS, str(target)) for item in shards.read(FS, path)]


def check(target: Path, count: int) -> None:
    """Each source is there once, exactly, or in a list of errors."""
    items = everything(target)
    names = Counter(Path(item.source).name for item in items)
    assert set(names.values()) == {1}
    assert len(names) == count
    assert len({item.key for item in items}) == count
    for item in items:
        with np.load(item.source) as arrays:
            own = next(arrays[name] for name in arrays if name.startswith("latents"))
            np.testing.assert_array_equal(open_latents(io.BytesIO(item.sdz)).unscaled(), own)
    lists = [path.read_text() for path in target.glob("*.errors.jsonl")]
    lines = [line for text in lists for line in text.splitlines()]
    failed = {Path(json.loads(line)["source"]).name for line in lines}
    assert failed == {"bad_sdxl.npz", "worse.npy"}
    assert len(lines) == 2
    assert not list(target.glob("*.part"))


@pytest.mark.parametrize("format", plan.SHARD_FORMATS)
def test_shards(format: str, tmp_path: Path) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow", reason="needs the extra ray")
    check(made(tmp_path, format=format), 8)


def test_a_bucket(tmp_path: Path) -> None:
    """Sources and shards may lie on any file system of fsspec. This one is in memory."""
    bucket = fsspec.filesystem("memory")
    place = f"/{tmp_path.name}"
    bucket.put(str(caches(tmp_path / "source", 5)), f"{place}/source", recursive=True)
    settings = Settings(step=0.5)
    found = plan.sources(bucket, f"{place}/source", settings).files
    for shard in plan.plan(found, f"{place}/target", 2, "tar", settings).shards:
        work.do(bucket, bucket, shard, "tar", settings)
    batches = drawn(ShardedLatents(f"memory://{place}/target", 2))
    assert sum(len(batch["latents"]) for batch in batches) == 5
    sources = {source for batch in batches for source in batch["sources"]}
    assert sources == {f"{place}/source/{n:03}_0048x0064_sdxl.npz" for n in range(5)}
    assert len(bucket.glob(f"{place}/target/*.errors.jsonl")) >= 1
    assert not bucket.glob(f"{place}/target/*.part")
    with pytest.raises(FileNotFoundError, match="has no shards"):
        shards.paths(bucket, f"{place}/source")


def test_pictures(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    Image.linear_gradient("L").convert("RGB").resize((40, 24)).save(tmp_path / "a.png")
    settings = Settings(quality=50)
    found = plan.sources(FS, str(tmp_path), settings).files
    (shard,) = plan.plan(found, str(tmp_path / "target"), 4, "tar", settings).shards
    assert work.do(FS, FS, shard, "tar", settings)["items"] == 1
    (item,) = everything(tmp_path / "target")
    with Image.open(io.BytesIO(item.sdz)) as im:
        assert (im.size, im.info["sdz"]["quality"]) == ((40, 24), 50)


def test_pictures_keep_what_sdz_encode_keeps(tmp_path: Path) -> None:
    """All frames and the metadata. Only the pixels are upright, for who reads the latents."""
    first = demo.photo().resize((64, 48))
    frames = [first, first.transpose(Image.Transpose.FLIP_LEFT_RIGHT), first.rotate(180)]
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:], duration=70)
    ((sdz,), _) = work.encoded(file.getvalue(), "a.png", Settings())
    with Image.open(io.BytesIO(sdz)) as found:
        assert found.n_frames == 3  # type: ignore[attr-defined]
        assert found.info["duration"] == 70
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "a lighthouse"
    exif[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    first.save(file, "PNG", exif=exif)
    ((sdz,), _) = work.encoded(file.getvalue(), "a.png", Settings())
    with Image.open(io.BytesIO(sdz)) as found:
        assert found.size == (48, 64)
        assert dict(found.getexif()) == {ExifTags.Base.ImageDescription: "a lighthouse"}


def test_which_files_of_a_folder_are_encoded(tmp_path: Path) -> None:
    """Those that `sdz encode` takes: pictures or, if an option is for them, caches."""
    picture = demo.photo().resize((40, 24))
    for name in ("a.sdz", "b.png", "._b.png", "film.mpg", "notes.txt"):
        picture.save(tmp_path / name, "SDZ" if name == "a.sdz" else "PNG")
    for name in ("b_sdxl.npz", "b_te.npz"):
        np.savez(tmp_path / name, np.zeros((4, 3, 5)))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("nothing")

    def found(**settings: Any) -> tuple[list[str], int]:
        sources = plan.sources(FS, str(tmp_path), Settings(**settings))
        return [Path(path).name for path, _ in sources.files], sources.left_out

    assert found() == found(quality=50) == (["b.png"], 8)
    for settings in ({"step": 0.1}, {"lossless": True}, {"factor": 8}, {"size": (40, 24)}):
        assert found(**settings) == (["b_sdxl.npz"], 8)
    (tmp_path / "b.png").unlink()
    assert found() == (["b_sdxl.npz"], 7)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"step": -1}, "step must be a number above 0"),
        ({"step": 0.1, "quality": 50}, "exclude each other"),
        ({"quality": 500}, "quality must be a number from 1 to 100"),
        ({"effort": 11, "step": 1}, "effort must be an integer from 0 to 9"),
        ({"model": "nope", "step": 1}, "give its factor"),
        ({"model": "sd1", "factor": 16}, "has a factor of 8, not 16"),
        ({"model": "nope"}, "model must be one of"),
        ({"model": "sd1"}, "the model 'sd1' is not installed"),
        ({"model": "flux2"}, "no autoencoder of flux2 latents"),
    ],
)
def test_settings_that_fit_nothing(
    settings: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    """They are refused before anything is written."""
    pytest.importorskip("ray", reason="needs the extra ray")
    source, target = caches(tmp_path / "source", 1), tmp_path / "target"
    with pytest.raises((ValueError, OSError), match=complaint):
        encode(str(source), str(target), count=1, settings=Settings(**settings))
    assert not target.exists()


def test_what_is_not_kept_is_listed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    tensors = {
        "latent": torch.zeros(16, 8, 6),
        "tensor": torch.zeros(3, 1280, 1280, dtype=torch.uint8),
    }
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, {"latent_space_version": "flux1"})
    settings = Settings(lossless=True)
    (shard,) = plan.plan([plan.Source(str(path), "")], str(target), 1, "tar", settings).shards
    done = work.do(FS, FS, shard, "tar", settings)
    assert (done["items"], done["warned"], done["errors"]) == (1, 1, 0)
    (line,) = Path(shard.warnings).read_text().splitlines()
    assert json.loads(line) == {"source": str(path), "warning": "not kept: 'tensor'"}


def test_families_of_caches(tmp_path: Path) -> None:
    """What a file says counts.  Only an unknown family needs a factor."""
    folder = caches(tmp_path / "source", 1)
    data = (folder / "000_0048x0064_sdxl.npz").read_bytes()
    with pytest.raises(ValueError, match="says that its latents are of sdxl, not of sd1"):
        work.encoded(data, "a_0048x0064_sdxl.npz", Settings(model="sd1"))
    np.save(tmp_path / "a.npy", np.zeros((1, 12, 64), np.float32))
    data = (tmp_path / "a.npy").read_bytes()
    with pytest.raises(ValueError, match="give --model, such as flux, qwen-image, "):
        work.encoded(data, "a.npy", Settings())
    with pytest.raises(ValueError, match="give its factor"):
        work.encoded(data, "a.npy", Settings(model="new"))
    with pytest.raises(ValueError, match="seems to be a packed sequence"):
        work.encoded(data, "a.npy", Settings(model="new", factor=9))
    ((file,), _) = work.encoded(data, "a.npy", Settings(model="new", factor=9, size=(576, 108)))
    assert open_latents(io.BytesIO(file)).latents.shape == (1, 12, 64)
    ((file,), _) = work.encoded(data, "a.npy", Settings(model="flux", size=(48, 64)))
    assert open_latents(io.BytesIO(file)).latents.shape == (16, 8, 6)


def test_caches_that_do_not_say_their_family(tmp_path: Path) -> None:
    """They are of sd1 if they fit it, as with `sdz encode`, and the run counts them."""
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source, target, source / "image"):
        folder.mkdir()
    latents = torch.zeros(4, 8, 6)
    np.save(source / "a.npy", latents.numpy())
    np.save(source / "b.npy", np.zeros((16, 8, 6), np.float32))
    torch.save({"latent_image": latents, "crop_resolution": (64, 48)}, source / "image" / "0.pt")
    save_file(
        {"latent_tensor": latents[None], "latent_format_version_0": torch.tensor([])},
        source / "c.latent",
    )
    np.savez(
        source / "d_sdxl.npz",
        latents=latents.numpy(),
        original_size=np.array([48, 64]),
        crop_ltrb=np.array([0, 0, 48, 64]),
    )
    found = plan.sources(FS, str(source), Settings()).files
    (shard,) = plan.plan(found, str(target), 1, "tar", Settings()).shards
    done = work.do(FS, FS, shard, "tar", Settings())
    assert (done["items"], done["assumed"], done["errors"]) == (4, 3, 1)
    models = {
        Path(item.source).name: open_latents(io.BytesIO(item.sdz)).model
        for item in everything(target)
    }
    assert models == {"a.npy": "sd1", "0.pt": "sd1", "c.latent": "sd1", "d_sdxl.npz": "sdxl"}
    (error,) = Path(shard.errors).read_text().splitlines()
    assert (
        "nothing says which latents of the shape (16, 8, 6) these are" in json.loads(error)["error"]
    )


@pytest.mark.parametrize("cut", [1000, 1537, 2600])
def test_damaged_shards(cut: int, tmp_path: Path) -> None:
    path = shards.paths(FS, str(made(tmp_path, 2, 1)))[0]
    Path(path).write_bytes(Path(path).read_bytes()[:cut])
    with pytest.raises(OSError, match="damaged shard"):
        list(shards.read(FS, path))
    with pytest.raises(FileNotFoundError, match="has no shards"):
        shards.paths(FS, str(tmp_path / "source"))


# The torch dataset


def drawn(dataset: ShardedLatents, workers: int = 0) -> list[dict[str, Any]]:
    return list(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers))


def test_batches_of_one_shape(tmp_path: Path) -> None:
    target = made(tmp_path, 20, 4)
    batches = drawn(ShardedLatents(str(target), 3))
    assert sum(len(batch["latents"]) for batch in batches) == 20
    assert {tuple(batch["latents"].shape[1:]) for batch in batches} == {(4, 8, 6), (4, 6, 8)}
    names = [Path(name).name for batch in batches for name in batch["sources"]]
    assert len(set(names)) == 20
    full = drawn(ShardedLatents(str(target), 3, drop_last=True))
    assert {len(batch["latents"]) for batch in full} == {3}


def test_batches_say_what_they_are(tmp_path: Path) -> None:
    """A batch has one family and one kind, so that no trainer takes controls for pictures."""
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "toolkit").mkdir(parents=True)
    target.mkdir()
    sizes = {"original_size": np.array([48, 64]), "crop_ltrb": np.array([0, 0, 48, 64])}
    array = np.float32(correlated_latents(8, 6, 4).transpose(2, 0, 1))
    for name in ("a_sdxl", "b_sd"):
        np.savez(source / f"{name}.npz", latents=array, latents_flipped=array[..., ::-1], **sizes)
    tensor = torch.from_numpy(correlated_latents(8, 6, 16).transpose(2, 0, 1).copy()).float()
    clip = tensor[:, None].repeat(1, 3, 1, 1)
    musubi = {"format_version": "1.0.1", "architecture": "flux_kontext"}
    names = {"latents_1x8x6_float32": tensor, "latents_control_1x8x6_float32": -tensor}
    save_file(names, source / "c.safetensors", musubi)
    names = {"latent": clip, "first_frame_latent": clip[:, :1].contiguous()}
    save_file(names, source / "toolkit" / "d.safetensors", {"latent_space_version": "wan21"})
    settings = Settings(lossless=True)
    found = plan.sources(FS, str(source), settings).files
    for shard in plan.plan(found, str(target), 2, "tar", settings).shards:
        work.do(FS, FS, shard, "tar", settings)
    batches = drawn(ShardedLatents(str(target), 8))
    said = {(batch["model"], batch["kind"]): batch["latents"] for batch in batches}
    assert len(said) == len(batches) == 8
    assert {key: tuple(latents.shape) for key, latents in said.items()} == {
        ("sd1", "latents"): (1, 4, 8, 6),
        ("sd1", "flipped"): (1, 4, 8, 6),
        ("sdxl", "latents"): (1, 4, 8, 6),
        ("sdxl", "flipped"): (1, 4, 8, 6),
        ("flux", "latents"): (1, 16, 8, 6),
        ("flux", "latents_control"): (1, 16, 8, 6),
        ("wan21", "latents"): (1, 16, 3, 8, 6),
        ("wan21", "first_frame_latent"): (1, 16, 8, 6),
    }
    assert torch.equal(said["flux", "latents_control"], -said["flux", "latents"])
    assert torch.equal(said["sd1", "flipped"], said["sd1", "latents"].flip(-1))


def test_clips_are_examples(tmp_path: Path) -> None:
    """A file of several clips is as many examples."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    clips = np.random.default_rng(0).normal(size=(2, 16, 3, 4, 5)).astype(np.float32)
    np.save(source / "a.npy", clips)
    settings = Settings(model="wan21", lossless=True)
    (shard,) = plan.plan(
        [plan.Source(str(source / "a.npy"), "")], str(target), 1, "tar", settings
    ).shards
    assert work.do(FS, FS, shard, "tar", settings)["errors"] == 0
    (batch,) = drawn(ShardedLatents(str(target), 2))
    assert (batch["model"], batch["kind"]) == ("wan21", "latents")
    np.testing.assert_array_equal(batch["latents"].numpy(), clips)


def test_an_item_without_latents_is_named(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    # The second picture is flat: it is kept exactly.
    pictures = demo.photo().resize((96, 64)), Image.new("RGB", (64, 64), "red")
    found = [str(tmp_path / "photo.png"), str(tmp_path / "flat.png")]
    for picture, path in zip(pictures, found, strict=True):
        picture.save(path)
    settings = Settings()
    sources = [plan.Source(path, "") for path in found]
    (shard,) = plan.plan(sources, str(tmp_path / "target"), 1, "tar", settings).shards
    assert work.do(FS, FS, shard, "tar", settings)["items"] == 2
    with pytest.raises(OSError, match=rf"item 000000001, of {found[1]}: .* kept exactly"):
        drawn(ShardedLatents(str(tmp_path / "target"), 1))


def test_shuffling(tmp_path: Path) -> None:
    dataset = ShardedLatents(str(made(tmp_path, 20, 4)), 1, seed=5, buffer=7)
    orders = []
    for epoch in (0, 1, 0):
        dataset.epoch = epoch
        orders.append([batch["keys"][0] for batch in drawn(dataset)])
        assert len(set(orders[-1])) == 20
    assert orders[0] == orders[2] != orders[1]
    assert orders[0] != sorted(orders[0])


@pytest.mark.parametrize(
    ("context", "persistent"), [("fork", False), ("fork", True), ("spawn", True)]
)
def test_each_epoch_has_another_order(tmp_path: Path, context: str, persistent: bool) -> None:
    """A DataLoader does not tell the dataset that an epoch begins.  All workers must agree."""
    if context not in torch.multiprocessing.get_all_start_methods():
        pytest.skip("processes are not started like this here")
    target = str(made(tmp_path, 20, 6))
    dataset = ShardedLatents(target, 1, seed=5, buffer=7)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=None,
        num_workers=2,
        persistent_workers=persistent,
        multiprocessing_context=context,
    )
    orders = [[batch["keys"][0] for batch in loader] for _ in range(3)]
    assert all(len(set(order)) == 20 for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert dataset.epoch == 3
    dataset.epoch = 1  # workers that run already go on there, too
    assert [batch["keys"][0] for batch in loader] == orders[1]
    # Another process, which has no memory in common with this one.
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.epoch == 2


def test_epochs_of_loaders_of_different_kinds(tmp_path: Path) -> None:
    dataset = ShardedLatents(str(made(tmp_path, 20, 4)), 1, seed=5, buffer=7)
    orders = [[batch["keys"][0] for batch in drawn(dataset, workers)] for workers in (0, 2, 1, 0)]
    assert all(len(set(order)) == 20 for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_workers_and_ranks_share_the_shards(tmp_path: Path) -> None:
    target = made(tmp_path, 20, 4)
    both = [ShardedLatents(str(target), 2, rank=rank, ranks=2) for rank in (0, 1)]
    keys = [key for one in both for batch in drawn(one, workers=2) for key in batch["keys"]]
    assert sorted(keys) == sorted({item.key for item in everything(target)})
    with pytest.raises(ValueError, match="rank from 0"):
        ShardedLatents(str(target), 2, rank=2, ranks=2)


def test_workers_have_file_systems_of_their_own(tmp_path: Path) -> None:
    """A bucket's file system has threads and connections.  A forked process cannot use them."""

    class Bucket(type(FS)):  # type: ignore[misc]
        protocol = "bucket"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return super()._strip_protocol(path.removeprefix("bucket://"))

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.made_in = os.getpid()

        def _open(self, *args: Any, **options: Any) -> Any:
            assert os.getpid() == self.made_in, "not fork-safe"
            return super()._open(*args, **options)

    fsspec.register_implementation("bucket", Bucket, clobber=True)
    dataset = ShardedLatents(f"bucket://{made(tmp_path, 20, 4)}", 3)
    context = "fork" if "fork" in torch.multiprocessing.get_all_start_methods() else None
    if context is None:
        pytest.skip("processes are not forked here")
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context=context
    )
    assert sum(len(batch["latents"]) for batch in loader) == 20


# Ray


@pytest.fixture
def one_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep another process of pytest-xdist from having a cluster at the same time.

    One test kills workers of Ray, which it finds by their names.
    """
    fcntl = pytest.importorskip("fcntl", reason="locks of POSIX")
    pytest.importorskip("ray", reason="needs the extra ray")
    shared = tmp_path_factory.getbasetemp().parent  # by the processes of pytest-xdist
    with (shared / "cluster.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        yield


def command(source: Path, target: Path, shards: int) -> list[str]:
    urls = [source.as_uri(), target.as_uri()]  # file://, as a bucket has s3://
    module = [sys.executable, "-m", "pillow_sdz.cluster", "encode", *urls]
    return [*module, "--shards", str(shards), "--lossless", "--workers", "2"]


def ray_workers() -> dict[int, str]:
    """The processes that Ray works in, and their names."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = path.read_text().replace("\0", " ").strip()
        except OSError:
            continue
        if name.startswith("ray::"):
            found[int(path.parent.name)] = name
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("one_cluster", "interruptible")
def test_a_cluster_of_two_workers_with_one_killed(tmp_path: Path) -> None:
    """If a worker dies, nothing is lost. If a run dies, the next one goes on."""
    # This is more than a run does while it is being ended, which takes Ray some seconds.
    files, shards = 480, 96
    source, target = caches(tmp_path / "source", files), tmp_path / "target"
    before = ray_workers().keys()
    run = subprocess.Popen(command(source, target, shards), stderr=subprocess.PIPE, text=True)
    # One worker is killed while it encodes, and after some more shards the whole run.
    killed = False
    deadline = time.monotonic() + 300  # on a busy machine, Ray alone takes half a minute to start
    while time.monotonic() < deadline:
        assert run.poll() is None, run.communicate()[1]
        done = len(list(target.glob("shard-*.tar")))
        busy = [pid for pid, name in ray_workers().items() if "Map" in name and pid not in before]
        if not killed and done and busy:
            os.kill(busy[0], signal.SIGKILL)
            killed = True
        elif killed and done >= 4:
            break
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    run.communicate()
    assert killed
    # Workers may go on for a moment after the run.
    while ray_workers().keys() - before and time.monotonic() < deadline:
        time.sleep(0.02)
    # The run may end between a shard and its versions.  Then the next run makes the shard again.
    names = (path.with_name(path.name.split(".")[0]) for path in target.glob("*.versions.json"))
    there = {
        name.with_suffix(".tar"): name.with_suffix(".tar").stat().st_mtime_ns for name in names
    }
    assert 0 < len(there) < shards

    again = subprocess.run(
        command(source, target, shards), capture_output=True, text=True, check=False
    )
    assert again.returncode == 1, again.stderr  # two files are damaged
    check(target, files)
    assert all(path.stat().st_mtime_ns == time for path, time in there.items())

    other = [*command(source, target, shards), "--effort", "9"]
    refused = subprocess.run(other, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "has shards of other sources or settings" in refused.stderr


def test_a_file_system_that_is_not_installed(capsys: pytest.CaptureFixture[str]) -> None:
    """The error is one line, and comes before Ray starts."""
    pytest.importorskip("ray", reason="needs the extra ray")
    from pillow_sdz.cluster.__main__ import main

    fsspec.register_implementation(
        "absent", "no_such_package.Bucket", clobber=True, errtxt="Install bucketfs"
    )
    for url, text in (("absent://a", "Install bucketfs"), ("unheard://a", "Protocol not known")):
        assert main(["encode", url, "shards", "--shards", "1"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{url}: {text}")


class Here:
    """Does what `ray.data.from_items(...).map(...)` does, in this process."""

    def __init__(self, rows: list[dict[str, Any]], override_num_blocks: int) -> None:
        self._rows = rows

    def map(self, work: Any, num_cpus: int) -> Here:
        return Here([work(row) for row in self._rows], 0)

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)


@pytest.mark.parametrize("format", plan.SHARD_FORMATS)
def test_later_runs(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later run encodes what was changed, and if it is asked to, what could not be encoded."""
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setattr(ray.data, "from_items", Here)
    source, target = caches(tmp_path / "source", 8), tmp_path / "target"
    names = "shards", "items", "errors", "known_errors"

    def run(**options: Any) -> list[int]:
        settings = Settings(lossless=True)
        given = {"count": 3, "format": format, "settings": settings, **options}
        total = encode(str(source), str(target), **given)
        return [total[name] for name in names]

    def sdz() -> dict[str, bytes]:
        return {Path(item.source).name: item.sdz for item in everything(target)}

    assert run() == [3, 8, 2, 0]
    check(target, 8)
    first = sdz()
    assert run() == [0, 0, 0, 2]  # nothing is left, and it still says what failed
    assert run(retry=True) == [1, 0, 2, 0]

    # One source is mended, and one is changed.
    good, changed = source / "000_0048x0064_sdxl.npz", source / "003_0048x0064_sdxl.npz"
    (source / "bad_sdxl.npz").write_bytes(good.read_bytes())
    changed.write_bytes(good.read_bytes())
    os.utime(changed, ns=(0, 5 * 10**9))
    assert run() == [2, 2, 0, 1]
    second = sdz()
    assert second.keys() - first.keys() == {"bad_sdxl.npz"}
    assert {name for name, data in first.items() if second[name] != data} == {changed.name}
    assert second["bad_sdxl.npz"] == second[changed.name] == first[good.name]
    keys = [item.key for item in everything(target)]
    assert keys == sorted(set(keys))
    assert run() == [0, 0, 0, 1]

    # It is broken again.  Its old latents are not kept.
    changed.write_bytes(b"PK nonsense")
    assert run() == [1, 0, 1, 1]
    assert changed.name not in sdz()

    # A run was killed before a shard was complete.
    path = next(target.glob("*.versions.json"))
    path.unlink()
    assert run()[0] == 1
    assert second.keys() - sdz().keys() == {changed.name}
    (target / "shard-0.tar.0.part").write_bytes(b"half")
    with pytest.raises(ValueError, match="has shards of other sources or settings"):
        run(settings=Settings(step=0.5))
    good.unlink()
    with pytest.raises(ValueError, match="has shards of other sources or settings"):
        run()


@pytest.mark.slow
@pytest.mark.usefixtures("one_cluster")
def test_reading_with_ray(tmp_path: Path) -> None:
    import ray

    from pillow_sdz.cluster import read

    target = made(tmp_path, 20, 4)
    ray.init(num_cpus=2, log_to_driver=False, logging_level=logging.ERROR)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = read(str(target)).take_all()
    finally:
        ray.shutdown()
    assert len({row["key"] for row in rows}) == len(rows) == 20
    assert {row["model"] for row in rows} == {"sdxl"}
    assert {tuple(row["kinds"]) for row in rows} == {("latents",)}
    assert {row["latents"].shape for row in rows} == {(4, 8, 6), (4, 6, 8)}
