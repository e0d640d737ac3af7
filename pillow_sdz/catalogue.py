"""What is known without weights: codings, latent spaces and models, and which headers are valid.

All of it is data, besides the function `judge`.  Opening a file needs no more.  The registry,
`models`, is imported when pixels are decoded or encoded.
"""

# Without `from __future__ import annotations`, for importing is faster: it would compile the type
# of each field of a NamedTuple.  The same holds for header.py and container.py.

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple

from . import latent_statistics as statistics
from . import weights
from .chunks import ARTICLES_DENOISING, BANDS, CHANGES, TUNES, Denoising
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
    band_latents=8192,
    needs_weights=True,
)
CONTEXT = CodingSpec(0, "context", 1, 0xFFFF, "step")
PALETTE = CodingSpec(1, "palette", 1, 0xFFFF, "byte", dithered=True)
FLOAT16 = CodingSpec(2, "float16", 0, 1, None, lossless="float16", unscaled=1)
BFLOAT16 = CodingSpec(3, "bfloat16", 0, 1, None, lossless="bfloat16", unscaled=1)
FLOAT32 = CodingSpec(4, "float32", 0, 1, None, lossless="float32", unscaled=1)

# Latent spaces


class Space(NamedTuple):
    """A space of latents: its models can decode each other's latents.

    ``codings`` are the codings that these latents may have, the default first.  Pipelines scale
    what the VAE encodes to (x - shift) * scaling.  Both are one number, or one for each channel.
    ``scaling`` is None if it is not known.  ``packing`` says how pipelines make a sequence of
    latents: see `shapes.PACKINGS`.  ``video`` latents have an axis of time.  Pipelines put it
    before the channels if ``time_first``.  ``patches`` names the space whose latents are 2x2
    patches of these.  ``prior`` names the trained prior of `codings.context`.  Files of a dithered
    coding recommend ``denoising``.  ``decoders`` has, for each tune but the first, the model that
    decodes.
    """

    name: str
    channels: int
    factor: int
    codings: tuple[CodingSpec, ...] = (CONTEXT, PALETTE, FLOAT16, BFLOAT16, FLOAT32)
    scaling: float | tuple[float, ...] | None = None
    shift: float | tuple[float, ...] = 0
    packing: str | None = None
    video: bool = False
    time_first: bool = False
    patches: str | None = None
    prior: str | None = None
    denoising: Denoising | None = None
    decoders: Mapping[str, str] = MappingProxyType({})
    regions: bool = False
    quality_map: bool = False

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


def _normal(std: tuple[float, ...]) -> tuple[float, ...]:
    """The scaling that makes each channel's standard deviation 1."""
    return tuple(1 / each for each in std)


# The ``denoising`` of sd1 is the article's.  That of sd-mini is measured:
# docs/measurements.md#catalogue.  All other numbers are specified: the configurations of the
# families' autoencoders, and diffusers' pipelines.
SPACES: dict[str, Space] = {
    space.name: space
    for space in (
        Space(
            "mini",
            384,
            16,
            codings=(HYPERPRIOR,),
            decoders=MappingProxyType({"perceptual": "mini-perceptual"}),
            regions=True,
            quality_map=True,
        ),
        Space("sd-mini", 4, 8, scaling=1, prior="sd-mini", denoising=Denoising(30, 3)),
        Space("sd1", 4, 8, scaling=0.18215, prior="sd1", denoising=ARTICLES_DENOISING),
        Space("sdxl", 4, 8, scaling=0.13025),
        Space("sd3", 16, 8, scaling=1.5305, shift=0.0609),
        # Also of Chroma, Z-Image, Lumina 2 and HiDream.
        Space("flux", 16, 8, scaling=0.3611, shift=0.1159, packing="patches"),
        # As FLUX.2's autoencoder returns them, and as its pipelines do.
        Space("flux2", 32, 8, scaling=1, patches="flux2-patches"),
        Space(
            "flux2-patches",
            128,
            16,
            scaling=_normal(statistics.FLUX2_STD),
            shift=statistics.FLUX2_MEAN,
            packing="places",
        ),
        Space(
            "qwen-image",
            16,
            8,
            scaling=_normal(statistics.WAN21_STD),
            shift=statistics.WAN21_MEAN,
            packing="patches",
            video=True,
        ),
        Space(
            "qwen-image-2",
            64,
            16,
            scaling=_normal(statistics.QWEN21_STD),
            shift=statistics.QWEN21_MEAN,
            packing="even places",
            video=True,
        ),
        Space(
            "wan21",
            16,
            8,
            scaling=_normal(statistics.WAN21_STD),
            shift=statistics.WAN21_MEAN,
            video=True,
        ),
        Space(
            "wan22",
            48,
            16,
            scaling=_normal(statistics.WAN22_STD),
            shift=statistics.WAN22_MEAN,
            video=True,
        ),
        Space("sana", 32, 32, scaling=0.41407),
        Space("hunyuan-image", 64, 32, scaling=0.75289),
        Space("hunyuan-video", 16, 8, scaling=0.476986, video=True),
        Space("hunyuan-video-1.5", 32, 16, scaling=1.03682, video=True),
        Space("cogvideox", 16, 8, scaling=1.15258426, video=True, time_first=True),
        Space(
            "mochi",
            12,
            8,
            scaling=_normal(statistics.MOCHI_STD),
            shift=statistics.MOCHI_MEAN,
            video=True,
        ),
        # Their statistics come with the weights, and are not known here.
        Space("ltx", 128, 32, packing="places", video=True),
        Space("glm-image", 16, 8),
    )
}

