"""`mini`'s graphs: what the networks of training compute, with qualities that differ by area."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pillow_sdz import catalogue, demo, models, options
from pillow_sdz.arrays import Area, Mapped
from pillow_sdz.codings.rate_axis import LAST
from pillow_sdz.models.mini import Mini, memory
from pillow_sdz.models.mini.network import Autoencoder
from pillow_sdz.models.mini.shape import BASE, CHANNELS, DECODER_MARGIN, TAIL_FROM
from pillow_sdz.models.running import built
from sdz_files import shown

SIZE = 112, 80  # an odd number of latents along both sides
LOW, HIGH = 1000, 9000


@pytest.fixture(scope="module")
def mini() -> Mini:
    network = models.load(catalogue.MINI)
    assert isinstance(network, Mini)
    return network


@pytest.fixture(scope="module")
def autoencoder(mini: Mini) -> Autoencoder:
    parts = {k: torch.from_numpy(v) for k, v in mini.tensors.items()}
    names = ("encoder", "decoder", "gain")
    return built(Autoencoder, {k: v for k, v in parts.items() if k.partition(".")[0] in names})


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return np.array(demo.photo().resize(SIZE))


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "DTYPE", "float32")


def mixed() -> NDArray[np.int32]:
    """The qualities of all cells: low, with one high column."""
    qualities = np.full((3, 4), LOW, np.int32)
    qualities[:, 2] = HIGH
    return qualities


def of_latents(qualities: NDArray[np.int32]) -> NDArray[np.int32]:
    return qualities.repeat(2, 0).repeat(2, 1)[: SIZE[1] // 16, : SIZE[0] // 16]


def image_of(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - 0.5


def array_of(tensor: torch.Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = tensor[0].permute(1, 2, 0).numpy()
    return found


def rate_of(places: NDArray[np.signedinteger]) -> torch.Tensor:
    return torch.from_numpy(np.atleast_2d(places / LAST).astype(np.float32))[None, None]


@pytest.mark.parametrize("quality", [LOW, HIGH, "mixed"])
@torch.inference_mode()
def test_the_graphs_compute_what_training_does(
    mini: Mini, autoencoder: Autoencoder, pixels: NDArray[np.uint8], quality: int | str
) -> None:
    """In float32, a sum in another order may round a pixel to the next level."""
    cells = mixed() if isinstance(quality, str) else quality
    places = mini.axis.places(cells)
    # The encoder computes in the middle of 500 places.
    seen = np.minimum(places // 500 * 500 + 250, LAST)
    latents = array_of(autoencoder.encoder(image_of(pixels), rate_of(seen)))
    tail = places >= TAIL_FROM
    latents[..., BASE:] *= of_latents(tail)[..., None] if tail.ndim else tail
    found = mini.encode(pixels, cells)
    np.testing.assert_allclose(found, latents, rtol=0, atol=2e-4)

    rate = rate_of(places)
    tensor = torch.from_numpy(found).permute(2, 0, 1)[None]
    picture = array_of(autoencoder.decoder(tensor, rate))
    levels = ((picture + 0.5) * 255).round().clip(0, 255)
    asked = cells if isinstance(cells, int) else Mapped(LOW, lambda a: of_latents(cells)[a])
    assert np.abs(shown(mini, found, asked) - levels).max() <= 1
    gain = array_of(autoencoder.gain(rate, 2, *found.shape[:2]))
    own = np.broadcast_to(mini.gain(cells, *found.shape[:2]), found.shape)
    np.testing.assert_allclose(own, np.broadcast_to(gain, found.shape), rtol=1e-5)


def test_low_qualities_have_no_tail(mini: Mini, pixels: NDArray[np.uint8]) -> None:
    latents = mini.encode(pixels, mixed())
    assert latents.shape[2] == CHANNELS
    has_tail = latents[..., BASE:].any(2)
    assert np.array_equal(has_tail, of_latents(mixed()) == HIGH)
    assert not mini.encode(pixels, LOW)[..., BASE:].any()
    assert mini.encode(pixels, HIGH)[..., BASE:].any()


def test_the_encoder_sees_qualities_in_classes(mini: Mini, pixels: NDArray[np.uint8]) -> None:
    """Qualities of one class give equal latents, and qualities of different classes do not."""
    seen = {quality: mini.seen(quality) for quality in range(100, 10001, 100)}
    assert 10 < len(set(seen.values())) < 25
    for one, other in ((5000, 5001), (LOW, HIGH)):
        same = np.array_equal(mini.encode(pixels, one), mini.encode(pixels, other))
        assert same == (mini.seen(one) == mini.seen(other))
    assert mini.seen(mixed()) != mini.seen(LOW)


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_a_map_of_one_quality_is_that_quality(
    mini: Mini, pixels: NDArray[np.uint8], scale: int
) -> None:
    latents = mini.encode(pixels, HIGH)
    height, width = (16 // scale * n for n in latents.shape[:2])

    def everywhere(area: Area) -> NDArray[np.int32]:
        rows, columns = area
        return np.full((rows.stop - rows.start, columns.stop - columns.start), HIGH, np.int32)

    found = []
    for quality in (HIGH, Mapped(HIGH, everywhere)):
        picture = np.empty((height, width, 3), int)
        for place, piece in mini.decode(latents, quality, scale=scale):
            picture[place] = piece
        found.append(picture)
    assert np.abs(found[0] - found[1]).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_tiles_of_a_map_have_no_seam(
    mini: Mini, monkeypatch: pytest.MonkeyPatch, scale: int
) -> None:
    """Each tile gets the qualities of its own area."""
    pixels = np.asarray(demo.photo().resize((1000, 700)))
    qualities = np.random.default_rng(0).integers(100, 10000, (22, 32)).astype(np.int32)
    latents = mini.encode(pixels, qualities)
    of_all = qualities.repeat(2, 0).repeat(2, 1)[: latents.shape[0], : latents.shape[1]]
    mapped = Mapped(LOW, lambda area: of_all[area])
    pictures = []
    for largest in (memory.LARGEST_TILE, 2 * DECODER_MARGIN):
        monkeypatch.setattr(memory, "LARGEST_TILE", largest)
        np.testing.assert_allclose(mini.encode(pixels, qualities), latents, rtol=0, atol=2e-4)
        height, width = (16 // scale * n for n in latents.shape[:2])
        picture = np.empty((height, width, 3), int)
        for place, piece in mini.decode(latents, mapped, scale=scale):
            picture[place] = piece
        pictures.append(picture)
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("quality", [2000, 8000])
def test_small_pictures_are_like_reduced_ones(mini: Mini, scale: int, quality: int) -> None:
    """This includes the borders, where the linear path is multiplied."""
    photo = demo.photo().resize((320, 240), Image.Resampling.BOX)
    latents = mini.encode(np.asarray(photo), quality)
    gain = mini.gain(quality)
    latents = np.rint(latents * gain) / gain
    whole = Image.fromarray(shown(mini, latents, quality))
    reduced = np.asarray(whole.reduce(scale)).astype(int)
    found = np.empty_like(reduced)
    for place, piece in mini.decode(latents, quality, scale=scale):
        found[place] = piece
    error = (found - reduced) ** 2
    border = np.ones(error.shape[:2], bool)
    border[2:-2, 2:-2] = False
    for part in (error, error[border]):
        assert 10 * np.log10(255**2 / part.mean()) > 33
