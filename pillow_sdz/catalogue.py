"""What is known of models without their weights, and which headers are valid.

Opening a file needs no more.  The registry, `models`, is imported when pixels are decoded or
encoded.
"""

from __future__ import annotations

from collections.abc import Collection
from types import MappingProxyType

from . import weights
from .chunks import BANDS, CHANGES, Denoising
from .header import Header
from .rows import Row
from .spaces import HYPERPRIOR, CodingSpec, Space

# Latent spaces

#: Those of the models that come with this package.  `families` has the others.  The ``denoising``
#: is measured: docs/measurements.md#catalogue.
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
        Space(
            "mini-half",
            384,
            32,
            codings=(HYPERPRIOR,),
            decoders=MappingProxyType({"perceptual": "mini-half-perceptual"}),
            regions=True,
            quality_map=True,
        ),
        Space("sd-mini", 4, 8, scaling=1, prior="sd-mini", denoising=Denoising(30, 3)),
    )
}


def all_spaces() -> dict[str, Space]:
    """All latent spaces, by name."""
    from . import families  # here, because files of the embedded models do not need it

    return SPACES | families.SPACES


# Models


class ModelSpec(Row):
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
    #: If a target size leaves this model a quality below ``coarser_below``, or none, pictures look
    #: better with the models of these names.  A second decoder has a limit of its own.
    coarser: tuple[str, ...] = ()
    coarser_below: float = 0
    #: The model can decode a part of a picture without the rest.
    by_area: bool = False
    #: "module:function" of the `models.network.Loader`, if the model comes with this package.
    loader: str = ""
    #: The U-Net for these latents, if one comes with the model.  It lies in diffusers' layout.
    unet: weights.Weights | None = None
    #: "module:function" of the function that makes a `models.denoiser.Denoiser` of this U-Net.
    denoiser: str = ""

    @property
    def space(self) -> Space:
        """The latent space; for an unknown name, a space that belongs to this model alone."""
        name = self.latent_space
        space = SPACES.get(name) or all_spaces().get(name)
        return space or Space(name, self.channels, self.factor)


# The digest of models and headers that do not say which weights they mean.
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
    coarser=("mini-half",),
    coarser_below=10,  # measured: docs/measurements.md#catalogue
)
# Decodes the same latents.  Its pictures look real even with few bits (`tune="perceptual"`).
MINI_PERCEPTUAL = MINI.replace(
    name="mini-perceptual",
    digest=weights.MINI_PERCEPTUAL.digest,
    encodes=False,
    loader="pillow_sdz.models.mini:load_perceptual",
    coarser_below=5,  # measured: docs/measurements.md#catalogue
)
# `mini` for pictures of half the width and height.
MINI_HALF = ModelSpec(
    "mini-half",
    384,
    32,
    weights.MINI.digest,
    "mini-half",
    scales=(1, 2, 4, 8),
    by_area=True,
    loader="pillow_sdz.models.mini_half:load",
)
MINI_HALF_PERCEPTUAL = MINI_HALF.replace(
    name="mini-half-perceptual",
    digest=weights.MINI_PERCEPTUAL.digest,
    encodes=False,
    loader="pillow_sdz.models.mini_half:load_perceptual",
)
SD_MINI = ModelSpec(
    "sd-mini",
    4,
    8,
    weights.SD_MINI.digest,
    "sd-mini",
    loader="pillow_sdz.models.sd_mini:load",
    unet=weights.SD_MINI_UNET,
    denoiser="pillow_sdz.models.sd_mini_unet:load",
)

#: The model that `Image.save` uses if none is asked for.
DEFAULT = MINI
#: The family of other tools' latents if they do not say it.  Chosen: most latents of 4 channels are
#: of this family.
DEFAULT_FAMILY = "sd1"
#: The models whose weights come with this package.
EMBEDDED: dict[str, ModelSpec] = {
    spec.name: spec for spec in (MINI, MINI_PERCEPTUAL, MINI_HALF, MINI_HALF_PERCEPTUAL, SD_MINI)
}


def known(name: str) -> ModelSpec | None:
    """The model of this name, if every computer with this package knows it; otherwise None.

    The name of a latent space is also that of a model.  Such a model, a preset and a member of
    `families.MEMBERS` have the digest `NOT_NAMED`, because another computer may have other weights.
    """
    if name in EMBEDDED:
        return EMBEDDED[name]
    # Imported here, because files of the embedded models do not need them.
    from .families import MEMBERS
    from .presets import PRESETS

    family = PRESETS[name].latent_space if name in PRESETS else MEMBERS.get(name, name)
    space = all_spaces().get(family)
    if space is None:
        return None
    return ModelSpec(name, space.channels, space.factor, NOT_NAMED, space.name)


def names() -> set[str]:
    """The names of all models and families that `known` knows, and that have latents."""
    from .families import MEMBERS
    from .presets import PRESETS

    decoders = {name for name, spec in EMBEDDED.items() if not spec.encodes}
    return {*EMBEDDED, *all_spaces(), *PRESETS, *MEMBERS} - decoders


def has_latents_of(name: str) -> str | None:
    """The family of a model that `families.USERS` has, however it is spelt; None for others."""
    from .families import USERS

    return USERS.get(_letters(name))


def meant(name: str) -> str | None:
    """The model or family that a person means by a name such as "org/FLUX.2-dev"; None if unclear.

    It is the one with the longest name, or with the longest name in `families.USERS`, that the name
    begins with.  A number after it is that of another version, which may have other latents.
    """
    from .families import USERS

    letters = _letters(name.rpartition("/")[2])
    known_names = {_letters(each): each for each in sorted(names())} | USERS
    longest = max(filter(letters.startswith, known_names), key=len, default="")
    return None if letters[len(longest) :][:1].isdigit() else known_names.get(longest)


def _letters(name: str) -> str:
    """The letters and digits of a name, in lower case."""
    return "".join(filter(str.isalnum, name.lower()))


def whole_of(model: ModelSpec) -> ModelSpec | None:
    """The family of the latents before they became 2x2 patches; None for other models."""
    families = (space for space in all_spaces().values() if space.patches == model.space.name)
    return next((known(space.name) for space in families), None)


def judge(header: Header) -> tuple[ModelSpec, CodingSpec]:
    """The model and the coding of a file with this header.

    If the package does not know the model, the result is what the header says.  This function does
    not look up the models that the user has recorded, because a file must open whatever is
    recorded.  OSError if the header contradicts the model that it names, or if this version does
    not know the coding.
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
    for coding in spec.space.codings:
        if coding.number == header.coding:
            break
    else:
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
