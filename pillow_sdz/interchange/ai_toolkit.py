"""The `.safetensors` caches of ostris' ai-toolkit, read from its toolkit/dataloader_mixins.py.

The tensor `latent` has no axis for a batch.  The metadata says which latents they are, where the
picture was cropped, and how large it was before.  What text encoders return is in folders called
`_t_e_cache`.
"""

from __future__ import annotations

from . import tensors
from .contracts import MAIN, Contents, Layout
from .origin import LatentFile

# Their names in the metadata, `latent_space_version`: those of toolkit/data_loader.py, and the
# architectures of the models.  Which autoencoder a model has is read from its file in
# extensions_built_in/diffusion_models, and for older models from ComfyUI's supported_models.py.
# LTX-2, CogView 4, Ideogram 4, MageFlow and MiniMax H3 have autoencoders or statistics of their
# own, and others keep pixels: the catalogue does not know these.
FAMILIES = {
    "sd1": "sd1",
    "sd2": "sd1",
    "pixart": "sd1",
    "sdxl": "sdxl",
    "ssd": "sdxl",
    "vega": "sdxl",
    "auraflow": "sdxl",
    "pixart_sigma": "sdxl",
    "sd3": "sd3",
    "flux1": "flux",
    "flux": "flux",
    "flux_kontext": "flux",
    "flex1": "flux",
    "flex2": "flux",
    "chroma": "flux",
    "hidream": "flux",
    "hidream_e1": "flux",
    "lumina2": "flux",
    "zimage": "flux",
    "omnigen2": "flux",
    "boogu_image": "flux",
    "boogu_image_edit": "flux",
    "flux2": "flux2",
    "flux2_klein_4b": "flux2",
    "flux2_klein_9b": "flux2",
    "ernie_image": "flux2",
    "anima": "qwen-image",
    "krea2": "qwen-image",
    "qwen_image": "qwen-image",
    "qwen_image_edit": "qwen-image",
    "qwen_image_edit_plus": "qwen-image",
    "nucleus_image": "qwen-image",
    "wan21": "wan21",
    "wan21_i2v": "wan21",
    "wan22_14b": "wan21",
    "wan22_14b_i2v": "wan21",
    "wan22_5b": "wan22",
}
PICTURE = "latent"
LATENTS = frozenset((PICTURE, "first_frame_latent"))


def _claims(contents: Contents) -> bool:
    return PICTURE in contents.names and "latent_space_version" in contents.metadata


def _read(contents: Contents) -> list[LatentFile]:
    return tensors.read(contents, AI_TOOLKIT.name, LATENTS.__contains__)


AI_TOOLKIT = Layout(
    "ai-toolkit",
    (".safetensors",),
    claims=_claims,
    read=_read,
    arrays=tensors.arrays,
    unit=lambda space, origin: None,
    said=tensors.family_in("latent_space_version", FAMILIES),
    has_parts=True,
    kind=lambda name: MAIN if name == PICTURE else name,
)
