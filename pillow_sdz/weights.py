"""Every file of weights in this package, with the sha256 that it must have."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .rows import Row

if TYPE_CHECKING:
    from pathlib import Path

# To open a file, only digests are needed.  So pathlib and hashlib, which take 5 ms, are imported
# later.
FOLDER = os.path.join(os.path.dirname(__file__), "models", "weights")


class Weights(Row):
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
    "mini.safetensors", "780105026fa05b5a5ec41b83d15bc4785136b12507f56185ce3448b81dd2b7d6"
)
MINI_PERCEPTUAL = Weights(
    "mini_perceptual.safetensors",
    "797fed8cf69e12b08ca3cbc18d4000d964473b37d3936282de769568ec538996",
)
MINI_REDUCED = Weights(
    "mini_reduced.safetensors", "68ef224920510340c7344fe62db55f7088cf143abb520806f2aa4efb18e4d269"
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
#: The ranges of the 8-bit activations of the embedded networks, and by name the graphs that run
#: these networks.  `training.graphs` makes both.
RANGES = Weights(
    "ranges.safetensors", "fde0da2cb6f7878958eb6ac7e45fccd45011e8e9d7d2476b1636a9db1be0f9cb"
)
GRAPHS: dict[str, str] = {
    "mini_analysis": "4c71a144a7c090695147b15aea4af05d8b10a73c47f572972837c46f24ce5e79",
    "mini_decoder": "04cce140662fcb17674307327a48768c17cf92b58fb0ec354422315b8765f7e7",
    "mini_decoder2": "6feb4bb690214eaa565450051d5e0625ac2781162faf26df31ba6c5fef36b1fe",
    "mini_decoder2_base": "4ff69a7fecf29104758d0ed82fcb30b6dd630932f2c762044b9477dee3c090e7",
    "mini_decoder2_base_int8": "293c1b037b986f52cbfbb6200eaaa969035977da168830bb84f7462786dd8cbe",
    "mini_decoder2_int8": "b723014e921504602e0aaf7d6b566800d9a6c796a8ff3fcf49c6d55948a26340",
    "mini_decoder4": "b9cb30e83aae333d79406e2b9dff368a598d62478ab25e6250403a8f124f9e56",
    "mini_decoder4_base": "beed223610da339e2c9187454c24a94dc352face9a8a83978d276affc8053a73",
    "mini_decoder4_base_int8": "aa0cbc48b2ab5b6856b72ccc4d5dab519802586023a677b45fe6b5b8041ed1f6",
    "mini_decoder4_int8": "3933f0fb13f41131950401ca8d105d2f949e990a25379780f222ab7e5c586229",
    "mini_decoder_base": "27ab8ffcc97da09fb37fc7801e2d0922938b3d4a5b8ffa242caa1992e46370c3",
    "mini_decoder_base_int8": "6f61e63b0b4764f0a8aa864c80513e9ea2f1a8fcba85fb1c91c3bc6d6e87b3cd",
    "mini_decoder_int8": "8e58810dff33cd9f47ba944b84e0411df39cbf8fdc2f94e1052144f9db08fa8b",
    "mini_encoder": "e4c635cf430ad0d24dc9e530f06c36dcb23f3d1055d76ffb10b1a6d92fc3bc0f",
    "mini_encoder_base": "80c9ca10e09dacdee80deff394e37dcc6f449619e27752ea4f0a459268705276",
    "mini_encoder_base_int8": "82c559d51b5279e488c4ee987179923e71e36b86dd32e0bffb34181bc31b5c65",
    "mini_encoder_int8": "90ee4c839e6063fa8ba9dfbd73fedb14593a430a95acbac4ccd311d3b2ba1da8",
    "product": "40705a159229f048c6879ab99c3581cf93f4228560550c64eb633d18c200e1bf",
    "sd_mini_decoder": "c6565a3c1bd07b334b812e4909458fc85b6be768124b819b94ad88e3ee088d57",
    "sd_mini_encoder": "7e5c884c6d10e47891081c2e7578f6210480b6fabf34fc8bc6da87b6341a3c29",
    "sd_mini_encoder_int8": "0f262f5d428d93ad193f2c7c86e02c0ae1bcf56d4270f0f6753a16120f74043f",
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
