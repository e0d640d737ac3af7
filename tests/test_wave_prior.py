"""The trained prior in waves: latents become a payload and come back exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from pillow_sdz import open_latents, save_latents, weights
from pillow_sdz.arrays import Ints
from pillow_sdz.codings import priors, range_coder, wave_prior
from pillow_sdz.codings.coding import Frame
from pillow_sdz.codings.context import Context
from pillow_sdz.codings.frame_coders import FrameDecoders
from pillow_sdz.codings.quantize import Quantizer
from pillow_sdz.codings.range_coder import DamagedPayload, SymbolDecoder, Tables
from pillow_sdz.codings.wave_prior import WavePrior
from sample_latents import correlated_latents, flipped, outputs_by_threads
from test_adaptive import OWN, Scales, Stage, log, quantised

GOLDEN = Path(__file__).parent.parent / "fixtures" / "waves.safetensors"
FLUX2, NARROW = 4, 5  # the numbers of its priors
SHAPES = [(1, 1), (1, 9), (9, 1), (2, 3), (12, 17)]
STEPS = [1, 51, 512, 4096, 65535]  # in 1/1024; 51 is 0.05, 4096 is 4


def shipped(file: weights.Weights = weights.FLUX2_PRIOR) -> WavePrior:
    return WavePrior.shipped(file)


def latents(height: int, width: int) -> NDArray[np.float64]:
    return correlated_latents(height, width, 32)


def encode(symbols: Ints, step: int, prior: WavePrior | None = None) -> bytes:
    quantizer = Quantizer(Tables.shipped(), symbols.astype(np.float64), np.zeros(0))
    coded = (prior or shipped()).code(quantizer, symbols.shape[0], symbols.shape[1], step)
    assert np.array_equal(coded, symbols)
    return quantizer.bytes()


def decode(
    payload: bytes, height: int, width: int, step: int, prior: WavePrior | None = None
) -> Ints:
    decoder = SymbolDecoder(Tables.shipped(), payload)
    symbols = (prior or shipped()).code(decoder, height, width, step)
    decoder.finish()
    return symbols


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_exact_round_trip(height: int, width: int, step: int) -> None:
    symbols = quantised(latents(height, width), step)
    assert np.array_equal(decode(encode(symbols, step), height, width, step), symbols)


@pytest.mark.parametrize("largest", [0, 1, 300, 40_000, (1 << 19) - 1])
def test_integers_that_no_network_expects(largest: int) -> None:
    rng = np.random.default_rng(1)
    symbols = rng.integers(-largest, largest, (7, 9, 32), endpoint=True)
    assert np.array_equal(decode(encode(symbols, 1024), 7, 9, 1024), symbols)


@pytest.mark.parametrize(
    ("height", "width", "step"), [(0, 5, 9), (5, 0, 9), (5, 5, 0), (5, 5, 1 << 16)]
)
def test_sizes_and_steps_out_of_range_are_refused(height: int, width: int, step: int) -> None:
    with pytest.raises(ValueError, match="cannot code latents"):
        decode(b"", height, width, step)


def test_the_largest_symbols_do_not_overflow() -> None:
    class Extremes:
        """A coder that returns the largest symbols with alternating signs."""

        def code(self, volume: str, index: Any, mean: Ints, scale: Ints) -> Ints:
            assert mean.dtype == scale.dtype == np.int32
            # Networks saturate.  A mean is at most 2 ** 25 / 1024 units, and 8 * 1024 eighths each.
            assert np.abs(mean).max(initial=0) < 1 << 30
            assert scale.min(initial=0) >= 0
            assert (scale & ~range_coder.NORMAL).max(initial=0) < range_coder.SCALES
            return np.where(np.arange(len(mean)) % 2, 1 << 19, -(1 << 19))

    for step in (1, 65535):
        shipped().code(Extremes(), 8, 9, step)


def test_tensors_whose_sums_may_be_rounded_are_refused() -> None:
    """The largest magnitude of every input counts, and that of the bias."""
    for name, limit in (("first", 511), ("linear", 511), ("second", 2047), ("last", 2047)):
        tensors = tiny()
        tensors[f"{name}.weight"] = np.zeros(tensors[f"{name}.weight"].shape, np.int16)
        tensors[f"{name}.weight"][0, 0, 0] = 3
        tensors[f"{name}.bias"][0, 0] = -((1 << 24) - 3 * limit - 1)
        WavePrior(tensors)
        tensors[f"{name}.bias"][0, 0] -= 1
        with pytest.raises(ValueError, match=f"sums of {name} may not be exact"):
            WavePrior(tensors)


# Prints a digest of a payload and of what it decodes to.
CODE = """
import hashlib
from test_wave_prior import decode, encode, latents, quantised
payload = encode(quantised(latents(24, 20), 333), 333)
print(hashlib.sha256(payload + decode(payload, 24, 20, 333).tobytes()).hexdigest())
"""


def test_threads_do_not_change_a_bit() -> None:
    payload = encode(quantised(latents(24, 20), 333), 333)
    here = hashlib.sha256(payload + decode(payload, 24, 20, 333).tobytes()).hexdigest()
    assert outputs_by_threads(CODE) == {here + "\n"}


def test_damaged_payloads_raise_nothing_but_damage() -> None:
    payload = encode(quantised(latents(3, 4), 512), 512)
    rng = np.random.default_rng(2)
    hostile = [payload[:n] for n in range(0, len(payload), 29)]
    hostile += [rng.bytes(n) for n in range(0, 40, 3)]
    hostile += [b"\xff" * 64, b"\xff" * 3, payload + b"\x01", payload + b"\0"]
    hostile += flipped(payload, 17)
    refused = 0
    for words in hostile:
        try:
            decode(words, 3, 4, 512)
        except DamagedPayload:
            refused += 1
    # Not all damage can be noticed: any words decode to something. Checksums are in the container.
    assert refused > 0


def test_many_frames_do_not_change_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are more than are predicted at once, and their steps differ."""
    steps = [51, 512, 2048, 51, 512]
    wanted = [quantised(latents(12, 5) * (1 + k), step) for k, step in enumerate(steps)]
    payloads = [encode(symbols, step) for symbols, step in zip(wanted, steps, strict=True)]
    for at_once in (4, 1000):
        monkeypatch.setattr(wave_prior, "AT_ONCE", at_once)
        decoders = FrameDecoders(payloads)
        found = shipped().code_frames(decoders, 12, 5, steps)
        decoders.finish()
        assert np.array_equal(found, np.stack(wanted))


