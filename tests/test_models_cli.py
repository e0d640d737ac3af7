"""`sdz models`: listing models, getting and checking their weights, and adding one's own."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from model_registry import autoencoder_directory, hub_cache, no_network, registry
from pillow_sdz import catalogue, models, options, weights
from pillow_sdz.cli import main
from pillow_sdz.models import hub, recorded
from pillow_sdz.presets import PRESETS, WEIGHTS, File, Preset, Snapshot
from sdz_files import decode, encode

__all__ = ["hub_cache", "no_network", "registry"]

REVISION = "1" * 40

SD3 = catalogue.known("sd3")


@pytest.fixture
def presets(hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sd1, pinned, with a U-Net, and sd3, which is not; what the hub has of both is in the cache.

    The hub is offline. Returned is the cache.
    """
    from tiny_models import cached

    vae = autoencoder_directory(tmp_path / "vae")
    unet = autoencoder_directory(tmp_path / "pipeline" / "unet", b"U-Net")
    sd1 = PRESETS["sd1"]._replace(
        autoencoder=cached(hub_cache, "tiny/sd1", REVISION, vae),
        denoiser=cached(hub_cache, "tiny/unet", REVISION, unet.parent),
    )
    cached(hub_cache, "tiny/sd3", REVISION, vae)
    files = (File("config.json"), File(WEIGHTS))
    sd3 = PRESETS["sd3"]._replace(autoencoder=Snapshot("tiny/sd3", None, files))
    presets: dict[str, Preset] = {"sd1": sd1, "sd3": sd3}
    monkeypatch.setattr(models, "PRESETS", presets)
    monkeypatch.setattr(hub, "latest", lambda repository: REVISION)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return hub_cache


def weights_in(cache: Path, repository: str) -> Path:
    (path,) = cache.glob(f"models--tiny--{repository}/snapshots/*/**/*.safetensors")
    return path


