"""Exact regions in a file: what is kept, what readers refuse, and what all ways of reading show."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw, ImageFile, ImageFilter, ImageOps, ImageSequence

from pillow_sdz import (
    catalogue,
    chunks,
    coarse,
    container,
    demo,
    drawn,
    exact,
    fewer,
    graphics,
    models,
    open_latents,
    regions,
    scans,
    vp8l,
)
from pillow_sdz.block_maps import Blocks
from pillow_sdz.exact import Regions
from pillow_sdz.exact_parts import shape_of
from sdz_files import decode, encode, framed, replaced

WORTH_AT_30 = 22_000  # squared levels that a byte removes; see `fewer.worth`
SIZE = (101, 67)  # neither side is a whole number of blocks


def noise(size: tuple[int, int] = SIZE, seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(levels)


def some(*boxes: tuple[int, int, int, int]) -> Blocks:
    blocks = np.zeros(shape_of(SIZE), np.bool_)
    for left, top, right, bottom in boxes:
        blocks[top:bottom, left:right] = True
    return blocks


def coded(picture: Image.Image, blocks: Blocks) -> bytes:
    return exact.Encoder(255).encode(picture, blocks)


def page(size: tuple[int, int] = (320, 240), lines: int = 12) -> Image.Image:
    """A page of text."""
    picture = Image.new("RGB", size, (250, 250, 245))
    draw, chance = ImageDraw.Draw(picture), random.Random(5)
    for line in range(lines):
        text = "".join(chance.choice("abcdefgh ijklmnop") for _ in range(size[0] // 7))
        draw.text((8, 6 + 18 * line), text, (20, 20, 60))
    return picture


def scan(size: tuple[int, int] = (320, 256), noise: float = 2) -> Image.Image:
    """A page of text that was printed and scanned: blurred, uneven and noisy."""
    soft = page(size, lines=13).rotate(0.5, Image.Resampling.BICUBIC, fillcolor=(250, 250, 245))
    levels = np.asarray(soft.filter(ImageFilter.GaussianBlur(0.5)), np.float64)
    levels = levels * np.linspace(0.98, 0.92, size[0])[:, None]
    noisy = levels + np.random.default_rng(1).normal(0, noise, levels.shape)
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def with_photo() -> Image.Image:
    """A page with a photo in it."""
    picture = page((480, 320), lines=17)
    picture.paste(demo.photo().resize((200, 150)), (243, 101))
    return picture


def with_flats() -> Image.Image:
    """A photo with four flat parts."""
    picture = demo.photo().crop((0, 0, 320, 240))
    for number, (x, y) in enumerate(((19, 21), (141, 33), (60, 150), (250, 180))):
        picture.paste(
            ((0, 44, 160), (160, 44, 0), (44, 160, 44), (90, 90, 90))[number],
            (x, y, x + 52, y + 44),
        )
    return picture


def with_label() -> Image.Image:
    """A photo with a few words on a ground of one colour."""
    picture = demo.photo().resize((480, 320))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((40, 40, 183, 95), (44, 100, 160))
    draw.text((48, 48), "Open until ten\nSale and repair", (255, 255, 255))
    return picture


def with_mosaic() -> Image.Image:
    """A photo with 144 blocks of 144 colours, which take more bytes than latents."""
    picture = demo.photo().crop((0, 0, 320, 240))
    picture.paste(noise((12, 12)).resize((96, 96), Image.Resampling.NEAREST), (64, 64))
    return picture


def exact_bytes(data: bytes) -> int:
    """The bytes of a file's EXCT chunk."""
    (found,) = [chunk for chunk in container.read(data) if chunk.type == chunks.EXACT]
    return container.chunk_size(len(found.data))


def assert_same(a: Image.Image, b: Image.Image) -> None:
    assert (a.mode, a.size) == (b.mode, b.size)
    assert a.tobytes() == b.tobytes()


