"""Places to protect, as boxes, masks and faces: what is accepted, and which cells it means."""

from __future__ import annotations

import builtins
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pillow_sdz import demo, protection
from pillow_sdz.cli import main
from pillow_sdz.codings import quality_map

CELL = 32  # pixels along a side of a cell
PICTURE = Image.new("RGB", (100, 70))  # 4x3 cells


def cells(protect: object, image: Image.Image = PICTURE) -> list[list[float]]:
    weights = protection.weights(protect, image, CELL).astype(float)
    found: list[list[float]] = weights.round(3).tolist()
    return found


class TestBoxes:
    def test_a_cell_that_a_box_touches_is_protected(self) -> None:
        assert cells([(31, 0, 33, 32)]) == [[1, 1, 0, 0], [0] * 4, [0] * 4]
        assert cells([(32, 32, 64, 64), (99, 69, 100, 70)]) == [
            [0, 0, 0, 0],
            [0, 1, 0, 0],
            [0, 0, 0, 1],
        ]

    def test_a_box_may_reach_beyond_the_picture(self) -> None:
        assert cells([(-50.5, -3, 0.5, 1e6)]) == [[1, 0, 0, 0]] * 3

    def test_no_boxes_protect_nothing(self) -> None:
        assert cells([]) == [[0] * 4] * 3

    @pytest.mark.parametrize(
        ("protect", "complaint"),
        [
            ("face", "must be \"faces\", a list of boxes, or a picture of mode L, not 'face'"),
            (7, "not int"),
            ([5, 5, 20, 20], "boxes .* of numbers, not 5"),
            ([(5, 5, 20)], r"boxes .* of numbers, not \(5, 5, 20\)"),
            ([(5, 5, 20, "20")], "of numbers"),
            ([(5, 5, 20, True)], "of numbers"),
            ([(5, 5, float("nan"), 20)], "of numbers"),
            ([(5, 5, float("inf"), 20)], "of numbers"),
            ([(5, 5, 5, 20)], "empty box"),
            ([(0, 20, 9, 10)], "empty box"),
            ([(100, 0, 110, 10)], "outside of the picture of 100x70"),
            ([(0, -10, 10, 0)], "outside of the picture"),
        ],
    )
    def test_what_is_refused(self, protect: object, complaint: str) -> None:
        with pytest.raises(ValueError, match=complaint):
            protection.weights(protect, PICTURE, CELL)


class TestMasks:
    def test_a_cell_is_protected_as_its_pixel_that_is_protected_most(self) -> None:
        mask = Image.new("L", PICTURE.size)
        mask.putpixel((63, 31), 255)
        mask.putpixel((64, 32), 51)
        mask.putpixel((99, 69), 102)
        assert cells(mask) == [[0, 1, 0, 0], [0, 0, 0.2, 0], [0, 0, 0, 0.4]]

    @pytest.mark.parametrize("size", [(1, 1), (2, 3), (25, 18), (400, 280), (1000, 700)])
    def test_any_size(self, size: tuple[int, int]) -> None:
        assert cells(Image.new("L", size, 255)) == [[1] * 4] * 3
        mask = Image.new("L", size)
        mask.putpixel((0, 0), 255)
        assert cells(mask)[0][0] == 1

    def test_a_small_mask_has_its_place(self) -> None:
        mask = Image.new("L", (2, 1))
        mask.putpixel((1, 0), 255)
        assert cells(mask) == [[0, 1, 1, 1]] * 3  # its right half begins in the second cell

    def test_other_modes_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r'mode L, not RGB: use convert\("L"\)'):
            protection.weights(PICTURE, PICTURE, CELL)
        with pytest.raises(ValueError, match="a size of 0x5"):
            protection.weights(Image.new("L", (0, 5)), PICTURE, CELL)


