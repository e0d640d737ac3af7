"""The `.safetensors` caches of kohya's musubi-tuner, read from its dataset/cache_io.py.

The metadata names the architecture.  The name of a tensor ends in its dtype. In names of latents,
the size comes before it: `latents_1x64x48_bfloat16` (frames, height, width),
`latents_64x48_float32`, `latents_control_0_64x48_bfloat16`.  Files with the results of text
encoders end in `_te`.
"""

from __future__ import annotations

import re

from . import tensors
from .contracts import MAIN, Contents, Layout
from .origin import LatentFile, Origin, shown

# The family of each architecture.  FramePack and Kandinsky 5 have the latents of HunyuanVideo, and
# Krea 2 has those of Qwen-Image.
FAMILIES = {
    "hunyuan_video": "hunyuan-video",
    "hunyuan_video_1_5": "hunyuan-video-1.5",
    "framepack": "hunyuan-video",
    "kandinsky5": "hunyuan-video",
    "flux_kontext": "flux",
    "flux_2_dev": "flux2",
    "flux_2_klein_4b": "flux2",
    "flux_2_klein_9b": "flux2",
    "qwen_image": "qwen-image",
    "qwen_image_edit": "qwen-image",
    "qwen_image_layered": "qwen-image",
    "krea2": "qwen-image",
    "wan": "wan21",
    "z_image": "flux",
}
# The latents of these architectures are as the autoencoder's network returns them.  Those of the
# others are scaled and shifted.
UNSCALED = frozenset(("z_image", "hunyuan_video", "hunyuan_video_1_5"))

# The latents of a video's first picture have a mask beside them: further channels, which say which
# frames are given.  Here are the number of all channels, the first channel of the latents, and the
# channel after their last.
WITH_MASK = {"wan": (20, (4, 20)), "hunyuan_video_1_5": (33, (0, 32))}

_LATENTS = re.compile(r"latents(_[a-z0-9_]+)??_(\d+x)?\d+x\d+_(float32|float16|bfloat16)")


def _claims(contents: Contents) -> bool:
    return "architecture" in contents.metadata and "format_version" in contents.metadata


def _read(contents: Contents) -> list[LatentFile]:
    architecture = contents.metadata["architecture"]
    if architecture.startswith("hidream_o1"):
        msg = f"{shown(architecture)} has no latents, but patches of pixels"
        raise ValueError(msg)
    count, channels = WITH_MASK.get(architecture, (0, None))
    return tensors.read(
        contents,
        MUSUBI.name,
        lambda name: bool(_LATENTS.fullmatch(name)),
        channels=lambda name, array: channels if len(array) == count else None,
    )


def _kind(name: str) -> str:
    """The name without the size and the dtype: "latents", "latents_control_0"."""
    match = _LATENTS.fullmatch(name)
    return MAIN + ((match[1] or "") if match else "")


def _unit(space: str, origin: Origin) -> float | None:
    return 1 if origin.metadata.get("architecture") in UNSCALED else None


MUSUBI = Layout(
    "musubi",
    (".safetensors",),
    claims=_claims,
    read=_read,
    arrays=tensors.arrays,
    unit=_unit,
    said=tensors.family_in("architecture", FAMILIES),
    has_parts=True,
    kind=_kind,
)
