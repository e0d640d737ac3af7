"""The latent spaces of families of models on the hub.  `catalogue` has those of this package."""

from __future__ import annotations

from . import latent_statistics as statistics
from .chunks import ARTICLES_DENOISING
from .spaces import Space


def _normal(std: tuple[float, ...]) -> tuple[float, ...]:
    """The scaling that makes each channel's standard deviation 1."""
    return tuple(1 / each for each in std)


# The ``denoising`` is the article's.  All other numbers are specified: the configurations of the
# families' autoencoders, and diffusers' pipelines.
SPACES: dict[str, Space] = {
    space.name: space
    for space in (
        Space("sd1", 4, 8, scaling=0.18215, prior="sd1", denoising=ARTICLES_DENOISING),
        Space("sdxl", 4, 8, scaling=0.13025),
        Space("sd3", 16, 8, scaling=1.5305, shift=0.0609),
        # Other models have the same latents: `USERS`.
        Space("flux", 16, 8, scaling=0.3611, shift=0.1159, packing="patches"),
        # First the latents of FLUX.2's autoencoder, then those that its pipelines return.
        Space("flux2", 32, 8, scaling=1, patches="flux2-patches", prior="flux2"),
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
        # The statistics of these latents come with the weights, and are not known here.
        Space("ltx", 128, 32, packing="places", video=True),
        Space("glm-image", 16, 8, deviation_alone=True),
    )
}

#: Autoencoders with the latents of a family that are not in `presets`: only a module in memory can
#: run them.
MEMBERS = {"taef2": "flux2"}

#: The families whose autoencoders can also be read from folders: they are of classes in
#: `models.configurations`.  Those of the other families must be loaded by the user.
FROM_FOLDERS = frozenset(("sd1", "sdxl", "sd3", "flux", "glm-image"))

#: Models with the latents of a family, by their names in lower case without signs.  They are no
#: values of ``model``, because a file names the family.  Messages say which family it is.
USERS = {
    "anima": "qwen-image",
    "booguimage": "flux",
    "chroma": "flux",
    "chroma1": "flux",
    "ernieimage": "flux2",
    "flux1": "flux",
    "hidream": "flux",
    "krea2": "qwen-image",
    "lumina2": "flux",
    "mochi1": "mochi",
    "nucleusimage": "qwen-image",
    "omnigen2": "flux",
    "qwenimage2512": "qwen-image",
    "sd14": "sd1",
    "sd15": "sd1",
    "sd2": "sd1",
    "sd21": "sd1",
    "sd35": "sd3",
    "zimage": "flux",
}
