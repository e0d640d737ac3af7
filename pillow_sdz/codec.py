"""Where the stages meet: image <-> latents <-> payloads of the LATN chunks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import adaptive, changes, container, float16, models, palette, progress, quantize
from .container import Chunk, Header
from .entropy import DamagedPayload, SymbolDecoder, Tables
from .lattice import STEP_UNITS, LatticePrior
from .models.presets import PRESETS
from .prior import Coded, HyperPrior
from .quantize import Prior, Quantizer
from .target_size import HIGHEST, LOWEST, largest, largest_of_slow
from .target_size import DoesNotFit as DoesNotFit
from .target_size import EncodedLatents as EncodedLatents
from .threads import one_blas_thread

Latents = NDArray[np.float32]
Area = tuple[slice, slice]  # rows and columns
Box = tuple[int, int, int, int]  # left, top, right, bottom

# The article's byte is 0.18215 of an unscaled latent: 0.18215^2 of a scaled one, 33.98 / 1024.
PALETTE_STEP = 34
PALETTE_ENTRIES = 256

# Of latents without hyperlatents.  Chosen: four times those of the public models.  The adaptive
# prior's time grows with their square: a single latent of 64 channels takes it 0.75 s.
MAX_CHANNELS = 64

# A band of `mini`'s latents has at most so many rows, and of a wide picture so many latents: what
# decoding their integers takes (benchmarks.memory) and what a region costs beyond itself.  Chosen.
BAND_ROWS, BAND_LATENTS = 64, 16384

# Above this effort `mini` takes seconds to encode.
HIGHEST_QUICK_EFFORT = 4

# The header's quantisation of float16 latents that are kept as the VAE encodes them: scaling those
# would round them.
UNSCALED = 1

# The first byte of a payload of latents without hyperlatents says which prior coded it.
ADAPTIVE, SD1, SD_MINI = range(3)


def step_of(quality: float) -> int:
    """The quantisation step, in 1/1024 of the latents' unit, of a quality of 1 to 100.

    Chosen: 20 qualities halve the step, and 100 is an eighth of the unit.  What steps take of
    latents like Stable Diffusion 1's is in the README (benchmarks.latents).
    """
    return round(STEP_UNITS * 2 ** ((40 - quality) / 20))


def quantisation_of(quality: float, model: models.ModelSpec, effort: int) -> int:
    """What the header says of a quality of 1 to 100 in the coding "context"."""
    if has_hyperprior(model):
        return round(100 * quality)
    return quantize.equal_error(step_of(quality), effort)


class Pixels:
    """The pixels (H, W, 3) of an image of mode RGB; an area is copied when it is sliced."""

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self.shape = image.height, image.width, 3

    def __getitem__(self, area: Area) -> NDArray[np.uint8]:
        rows, columns = (
            range(*part.indices(length)) for part, length in zip(area, self.shape, strict=False)
        )
        return np.asarray(self._image.crop((columns.start, rows.start, columns.stop, rows.stop)))


def band_rows(model: models.ModelSpec, height: int, width: int) -> int | None:
    """How many rows a band has of latents (height, width); None where there is one band."""
    limit = min(BAND_ROWS, BAND_LATENTS // width // 2 * 2)
    if not has_hyperprior(model) or height <= limit:
        return None
    return -(-height // -(-height // limit) // 2) * 2  # about equally many, and even


def _bands(model: models.ModelSpec, height: int, width: int) -> list[slice]:
    return container.bands(height, band_rows(model, height, width))


def encode(
    images: Iterable[Image.Image],
    *,
    model: models.ModelSpec,
    coding: str = "context",
    quality: float = 75,
    effort: int = 4,
    max_size: int | None = None,
    predict: bool = False,
) -> EncodedLatents:
    """Encode images of mode RGB and of one size, the frames of a file.

    ``quality`` is 1..100 and counts in the coding "context" alone; a palette has the article's
    256 entries.  With ``max_size``, in bytes of all chunks of latents, it is the highest quality
    that fits instead, or the largest palettes; DoesNotFit where none does.  With ``predict``, of
    `mini`'s latents only what changes is coded from the second frame on.

    Without ``max_size``, an image is asked for when the one before has been encoded.
    """
    network = models.load(model)
    pictures = map(Pixels, images)
    frames: Iterable[tuple[Pixels, Latents]] = ((p, network.encode(p)) for p in pictures)
    if max_size is not None:
        frames = list(frames)  # for every quality that is tried

    priors: dict[int, int] = {}

    def prior_of(number: int, latents: Latents) -> int:
        """The one that suits a frame, at any quality."""
        if number not in priors:
            priors[number] = _best_prior(latents, model, quantisation_of(quality, model, effort))
        return priors[number]

    def context(hundredths: int, effort: int) -> EncodedLatents:
        quantisation = quantisation_of(hundredths / 100, model, effort)
        if has_hyperprior(model):
            coder = _MiniEncoder(model, quantisation, effort, predict=predict)
            return EncodedLatents([coder.encode(*frame) for frame in frames], quantisation)
        coded = [
            encode_bands(
                latents,
                model=model,
                coding=coding,
                quantisation=quantisation,
                effort=effort,
                prior=prior_of(number, latents),
            )
            for number, (_, latents) in enumerate(frames)
        ]
        return EncodedLatents(coded, quantisation)

    def of_entries(entries: int) -> EncodedLatents:
        with one_blas_thread():
            payloads = [
                palette.encode(latents, step=PALETTE_STEP, entries=entries) for _, latents in frames
            ]
        return EncodedLatents([[Chunk(container.LATENTS, p)] for p in payloads], PALETTE_STEP)

    if coding == "float16":
        exact = EncodedLatents(
            [
                encode_bands(latents, model=model, coding=coding, quantisation=0)
                for _, latents in frames
            ],
            0,
        )
        if max_size is not None and exact.size > max_size:
            raise DoesNotFit(exact.size)
        return exact
    if coding == "palette":
        if max_size is None:
            return of_entries(PALETTE_ENTRIES)
        return largest(of_entries, 1, palette.MAX_ENTRIES, max_size)[1]
    if max_size is None:
        return context(round(quality * 100), effort)
    if has_hyperprior(model) and effort > HIGHEST_QUICK_EFFORT:
        quick = functools.cache(lambda h: context(h, HIGHEST_QUICK_EFFORT))
        return largest_of_slow(quick, lambda h: context(h, effort), max_size)
    return largest(lambda h: context(h, effort), LOWEST, HIGHEST, max_size)[1]


def scaled(latents: NDArray[Any], model: models.ModelSpec) -> Latents:
    """Latents as pipelines hand them over, of latents as the model's VAE encodes them."""
    factor, shift = scaling(model)
    return (latents.astype(np.float32) - shift) * factor