class TestData:
    @pytest.mark.parametrize(
        "blocks",
        [some((0, 0, 13, 9)), some((2, 1, 5, 4)), some((0, 0, 1, 1), (12, 8, 13, 9))],
        ids=["all", "box", "corners"],
    )
    def test_the_pixels_come_back(self, blocks: Blocks) -> None:
        picture = noise()
        regions = Regions(coded(picture, blocks), SIZE)
        shown = Image.new("RGB", SIZE)
        regions.paste(shown, (0, 0, *SIZE))
        expected = Image.new("RGB", SIZE)
        expected.paste(picture, (0, 0), exact.mask(blocks).crop((0, 0, *SIZE)))
        assert_same(shown, expected)
        assert (regions.blocks == blocks).all()
        seen = np.asarray(exact.mask(blocks).crop((0, 0, *SIZE))) > 0
        assert regions.share == pytest.approx(seen.mean())

    def test_what_is_left_to_the_latents(self) -> None:
        regions = Regions(coded(noise(), some((0, 0, 13, 3), (0, 3, 4, 9))), SIZE)
        assert list(regions.rest((0, 0, *SIZE))) == [(32, 24, *SIZE)]
        assert list(regions.rest((0, 0, 30, 60))) == []
        assert list(regions.rest((20, 20, 50, 40))) == [(32, 24, 50, 40)]
        assert list(regions.rest((0, 0, 51, 34), scale=2)) == [(16, 12, 51, 34)]

    def test_parts_that_are_far_apart_are_decoded_alone(self) -> None:
        size = 64, 400
        blocks = np.ones(shape_of(size), np.bool_)
        blocks[2, 1] = blocks[5, 3:6] = blocks[40, 7] = False
        regions = Regions(coded(noise(size), blocks), size)
        assert list(regions.rest((0, 0, *size))) == [(8, 16, 48, 48), (56, 320, 64, 328)]
        assert list(regions.rest((0, 30, 40, 400))) == [(24, 40, 40, 48)]

    def test_latents_show_through_open_pixels(self) -> None:
        picture = noise()
        transparent = Image.new("L", SIZE, 255)
        transparent.paste(0, (50, 30, 70, 61))
        picture.putalpha(transparent)
        blocks = some((2, 1, 8, 8))
        regions = Regions(coded(picture, blocks), SIZE)
        assert (regions.opened == some((6, 3, 8, 8))).all()
        assert list(regions.rest((20, 20, 60, 40))) == [(48, 24, 60, 40)]
        for scale in (1, 2, 4, 8):
            behind = Image.new("RGB", (-(-SIZE[0] // scale), -(-SIZE[1] // scale)), (9, 200, 9))
            shown = behind.copy()
            regions.paste(shown, (0, 0, *shown.size), scale)
            seen = exact.mask(blocks).crop((0, 0, *SIZE))
            expected = np.asarray(Image.composite(picture, Image.new("RGBA", SIZE), seen), float)
            weight = expected[..., 3:] / 255
            within = np.asarray(Image.new("RGB", SIZE, (9, 200, 9)), float)
            whole = Image.fromarray(
                np.rint(expected[..., :3] * weight + within * (1 - weight)).astype(np.uint8)
            )
            difference = np.asarray(shown, float) - np.asarray(whole.reduce(scale))
            assert abs(difference).max() <= (0 if scale == 1 else 2)  # each step rounds

    def test_what_is_neither_opaque_nor_transparent_is_refused(self) -> None:
        picture = noise()
        alpha = Image.new("L", SIZE, 255)
        alpha.putpixel((0, 0), 0)
        alpha.putpixel((50, 50), 128)
        picture.putalpha(alpha)
        regions = Regions(coded(picture, some((0, 0, 13, 9))), SIZE)
        with pytest.raises(OSError, match="neither opaque nor transparent"):
            regions.paste(Image.new("RGB", SIZE), (0, 0, *SIZE))

    def test_a_large_picture_has_parts(self) -> None:
        size = 9000, 1100
        picture = Image.new("RGB", size, (1, 2, 3))
        picture.putpixel((8999, 1099), (9, 9, 9))
        regions = Regions(coded(picture, np.ones(shape_of(size), np.bool_)), size)
        assert len(regions._parts) == 6
        box = 8990, 1090, 9000, 1100
        shown = Image.new("RGB", (10, 10))
        regions.paste(shown, box)
        assert_same(shown, picture.crop(box))

    @pytest.mark.parametrize("is_open", [False, True])
    def test_damage(self, is_open: bool) -> None:
        picture = noise()
        if is_open:
            picture.putalpha(255)
            picture.putpixel((20, 20), (0, 0, 0, 0))
        data = coded(picture, some((2, 1, 5, 4), (7, 7, 9, 9)))
        for end in range(len(data)):
            with pytest.raises(OSError, match="EXCT"):
                Regions(data[:end], SIZE)
        for bad in (data + b"\0", b"\4" + data[1:], exact.AS_BEFORE, b""):
            with pytest.raises(OSError, match="EXCT"):
                Regions(bad, SIZE)
        with pytest.raises(OSError, match="EXCT"):
            Regions(data, (SIZE[0] + 8, SIZE[1]))

    def test_a_size_that_lies_is_refused_before_it_is_decoded(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = bytearray(coded(noise(), some((0, 0, 13, 9))))
        assert data[5] == 0x2F
        struct.pack_into("<I", data, 6, 16383 | 16383 << 14)
        monkeypatch.setattr(Image, "open", None)
        with pytest.raises(OSError, match="VP8L bitstream of 101x67"):
            Regions(bytes(data), SIZE)

    def test_damage_to_a_bitstream(self) -> None:
        """Damage to its codes is an error. Damage to its pixels cannot be noticed."""
        whole = coded(noise(), some((0, 0, 13, 9)))
        chance = random.Random(7)

        def shown(start: int, stop: int) -> Image.Image:
            data = bytearray(whole)
            for _ in range(4):
                data[chance.randrange(start, stop)] ^= chance.randrange(1, 256)
            picture = Image.new("RGB", SIZE)
            Regions(bytes(data), SIZE).paste(picture, (0, 0, *SIZE))
            return picture

        for _ in range(25):
            with pytest.raises(OSError, match="damaged SDZ file: the pixels in chunk EXCT"):
                shown(10, 100)
            assert shown(1000, len(whole)).tobytes() != noise().tobytes()

    def test_frames_build_on_the_frame_before(self) -> None:
        coder = exact.Encoder(3)
        picture, blocks = noise(), some((0, 0, 13, 5))
        picture.putalpha(255)
        picture.putpixel((60, 20), (0, 0, 0, 0))
        frames, regions = [], None
        for number in range(9):
            if number == 5:
                blocks = some((0, 0, 13, 7))
            if number % 2:
                picture = picture.copy()
                picture.putpixel((3, 3), (number, 0, 0, 255))
            frames.append(coder.encode(picture, blocks))
            regions = Regions(frames[-1], SIZE, regions)
            shown = Image.new("RGB", SIZE)
            regions.paste(shown, (0, 0, *SIZE))
            seen = exact.mask(blocks).crop((0, 0, *SIZE))
            expected = Image.new("RGB", SIZE)
            expected.paste(
                picture.convert("RGB"), (0, 0), ImageChops.darker(seen, picture.getchannel("A"))
            )
            assert_same(shown, expected)
            assert regions.opened.sum() == 1
        builds = [exact.builds_on_the_frame_before(data) for data in frames]
        assert builds == [False, True, True, True, False, True, True, True, False]
        assert frames[2] == exact.AS_BEFORE

    def corners(self, count: int) -> list[bytes]:
        """Frames in which only the first and the last block change.

        Yet a bitstream has all pixels.
        """
        ends, everything = some((0, 0, 1, 1), (12, 8, 13, 9)), some((0, 0, 13, 9))
        encoder, frames = exact.Encoder(255), []
        for number in range(count):
            picture = noise()
            shown = noise(seed=number)
            picture.paste(shown, (0, 0), exact.mask(ends).crop((0, 0, *SIZE)))
            frames.append(encoder.encode(picture, everything))
        return frames

    def test_a_row_of_changes_costs_a_few_pictures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """This holds for a row of any length, and for any order of frames."""
        decoded = 0
        decode_one = vp8l.decode

        def counted(bitstream: bytes, size: tuple[int, int], *, has_alpha: bool) -> Image.Image:
            nonlocal decoded
            decoded += size[0] * size[1]
            return decode_one(bitstream, size, has_alpha=has_alpha)

        monkeypatch.setattr(vp8l, "decode", counted)
        frames = self.corners(150)
        begun = [n for n, data in enumerate(frames) if not exact.builds_on_the_frame_before(data)]
        assert begun == [0, exact.MOST_PIXELS, 2 * exact.MOST_PIXELS]
        for last in (exact.MOST_PIXELS - 1, 149):
            regions = None
            for data in frames[: last + 1]:
                regions = Regions(data, SIZE, regions)
            assert regions is not None
            decoded = 0
            picture = Image.new("RGB", SIZE)
            regions.paste(picture, (0, 0, *SIZE))
            assert 0 < decoded <= exact.MOST_PIXELS * SIZE[0] * SIZE[1]
            block = (0, 0, 8, 8)
            assert_same(picture.crop(block), noise(seed=last).crop(block))

    def test_a_longer_row_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(exact, "MOST_PIXELS", 1000)
        frames = self.corners(6)
        monkeypatch.setattr(exact, "MOST_PIXELS", 5)
        regions = None
        for data in frames[:5]:
            regions = Regions(data, SIZE, regions)
        with pytest.raises(OSError, match="chunk EXCT: more pixels in a row of EXCT than 5 times"):
            Regions(frames[5], SIZE, regions)


class TestPictures:
    def test_a_page_is_exact_and_takes_what_lossless_webp_takes(self) -> None:
        picture = page()
        webp = BytesIO()
        picture.save(webp, "WEBP", lossless=True)
        data = encode(picture)
        assert len(data) <= 1.05 * webp.tell() + 200
        with Image.open(BytesIO(data)) as im:
            assert im.info["sdz"]["exact"] == 1
            assert sum(im.info["sdz"]["bytes"].values()) == len(data)
            assert im.info["sdz"]["bytes"]["exact"] > 0.9 * len(data)
            assert_same(im.convert("RGB"), picture)

    def test_no_network_runs_for_a_page(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = encode(page())
        monkeypatch.setattr(models, "load", None)
        assert_same(decode(data).convert("RGB"), page())

    def test_a_page_has_no_latents_to_open(self) -> None:
        with pytest.raises(OSError, match="a frame without latents"):
            open_latents(BytesIO(encode(page())))
        assert open_latents(BytesIO(encode(with_photo()))).model == "mini"

    def test_a_photo_has_none_and_not_a_byte_more(self) -> None:
        data = encode(demo.photo())
        assert data == encode(demo.photo(), regions=False)
        assert decode(data).info["sdz"]["exact"] == 0

    @pytest.mark.parametrize("quality", [20, 75, 95])
    def test_flat_parts_of_a_photo_cost_their_pixels_and_no_latents(self, quality: int) -> None:
        data, without = (
            encode(with_flats(), quality=quality, regions=wanted) for wanted in (True, False)
        )
        assert len(data) == len(without) + exact_bytes(data)
        assert exact_bytes(data) <= regions.MOST_FOR_COLOURED

    def test_words_in_a_photo_cost_less_than_their_latents(self) -> None:
        data, without = (encode(with_label(), regions=wanted) for wanted in (True, False))
        assert exact_bytes(data) > regions.MOST_FOR_COLOURED  # so their latents must pay for them
        assert len(data) < len(without)

    @pytest.mark.parametrize("ground", ["white", "black", (238, 240, 244)])
    @pytest.mark.parametrize("beside", [False, True])
    @pytest.mark.parametrize("quality", [40, 75])
    def test_a_line_of_text_by_a_photo_is_exact(
        self, quality: int, beside: bool, ground: str | tuple[int, int, int]
    ) -> None:
        """Below the photo or beside it, and on any ground."""
        size = (640, 240) if beside else (400, 284)
        picture, left = Image.new("RGB", size, ground), 240 if beside else 0
        picture.paste(demo.photo().resize((400, 240)), (left, 0))
        at, ink = (10, 100 if beside else 252), "white" if ground == "black" else "black"
        ImageDraw.Draw(picture).text(at, "bridge winter island", ink, font_size=18)
        data = encode(picture, quality=quality)
        shown, box = decode(data), (0, 0, 232, 240) if beside else (0, 248, 400, 284)
        off = np.abs(np.asarray(shown.crop(box), float) - np.asarray(picture.crop(box)))
        assert off.max() <= (0 if quality == 75 else 16)
        assert len(data) < 1.05 * len(encode(picture, quality=quality, regions=False))
        frames = encode(picture, quality=quality, save_all=True, append_images=[picture])
        for number in range(2):
            with Image.open(BytesIO(frames)) as animated:
                animated.seek(number)
                assert_same(animated.convert("RGB").crop(box), picture.crop(box))

    def test_a_square_in_a_large_photo(self) -> None:
        """It is a small part of the picture, but as large as an icon."""
        photo = demo.photo().resize((1200, 800), Image.Resampling.BICUBIC)
        ImageDraw.Draw(photo).rectangle((601, 303, 648, 350), (44, 160, 44))
        assert decode(encode(photo, quality=20)).getpixel((625, 327)) == (44, 160, 44)

    @pytest.mark.parametrize("quality", [20, 75])
    def test_squares_in_a_smooth_part_of_a_photo(self, quality: int) -> None:
        """Many pixels around them are repeats."""
        photo = demo.photo().crop((0, 0, 320, 240))
        photo.paste(Image.linear_gradient("L").resize((320, 150)).point(lambda v: 100 + v // 4))
        for x, side in ((23, 42), (150, 48)):
            photo.paste((44, 100, 160), (x, 50, x + side, 50 + side))
        shown = decode(encode(photo, quality=quality))
        assert shown.getpixel((44, 71)) == shown.getpixel((174, 74)) == (44, 100, 160)

    def test_flat_parts_that_cost_too_much_are_latents(self) -> None:
        assert encode(with_mosaic()) == encode(with_mosaic(), regions=False)

    @pytest.mark.parametrize("picture", [with_flats, with_label, with_mosaic, with_photo])
    def test_a_picture_is_encoded_once(
        self, picture: Callable[[], Image.Image], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The autoencoder takes most of the time, so nothing is encoded to see if it pays."""
        sizes = []
        network = models.load(catalogue.DEFAULT)
        of_pixels = type(network).encode

        def noted(self: object, pixels: Any, quality: Any) -> Any:
            sizes.append(pixels.shape)
            return of_pixels(self, pixels, quality)

        monkeypatch.setattr(type(network), "encode", noted)
        image = picture()
        encode(image)
        assert sizes == [(image.height, image.width, 3)]

    @pytest.mark.parametrize("quality", [30, 75])
    @pytest.mark.parametrize("picture", [with_flats, with_label, with_mosaic, with_photo])
    def test_no_pixels_are_coded_twice(
        self, picture: Callable[[], Image.Image], quality: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The bytes that showed that exact blocks pay are those of the file."""
        seen = []
        of_pixels = vp8l.encode

        def noted(pixels: Image.Image, *, fast: bool = False) -> bytes:
            if not fast:
                seen.append((pixels.size, pixels.tobytes()))
            return of_pixels(pixels, fast=fast)

        monkeypatch.setattr(vp8l, "encode", noted)
        encode(picture(), quality=quality)
        assert len(seen) == len(set(seen)) > 0

    def test_strips_do_not_change_where_a_photo_begins(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        picture = graphics.Picture(with_photo())
        blocks = graphics.find(picture)
        assert blocks is not None
        found = []
        for rows in (1024, 128):
            monkeypatch.setattr(graphics, "_ROWS", rows)
            apart = graphics.apart_from_photos(picture, blocks)
            assert apart is not None
            wider, photo = apart
            inside = np.asarray(exact.mask(wider).crop((0, 0, *photo.size))) > 0
            found.append((wider.tobytes(), (inside & (np.asarray(photo) > 0)).tobytes()))
        assert found[0] == found[1]

    def test_a_page_with_a_photo(self) -> None:
        picture = with_photo()
        webp = BytesIO()
        picture.save(webp, "WEBP", lossless=True)
        data = encode(picture)
        assert len(data) < webp.tell()
        shown = decode(data)
        assert 0.6 < shown.info["sdz"]["exact"] < 0.9
        text = 0, 0, 232, 320
        assert_same(shown.crop(text), picture.crop(text))
        difference = np.asarray(shown).astype(int) - np.asarray(picture)
        assert 0 < (difference**2).mean() < 100

    def test_a_photo_costs_nothing_where_it_begins_within_a_block(self) -> None:
        inside, beside = page((480, 320), lines=17), page((480, 320), lines=17)
        photo = demo.photo().resize((200, 150))
        inside.paste(photo, (243, 101))
        beside.paste(photo, (240, 104))
        bytes_of = [decode(encode(im)).info["sdz"]["bytes"]["exact"] for im in (inside, beside)]
        assert bytes_of[0] < 1.15 * bytes_of[1]
        shown = decode(encode(inside))
        around = Image.new("L", inside.size, 255)
        around.paste(0, (242, 100, 444, 252))
        empty = Image.new("RGB", inside.size)
        assert_same(*(Image.composite(im, empty, around) for im in (shown, inside)))

    def test_a_band_without_a_photo_is_not_decoded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        picture = page((160, 900), lines=48)
        photo = demo.photo().resize((64, 48))
        for top in (200, 700):
            picture.paste(photo, (48, top))
        data = encode(picture)
        asked: list[slice] = []
        network = models.load(catalogue.DEFAULT)
        decode_area = type(network).decode

        def noted(self: object, *args: Any, **kw: Any) -> Any:
            asked.append(kw["area"][0])
            return decode_area(self, *args, **kw)

        monkeypatch.setattr(type(network), "decode", noted)
        shown = decode(data)
        assert len(asked) == 2
        assert sum(rows.stop - rows.start for rows in asked) * catalogue.DEFAULT.factor < 200
        assert_same(shown.crop((0, 300, 160, 660)), picture.crop((0, 300, 160, 660)))

    def test_without_regions(self) -> None:
        data = encode(page(), regions=False)
        assert b"EXCT" not in [chunk.type for chunk in container.read(data)]
        with pytest.raises(ValueError, match="regions must be True or False"):
            encode(page(), regions=3)

    @pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
    def test_modes(self, mode: str) -> None:
        picture = page().convert("RGB")
        if mode.endswith("A"):
            picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        picture = picture.quantize() if mode == "P" else picture.convert(mode)
        shown = decode(encode(picture))
        expected = picture.convert(shown.mode)
        if mode.endswith("A"):
            seen = expected.getchannel("A").point([0] + [255] * 255)
            empty = Image.new(shown.mode, shown.size)
            shown, expected = (Image.composite(im, empty, seen) for im in (shown, expected))
        assert_same(shown, expected)

    def test_crop_and_draft(self) -> None:
        picture = with_photo()
        data = encode(picture)
        whole = decode(data)
        with Image.open(BytesIO(data)) as im:
            for box in ((3, 5, 200, 77), (230, 90, 300, 200), (-5, 300, 490, 330)):
                assert_same(im.crop(box), whole.crop(box))
        for scale in (2, 4, 8):
            with Image.open(BytesIO(data)) as im:
                im.draft(None, (480 // scale, 320 // scale))
                box = 0, 0, 224 // scale, 320 // scale
                assert_same(im.crop(box), picture.reduce(scale).crop(box))
                im.load()
                assert_same(im.crop(box), picture.reduce(scale).crop(box))

    @pytest.mark.slow
    def test_target_size(self) -> None:
        for picture, sizes in ((with_photo(), (4000, 12000, 30000)), (page(), (1500, 4000, 20000))):
            for size in sizes:
                data = encode(picture, target_size=size)
                assert len(data) <= size
        assert_same(decode(data).convert("RGB"), page())

    @pytest.mark.parametrize("has_alpha", [False, True])
    def test_a_target_that_holds_all_pixels(self, has_alpha: bool) -> None:
        photo = demo.photo().crop((0, 0, 97, 61))
        if has_alpha:
            photo.putalpha(Image.radial_gradient("L").resize(photo.size))
        data = encode(photo, target_size=20_000)
        assert_same(decode(data), photo)
        assert decode(data).info["sdz"]["quality"] == 100
        assert encode(photo, target_size=len(data)) == data
        assert decode(encode(photo, target_size=len(data) // 2)).info["sdz"]["exact"] == 0

    def test_a_larger_target_is_exact_too(self) -> None:
        """Letters in some colours are copies, so no estimate may say that they are too large."""
        picture, chance = Image.new("RGB", (480, 320), (30, 30, 30)), random.Random(2)
        draw = ImageDraw.Draw(picture)
        colours = (86, 156, 214), (206, 145, 120), (106, 153, 85), (212, 212, 212)
        for y in range(8, 300, 18):
            x = 10.0
            while x < 420:
                word = "".join(chance.choice("abcdefghijklm") for _ in range(chance.randint(3, 9)))
                draw.text((x, y), word, chance.choice(colours))
                x += round(draw.textlength(word)) + 8
        size = len(encode(picture))
        for times in (1, 1.5, 2, 4):
            assert_same(decode(encode(picture, target_size=int(times * size))), picture)
        # Coarser levels take fewer bytes.
        shown = decode(encode(picture, target_size=size - 1))
        assert shown.info["sdz"]["exact"] == 1
        assert np.abs(np.asarray(shown, np.int16) - np.asarray(picture)).max() <= 8

    def test_letters_have_few_colours_before_they_are_latents(self) -> None:
        soft = page((480, 320), lines=17).filter(ImageFilter.GaussianBlur(0.6))
        size = len(encode(soft))
        errors = []
        for part in (1, 0.9, 0.7, 0.5):
            shown = decode(encode(soft, target_size=int(part * size)))
            assert shown.info["sdz"]["exact"] == 1
            errors.append(np.square(np.asarray(shown, np.float64) - np.asarray(soft)).mean())
        assert errors == sorted(errors)
        assert errors[-1] < 0.08 * np.var(np.asarray(soft))

    def test_a_target_for_a_logo_with_alpha(self) -> None:
        """Its colours and alpha together take less than they take alone."""
        large, chance = Image.new("RGBA", (640, 480)), random.Random(0)
        draw = ImageDraw.Draw(large)
        for _ in range(6):
            x, y, side = chance.randrange(480), chance.randrange(360), chance.randrange(60, 300)
            colour = tuple(chance.randrange(256) for _ in range(3))
            draw.ellipse((x, y, x + side, y + side), (*colour, 255))
        draw.text((20, 200), "Brand", (20, 20, 20, 255), font_size=140)
        picture = large.resize((160, 120), Image.Resampling.LANCZOS)
        data = encode(picture)
        assert decode(data).info["sdz"]["exact"] == 1
        assert decode(encode(picture, target_size=len(data))).info["sdz"]["exact"] == 1

    def test_a_photo_on_a_flat_ground_stays_a_photo_at_high_qualities(self) -> None:
        photo = demo.photo().resize((320, 240))
        shape = Image.new("L", photo.size)
        ImageDraw.Draw(shape).ellipse((70, 30, 250, 210), 255)
        cut_out = Image.composite(photo, Image.new("RGB", photo.size, (0, 177, 64)), shape)
        sizes = [len(encode(cut_out, quality=quality)) for quality in (90, 95, 100)]
        assert sizes == sorted(sizes)
        assert sizes[-1] < 1.5 * sizes[0]

    @pytest.mark.parametrize("quality", [5, 8, 12])
    def test_a_photo_that_was_a_jpeg_of_very_low_quality(self, quality: int) -> None:
        file = BytesIO()
        demo.photo().resize((480, 320)).save(file, "JPEG", quality=quality)
        jpeg = Image.open(file).convert("RGB")
        assert encode(jpeg) == encode(jpeg, regions=False)

    @pytest.mark.parametrize("quality", [40, 60, 75])
    def test_things_without_letters_cost_no_more_than_latents(self, quality: int) -> None:
        """A bright door in a dark photo that was a JPEG has repeats, and edges of two levels."""
        photo = demo.photo().resize((320, 400)).point(lambda v: v // 4)
        door = Image.linear_gradient("L").resize((160, 360)).point(lambda v: 190 + v // 8)
        photo.paste(door.convert("RGB"), (80, 20))
        ImageDraw.Draw(photo).line((80, 160, 240, 160), (60, 50, 40), 3)
        levels = np.asarray(photo.filter(ImageFilter.GaussianBlur(0.6)), np.float64)
        noisy = levels + np.random.default_rng(1).normal(0, 1.2, levels.shape)
        file = BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
        jpeg = Image.open(file).convert("RGB")
        assert len(encode(jpeg)) < 1.5 * len(encode(jpeg, regions=False))

    def test_few_pixels_that_are_not_exact(self) -> None:
        """Then exact pixels are tried, whatever the estimate of their bytes says."""
        every = np.ones(shape_of(page().size), np.bool_)
        most = container.chunk_size(len(exact.coded(page(), every).data))
        known = every.copy()
        known[:4, :4] = False
        assert regions.whole(page(), most) is None  # repeats make the estimate too high
        assert regions.whole(page(), most, known) is not None

    def test_fewer_colours_at_low_quality(self) -> None:
        low, high = (encode(page(), quality=quality) for quality in (25, 75))
        assert len(low) < len(high)
        difference = np.asarray(decode(low)).astype(int) - np.asarray(page())
        assert abs(difference).mean() < 8

    def test_an_animation(self) -> None:
        frames = [with_photo() for _ in range(4)]
        for number, frame in enumerate(frames[1:], 1):
            ImageDraw.Draw(frame).text((20, 300), f"step {number}", (200, 0, 0))
        file = BytesIO()
        frames[0].save(file, "SDZ", save_all=True, append_images=frames[1:], duration=100)
        found = [len(c.data) for c in container.read(file.getvalue()) if c.type == chunks.EXACT]
        assert len(found) == 4
        assert max(found[1:]) < found[0] / 5
        text = 0, 0, 232, 320
        with Image.open(file) as im:
            for number, frame in enumerate(ImageSequence.Iterator(im)):
                assert_same(frame.convert("RGB").crop(text), frames[number].crop(text))
            for number in (3, 0, 2):
                im.seek(number)
                assert_same(im.convert("RGB").crop(text), frames[number].crop(text))

    def test_damaged_regions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = replaced(encode(with_photo()), chunks.EXACT, b"\0")
        with pytest.raises(OSError, match="EXCT"):
            decode(data)
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        with pytest.warns(UserWarning, match="text and other graphics are lost"):
            decode(data)

    def test_where_the_chunk_may_stand(self) -> None:
        file = container.read(encode(with_photo()))
        (at,) = [n for n, chunk in enumerate(file) if chunk.type == chunks.EXACT]
        regions = file.pop(at)
        for place, complaint in (
            (at + 1, "EXCT after the last frame"),
            (at, None),
        ):
            moved = [*file[:place], regions, *file[place:]]
            if complaint is None:
                decode(framed(moved))
            else:
                with pytest.raises(OSError, match=complaint):
                    decode(framed(moved))
        with pytest.raises(OSError, match="second EXCT"):
            decode(framed([*file[:at], regions, regions, *file[at:]]))


class TestScans:
    def test_letters_on_noisy_paper_are_a_scan(self) -> None:
        assert scans.is_scan(scan())
        assert scans.is_scan(scan((317, 251)))

    def test_photos_are_none(self) -> None:
        assert not scans.is_scan(demo.photo())
        assert not scans.is_scan(noise())
        # Bright paper without letters, and dark letters on all of the paper's levels.
        paper = np.clip(np.random.default_rng(2).normal(240, 2, (200, 300, 3)), 0, 255)
        assert not scans.is_scan(Image.fromarray(paper.astype(np.uint8)))
        product = Image.new("RGB", (480, 480), (250, 250, 250))
        product.paste(demo.photo().resize((240, 240)), (120, 120))
        assert not scans.is_scan(product)

    def test_a_scan_is_kept_better_than_a_photo_would_be(self) -> None:
        def difference(**options: Any) -> float:
            shown = decode(encode(scan(), quality=60, **options))
            return float(np.abs(np.asarray(shown, float) - np.asarray(scan(), float)).mean())

        assert difference() < 0.8 * difference(regions=False)

    @pytest.mark.parametrize("quality", [70, 74, 75, 95, 100])
    def test_from_quality_70_on_only_levels_are_coarser(self, quality: int) -> None:
        step, of_colour = coarse.apart_at(quality)
        shown = decode(encode(scan(), quality=quality))
        assert shown.info["sdz"]["exact"] == 1
        off = np.asarray(shown, float) - np.asarray(scan(), float)
        assert abs(off).max() <= step / 2 + of_colour + 1
        luma = off @ [0.299, 0.587, 0.114]
        assert abs(luma).max() <= step / 2 + 0.5 + 1e-9  # half a level more from rounding
        assert abs(off.mean((0, 1))).max() <= 2

    def test_dark_paper_is_paper(self) -> None:
        dark = ImageOps.invert(scan())
        assert scans.is_scan(dark)
        shown = decode(encode(dark))
        assert shown.info["sdz"]["exact"] == 1
        assert abs(np.asarray(shown, float) - np.asarray(dark, float)).max() <= 9
        assert not scans.is_scan(ImageOps.invert(demo.photo()))

    @pytest.mark.parametrize("colour", [(0, 0, 0), (30, 60, 140)])
    @pytest.mark.parametrize("box", [(0, 210, 320, 256), (16, 180, 304, 240)])
    def test_bars_and_boxes_are_exact(
        self, colour: tuple[int, int, int], box: tuple[int, int, int, int]
    ) -> None:
        barred = scan()
        barred.paste(colour, box)
        shown = decode(encode(barred, quality=75))
        assert shown.info["sdz"]["exact"] == 1
        assert abs(np.asarray(shown, float) - np.asarray(barred, float)).max() <= 9
        assert abs(np.array(colour) - np.asarray(shown.crop(box), float)).max() <= 9

    def test_blank_blocks_of_a_jpeg_stay_exact(self) -> None:
        file = BytesIO()
        page().point(lambda v: min(v, 246)).save(file, "JPEG", quality=75)
        jpeg = Image.open(file).convert("RGB")
        blocks = graphics.find(graphics.Picture(jpeg))
        assert blocks is not None
        assert 0 < blocks.mean() < 0.9
        assert scans.is_scan(jpeg, blocks)
        shown = decode(encode(jpeg))
        assert shown.info["sdz"]["exact"] == 1
        same = (np.asarray(shown) == np.asarray(jpeg)).all(2)
        assert same[np.asarray(exact.mask(blocks).crop((0, 0, *jpeg.size))) > 0].all()

    def test_one_frame_is_no_animation(self) -> None:
        assert encode(scan(), save_all=True) == encode(scan())

    @pytest.mark.parametrize("quality", [70, 75, 95])
    def test_coloured_boxes_keep_their_colours(self, quality: int) -> None:
        colours = [(44, 160, 44), (255, 127, 14), (250, 240, 190), (220, 235, 250)]
        boxed = page()
        for n, colour in enumerate(colours):
            boxed.paste(colour, (16 + 70 * n, 180, 80 + 70 * n, 228))
        chance = np.random.default_rng(4)
        noisy = np.asarray(boxed, float) + chance.normal(0, 1, (240, 320, 3))
        picture = Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
        assert scans.is_scan(picture)
        shown = decode(encode(picture, quality=quality))
        assert shown.info["sdz"]["exact"] == 1
        off = np.asarray(shown, float) - np.asarray(picture, float)
        for n in range(len(colours)):
            assert abs(off[184:224, 20 + 70 * n : 76 + 70 * n].mean((0, 1))).max() <= 2

    @pytest.mark.parametrize("dark", [False, True])
    def test_shades_are_no_letters(self, dark: bool) -> None:
        """A photo with much bright or dark ground: all contrasts are beside it."""
        levels = np.full((256, 320, 3), 240.0)
        rows, columns = np.mgrid[:64, :64]
        blob = 200 * np.clip(1.2 - np.hypot(rows - 32, columns - 32) / 32, 0, 1)[..., None]
        for top, left in ((10, 20), (10, 180), (150, 60), (150, 220)):
            levels[top : top + 64, left : left + 64] -= blob
        levels += np.random.default_rng(5).normal(0, 2, levels.shape)
        picture = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
        assert not scans.is_scan(ImageOps.invert(picture) if dark else picture)

    def test_a_target_size_is_met_by_coarser_levels(self) -> None:
        size = len(encode(scan(), quality=75))
        shown = decode(encode(scan(), target_size=size + 10))
        assert shown.info["sdz"]["exact"] == 1
        assert shown.info["sdz"]["quality"] == 75

    def test_letters_that_are_exact_do_not_make_a_scan(self) -> None:
        """A page with a photo keeps its photo as latents."""
        picture = with_photo()
        assert not scans.is_scan(picture, graphics.find(graphics.Picture(picture)))

    def test_few_letters_are_kept_if_they_take_few_bytes(self) -> None:
        slide = Image.new("RGB", (480, 360), (250, 250, 245))
        draw = ImageDraw.Draw(slide)
        draw.text((60, 50), "Results of the year", (20, 20, 60), font_size=30)
        draw.line((60, 300, 200, 180, 320, 240, 420, 110), (31, 119, 180), 4)
        file = BytesIO()
        slide.save(file, "JPEG", quality=85)
        jpeg = Image.open(file).convert("RGB")
        shown = decode(encode(jpeg))
        assert shown.info["sdz"]["exact"] == 1
        assert abs(np.asarray(shown, float) - np.asarray(jpeg, float)).max() <= 9

    @pytest.mark.parametrize("dark", [False, True])
    def test_a_jpeg_of_a_slide_is_pixels(self, dark: bool) -> None:
        """Its title bar and its paper are exact anyway, and latents ruin its letters."""
        slide = Image.new("RGB", (480, 360), (250, 250, 245))
        draw = ImageDraw.Draw(slide)
        draw.rectangle((0, 0, 480, 60), (20, 60, 120))
        draw.text((20, 16), "Plan for the spring", (255, 255, 255), font_size=26)
        for row in range(5):
            draw.text(
                (40, 90 + 44 * row), "lamp and ships, ships and lamp", (40, 40, 50), font_size=18
            )
        file, webp = BytesIO(), BytesIO()
        (ImageOps.invert(slide) if dark else slide).save(file, "JPEG", quality=85)
        jpeg = Image.open(file).convert("RGB")
        jpeg.save(webp, "WEBP", lossless=True)
        shown = decode(encode(jpeg))
        assert shown.info["sdz"]["exact"] == 1
        assert len(encode(jpeg)) <= webp.tell()
        assert abs(np.asarray(shown, float) - np.asarray(jpeg, float)).max() <= 9

    def test_a_scan_with_a_photo_in_it_is_pixels(self) -> None:
        """Letters are worth more bytes, and beside them the photo takes few."""
        page = scan(noise=1)
        page.paste(demo.photo().resize((120, 80)), (180, 140))
        assert not scans.is_scan(page)
        assert decode(encode(page)).info["sdz"]["exact"] == 1
        assert decode(encode(page, quality=30)).info["sdz"]["exact"] == 0

    @pytest.mark.parametrize(("picture", "expected"), [(scan(), True), (demo.photo(), False)])
    def test_two_levels(self, picture: Image.Image, *, expected: bool) -> None:
        """Letters on a ground have two levels, and photos have shades."""
        every = np.ones(shape_of(picture.size), np.bool_)
        found = scans.letters(picture)
        assert scans.has_letters(graphics.Picture(picture), found, every) == expected

    def test_strokes(self) -> None:
        """Letters and lines have two edges, and things have one."""
        picture = Image.new("RGB", (64, 64), "white")
        draw = ImageDraw.Draw(picture)
        draw.line((4, 0, 4, 31), "black", 2)
        draw.polygon([(32, 32), (64, 32), (64, 64)], "black")
        found = scans.letters(picture)
        assert found.two_levels.sum() == 8  # the line, and the slope
        np.testing.assert_array_equal(np.argwhere(found.strokes), [(row, 0) for row in range(4)])

    @pytest.mark.parametrize(("apart", "width"), [(90, 50), (50, 26)])
    def test_things_on_a_ground_are_no_page(self, apart: int, width: int) -> None:
        """Their edges have two levels, but they are no strokes, and pixels take too many bytes."""
        large = Image.new("RGB", (960, 720), (246, 245, 243))
        draw = ImageDraw.Draw(large)
        for x in range(40, 900, apart):
            shape = (x, 60), (x + width, 80), (x + width + 30, 640), (x + 30, 660)
            draw.polygon(shape, (40 + x // 8, 60, 90))
        things = large.resize((320, 240), Image.Resampling.LANCZOS)
        grain = np.random.default_rng(4).normal(0, 2, (240, 320, 3))
        photo = Image.fromarray((np.asarray(things) + grain).clip(0, 255).astype(np.uint8))
        assert len(encode(photo)) < 1.3 * len(encode(photo, regions=False))

    @pytest.mark.parametrize("quality", [30, 50])
    def test_a_jpeg_of_a_table_is_pixels_at_low_qualities(self, quality: int) -> None:
        """Latents ruin its letters. The colours of its rows are at most two levels off."""
        table = page()
        table.paste((228, 236, 246), (0, 160, 320, 240))
        table.paste((60, 90, 140), (0, 200, 320, 240))
        ImageDraw.Draw(table).text((8, 210), "the sum of all rows", (255, 255, 255))
        file = BytesIO()
        table.save(file, "JPEG", quality=95)
        jpeg = Image.open(file).convert("RGB")
        shown = decode(encode(jpeg, quality=quality))
        assert shown.info["sdz"]["exact"] == 1
        off = np.abs(np.asarray(shown, float) - np.asarray(jpeg, float))
        for top in (168, 232):
            assert off[top : top + 8, 160:312].mean((0, 1)).max() <= 2

    def test_at_low_qualities_it_is_latents(self) -> None:
        assert decode(encode(scan(), quality=50)).info["sdz"]["exact"] == 0

    def test_from_quality_60_on_it_is_pixels_if_they_take_fewer_bytes(self) -> None:
        sizes = [len(encode(scan(), quality=quality)) for quality in (60, 69, 70)]
        assert sizes == sorted(sizes)
        assert decode(encode(scan(), quality=69)).info["sdz"]["exact"] == 1

    def test_flat_paper_keeps_its_colour(self) -> None:
        """A page that was saved as JPEG has noise near letters alone."""
        file = BytesIO()
        text = page().point(lambda v: min(v, 246))
        text.save(file, "JPEG", quality=85)
        jpeg = Image.open(file).convert("RGB")
        assert scans.is_scan(jpeg)
        levels, shown = np.asarray(jpeg), np.asarray(coarse.coarser(jpeg, coarse.Apart(4, 16)))
        paper = (levels == (246, 246, 244)).all(2)
        parts = paper.reshape(30, 8, 40, 8).mean((1, 3))
        paper &= (parts > 0.5).repeat(8, 0).repeat(8, 1)  # most of the block
        assert paper.mean() > 0.3
        assert (shown[paper] == levels[paper]).all()

    def test_a_grey_scan_stays_grey(self) -> None:
        shown = decode(encode(scan().convert("L").convert("RGB")))
        red, green, blue = shown.split()
        assert red.tobytes() == green.tobytes() == blue.tobytes()

    def test_pixels_that_nobody_sees_do_not_travel(self) -> None:
        picture = scan().convert("RGBA")
        picture.paste((255, 0, 0, 0), (0, 0, 320, 40))
        shown = decode(encode(picture))
        assert shown.info["sdz"]["exact"] == 1
        colours = shown.convert("RGB").crop((0, 0, 320, 40)).getcolors(1 << 24) or []
        assert all(red < 2 * green + 100 for _, (red, green, _) in colours)

    def test_a_higher_quality_takes_more_bytes(self) -> None:
        sizes = [len(encode(scan(), quality=quality)) for quality in (30, 60, 75, 90, 100)]
        assert sizes == sorted(sizes)

    def test_a_size_holds_for_a_scan(self) -> None:
        assert len(encode(scan(), target_size=4000)) <= 4000


class TestGrey:
    def test_a_grey_photo_of_mode_rgb_comes_back_grey(self) -> None:
        picture = demo.photo().convert("L").convert("RGB")
        for quality in (20, 75):
            red, green, blue = decode(encode(picture, quality=quality)).split()
            assert red.tobytes() == green.tobytes() == blue.tobytes()

    @pytest.mark.parametrize("quality", [20, 75])
    def test_a_grey_photo_with_a_red_pixel(self, quality: int) -> None:
        """It is still a photo, and it is not tinted."""
        picture = demo.photo().crop((0, 0, 256, 192)).convert("L").convert("RGB")
        grey = len(encode(picture, quality=quality))
        picture.putpixel((100, 90), (255, 0, 0))
        data = encode(picture, quality=quality)
        assert len(data) < 1.1 * grey
        shown = np.asarray(decode(data)).astype(float)
        assert abs(shown[..., 0] - shown[..., 1]).mean() < 2

    @pytest.mark.parametrize("toned", ["sepia", "stamped"])
    def test_a_toned_photo_is_a_photo(self, toned: str) -> None:
        """It has at most 257 colours, but its pixels would take many bytes."""
        picture = demo.photo().crop((100, 100, 356, 292)).convert("L")
        if toned == "sepia":
            picture = ImageOps.colorize(picture, (20, 10, 0), (255, 240, 210))
        else:
            picture = picture.convert("RGB")
            picture.paste((200, 0, 0), (100, 100, 130, 130))
        assert drawn.is_toned(picture)
        assert encode(picture) == encode(picture, regions=False)

    def test_a_dithered_photo_has_no_tone(self) -> None:
        dithered = demo.photo().convert("L").quantize(4, dither=Image.Dither.FLOYDSTEINBERG)
        assert not drawn.is_toned(dithered.convert("RGB"))

    def test_a_photo_in_colour_says_nothing(self) -> None:
        assert chunks.GREY.type not in [c.type for c in container.read(encode(demo.photo()))]


class TestFlats:
    @pytest.mark.parametrize("quality", [20, 50, 75, 95])
    def test_flat_colours_keep_their_mean(self, quality: int) -> None:
        chance = random.Random(quality)
        picture = Image.new("RGB", (192, 128))
        for n in range(6):
            colour = tuple(chance.choice([0, 44, 160, 255]) for _ in range(3))
            picture.paste(
                colour, (64 * (n % 3), 64 * (n // 3), 64 * (n % 3 + 1), 64 * (n // 3 + 1))
            )
        shown = np.asarray(decode(encode(picture, quality=quality))).astype(float)
        wanted = np.asarray(picture).astype(float)
        for n in range(6):
            area = slice(64 * (n // 3), 64 * (n // 3 + 1)), slice(64 * (n % 3), 64 * (n % 3 + 1))
            assert abs(shown[area].mean((0, 1)) - wanted[area].mean((0, 1))).max() <= 2

    @pytest.mark.parametrize("quality", [20, 75])
    @pytest.mark.parametrize("grey", [False, True])
    def test_flat_colours_in_a_photo_keep_their_mean(self, quality: int, grey: bool) -> None:
        chance = random.Random(grey)
        picture = demo.photo().crop((0, 0, 320, 240))
        boxes = [(x, y, x + 52, y + 44) for x, y in ((19, 21), (141, 33), (60, 150), (250, 180))]
        for box in boxes:
            level = chance.randrange(10, 246)
            colour = tuple(level if grey else chance.choice([0, 44, 160, 255]) for _ in range(3))
            picture.paste(colour, box)
        shown = decode(encode(picture, quality=quality))
        for box in boxes:
            mean, wanted = (np.asarray(im.crop(box)).mean((0, 1)) for im in (shown, picture))
            assert abs(mean - wanted).max() <= 2


class TestDrawings:
    """Graphics with few repeats, which have few colours instead."""

    @pytest.mark.parametrize("ink", [(0, 0, 0), (160, 30, 90)])
    def test_a_page_at_half_its_size(self, ink: tuple[int, int, int]) -> None:
        """Resizing leaves shades around all letters."""
        large = Image.new("RGB", (960, 640), (255, 255, 255))
        draw, chance = ImageDraw.Draw(large), random.Random(7)
        for y in range(10, 620, 32):
            text = "".join(chance.choice("abcdefgh ijklmnop") for _ in range(70))
            draw.text((16, y), text, ink, font_size=24)
        small = large.resize((480, 320), Image.Resampling.LANCZOS)
        data, webp = encode(small), BytesIO()
        small.save(webp, "WEBP", lossless=True)
        assert len(data) <= 1.05 * webp.tell() + 200
        assert_same(decode(data), small)

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_lines_of_many_colours_at_a_third_of_their_size(self, seed: int) -> None:
        chance = random.Random(seed)
        large = Image.new("RGB", (1200, 900), (250, 248, 240))
        draw = ImageDraw.Draw(large)
        for _ in range(40):
            ends = [(chance.randrange(1200), chance.randrange(900)) for _ in range(2)]
            draw.line(ends, tuple(chance.randrange(256) for _ in range(3)), chance.randint(2, 9))
        small = large.resize((400, 300), Image.Resampling.LANCZOS)
        data, webp = encode(small), BytesIO()
        small.save(webp, "WEBP", lossless=True)
        # Coarser levels take fewer bytes.  Nobody sees them: SSIMULACRA2 is 94.
        assert len(data) <= 0.7 * webp.tell()
        assert np.abs(np.asarray(decode(data), float) - np.asarray(small, float)).max() <= 9

    def test_patterns_of_single_pixels(self) -> None:
        chess = Image.fromarray(((np.indices((96, 128)).sum(0) % 2) * 255).astype(np.uint8))
        dithered = demo.photo().resize((320, 240)).convert("1")
        for picture in (chess, dithered):
            shown = decode(encode(picture))
            assert shown.tobytes() == picture.convert("L").tobytes()
        assert len(encode(chess)) < 200

    def test_letters_whose_shapes_are_in_alpha_take_few_bytes(self) -> None:
        """The colours are those of WebP, which also leaves out what nobody sees."""
        picture = Image.new("RGBA", (320, 200), (9, 99, 199, 0))
        draw = ImageDraw.Draw(picture)
        for line in range(8):
            draw.text((9, 4 + 24 * line), "shapes in alpha " * 3, (30 * line, 40, 90), font_size=16)
        data = encode(picture)
        assert exact_bytes(data) < 400
        shown = decode(data)
        seen = np.asarray(picture)[..., 3] > 0
        assert (np.asarray(shown)[seen] == np.asarray(picture)[seen]).all()
        assert shown.getchannel("A").tobytes() == picture.getchannel("A").tobytes()
        for place in ((0, 0, 320, 200), (0, 0, 160, 100)):
            assert shown.convert("RGB").crop(place).getchannel("B").getextrema()[1] <= 90
        nobody = decode(encode(Image.new("RGBA", (64, 64), (255, 0, 0, 0))))
        assert nobody.getextrema()[0] == (0, 0)

    @pytest.mark.parametrize("grey", [False, True])
    def test_photos_are_none(self, grey: bool) -> None:
        photo = demo.photo().convert("L" if grey else "RGB").convert("RGB")
        assert regions.found(photo, None, 75) is None

    def test_a_soft_photo_with_few_colours_is_not_tried(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It has noise and no contrast. To encode its pixels would take half of all time."""
        noise = np.random.default_rng(0).integers(0, 3, (256, 256))
        levels = np.linspace(90, 140, 256)[:, None] + noise
        soft = np.stack([levels, levels - 40, levels - 60], -1).astype(np.uint8)
        monkeypatch.setattr(exact, "coded", None)
        assert regions.found(Image.fromarray(soft), None, 75) is None

    def test_a_photo_in_a_grey_page_is_none(self) -> None:
        picture = with_photo().convert("L")
        for quality in (50, 75):
            shown = decode(encode(picture, quality=quality))
            assert 0.3 < shown.info["sdz"]["exact"] < 0.95

    @pytest.mark.parametrize("is_logo", [False, True])
    def test_discs_that_lie_on_each_other(self, is_logo: bool) -> None:
        """Half transparent points of a chart, or a logo with gradients, have few repeats."""
        chance, size = random.Random(8), (640, 640)
        large = Image.new("RGB", size, (250, 250, 250))
        for _ in range(4 if is_logo else 150):
            radius = 120 if is_logo else chance.randrange(12, 30)
            x, y = (chance.randrange(radius, 640 - radius) for _ in range(2))
            ink = Image.new("L", size)
            ImageDraw.Draw(ink).ellipse(
                (x - radius, y - radius, x + radius, y + radius), 255 if is_logo else 150
            )
            colour = tuple(chance.randrange(256) for _ in range(3))
            paint = Image.new("RGB", size, colour)
            if is_logo:
                paint = Image.composite(paint, large, Image.linear_gradient("L").resize(size))
            large.paste(paint, (0, 0), ink)
        picture, webp = large.resize((320, 320), Image.Resampling.LANCZOS), BytesIO()
        picture.save(webp, "WEBP", lossless=True)
        data = encode(picture)
        assert_same(decode(data), picture)
        assert len(data) <= 1.05 * webp.tell() + 200

    @pytest.mark.parametrize("quality", [20, 75])
    def test_small_ramps(self, quality: int) -> None:
        """Latents of so few pixels take as many bytes as the pixels."""
        levels = np.linspace(20, 230, 300).round().astype(np.uint8)
        for picture in (Image.fromarray(levels[:, None]), Image.fromarray(levels[None])):
            data = encode(picture.convert("RGB"), quality=quality)
            assert_same(decode(data), picture.convert("RGB"))
            assert len(data) < 170

    @pytest.mark.parametrize("side", range(14, 34, 2))
    def test_icons(self, side: int) -> None:
        icon = Image.new("RGB", (side, side), "white")
        draw = ImageDraw.Draw(icon)
        draw.ellipse((1, 1, side - 2, side - 2), "#d93025")
        draw.line(
            (side // 4, side // 2, side // 2, side * 3 // 4, side * 3 // 4, side // 4), "white", 2
        )
        data = encode(icon)
        assert_same(decode(data), icon)
        assert len(data) < 220

    @pytest.mark.parametrize("quality", [20, 50, 75])
    @pytest.mark.parametrize("side", [24, 32, 64, 128])
    def test_icons_at_every_quality(self, side: int, quality: int) -> None:
        """Shades are around all of its edges, and few of its pixels are flat."""
        large = Image.new("RGB", (640, 640), "#0b3d91")
        draw = ImageDraw.Draw(large)
        draw.ellipse((120, 120, 520, 520), "#ffcc00")
        draw.polygon([(320, 180), (470, 460), (170, 460)], "#c8102e")
        icon = large.resize((side, side), Image.Resampling.LANCZOS)
        data = encode(icon, quality=quality)
        assert len(data) < regions.BYTES_OF_ICON * side
        shown = decode(data)
        assert shown.info["sdz"]["exact"] == 1
        if quality >= regions.EXACT_FROM:
            assert_same(shown, icon)
        for left, top in ((0, 0), (side // 2 - 2, side // 2)):  # the ground, and the triangle
            box = left, top, left + side // 8, top + side // 8
            means = [np.asarray(each.crop(box)).mean((0, 1)) for each in (icon, shown)]
            assert abs(means[0] - means[1]).max() <= 2

    @pytest.mark.parametrize("quality", [20, 75])
    def test_a_jpeg_of_an_icon_is_not_ruined(self, quality: int) -> None:
        """Its pixels look like those of a photo, but they are few."""
        icon = Image.new("RGB", (16, 16), "#e8502a")
        ImageDraw.Draw(icon).text((4, 2), "R", "white")
        file = BytesIO()
        icon.save(file, "JPEG", quality=90)
        jpeg = Image.open(file)
        shown = decode(encode(jpeg, quality=quality))
        off = abs(np.asarray(shown).astype(int) - np.asarray(jpeg))
        assert off.mean() < 2

    @pytest.mark.parametrize("size", [(1, 1), (7, 3), (8, 8), (40, 1), (24, 24)])
    @pytest.mark.parametrize("quality", [20, 75])
    def test_small_pictures_of_one_colour(self, size: tuple[int, int], quality: int) -> None:
        picture = Image.new("RGB", size, (200, 30, 90))
        data = encode(picture, quality=quality)
        assert_same(decode(data), picture)
        assert len(data) < 100


def test_a_page_keeps_its_paper_where_it_has_fewer_colours() -> None:
    """At a low quality the shades of letters may change, but the paper may not."""
    page = Image.new("RGB", (320, 200), (255, 255, 255))
    draw = ImageDraw.Draw(page)
    for y in range(8, 190, 14):
        draw.text((8, y), "the paper of a page is as white as before " * 2, (20, 20, 25))
    page = page.filter(ImageFilter.GaussianBlur(0.5))
    simpler = fewer.best(page, np.ones((25, 40), np.bool_), WORTH_AT_30, math.inf).colours
    assert len(simpler.getcolors(10000)) < len(page.getcolors(1000))
    assert simpler.getpixel((1, 1)) == (255, 255, 255)


def test_flat_colours_change_less_than_edges_at_low_quality() -> None:
    """A chart's points have many colours, and a viewer compares them."""
    chance = random.Random(3)
    colours = [tuple(chance.randrange(40, 216) for _ in range(3)) for _ in range(60)]
    chart = Image.new("RGB", (800, 600), (255, 255, 255))
    draw = ImageDraw.Draw(chart)
    boxes = [(x, y, x + 24, y + 24) for y in range(0, 600, 40) for x in range(0, 800, 40)]
    for box in boxes:
        draw.ellipse(box, chance.choice(colours))
    chart = chart.resize((400, 300), Image.Resampling.BOX)
    every = np.ones(shape_of(chart.size), np.bool_)
    simpler = fewer.best(chart, every, WORTH_AT_30, math.inf).colours
    assert len(simpler.getcolors(10000)) < len(chart.getcolors(10000))
    off = abs(np.asarray(simpler).astype(int) - np.asarray(chart)).max(2)
    middles = [off[y // 2 + 6, x // 2 + 6] for x, y, _, _ in boxes]
    assert np.mean(middles) < 1


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1)])
@pytest.mark.parametrize("quality", [30, 75])
def test_small_pictures_that_exact_pixels_make_smaller(size: tuple[int, int], quality: int) -> None:
    """A gradient of few pixels looks like a photo, but exact pixels take fewer bytes."""
    gradient = Image.linear_gradient("L")
    upright = gradient if size[1] >= size[0] else gradient.rotate(90)
    picture = upright.resize(size).convert("RGB")
    data = encode(picture, quality=quality)
    assert len(data) < len(encode(picture, quality=quality, regions=False))
    np.testing.assert_array_equal(np.asarray(decode(data)), np.asarray(picture))
