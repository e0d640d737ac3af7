"""Image <-> latents <-> payload with the embedded model."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from pillow_sdz import (
    catalogue,
    chunks,
    codec,
    container,
    decoding,
    demo,
    fidelity,
    models,
    options,
    spaces,
    weights,
)
from pillow_sdz.arrays import Mapped
from pillow_sdz.codings.coding import Frame
from pillow_sdz.codings.context import Context
from pillow_sdz.codings.integers import Affine
from pillow_sdz.codings.range_coder import SymbolDecoder, Tables
from pillow_sdz.codings.rate_axis import LAST
from pillow_sdz.container import Chunk
from pillow_sdz.header import Header
from pillow_sdz.models import runtime
from pillow_sdz.models.mini import memory, shape
from pillow_sdz.models.mini.shape import DECODER_MARGIN
from sdz_files import encoded, shown

MINI = catalogue.MINI


@pytest.fixture(scope="module")
def real_photo() -> Image.Image:
    """A part of the demo's photo with odd sides. The model was not trained on it."""
    return demo.photo().crop((150, 100, 150 + 257, 100 + 191))


def psnr(original: Image.Image, distorted: Image.Image) -> float:
    return fidelity.psnr(np.asarray(original), np.asarray(distorted))


def symbols_of(payload: bytes, size: tuple[int, int], quality: int) -> np.ndarray:
    decoder = SymbolDecoder(Tables.shipped(), payload)
    rows, columns = -(-size[1] // 16), -(-size[0] // 16)
    symbols = models.load(MINI).prior.code(decoder, rows, columns, quality).symbols
    decoder.finish()
    return symbols


def decoded_from(
    payload: bytes, size: tuple[int, int], quality: int, decoder: catalogue.ModelSpec = MINI
) -> Image.Image:
    """Encode the picture to a payload of one band."""
    header = Header("RGB", size, MINI.name, MINI.digest, MINI.channels, MINI.factor, quality)
    file = container.assemble(header, [], [[Chunk(chunks.LATENTS, payload)]])
    reader = container.Reader(io.BytesIO(container.write(file)))
    found = container.Frames(reader, bands=1)
    frames = decoding.Frames(header, MINI, spaces.HYPERPRIOR, reader.bands, found, reader)
    picture = Image.new("RGB", size)
    for place, pixels in codec.decode(frames.frame(0), decoder=decoder, box=(0, 0, *size)):
        picture.paste(Image.fromarray(pixels), place)
    return picture


def test_registry_names_the_weights_that_ship() -> None:
    content = weights.MINI.path.read_bytes()
    assert hashlib.sha256(content).digest()[:4] == MINI.digest
    assert len(content) <= 18_000_000
    assert (MINI.channels, MINI.factor) == (shape.CHANNELS, shape.FACTOR)


@pytest.mark.parametrize("quality", [1, 20, 50, 75, 100])
def test_fidelity(real_photo: Image.Image, quality: int) -> None:
    """The result is much better than with a broken stage: a blur of the photo has 20 dB."""
    made = encoded([real_photo], MINI, quality=quality)
    decoded = decoded_from(made.frames[0][0].data, real_photo.size, made.quantisation)
    assert decoded.size == real_photo.size
    assert psnr(real_photo, decoded) > 20 + quality / 10


def test_quality_is_monotone(real_photo: Image.Image) -> None:
    sizes, fidelities = [], []
    for quality in range(1, 101, 9):
        made = encoded([real_photo], MINI, quality=quality)
        decoded = decoded_from(made.frames[0][0].data, real_photo.size, made.quantisation)
        sizes.append(made.size)
        fidelities.append(psnr(real_photo, decoded))
    assert sizes == sorted(set(sizes))
    assert fidelities == sorted(fidelities)


@pytest.mark.parametrize("limit", [1100, 1500, 3001])
def test_largest_payload_that_fits(real_photo: Image.Image, limit: int) -> None:
    fitted = encoded([real_photo], MINI, max_size=limit)
    assert fitted.size <= limit
    # A tenth of a quality step more takes as much or does not fit.
    more = encoded([real_photo], MINI, quality=(fitted.quantisation + 10) / 100)
    assert more.size >= limit


def test_a_target_needs_the_network_once_for_qualities_that_are_near(
    real_photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search tries 14 qualities or more, and the last of them are in one or two classes."""
    calls = []
    original = runtime.Network.__call__

    def counted(self: runtime.Network, **inputs: np.ndarray) -> np.ndarray:
        if "pixels" in inputs:
            calls.append(inputs["pixels"].shape)
        return original(self, **inputs)

    monkeypatch.setattr(runtime.Network, "__call__", counted)
    encoded([real_photo], MINI, max_size=2000)
    assert len(calls) <= 12


def test_a_target_chooses_the_prior_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search takes two encodings of the picture, however many qualities it tries."""

    class Strange:
        def encode(self, pixels: np.ndarray, quantisation: int) -> np.ndarray:
            latents = np.random.default_rng(0).normal(size=(8, 8, 4))
            return latents.astype(np.float32)

    calls = []
    original = Context._best

    def counted(self: Context, rounded: Callable[[int], bytes], effort: int) -> int:
        if len(self._numbers) > 1:
            calls.append(effort)
        return original(self, rounded, effort)

    monkeypatch.setattr(models, "load", lambda _: Strange())
    monkeypatch.setattr(Context, "_best", counted)
    strange = catalogue.ModelSpec("strange", 4, 8, catalogue.NOT_NAMED, latent_space="strange")
    fitted = encoded([Image.new("RGB", (64, 64))], strange, max_size=80)
    assert 60 < fitted.size <= 80
    assert len(calls) == 1


def test_nothing_fits(real_photo: Image.Image) -> None:
    # Without a look at the result, which begins at an effort of 4, a file may be smaller.
    smallest = min(encoded([real_photo], MINI, quality=1, effort=e).size for e in (3, 4))
    with pytest.raises(codec.DoesNotFit) as caught:
        encoded([real_photo], MINI, max_size=smallest - 1)
    assert caught.value.smallest == smallest
    assert encoded([real_photo], MINI, max_size=smallest).size == smallest


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (16, 16), (17, 1), (33, 31), (48, 16)])
def test_any_size(real_photo: Image.Image, size: tuple[int, int]) -> None:
    image = real_photo.resize(size)
    made = encoded([image], MINI, quality=90)
    decoded = decoded_from(made.frames[0][0].data, size, made.quantisation)
    assert decoded.size == size
    assert psnr(image, decoded) > 22


