"""Alpha channels in a file: alone, or with the pixels of a picture that is exact as a whole."""

from __future__ import annotations

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFile

from pillow_sdz import alpha, chunks, container, demo, exact
from pillow_sdz.exact import Regions
from sdz_files import decode, encode, replaced

SIZE = (101, 67)


def levels(size: tuple[int, int] = SIZE, seed: int = 0) -> Image.Image:
    """Noise of the levels 0 to 255."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size[::-1], np.uint8))


def noise(size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.merge("RGBA", [levels(size, seed) for seed in range(4)])


def icon(side: int = 128) -> Image.Image:
    """Overlapping discs with soft edges, on a transparent ground."""
    picture = Image.new("RGBA", (4 * side, 4 * side))
    draw = ImageDraw.Draw(picture)
    for number in range(6):
        at = side * number // 3
        box = at, side * (number % 3), at + 2 * side, side * (number % 3) + 2 * side
        draw.ellipse(box, fill=(40 * number, 200 - 30 * number, 90, 255))
    return picture.resize((side, side), Image.Resampling.LANCZOS)


def lossless_webp(picture: Image.Image) -> int:
    file = BytesIO()
    picture.save(file, "WEBP", lossless=True)
    return len(file.getvalue())


def method(data: bytes, type: bytes) -> int:
    """The first byte of a file's only chunk of a type."""
    (found,) = [chunk.data for chunk in container.read(data) if chunk.type == type]
    return found[0]


def assert_looks_same(shown: Image.Image, expected: Image.Image) -> None:
    """Colours count only where they are visible."""
    assert (shown.mode, shown.size) == (expected.mode, expected.size)
    found, right = np.array(shown), np.array(expected)
    for pixels in (found, right):
        pixels[pixels[..., -1] == 0] = 0
    assert (found == right).all()


