"""The registry of models: what a name in a file can mean, and what it cannot mean."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model_registry import autoencoder_directory, hub_cache, no_network, registry
from pillow_sdz import catalogue, models, options, presets, register_model
from pillow_sdz.catalogue import MINI, ModelSpec
from pillow_sdz.models import hub, recorded
from pillow_sdz.presets import PRESETS

__all__ = ["hub_cache", "no_network", "registry"]

SD1 = models.spec("sd1")


def decoder_for(spec: ModelSpec, **fields: Any) -> ModelSpec:
    """The decoder for a file of this model, whose header may have other values in these fields."""
    digest = fields.pop("digest", spec.digest)
    return models.decoder_for(spec.replace(**fields), digest, tune="psnr")


@pytest.fixture
def ours(tmp_path: Path) -> ModelSpec:
    """A registered model of sd1's latent space."""
    return register_model("ours", autoencoder_directory(tmp_path / "ours"), latent_space="sd1")


EMBEDDED = {"mini", "mini-half", "mini-half-perceptual", "mini-perceptual", "sd-mini"}


def test_names() -> None:
    assert models.names() == sorted({*EMBEDDED, *PRESETS})
    with pytest.raises(KeyError):
        models.spec("ours")


#: By preset: latent space, class, scaling and shift of the autoencoder's own configuration, its
#: repository, and where it is pinned its commit, and the bytes and sha256 of its weights.
PRESETS_OF_RECORD: dict[str, tuple[object, ...]] = {
    "sd1": (
        *("sd1", "AutoencoderKL", 0.18215, 0, "stabilityai/sd-vae-ft-mse"),
        *("31f26fdeee1355a5c34592e401dd41e45d25a493", 334643276),
        "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
    ),
    "sdxl": (
        *("sdxl", "AutoencoderKL", 0.13025, 0, "madebyollin/sdxl-vae-fp16-fix"),
        *("207b116dae70ace3637169f1ddd2434b91b3a8cd", 334643268),
        "1b909373b28f2137098b0fd9dbc6f97f8410854f31f84ddc9fa04b077b0ace2c",
    ),
    "sd3": (
        *("sd3", "AutoencoderKL", 1.5305, 0.0609),
        *("stabilityai/stable-diffusion-3-medium-diffusers", None, None, None),
    ),
    "flux": (
        *("flux", "AutoencoderKL", 0.3611, 0.1159, "black-forest-labs/FLUX.1-schnell"),
        *("741f7c3ce8b383c54771c7003378a50191e9efe9", 167666902),
        "f5b59a26851551b67ae1fe58d32e76486e1e812def4696a4bea97f16604d40a3",
    ),
    "taesd": (
        *("sd1", "AutoencoderTiny", 1, 0, "madebyollin/taesd"),
        *("614f76814bbe30edbe2e627ace1c2234c81a2c0e", 9793292),
        "db169d69145ec4ff064e49d99c95fa05d3eb04ee453de35824a6d0f325513549",
    ),
    "taesdxl": (
        *("sdxl", "AutoencoderTiny", 1, 0, "madebyollin/taesdxl"),
        *("b20258aaef75ef61e659c1e0f14f251cf0ad153e", 9793292),
        "ff4824aca94dd6111e0340fa749347fb74101060d9712cb5ef1ca8f1cf17502f",
    ),
    "taesd3": (
        *("sd3", "AutoencoderTiny", 1, 0, "madebyollin/taesd3"),
        *("d58dcaccd2b36fcb7a6b9e93c1cc507acab5a778", 9848636),
        "6f79c1397cb9ce1dac363722dbe70147aee0ccca75e28338f8482fe515891399",
    ),
    "taef1": (
        *("flux", "AutoencoderTiny", 1, 0, "madebyollin/taef1"),
        *("b1b2d00e9e440cfbf3dedb34266864da86016ceb", 9848636),
        "47a6c2bff850da04b267cab70fe3553fef57255eb9a8e76852baa0a87850e54d",
    ),
}


def test_presets_of_record() -> None:
    """A file names four bytes of the sha256 of weights.  So no pin may ever change."""
    found = {}
    for name, preset in PRESETS.items():
        latent_space, kind, scaling, shift, (repository, revision, files), _ = preset
        found[name] = latent_space, kind, scaling, shift, repository, revision, *files[-1][1:]
    assert found == PRESETS_OF_RECORD


