"""Animations: what is kept of each frame, in how many bytes, and the work to show one."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageSequence, features
from safetensors.numpy import load_file

from pillow_sdz import (
    catalogue,
    chunks,
    codec,
    container,
    demo,
    models,
    open_latents,
    order,
    save_latents,
    saving,
    weights,
)
from pillow_sdz.arrays import Ints
from pillow_sdz.codings import banded, changes, hyperprior, quality_map
from pillow_sdz.codings.banded import Banded
from pillow_sdz.codings.hyperprior import Coded, Part
from pillow_sdz.codings.predicting import in_numpy
from pillow_sdz.codings.quantize import Quantizer
from pillow_sdz.codings.range_coder import (
    DamagedPayload,
    Prediction,
    SymbolDecoder,
    SymbolEncoder,
    Tables,
)
from pillow_sdz.threads import one_blas_thread
from range_coder import RangeDecoder
from sdz_files import CountingFile, assert_similar, decode, encode, framed

SIZE = 176, 112  # 11x7 latents, 6x4 cells
LOSS = 8  # mean difference from the originals, as in tests/test_plugin.py


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    return demo.photo().crop((150, 100, 150 + SIZE[0], 100 + SIZE[1]))


@pytest.fixture(scope="module")
def moving(scene: Image.Image) -> list[Image.Image]:
    """Six frames in which a square moves along the picture's lower edge."""
    frames = []
    for number in range(6):
        frame = scene.copy()
        frame.paste((230, 60, 40), (8 + 24 * number, 88, 24 + 24 * number, 104))
        frames.append(frame)
    return frames


@pytest.fixture(scope="module")
def animation(moving: list[Image.Image]) -> bytes:
    return encode_all(moving, duration=40)


def encode_all(frames: list[Image.Image], **options: Any) -> bytes:
    return encode(frames[0], save_all=True, append_images=frames[1:], **options)


def frames_of(data: bytes) -> list[Image.Image]:
    with Image.open(BytesIO(data)) as im:
        return [frame.copy() for frame in ImageSequence.Iterator(im)]


def types(data: bytes) -> list[str]:
    """The types of the chunks that hold frames."""
    return [c.type.decode() for c in container.read(data) if c.type in chunks.FRAME]


def payloads(data: bytes) -> list[bytes]:
    return [c.data for c in container.read(data) if c.type in chunks.CODED]


def integers(data: bytes) -> list[Coded]:
    """The changes of every frame of a file with one band, each from the frame before."""
    reader = container.Reader(BytesIO(data))
    _, height, width = reader.header.latents
    prior = models.load(catalogue.MINI).prior
    found: list[Coded] = []
    for entry in reader:
        if entry.type in chunks.CODED:
            decoder = SymbolDecoder(Tables.shipped(), reader.data(entry))
            before = found[-1] if entry.type == chunks.CHANGES else None
            found.append(prior.code(decoder, height, width, reader.header.quantisation, before))
            decoder.finish()
    return found


def gain_of(network: Any, coded: Coded) -> NDArray[np.float32]:
    """How many steps a unit of latent has at quality 75, with the map of these integers."""
    cells = quality_map.qualities(7500, coded.offsets)
    found: NDArray[np.float32] = network.gain(cells, *coded.symbols.shape[:2])
    return found


def noisy(scene: Image.Image, count: int, deviation: float) -> list[Image.Image]:
    """A camera's view of something that does not move."""
    random = np.random.default_rng(0)
    pixels = np.asarray(scene, np.float64)
    samples = (pixels + random.normal(0, deviation, pixels.shape) for _ in range(count))
    return [Image.fromarray(np.clip(s, 0, 255).round().astype(np.uint8)) for s in samples]


