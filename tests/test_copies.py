"""Shapes that repeat in exact pixels: what is copied, what readers refuse, and what it saves."""

from __future__ import annotations

import random
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pillow_sdz import block_maps, copies, exact, vp8l
from pillow_sdz.copies import Copies
from pillow_sdz.exact import Regions
from pillow_sdz.exact_parts import shape_of
from sdz_files import decode, encode

PAPER = (250, 250, 245)
SIZE = (24, 16)


def text(size: tuple[int, int] = (320, 240), seed: int = 5, ink: str = "#14143c") -> Image.Image:
    """A page of letters in an order that never repeats."""
    picture = Image.new("RGB", size, PAPER)
    draw, chance = ImageDraw.Draw(picture), random.Random(seed)
    for top in range(6, size[1] - 18, 18):
        line = "".join(chance.choice("abcdefgh ijklmnop") for _ in range(size[0] // 9))
        draw.text((8, top), line, ink)
    return picture


def every(size: tuple[int, int]) -> block_maps.Blocks:
    return np.ones(shape_of(size), np.bool_)


def data_of(picture: Image.Image) -> bytes:
    return exact.Encoder(255).encode(picture, every(picture.size))


def shown(data: bytes, size: tuple[int, int]) -> Image.Image:
    picture = Image.new("RGB", size)
    Regions(data, size).paste(picture, (0, 0, *size))
    return picture


def listed(
    shapes: list[tuple[int, int, int]], placed: list[tuple[int, int, int]], after: bytes = b""
) -> bytes:
    """Copies as docs/format.md has them: sizes and rises, then shapes, gaps and drops."""
    count = len(shapes)
    planes = [bytes(n & 255 for n in column) for column in zip(*shapes, strict=True)]
    names, gaps, drops = zip(*placed, strict=True)
    planes.append(bytes(n & 255 for n in names))
    if count > 256:
        planes.append(bytes(n >> 8 for n in names))
    for values in (gaps, drops):
        planes += [bytes(n & 255 for n in values), bytes(n >> 8 & 255 for n in values)]
    return zlib.compress(bytes(PAPER) + struct.pack(">H", count) + b"".join(planes) + after)


def chunk(picture: Image.Image, packed: bytes) -> bytes:
    """The data of an EXCT chunk: all blocks, one part with copies."""
    parts = packed, vp8l.encode(picture)
    return b"\4" + b"".join(struct.pack(">I", len(part)) + part for part in parts)


class TestReading:
    """A chunk that was put together by hand from what docs/format.md says."""

    def picture(self) -> Image.Image:
        """16 rows of paper, and a sheet of 3 rows.  Its shapes are 5x3, 4x1 and 16x2 pixels."""
        picture = Image.new("RGB", (SIZE[0], SIZE[1] + 3), PAPER)
        picture.paste((200, 0, 0), (0, 16, 5, 19))
        picture.putpixel((2, 17), PAPER)
        picture.paste((0, 0, 200), (5, 16, 9, 17))
        picture.putpixel((23, 0), (1, 2, 3))
        return picture

    def test_shapes_are_drawn_without_their_paper_one_after_another(self) -> None:
        shapes = [(5, 3, 0), (4, 1, 2)]
        # The first ends on line 5.  The second stands 2 rows above the same line, and 1 further.
        placed = [(0, 2, 5), (1, -1, 0), (0, 3, 6)]
        picture = shown(chunk(self.picture(), listed(shapes, placed)), SIZE)
        expected = Image.new("RGB", SIZE, PAPER)
        expected.putpixel((23, 0), (1, 2, 3))
        for left, top in ((2, 2), (13, 8)):
            expected.paste((200, 0, 0), (left, top, left + 5, top + 3))
            expected.putpixel((left + 2, top + 1), PAPER)
        expected.paste((0, 0, 200), (6, 2, 10, 3))
        assert picture.tobytes() == expected.tobytes()

    def test_what_stands_behind_paper_stays(self) -> None:
        picture = self.picture()
        picture.paste((9, 9, 9), (0, 0, 24, 16))
        found = shown(chunk(picture, listed([(5, 3, 0)], [(0, 2, 5)])), SIZE)
        assert found.getpixel((4, 3)) == (9, 9, 9)  # the hole
        assert found.getpixel((4, 2)) == (200, 0, 0)

    def test_transparent_pixels_of_the_sheet_are_not_drawn(self) -> None:
        picture = self.picture().convert("RGBA")
        picture.putpixel((0, 16), (200, 0, 0, 0))
        picture.putpixel((20, 10), (0, 0, 0, 0))
        blocks = every(SIZE)
        opened = np.zeros_like(blocks)
        opened[1, 2] = True
        packed = listed([(5, 3, 0)], [(0, 2, 5)])
        bitstream = vp8l.encode(picture)
        data = b"".join(
            [
                b"\5",
                block_maps.packed(blocks, opened),
                *(struct.pack(">I", len(part)) + part for part in (packed, bitstream)),
            ]
        )
        behind = Image.new("RGB", SIZE, (0, 255, 0))
        Regions(data, SIZE).paste(behind, (0, 0, *SIZE))
        assert behind.getpixel((2, 2)) == PAPER
        assert behind.getpixel((3, 2)) == (200, 0, 0)
        assert behind.getpixel((20, 10)) == (0, 255, 0)

    def test_rows_of_the_sheet(self) -> None:
        """A shape that has no place left begins a row below the highest one before."""
        placed = [(0, 0, 9), (1, 0, 0), (2, -24, 9)]
        found = copies.parse(listed([(16, 2, 0), (8, 3, 0), (9, 4, 0)], placed), (24, 80))
        assert list(found.corners(24)) == [(0, 0), (16, 0), (0, 3)]
        assert found.rows(24) == 7

    @pytest.mark.parametrize(
        ("packed", "message"),
        [
            (listed([(5, 3, 0)], [(0, 20, 5)]), "outside"),
            (listed([(5, 3, 0)], [(0, -1, 5)]), "outside"),
            (listed([(5, 3, 0)], [(0, 2, 17)]), "outside"),
            (listed([(5, 3, 0)], [(0, 2, 2)]), "outside"),
            (listed([(5, 3, 0)], [(1, 2, 5)]), "not there"),
            (listed([(0, 3, 0)], [(0, 2, 5)]), "empty"),
            (listed([(5, 0, 0)], [(0, 2, 5)]), "empty"),
            (listed([(25, 3, 0)], [(0, 0, 5)]), "too wide"),
            (listed([(5, 9, 0), (24, 8, 0)], [(0, 0, 9), (0, 0, 0)]), "sheet of shapes is higher"),
            (listed([(5, 3, 0)] * 2, [(0, 2, 5)]), "number of bytes"),
            (listed([(5, 3, 0)], [(0, 0, 5)] + 24 * [(0, -5, 0)]), "number of bytes"),
            (listed([(5, 3, 0)], [(0, 2, 5)], after=b"\0"), "number of bytes"),
            (listed([(5, 3, 0)], [(0, 2, 5)])[:-1], "number of bytes"),
            (listed([(5, 3, 0)], [(0, 2, 5)]) + b"\0", "number of bytes"),
            (zlib.compress(bytes(PAPER) + bytes(2)), "number of bytes"),
            (zlib.compress(b""), "number of bytes"),
            (zlib.compress(bytes(100_000_000)), "number of bytes"),
            (b"no zlib stream", "incorrect header"),
        ],
    )
    def test_damage_is_refused_before_pixels_are_decoded(
        self, packed: bytes, message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = chunk(self.picture(), packed)
        monkeypatch.setattr(Image, "open", None)
        with pytest.raises(OSError, match=f"damaged SDZ file: chunk EXCT: .*{message}"):
            Regions(data, SIZE)

    def test_the_most_copies(self) -> None:
        """One for 16 pixels."""
        packed = listed([(5, 3, 0)], [(0, 0, 5)] + 23 * [(0, -5, 0)])
        assert len(copies.parse(packed, SIZE).shapes) == SIZE[0] * SIZE[1] // 16

    def test_a_bitstream_without_the_sheet_is_refused(self) -> None:
        picture = self.picture().crop((0, 0, *SIZE))
        with pytest.raises(OSError, match="VP8L bitstream of 24x19"):
            Regions(chunk(picture, listed([(5, 3, 0)], [(0, 2, 5)])), SIZE)

    def test_a_cut_chunk_is_refused(self) -> None:
        data = data_of(text())
        assert data[0] == 4
        for end in range(0, len(data), 7):
            with pytest.raises(OSError, match="EXCT"):
                Regions(data[:end], (320, 240))

    def test_copies_count_as_work(self) -> None:
        """Copies of large shapes onto each other take as long as that many pixels."""
        picture = Image.new("RGB", (64, 128), PAPER)
        placed = [(0, 0, 64)] + 255 * [(0, -64, 0)]
        packed = listed([(64, 64, 0)], placed)
        assert copies.parse(packed, (64, 64)).work == 256 * (64 * 64 + 512)
        with pytest.raises(OSError, match="more pixels in a row of EXCT than 64 times"):
            Regions(chunk(picture, packed), (64, 64))

    def test_a_damaged_byte_is_an_error_or_other_pixels(self) -> None:
        size = 320, 240
        data, chance = data_of(text()), random.Random(3)
        for _ in range(200):
            damaged = bytearray(data)
            damaged[chance.randrange(len(data))] ^= chance.randrange(1, 256)
            try:
                assert shown(bytes(damaged), size).size == size
            except OSError as e:
                assert "EXCT" in str(e)  # noqa: PT017


class TestWriting:
    def test_letters_are_kept_once(self) -> None:
        picture = text()
        found = copies.find(copies.colours_of(picture))
        assert found is not None
        whole, listed = found
        # There are 16 letters.  Two of them have a dot.  Some touch each other.
        assert 12 <= len(listed.widths) <= 40
        assert len(listed.shapes) > 200
        assert copies.picture_of(listed.drawn(whole)).convert("RGB").tobytes() == picture.tobytes()

    def test_a_page_takes_fewer_bytes(self) -> None:
        picture = text((640, 480))
        data = data_of(picture)
        assert len(data) < 0.6 * len(vp8l.encode(picture.copy()))
        assert shown(data, picture.size).tobytes() == picture.tobytes()

    @pytest.mark.parametrize("seed", range(4))
    def test_letters_on_panels_of_other_colours(self, seed: int) -> None:
        """Shapes may have the paper's colour, and stand on others."""
        picture = text((320, 240), seed)
        draw = ImageDraw.Draw(picture)
        draw.rectangle((40, 50, 200, 170), (30, 40, 90))
        for top in range(56, 150, 20):
            draw.text((60, top), "banana panama canal", PAPER)
        data = data_of(picture)
        assert data[0] == 4
        assert shown(data, picture.size).tobytes() == picture.tobytes()

    def test_pictures_without_repeats_are_as_without_copies(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
        for picture in (Image.fromarray(noise), Image.new("RGB", (80, 60)), text((60, 30))):
            assert data_of(picture)[0] == 0

    def test_more_than_256_shapes(self) -> None:
        chance = np.random.default_rng(1)
        levels = np.full((600, 600, 3), 255, np.uint8)
        shapes = chance.integers(0, 200, (300, 6, 6, 3), np.uint8)
        for n in range(1600):
            row, column = divmod(n, 40)
            levels[15 * row : 15 * row + 6, 15 * column : 15 * column + 6] = shapes[n % 300]
        picture = Image.fromarray(levels)
        data = data_of(picture)
        part = Regions(data, picture.size)._parts[0]
        assert part.copies is not None
        assert len(part.copies.widths) == 300
        assert shown(data, picture.size).tobytes() == picture.tobytes()

    def test_what_is_packed_is_read(self) -> None:
        size = 300, 200
        chance = np.random.default_rng(2)
        widths, heights = chance.integers(1, 20, (2, 9))
        shapes = chance.integers(0, 9, 70)
        lefts = chance.integers(0, 300 - widths[shapes] + 1)
        tops = chance.integers(0, 200 - heights[shapes] + 1)
        rises = chance.integers(-128, 128, 9)
        given = Copies((1, 2, 3), widths, heights, rises, shapes, lefts, tops)
        for one, other in zip(given, copies.parse(given.pack(), size), strict=True):
            assert np.array_equal(one, other)

    def test_latents_show_through_a_page_with_copies(self) -> None:
        picture = text()
        alpha = Image.new("L", picture.size, 255)
        alpha.paste(0, (100, 51, 203, 140))
        picture.putalpha(alpha)
        data = data_of(picture)
        assert data[0] == 5
        behind = Image.new("RGB", picture.size, (0, 200, 0))
        Regions(data, picture.size).paste(behind, (0, 0, *picture.size))
        expected = Image.new("RGB", picture.size, (0, 200, 0))
        expected.paste(picture, (0, 0), alpha)
        assert behind.tobytes() == expected.tobytes()

    def test_frames_that_change(self) -> None:
        size, coder, regions = (320, 240), exact.Encoder(255), None
        for seed in (1, 1, 2, 3):
            picture = text(size)
            picture.paste(text((320, 96), seed), (0, 96))
            regions = Regions(data := coder.encode(picture, every(size)), size, regions)
            canvas = Image.new("RGB", size)
            regions.paste(canvas, (0, 0, *size))
            assert canvas.tobytes() == picture.tobytes()
        assert data[0] == 6
        assert exact.builds_on_the_frame_before(data)

    def test_a_row_of_frames_stays_within_the_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(exact, "MOST_PIXELS", 5)
        size, coder, regions = (320, 240), exact.Encoder(255), None
        builds = []
        for seed in range(8):
            picture = text(size)
            picture.paste(text((320, 96), seed), (0, 96))
            data = coder.encode(picture, every(size))
            builds.append(exact.builds_on_the_frame_before(data))
            regions = Regions(data, size, regions)
        assert builds[1]
        assert not all(builds[1:])


class TestFiles:
    def test_all_ways_of_reading(self) -> None:
        picture = text((640, 480))
        data = encode(picture)
        assert decode(data).convert("RGB").tobytes() == picture.tobytes()
        with Image.open(BytesIO(data)) as im:
            assert im.info["sdz"]["exact"] == 1
            box = 101, 55, 333, 207
            assert im.crop(box).convert("RGB").tobytes() == picture.crop(box).tobytes()
        with Image.open(BytesIO(data)) as im:
            im.draft("RGB", (160, 120))
            assert im.size == (160, 120)
            assert im.convert("RGB").tobytes() == picture.reduce(4).tobytes()

    def test_an_animation_of_pages(self) -> None:
        pages = [text(seed=seed) for seed in range(3)]
        file = BytesIO()
        pages[0].save(file, "SDZ", save_all=True, append_images=pages[1:], duration=50)
        with Image.open(file) as im:
            for number in (2, 0, 1):
                im.seek(number)
                assert im.convert("RGB").tobytes() == pages[number].tobytes()
