"""An encoder looks at its own result, and changes the latents so that less is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from pillow_sdz import catalogue, demo, fidelity, models, options, weights
from pillow_sdz.codings import looking
from pillow_sdz.codings.allocation import Rounded
from pillow_sdz.codings.coding import Frame
from pillow_sdz.codings.looking import LOOKS_BELOW, Look
from pillow_sdz.models import mini_half
from pillow_sdz.models.mini import DESCENT, Mini, memory
from pillow_sdz.models.mini.network import Decoder, LimitedBlock
from pillow_sdz.models.mini.shape import BASE, CHANNELS, LOOK_MARGIN
from sdz_files import decode, encode

QUALITY = 4000  # in hundredths


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A part of a photo, 19x13 latents and a part of one."""
    return demo.photo().crop((40, 20, 40 + 309, 20 + 213))


@pytest.fixture(scope="module")
def mini() -> Mini:
    found = models.load(catalogue.MINI)
    assert isinstance(found, Mini)
    return found


def rounded(mini: Mini, photo: Image.Image, quality: int = QUALITY) -> NDArray[np.float32]:
    gain = mini.gain(quality)
    latents = mini.encode(np.asarray(photo), quality)
    return np.rint(latents * gain) / gain


def looks(mini: Mini, photo: Image.Image, latents: NDArray[np.float32]) -> Look:
    """The looks at all tiles, as one."""
    height, width = latents.shape[:2]
    found: list[NDArray[np.float32]] = []
    original, shown = (np.zeros((photo.height, photo.width, 3), np.uint8) for _ in range(2))
    for (rows, columns), look in mini.look(np.asarray(photo), latents, QUALITY):
        if not found:
            found.append(np.zeros((height, width, look.change.shape[2]), np.float32))
        found[0][rows, columns] = look.change
        top, left = 16 * rows.start, 16 * columns.start
        for whole, part in ((original, look.original), (shown, look.shown)):
            whole[top : top + len(part), left : left + part.shape[1]] = part
    return Look(original, shown, found[0], 16)


def pixels_of(mini: Mini, latents: NDArray[np.float32], photo: Image.Image) -> NDArray[np.uint8]:
    found = np.zeros((16 * latents.shape[0], 16 * latents.shape[1], 3), np.uint8)
    for (rows, columns), pixels in mini.decode(latents, QUALITY):
        found[rows, columns] = pixels
    return found[: photo.height, : photo.width]


def by_torch(latents: NDArray[np.float32], error: NDArray[np.float32], place: float) -> Tensor:
    """The error of pixels, sent back through the decoder by torch's automatic differentiation."""
    decoder = Decoder()
    tensors = load_file(weights.MINI.path)
    prefix = "autoencoder.decoder."
    decoder.load_state_dict(
        {k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)}
    )

    def stopped(block: LimitedBlock, given: tuple[Tensor], found: Tensor) -> Tensor:
        (x,) = given
        return x + (found - x).detach()

    for block in (*decoder.at8, *decoder.at16):
        block.register_forward_hook(stopped)
    values = torch.from_numpy(latents).permute(2, 0, 1)[None].requires_grad_()
    picture = decoder(values, torch.full((1, 1, 1, 1), place))
    back = torch.from_numpy(error).permute(2, 0, 1)[None]
    (found,) = torch.autograd.grad((picture * back).sum(), values)
    return found[0].permute(1, 2, 0)


@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.9999), ("int8", 0.99)])
def test_latents_go_down_the_gradient(
    mini: Mini, photo: Image.Image, dtype: str, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "DTYPE", dtype)
    whole = photo.crop((0, 0, 304, 208))
    latents = rounded(mini, whole)
    look = looks(mini, whole, latents)
    np.testing.assert_array_equal(look.original, np.asarray(whole))
    np.testing.assert_array_equal(look.shown, pixels_of(mini, latents, whole))
    error = (look.original.astype(np.float32) - look.shown) / 255
    place = float(mini.axis.places(QUALITY)) / 10000
    expected = DESCENT * by_torch(latents, error, place).numpy()[..., : look.change.shape[2]]
    cosine = (look.change * expected).sum() / np.sqrt((look.change**2).sum() * (expected**2).sum())
    assert cosine > least
    assert np.linalg.norm(look.change) == pytest.approx(np.linalg.norm(expected), rel=0.02)