def test_the_denoiser_of_record() -> None:
    """The U-Net and the text encoder of Stable Diffusion 1.5.  No other preset has one."""
    (preset,) = (preset for preset in PRESETS.values() if preset.denoiser)
    assert preset == PRESETS["sd1"]
    assert preset.denoiser is not None
    repository, revision, files = preset.denoiser
    assert repository == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert revision == "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
    assert {file for file in files if file.sha256 or file.bytes} == {
        presets.File(
            "unet/diffusion_pytorch_model.safetensors",
            3438167540,
            "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1",
        ),
        presets.File(
            "text_encoder/model.safetensors",
            492265874,
            "d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334",
        ),
    }


def test_presets_are_pinned_or_say_that_they_are_not() -> None:
    for name, preset in PRESETS.items():
        for snapshot in filter(None, (preset.autoencoder, preset.denoiser)):
            weights = [file for file in snapshot.files if file.path.endswith(".safetensors")]
            assert weights
            if snapshot.revision is None:
                assert all(file.sha256 is None for file in weights)
                assert models.spec(name).digest == catalogue.NOT_NAMED
            else:
                assert re.fullmatch("[0-9a-f]{40}", snapshot.revision)
                assert all(re.fullmatch("[0-9a-f]{64}", file.sha256 or "") for file in weights)
                assert (
                    models.spec(name).digest.hex() == str(preset.autoencoder.files[-1].sha256)[:8]
                )


def test_a_model_decodes_its_own_files(ours: ModelSpec) -> None:
    assert decoder_for(MINI) is MINI
    assert decoder_for(ours) == ours


def test_weights_that_a_file_does_not_name_are_not_checked(ours: ModelSpec) -> None:
    assert decoder_for(ours, digest=catalogue.NOT_NAMED) == ours


def test_other_weights_are_refused(ours: ModelSpec) -> None:
    with pytest.raises(
        OSError, match=f"weights 01020304, but the installed weights are {ours.digest.hex()}"
    ):
        decoder_for(ours, digest=bytes([1, 2, 3, 4]))


@pytest.mark.parametrize("fields", [{"channels": 16}, {"factor": 4}])
def test_other_latents_are_refused(ours: ModelSpec, fields: dict[str, int]) -> None:
    with pytest.raises(OSError, match="those of the model 'ours' have 4 at 8"):
        decoder_for(ours, **fields)


@pytest.mark.parametrize("name", ["ours", "..", "./ours", "tiny/autoencoder", "/tmp", "C:\\ours"])
def test_a_name_is_never_a_path_or_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    autoencoder_directory(tmp_path / "ours")
    autoencoder_directory(tmp_path / "tiny" / "autoencoder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "ALLOW_DOWNLOADS", True)
    with pytest.raises(OSError, match=re.escape(f"'sdz models add {name} DIRECTORY'")):
        decoder_for(SD1, name=name)


@pytest.mark.parametrize(
    ("name", "command"), [("sd1", "sdz models fetch sd1"), ("sd3", "sdz models fetch sd3 --pin")]
)
def test_missing_weights_and_the_command_that_brings_them(
    hub_cache: Path, name: str, command: str
) -> None:
    with pytest.raises(OSError, match=f"the model '{name}' is not installed: run '{command}'$"):
        decoder_for(models.spec(name))


def test_a_decoder_that_was_asked_for(ours: ModelSpec) -> None:
    with options.override(DECODER="ours"):
        assert decoder_for(SD1) == ours
        # Its own files too, whatever weights they name: the user knows better.
        assert decoder_for(ours, digest=bytes([1, 2, 3, 4])) == ours


def test_a_decoder_of_another_latent_space(ours: ModelSpec) -> None:
    with (
        options.override(DECODER="ours"),
        pytest.raises(OSError, match=r"decodes sd1 latents, but .* has mini latents of 'mini'"),
    ):
        decoder_for(MINI)


def test_a_decoder_that_nobody_knows() -> None:
    with (
        options.override(DECODER="theirs"),
        pytest.raises(ValueError, match=r"options.DECODER must be one of .*mini.*, not 'theirs'"),
    ):
        decoder_for(MINI)


def test_a_decoder_that_is_not_installed(hub_cache: Path, ours: ModelSpec) -> None:
    with options.override(DECODER="taesd"), pytest.raises(OSError, match="sdz models fetch taesd'"):
        decoder_for(ours)


def test_registration(tmp_path: Path) -> None:
    directory = autoencoder_directory(tmp_path / "ours", b"anything")
    spec = register_model("ours", directory)
    digest = hashlib.sha256(b"anything").digest()[:4]
    assert spec == ModelSpec("ours", 4, 8, digest, latent_space="ours")
    assert models.spec("ours") == spec
    assert "ours" in models.names()


@pytest.mark.parametrize(
    ("config", "channels", "factor"),
    [
        ({}, 4, 8),
        ({"latent_channels": 16, "block_out_channels": [8, 8, 8]}, 16, 4),
        ({"_class_name": "AutoencoderTiny", "encoder_block_out_channels": [8] * 5}, 4, 16),
    ],
)
def test_latents_of_a_directory(
    tmp_path: Path, config: dict[str, Any], channels: int, factor: int
) -> None:
    spec = register_model("ours", autoencoder_directory(tmp_path / "ours", **config))
    assert (spec.channels, spec.factor) == (channels, factor)


def test_registering_again_replaces(tmp_path: Path) -> None:
    first = register_model("ours", autoencoder_directory(tmp_path / "1", b"first"))
    second = register_model("ours", autoencoder_directory(tmp_path / "2", b"second"))
    assert models.spec("ours") == second != first


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "Ours", "a" * 33, "ours\n"])
def test_names_that_no_model_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="a model's name must have 1 to 32 characters"):
        register_model(name, autoencoder_directory(tmp_path / "ours"))


