"""The models whose weights come with this package, as far as they can be known without them.

Opening a file takes no more of a model than this; the registry, `models`, is imported when pixels
are decoded or encoded.
"""

from __future__ import annotations

from typing import NamedTuple


class ModelSpec(NamedTuple):
    """What can be known of a model without its weights.

    ``factor`` is the number of pixels along one side of a latent, ``channels`` the latent channels,
    ``digest`` the first 4 bytes of the weights' sha256, or `NOT_NAMED`. Models of one
    ``latent_space`` can decode each other's latents.
    """

    name: str
    channels: int
    factor: int
    digest: bytes
    latent_space: str


# The digest where it is left open which weights are meant.
NOT_NAMED = bytes(4)

MINI = ModelSpec("mini", 160, 16, bytes.fromhex("57d34a5c"), latent_space="mini")
# The same latents, decoded to what looks real where bits are few (`tune="perceptual"`).
MINI_PERCEPTUAL = ModelSpec("mini-perceptual", 160, 16, bytes.fromhex("877a64a1"), "mini")
SD_MINI = ModelSpec("sd-mini", 4, 8, bytes.fromhex("cba7b357"), latent_space="sd-mini")

#: Those that files name as theirs.
EMBEDDED = {spec.name: spec for spec in (MINI, SD_MINI)}