#: The names of all codings.  A latent space has some of them.
CODING_NAMES = tuple(
    dict.fromkeys(coding.name for space in SPACES.values() for coding in space.codings)
)

# Models


class UNet(NamedTuple):
    """A U-Net that comes with this package: "module:function", and its weights.

    The function makes a `models.denoiser.Denoiser` of its parts.  They lie in diffusers' layout.
    """

    loader: str
    weights: weights.Weights


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
    #: Of a model that comes with this package: "module:function", a `models.network.Loader`.
    loader: str = ""
    #: The U-Net for its latents that comes with it.
    unet: UNet | None = None

    @property
    def space(self) -> Space:
        """The latent space; for an unknown name, a space that belongs to this model alone."""
        return SPACES.get(self.latent_space) or Space(self.latent_space, self.channels, self.factor)


# The digest of a model or a header that leaves open which weights are meant.
NOT_NAMED = bytes(4)

MINI = ModelSpec(
    "mini",
    384,
    16,
    weights.MINI.digest,
    "mini",
    scales=(1, 2, 4, 8),
    by_area=True,
    loader="pillow_sdz.models.mini:load",
)
# Decodes the same latents to pictures that look real when there are few bits (`tune="perceptual"`).
MINI_PERCEPTUAL = MINI._replace(
    name="mini-perceptual",
    digest=weights.MINI_PERCEPTUAL.digest,
    encodes=False,
    loader="pillow_sdz.models.mini:load_perceptual",
)
SD_MINI = ModelSpec(
    "sd-mini",
    4,
    8,
    weights.SD_MINI.digest,
    "sd-mini",
    loader="pillow_sdz.models.sd_mini:load",
    unet=UNet("pillow_sdz.models.sd_mini_unet:load", weights.SD_MINI_UNET),
)

#: The model that `Image.save` uses if none is asked for.
DEFAULT = MINI
#: The models whose weights come with this package.
EMBEDDED: dict[str, ModelSpec] = {spec.name: spec for spec in (MINI, MINI_PERCEPTUAL, SD_MINI)}


def known(name: str) -> ModelSpec | None:
    """The model of this name, if every computer with this package knows it; otherwise None.

    The name of a latent space is also that of a model.  Such a model and a preset have the digest
    `NOT_NAMED`, because another computer may have other weights.
    """
    if name in EMBEDDED:
        return EMBEDDED[name]
    from .presets import PRESETS  # for which files of the embedded models need not wait

    space = SPACES.get(PRESETS[name].latent_space if name in PRESETS else name)
    if space is None:
        return None
    return ModelSpec(name, space.channels, space.factor, NOT_NAMED, space.name)


def whole_of(model: ModelSpec) -> ModelSpec | None:
    """The family whose 2x2 patches a model's latents are; None if they are no patches."""
    families = (space for space in SPACES.values() if space.patches == model.space.name)
    return next((known(space.name) for space in families), None)


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


def judge_chunks(spec: ModelSpec, coding: CodingSpec, types: Collection[bytes]) -> None:
    """OSError if a file has chunks of these types that latents of this coding do not have."""
    if coding.band_latents is None:
        for type in (BANDS.type, CHANGES):
            if type in types:
                name = type.decode("ascii")
                msg = f"damaged SDZ file: files of model {spec.name} have no chunk {name}"
                raise OSError(msg)
