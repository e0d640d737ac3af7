"""The metrics that rate_distortion reports. Each makes one number from pixels."""

from __future__ import annotations

import io
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from ssimulacra2 import compute_ssimulacra2

from pillow_sdz.fidelity import FloatArray, psnr, ssim_maps

BUTTERAUGLI = "butteraugli_main"  # a tool of libjxl, which Debian has in libjxl-devtools

# The exponents of the five scales, finest first: Wang et al. 2003, section 3.2.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


@dataclass(frozen=True)
class Fidelity:
    """How close a decoded picture is to its original. More is better in each metric."""

    psnr: float  # dB, over all RGB samples
    ms_ssim: float  # 0..1, mean of R, G and B
    ssimulacra2: float  # 100 for equal pictures, below 0 for very bad ones


def measure(original: Image.Image, distorted: Image.Image) -> Fidelity:
    """All three metrics of two RGB pictures of one size."""
    original, distorted = original.convert("RGB"), distorted.convert("RGB")
    a, b = np.asarray(original), np.asarray(distorted)
    return Fidelity(psnr(a, b), ms_ssim(a, b), ssimulacra2(original, distorted))


def ms_ssim(original: NDArray[np.uint8], distorted: NDArray[np.uint8]) -> float:
    """Multi-scale SSIM of two RGB pictures (height, width, 3), the mean of R, G and B.

    Wang, Simoncelli, Bovik, "Multi-scale structural similarity for image quality
    assessment", 2003. There are five scales. Each is half of the one before, by the mean of
    2x2 samples, and leaves out an odd last row or column. The contrast-structure term counts
    at all scales, the luminance term at the coarsest. The window is SSIM's: 11x11 with sigma
    1.5. Negative terms have no real power, so they count as 0. Luma alone would give higher
    figures. The papers on learned codecs publish the mean over RGB.
    """
    channels = [
        _ms_ssim_plane(original[..., c].astype(np.float64), distorted[..., c].astype(np.float64))
        for c in range(original.shape[2])
    ]
    return float(np.mean(channels))


def _ms_ssim_plane(x: FloatArray, y: FloatArray) -> float:
    result = 1.0
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        if scale:
            x, y = _halved(x), _halved(y)
        similarity, contrast_structure = ssim_maps(x, y)
        coarsest = scale == len(MS_SSIM_WEIGHTS) - 1
        term = float((similarity if coarsest else contrast_structure).mean())
        result *= max(term, 0.0) ** weight
    return result


def _halved(plane: FloatArray) -> FloatArray:
    height, width = plane.shape[0] // 2, plane.shape[1] // 2
    blocks = plane[: 2 * height, : 2 * width].reshape(height, 2, width, 2)
    result: FloatArray = blocks.mean(axis=(1, 3))
    return result


def ssimulacra2(original: Image.Image, distorted: Image.Image) -> float:
    """SSIMULACRA2 (Sneyers, 2023), computed by the PyPI package of that name.

    It is 100 for equal pictures. Its author calls 30 low, 50 medium and 70 high quality.
    """
    return float(compute_ssimulacra2(_as_file(original), _as_file(distorted)))


def _as_file(picture: Image.Image) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, "PPM")  # the only lossless format that costs no time
    file.seek(0)
    return file


def butteraugli(original: Image.Image, distorted: Image.Image) -> float:
    """Butteraugli's 3-norm over the picture, by libjxl's tool. It is 0 for equal pictures.

    FileNotFoundError if the tool is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("original.ppm", "distorted.ppm")]
        for path, picture in zip(paths, (original, distorted), strict=True):
            picture.convert("RGB").save(path)
        output = subprocess.run([BUTTERAUGLI, *paths], check=True, capture_output=True, text=True)
    # The tool prints the largest local distance, then "3-norm: " and the 3-norm.
    return float(output.stdout.split()[-1])
