"""Pack the training photos once, and draw crops from the packs.

    python -m training.mini.data --originals DIR --output PACK

``DIR`` has one folder for each source of `SOURCES`, with its pictures anywhere below it.  A pack is
a file of raw bytes.  It is mapped into memory, so a run starts at once, and several processes share
it.  A run takes any number of packs.  You can add packs while the run is interrupted.
"""

from __future__ import annotations

import argparse
import fnmatch
import random
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

Photo = NDArray[np.uint8]

# Every 29th photo of each source in name order is held out, as in the first generation.
HOLD_OUT_EVERY = 29
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


class Source(NamedTuple):
    """A folder of originals: its name, the files to take, and the group of `SHARES`."""

    folder: str
    patterns: tuple[str, ...]
    group: str


SOURCES = (
    Source("BIDS+BSDS500", ("*.jpg",), "photos"),
    Source("EliSchwartz+imagenet-sample-images", ("*.JPEG",), "photos"),
    Source("serengil+deepface", ("*dataset*.jpg",), "faces"),
    Source("drewnoakes+metadata-extractor-images", ("*.jpg", "*.JPG"), "photos"),
    Source("ianare+exif-samples", ("*.jpg",), "photos"),
    Source("elementary+wallpapers", ("*.jpg",), "photos"),
    Source("pop-os+wallpapers", ("*.jpg",), "photos"),
    Source("BuddiesOfBudgie+budgie-backgrounds", ("*.jpg",), "photos"),
    Source("linuxdeepin+deepin-wallpapers", ("*nonfree*.jpg",), "photos"),
    Source("linuxdeepin+deepin-wallpapers", ("*Colorful*.jpg", "*hazy*", "*glass*"), "graphics"),
    Source("KDE+plasma-workspace-wallpapers", ("*.png", "*.jpg"), "graphics"),
    Source("DepthAnything+Depth-Anything-V2", ("*demo*.jpg",), "photos"),
    Source("alicevision+dataset_monstree", ("*.jpg", "*.JPG"), "photos"),
    Source("openMVG+ImageDataset_SceauxCastle", ("*.JPG",), "photos"),
    Source("mapillary+OpenSfM", ("*lund*.jpg", "*berlin*.jpg"), "photos"),
    Source(
        "magicleap+SuperGluePretrainedNetwork",
        ("*scannet_sample*.jpg", "*phototourism_sample*.jpg"),
        "photos",
    ),
    Source("cvg+Hierarchical-Localization", ("*sacre_coeur*.jpg",), "photos"),
    Source(
        "FrenzyExists+wallpapers",
        ("*Tea And Coffee*", "*Flowers*", "*Cherry Blossoms*", "*Monochrome*"),
        "photos",
    ),
)

# These two sets are for judging only; nothing is trained or tuned on them.  Photos of cities:
CITY = (
    "*phototourism_sample_images*",
    "*berlin__images__02.jpg",
    "*lund__images__05.jpg",
    "*lund__images__20.jpg",
    "*lund__images__27.jpg",
    "*Canon PowerShot A85.jpg",
    "*Canon PowerShot G2.jpg",
    "*HP PhotoSmart C812.jpg",
    "*Minolta DiMAGE A1.jpg",
    "*Panasonic FX7.jpg",
    "*Sony DSC-G1.jpg",
    "*roman-colosseum.jpg",
    "*singaporean-cityscape.jpg",
)
# Large photos, reduced to 2.5 megapixels:
LARGE = (
    "*Martin Adams.jpg",
    "*Sunset by the Pier.jpg",
    "*Tj Holowaychuk.jpg",
    "*galen-crout*",
    "*samuel-zeller*",
    "*tony-webster*",
    "*sean-afnan*",
    "*Canon EOS 5D.jpg",
    "*Panasonic DMC-LX3 (Lumix).jpg",
    "*Kodak PIXPRO S-1.jpg",
    "*Samsung SM-N900A*",
    "*perched-osprey.jpg",
    "*oakland-zoo-otters.jpg",
    "*casa-mila.jpg",
    "*Canon PowerShot G11.jpg",
)
LARGE_PIXELS = 2.5e6

# Two limits of the mean of a JPEG's luminance quantisation table (1 to 255).  Up to the first one,
# crops at full resolution are taken too.  Up to the second one, a small photo is reduced by 1.5
# instead of 2, and a large one by at least 1.6 instead of 2.  Chosen by looking at photos at four
# times their size.
CLEAN_TABLE, FAIR_TABLE = 5.0, 6.5
FULL_CROP = 512  # pixels along a side of the crops at full resolution
FULL_PIXELS = 3e6  # photos of fewer pixels were reduced before, so they are sharper than a sensor's
SMALLEST = 128  # pixels along the shorter side of a picture that is kept, at least
LARGEST = 1.6e6  # pixels of a picture that is kept, at most
GRAPHICS = 320  # number of pictures that `graphics` makes
NOISY = 12  # one photo in 12 is kept a second time, with a sensor's noise


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) for p in patterns)


