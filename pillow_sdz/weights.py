"""Every file of weights in this package, with the sha256 that it must have."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

# Opening a file asks for digests alone: pathlib and hashlib, 5 ms of importing, can wait.
FOLDER = os.path.join(os.path.dirname(__file__), "models", "weights")


class Weights(NamedTuple):
    """A file below `FOLDER`, and its sha256 in hexadecimal."""

    name: str
    sha256: str

    @property
    def path(self) -> Path:
        from pathlib import Path

        return Path(FOLDER, self.name)

    @property
    def digest(self) -> bytes:
        """The first 4 bytes of the sha256; headers have them."""
        return bytes.fromhex(self.sha256[:8])

    def checked(self) -> Path:
        """The path; OSError if the file does not have its sha256."""
        check_sha256(self.path, self.sha256)
        return self.path


MINI = Weights(
    "mini.safetensors", "57d34a5cf9980f94e49fe511d9f6c14619ae4806962a8e49a8551eabe463ef4b"
)
MINI_PERCEPTUAL = Weights(
    "mini_perceptual.safetensors",
    "877a64a1112392517a418d438da0c2837ef80f638ee75e32be3a944065bcf3bd",
)
MINI_REDUCED = Weights(
    "mini_reduced.safetensors", "a42a930ef39801d1f120666eca0314cda98827eae5b979c4a165ec93db67635a"
)
SD_MINI = Weights(
    "sd_mini/autoencoder.safetensors",
    "cba7b357f04bf0fdabb94952df56b39f188d6690ba2d06f532e28a245d910551",
)
SD_MINI_UNET = Weights(
    "sd_mini/unet/diffusion_pytorch_model.safetensors",
    "59747aba27120f1452b628fc6f3f9e94932f0acbcd2302b793fffb4915e19eb5",
)
# The priors of latents of 4 channels, and the tables of the range coder, are part of the format.
SD_MINI_PRIOR = Weights(
    "sd_mini/prior.safetensors", "19a0150deb80143d740d56ecfe581f7a0becefec0dda200f94368b8eb6d062e6"
)
SD1_PRIOR = Weights(
    "sd1_prior.safetensors", "210f19a14bdddfc4a834ef75c16c8e23ee1aa9f4e960cbac18be5870be3d167b"
)
TABLES = Weights(
    "tables.safetensors", "b3a476cc2bcd62d0df707d12a498ba7cb171ae1752a82befee4f021dfa3256cb"
)
#: The ranges of the 8-bit activations of the embedded networks, and the graphs that run them, by
#: name: no weights, but what the networks compute.  `training.graphs` makes both.
RANGES = Weights(
    "ranges.safetensors", "161646ed087299adb08de246ad401df03eebf985ccc672547ccfabf6e18de767"
)
GRAPHS: dict[str, str] = {
    "mini_encoder": "8dbbcc490ed03f4d99d899f501bbfe3def3a2c85fc66ff23b658e4ad6571b060",
    "mini_encoder_int8": "d8bda369754603d28e823174b2fcfb99bc55facac8985524368b46815879c8e1",
    "mini_analysis": "4c71a144a7c090695147b15aea4af05d8b10a73c47f572972837c46f24ce5e79",
    "mini_decoder": "d5fa7ce3d13b3e94188136420f8288f071c7de5224cbac34fa26d9c57b294b01",
    "mini_decoder_int8": "fa9974f4ada147e53cb666a72aa2a6650c8ddd60786440eca7280980a0f819d8",
    "mini_decoder2": "a1678ec5949e99e6e9f913d217f59c7a1bec8a4f04e2de3c0c4dd04870f7a490",
    "mini_decoder2_int8": "80575846c8032c1699d605a42b75308ef224fafe9b96eb5afb08ddc3885c8436",
    "mini_decoder4": "16901cabebba49ae1c1f5a484326f3a36d71534b83de787c431ba684b5462d11",
    "mini_decoder4_int8": "1a6cb40da002645d8b981df40ccd0b138517f4f8ee8e16513a221ac9c36a8c56",
    "sd_mini_encoder": "7e5c884c6d10e47891081c2e7578f6210480b6fabf34fc8bc6da87b6341a3c29",
    "sd_mini_encoder_int8": "0f262f5d428d93ad193f2c7c86e02c0ae1bcf56d4270f0f6753a16120f74043f",
    "sd_mini_decoder": "c6565a3c1bd07b334b812e4909458fc85b6be768124b819b94ad88e3ee088d57",
}


def graph(name: str) -> Weights:
    """The file of a graph."""
    return Weights(f"graphs/{name}.onnx", GRAPHS[name])


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """OSError if the sha256 of a file, in hexadecimal, is another one."""
    if (found := sha256(path)) != expected:
        msg = f"{path} is damaged: its sha256 is {found} instead of {expected}"
        raise OSError(msg)
