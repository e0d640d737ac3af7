"""Encode photos to latents, for `training.lattice_prior`.

    python -m training.latents --autoencoder FILE --photos DIR --output FILE [--held-out]

The output has one tensor (4, h, w) in float16 for each photo: `sd-mini`'s latents of the training
photos, or of the held-out photos.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from evaluation.photos import photo_paths
from pillow_sdz.models.sd_mini import SdMini
from training import data


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--held-out", action="store_true")
    options = parser.parse_args()
    network = SdMini(options.autoencoder)
    paths = photo_paths(options.photos, held_out=options.held_out)
    tensors = {}
    for path, photo in zip(paths, data.load(paths), strict=True):
        height, width = (n // 8 * 8 for n in photo.shape[:2])
        latents = network.encode(photo[:height, :width]).transpose(2, 0, 1)
        tensors[path.stem] = np.ascontiguousarray(latents, dtype=np.float16)
    save_file(tensors, options.output)


if __name__ == "__main__":
    main()
