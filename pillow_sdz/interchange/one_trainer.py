"""The `.pt` caches of OneTrainer, read from mgds' DiskCache and OneTrainer's modules/dataLoader.

Each file is a dictionary of one picture. It has the latents as the autoencoder returns them, the
size and the crop as tuples of integers, and perhaps a mask at the size of the latents. Files in
other folders hold what text encoders return.  `aggregate.pt` beside them lists paths, and is no
cache of latents.
"""

from __future__ import annotations

from . import tensors
from .contracts import MAIN, Contents, Layout
from .origin import LatentFile

PICTURE = "latent_image"
LATENTS = frozenset((PICTURE, "latent_conditioning_image"))


def _claims(contents: Contents) -> bool:
    return PICTURE in contents.names


def _read(contents: Contents) -> list[LatentFile]:
    return tensors.read(contents, ONE_TRAINER.name, LATENTS.__contains__)


ONE_TRAINER = Layout(
    "onetrainer",
    (".pt",),
    claims=_claims,
    read=_read,
    arrays=tensors.arrays,
    unit=lambda space, origin: 1,
    has_parts=True,
    kind=lambda name: MAIN if name == PICTURE else name,
)