# What a writer chooses


def saved(values: NDArray[Any], **options: Any) -> bytes:
    file = BytesIO()
    save_latents(values, file, model="flux2", **options)
    return file.getvalue()


def numbers(values: NDArray[np.float64]) -> dict[int, int]:
    """How many bytes the payload of latents (h, w, C) takes, by the number of its prior."""
    return {
        number: len(Context(32, [number]).payload(values, 512, 0))
        for number in (priors.ADAPTIVE, NARROW)
    }


def test_the_smaller_payload_is_taken() -> None:
    """The network knows photos.  It does not know noise of which each channel repeats the first.

    From an effort of 2 on, the wide prior is taken instead of the narrow one.
    """
    photo = load_file(GOLDEN)["photo.symbols"] * 0.5
    repeated = np.repeat(np.random.default_rng(3).normal(0, 3, (24, 24, 1)), 32, 2)
    for values, expected, wider in (
        (photo, NARROW, FLUX2),
        (repeated, priors.ADAPTIVE, priors.ADAPTIVE_WIDE),
    ):
        sizes = numbers(values)
        assert min(sizes, key=sizes.__getitem__) == expected
        coder = Context(32, [priors.ADAPTIVE, NARROW])
        for effort, number in ((0, expected), (1, expected), (2, wider), (4, wider)):
            payload = coder.payload(values, 512, effort)
            assert payload[0] == number
            assert len(payload) == sizes[expected] or effort > 1


