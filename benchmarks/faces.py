"""Faces: how far their embeddings move, in `.sdz` with protect="faces" and in AVIF.

    python -m benchmarks.faces --photos DIR [--bpp 0.15 0.25] [--plain] [--sheet FILE]

The photos are those of a folder, for instance examples/faces of davisking/dlib and the examples of
ageitgey/face_recognition. No model of this package was trained on them. A photo is reduced until
its largest face has 120 pixels. Faces of 30 to 120 pixels count. The embedding comes from dlib's
network (face-recognition-models). Above a distance of 0.6, it says that this is another person.
Both pictures of a face are cut out at the landmarks of the original. AVIF (speed 6) gets the bytes
of the `.sdz` file.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import dlib
import numpy as np
from PIL import Image, ImageOps

import pillow_sdz  # noqa: F401  # registers the format SDZ
from benchmarks.codecs import Codec

AVIF = Codec("avif", "AVIF", {"speed": 6}, tuple(range(101)), lambda: None)
SMALLEST, LARGEST = 30, 120  # pixels of a face's side
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


class Photo(NamedTuple):
    name: str
    picture: Image.Image
    faces: list[Any]  # dlib's rectangles


class Embedder:
    """dlib's network, which turns a face into 128 numbers."""

    def __init__(self) -> None:
        found = importlib.util.find_spec("face_recognition_models")
        if found is None or found.origin is None:
            msg = "benchmarks.faces needs face-recognition-models: pip install it"
            raise SystemExit(msg)
        folder = Path(found.origin).parent / "models"
        self._landmarks = dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))
        network = folder / "dlib_face_recognition_resnet_model_v1.dat"
        self._network = dlib.face_recognition_model_v1(str(network))

    def distances(
        self, original: Image.Image, shown: Image.Image, faces: Sequence[Any]
    ) -> list[float]:
        """How far the embedding of each face moves."""
        before, after = np.asarray(original), np.asarray(shown.convert("RGB"))
        found = []
        for face in faces:
            places = self._landmarks(before, face)
            a, b = (
                np.array(self._network.compute_face_descriptor(pixels, places))
                for pixels in (before, after)
            )
            found.append(float(np.linalg.norm(a - b)))
        return found


def photos(folder: Path) -> list[Photo]:
    """The photos of a folder in which faces of the right size are found, each once."""
    detector = dlib.get_frontal_face_detector()
    found: list[Photo] = []
    seen: set[bytes] = set()
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES:
            continue
        picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        picture.info = {}  # a profile would take bytes
        faces = list(detector(np.asarray(picture), 1))
        if not faces:
            continue
        largest = max(face.width() for face in faces)
        if largest > LARGEST:
            scale = LARGEST / largest
            size = round(picture.width * scale), round(picture.height * scale)
            picture = picture.resize(size, Image.Resampling.LANCZOS)
            faces = list(detector(np.asarray(picture), 1))
        faces = [face for face in faces if SMALLEST <= face.width() <= LARGEST]
        small = picture.resize((16, 16)).tobytes()  # a folder may have a photo in several sizes
        if faces and small not in seen:
            seen.add(small)
            found.append(Photo(path.name, picture, faces))
    return found


def saved(picture: Image.Image, size: int, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "SDZ", target_size=size, **options)
    return file.getvalue()


def cuttings(photo: Photo, shown: Sequence[Image.Image], side: int = 160) -> Image.Image:
    """The first face in the original and in the shown pictures, side by side."""
    face = photo.faces[0]
    around = face.width() // 3
    box = (
        face.left() - around,
        face.top() - around,
        face.right() + around,
        face.bottom() + around,
    )
    row = Image.new("RGB", ((len(shown) + 1) * side, side))
    for number, picture in enumerate([photo.picture, *shown]):
        row.paste(picture.convert("RGB").crop(box).resize((side, side)), (number * side, 0))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faces", description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--bpp", type=float, nargs="*", default=[0.15, 0.25])
    parser.add_argument("--plain", action="store_true", help="without protect")
    parser.add_argument("--sheet", type=Path, help="write a sheet of the first faces, too")
    options = parser.parse_args()
    given = photos(options.photos)
    embedder = Embedder()
    print(f"{sum(len(photo.faces) for photo in given)} faces in {len(given)} photos\n")
    ways: dict[str, dict[str, Any]] = {"sdz": {}}
    if not options.plain:
        ways["sdz, faces"] = {"protect": "faces"}
    rows: list[Image.Image] = []
    print("| bpp | codec | bytes | mean distance | of AVIF's | median | above 0.6 |")
    print("|--:|---|--:|--:|--:|--:|--:|")
    for bpp in options.bpp:
        distances: dict[str, list[float]] = {way: [] for way in (*ways, "avif")}
        sizes = dict.fromkeys(distances, 0)
        for photo in given:
            size = int(bpp * photo.picture.width * photo.picture.height / 8)
            files = {way: saved(photo.picture, size, **extra) for way, extra in ways.items()}
            (fitted,) = AVIF.fit(photo.picture, [max(map(len, files.values()))])
            files["avif"] = fitted.data
            shown = {way: Image.open(io.BytesIO(data)) for way, data in files.items()}
            for way, picture in shown.items():
                sizes[way] += len(files[way])
                distances[way] += embedder.distances(photo.picture, picture, photo.faces)
            rows.append(cuttings(photo, list(shown.values())))
        avif = statistics.fmean(distances["avif"])
        for way, values in distances.items():
            mean = statistics.fmean(values)
            others = sum(value > 0.6 for value in values)
            print(
                f"| {bpp:g} | {way} | {sizes[way]:,} | {mean:.3f} | {mean / avif:.2f} |"
                f" {statistics.median(values):.3f} | {others} |",
                flush=True,
            )
    if options.sheet and rows:
        sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
        for number, row in enumerate(rows):
            sheet.paste(row, (0, number * row.height))
        sheet.save(options.sheet)


if __name__ == "__main__":
    main()
