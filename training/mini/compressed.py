"""Write crops of a pack as AVIF or lossless WebP, small enough to send to a rented GPU.

    python -m training.mini.compressed --pack PACK/train --output DIR --megabytes 60 33 58 \
        --qualities 95 100 90

The command writes the folders ``DIR/0``, ``DIR/1``, and so on.  No crop is in two of them.
`Crops` holds such folders in the memory of a device, and draws smaller crops from them.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from training.mini.data import GREY, GREY_WEIGHTS, PORTRAIT, SHARES, SWAPPED, Pack, Photo

SIDE = 384  # the longest side of a crop, in pixels
SPEED = 7  # of libaom.  Chosen: each lower speed takes several times as long as the one above it.
LOSSLESS = 100
BITS_PER_PIXEL = {LOSSLESS: 9.5}  # about what a quality takes; the others, in AVIF, take about 4


def encoded(crop: Photo, quality: int) -> bytes:
    """A crop as AVIF without subsampling, or as lossless WebP if the quality is `LOSSLESS`."""
    file, picture = io.BytesIO(), Image.fromarray(crop)
    if quality == LOSSLESS:
        picture.save(file, "WEBP", lossless=True)
    else:
        how = {"quality": quality, "subsampling": "4:4:4", "speed": SPEED, "max_threads": 1}
        picture.save(file, "AVIF", **how)
    return file.getvalue()


def write(
    pack: Pack, seed: int, numbers: list[int], folder: Path, megabytes: float, quality: int
) -> str:
    """Write a crop of each picture until the folder is full.  Returns a line about the folder."""
    rng = random.Random(seed)
    left = {group: share * megabytes * 1e6 for group, share in SHARES.items()}
    files, groups = [], []
    for number in numbers:
        photo, group = pack[number], str(pack.groups[number])
        if left[group] <= 0:
            continue
        height, width = (min(SIDE, n) for n in photo.shape[:2])
        top, left_edge = (
            rng.randint(0, n - s) for n, s in zip(photo.shape[:2], (height, width), strict=True)
        )
        files.append(encoded(photo[top : top + height, left_edge : left_edge + width], quality))
        groups.append(group)
        left[group] -= len(files[-1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "crops.bin").write_bytes(b"".join(files))
    lengths = np.array([len(f) for f in files])
    np.savez(folder / "index.npz", lengths=lengths, groups=np.array(groups))
    return f"{folder}: {len(lengths)} crops, {lengths.sum() / 1e6:.1f} MB"


class Crops:
    """Crops of compressed folders in the memory of a device.  Smaller crops are drawn from them.

    A folder's weight says how often each of its crops is drawn, relative to those of other folders.
    """

    def __init__(
        self, folders: Sequence[Path], weights: Sequence[float], device: str, seed: int
    ) -> None:
        self._weights = np.array(weights, float)
        self._rng = np.random.default_rng(seed)
        files: list[bytes] = []
        groups: list[str] = []
        sources: list[int] = []
        for number, folder in enumerate(folders):
            index = np.load(folder / "index.npz")
            data, end = (folder / "crops.bin").read_bytes(), 0
            for length, group in zip(index["lengths"].tolist(), index["groups"], strict=True):
                files.append(data[end : end + length])
                groups.append(str(group))
                sources.append(number)
                end += length
        with ThreadPoolExecutor() as pool:
            pictures = list(pool.map(_decoded, files))
        sizes = np.array([p.shape[:2] for p in pictures])
        areas = sizes.prod(1) * 3
        self._offsets = np.concatenate([[0], np.cumsum(areas)[:-1]])
        self._sizes = sizes
        self._groups, self._sources = np.array(groups), np.array(sources)
        flat = np.concatenate([p.reshape(-1) for p in pictures])
        self.pixels = torch.as_tensor(flat).to(device)
        self._chances: dict[tuple[int, int], tuple[NDArray[np.int64], NDArray[np.float64]]] = {}

    def __len__(self) -> int:
        return len(self._sizes)

    def _of_size(self, size: int, folders: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The pictures that are large enough, and the probability of each to be drawn."""
        if (size, folders) not in self._chances:
            numbers = np.flatnonzero((self._sizes.min(1) >= size) & (self._sources < folders))
            chances = self._weights[self._sources[numbers]]
            for group, share in SHARES.items():
                here = self._groups[numbers] == group
                if here.any():
                    chances[here] *= share / chances[here].sum()
            self._chances[size, folders] = numbers, chances / chances.sum()
        return self._chances[size, folders]

    def draw(self, count: int, size: int, folders: int) -> tuple[Tensor, Tensor]:
        """Draw crops from the first ``folders``.

        Returns the places of the crops (count, 6), and matrices (count, 3, 3).  The colours of a
        crop are multiplied by its matrix.
        """
        rng = self._rng
        available, chances = self._of_size(size, folders)
        numbers = rng.choice(available, count, p=chances)
        heights, widths = self._sizes[numbers].T
        top = (rng.random(count) * (heights - size + 1)).astype(np.int64)
        left = (rng.random(count) * (widths - size + 1)).astype(np.int64)
        flipped, turned = rng.random(count) < 0.5, rng.random(count) < PORTRAIT
        places = np.stack([self._offsets[numbers], widths, top, left, flipped, turned], 1)
        colours = np.repeat(np.eye(3, dtype=np.float32)[None], count, 0)
        chance = rng.random(count)
        colours[chance < GREY] = GREY_WEIGHTS
        for i in np.flatnonzero((chance >= GREY) & (chance < GREY + SWAPPED)):
            colours[i] = np.eye(3)[rng.permutation(3)]
        return torch.as_tensor(places), torch.as_tensor(colours)

    def cut(self, places: Tensor, colours: Tensor, size: int) -> Tensor:
        """Cut out crops that `draw` returned: images (count, 3, size, size) in [-0.5, 0.5]."""
        offset, width, top, left, flipped, turned = places[:, :, None, None].unbind(1)
        along = torch.arange(size, device=places.device)
        x = torch.where(flipped > 0, size - 1 - along, along)
        y = along[:, None]
        rows, columns = torch.where(turned > 0, x, y), torch.where(turned > 0, y, x)
        first = offset + ((top + rows) * width + left + columns) * 3
        parts = [self.pixels[first + i] for i in range(3)]
        levels = torch.stack(parts, 1).float()
        levels = torch.round(torch.einsum("bij,bjhw->bihw", colours, levels))
        return (levels / 255 - 0.5).contiguous(memory_format=torch.channels_last)


def _decoded(file: bytes) -> Photo:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, nargs="+", required=True)
    parser.add_argument("--qualities", type=int, nargs="+", required=True)
    parser.add_argument("--seed", type=int, default=0, help="each number leads to other crops")
    options = parser.parse_args()
    pack = Pack(options.pack)
    numbers = list(range(len(pack)))
    random.Random(options.seed).shuffle(numbers)
    # Each picture gets a random folder, so all folders have pictures of all sources.
    pixels = [
        size / BITS_PER_PIXEL.get(quality, 4)
        for size, quality in zip(options.megabytes, options.qualities, strict=True)
    ]
    chosen = random.Random(options.seed).choices(range(len(pixels)), pixels, k=len(numbers))
    shares = [[n for n, c in zip(numbers, chosen, strict=True) if c == i] for i in set(chosen)]
    folders = [options.output / str(i) for i in range(len(pixels))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        work = (shares, folders, options.megabytes, options.qualities)
        for line in pool.map(functools.partial(write, pack, options.seed), *work):
            print(line)


if __name__ == "__main__":
    main()