class TestWhatIsCoded:
    def test_frames_come_back(self, moving: list[Image.Image], animation: bytes) -> None:
        for frame, original in zip(frames_of(animation), moving, strict=True):
            assert_similar(frame, original, LOSS)

    def test_only_what_changes(self, moving: list[Image.Image], animation: bytes) -> None:
        assert types(animation) == ["LATN", *["DIFF"] * 5]
        first, *others = map(len, payloads(animation))
        assert max(others) < first / 2

    def test_cells_are_those_of_this_frame_or_of_the_one_before(
        self, moving: list[Image.Image], animation: bytes
    ) -> None:
        """The integers are exact for every frame, too."""
        network = models.load(catalogue.MINI)
        found = integers(animation)
        for number, (before, now) in enumerate(itertools.pairwise(found), 1):
            gain = gain_of(network, now)
            own = network.encode(np.asarray(moving[number]), 7500) * gain
            changed = (now.symbols != before.symbols).any(2)
            rows, columns = (n // 2 for n in np.nonzero(changed))
            cells = np.zeros(now.hyper.shape[:2], bool)
            cells[rows, columns] = True
            assert 0 < cells.sum() < cells.size / 2
            places = cells.repeat(2, 0).repeat(2, 1)[: own.shape[0], : own.shape[1]]
            error = np.abs(now.symbols - own)[places]
            assert error.max() < 1
            assert np.mean(error > 0.5) < 0.05
            np.testing.assert_array_equal(now.symbols[~places], before.symbols[~places])
            kept = (now.hyper == before.hyper).all(2)
            assert kept.sum() >= (~cells).sum()

    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    def test_a_repeated_frame_costs_almost_nothing(self, scene: Image.Image, mode: str) -> None:
        """Each chunk has 9 bytes of framing, and one chunk says that nothing changes."""
        picture = scene.convert(mode)
        if mode == "RGBA":
            picture.putalpha(Image.radial_gradient("L").resize(SIZE))
        alone, *together = (len(encode_all([picture] * count)) for count in (1, 2, 50))
        assert (together[1] - together[0]) / 48 <= (10 if mode == "RGB" else 20)
        assert together[0] - alone < 40

    def test_another_scene_is_coded_by_itself(self, scene: Image.Image) -> None:
        other = scene.transpose(Image.Transpose.ROTATE_180)
        data = encode_all([scene, scene, other, other])
        assert types(data) == ["LATN", "DIFF", "LATN", "DIFF"]
        assert payloads(data)[2] == payloads(encode(other))[0]

    @pytest.mark.parametrize("quality", [25, 75])
    def test_noise_is_not_coded_again(self, scene: Image.Image, quality: int) -> None:
        """A camera's noise in good light. Later frames take less than a tenth of the first."""
        first, *others = map(len, payloads(encode_all(noisy(scene, 8, 2), quality=quality)))
        assert sum(others) / len(others) < first / 10

    @pytest.mark.slow
    def test_errors_do_not_add_up(self, scene: Image.Image) -> None:
        """A picture that darkens by a grey level each frame. No single change is worth its bits."""
        fading = [scene.point(lambda level, by=by: max(0, level - by)) for by in range(30)]
        shown = frames_of(encode_all(fading))
        for frame, original in itertools.islice(zip(shown, fading, strict=True), 4, None, 5):
            own = decode(encode(original))
            error, least = (
                np.abs(np.asarray(x, float) - np.asarray(original)).mean() for x in (frame, own)
            )
            assert error < least + 1.5

    def test_a_new_beginning(self, scene: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
        """A reader never has to decode more than this many chunks for a frame or its alpha."""
        for module in (order, saving):
            monkeypatch.setattr(module, "MAX_CHANGES", 2)
        picture = scene.copy()
        picture.putalpha(Image.radial_gradient("L").resize(SIZE))
        data = encode_all([picture] * 7)
        coded = [type for type in types(data) if type != "ALPH"]
        assert coded == ["LATN", "DIFF", "DIFF"] * 2 + ["LATN"]
        alphas = [len(c.data) for c in container.read(data) if c.type == chunks.ALPHA]
        assert [length == 1 for length in alphas] == [False, True, True] * 2 + [False]
        expected = decode(encode(picture)).tobytes()
        assert all(frame.tobytes() == expected for frame in frames_of(data))

    def test_bands_change_by_themselves(
        self, moving: list[Image.Image], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(banded, "BAND_ROWS", 4)
        data = encode_all(moving)
        assert types(data) == ["LATN", "LATN", *["DIFF", "DIFF"] * 5]
        upper, lower = payloads(data)[2::2], payloads(data)[3::2]
        assert max(map(len, upper)) < min(map(len, lower)) / 4
        for frame, original in zip(frames_of(data), moving, strict=True):
            assert_similar(frame, original, LOSS)

    @pytest.mark.slow
    def test_refined_frames(self, moving: list[Image.Image]) -> None:
        """More effort helps all frames, and what does not change is still not coded."""
        data = encode_all(moving[:3], effort=5)
        assert types(data) == ["LATN", "DIFF", "DIFF"]
        for frame, original in zip(frames_of(data), moving, strict=False):
            assert_similar(frame, original, LOSS)

    def test_frames_of_other_models_are_coded_by_themselves(
        self, moving: list[Image.Image]
    ) -> None:
        data = encode_all(moving[:2], model="sd-mini")
        assert types(data) == ["LATN", "LATN"]
        singles = [payloads(encode(frame, model="sd-mini"))[0] for frame in moving[:2]]
        assert payloads(data) == singles

    @pytest.mark.slow
    @pytest.mark.parametrize("limit", [2500, 4000])
    def test_target_size_is_of_all_frames(self, moving: list[Image.Image], limit: int) -> None:
        data = encode_all(moving, target_size=limit)
        assert 0.95 * limit < len(data) <= limit
        with Image.open(BytesIO(data)) as im:
            quality = im.info["sdz"]["quality"]
        assert len(encode_all(moving, quality=quality)) == len(data)

    def test_an_unreachable_target_size(self, moving: list[Image.Image]) -> None:
        smallest = len(encode_all(moving, quality=1))
        with pytest.raises(ValueError, match=f"the smallest file has {smallest} bytes"):
            encode_all(moving, target_size=smallest - 1, model="mini")

    def test_latents_of_all_frames(self, animation: bytes) -> None:
        """This includes files that have changes."""
        found = open_latents(BytesIO(animation))
        network = models.load(catalogue.MINI)
        for latents, coded in zip(found.latents, integers(animation), strict=True):
            gain = gain_of(network, coded)
            np.testing.assert_allclose(
                latents.transpose(1, 2, 0) * gain, coded.symbols, rtol=1e-5, atol=1e-5
            )


class TestMapOfChanges:
    @pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (24, 40)])
    @pytest.mark.parametrize("part", [0, 0.01, 0.3, 0.95, 1])
    def test_round_trip(self, shape: tuple[int, int], part: float) -> None:
        changed = np.random.default_rng(0).random(shape) < part
        assert np.array_equal(self.decoded(self.encoded(changed), shape), changed)

    @pytest.mark.parametrize("shape", [(15, 15), (20, 15), (11, 15)])
    @pytest.mark.parametrize("part", [0, 0.02, 0.3, 0.9])
    def test_as_specified(self, part: float, shape: tuple[int, int]) -> None:
        """Read the file with docs/format.md alone: contexts, counts, means, and a row's symbols."""
        changed = np.random.default_rng(1).random(shape) < part
        decoder = RangeDecoder(self.encoded(changed))
        if shape[0] > shape[1]:
            changed = changed.T
        width = changed.shape[1]
        tables = load_file(weights.TABLES.path)
        starts = np.cumsum([0, *(2 * tables["reach"].astype(int) + 2)])
        met, changing = [16, 4, 4, 4], [1, 2, 2, 3]
        above = [0] * (width + 2)
        for row in changed:
            contexts = [sum(above[x : x + 3]) for x in range(width)]
            symbols = {}
            places = []
            for x, k in enumerate(contexts):
                rare = min(changing[k], met[k] - changing[k])
                level = sum(odds * rare > met[k] for odds in (4096, 384, 37, 4))
                mean = level if changing[k] == rare else 8 - level
                centre = (mean + 4) >> 3
                phase = mean - 8 * centre
                places.append((5 * 6 + abs(phase), x, centre, -1 if phase < 0 else 1))
            for table, x, centre, mirror in sorted(places):
                frequencies = tables["frequencies"][starts[table] : starts[table + 1]]
                entry = decoder.decode([256 * int(f) for f in frequencies])
                residual = entry - int(tables["reach"][table])
                symbols[x] = mirror * residual + centre
            above = [0, *(symbols[x] for x in range(width)), 0]
            assert above[1:-1] == row.astype(int).tolist()
            for x, k in enumerate(contexts):
                met[k] += 1
                changing[k] += symbols[x]

    def test_what_a_map_costs(self) -> None:
        """It costs almost nothing if nothing changes, and a bit a cell if there is no order."""
        random = np.random.default_rng(0)
        shape = 50, 80
        assert len(self.encoded(np.zeros(shape, bool))) <= 3
        together = np.zeros(shape, bool)
        together[20:30, 30:45] = True
        assert len(self.encoded(together)) <= 40
        assert len(self.encoded(random.random(shape) < 0.5)) <= 1.02 * 4000 / 8

    def test_no_third_state(self) -> None:
        payload = self.encoded(np.full((2, 2), 2))
        with pytest.raises(DamagedPayload, match="neither 0 nor 1"):
            self.decoded(payload, (2, 2))

    def test_worth(self) -> None:
        """Squared error saved against bits, also for the cells at the edges of odd latents."""
        latents = np.zeros((3, 3, 2))
        latents[0, 0] = latents[2, 2] = 1.1, 0.0
        before = np.zeros((3, 3, 2), np.int32)
        saved = 1.1**2 - 0.1**2
        bits = np.full((2, 2), saved / changes.RATE_WEIGHT)
        now = np.rint(latents).astype(np.int32)
        assert not changes.worth_their_bits(latents, before, now, 1.01 * bits).any()
        found = changes.worth_their_bits(latents, before, now, 0.99 * bits)
        assert found.tolist() == [[True, False], [False, True]]

    def test_what_is_as_before_is_worth_nothing(self) -> None:
        latents = np.random.default_rng(0).normal(0, 3, (4, 4, 2))
        now = np.floor(latents).astype(np.int32)  # not all are the nearest ones
        assert not changes.worth_their_bits(latents, now, now, np.zeros((2, 2))).any()

    @staticmethod
    def encoded(changed: np.ndarray) -> bytes:
        nothing = np.zeros((0, 0, 0))
        quantizer = Quantizer(Tables.shipped(), nothing, nothing, changed)
        with contextlib.suppress(DamagedPayload):
            changes.code(quantizer, *changed.shape)
        return quantizer.bytes()

    @staticmethod
    def decoded(payload: bytes, shape: tuple[int, int]) -> np.ndarray:
        decoder = SymbolDecoder(Tables.shipped(), payload)
        changed = changes.code(decoder, *shape)
        decoder.finish()
        return changed


class TestHowLittleIsDecoded:
    @pytest.fixture
    def decoded(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """A list of what was decoded, in order: "integers" of a frame, and "pixels"."""
        done: list[str] = []
        integers, pixels = Banded.decode, codec.decode

        def counted_integers(*arguments: Any, **options: Any) -> Coded:
            done.append("integers")
            return integers(*arguments, **options)

        def counted_pixels(*arguments: Any, **options: Any) -> Iterator[Any]:
            done.append("pixels")
            return pixels(*arguments, **options)

        monkeypatch.setattr(Banded, "decode", counted_integers)
        monkeypatch.setattr(codec, "decode", counted_pixels)
        return done

    def test_opening_and_seeking_read_no_frames(self, animation: bytes) -> None:
        file = CountingFile(animation)
        with Image.open(file) as im:
            read = file.count
            # Pillow reads 16 bytes, the signature has 9, and a framing is read as 9 bytes.
            assert read <= 16 + 9 * (1 + len(container.read(animation))) + 60
            for number in (5, 0, 3):
                im.seek(number)
            assert file.count == read
            im.load()
            assert file.count > read

    def test_one_after_another(self, animation: bytes, decoded: list[str]) -> None:
        frames_of(animation)
        assert decoded == ["pixels", "integers"] * 6

    @pytest.mark.parametrize(
        ("order", "expected"),
        [
            ([5], [6]),
            ([3, 5], [4, 2]),
            ([3, 0, 1], [4, 1, 1]),
            ([2, 2], [3, 0]),  # still loaded
            ([2, 1, 2], [3, 2, 1]),
        ],
    )
    def test_in_any_order(
        self, animation: bytes, decoded: list[str], order: list[int], expected: list[int]
    ) -> None:
        """Decoding starts at the last complete or last decoded frame. Only one makes pixels."""
        with Image.open(BytesIO(animation)) as im:
            for number, count in zip(order, expected, strict=True):
                decoded.clear()
                im.seek(number)
                im.load()
                assert decoded.count("integers") == count
                assert decoded.count("pixels") <= 1

    @pytest.mark.slow
    def test_any_order_gives_the_same(self, animation: bytes) -> None:
        expected = [frame.tobytes() for frame in frames_of(animation)]
        for numbers in itertools.permutations(range(4)):
            with Image.open(BytesIO(animation)) as im:
                for number in numbers:
                    im.seek(number)
                    assert im.tobytes() == expected[number]

    def test_a_part_of_a_later_frame(
        self, scene: Image.Image, decoded: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only the needed bands are decoded, and frames stay the same."""
        monkeypatch.setattr(banded, "BAND_ROWS", 10)
        tall = scene.resize((32, 800))
        # There is no map: with one, another frame might be coded by itself.
        data = encode_all([tall, tall.rotate(180), tall, tall], effort=3)
        whole = frames_of(data)[3]
        decoded.clear()
        with Image.open(BytesIO(data)) as im:
            im.seek(3)
            part = im.crop((4, 0, 30, 4))
            # Two of five bands. The second frame of both is coded by itself.
            assert decoded.count("integers") == 2 * 2
            assert_similar(part, whole.crop((4, 0, 30, 4)), 1)
            assert im.tobytes() == whole.tobytes()

    def test_smaller(self, moving: list[Image.Image], animation: bytes) -> None:
        with Image.open(BytesIO(animation)) as im:
            im.seek(4)
            im.draft(None, (88, 56))
            assert im.size == (88, 56)
            assert_similar(im.copy(), moving[4].reduce(2), LOSS)
            im.seek(5)
            assert im.size == SIZE

    def test_a_closed_file(self, animation: bytes, tmp_path: Any) -> None:
        path = tmp_path / "animation.sdz"
        path.write_bytes(animation)
        with Image.open(path) as im:
            im.load()
        with pytest.raises(ValueError, match="closed"):
            im.seek(1)


class TestModes:
    @pytest.mark.parametrize(
        ("modes", "together"),
        [
            (["L", "1", "L"], "L"),
            (["L", "RGB", "P"], "RGB"),
            (["L", "LA", "L"], "LA"),
            (["LA", "RGB", "L"], "RGBA"),
            (["RGB", "RGBA", "CMYK"], "RGBA"),
        ],
    )
    def test_one_for_all(self, scene: Image.Image, modes: list[str], together: str) -> None:
        """All frames get colour if one has it, and alpha if one has it. The others are opaque."""
        pictures = [scene.convert(mode) for mode in modes]
        for picture in pictures:
            if picture.mode in ("LA", "RGBA"):
                picture.putalpha(Image.linear_gradient("L").resize(SIZE))
        for frame, picture in zip(frames_of(encode_all(pictures)), pictures, strict=True):
            assert_similar(frame, picture.convert("RGB").convert(together), 255)
            if together.endswith("A"):
                expected = picture.convert("RGBA").getchannel("A")
                assert frame.getchannel("A").tobytes() == expected.tobytes()

    def test_alpha_that_changes(self, scene: Image.Image) -> None:
        gradient = Image.linear_gradient("L").resize(SIZE)
        alphas = [gradient, gradient, Image.new("L", SIZE, 9), gradient.rotate(180), gradient]
        pictures = []
        for alpha in alphas:
            pictures.append(scene.copy())
            pictures[-1].putalpha(alpha)
        data = encode_all(pictures)
        stored = [c.data for c in container.read(data) if c.type == chunks.ALPHA]
        assert [len(alpha) == 1 for alpha in stored] == [False, True, False, False, False]
        with Image.open(BytesIO(data)) as im:
            for number in (4, 1, 0, 3, 2):
                im.seek(number)
                assert im.getchannel("A").tobytes() == alphas[number].tobytes()

    def test_a_mode_that_cannot_be_written(self, scene: Image.Image) -> None:
        with pytest.raises(ValueError, match="mode F"):
            encode_all([scene, scene.convert("L").convert("F")])

    def test_metadata_of_the_first(self, scene: Image.Image) -> None:
        other = scene.copy()
        other.info["xmp"] = b"<other/>"
        data = encode_all([scene, other], icc_profile=b"profile")
        info = decode(data).info
        assert info["icc_profile"] == b"profile"
        assert "xmp" not in info


class TestSources:
    def test_frames_of_frames(self, moving: list[Image.Image]) -> None:
        """Pictures and animations in one list, one of them twice. All show the same as before."""
        first, second = (
            Image.open(BytesIO(encode_all(part, quality=100))) for part in (moving[:2], moving[2:5])
        )
        with first, second:
            first.seek(1)
            second.seek(2)
            data = encode_all([first, moving[5], second, first])
            assert (first.tell(), second.tell()) == (1, 2)
        expected = [*moving[:2], moving[5], *moving[2:5], *moving[:2]]
        for frame, original in zip(frames_of(data), expected, strict=True):
            assert_similar(frame, original, LOSS)

    def test_shown_again_after_an_error(self, moving: list[Image.Image], animation: bytes) -> None:
        with Image.open(BytesIO(animation)) as im:
            im.seek(3)
            with pytest.raises(ValueError, match="frame 6 has the size"):
                encode_all([im, moving[0].resize((9, 9))])
            assert im.tell() == 3

    def test_one_after_another(self, moving: list[Image.Image]) -> None:
        """A picture is asked for only when the one before is done, for any number of pictures."""
        alive: list[int] = []

        class Picture(Image.Image):
            def __del__(self) -> None:
                alive.pop()

        def made() -> Iterator[Image.Image]:
            for frame in moving[1:]:
                assert len(alive) <= 1
                picture = Picture()
                alive.append(1)
                picture._im, picture._mode, picture._size = frame.copy()._im, "RGB", SIZE
                yield picture
                del picture

        data = encode(moving[0], save_all=True, append_images=made())
        assert data == encode_all(moving)

    @pytest.mark.parametrize("wrong", [3, "frames", [None], ["frame.png"]])
    def test_what_is_no_image(self, scene: Image.Image, wrong: object) -> None:
        with pytest.raises(ValueError, match=r"append_images must (be|hold)"):
            encode(scene, save_all=True, append_images=wrong)

    def test_too_many(self, scene: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pillow_sdz.keywords.MAX_FRAMES", 3)
        small = scene.resize((16, 16))
        assert len(frames_of(encode_all([small] * 3))) == 3
        with pytest.raises(ValueError, match="more than 3 frames"):
            encode_all([small] * 4)

    def test_nothing_is_written_of_what_fails(self, scene: Image.Image) -> None:
        file = BytesIO()
        with pytest.raises(ValueError, match="size"):
            scene.save(file, "SDZ", save_all=True, append_images=[scene.resize((9, 9))])
        assert not file.getvalue()


class TestTiming:
    def shown(self, data: bytes) -> list[tuple[int, int]]:
        """When each frame begins, and how long it is shown."""
        with Image.open(BytesIO(data)) as im:
            times = []
            for frame in ImageSequence.Iterator(im):
                frame.load()  # WebP needs this
                times.append((frame.info["timestamp"], frame.info["duration"]))
            return times

    @pytest.mark.parametrize(
        ("given", "durations"),
        [
            (None, [0, 0, 0, 0]),
            (40, [40, 40, 40, 40]),
            ([40, 0, 1, 7000], [40, 0, 1, 7000]),
            ((5, 6, 7, 8), [5, 6, 7, 8]),
            (100 / 3, [33, 34, 33, 33]),  # each begins at its time, rounded
            (np.float64(2), [2, 2, 2, 2]),
            ((1 << 32) - 1, [(1 << 32) - 1] * 4),
        ],
    )
    def test_durations(self, moving: list[Image.Image], given: Any, durations: list[int]) -> None:
        options = {} if given is None else {"duration": given}
        begins = itertools.accumulate(durations, initial=0)
        assert self.shown(encode_all(moving[:4], **options)) == list(
            zip(begins, durations, strict=False)
        )

    @pytest.mark.skipif(not features.check("webp"), reason="this Pillow is built without WebP")
    @pytest.mark.parametrize(
        "options",
        [{"duration": 40}, {"duration": [40, 5, 100, 7]}, {"duration": 12.6}, {"loop": 3}, {}],
    )
    def test_as_webp(self, moving: list[Image.Image], options: dict[str, Any]) -> None:
        webp = BytesIO()
        moving[0].save(webp, "WEBP", save_all=True, append_images=moving[1:4], **options)
        data = encode_all(moving[:4], **options)
        assert self.shown(data) == self.shown(webp.getvalue())
        with Image.open(webp) as theirs, Image.open(BytesIO(data)) as ours:
            for name in ("n_frames", "is_animated", "size"):
                assert getattr(ours, name) == getattr(theirs, name)
            assert ours.info["loop"] == theirs.info["loop"]
            for im in (ours, theirs):
                with pytest.raises(EOFError):
                    im.seek(4)

    def test_each_frames_own(self, moving: list[Image.Image]) -> None:
        """The default is each animation's own. A picture without a duration gets the first one."""
        source = BytesIO(encode_all(moving[:3], duration=[30, 50, 70]))
        with Image.open(source) as im:
            data = encode_all([im, moving[3]])
        assert [duration for _, duration in self.shown(data)] == [30, 50, 70, 30]

    @pytest.mark.parametrize(
        "duration", [-1, math.nan, math.inf, 1 << 32, "40", True, [40, -1], [40, None], {}, 1j]
    )
    def test_bad_durations(self, moving: list[Image.Image], duration: object) -> None:
        with pytest.raises(ValueError, match="duration must be from 0 to"):
            encode_all(moving[:2], duration=duration)

    @pytest.mark.parametrize("durations", [[], [40], [40, 50, 60]])
    def test_as_many_as_frames(self, moving: list[Image.Image], durations: list[int]) -> None:
        with pytest.raises(ValueError, match=f"duration has {len(durations)} values"):
            encode_all(moving[:2], duration=durations)

    @pytest.mark.parametrize("loop", [-1, 65536, 1.5, True, "3", math.nan])
    def test_bad_loops(self, moving: list[Image.Image], loop: object) -> None:
        with pytest.raises(ValueError, match="loop must be"):
            encode_all(moving[:2], loop=loop)

    def test_of_one_frame_there_is_no_time(self, scene: Image.Image) -> None:
        assert encode(scene, save_all=True, duration=40, loop=2) == encode(scene)

    def test_a_batch_has_none(self, animation: bytes) -> None:
        latents = open_latents(BytesIO(animation)).latents[:2]
        file = BytesIO()
        save_latents(latents, file, model="mini", size=SIZE)
        with Image.open(file) as im:
            assert (im.n_frames, im.is_animated) == (2, True)
            im.seek(1)
            assert im.info.keys() == {"sdz"}


class TestDamage:
    def rewritten(self, data: bytes, number: int, payload: bytes) -> bytes:
        """The file with other data in the chunk of a frame, and a right CRC."""
        file = container.read(data)
        places = [n for n, c in enumerate(file) if c.type in chunks.CODED]
        file[places[number]] = file[places[number]]._replace(data=payload)
        return framed(file)

    @pytest.mark.slow
    def test_wrong_bits_are_found(self, animation: bytes) -> None:
        """Even with a right CRC: no encoder writes these words. Frames before them stay the same.

        The last bits of a payload may be those of another picture. So one in twelve may be missed.
        """
        expected, missed = frames_of(animation), 0
        for seed in range(12):
            random = np.random.default_rng(seed)
            payload = bytearray(payloads(animation)[3])
            payload[random.integers(len(payload))] ^= 1 << random.integers(8)
            with Image.open(BytesIO(self.rewritten(animation, 3, bytes(payload)))) as im:
                for number in range(3):
                    im.seek(number)
                    assert im.tobytes() == expected[number].tobytes()
                im.seek(3)
                try:
                    im.load()
                except OSError as e:
                    found = str(e)
                else:
                    missed += 1
                    continue
                assert "damaged SDZ file: chunk DIFF" in found
                for number in (4, 5):
                    im.seek(number)
                    with pytest.raises(OSError, match="damaged SDZ file: chunk DIFF"):
                        im.load()
        assert missed <= 1

    @pytest.mark.parametrize("payload", [b"", b"\xff", b"\xff" * 40, bytes(40)])
    def test_payloads_that_no_encoder_writes(self, animation: bytes, payload: bytes) -> None:
        with Image.open(BytesIO(self.rewritten(animation, 3, payload))) as im:
            im.seek(3)
            with pytest.raises(OSError, match="damaged SDZ file: chunk DIFF"):
                im.load()

    @pytest.mark.usefixtures("load_truncated")
    def test_what_is_left(self, animation: bytes) -> None:
        """Frames before the damage are shown. Later ones are black until the next complete one."""
        expected = frames_of(animation)
        with Image.open(BytesIO(self.rewritten(animation, 3, b"\xff" * 40))) as im:
            for number, frame in enumerate(expected):
                im.seek(number)
                if number < 3:
                    assert im.tobytes() == frame.tobytes()
                else:
                    assert im.getextrema() == ((0, 0),) * 3

    def test_a_cut_file(self, animation: bytes) -> None:
        """Frames before the cut stay the same. The frame with the cut and later ones fail."""
        expected = frames_of(animation)
        entries = [e for e in container.Reader(BytesIO(animation)) if e.type in chunks.CODED]
        for cut in (entries[4].start + 5, entries[4].end):
            with Image.open(BytesIO(animation[:cut])) as im:
                assert im.n_frames == 6
                for number in (4, 1, 5, 3):
                    im.seek(number)
                    if number < 4:
                        assert im.tobytes() == expected[number].tobytes()
                        continue
                    with pytest.raises(OSError, match="truncated"):
                        im.load()

    @pytest.mark.usefixtures("load_truncated")
    def test_what_is_left_of_a_cut_file(self, animation: bytes) -> None:
        expected = frames_of(animation)
        entries = [e for e in container.Reader(BytesIO(animation)) if e.type in chunks.CODED]
        with Image.open(BytesIO(animation[: entries[4].start + 5])) as im:
            for number in range(4):
                im.seek(number)
                assert im.tobytes() == expected[number].tobytes()
            im.seek(4)
            with pytest.warns(UserWarning, match="truncated SDZ file: .* are guessed in part"):
                im.load()
            # If the file lacks a change, the pixels stay as they were.
            assert_similar(im, expected[3], LOSS)
            im.seek(5)
            with pytest.raises(OSError, match="truncated"):
                im.load()


class Likeliest:
    """A `range_coder.Coder` that writes the likeliest symbols, and a map of changes."""

    def __init__(self, changed: NDArray[np.bool_] | None = None) -> None:
        self.encoder = SymbolEncoder(Tables.shipped())
        self._changed = changed

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        prediction = Prediction.of(mean, scale)
        symbols = prediction.centre
        if volume == "changed":
            assert self._changed is not None
            symbols = self._changed[index].astype(np.int32)
        self.encoder.encode(symbols, prediction)
        return symbols


class TestRowsOfChanges:
    """The work to show the last frame of a row of DIFF."""

    @pytest.fixture(autouse=True)
    def one_thread(self) -> Iterator[None]:
        """Use one thread, as the package does.

        On a busy machine, more threads take a hundred times as long.
        """
        with one_blas_thread():
            yield

    def test_a_change_is_computed_where_it_is(self) -> None:
        """For one of 32x32 cells, at most a hundredth of the places is computed."""
        prior = models.load(catalogue.MINI).prior
        places = 0

        def counted(inputs: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
            nonlocal places
            places += len(inputs)
            found: NDArray[Any] = inputs @ weight
            return found

        part = Part(384, counted, functools.partial(in_numpy, product=counted))
        before = prior.code(Likeliest(), 64, 64, 5000, part=part)
        whole, places = places, 0
        for cell in ((0, 0), (31, 31), (13, 17)):
            changed = np.zeros((32, 32), bool)
            changed[cell] = True
            prior.code(Likeliest(changed), 64, 64, 5000, before, part)
            assert 0 < places < whole / 100
            places = 0

    @pytest.mark.parametrize("apart", [1, 4])
    def test_all_changes_that_lead_to_a_frame(self, apart: int) -> None:
        """All DIFF in a row, with as many cells as they may have: together or far apart.

        They may take as much as four pictures and 2,048 cells, and a picture here has 256 cells.
        So they take as much as twelve pictures.
        """
        prior = models.load(catalogue.MINI).prior
        products = 0

        def counted(inputs: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
            nonlocal products
            products += inputs.size * weight.shape[1]
            found: NDArray[Any] = inputs @ weight
            return found

        part = Part(384, counted, functools.partial(in_numpy, product=counted))
        frame = prior.code(Likeliest(), 32, 32, 5000, part=part)
        whole = products
        changed = np.zeros((16, 16), bool)
        changed[::apart, ::apart] = True
        for _ in range(changes.most_work(16, 16) // changes.work(changed)):
            frame = prior.code(Likeliest(changed), 32, 32, 5000, frame, part)
        assert 4 * whole < products < 12 * whole  # measured: 11 and 4.9, with the first frame
        with pytest.raises(DamagedPayload, match="more changes in a row of DIFF"):
            prior.code(Likeliest(np.ones((16, 16), bool)), 32, 32, 5000, frame)

    @pytest.mark.parametrize(("side", "most"), [(1, 50), (4, 51), (8, 56), (16, 74)])
    def test_few_changes_take_time_too(self, side: int, most: int) -> None:
        """A DIFF of one cell takes as long as 41 cells.

        So few may follow each other in a small picture.
        """
        prior = models.load(catalogue.MINI).prior
        one = np.zeros((side, side), bool)
        one[0, 0] = True
        frame = prior.code(Likeliest(), 2 * side, 2 * side, 5000)
        for _ in range(most):
            frame = prior.code(Likeliest(one), 2 * side, 2 * side, 5000, frame)
            frame = prior.code(Likeliest(one & False), 2 * side, 2 * side, 5000, frame)
        with pytest.raises(DamagedPayload, match="more changes in a row of DIFF"):
            prior.code(Likeliest(one), 2 * side, 2 * side, 5000, frame)

    def test_what_is_written_keeps_the_limit(
        self, scene: Image.Image, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A frame that would exceed it is coded by itself."""
        monkeypatch.setattr(changes, "FREE_WORK", 0)
        monkeypatch.setattr(changes, "WORK_OF_ONE", 60)  # two DIFF exceed four times 24 cells
        frames = [scene.copy() for _ in range(6)]
        for number, frame in enumerate(frames):
            frame.paste((0, 255, 0), (20 * number, 0, 20 * number + 9, 9))
        data = encode_all(frames, effort=3, regions=False)
        coded = [chunk.type for chunk in container.read(data) if chunk.type in chunks.CODED]
        assert coded == [b"LATN", b"DIFF"] * 3

    @pytest.mark.parametrize("shape", [(1, 40), (40, 1), (32, 5), (16, 16)])
    def test_maps_take_few_stages(self, shape: tuple[int, int]) -> None:
        """A stage takes some time even if it has one cell, and a frame may need 255 maps."""
        stages = 0

        class Counter(Likeliest):
            def code(self, *arguments: Any) -> Ints:
                nonlocal stages
                stages += 1
                return super().code(*arguments)

        changed = np.random.default_rng(0).random(shape) < 0.1
        assert np.array_equal(changes.code(Counter(changed), *shape), changed)
        assert stages == min(shape)

    def test_a_part_has_the_integers_of_the_whole(self) -> None:
        """If few cells change, only the places near them are noted."""
        prior = models.load(catalogue.MINI).prior
        before = prior.code(Likeliest(), 33, 47, 5000)
        changed = np.zeros((17, 24), bool)
        changed[[0, 0, 16, 16, 7], [0, 23, 0, 23, 9]] = True
        few = prior.code(Likeliest(changed), 33, 47, 5000, before)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hyperprior, "dilated", np.ones_like)
            many = prior.code(Likeliest(changed), 33, 47, 5000, before)
        assert np.array_equal(few.symbols, many.symbols)
        assert np.array_equal(few.hyper, many.hyper)


def no_temporary_file() -> NoReturn:
    raise FileNotFoundError(2, "No usable temporary directory found")


class TestSavingOverItself:
    """Pictures that are not decoded yet do not need the file that is being written."""

    @pytest.fixture
    def path(self, animation: bytes, tmp_path: Path) -> Path:
        path = tmp_path / "a.sdz"
        path.write_bytes(animation)
        return path

    def test_all_frames(self, path: Path) -> None:
        with Image.open(path) as im:
            frames = im.n_frames
            im.save(path, save_all=True)
        with Image.open(path) as again:
            assert again.n_frames == frames
            for number in range(frames):
                again.seek(number)
                again.load()

    @pytest.fixture(params=["memory", "file", "no folder"])
    def copied(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        """Large files are copied to a temporary one, if there is room for it."""
        if request.param != "memory":
            monkeypatch.setattr("pillow_sdz.SdzImagePlugin.IN_MEMORY", 0)
        if request.param == "no folder":
            monkeypatch.setattr("tempfile.TemporaryFile", no_temporary_file)

    @pytest.mark.parametrize("loaded", [True, False])
    def test_appended_to_itself(self, path: Path, loaded: bool) -> None:
        with Image.open(path) as im, Image.open(path) as other:
            if loaded:
                im.load()
            other.seek(other.n_frames - 1)
            im.save(path, save_all=True, append_images=[other])
        with Image.open(path) as again:
            assert again.n_frames == 2 * 6
            again.seek(11)
            assert again.getextrema() != ((0, 0),) * 3

    @pytest.mark.parametrize("frames", [1, 3])
    def test_appended_to_a_picture_of_another_format(
        self, scene: Image.Image, frames: int, tmp_path: Path
    ) -> None:
        """Pillow empties the file before this package is called."""
        path, photo = tmp_path / "a.sdz", tmp_path / "a.png"
        path.write_bytes(encode_all([scene.rotate(90 * number) for number in range(frames)]))
        before = frames_of(path.read_bytes())
        scene.save(photo)
        with Image.open(photo) as first, Image.open(path) as other:
            first.save(path, save_all=True, append_images=[other])
        found = frames_of(path.read_bytes())
        assert len(found) == 1 + frames
        for frame, again in zip(before, found[1:], strict=True):
            assert_similar(again, frame, 4)

    @pytest.mark.usefixtures("copied")
    def test_whoever_empties_the_file(self, path: Path) -> None:
        expected = [frame.tobytes() for frame in frames_of(path.read_bytes())]
        with Image.open(path) as im:
            path.write_bytes(b"")
            for number, pixels in enumerate(expected):
                im.seek(number)
                assert im.tobytes() == pixels

    def test_alpha(self, scene: Image.Image, tmp_path: Path) -> None:
        """The alpha of the first frame has been read already, but not that of the others."""
        frames = [scene.copy() for _ in range(3)]
        for number, frame in enumerate(frames):
            frame.putalpha(Image.radial_gradient("L").resize(SIZE).rotate(90 * number))
        path = tmp_path / "a.sdz"
        path.write_bytes(encode_all(frames))
        with Image.open(path) as im:
            im.load()
            im.save(path, save_all=True)
        for frame, again in zip(frames, frames_of(path.read_bytes()), strict=True):
            assert again.getchannel("A").tobytes() == frame.getchannel("A").tobytes()

    def test_another_format(self, path: Path) -> None:
        with Image.open(path) as im:
            im.save(path, "GIF", save_all=True)
        with Image.open(path) as again:
            assert (again.format, again.n_frames) == ("GIF", 6)

    def test_lazy_frames_of_another_format(self, scene: Image.Image, tmp_path: Path) -> None:
        """Pillow empties the file before this package is called, so nobody can save its frames."""
        path = tmp_path / "a.gif"
        scene.save(path, save_all=True, append_images=[scene.rotate(90)])
        with (
            Image.open(path) as im,
            pytest.warns(UserWarning, match=r"a\.gif has been emptied .* only one frame"),
        ):
            im.save(path, "SDZ", save_all=True)
        with Image.open(path) as again:
            assert (again.format, again.n_frames) == ("SDZ", 1)
            assert_similar(again, scene, 8)

    @pytest.mark.parametrize("whole", [True, False], ids=["animation", "picture"])
    def test_as_an_appended_image(self, path: Path, whole: bool) -> None:
        if not whole:
            with Image.open(path) as im:
                im.save(path)
        with Image.open(path) as other:
            first = Image.new("RGB", other.size)
            first.save(path, save_all=True, append_images=[other])
            frames = 1 + other.n_frames
        with Image.open(path) as again:
            assert again.n_frames == frames
            again.seek(frames - 1)
            assert again.getextrema() != ((0, 0),) * 3
