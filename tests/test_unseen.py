"""What lies under exact pixels takes next to no bytes, and does not harm what is beside them."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pillow_sdz import catalogue, codec, demo, models, regions
from pillow_sdz.codings import quality_map, unseen
from pillow_sdz.models.mini import Mini
from pillow_sdz.spaces import LOWEST_QUALITY
from sdz_files import decode, encode

NEVER = 99  # so many cells away, no latents are unseen


def page() -> Image.Image:
    """A page of text with a photo at its right edge."""
    picture = Image.new("RGB", (640, 480), (250, 250, 245))
    draw = ImageDraw.Draw(picture)
    for line in range(25):
        draw.text((8, 6 + 19 * line), "words of a page, again and again " * 2, (20, 20, 60))
    picture.paste(demo.photo().resize((224, 160)), (416, 160))
    return picture


def latents(data: bytes) -> int:
    with Image.open(BytesIO(data)) as im:
        return int(im.info["sdz"]["bytes"]["latents"])


def both(
    picture: Image.Image, monkeypatch: pytest.MonkeyPatch, **options: int
) -> tuple[bytes, bytes]:
    """The file of a picture, and the file that it would be if all latents were seen."""
    found = encode(picture, **options)
    monkeypatch.setattr(unseen, "NEAR", NEVER)
    return found, encode(picture, **options)


@pytest.fixture(scope="module")
def mini() -> Mini:
    loaded = models.load(catalogue.MINI)
    assert isinstance(loaded, Mini)
    return loaded


@pytest.mark.parametrize(("quality", "part"), [(30, 0.7), (75, 0.85), (90, 0.9)])
def test_a_page_takes_fewer_bytes(
    quality: int, part: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, before = both(page(), monkeypatch, quality=quality)
    assert latents(now) < part * latents(before)


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_the_photo_stays_as_it_is(scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a look at the result, only the latents that nobody sees differ."""
    frame = regions.found(page(), None, 75)
    assert frame is not None
    seen = np.asarray(Image.fromarray(frame.seen()).convert("L").reduce(scale)) > 0
    errors = []
    for data in both(page(), monkeypatch, quality=75, effort=3):
        with Image.open(BytesIO(data)) as im:
            im.draft(None, (640 // scale, 480 // scale))
            shown = np.asarray(im.convert("RGB"), float)
        original = np.asarray(page().reduce(scale), float)
        errors.append(float(((shown - original)[seen] ** 2).mean()))
    assert errors[0] < 1.01 * errors[1]  # 0.04 dB


@pytest.mark.parametrize(("quality", "most"), [(30, 2000), (75, 2000), (95, 2500)])
def test_a_megapixel_takes_so_many_bytes(quality: int, most: int) -> None:
    """Of this picture, a corner is seen. It takes 100 kB and more if all of it is."""
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
    seen = np.zeros((1024, 1024), np.bool_)
    seen[:32, :32] = True
    encoder = codec.Encoder(
        catalogue.MINI, catalogue.MINI.space.codings[0], quality=quality, effort=3
    )
    (chunk,) = encoder.encode(Image.fromarray(noise), seen=seen)
    corner = encoder.encode(Image.fromarray(noise[:64, :64]))
    assert len(chunk.data) - sum(len(c.data) for c in corner) < most


@pytest.mark.parametrize("quality", [2000, 7500])
def test_the_hyperlatents_save_most_of_the_bits(mini: Mini, quality: int) -> None:
    nothing = np.zeros((1, mini.prior.hyper_channels), np.int64)
    found = unseen.cheapest(mini.prior, quality)
    assert found.bits < 0.5 * unseen._bits(mini.prior, nothing, quality)[0]
    assert np.count_nonzero(found.hyper) == 1


@pytest.mark.parametrize(
    ("hidden", "is_lower"), [((2, 2), False), ((20, 1), True), ((20, 20), True)], ids=str
)
def test_the_lowest_quality_where_it_saves_more_than_the_map_takes(
    mini: Mini, hidden: tuple[int, int], is_lower: bool
) -> None:
    cells = np.zeros((22, 30), np.bool_)
    cells[1 : 1 + hidden[0], 1 : 1 + hidden[1]] = True
    offsets, hyper = unseen.lowered(mini.prior, 7500, None, cells)
    if not is_lower:
        assert offsets is None
        assert (hyper == unseen.cheapest(mini.prior, 7500).hyper).all()
        return
    qualities = np.asarray(quality_map.qualities(7500, offsets))
    assert (qualities == np.where(cells, LOWEST_QUALITY, 7500)).all()


def test_bands_and_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of two bands, in which nobody sees the latents of the first."""
    picture = Image.new("RGB", (480, 1200), (250, 250, 245))
    picture.paste(page().crop((0, 0, 400, 480)), (0, 0))
    picture.paste(demo.photo().resize((224, 160)), (16, 1008))
    size = len(encode(picture))
    wanted = size + 1000
    data = encode(picture, target_size=wanted)
    assert 0.95 * wanted < len(data) <= wanted
    text = 0, 0, 400, 480
    assert decode(data).convert("RGB").crop(text).tobytes() == picture.crop(text).tobytes()
    monkeypatch.setattr(unseen, "NEAR", NEVER)
    assert size < len(encode(picture))


@pytest.mark.slow
def test_a_search_for_better_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    now, before = both(page().crop((0, 80, 512, 320)), monkeypatch, effort=5)
    assert latents(now) < 0.85 * latents(before)
