"""The codings: latents <-> payloads.  They compute in integers, without torch.

A coding has a file with a class that fulfils `coding.Coding`, a row in `spaces` that says what its
headers mean, and a row here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..catalogue import ModelSpec
from ..spaces import BFLOAT16, CONTEXT, FLOAT16, FLOAT32, HYPERPRIOR, PALETTE, CodingSpec
from .banded import Banded
from .coding import Coding
from .context import Context
from .dithering import DitheredPalette
from .float16 import Float16
from .float32 import BFloat16, Float32

if TYPE_CHECKING:
    from ..models.network import Network

#: For each coding, a function that makes it.  The function gets the model of the latents.  If the
#: coding needs the model's weights, it also gets the loaded model, otherwise None.  Such a coding
#: has a protocol of its own that says what it needs of the model, as `banded.Network` does.
CODINGS: dict[CodingSpec, Callable[[ModelSpec, Network | None], Coding]] = {
    HYPERPRIOR: lambda model, network: Banded.of(HYPERPRIOR, network),
    CONTEXT: lambda model, network: Context.of(model),
    PALETTE: lambda model, network: DitheredPalette(model.channels),
    FLOAT16: lambda model, network: Float16.of(model),
    BFLOAT16: lambda model, network: BFloat16.of(model),
    FLOAT32: lambda model, network: Float32.of(model),
}
