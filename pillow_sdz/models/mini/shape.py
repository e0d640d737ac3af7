"""The shape of `mini`'s networks.  Code that runs them needs to know it, and needs no torch."""

from __future__ import annotations

FACTOR = 16
BASE = 160  # channels that are coded at all rates
# A complete transform has 768 channels.  With the strongest 320, photos have 48 dB, and with 384
# more than 50 (measured with a fixed lapped transform: training/README.md).
CHANNELS = 384
# From this place on the rate axis on (0..10000), the other channels are coded, too.  Chosen.
TAIL_FROM = 4000
WIDTHS = (40, 80, 144)  # channels at 1/4, 1/8 and 1/16 of the resolution
DEPTHS_ENCODER = (4, 3, 2)  # residual blocks at each of them
DEPTHS_DECODER = (5, 5, 2)

# The graphs compute a tile with a margin.  They trim the margin between the stages, because the
# remaining layers need a smaller one.  These are the encoder's margins in latents: for all of it,
# and for its parts from the stages at 1/8 and 1/16 on.  The layers reach 11, 9 and 5 latents, but
# smaller margins are enough: docs/speed.md#large-pictures.
ENCODER_MARGIN, ENCODER_MARGIN_8, ENCODER_MARGIN_16 = 7, 6, 5
# The decoders by scale: the numbers of residual blocks at 1/8 and at 1/4 of the resolution, and
# three margins: of the whole decoder, of its part from the stage at 1/8 on, and of the last stage.
# Each 3x3 convolution adds one place: at full size 5 latents, 10 eighths and 11 quarters, each
# rounded up to latents.
DECODERS = {1: (5, 5, (13, 8, 3)), 2: (5, 1, (11, 6, 1)), 4: (2, 0, (8, 3, 3))}
# Pictures of these scales are decoded from the first channels alone, of which these are the
# numbers: whole groups of the prior.  Chosen: compared with pictures of all channels, they have a
# PSNR of 40 to 50 dB (docs/speed.md#drafts-and-first-pictures).
SHOWN = {4: 112, 8: 64}
# At 1/8, a pixel sees one latent around its own.
MARGINS = {**{scale: margins[0] for scale, (*_, margins) in DECODERS.items()}, 8: 1}
DECODER_MARGIN = MARGINS[1]
# To look at a tile, the encoder decodes it with so many latents more around it, because what to
# change in a latent depends on the pixels around.  The layers of `training.adjoint` reach this far.
ADJOINT_MARGIN = 4
LOOK_MARGIN = DECODER_MARGIN + ADJOINT_MARGIN
