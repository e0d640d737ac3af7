"""Every file of weights in this package, with the sha256 that it must have."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "models" / "weights"


class Weights(NamedTuple):
    """A file below `FOLDER`, and its sha256 in hexadecimal."""

    name: str
    sha256: str

    @property
    def path(self) -> Path:
        return FOLDER / self.name

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


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """OSError if the sha256 of a file, in hexadecimal, is another one."""
    if (found := sha256(path)) != expected:
        msg = f"{path} is damaged: its sha256 is {found} instead of {expected}"
        raise OSError(msg)