def test_the_wide_prior_takes_fewer_bytes() -> None:
    photo = load_file(GOLDEN)["photo.symbols"] * 0.5
    sizes = [len(Context(32, [number]).payload(photo, 102, 0)) for number in (NARROW, FLUX2)]
    assert sizes[1] < 0.995 * sizes[0]


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ({"step": 0.5}, NARROW),
        ({"step": 0.5, "effort": 2}, FLUX2),
        ({"lossless": "bfloat16"}, FLUX2),
        ({"lossless": "bfloat16", "effort": 1}, NARROW),
    ],
)
def test_files_of_this_family_have_the_prior(options: dict[str, Any], number: int) -> None:
    photo = (load_file(GOLDEN)["photo.symbols"] * np.float32(0.5)).transpose(2, 0, 1)
    file = saved(photo, **options)
    assert np.array_equal(open_latents(BytesIO(file)).latents, photo)
    assert payloads_of(file)[0][0] == number


def test_files_of_a_given_size_have_the_prior() -> None:
    photo = load_file(GOLDEN)["photo.symbols"] * np.float32(0.5)
    found = Context(32, [priors.ADAPTIVE, NARROW]).fit([Frame(photo)], 400, 0)
    assert found.frames[0][0].data[0] == NARROW


def payloads_of(file: bytes) -> list[bytes]:
    from pillow_sdz import chunks, container

    return [chunk.data for chunk in container.read(file) if chunk.type == chunks.LATENTS]


def test_other_families_of_32_channels_do_not_try_it() -> None:
    file = BytesIO()
    save_latents(latents(6, 6).transpose(2, 0, 1), file, model="sana", step=0.5)
    assert payloads_of(file.getvalue())[0][0] == priors.ADAPTIVE


