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
    "mini.safetensors", "5b5dfac8ceb570ef214fb69f2dddb8cecbbe50a858f2ed9d67648932c2f4f2d4"
)
#: Of the CNN that makes the pictures of `mini-half` larger.
MINI_HALF = Weights(
    "mini_half.safetensors", "fc421f80dbccfe3d7c5256446598be151a1bf79899c4f7d663ef789c40af6bb4"
)
MINI_PERCEPTUAL = Weights(
    "mini_perceptual.safetensors",
    "5f24b9ed33343fd638876316ab646c64b5c2dffa5dee9d49e4b8e4af6923248e",
)
MINI_REDUCED = Weights(
    "mini_reduced.safetensors", "03824244877b6cb7822f35234341f60c447e485a698cba470058cfea6f452827"
)
SD_MINI = Weights(
    "sd_mini/autoencoder.safetensors",
    "cba7b357f04bf0fdabb94952df56b39f188d6690ba2d06f532e28a245d910551",
)
SD_MINI_UNET = Weights(
    "sd_mini/unet/diffusion_pytorch_model.safetensors",
    "59747aba27120f1452b628fc6f3f9e94932f0acbcd2302b793fffb4915e19eb5",
)
# The trained priors and the tables of the range coder are part of the format.
SD_MINI_PRIOR = Weights(
    "sd_mini/prior.safetensors", "19a0150deb80143d740d56ecfe581f7a0becefec0dda200f94368b8eb6d062e6"
)
SD1_PRIOR = Weights(
    "sd1_prior.safetensors", "210f19a14bdddfc4a834ef75c16c8e23ee1aa9f4e960cbac18be5870be3d167b"
)
FLUX2_PRIOR = Weights(
    "flux2_prior.safetensors", "e707e0394b68f57ef0f396a664e70af80f257faa51f2d20c541aec5a40af3f2c"
)
FLUX2_NARROW_PRIOR = Weights(
    "flux2_narrow_prior.safetensors",
    "48b0af6ca70ffd292f91eef74dcc723c88799c5b4c2cad633bce06f08d3fee85",
)
TABLES = Weights(
    "tables.safetensors", "37f1a526bda6e21a946a4045a94cfc4de8b164b1fbc25a78b98bf7ef6dbb6c90"
)
#: The ranges of the 8-bit activations of the embedded networks, and by name the graphs that run
#: these networks.  `training.graphs` makes both.
RANGES = Weights(
    "ranges.safetensors", "fb85ca5da7efc037dd6ed7c85e3a02a536632eba5a9ba188b718281bbf671a49"
)
GRAPHS: dict[str, str] = {
    "mini_analysis": "4c71a144a7c090695147b15aea4af05d8b10a73c47f572972837c46f24ce5e79",
    "mini_decoder": "e659106a76a4899f4fe8d880cb60f564c1ca18061c8cbb41346aafc451169722",
    "mini_decoder2": "eb388a3128cb099f194eec21551e41f463a07d2c422d15b401f998345db3098f",
    "mini_decoder2_int8": "3c3a3cd3dc6c699466a9f767ff9c65b7eae3f0a0f2fdde29cfc4a1055dd2ff88",
    "mini_decoder2_precise": "4527cb48e9323c06284625a3c44ad077de7d3c23694cf6ba1db88644948d66d5",
    "mini_decoder4": "2054679b0183f794035deb5f63c42b870f2e1de48aaa8869ebcf560812d890cd",
    "mini_decoder4_int8": "33da0fb6645e218490611b7e12e1146cedae5cc8e254d69659db178af9945bb7",
    "mini_decoder_int8": "8b98534b8572ddb90bc33051c4a3b95a48ba339365d74424b140c968df54d5dc",
    "mini_decoder_precise": "b3cf36338f9fe895573136e987fc2ee48da59b8f25cf317a3ee1fc61e72fe299",
    "mini_encoder": "8598c1caf85d7e5d7bb071ad5b1d35c1dbd8c311a2817f2cb69112ea41b51b8d",
    "mini_encoder_base": "73dc4f709442a0f82ab0d4ad0e6c0c80775a2e09fe55cbc6cc4a1dbf84e1d965",
    "mini_encoder_base_int8": "fe7745afdef737e422f763402bcc56205ea6d161d12e3bb83a9f82e84d107bc4",
    "mini_encoder_int8": "aea81b5eaf9065dcb9782a59397e3f0a1deb98d841df6a514d7b1605907a56dd",
    "mini_half_enlarger": "96bee6aee1f383a122d6f355ffbec8a6508180a9ba836830bfadc3d318223877",
    "mini_look": "09092e624e2e6ec6b412e6221e4d22312c54b95fa0cce2874e5c8aa433cecff6",
    "mini_look_int8": "cbbff17892d5ce9fdeb902766f88451dabd3f577b7fb2aa76dfef87a899ef7eb",
    "prior_0_first": "d65091a0b00ff2b77927c7f0a9eba4c45d5806bc36ea2fb390ca08d732a8f9db",
    "prior_0_second": "89d1bcbc6b783a42e7444f171ba78fc5e2194ce7ae296a731ead5e2db4a36028",
    "prior_2_first": "4d6b80b4cb9cc9b5ec1ee78a44e590b084494da7490932e5e4c4dca58af4f52d",
    "prior_2_second": "d9f139b57f248e39ecb70f5481c2eecead9ec6ac68f5eaa79f58e26bf25ddd86",
    "prior_3_first": "04e8c159839f5ac5162d3a11ec38987bd85b7c46c37c2d913d0aa2f03375541f",
    "prior_3_second": "2e607c47d17126cf818d137060b0dac4524fe9442aecc94d8f40a1af99654453",
    "product": "40705a159229f048c6879ab99c3581cf93f4228560550c64eb633d18c200e1bf",
    "sd_mini_decoder": "c6565a3c1bd07b334b812e4909458fc85b6be768124b819b94ad88e3ee088d57",
    "sd_mini_encoder": "7e5c884c6d10e47891081c2e7578f6210480b6fabf34fc8bc6da87b6341a3c29",
    "sd_mini_encoder_int8": "a9d5ed682717cc179bd9d9038a263f8b3512a9c6de6a48eb5b6705bf8994c459",
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