def table_mean(picture: Image.Image) -> float:
    """The mean of a JPEG's luminance quantisation table; 1 for other formats."""
    tables = getattr(picture, "quantization", None)
    return float(np.mean(next(iter(tables.values())))) if tables else 1.0


def reduced(picture: Image.Image, factor: float, rng: random.Random) -> Photo:
    """The picture in RGB, smaller by ``factor``.  The filter is random: some are sharper."""
    filters = (Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BOX)
    size = (round(picture.width / factor), round(picture.height / factor))
    return np.asarray(picture.resize(size, rng.choice(filters)))


def noisy(photo: Photo, rng: random.Random) -> Photo:
    """A photo at night: darker, with the noise of photons and of the sensor."""
    numbers = np.random.default_rng(rng.randrange(2**32))
    linear = (photo / 255) ** 2.2 * rng.uniform(0.15, 1)
    deviation = np.sqrt(linear * rng.uniform(2e-4, 3e-3) + rng.uniform(1e-6, 1e-4))
    noise = numbers.normal(size=linear.shape) * deviation
    levels = 255 * np.clip(linear + noise, 0, 1) ** (1 / 2.2)
    return np.round(levels).astype(np.uint8)


def versions(picture: Image.Image, rng: random.Random) -> list[tuple[str, Photo]]:
    """The pictures that are kept of one original, each with the suffix of its group."""
    mean, pixels = table_mean(picture), picture.width * picture.height
    rgb = picture.convert("RGB")
    kept: list[tuple[str, Photo]] = []
    if pixels < 5e5:
        kept.append(("", reduced(rgb, 1.5 if mean <= FAIR_TABLE else 2, rng)))
    else:
        # By 2 at least, or by 1.6 if the JPEG's table is fine; by more if LARGEST requires it.
        factor = max(1.6 if mean <= FAIR_TABLE else 2.0, (pixels / LARGEST) ** 0.5)
        kept.append(("", reduced(rgb, factor, rng)))
        if pixels / factor**2 > 8e5:
            kept.append(("", reduced(rgb, factor * rng.uniform(1.7, 2.6), rng)))
    if mean <= CLEAN_TABLE and pixels >= FULL_PIXELS:
        for _ in range(4):
            x = rng.randint(0, rgb.width - FULL_CROP)
            y = rng.randint(0, rgb.height - FULL_CROP)
            crop = np.asarray(rgb.crop((x, y, x + FULL_CROP, y + FULL_CROP)))
            if crop.std() > 3:  # a plain surface is left out
                kept.append(("-full", crop))
    if rng.randrange(NOISY) == 0:
        kept.append(("-noise", noisy(kept[0][1], rng)))
    return [(s, p) for s, p in kept if min(p.shape[:2]) >= SMALLEST]


