"""Latents of any family: bytes compared with numpy, zstd and JPEG XL, and the loss by step.

    python -m benchmarks.any_latents --latents FILE --model NAME --factor 8
    python -m benchmarks.any_latents --images DIR

FILE is a safetensors file of latents in their own dtypes: pictures (C, h, w), batches (B, C, h, w)
or clips (B, C, T, h, w).  Tensors of other shapes and of integers are left out.
With --images, the latents come from the real taef2 (for FLUX.2), in bfloat16, and its pictures are
compared, too.  The environment variable TAEF2 names its weights.  All files are read again and
compared.  zstd has level 19.  "Shuffled" means that it gets the first bytes of all values, then the
second bytes, and so on.
"""

from __future__ import annotations

import argparse
import io
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pillow_jxl  # noqa: F401  # registers the format JXL
import torch
import zstandard
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor

from benchmarks.latents import jpeg_xl
from evaluation import taef2
from pillow_sdz import open_latents, save_latents

STEPS = (0.1, 0.25, 0.5, 1.0, 2.0)


class Cache(NamedTuple):
    """Latents (C, h, w) and perhaps the picture (H, W, 3) that they were made from."""

    latents: Tensor
    picture: NDArray[np.uint8] | None = None


def bits(tensor: Tensor) -> NDArray[np.uint8]:
    """The bytes of a tensor's values (n, bytes of a value)."""
    flat = tensor.contiguous().view(torch.uint8)
    return flat.reshape(-1, tensor.element_size()).numpy()


def sdz(latents: Tensor, **options: Any) -> tuple[int, Tensor]:
    """The bytes of an `.sdz` file, and the latents in it."""
    file = io.BytesIO()
    save_latents(latents, file, **options)
    return len(file.getvalue()), open_latents(io.BytesIO(file.getvalue())).torch()


def sizes(latents: Tensor, about: dict[str, Any]) -> dict[str, int]:
    """Bytes of one cache in each kind of file that keeps every bit."""
    file = io.BytesIO()
    np.savez(file, latents=latents.float().numpy())
    packed = zstandard.ZstdCompressor(level=19)
    exact, back = sdz(latents, lossless=True, **about)
    if not torch.equal(back.double(), latents.double()):
        msg = "the file does not have the latents that were saved"
        raise AssertionError(msg)
    return {
        "np.savez, float32": len(file.getvalue()),
        "safetensors": len(save({"latents": latents})),
        "zstd -19": len(packed.compress(bits(latents).tobytes())),
        "zstd -19, shuffled": len(packed.compress(bits(latents).T.tobytes())),
        "sdz, lossless": exact,
    }


def psnr(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def shown(module: taef2.Taef2, latents: Tensor) -> NDArray[np.uint8]:
    with torch.inference_mode():
        image = module.decode(latents[None].float())[0].clamp(0, 1) * 255
    levels: NDArray[np.uint8] = image.round().to(torch.uint8).permute(1, 2, 0).numpy()
    return levels


def row(
    caches: Sequence[Cache], step: float, about: dict[str, Any], module: taef2.Taef2 | None
) -> str:
    """A row of the table of steps: the average over all caches."""
    found: dict[str, list[float]] = {}
    for latents, picture in caches:
        height, width = latents.shape[1:]
        pixels = height * width * about["factor"] ** 2
        size, back = sdz(latents, step=step, **about)
        found.setdefault("bytes", []).append(size)
        found.setdefault("bpp", []).append(8 * size / pixels)
        symbols = torch.round(latents.float() / step).to(torch.int64).permute(1, 2, 0).numpy()
        found.setdefault("jxl", []).append(8 * jpeg_xl(symbols) / pixels)
        error = (back.float() - latents.float()).square().mean().sqrt()
        found.setdefault("error", []).append(float(error))
        if module is not None and picture is not None:
            found.setdefault("psnr", []).append(psnr(shown(module, back), picture))
    mean = {name: statistics.mean(values) for name, values in found.items()}
    ahead = 100 * (1 - mean["bpp"] / mean["jxl"])
    quality = f"{mean['psnr']:.2f}" if "psnr" in mean else "-"
    return (
        f"| {step} | {mean['bytes']:,.0f} | {mean['bpp']:.3f} | {mean['jxl']:.3f} | {ahead:.1f} % "
        f"| {mean['error']:.3f} | {quality} |"
    )


def of_pictures(paths: Iterable[Path], module: taef2.Taef2) -> list[Cache]:
    caches = []
    for path in paths:
        with Image.open(path) as im:
            picture = np.array(im.convert("RGB"))
        images = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            latents = module.encode(images)[0].bfloat16()
        caches.append(Cache(latents.clone(), picture))
    return caches


def of_file(path: Path) -> list[Cache]:
    """The pictures, and the time steps of clips, in a file of safetensors."""
    found = []
    for _, tensor in sorted(load_file(path).items()):
        if not tensor.is_floating_point() or tensor.ndim not in (3, 4, 5):
            continue
        by_step = tensor.movedim(2, 1) if tensor.ndim == 5 else tensor
        found += [Cache(each.contiguous()) for each in by_step.reshape(-1, *by_step.shape[-3:])]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Latents of any family, in files.")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--latents", type=Path)
    given.add_argument("--images", type=Path)
    parser.add_argument("--model", default="flux2")
    parser.add_argument("--factor", type=int, default=8)
    parser.add_argument("--steps", type=float, nargs="*", default=STEPS)
    parser.add_argument(
        "--effort",
        type=int,
        help="sdz's effort; up to 2 it only rounds; default: save_latents' own",
    )
    parser.add_argument("--every", type=int, default=1, help="take only every Nth picture")
    args = parser.parse_args()
    module = None
    if args.latents:
        caches = of_file(args.latents)[:: args.every]
        if not caches:
            parser.error(f"{args.latents} has no latents")
    else:
        weights = taef2.weights()
        if weights is None:
            parser.error("the weights of taef2 are not there: TAEF2=FILE")
        module = taef2.load(weights)
        caches = of_pictures(sorted(args.images.iterdir())[:: args.every], module)
    about = {"model": args.model, "factor": args.factor, "effort": args.effort}
    exact = [sizes(cache.latents, about) for cache in caches]
    types = {str(cache.latents.dtype).removeprefix("torch.") for cache in caches}
    print(f"{len(caches)} latents of {', '.join(sorted(types))}\n\n| file | bytes |\n|---|--:|")
    for name in exact[0]:
        print(f"| {name} | {statistics.mean(each[name] for each in exact):,.0f} |", flush=True)
    if module is not None:
        best = [psnr(shown(module, c.latents), c.picture) for c in caches if c.picture is not None]
        print(f"\nPSNR of exact latents: {statistics.mean(best):.2f} dB")
    print("\n| step | bytes | bpp | JPEG XL e9 bpp | less by | latent RMSE | PSNR dB |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for step in args.steps:
        print(row(caches, step, about, module), flush=True)


if __name__ == "__main__":
    main()