def told(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    """The output of `sdz models`: standard output if it succeeds, standard error if it fails."""
    assert main(["models", *arguments]) == status
    out, err = capsys.readouterr()
    assert bool(out) is not bool(err)
    return out or err


def test_list(presets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.record_model("ours", autoencoder_directory(tmp_path / "ours"), "sd1")
    weights_in(presets, "unet").unlink()
    listed = {model["name"]: model for model in json.loads(told(capsys, "list", "--json"))}
    assert listed.keys() == {*catalogue.EMBEDDED, "ours", "sd1", "sd3"}
    assert listed["ours"] == {
        "name": "ours",
        "latent_space": "sd1",
        "channels": 4,
        "factor": 8,
        "digest": models.spec("ours").digest.hex(),
        "installed": True,
        "denoiser": False,
        "hint": None,
    }
    assert (listed["sd1"]["installed"], listed["sd1"]["denoiser"]) == (True, False)
    assert (listed["sd3"]["installed"], listed["sd3"]["digest"]) == (False, None)
    assert listed["sd3"]["hint"].endswith("run 'sdz models fetch sd3 --pin'")

    lines = {line.split()[0]: line for line in told(capsys, "list").splitlines()}
    assert lines["mini"].endswith("installed")
    assert lines["sd3"].endswith("run 'sdz models fetch sd3 --pin'")


def test_fetch(presets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "fetch", "sd1") == f"sd1: {weights_in(presets, 'sd1')}\n"
    fetched = told(capsys, "fetch", "sd1", "--denoiser").splitlines()
    assert fetched[1] == f"sd1: {weights_in(presets, 'unet').parents[1]}"
    assert not recorded.path().exists()


def test_fetch_without_a_hash_must_be_told_to_trust(
    presets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = told(capsys, "fetch", "sd3", status=1)
    assert "no hash to check the weights of 'sd3' with" in message
    assert "'sdz models fetch sd3 --pin' trusts what tiny/sd3 has today" in message
    assert "'sdz models add sd3 DIRECTORY' takes what you have" in message
    assert models.spec("sd3").digest == catalogue.NOT_NAMED


def test_fetch_and_pin(presets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sha256 = weights.sha256(weights_in(presets, "sd3"))
    pinned = told(capsys, "fetch", "sd3", "--pin").splitlines()[0]
    assert pinned == f"sd3: pinned to {REVISION}, sha256 {sha256}"
    assert models.spec("sd3").digest.hex() == sha256[:8]
    assert models.decoder_for(SD3, catalogue.NOT_NAMED, "psnr") == models.spec("sd3")
    # From now on the weights are checked, and cannot be pinned to others.
    weights_in(presets, "sd3").resolve().write_bytes(b"others")
    for arguments in (["fetch", "sd3"], ["fetch", "sd3", "--pin"], ["verify", "sd3"]):
        assert f"instead of {sha256}" in told(capsys, *arguments, status=1)


def test_fetch_checks_what_it_gets(presets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = weights_in(presets, "sd1").resolve()
    path.write_bytes(path.read_bytes()[:-1])
    assert told(capsys, "fetch", "sd1", status=1) == (
        f"sdz: models: {path} is damaged: it has 6 bytes instead of 7: delete it\n"
    )
    path.write_bytes(b"tampere")
    assert f"{path} is damaged: its sha256 is" in told(capsys, "fetch", "sd1", status=1)


def test_fetch_while_offline(presets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights_in(presets, "sd1").unlink()
    message = told(capsys, "fetch", "sd1", status=1)
    assert message.startswith(
        f"sdz: models: tiny/sd1 has no {WEIGHTS}, or the hub cannot be reached; "
        "other files, such as pickles, are not read: "
    )


def test_only_fetch_downloads(
    presets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options, "ALLOW_DOWNLOADS", True)
    monkeypatch.setattr(hub, "fetch", lambda snapshot: pytest.fail("it downloads"))
    weights_in(presets, "sd1").unlink()
    assert "sd1" in told(capsys, "list")
    for action in ("path", "verify"):
        assert "run 'sdz models fetch sd1'" in told(capsys, action, "sd1", status=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mini"], "the weights of 'mini' are on this computer"),
        (
            ["nonsense"],
            "only mini, mini-half, mini-half-perceptual, mini-perceptual, sd-mini, sd1, sd3",
        ),
        (["tiny/sd1"], "no model is called 'tiny/sd1'"),
        (["flux2"], "no autoencoder of flux2 latents is known here: call register_model"),
        (["sd3", "--denoiser", "--pin"], "pillow-sdz knows no U-Net for 'sd3'"),
    ],
)
def test_what_cannot_be_fetched(
    presets: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in told(capsys, "fetch", *arguments, status=1)


def test_verify(presets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "verify", "mini").endswith("are sound\n")
    both = [weights_in(presets, name).resolve() for name in ("sd1", "unet")]
    assert told(capsys, "verify", "sd1") == "".join(f"sd1: {path} is sound\n" for path in both)

    both[1].write_bytes(b"other")
    assert main(["models", "verify", "sd1"]) == 1
    assert f"{both[1]} is damaged" in capsys.readouterr().err
    weights_in(presets, "unet").unlink()
    assert told(capsys, "verify", "sd1") == f"sd1: {both[0]} is sound\n"

    ours = autoencoder_directory(tmp_path / "ours")
    models.record_model("ours", ours)
    assert told(capsys, "verify", "ours") == f"ours: {ours / WEIGHTS} is sound\n"
    (ours / WEIGHTS).write_bytes(b"other")
    assert f"{ours / WEIGHTS} is damaged" in told(capsys, "verify", "ours", status=1)


def test_verify_checks_the_embedded_unet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = told(capsys, "verify", "sd-mini").splitlines()
    assert lines[1].endswith("unet/diffusion_pytorch_model.safetensors is sound")
    spec = catalogue.SD_MINI
    assert spec.unet is not None
    other = spec.unet.replace(sha256="0" * 64)
    damaged = spec.replace(unet=other)
    monkeypatch.setitem(catalogue.EMBEDDED, "sd-mini", damaged)
    assert main(["models", "verify", "sd-mini"]) == 1
    assert "unet/diffusion_pytorch_model.safetensors is damaged" in capsys.readouterr().err


def test_verify_what_is_not_installed(capsys: pytest.CaptureFixture[str], hub_cache: Path) -> None:
    assert told(capsys, "verify", "sd1", status=1) == (
        "sdz: models: the model 'sd1' is not installed: run 'sdz models fetch sd1'\n"
    )


def test_add(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    autoencoder_directory(tmp_path / "ours" / "vae")
    monkeypatch.chdir(tmp_path)
    digest = weights.sha256(Path("ours", "vae", WEIGHTS))
    assert told(capsys, "add", "ours", "ours", "--latent-space", "sd1") == (
        f"ours: 4 channels at 1/8, latent space sd1, weights {digest[:8]}\n"
    )
    monkeypatch.chdir("/")  # it is known from everywhere
    assert told(capsys, "path", "ours") == f"{tmp_path / 'ours' / 'vae'}\n"
    assert models.spec("ours").digest.hex() == digest[:8]


@pytest.mark.parametrize(
    ("name", "directory", "message"),
    [
        ("ours", ".", "holds no model in diffusers' layout"),
        ("../ours", "vae", "a model's name must have"),
        ("mini", "vae", "comes with pillow-sdz"),
        ("sd1", "vae", "other weights"),
    ],
)
def test_what_cannot_be_added(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    directory: str,
    message: str,
) -> None:
    autoencoder_directory(tmp_path / "elsewhere" / "vae")
    monkeypatch.chdir(tmp_path / "elsewhere")
    if directory == ".":
        monkeypatch.chdir(tmp_path)
    assert message in told(capsys, "add", name, directory, status=1)
    assert not recorded.path().exists()


def test_path(presets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "path") == f"{recorded.path()}\n"
    assert told(capsys, "path", "sd1") == f"{weights_in(presets, 'sd1').parent}\n"
    assert "are part of pillow-sdz" in told(capsys, "path", "mini", status=1)


def test_a_damaged_list_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    recorded.path().parent.mkdir()
    recorded.path().write_text("{")
    message = (
        f"sdz: models: the list of added models {recorded.path()} is damaged: "
        "run 'sdz models repair'\n"
    )
    for arguments in (["list"], ["verify", "sd1"]):
        assert told(capsys, *arguments, status=1) == message
    assert told(capsys, "verify", "mini").endswith("are sound\n")


def test_a_damaged_list_is_kept_aside_and_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its sound entries stay. The old list is never lost, not even by a second repair."""
    models.record_model("ours", autoencoder_directory(tmp_path / "ours"))
    for number, aside in enumerate(("models.json.damaged", "models.json.damaged-2")):
        entries = json.loads(recorded.path().read_text())
        damaged = json.dumps({**entries, "brick": {**entries["ours"], "channels": number}})
        damaged = damaged.replace('"channels": 1', '"channels": "1"')
        recorded.path().write_text(damaged)
        kept = recorded.path().with_name(aside)
        assert told(capsys, "repair").splitlines() == [
            f"the damaged list is kept as {kept}",
            "ours: kept",
            "brick: left out, add it again",
        ]
        assert kept.read_text() == damaged
        assert recorded.read().keys() == {"ours"}
    assert told(capsys, "repair") == f"the list of added models {recorded.path()} is sound\n"


def test_a_list_that_is_no_json_is_repaired(capsys: pytest.CaptureFixture[str]) -> None:
    recorded.path().parent.mkdir()
    recorded.path().write_bytes(b"\xff{")
    assert "everything: left out" in told(capsys, "repair")
    assert recorded.read() == {}
    assert "mini" in told(capsys, "list")


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_pipe_is_no_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command does not wait for it, and does not replace it. Other commands work."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setenv("SDZ_MODELS", str(pipe))
    for command in ("list", "repair"):
        assert main(["models", command]) == 1
        assert capsys.readouterr().err == (
            f"sdz: models: the list of added models {pipe} is no file: set SDZ_MODELS to one\n"
        )
    assert os.listdir(tmp_path) == ["pipe"]
    assert decode(encode(Image.new("RGB", (9, 9)))).size == (9, 9)


def test_there_is_nothing_to_repair(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "repair", status=1) == (
        f"sdz: models: {recorded.path()}: No such file or directory\n"
    )


@pytest.mark.parametrize(
    "config",
    [
        {"latent_channels": 0},
        {"latent_channels": -1},
        {"latent_channels": 65536},
        {"latent_channels": True},
        {"block_out_channels": [4] * 9},  # a factor of 256
    ],
)
def test_what_no_reader_accepts_is_not_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, object]
) -> None:
    """`add` refuses it and names the field. All other commands still work."""
    directory = autoencoder_directory(tmp_path / "brick", **config)
    (field,) = config
    message = told(capsys, "add", "brick", str(directory), status=1)
    assert message.startswith(f"sdz: models: {directory}/config.json: the field {field!r} must be ")
    assert not recorded.path().exists()
    assert "mini" in told(capsys, "list")


@pytest.mark.parametrize(
    ("field", "value"), [("channels", 0), ("channels", 65536), ("channels", True), ("factor", 256)]
)
def test_what_no_reader_accepts_is_not_recorded(field: str, value: int) -> None:
    """This holds for every caller of `write`."""
    record = recorded.Directory("/brick", "0" * 64, "brick", 4, 8)
    with pytest.raises(OSError, match=f"'brick' cannot be added: its {field} is {value}"):
        recorded.write("brick", dataclasses.replace(record, **{field: value}))
    assert not recorded.path().exists()


def test_an_added_model_that_is_gone_does_not_stop_the_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = autoencoder_directory(tmp_path / "ours")
    models.record_model("ours", directory)
    shutil.rmtree(directory)
    lines = {line.split()[0]: line for line in told(capsys, "list").splitlines()}
    assert not lines["ours"].endswith("installed")
    assert lines["mini"].endswith("installed")


@pytest.mark.skipif(os.name != "posix", reason="symbolic links of POSIX")
def test_the_list_is_not_written_through_a_dangling_link(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded.path().parent.mkdir()
    recorded.path().symlink_to(tmp_path / "elsewhere")
    directory = autoencoder_directory(tmp_path / "ours")
    message = told(capsys, "add", "ours", str(directory), status=1)
    assert message.endswith("is a symbolic link to nothing: it is not written\n")
    assert not (tmp_path / "elsewhere").exists()
    # One's own link to a list that is there is a way to keep it elsewhere.
    (tmp_path / "elsewhere").write_text("{}")
    assert told(capsys, "add", "ours", str(directory)).startswith("ours: 4 channels")
    assert recorded.path().is_symlink()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="users of POSIX")
def test_the_list_is_not_written_through_a_link_of_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded.path().parent.mkdir()
    (tmp_path / "theirs").write_text("{}")
    recorded.path().symlink_to(tmp_path / "theirs")
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    directory = autoencoder_directory(tmp_path / "ours")
    message = told(capsys, "add", "ours", str(directory), status=1)
    assert message.endswith("is a symbolic link of another user: it is not written\n")
    assert (tmp_path / "theirs").read_text() == "{}"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["fetch"], ["add", "ours"]])
def test_wrong_command_lines(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["models", *arguments])
    assert exit.value.code == 2
