"""Codings and latent spaces as data: their classes, and all codings."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .chunks import TUNES, Denoising
from .header import STEP_UNITS
from .rows import Row

LOWEST_QUALITY, HIGHEST_QUALITY = 100, 10000  # in hundredths


class CodingSpec(Row):
    """A coding as headers know it: its number, and what its quantisation means.

    A header's quantisation is ``lowest``..``highest``.  ``unit`` says what it means.  With
    "quality", it is the quality in hundredths.  With "step", it is the step of all values, in
    1/1024 of a latent.  With "byte", it is the step that 1 in a byte stands for, in 1/1024 of a
    latent.  With None, there is no choice.
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


#: The coding with hyperlatents, and with a prior from the model's own weights.  ``band_latents`` is
#: chosen: it limits the memory for decoding a band's integers (benchmarks.memory).
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

#: The codings that latents of any model may have, the default first.
GENERAL = (CONTEXT, PALETTE, FLOAT16, BFLOAT16, FLOAT32)
#: The names of all codings.  A latent space has some of them.
CODING_NAMES = tuple(dict.fromkeys(coding.name for coding in (HYPERPRIOR, *GENERAL)))


class Space(Row):
    """A space of latents: its models can decode each other's latents.

    ``codings`` are the codings that these latents may have, the default first.  Pipelines scale
    what the VAE encodes to (x - shift) * scaling.  Both are one number, or one for each channel.
    ``scaling`` is None if it is not known: it comes with the weights.  If ``deviation_alone``,
    pipelines then divide by the configuration's deviations, and its scaling factor does not count.
    ``packing`` says how pipelines make a sequence of latents: see `shapes.PACKINGS`.  ``video``
    latents have an axis of time.  Pipelines put it before the channels if ``time_first``.
    ``patches`` names the space whose latents are 2x2 patches of these.  ``prior`` names the trained
    prior of `codings.priors`.  Files of a dithered coding recommend ``denoising``.  ``decoders``
    has, for each tune except the first, the model that decodes.  With ``regions``, parts of a
    picture may be exact.  With ``quality_map``, the quality may vary over a picture.
    """

    name: str
    channels: int
    factor: int
    codings: tuple[CodingSpec, ...] = GENERAL
    scaling: float | tuple[float, ...] | None = None
    shift: float | tuple[float, ...] = 0
    deviation_alone: bool = False
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