def unscaled(latents: NDArray[Any], model: models.ModelSpec) -> Latents:
    """Latents as the model's VAE encodes them, of latents as pipelines hand them over."""
    factor, shift = scaling(model)
    return latents.astype(np.float32) / factor + shift


def scaling(model: models.ModelSpec) -> tuple[np.float32, np.float32]:
    """Scaling and shift; ValueError where the model's latents are not of a known space."""
    if model.latent_space == models.SD_MINI.latent_space:
        return np.float32(1), np.float32(0)
    preset = PRESETS.get(model.latent_space)
    if preset is None:
        msg = f"how latents of {model.latent_space} are scaled is not known"
        raise ValueError(msg)
    return np.float32(preset.scaling), np.float32(preset.shift)


def encode_bands(
    latents: NDArray[Any],
    *,
    model: models.ModelSpec,
    coding: str,
    quantisation: int,
    effort: int = 4,
    prior: int | None = None,
) -> list[Chunk]:
    """The chunks of a frame of latents (h, w, C), as `encode_latents` has their data."""
    return [
        Chunk(
            container.LATENTS,
            encode_latents(
                latents[band],
                model=model,
                coding=coding,
                quantisation=quantisation,
                effort=effort,
                prior=prior,
            ),
        )
        for band in _bands(model, *latents.shape[:2])
    ]


