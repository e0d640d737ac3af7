"""Write `mini`'s file of the package from the averaged weights of a run.

    python -m training.mini.export --state RUN/averaged.safetensors --packs PACKS

The command writes `pillow_sdz/models/weights/mini.safetensors`.  The file has the networks in
float16, the prior in integers, and the axis of qualities.  The units of the integers are calibrated
on training photos.  The axis is fitted to the SSIMULACRA2 of held-out photos.  The command prints
the axis, and the file's sha256 for `pillow_sdz/weights.py`.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from pillow_sdz.codings.rate_axis import LAST
from pillow_sdz.weights import MINI
from training.mini.data import Photo, corner, photos, to_tensor
from training.mini.judge import middles, qualities
from training.mini.model import Model
from training.mini.pairs import paired
from training.mini.quantise import calibrate, integers

CALIBRATED, CALIBRATED_SIZE = 12, 384  # photos, and pixels along a side of their corners
CALIBRATED_PLACES = (0.0, 0.2, 0.39, 0.4, 0.6, 0.8, 1.0)
# The axis is fitted to scores at these places.
FITTED_PLACES = (0.05, 0.1, 0.17, 0.25, 0.32, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# All photos of `city`, which are full of detail.  The half with the lower scores counts.  Chosen:
# so a hard photo has about the score that was asked for, and others have more.  Where the hard
# half scores 30 and 60, all of these photos score 37 and 64, and photos of other kinds more.
FITTED_PHOTOS = 25
# After training, the gains of the first knot are too near to those of the second.  They are set
# lower: their distance from the second knot's is 1.75 times the second knot's from the third's.
# Chosen, so that files at quality 1 have 0.04 bits per pixel.
STRETCH = 1.75
LEAST = 0.2  # the least distance of two knots' gains, in natural logarithms.  Chosen.


def in_steps(model: Model, photo: Photo, place: float) -> tuple[Tensor, Tensor]:
    """The latents of a photo, in quantisation steps, and its rate."""
    rate = torch.full((1, 1, 1, 1), place)
    return model.in_steps(to_tensor(photo), rate)[0], rate


@torch.no_grad()
def scores(model: Model, photos: list[Photo]) -> list[float]:
    """The mean SSIMULACRA2 at each of `FITTED_PLACES`, of the half that scores lower."""
    of_photos = []
    for photo in photos:
        at_places = []
        for place in FITTED_PLACES:
            image, rate = to_tensor(photo), torch.full((1, 1, 1, 1), place)
            picture = model(image, rate, hard=True).picture
            at_places.append(qualities(picture, image)[1])
        of_photos.append(at_places)
    of_photos.sort(key=np.mean)
    hard = of_photos[: (len(photos) + 1) // 2]
    found: list[float] = np.mean(hard, 0).tolist()
    return found


def axis(scored: list[float]) -> NDArray[np.int32]:
    """The places of the qualities 0 to 100.  At a quality's place, the mean score is that quality.

    Quality 1 is the lower end of the axis, and quality 100 the upper end.  Places between the
    measured scores, and between them and the two ends, are linear.
    """
    qualities, places = [1.0], [0.0]
    for score, place in zip(scored, FITTED_PLACES, strict=True):
        if qualities[-1] + 2 < score and place < 1:
            qualities.append(score)
            places.append(place)
    table = np.interp(np.arange(101), [*qualities, 100.0], [*places, 1.0])
    found: NDArray[np.int32] = np.round(LAST * table).astype(np.int32)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--packs", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=MINI.path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = Model().eval()
    model.load_state_dict({k: v.float() for k, v in load_file(options.state).items()})
    gains = model.autoencoder.gain.logarithms
    with torch.no_grad():
        gains[0] = gains[1] - STRETCH * (gains[2] - gains[1]).clamp_min(LEAST)
    scored = scores(model, middles(options.packs / "city", CALIBRATED_SIZE, FITTED_PHOTOS))
    print("mean scores: ", dict(zip(FITTED_PLACES, np.round(scored, 1).tolist(), strict=True)))
    with torch.no_grad():
        seen = [corner(p, CALIBRATED_SIZE) for p in photos(options.packs / "train", CALIBRATED)]
        samples = [in_steps(model, photo, t) for photo in seen for t in CALIBRATED_PLACES]
        found = integers(model.prior, calibrate(model.prior, samples))
    tensors = {f"prior.{k}": torch.from_numpy(v) for k, v in found.items()}
    tensors["axis"] = torch.from_numpy(axis(scored))
    print("places of qualities 0, 10, ...: ", tensors["axis"][::10].tolist())
    for name, module in (
        ("autoencoder", model.autoencoder),
        ("autoencoder.analysis", model.prior.analysis),
    ):
        tensors |= {f"{name}.{key}": value.half() for key, value in module.state_dict().items()}
    save_file({k: v.contiguous() for k, v in paired(tensors).items()}, options.output)
    content = options.output.read_bytes()
    print(f"{options.output}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