def test_tiles_agree(mini: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = demo.photo()
    monkeypatch.setattr(options, "DTYPE", "float32")
    latents = rounded(mini, photo)
    whole = looks(mini, photo, latents)
    monkeypatch.setattr(memory, "LARGEST_TILE", 2 * LOOK_MARGIN)
    parts = looks(mini, photo, latents)
    assert np.abs(parts.shown.astype(int) - whole.shown).max() <= 1
    np.testing.assert_allclose(parts.change, whole.change, atol=0.02 * np.abs(whole.change).max())


def test_the_pixels_have_less_error(mini: Mini, photo: Image.Image) -> None:
    """Even without rounding, the change makes the same error smaller."""
    latents = rounded(mini, photo)
    look = looks(mini, photo, latents)
    changed = latents.copy()
    changed[..., : look.change.shape[2]] += look.change
    before, after = (
        fidelity.psnr(np.asarray(photo), pixels_of(mini, each, photo))
        for each in (latents, changed)
    )
    assert after > before + 0.2


@pytest.mark.parametrize(("quality", "channels"), [(3000, BASE), (6000, CHANNELS)])
def test_channels_that_are_not_coded_do_not_change(
    mini: Mini, photo: Image.Image, quality: int, channels: int
) -> None:
    latents = mini.encode(np.asarray(photo), quality)
    frame = Frame(latents, pixels=np.asarray(photo))
    better = looking.looked(mini, frame, quality, changes=True).latents
    assert (better != latents).any((0, 1))[:channels].all()
    np.testing.assert_array_equal(better[..., channels:], 0)


def test_frames_that_may_be_like_the_one_before(mini: Mini, photo: Image.Image) -> None:
    """Their latents stay as they are, so that what does not move costs nothing."""
    latents = mini.encode(np.asarray(photo), QUALITY)
    frame = Frame(latents, pixels=np.asarray(photo))
    assert looking.looked(mini, frame, QUALITY, changes=False).latents is latents
    assert looking.looked(mini, frame, LOOKS_BELOW, changes=True) is frame
    assert looking.looked(mini, frame._replace(pixels=None), QUALITY, changes=True).pixels is None


@pytest.mark.parametrize(("model", "size"), [("mini", 2500), ("mini-half", 800)])
def test_files_are_better(photo: Image.Image, model: str, size: int) -> None:
    before, after = (
        decode(encode(photo, target_size=size, effort=effort, regions=False, model=model))
        for effort in (3, 4)
    )
    gained = [fidelity.psnr(*map(np.asarray, (photo, shown))) for shown in (before, after)]
    assert gained[1] > gained[0] + 0.03


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (1000, 1), (17, 8), (33, 65), (129, 41)])
@pytest.mark.parametrize("model", ["mini", "mini-half"])
def test_any_size(photo: Image.Image, size: tuple[int, int], model: str) -> None:
    picture = photo.resize(size)
    assert decode(encode(picture, quality=30, regions=False, model=model)).size == size


def test_high_qualities_are_not_looked_at(photo: Image.Image) -> None:
    files = [encode(photo, quality=LOOKS_BELOW / 100, effort=effort) for effort in (3, 4)]
    assert files[0] == files[1]


def test_a_look_at_half_the_size(mini: Mini, photo: Image.Image) -> None:
    """`mini-half` looks at the smaller picture that `mini` codes."""
    half = mini_half.Half(mini, mini)
    latents = half.encode(np.asarray(photo), QUALITY)
    steps = Rounded(latents, half.gain(QUALITY))
    for _, look in half.look(np.asarray(photo), steps, QUALITY):
        assert look.shown.shape == look.original.shape == (107, 155, 3)