def encode_latents(
    latents: NDArray[Any],
    *,
    model: models.ModelSpec,
    coding: str,
    quantisation: int,
    effort: int = 4,
    prior: int | None = None,
) -> bytes:
    """The payload of one band of latents (h, w, C), quantised as ``quantisation`` says.

    That is the header's: in the coding "context" the step in 1/1024 of a latent, or `mini`'s
    quality in hundredths; in "palette" the step of the palette's bytes; in "float16" whether the
    latents are `UNSCALED`.  ``prior`` is its number, where it is known; otherwise the best is
    looked for.
    ValueError for more than `MAX_CHANNELS`, and for what readers would refuse because it takes
    long to decode though it has next to no bytes.
    """
    _check_channels(model)
    with one_blas_thread():
        if coding == "float16":
            payload = float16.encode(latents.astype(np.float16))
            _check_work(payload, model, latents.shape[:2], coding)
            return payload
        if coding == "palette":
            return palette.encode(latents, step=quantisation)
        if has_hyperprior(model):
            network = models.load(model)
            steps = latents * network.gain(quantisation)
            refined = network.refine(None, steps, quantisation, effort)
            return _BandEncoder(model, quantisation).encode(*refined).data
        number = _best_prior(latents, model, quantisation) if prior is None else prior
        found = _prior(number, model.channels)
        payload = bytes([number]) + quantize.encode(found, latents, quantisation, effort)
        _check_work(payload, model, latents.shape[:2], coding)
        return payload


def has_hyperprior(model: models.ModelSpec) -> bool:
    """Whether latents are coded with a prior of the model's own file: those of `mini` are."""
    return model.latent_space == models.MINI.latent_space


def _check_channels(model: models.ModelSpec) -> None:
    if model.channels > MAX_CHANNELS and not has_hyperprior(model):
        msg = f"latents of {model.channels} channels, more than the limit of {MAX_CHANNELS}"
        raise DamagedPayload(msg)


def _check_work(
    payload: bytes, model: models.ModelSpec, shape: tuple[int, ...], coding: str
) -> None:
    """DamagedPayload where what learns as it codes would take too long for so few bytes."""
    learning = coding == "float16" or (coding == "context" and payload[:1] == bytes([ADAPTIVE]))
    if learning and not has_hyperprior(model):
        adaptive.check_work(shape[0], shape[1], model.channels, len(payload))


def _priors(model: models.ModelSpec) -> list[int]:
    """The priors worth trying on a model's latents."""
    trained = {"sd1": SD1, "sd-mini": SD_MINI}
    if model.latent_space in trained:
        return [trained[model.latent_space]]
    # Of four channels it may well be a relative of Stable Diffusion 1.
    return [ADAPTIVE, SD1] if model.channels == 4 else [ADAPTIVE]


def _best_prior(latents: NDArray[Any], model: models.ModelSpec, step: int) -> int:
    """The prior that codes rounded latents in the fewest bytes."""
    numbers = _priors(model)
    if len(numbers) == 1:
        return numbers[0]

    def size(number: int) -> int:
        return len(quantize.encode(_prior(number, model.channels), latents, step, effort=0))

    with one_blas_thread():
        return min(numbers, key=size)


def _prior(number: int, channels: int) -> Prior:
    """The prior that a payload's first byte names; DamagedPayload where there is none."""
    if number == ADAPTIVE:
        return adaptive.AdaptivePrior(channels)
    if number in (SD1, SD_MINI) and channels == 4:
        return LatticePrior.sd1() if number == SD1 else LatticePrior.sd_mini()
    msg = f"no prior {number} for {channels} channels"
    raise DamagedPayload(msg)


