"""The codings: latents <-> payloads.  They compute in integers, without torch.

A coding has a file with a class that fulfils `coding.Coding`, a row in `catalogue` for what headers
say of it, and a row here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..catalogue import (
    BFLOAT16,
    CONTEXT,
    FLOAT16,
    FLOAT32,
    HYPERPRIOR,
    PALETTE,
    CodingSpec,
    ModelSpec,
)
from .banded import Banded
from .coding import Coding
from .context import Context
from .dithering import DitheredPalette
from .float16 import Float16
from .float32 import BFloat16, Float32

#: A function for each coding, which makes it.  It gets the model of the latents.  If the coding
#: needs the model's weights, it also gets the loaded model, otherwise None.  Each such coding says
#: itself what it needs of the model (such as `banded.Network`), so the table has no type for it.
CODINGS: dict[CodingSpec, Callable[[ModelSpec, Any], Coding]] = {
    HYPERPRIOR: lambda model, network: Banded(HYPERPRIOR, network),
    CONTEXT: lambda model, network: Context.of(model),
    PALETTE: lambda model, network: DitheredPalette(model.channels),
    FLOAT16: lambda model, network: Float16(model.channels),
    BFLOAT16: lambda model, network: BFloat16(model.channels),
    FLOAT32: lambda model, network: Float32(model.channels),
}
