"""What is known without weights: codings, latent spaces and models, and which headers are valid.

All of it is data, besides the function `judge`.  Opening a file needs no more.  The registry,
`models`, is imported when pixels are decoded or encoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from . import weights
from .chunks import ARTICLES_DENOISING, TUNES, Denoising
from .header import STEP_UNITS, Header

# Codings

LOWEST_QUALITY, HIGHEST_QUALITY = 100, 10000  # in hundredths


class CodingSpec(NamedTuple):
    """A coding as headers know it: its number, and what its quantisation means.

    A header's quantisation is ``lowest``..``highest``.  ``unit`` says what it counts.  "quality":
    hundredths of the quality.  "step": the step of all values, in 1/1024 of a latent.  "byte": what
    one step of a byte stands for, in 1/1024 of a latent.  None: there is no choice.
    """

    number: int
    name: str
    lowest: int
    highest: int
    unit: str | None
    #: The most latents of a band (BAND), rows times columns.  Such bands may be stored as the
    #: difference from the frame before (DIFF).  None if a frame is one band.
    band_latents: int | None = None
    #: The model's weights are needed to decode even the integers.
    needs_weights: bool = False
    #: The coding adds noise, which a U-Net can remove; see `Space.denoising`.
    dithered: bool = False
    #: The dtype that the coding keeps bit for bit.
    lossless: str | None = None
    #: The quantisation that marks latents as stored unscaled.
    unscaled: int | None = None

    @property
    def graded(self) -> bool:
        """Whether there is a choice of quality."""
        return self.unit in ("quality", "step")

    def step(self, quantisation: int) -> float | None:
        """The step of all values, in units of a latent; None if there is no such step."""
        return quantisation / STEP_UNITS if self.unit == "step" else None

    def said(self, quantisation: int) -> dict[str, float]:
        """The quantisation as users know it: ``quality`` or ``step``, or nothing."""
        if self.unit == "quality":
            whole, hundredths = divmod(quantisation, 100)
            return {"quality": quantisation / 100 if hundredths else whole}
        return {"step": quantisation / STEP_UNITS} if self.unit else {}


#: Has hyperlatents, and a prior from the model's own weights.  ``band_latents`` is chosen: it
#: limits the memory for decoding a band's integers (benchmarks.memory).
HYPERPRIOR = CodingSpec(
    number=0,
    name="context",
    lowest=LOWEST_QUALITY,
    highest=HIGHEST_QUALITY,
    unit="quality",
    band_latents=16384,
    needs_weights=True,
)
CONTEXT = CodingSpec(0, "context", 1, 0xFFFF, "step")
PALETTE = CodingSpec(1, "palette", 1, 0xFFFF, "byte", dithered=True)
FLOAT16 = CodingSpec(2, "float16", 0, 1, None, lossless="float16", unscaled=1)

# Latent spaces


class Space(NamedTuple):
    """A space of latents: its models can decode each other's latents.

    ``codings`` are the codings that these latents may have, the default first.  Pipelines scale
    what the VAE encodes to (x - shift) * scaling; ``scaling`` is None if it is not known.
    ``prior`` names the trained prior of `codings.context`.  Files of a dithered coding recommend
    ``denoising``.  ``decoders`` has, for each tune but the first, the model that decodes.
    """

    name: str
    channels: int
    factor: int
    codings: tuple[CodingSpec, ...] = (CONTEXT, PALETTE, FLOAT16)
    scaling: float | None = None
    shift: float = 0
    prior: str | None = None
    denoising: Denoising | None = None
    decoders: Mapping[str, str] = MappingProxyType({})

    @property
    def tunes(self) -> tuple[str, ...]:
        """The values of ``tune`` that these latents may have, the default first."""
        return (TUNES[0], *self.decoders)

    def coding(self, name: str) -> CodingSpec | None:
        """The coding of this name, if these latents have it."""
        return next((coding for coding in self.codings if coding.name == name), None)

    @property
    def is_own(self) -> bool:
        """Whether the latents belong to one model alone: only its weights can decode them."""
        return any(coding.needs_weights for coding in self.codings)


# The ``denoising`` of sd1 is the article's.  That of sd-mini is measured:
# docs/measurements.md#catalogue.
SPACES: dict[str, Space] = {
    space.name: space
    for space in (
        Space(
            "mini",
            160,
            16,
            codings=(HYPERPRIOR,),
            decoders=MappingProxyType({"perceptual": "mini-perceptual"}),
        ),
        Space("sd-mini", 4, 8, scaling=1, prior="sd-mini", denoising=Denoising(30, 3)),
        Space("sd1", 4, 8, scaling=0.18215, prior="sd1", denoising=ARTICLES_DENOISING),
        Space("sdxl", 4, 8, scaling=0.13025),
        Space("sd3", 16, 8, scaling=1.5305, shift=0.0609),
        Space("flux", 16, 8, scaling=0.3611, shift=0.1159),
    )
}

#: The names of all codings.  A latent space has some of them.
CODING_NAMES = tuple(
    dict.fromkeys(coding.name for space in SPACES.values() for coding in space.codings)
)

# Models


class ModelSpec(NamedTuple):
    """What is known of a model without its weights.

    ``channels`` is the number of channels of its latents.  ``factor`` is the number of pixels along
    one side of a latent.  ``digest`` is the first 4 bytes of the weights' sha256, or `NOT_NAMED`.
    """

    name: str
    channels: int
    factor: int
    digest: bytes
    latent_space: str
    #: False if the model is a second decoder for another model's latents.
    encodes: bool = True
    #: The model decodes pictures at 1/scale of their size, for each of these scales.
    scales: tuple[int, ...] = (1,)
    #: The model can decode a part of a picture without the rest.
    by_area: bool = False

    @property
    def space(self) -> Space:
        """The latent space; for an unknown name, a space that belongs to this model alone."""
        return SPACES.get(self.latent_space) or Space(self.latent_space, self.channels, self.factor)


# The digest of a model or a header that leaves open which weights are meant.
NOT_NAMED = bytes(4)

MINI = ModelSpec("mini", 160, 16, weights.MINI.digest, "mini", scales=(1, 2, 4, 8), by_area=True)
# Decodes the same latents to pictures that look real when there are few bits (`tune="perceptual"`).
MINI_PERCEPTUAL = MINI._replace(
    name="mini-perceptual", digest=weights.MINI_PERCEPTUAL.digest, encodes=False
)
SD_MINI = ModelSpec("sd-mini", 4, 8, weights.SD_MINI.digest, "sd-mini")

#: The model that `Image.save` uses if none is asked for.
DEFAULT = MINI
#: The models whose weights come with this package.
EMBEDDED: dict[str, ModelSpec] = {spec.name: spec for spec in (MINI, MINI_PERCEPTUAL, SD_MINI)}


def known(name: str) -> ModelSpec | None:
    """The model of this name, if every computer with this package knows it; otherwise None.

    A preset's digest is `NOT_NAMED`, because another computer may have another commit's weights.
    """
    if name in EMBEDDED:
        return EMBEDDED[name]
    if name in PRESETS:
        space = SPACES[PRESETS[name].latent_space]
        return ModelSpec(name, space.channels, space.factor, NOT_NAMED, space.name)
    return None


def judge(header: Header) -> tuple[ModelSpec, CodingSpec]:
    """The model and the coding of a file with this header.

    If the package does not know the model, the result is what the header says.  Models that the
    user has recorded are not looked up: a file must open whatever is recorded.  OSError if the
    header contradicts the model that it names, or if the coding is not known here.
    """
    spec = known(header.model)
    if spec is None:
        spec = ModelSpec(header.model, header.channels, header.factor, header.digest, header.model)
    if not spec.encodes:
        msg = (
            f"damaged SDZ header: {header.model!r} has no latents of its own, it decodes those "
            f"of {spec.latent_space!r}"
        )
        raise OSError(msg)
    if (header.channels, header.factor) != (spec.channels, spec.factor):
        msg = (
            f"damaged SDZ header: {header.channels} channels at a factor of {header.factor}, "
            f"but model {spec.name} has {spec.channels} at {spec.factor}"
        )
        raise OSError(msg)
    coding = next((c for c in spec.space.codings if c.number == header.coding), None)
    if coding is None:
        msg = (
            f"SDZ coding {header.coding} of model {spec.name} is not known to this version of "
            "pillow-sdz: a newer one may read the file"
        )
        raise OSError(msg)
    if not coding.lowest <= header.quantisation <= coding.highest:
        msg = (
            f"damaged SDZ header: coding {coding.name} of model {spec.name} has a quantisation of "
            f"{header.quantisation}, not {coding.lowest} to {coding.highest}"
        )
        raise OSError(msg)
    return spec, coding


# Models of the Hugging Face hub
#
# A revision is a commit, because only commits never change there. If a preset's revision and sha256
# are None, only its latents are known. The user settles which weights it has on this computer:
# with `sdz models fetch NAME --pin` or `sdz models add NAME DIRECTORY`.

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
        autoencoder=_autoencoder("black-forest-labs/FLUX.1-schnell", folder="vae/"),
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
        autoencoder=_autoencoder("madebyollin/taesdxl"),
    ),
    "taesd3": Preset(
        latent_space="sd3",
        class_name="AutoencoderTiny",
        scaling=1,
        shift=0,
        autoencoder=_autoencoder("madebyollin/taesd3"),
    ),
    "taef1": Preset(
        latent_space="flux",
        class_name="AutoencoderTiny",
        scaling=1,
        shift=0,
        autoencoder=_autoencoder("madebyollin/taef1"),
    ),
}
