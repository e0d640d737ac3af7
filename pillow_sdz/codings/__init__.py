"""The codings: latents <-> payloads.  Integers, and no torch.

A coding is one file with a class that fulfils `coding.Coding`, its row in `catalogue`, which says
what headers say of it, and its row here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..catalogue import CONTEXT, FLOAT16, HYPERPRIOR, PALETTE, CodingSpec, ModelSpec
from .banded import Banded
from .coding import Coding
from .context import Context
from .dithering import DitheredPalette
from .float16 import Float16

#: What makes each coding, of the model whose latents it codes and, where the coding needs its
#: weights, of the loaded model itself.
CODINGS: dict[CodingSpec, Callable[[ModelSpec, Any], Coding]] = {
    HYPERPRIOR: lambda model, network: Banded(HYPERPRIOR, network),
    CONTEXT: lambda model, network: Context.of(model),
    PALETTE: lambda model, network: DitheredPalette(model.channels),
    FLOAT16: lambda model, network: Float16(model.channels),
}