class TestFaces:
    def test_a_photo_without_a_face(self) -> None:
        pytest.importorskip("dlib", reason="faces need the extra faces")
        assert protection.faces(demo.photo()) == []
        assert not protection.weights("faces", Image.new("L", (1, 1)), CELL).any()

    def test_a_large_picture_is_made_smaller(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dlib = pytest.importorskip("dlib", reason="faces need the extra faces")
        seen: list[tuple[int, ...]] = []

        def detector() -> Any:
            def detect(pixels: Any, times: int) -> list[Any]:
                seen.append(pixels.shape)
                return [dlib.rectangle(100, 200, 179, 279)]

            return detect

        monkeypatch.setattr(dlib, "get_frontal_face_detector", detector)
        ((left, top, right, bottom),) = protection.faces(Image.new("L", (6000, 4000)))
        assert np.prod(seen[0]) == pytest.approx(3 * protection.SOUGHT_PIXELS, rel=0.01)
        assert (left, top) == pytest.approx((92 * 6**0.5, 192 * 6**0.5), abs=1)
        assert (right, bottom) == pytest.approx((188 * 6**0.5, 288 * 6**0.5), abs=1)

    def test_the_middle_is_protected_most_and_a_cell_at_the_edge_by_its_part(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        face = (32.0, 32.0, 128.0, 128.0)  # the middle is the cell from 64 to 96
        monkeypatch.setattr(protection, "faces", lambda image: [face])
        found = protection.weights("faces", Image.new("L", (160, 160)), CELL)
        assert found[2, 2] == 1
        assert found == pytest.approx(found.T)
        assert found == pytest.approx(found[::-1, ::-1])
        # The integral over an ellipse of 3x3 cells whose edge is soft.
        area = math.pi * 1.5**2 * (1 + protection.SOFT_EDGE**2 / 12)
        assert (found**2).sum() == pytest.approx(area, rel=0.01)
        assert 0 < found[1, 1] < found[1, 2] < 1
        assert not found[0, 0]

    def test_a_face_that_reaches_out_of_the_picture(self, monkeypatch: pytest.MonkeyPatch) -> None:
        boxes = [(-40.0, -40.0, 40.0, 40.0), (90.0, 60.0, 200.0, 200.0), (-90.0, 0.0, -50.0, 40.0)]
        monkeypatch.setattr(protection, "faces", lambda image: boxes)
        found = protection.weights("faces", PICTURE, CELL)
        assert found[0, 0] > 0.8
        assert found[2, 3] > 0
        assert not found[0, 2:].any()

    def test_faces_get_more_than_boxes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(protection, "faces", lambda image: [(-100.0, -100.0, 200.0, 200.0)])
        for protect, quality in (("faces", 50), ([(0, 0, 100, 70)], 20)):
            steps = protection.offsets(protect, PICTURE, CELL)
            assert (steps == quality * 100 // quality_map.UNIT).all()

    def test_without_dlib(self, monkeypatch: pytest.MonkeyPatch) -> None:
        imported = builtins.__import__

        def refused(name: str, *args: Any, **kw: Any) -> Any:
            if name == "dlib":
                raise ImportError(name)
            return imported(name, *args, **kw)

        monkeypatch.setattr(builtins, "__import__", refused)
        with pytest.raises(OSError, match=r"pillow-sdz\[faces\]"):
            protection.faces(PICTURE)


class TestSaving:
    def test_bad_values_are_refused_before_anything_is_written(self) -> None:
        file = BytesIO()
        with pytest.raises(ValueError, match="empty box"):
            PICTURE.save(file, "SDZ", protect=[(1, 1, 1, 1)])
        assert file.getvalue() == b""

    def test_a_model_of_one_quality_protects_nothing(self) -> None:
        with pytest.raises(ValueError, match="quality may vary over the picture, not sd-mini"):
            PICTURE.save(BytesIO(), "SDZ", model="sd-mini", protect=[(1, 1, 9, 9)])

    def test_a_mask_that_cannot_be_read(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        PICTURE.save(tmp_path / "a.png")
        (tmp_path / "mask.png").write_bytes(b"no picture")
        for name in ("mask.png", "missing.png"):
            with pytest.raises(SystemExit):
                main(["encode", str(tmp_path / "a.png"), "--protect", str(tmp_path / name)])
            assert f"--protect {tmp_path / name}: " in capsys.readouterr().err