@pytest.mark.parametrize(
    ("name", "latent_space", "message"),
    [
        ("mini", None, "comes with pillow-sdz"),
        ("sd1", None, "other weights"),
        ("sd3", "sd1", "other weights"),
        ("sd3", None, "sd3 latents have 16 channels"),
        ("ours", "sdxl/1", "not 'sdxl/1'"),
        ("ours", "flux", "flux latents have 16 channels .* this autoencoder has 4"),
    ],
)
def test_names_and_latent_spaces_that_are_taken(
    tmp_path: Path, name: str, latent_space: str | None, message: str
) -> None:
    directory = autoencoder_directory(tmp_path / "ours")
    with pytest.raises(ValueError, match=message):
        register_model(name, directory, latent_space=latent_space)


def test_the_weights_that_a_preset_is_pinned_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = PRESETS["sd1"].pinned("1" * 40, hashlib.sha256(b"real").hexdigest())
    monkeypatch.setattr(models, "PRESETS", {"sd1": pinned})
    spec = register_model("sd1", autoencoder_directory(tmp_path / "sd1", b"real"))
    assert spec.latent_space == "sd1"
    assert decoder_for(spec) == spec


def test_a_preset_without_a_hash_takes_the_users_weights(tmp_path: Path) -> None:
    directory = autoencoder_directory(tmp_path / "sd3", latent_channels=16)
    spec = register_model("sd3", directory)
    assert (spec.latent_space, spec.digest) == ("sd3", hashlib.sha256(b"weights").digest()[:4])


def test_what_holds_no_autoencoder(tmp_path: Path) -> None:
    directory = autoencoder_directory(tmp_path / "ours", _class_name="VQModel")
    with pytest.raises(OSError, match=r"can be read: it is VQModel, .* Load it yourself, and"):
        register_model("ours", directory)
    with pytest.raises(OSError, match=r"no config\.json and no vae/config\.json"):
        register_model("ours", tmp_path)
    with pytest.raises(
        OSError, match=r"this int is no autoencoder .* it has not encode and decode"
    ):
        register_model("ours", 5)


def test_a_damaged_configuration(tmp_path: Path) -> None:
    directory = autoencoder_directory(tmp_path / "ours")
    for damaged in (
        b"{",
        b"[]",
        b"\xff",
        b'{"_class_name": "AutoencoderKL", "latent_channels": []}',
    ):
        (directory / "config.json").write_bytes(damaged)
        with pytest.raises(OSError, match="damaged"):
            register_model("ours", directory)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    directory = autoencoder_directory(tmp_path / "ours")
    weights = directory / presets.WEIGHTS
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(OSError, match=r"its weights only as a pickle, .* save them as safetensors"):
        register_model("ours", directory)
    weights.with_suffix(".bin").unlink()
    with pytest.raises(OSError, match="has no weights"):
        register_model("ours", directory)


