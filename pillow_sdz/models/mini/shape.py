"""The shape of `mini`'s networks: what who runs them must know, without torch."""

from __future__ import annotations

FACTOR = 16
BASE = 160  # channels that are coded at all rates
# Of the 768 of a complete transform.  The strongest 320 leave an error of 48 dB on photos, 384
# leave more than 50 (measured with a fixed lapped transform: training/README.md).
CHANNELS = 384
# The place on the rate axis, in 0..10000, from which on the other channels are coded.  Chosen.
TAIL_FROM = 4000
WIDTHS = (40, 80, 144)  # channels at 1/4, 1/8 and 1/16 of the resolution
DEPTHS_ENCODER = (4, 3, 2)  # residual blocks at each of them
DEPTHS_DECODER = (5, 5, 2)

# The graphs compute a tile with a margin, and trim it between the stages, since the layers that
# are left need a smaller one.  How many latents the encoder sees beyond a tile: all of it, and its
# parts from the stages at 1/8 and 1/16 on.  They reach 11, 9 and 5 latents, but smaller margins are
# enough: docs/speed.md#large-pictures.
ENCODER_MARGIN, ENCODER_MARGIN_8, ENCODER_MARGIN_16 = 6, 5, 3
# The decoders by scale: the residual blocks at 1/8 and at 1/4 of the resolution, and the margins of
# all of it, from the stage at 1/8 on, and of the last stage.  Each 3x3 convolution adds one place:
# at full size 5 latents, 10 eighths and 11 quarters, each rounded up to latents.
DECODERS = {1: (5, 5, (13, 8, 3)), 2: (5, 1, (11, 6, 1)), 4: (2, 0, (8, 3, 3))}
# The first channels, all that pictures of these scales are decoded from.  Chosen: without the
# others they are 40 to 50 dB from those of all channels (docs/speed.md#drafts-and-first-pictures).
SHOWN = {4: BASE, 8: 64}
# At 1/8, a pixel sees one latent around its own.
MARGINS = {**{scale: margins[0] for scale, (*_, margins) in DECODERS.items()}, 8: 1}
DECODER_MARGIN = MARGINS[1]