def test_a_few_bytes_do_not_ask_for_much_work() -> None:
    """As with the adaptive prior: zeros take few bytes, and their number is limited by them."""
    coder = Context(32, [FLUX2])
    with pytest.raises(DamagedPayload, match=r"latents \(32, 64, 4096\) in 2 bytes are too many"):
        coder.decode(bytes([FLUX2, 1]), (64, 4096), 512)
    # At the end of a cut payload, the likeliest symbols follow.
    whole = coder.payload(latents(8, 8), 512, 0)
    begun = coder.decode(whole[: len(whole) // 2], (8, 8), 512, complete=False)
    assert begun.shape == (8, 8, 32)


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(DamagedPayload, match="there is no prior 4 for 16 channels"):
        Context(16, [priors.ADAPTIVE]).decode(bytes([FLUX2, 1]), (4, 4), 512)


# The specification


@cache
def _tiny() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(5)
    channels, hidden, more = 3, 6, 4

    def layer(name: str, outputs: int, inputs: int, largest: int, kind: Any) -> Iterator[Any]:
        yield f"{name}.weight", rng.integers(-largest, largest, (channels, outputs, inputs), kind)
        yield f"{name}.bias", rng.integers(-900, 900, (channels, outputs), np.int32)
        yield f"{name}.shift", rng.integers(4, 7, (channels, outputs), np.uint8)

    return dict(
        [
            *layer("first", hidden, 9 * channels + 6, 127, np.int8),
            *layer("linear", 1, 9 * channels + 6, 900, np.int16),
            *layer("second", more, hidden, 127, np.int8),
            *layer("last", 2, more, 900, np.int16),
        ]
    )


def tiny() -> dict[str, NDArray[Any]]:
    """The tensors of a prior of 3 channels.  Many of its hidden outputs saturate."""
    return {name: tensor.copy() for name, tensor in _tiny().items()}


def stages_by_the_specification(
    tensors: dict[str, NDArray[Any]], symbols: Ints, n: int
) -> list[Stage]:
    """docs/waves.md, one place after another."""
    h, w, channels = symbols.shape
    scales = Scales(normal=True)
    known: dict[tuple[int, int, int], int] = {}
    stages: list[Stage] = []

    def limit(x: int, k: int) -> int:
        return max(-k, min(k, x))

    def layer(name: str, c: int, x: list[int]) -> list[int]:
        products = tensors[f"{name}.weight"][c].astype(np.int64) @ np.array(x)
        biases, shifts = tensors[f"{name}.bias"][c].tolist(), tensors[f"{name}.shift"][c].tolist()
        return [p + b >> s for p, b, s in zip(products.tolist(), biases, shifts, strict=True)]

    def relu(x: list[int]) -> list[int]:
        return [max(0, min(2047, v)) for v in x]

    for t in range((w - 1) + 2 * (h - 1) + 3 * (channels - 1) + 1):
        stage: Stage = []
        coded = []
        for c in range(channels):
            for y in range(h):
                x = t - 3 * c - 2 * y
                if not 0 <= x < w:
                    continue
                xs = [
                    known.get((y + dy, x + dx, b), 0)
                    if b <= c and dx + 2 * dy + 3 * (b - c) < 0
                    else 0
                    for dy in (-1, 0, 1)
                    for dx in (-1, 0, 1)
                    for b in range(channels)
                ]
                xs += [known.get((y + dy, x + dx, c), 0) for dy, dx in OWN[4:]]
                xs += [limit(log(n) >> 3, 128)]
                (g,) = layer("linear", c, xs)
                m, q = layer("last", c, relu(layer("second", c, relu(layer("first", c, xs)))))
                mean = (16 * (g + m) + n) // (2 * n)
                b = min(max(q - log(n) + 1296 >> 5, 0), 95)
                scale = scales.of[b] if b < 64 else b
                r = min(max((scale >> 3) - 4, 0), 3)
                scale += 2**30 * (b < 64)
                coded.append((b, mean, int(symbols[y, x, c])))
                stage.append((y, x, c, mean + (2**r >> 1) >> r << r, scale))
        if not stage:
            continue
        scales.learn(coded)
        for y, x, c, *_ in stage:
            places = [(y, x)]
            places += [(y + 1, -1), (y + 1, -2)] if x == 0 else []
            places += [(y, w)] if x == w - 1 else []
            places += [(h, x)] if y == h - 1 else []
            places += [(-1, x + 2), (-2, x + 2)] if y == 0 else []
            v = limit(int(symbols[y, x, c]) * n + 16 >> 5, 511)
            known |= {(*place, c): v for place in places}
        stages.append(stage)
    return stages


@pytest.mark.parametrize(
    ("height", "width", "step", "largest"),
    [(7, 18, 512, 3), (9, 1, 100, 40), (1, 9, 3000, 2), (5, 6, 1, 1 << 19), (5, 6, 65535, 1 << 19)],
)
@pytest.mark.parametrize("real", [False, True])
def test_the_specification_says_what_the_code_does(
    height: int, width: int, step: int, largest: int, real: bool
) -> None:
    tensors = load_file(weights.FLUX2_NARROW_PRIOR.path) if real else tiny()
    prior = WavePrior(tensors)
    rng = np.random.default_rng(6)
    smooth = rng.normal(0, 0.3, (height, width, prior.channels)).cumsum(1)
    symbols = np.rint(np.clip(smooth * largest, -largest, largest)).astype(np.int64)
    stages: list[Stage] = []

    class Recorder:
        """A coder that returns the symbols and keeps what it was asked."""

        def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
            stages.append(list(zip(*(p.tolist() for p in (*index, mean, scale)), strict=True)))
            chosen: Ints = symbols[index]
            return chosen

    prior.code(Recorder(), height, width, step)
    assert stages == stages_by_the_specification(tensors, symbols, step)


@pytest.mark.parametrize("case", ["photo", "odd", "single", "wild", "narrow"])
def test_golden_payloads(case: str) -> None:
    """Made once, never again. If this fails, files written earlier cannot be read any more."""
    record = load_file(GOLDEN)
    symbols = record[f"{case}.symbols"].astype(np.int64)
    payload = record[f"{case}.payload"].tobytes()
    step = int(record[f"{case}.step"][0])
    prior = shipped(weights.FLUX2_NARROW_PRIOR if case == "narrow" else weights.FLUX2_PRIOR)
    assert np.array_equal(decode(payload, symbols.shape[0], symbols.shape[1], step, prior), symbols)
    assert encode(symbols, step, prior) == payload