class Writer:
    """A pack under construction: raw bytes, and where each picture is in them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._bytes = open(folder / "pixels.bin", "wb")  # noqa: SIM115
        self._index: list[tuple[int, int, int, str]] = []
        self._end = 0

    def add(self, photo: Photo, group: str) -> None:
        self._bytes.write(np.ascontiguousarray(photo).tobytes())
        self._index.append((self._end, *photo.shape[:2], group))
        self._end += photo.size

    def close(self) -> str:
        """Finish the pack.  Returns a line that says what it has."""
        self._bytes.close()
        places = np.array([i[:3] for i in self._index], np.int64)
        groups = np.array([i[3] for i in self._index])
        np.savez(self._folder / "index.npz", places=places, groups=groups)
        names, counts = np.unique(groups, return_counts=True)
        area = {n: places[groups == n, 1:].prod(1).sum() / 1e6 for n in names}
        return ", ".join(f"{c} {n} ({area[n]:.0f} MP)" for n, c in zip(names, counts, strict=True))


class Pack:
    """Pictures (H, W, 3) of a pack, by group."""

    def __init__(self, folder: Path) -> None:
        index = np.load(folder / "index.npz")
        self._bytes = np.memmap(folder / "pixels.bin", np.uint8, "r")
        self._places, self.groups = index["places"], index["groups"]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> Photo:
        offset, height, width = (int(n) for n in self._places[number])
        part: Photo = self._bytes[offset : offset + height * width * 3]
        return part.reshape(height, width, 3)


def photos(folder: Path, count: int, smallest: int = 0) -> list[Photo]:
    """At most ``count`` photos of a pack, evenly spread.  No side is shorter than ``smallest``."""
    pack = Pack(folder)
    found = (pack[i] for i, group in enumerate(pack.groups) if group == "photos")
    large = [photo for photo in found if min(photo.shape[:2]) >= smallest]
    return large[:: max(1, len(large) // count)][:count]


def corner(photo: Photo, size: int) -> Photo:
    """The top left corner of a photo: at most size x size pixels, in whole cells of 32."""
    height, width = (min(size, n // 32 * 32) for n in photo.shape[:2])
    return photo[:height, :width]


# How often a group is drawn, whatever its size.  Chosen: people save photos at web sizes and at
# full resolution.  The other groups keep the model usable for pictures that are rare.
SHARES = {
    "photos": 0.60,
    "photos-full": 0.18,
    "faces": 0.06,
    "photos-noise": 0.04,
    "faces-full": 0.02,
    "graphics": 0.10,
}


# The share of crops that are made grey, and of those whose colours are exchanged.  Chosen.
GREY, SWAPPED = 0.04, 0.03
PORTRAIT = 0.15  # the share of crops that are turned, as photos in portrait format may be
GREY_WEIGHTS = (0.299, 0.587, 0.114)  # BT.601


class Crops:
    """Random crops of packs."""

    def __init__(self, folders: list[Path], rng: random.Random) -> None:
        self._rng = rng
        self._by_group: dict[str, list[tuple[Pack, int]]] = {}
        for pack in map(Pack, folders):
            for i, group in enumerate(pack.groups):
                self._by_group.setdefault(str(group), []).append((pack, i))
        self._groups = [g for g in SHARES if g in self._by_group]
        self._weights = [SHARES[g] for g in self._groups]

    def _crop(self, size: int) -> Photo:
        rng = self._rng
        while True:
            group = rng.choices(self._groups, self._weights)[0]
            pack, number = rng.choice(self._by_group[group])
            photo = pack[number]
            height, width = photo.shape[:2]
            if min(height, width) >= size:
                break
        top, left = rng.randint(0, height - size), rng.randint(0, width - size)
        crop = photo[top : top + size, left : left + size]
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        if rng.random() < PORTRAIT:
            crop = crop.transpose(1, 0, 2)
        chance = rng.random()
        if chance < GREY:  # grey pictures must stay grey
            grey = crop @ np.array(GREY_WEIGHTS)
            crop = np.repeat(np.round(grey)[..., None], 3, 2).astype(np.uint8)
        elif chance < GREY + SWAPPED:  # colours that photos rarely have
            crop = crop[..., rng.sample(range(3), 3)]
        return crop

    def batch(self, count: int, size: int) -> Tensor:
        """(count, 3, size, size) in [-0.5, 0.5]."""
        crops = np.stack([self._crop(size) for _ in range(count)])
        tensor = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255 - 0.5
        return tensor.contiguous(memory_format=torch.channels_last)


def to_tensor(photo: Photo) -> Tensor:
    """(H, W, 3) bytes to (1, 3, H, W) in [-0.5, 0.5]."""
    return torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 255 - 0.5


def held_out(picture: Image.Image, name: str, rng: random.Random) -> list[tuple[str, Photo]]:
    """The pictures of one original that are kept for judging."""
    kept = []
    pixels = picture.width * picture.height
    if matches(name, CITY):
        factor = 1.5 if pixels < 2e6 else 2.0
        kept.append(("city", reduced(picture.convert("RGB"), factor, rng)))
    if matches(name, LARGE):
        factor = (pixels / LARGE_PIXELS) ** 0.5
        kept.append(("large", reduced(picture.convert("RGB"), factor, rng)))
    return kept


def prepare(originals: Path, output: Path) -> None:
    """Write the packs ``train`` and ``validation``, and the held-out sets as PNG files."""
    rng = random.Random(0)
    train, validation = Writer(output / "train"), Writer(output / "validation")
    for source in SOURCES:
        folder = originals / source.folder
        if not folder.is_dir():
            print(f"{source.folder}: there is no such folder")
            continue
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        paths = [p for p in paths if matches(p.name, source.patterns)]
        originals_used = 0
        for i, path in enumerate(paths):
            try:
                with Image.open(path) as picture:
                    picture.load()
                    judged = held_out(picture, path.name, rng)
                    if judged:
                        for group, photo in judged:
                            (output / group).mkdir(exist_ok=True)
                            name = output / group / f"{source.folder}__{path.stem}.png"
                            Image.fromarray(photo).save(name)
                        continue
                    kept = versions(picture, rng)
            except (UnidentifiedImageError, OSError, ValueError):
                continue
            writer = validation if i % HOLD_OUT_EVERY == 0 else train
            for suffix, photo in kept:
                group = source.group + suffix
                writer.add(photo, group if group in SHARES else source.group)
            originals_used += bool(kept)
        print(f"{source.folder} ({source.group}): {originals_used}", flush=True)
    from training.mini import graphics

    for i, drawn in enumerate(graphics.pictures(GRAPHICS, 0)):
        (validation if i % HOLD_OUT_EVERY == 0 else train).add(drawn, "graphics")
    print("train:", train.close())
    print("validation:", validation.close())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--originals", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # many sample photos of cameras have damaged EXIF
    Image.MAX_IMAGE_PIXELS = None
    prepare(options.originals, options.output)


if __name__ == "__main__":
    main()