class TestAlone:
    @pytest.mark.parametrize("size", [(1, 1), SIZE, (9000, 600)])
    def test_the_levels_come_back(self, size: tuple[int, int]) -> None:
        """A picture of 5.4 megapixels has four parts."""
        coded = alpha.encode(levels(size))
        assert alpha.decode(coded, size).tobytes() == levels(size).tobytes()

    def test_it_takes_fewer_bytes_than_a_png(self) -> None:
        soft = icon().getchannel("A")
        assert len(alpha.encode(soft)) < 0.9 * len(alpha.png(soft))

    def test_without_webp_it_is_a_png(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pillow_sdz.vp8l.is_available", lambda: False)
        coded = alpha.encode(levels())
        assert coded == alpha.png(levels())
        assert alpha.decode(coded, SIZE).tobytes() == levels().tobytes()

    def test_every_cut_is_refused(self) -> None:
        coded = alpha.encode(levels((20, 12)))
        for end in range(len(coded)):
            with pytest.raises(OSError, match="ALPH"):
                alpha.decode(coded[:end], (20, 12))
        with pytest.raises(OSError, match="1 bytes follow its last part"):
            alpha.decode(coded + b"\0", (20, 12))

    @pytest.mark.parametrize(("size", "has_alpha"), [((16383, 16383), 0), (SIZE, 1)])
    def test_a_lie_is_refused_before_it_is_decoded(
        self, size: tuple[int, int], has_alpha: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = bytearray(alpha.encode(levels()))
        assert data[5] == 0x2F
        struct.pack_into("<I", data, 6, size[0] - 1 | size[1] - 1 << 14 | has_alpha << 28)
        monkeypatch.setattr(Image, "open", None)
        with pytest.raises(OSError, match="not a VP8L bitstream of 101x67 pixels"):
            alpha.decode(bytes(data), SIZE)


class TestInExactRegions:
    @pytest.mark.parametrize("size", [(1, 1), SIZE, (9000, 600)])
    def test_pixels_and_alpha_come_back(self, size: tuple[int, int]) -> None:
        """One of the four parts of the largest picture is opaque."""
        picture = noise(size)
        picture.paste((1, 2, 3, 255), (0, 0, 8192, 504) if size == (9000, 600) else (0, 0, 1, 1))
        regions = Regions(exact.with_alpha(picture, keeps_hidden=True), size)
        shown = Image.new("RGB", size)
        regions.paste(shown, (0, 0, *size))
        assert shown.tobytes() == picture.convert("RGB").tobytes()
        assert regions.alpha().tobytes() == picture.getchannel("A").tobytes()
        assert regions.share == 1
        assert list(regions.rest((0, 0, *size))) == []

    def test_every_cut_is_refused(self) -> None:
        data = exact.with_alpha(noise((20, 12)), keeps_hidden=True)
        for end in range(len(data)):
            with pytest.raises(OSError, match="EXCT"):
                Regions(data[:end], (20, 12))
        with pytest.raises(OSError, match="EXCT"):
            Regions(data + b"\0", (20, 12))

    def test_no_frame_builds_on_it(self) -> None:
        """Kept pixels have no alpha of the picture."""
        before = Regions(exact.with_alpha(noise(), keeps_hidden=True), SIZE)
        picture = noise().convert("RGB")
        coder = exact.Encoder(255)
        blocks = np.ones((9, 13), np.bool_)
        coder.encode(picture, blocks)
        picture.putpixel((3, 3), (9, 9, 9))
        after = Regions(coder.encode(picture, blocks), SIZE, before)
        assert not after.has_alpha


class TestPictures:
    def test_an_icon_takes_what_lossless_webp_takes(self) -> None:
        data = encode(icon())
        assert len(data) <= 1.05 * lossless_webp(icon()) + 100
        assert (method(data, chunks.EXACT), method(data, chunks.ALPHA)) == (8, 4)
        assert_looks_same(decode(data), icon())
        with Image.open(BytesIO(data)) as im:
            assert im.info["sdz"]["exact"] == 1

    def test_alpha_is_alone_where_that_takes_fewer_bytes(self) -> None:
        """The colours repeat, and the alpha channel does not."""
        picture = Image.new("RGBA", (160, 160), (200, 30, 30, 255))
        draw = ImageDraw.Draw(picture)
        for line in range(9):
            draw.text((4, 4 + 16 * line), "again and again", (0, 0, 0))
        picture.putalpha(levels((160, 160)).point(lambda level: 128 + level // 2))
        data = encode(picture)
        assert (method(data, chunks.EXACT) & ~4, method(data, chunks.ALPHA)) == (0, 3)
        assert_looks_same(decode(data), picture)

    def test_a_photo_has_its_alpha_alone(self) -> None:
        picture = demo.photo().resize((96, 64))
        picture.putalpha(Image.radial_gradient("L").resize(picture.size))
        data = encode(picture)
        assert method(data, chunks.ALPHA) == 3
        assert chunks.EXACT not in [chunk.type for chunk in container.read(data)]
        assert decode(data).getchannel("A").tobytes() == picture.getchannel("A").tobytes()

    def test_crop_and_draft(self) -> None:
        data = encode(icon())
        assert method(data, chunks.ALPHA) == 4
        with Image.open(BytesIO(data)) as im:
            for box in ((3, 5, 70, 40), (100, 90, 128, 128), (-5, 60, 140, 130)):
                assert_looks_same(im.crop(box), icon().crop(box))
        for scale in (2, 4, 8):
            side = 128 // scale
            with Image.open(BytesIO(data)) as im:
                im.draft(None, (side, side))
                assert_looks_same(im.convert("RGBA"), icon().reduce(scale))

    def test_grey_with_alpha(self) -> None:
        grey = icon().convert("LA")
        data = encode(grey)
        assert method(data, chunks.ALPHA) == 4
        assert_looks_same(decode(data), grey)

    @pytest.mark.parametrize("keeps", [False, True])
    def test_colours_that_nobody_sees(self, keeps: bool) -> None:
        """They travel only if they must."""
        picture = icon()
        hidden = picture.getchannel("A").point([255, *[0] * 255])
        picture.paste((250, 20, 250, 0), (0, 0), hidden)
        data = encode(picture, exact=keeps)
        assert method(data, chunks.EXACT) == 8
        shown = np.asarray(decode(data))[np.asarray(hidden) > 0]
        assert (shown[:, :3] == (250, 20, 250)).all(1).any() == keeps

    def test_a_size_that_holds(self) -> None:
        smallest = len(encode(icon()))
        data = encode(icon(), target_size=smallest)
        assert len(data) <= smallest
        assert_looks_same(decode(data), icon())
        assert len(encode(icon(), target_size=smallest // 2)) <= smallest // 2

    def test_frames_have_their_alpha_alone(self) -> None:
        file = BytesIO()
        others = [icon().rotate(90)]
        icon().save(file, "SDZ", save_all=True, append_images=others)
        coded = [c.data[0] for c in container.read(file.getvalue()) if c.type == chunks.ALPHA]
        assert coded == [3, 3]
        with Image.open(file) as im:
            im.seek(1)
            assert_looks_same(im.convert("RGBA"), others[0])


class TestDamage:
    def test_alpha_that_is_not_there(self) -> None:
        photo = demo.photo().resize((48, 32))
        photo.putalpha(levels(photo.size))
        with pytest.raises(OSError, match="chunk ALPH refers to EXCT, which has no alpha"):
            decode(replaced(encode(photo), chunks.ALPHA, alpha.IN_EXACT))

    def test_alpha_that_is_there_twice(self) -> None:
        with pytest.raises(OSError, match="chunk EXCT has alpha that chunk ALPH does not refer to"):
            decode(replaced(encode(icon()), chunks.ALPHA, b"\0\xff"))

    def test_of_damaged_regions_an_opaque_picture_is_left(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = replaced(encode(icon()), chunks.EXACT, b"\x08\0")
        with pytest.raises(OSError, match="EXCT"):
            decode(data)
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        with pytest.warns(UserWarning, match="EXCT") as said:
            shown = decode(data)
        assert len(said) == 2  # for the colours, and for the alpha channel
        assert shown.getchannel("A").getextrema() == (255, 255)
