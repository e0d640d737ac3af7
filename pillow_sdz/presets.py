"""The models of the Hugging Face hub that this package knows by name, and where they are.

A revision is a commit, because only commits never change there.  If a preset's revision and sha256
are None, only its latents are known.  Then the user decides which weights it has on this computer,
with `sdz models fetch NAME --pin` or `sdz models add NAME DIRECTORY`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

WEIGHTS = "diffusion_pytorch_model.safetensors"


class File(NamedTuple):
    """A file of a repository; ``bytes`` and ``sha256`` are None if they are not pinned."""

    path: str
    bytes: int | None = None
    sha256: str | None = None


class Snapshot(NamedTuple):
    """Files of a repository on the hub at one commit, 40 hexadecimal digits."""

    repository: str
    revision: str | None
    files: tuple[File, ...]


class Preset(NamedTuple):
    """An autoencoder of a family of models.

    ``scaling`` and ``shift`` are from the autoencoder's own configuration: a distilled autoencoder
    may return scaled latents.  All files of ``autoencoder`` lie in one folder; the last one holds
    the weights.  ``denoiser`` has the folders unet, scheduler, text_encoder and tokenizer.
    """

    latent_space: str
    class_name: str
    scaling: float
    shift: float
    autoencoder: Snapshot
    denoiser: Snapshot | None = None

    def pinned(self, revision: str, sha256: str) -> Preset:
        """This preset with the weights of a commit, and their sha256."""
        *others, weights = self.autoencoder.files
        files = (*others, weights._replace(sha256=sha256))
        return self._replace(autoencoder=Snapshot(self.autoencoder.repository, revision, files))


def _autoencoder(
    repository: str,
    revision: str | None = None,
    bytes: int | None = None,
    sha256: str | None = None,
    folder: str = "",
) -> Snapshot:
    files = File(folder + "config.json"), File(folder + WEIGHTS, bytes, sha256)
    return Snapshot(repository, revision, files)


# Scaling and shift are from the pipelines' configurations.  An AutoencoderTiny returns scaled
# latents.
PRESETS: Mapping[str, Preset] = {
    "sd1": Preset(
        latent_space="sd1",
        class_name="AutoencoderKL",
        scaling=0.18215,
        shift=0,
        autoencoder=_autoencoder(
            "stabilityai/sd-vae-ft-mse",
            "31f26fdeee1355a5c34592e401dd41e45d25a493",
            334643276,
            "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
        ),
        denoiser=Snapshot(
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
            (
                File("unet/config.json"),
                File(
                    "unet/" + WEIGHTS,
                    3438167540,
                    "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1",
                ),
                File("scheduler/scheduler_config.json"),
                File("text_encoder/config.json"),
                File(
                    "text_encoder/model.safetensors",
                    492265874,
                    "d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334",
                ),
                File("tokenizer/vocab.json"),
                File("tokenizer/merges.txt"),
                File("tokenizer/special_tokens_map.json"),
                File("tokenizer/tokenizer_config.json"),
            ),
        ),
    ),
    "sdxl": Preset(
        latent_space="sdxl",
        class_name="AutoencoderKL",
        scaling=0.13025,
        shift=0,
        autoencoder=_autoencoder(
            "madebyollin/sdxl-vae-fp16-fix",
            "207b116dae70ace3637169f1ddd2434b91b3a8cd",
            334643268,
            "1b909373b28f2137098b0fd9dbc6f97f8410854f31f84ddc9fa04b077b0ace2c",
        ),
    ),
    "sd3": Preset(
        latent_space="sd3",
        class_name="AutoencoderKL",
        scaling=1.5305,
        shift=0.0609,
        autoencoder=_autoencoder("stabilityai/stable-diffusion-3-medium-diffusers", folder="vae/"),
    ),
    "flux": Preset(
        latent_space="flux",
        class_name="AutoencoderKL",
        scaling=0.3611,
        shift=0.1159,
        autoencoder=_autoencoder(
            "black-forest-labs/FLUX.1-schnell",
            "741f7c3ce8b383c54771c7003378a50191e9efe9",
            167666902,
            "f5b59a26851551b67ae1fe58d32e76486e1e812def4696a4bea97f16604d40a3",
            folder="vae/",
        ),
    ),
    "taesd": Preset(
        latent_space="sd1",
        class_name="AutoencoderTiny",
        scaling=1,
        shift=0,
        autoencoder=_autoencoder(
            "madebyollin/taesd",
            "614f76814bbe30edbe2e627ace1c2234c81a2c0e",
            9793292,
            "db169d69145ec4ff064e49d99c95fa05d3eb04ee453de35824a6d0f325513549",
        ),
    ),
    "taesdxl": Preset(
        latent_space="sdxl",
        class_name="AutoencoderTiny",
        scaling=1,
        shift=0,
        autoencoder=_autoencoder(
            "madebyollin/taesdxl",
            "b20258aaef75ef61e659c1e0f14f251cf0ad153e",
            9793292,
            "ff4824aca94dd6111e0340fa749347fb74101060d9712cb5ef1ca8f1cf17502f",
        ),
    ),
    "taesd3": Preset(
        latent_space="sd3",
        class_name="AutoencoderTiny",
        scaling=1,
        shift=0,
        autoencoder=_autoencoder(
            "madebyollin/taesd3",
            "d58dcaccd2b36fcb7a6b9e93c1cc507acab5a778",
            9848636,
            "6f79c1397cb9ce1dac363722dbe70147aee0ccca75e28338f8482fe515891399",
        ),
    ),
    "taef1": Preset(
        latent_space="flux",
        class_name="AutoencoderTiny",
        scaling=1,
        shift=0,
        autoencoder=_autoencoder(
            "madebyollin/taef1",
            "b1b2d00e9e440cfbf3dedb34266864da86016ceb",
            9848636,
            "47a6c2bff850da04b267cab70fe3553fef57255eb9a8e76852baa0a87850e54d",
        ),
    ),
}