def test_registration_imports_nothing_heavy(tmp_path: Path, environment: dict[str, str]) -> None:
    directory = autoencoder_directory(tmp_path / "ours")
    program = (
        "import sys, pillow_sdz; pillow_sdz.register_model('ours', sys.argv[1]);"
        "print(*{'torch', 'numpy', 'diffusers', 'transformers'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", program, str(directory)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_a_recorded_model_is_known_to_every_process(tmp_path: Path) -> None:
    directory = autoencoder_directory(tmp_path / "ours")
    spec = models.record_model("ours", directory, "sd1")
    assert models.spec("ours") == spec
    assert spec.latent_space == "sd1"
    assert decoder_for(spec) == spec
    with options.override(DECODER="ours"):
        assert decoder_for(SD1) == spec


def test_a_recorded_models_directory_is_gone(tmp_path: Path) -> None:
    directory = autoencoder_directory(tmp_path / "ours")
    spec = models.record_model("ours", directory)
    directory.rename(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="is gone: run 'sdz models add ours DIRECTORY'"):
        decoder_for(spec)


def test_records_are_kept(tmp_path: Path) -> None:
    models.record_model("first", autoencoder_directory(tmp_path / "1"))
    models.record_model("second", autoencoder_directory(tmp_path / "2"))
    assert recorded.read().keys() == {"first", "second"}


RECORD = dataclasses.asdict(recorded.Directory("/x", "0" * 64, "sd1", 4, 8))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"ours": 5}',
        '{"ours": {}}',
        '{"ours": {"directory": "/x"}}',
        json.dumps({"../ours": RECORD}),
        *(
            json.dumps({"ours": {**RECORD, **change}})
            for change in (
                {"directory": "relative"},
                {"directory": 5},
                {"sha256": "0"},
                {"channels": "4"},
                {"channels": True},
                {"factor": 0},
                {"surplus": 1},
            )
        ),
        json.dumps({"sd3": {"revision": "main", "sha256": "0" * 64}}),
    ],
)
def test_a_damaged_models_file(text: str) -> None:
    recorded.path().parent.mkdir()
    recorded.path().write_text(text)
    with pytest.raises(OSError, match=r"models\.json is damaged"):
        models.names()
    with pytest.raises(OSError, match=r"models\.json is damaged"):
        decoder_for(SD1)
    assert decoder_for(MINI) is MINI  # which needs no such file


@pytest.mark.parametrize(
    ("platform", "variables", "path"),
    [
        ("linux", {"XDG_CONFIG_HOME": "/conf"}, "/conf/pillow-sdz/models.json"),
        (
            "linux",
            {"XDG_CONFIG_HOME": "", "HOME": "/home/me"},
            "/home/me/.config/pillow-sdz/models.json",
        ),
        ("darwin", {"HOME": "/me"}, "/me/Library/Application Support/pillow-sdz/models.json"),
        ("win32", {"APPDATA": "/data"}, "/data/pillow-sdz/models.json"),
        ("linux", {"SDZ_MODELS": "/mine.json"}, "/mine.json"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX paths")
def test_where_the_models_file_is(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], path: str
) -> None:
    monkeypatch.delenv("SDZ_MODELS")
    monkeypatch.setattr(sys, "platform", platform)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert recorded.path() == Path(path)


def test_only_commits_are_looked_up(hub_cache: Path) -> None:
    files = (presets.File("config.json"),)
    folder = hub_cache / "models--a--b" / "snapshots" / "main"
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    assert hub.locate(presets.Snapshot("a/b", "main", files)) is None
    folder.rename(folder.with_name("1" * 40))
    assert hub.locate(presets.Snapshot("a/b", "1" * 40, files)) == folder.with_name("1" * 40)


def test_no_home_directory_has_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        msg = "Could not determine home directory."
        raise RuntimeError(msg)

    for name in ("SDZ_MODELS", "XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(OSError, match=r"no place for the list of added models: .* set SDZ_MODELS"):
        recorded.path()