class _MiniEncoder:
    """Codes frames of `mini`, one after another."""

    def __init__(
        self, model: models.ModelSpec, quality: int, effort: int, *, predict: bool
    ) -> None:
        self._model, self._quality, self._effort = model, quality, effort
        self._predict = predict
        self._bands: dict[int, _BandEncoder] = {}  # by their first row

    def encode(self, pixels: Pixels, latents: Latents) -> list[Chunk]:
        """The chunks of the next frame."""
        network, quality, effort = models.load(self._model), self._quality, self._effort
        gain = network.gain(quality)
        chunks = []
        if slow := effort > HIGHEST_QUICK_EFFORT:
            # In tiles that bands do not cut.
            steps, hyper = network.refine(pixels, latents * gain, quality, effort)
        with one_blas_thread():
            bands = _bands(self._model, *latents.shape[:2])
            for band in progress.told("coding", bands):
                if slow:
                    refined = steps[band], hyper[band.start // 2 : -(-band.stop // 2)]
                else:
                    refined = network.refine(None, latents[band] * gain, quality, effort)
                if band.start not in self._bands:
                    new = _BandEncoder(self._model, quality, predict=self._predict)
                    self._bands[band.start] = new
                chunks.append(self._bands[band.start].encode(*refined))
        return chunks


class _BandEncoder:
    """Codes a band of `mini`'s latents, of one frame after another."""

    def __init__(self, model: models.ModelSpec, quality: int, *, predict: bool = False) -> None:
        self._prior: HyperPrior = models.load(model).prior
        self._quality, self._predict = quality, predict
        self._before: Coded | None = None  # in the frame before
        self._changes = 0  # how many DIFF in a row led there

    def encode(self, steps: Latents, hyper: Latents) -> Chunk:
        """The chunk of the next frame's latents and hyperlatents, in steps and not rounded."""
        tables, (height, width, _) = Tables.shipped(), steps.shape
        before = self._before if self._changes < container.MAX_CHANGES else None
        whole = Quantizer(tables, steps, hyper)
        counted = changes.Counted(whole, *hyper.shape[:2])
        coded = self._prior.code(whole if before is None else counted, height, width, self._quality)
        chunk = Chunk(container.LATENTS, whole.bytes())
        if before is not None:
            changed = changes.worth_their_bits(steps, before.symbols, counted.bits)
            if not changed.all():
                parts = Quantizer(tables, steps, hyper, changed)
                told = self._prior.code(parts, height, width, self._quality, before)
                payload = parts.bytes()
                if len(payload) < len(chunk.data):
                    coded, chunk = told, Chunk(container.CHANGES, payload)
        self._changes = self._changes + 1 if chunk.type == container.CHANGES else 0
        if self._predict:
            self._before = coded
        return chunk


class Frames:
    """The latents of a file's frames, decoded where and when they are asked for.

    ``bands`` are the rows of a frame's bands, ``frames`` where their chunks lie, ``read`` gives a
    chunk's data.  OSError for bands of other latents than `mini`'s, and too large ones of those.
    """

    def __init__(
        self,
        header: Header,
        model: models.ModelSpec,
        bands: Sequence[slice],
        frames: Sequence[container.Frame],
        read: Callable[[container.Entry], bytes],
    ) -> None:
        rows, columns = bands[0].stop, header.latents[2]
        if not has_hyperprior(model) and len(bands) > 1:
            msg = f"damaged SDZ file: chunk BAND in a file of model {model.name}"
            raise OSError(msg)
        # A few bytes decode to as many latents as a header asks for.
        if has_hyperprior(model) and rows * columns > BAND_LATENTS:
            msg = f"damaged SDZ file: bands of {rows}x{columns} latents, more than the limit"
            raise OSError(msg)
        self.header, self.model, self.bands = header, model, bands
        self._frames, self._read = frames, read
        # Of a band that is told by its changes: a frame, and its integers there.
        self._latest: dict[int, tuple[int, Coded]] = {}

    def frame(self, number: int, *, lenient: bool = False) -> FrameLatents:
        """One frame; with ``lenient``, what is damaged of it is 0, and listed."""
        return FrameLatents(self, number, lenient=lenient)

    def decode(self, number: int, band: int) -> Latents:
        """The latents (h, w, C) of a band, as pipelines have them; OSError where it is damaged."""
        stored = self.decode_stored(number, band)
        return as_pipelines_have(stored, self.model, self.header.coding, self.header.quantisation)

    def decode_stored(self, number: int, band: int) -> Latents:
        """As `decode`, but those that are stored `UNSCALED` as the VAE encodes them."""
        if len(self._frames[number].bands) <= band:
            msg = "truncated SDZ file: it ends before the latents do"
            raise OSError(msg)
        entry = self._frames[number].bands[band]
        rows = self.bands[band]
        shape = rows.stop - rows.start, self.header.latents[2]
        try:
            _check_channels(self.model)
            with one_blas_thread():
                if has_hyperprior(self.model) and self.header.coding == "context":
                    coded = self._integers(number, band, shape)
                    return _without_gain(coded, self.model, self.header.quantisation)
                if entry.type == container.CHANGES:
                    msg = f"latents of {self.model.name} are not told by their changes"
                    raise DamagedPayload(msg)
                return _decode_latents(
                    self._read(entry),
                    self.model,
                    shape,
                    self.header.coding,
                    self.header.quantisation,
                )
        except DamagedPayload as e:
            msg = f"damaged SDZ file: {entry}: {e}"
            raise OSError(msg) from e

    def _integers(self, number: int, band: int, shape: tuple[int, int]) -> Coded:
        """A band's in a frame; of those before it, what they change is decoded where need be."""
        latest, coded = self._latest.pop(band, (-1, None))
        first = number  # the frame whose LATN all others up to this one change
        while first != latest and self._frames[first].bands[band].type == container.CHANGES:
            first -= 1
        for frame in range(first + (first == latest), number + 1):
            entry = self._frames[frame].bands[band]
            before = coded if entry.type == container.CHANGES else None
            coded = _decode_integers(
                self._read(entry), self.model, shape, self.header.quantisation, before
            )
        assert coded is not None
        # What a frame is told from may be asked for again, by the next frame or by this one.
        near = self._frames[number : number + 2]
        if any(e.type == container.CHANGES for frame in near for e in frame.bands[band:][:1]):
            self._latest[band] = number, coded
        return coded


class FrameLatents:
    """The latents (h, w, C) of one frame, decoded band by band as areas of them are sliced."""

    def __init__(self, frames: Frames, number: int, *, lenient: bool) -> None:
        self.header, self.model = frames.header, frames.model
        self._frames, self._number, self._lenient = frames, number, lenient
        channels, height, width = frames.header.latents
        self.shape = height, width, channels
        self.damaged: list[slice] = []  # rows of bands
        self._decoded: dict[int, Latents] = {}

    def __getitem__(self, area: Area) -> Latents:
        rows, columns = area
        top, bottom, _ = rows.indices(self.shape[0])
        parts = []
        for number, band in enumerate(self._frames.bands):
            if band.stop <= top:
                self._decoded.pop(number, None)  # areas are asked for from top to bottom
            elif band.start < bottom:
                start, stop = max(top, band.start), min(bottom, band.stop)
                parts.append(self._band(number)[start - band.start : stop - band.start, columns])
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _band(self, number: int) -> Latents:
        if number not in self._decoded:
            try:
                self._decoded[number] = self._frames.decode(self._number, number)
            except OSError:
                if not self._lenient:
                    raise
                rows = self._frames.bands[number]
                self.damaged.append(rows)
                shape = rows.stop - rows.start, *self.shape[1:]
                self._decoded[number] = np.zeros(shape, np.float32)
        return self._decoded[number]


def decode(
    latents: FrameLatents,
    *,
    decoder: models.ModelSpec,
    box: Box,
    scale: int = 1,
    refine: Callable[[Latents], Latents] | None = None,
) -> Iterator[tuple[Box, NDArray[np.uint8]]]:
    """The part ``box`` of the image of mode RGB, piece by piece: where in it, and the pixels.

    ``decoder`` is the model that turns the latents into pixels, ``refine`` what is done to all of
    them before, (h, w, C).  ``scale`` is 1, or with `mini` 2, 4 or 8: then a pixel stands for so
    many in each direction, and ``box`` is in those.
    """
    header, model = latents.header, latents.model
    network = models.load(decoder)
    if has_hyperprior(model):
        models.load(model)  # what is missing of it is no damage of the latents
        pieces = network.decode_area(
            latents, header.quantisation, area=_area_of(box, header.factor // scale), scale=scale
        )
    else:
        whole = latents[:, :]
        if not np.isfinite(whole).all():  # which float16 may hold
            msg = "latents that are infinite or not a number"
            raise OSError(msg)
        pixels = network.decode(refine(whole) if refine else whole)
        pieces = [((slice(0, pixels.shape[0]), slice(0, pixels.shape[1])), pixels)]
    left, top, right, bottom = box
    for (rows, columns), pixels in pieces:
        place = (
            max(columns.start, left),
            max(rows.start, top),
            min(columns.stop, right),
            min(rows.stop, bottom),
        )
        kept = pixels[
            place[1] - rows.start : place[3] - rows.start,
            place[0] - columns.start : place[2] - columns.start,
        ]
        yield (place[0] - left, place[1] - top, place[2] - left, place[3] - top), kept


def _area_of(box: Box, factor: int) -> Area:
    """The latents, of so many pixels along each side, that a box lies in."""
    left, top, right, bottom = box
    return (
        slice(top // factor, -(-bottom // factor)),
        slice(left // factor, -(-right // factor)),
    )


def decode_latents(
    payload: bytes,
    *,
    model: models.ModelSpec,
    shape: tuple[int, int],
    coding: str,
    quantisation: int,
) -> Latents:
    """Latents (h, w, C) of ``shape`` (h, w) in the payload of one band; OSError where damaged.

    No weights are needed beyond this package's own.
    """
    try:
        _check_channels(model)
        with one_blas_thread():
            stored = _decode_latents(payload, model, shape, coding, quantisation)
    except DamagedPayload as e:
        msg = f"damaged SDZ file: chunk LATN: {e}"
        raise OSError(msg) from e
    return as_pipelines_have(stored, model, coding, quantisation)


def as_pipelines_have(
    stored: Latents, model: models.ModelSpec, coding: str, quantisation: int
) -> Latents:
    """The latents, scaled, of what is stored; OSError where how is not known."""
    if coding != "float16" or quantisation != UNSCALED:
        return stored
    try:
        return scaled(stored, model)
    except ValueError as e:
        msg = f"SDZ file of unscaled latents: {e}"
        raise OSError(msg) from e


def _decode_latents(
    payload: bytes,
    model: models.ModelSpec,
    shape: tuple[int, int],
    coding: str,
    quantisation: int,
) -> Latents:
    _check_work(payload, model, shape, coding)
    if coding == "float16":
        return float16.decode(payload, *shape, model.channels).astype(np.float32)
    if coding == "palette":
        return palette.decode(payload, *shape, model.channels, step=quantisation)
    if has_hyperprior(model):
        coded = _decode_integers(payload, model, shape, quantisation, None)
        return _without_gain(coded, model, quantisation)
    if not payload:
        msg = "it is empty"
        raise DamagedPayload(msg)
    prior = _prior(payload[0], model.channels)
    decoder = SymbolDecoder(Tables.shipped(), payload[1:])
    symbols = prior.code(decoder, *shape, quantisation)
    decoder.finish()
    return (symbols * (quantisation / STEP_UNITS)).astype(np.float32)


def _decode_integers(
    payload: bytes,
    model: models.ModelSpec,
    shape: tuple[int, int],
    quality: int,
    before: Coded | None,
) -> Coded:
    decoder = SymbolDecoder(Tables.shipped(), payload)
    coded: Coded = models.load(model).prior.code(decoder, *shape, quality, before)
    decoder.finish()
    return coded


def _without_gain(coded: Coded, model: models.ModelSpec, quality: int) -> Latents:
    gain: Latents = models.load(model).gain(quality)
    return np.divide(coded.symbols, gain, dtype=np.float32, casting="unsafe")