def test_tiles_have_no_seam(real_photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles are computed with all the pixels that matter. A latent may differ by 1e-4."""
    monkeypatch.setattr(options, "DTYPE", "float32")
    pixels = np.asarray(real_photo.resize((1000, 700)))
    mini = models.load(MINI)
    whole = mini.encode(pixels, 5000)
    picture = shown(mini, whole, 5000)
    monkeypatch.setattr(memory, "LARGEST_TILE", 2 * DECODER_MARGIN)
    np.testing.assert_allclose(mini.encode(pixels, 5000), whole, rtol=0, atol=1e-4)
    tiled = shown(mini, whole, 5000)
    # Sums in another order differ only by rounding.
    assert np.abs(tiled.astype(int) - picture).max() <= 1


@pytest.mark.parametrize("quality", [100, 5000, 7500])
@pytest.mark.parametrize("spec", [MINI, catalogue.MINI_PERCEPTUAL], ids=lambda spec: spec.name)
def test_int8_stays_within_the_tolerances_of_the_format(
    real_photo: Image.Image, spec: catalogue.ModelSpec, quality: int
) -> None:
    """docs/format.md#arithmetic.  Linear path and sums stay in float32."""
    mini, decoder = models.load(MINI), models.load(spec)
    original = np.asarray(real_photo)
    gain = mini.gain(quality)
    with options.override(DTYPE="float32"):
        latents = np.rint(mini.encode(original, quality) * gain) / gain
        exact = shown(decoder, latents, quality)
    with options.override(DTYPE="int8"):
        close = shown(decoder, latents, quality)
    difference = np.abs(close.astype(int) - exact)
    assert 0 < difference.max() <= (8 if spec is MINI else 16)
    height, width, _ = original.shape
    losses = [squared_error(original, p[:height, :width]) for p in (exact, close)]
    assert 10 * np.log10(losses[1] / losses[0]) <= 0.05


def test_high_qualities_have_their_last_stage_in_float32(
    real_photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 bits are too few for it there (docs/format.md#arithmetic)."""
    mini, pixels = models.load(MINI), np.asarray(real_photo)
    latents = mini.encode(pixels, 10000)
    with options.override(DTYPE="float32"):
        exact = shown(mini, latents, 10000)
    with options.override(DTYPE="int8"):
        close = shown(mini, latents, 10000)
        monkeypatch.setattr("pillow_sdz.models.mini.PRECISE_FROM", LAST + 1)
        coarse = shown(mini, latents, 10000)
    # Measured: 0.71 of the error.
    assert 0 < squared_error(close, exact) < 0.8 * squared_error(coarse, exact)


def test_a_picture_is_computed_in_one_arithmetic(
    real_photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tiles of a picture with a map, one of a high quality, are computed as one tile is."""
    monkeypatch.setattr(options, "DTYPE", "int8")
    pixels = np.asarray(real_photo.resize((1000, 200)))
    mini = models.load(MINI)
    height, width, _ = (latents := mini.encode(pixels, 9500)).shape
    qualities = np.full((height, width), 6000, np.int32)
    qualities[:, width // 2 :] = 9500
    for picture in (6000, 9500):
        mapped = Mapped(picture, lambda area: qualities[area])
        with monkeypatch.context() as small:
            whole = shown(mini, latents, mapped)
            small.setattr(memory, "LARGEST_TILE", 2 * DECODER_MARGIN)
            tiled = shown(mini, latents, mapped)
        # Sums in another order differ only by rounding.  If that changes an integer of 8 bits, a
        # few latents around it change by a level or two.  The other arithmetic would change 0.16 of
        # all values (measured).
        difference = np.abs(tiled.astype(int) - whole)
        assert difference.max() <= 2
        assert (difference > 0).mean() < 0.05


def squared_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a.astype(float) - b) ** 2).mean())


@pytest.mark.parametrize("quality", [3000, 8600, 10000])
def test_an_encoder_in_int8_finds_almost_the_same_latents(
    real_photo: Image.Image, quality: int
) -> None:
    mini = models.load(MINI)
    gain, original = mini.gain(quality), np.asarray(real_photo)
    with options.override(DTYPE="float32"):
        exact = mini.encode(original, quality) * gain
    with options.override(DTYPE="int8"):
        close = mini.encode(original, quality) * gain
    changed = np.rint(exact) != np.rint(close)
    assert np.abs(exact - close).max() > 0
    assert changed.mean() < 0.05
    height, width, _ = original.shape
    with options.override(DTYPE="float32"):
        pictures = [shown(mini, np.rint(x) / gain, quality) for x in (exact, close)]
    errors = [squared_error(original, p[:height, :width]) for p in pictures]
    assert 10 * np.log10(errors[1] / errors[0]) <= 0.05


CHILD = """
import hashlib, sys
from pillow_sdz import catalogue, models
from pillow_sdz.codings.range_coder import SymbolDecoder, Tables
payload = sys.stdin.buffer.read()
decoder = SymbolDecoder(Tables.shipped(), payload)
symbols = models.load(catalogue.MINI).prior.code(decoder, 12, 17, 5000).symbols
print(hashlib.sha256(symbols.astype(">i4").tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_same_integers_with_any_number_of_threads(
    real_photo: Image.Image, environment: dict[str, str]
) -> None:
    payload = encoded([real_photo], MINI, quality=50).frames[0][0].data
    expected = symbols_of(payload, real_photo.size, 5000)
    digests = set()
    for threads in ("1", "2", "7"):
        # BLAS reads its variables when numpy is loaded, so each case needs its own process.
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        run = subprocess.run(
            [sys.executable, "-c", CHILD],
            input=payload,
            env={**environment, **dict.fromkeys(names, threads)},
            capture_output=True,
            check=True,
        )
        digests.add(run.stdout.decode().strip())
    assert digests == {hashlib.sha256(expected.astype(">i4").tobytes()).hexdigest()}


def test_threads_share_the_model(real_photo: Image.Image) -> None:
    made = encoded([real_photo], MINI, quality=30)

    def decode(_: int) -> bytes:
        return decoded_from(made.frames[0][0].data, real_photo.size, made.quantisation).tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(decode, range(8)))) == 1


@pytest.mark.parametrize("length", [1, 7, 100, 3000])
def test_words_that_no_encoder_writes_are_an_oserror(real_photo: Image.Image, length: int) -> None:
    """Damage within valid framing. A decoder makes symbols of any words, but encoding these
    symbols gives other words. Of 30 payloads, about one is a picture by chance."""
    complaint = (
        "the words do not decode|the words do not end|an escaped symbol of .. bits"
        "|a symbol is out of range"
    )
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(6):
        payload = rng.integers(1, 256, length, np.uint8).tobytes()
        try:
            decoded_from(payload, real_photo.size, 5000)
        except OSError as e:
            messages.append(str(e))
    assert len(messages) >= 4
    assert all(re.search(f"chunk LATN at byte 40: (?:{complaint})", text) for text in messages)


def test_no_words_are_a_picture(real_photo: Image.Image) -> None:
    """The empty payload stands for the first code of all. Encoding its symbols gives no words."""
    assert symbols_of(b"", real_photo.size, 5000).shape == (12, 17, 384)
    assert decoded_from(b"", real_photo.size, 5000).size == real_photo.size


def test_words_left_over_are_an_error(real_photo: Image.Image) -> None:
    made = encoded([real_photo], MINI, quality=20)
    payload = made.frames[0][0].data + bytes(range(1, 200))
    with pytest.raises(OSError, match=r"LATN at byte .*: the words do not end"):
        decoded_from(payload, real_photo.size, made.quantisation)


def test_layers_that_may_not_be_exact_are_refused() -> None:
    tensors = {
        "layer.shift": np.array([8], np.int32),
        "layer.bias": np.zeros(1, np.int64),
        "layer.weight0": np.full((1, 4), 127, np.int8),
        "layer.multiplier0": np.array([1 << 20], np.int32),
    }
    assert Affine(tensors, "layer", 1 << 10)(np.ones((1, 4)))[0, 0] == (127 * 4 << 20) + 128 >> 8
    Affine(tensors, "layer", 1 << 24)  # 508 << 44 is below 2 ** 53, 508 << 45 is not
    with pytest.raises(ValueError, match="exact"):
        Affine(tensors, "layer", 1 << 25)


def test_a_picture_survives_ten_generations(real_photo: Image.Image) -> None:
    """Saving again and again loses little after the first time. Colour and place do not drift."""
    image = real_photo
    for _ in range(10):
        stream = io.BytesIO()
        image.save(stream, "SDZ", quality=75)
        image = Image.open(stream).convert("RGB")
    assert psnr(real_photo, image) > 24


def test_frames_are_stored_whole_unless_asked_otherwise() -> None:
    """Only an animation's frames may be stored as the difference from the frame before."""
    latents = models.load(MINI).encode(np.zeros((32, 32, 3), np.uint8), 5000)
    coder = decoding.coder_of(MINI, spaces.HYPERPRIOR)
    for given, expected in (({}, chunks.LATENTS), ({"predict": True}, chunks.CHANGES)):
        encode = coder.encoder(5000, 4, **given)
        encode(Frame(latents))
        (second,) = encode(Frame(latents))
        assert second.type == expected


def test_the_pixels_of_an_image_are_an_array() -> None:
    image = demo.photo().crop((0, 0, 40, 30))
    array, pixels = np.asarray(image), codec.ImagePixels(image)
    assert pixels.shape == array.shape
    for area in ((slice(2, 5), slice(3, 9)), (slice(20, 99), slice(None))):
        assert np.array_equal(pixels[area], array[area])
