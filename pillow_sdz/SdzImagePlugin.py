"""Pillow's side of `.sdz`: opening, decoding and saving.

`_open` reads chunk headers and metadata only. LATN, DIFF and ALPH are read, and the models'
registry and torch are imported, when the pixels are first needed.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile
from PIL._util import DeferredError

from . import alpha as alpha_channel
from . import container
from .container import MAX_CHANGES, Animation, Chunk, Denoising, Header
from .embedded_models import EMBEDDED, MINI, MINI_PERCEPTUAL

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence

    from PIL._imaging import PixelAccess

    from . import codec
    from .codec import Frames
    from .save_options import Timing

# Chunks that `_open` reads because the decoder is told what they say.
FOR_DECODING = (container.DENOISING, container.PROMPT, container.TUNE, container.ANIMATION)

# What is saved for a picture of each mode. A picture of mode 1, L, P or RGB that has transparency
# (in its info or palette) is saved with alpha, as LA or RGBA.
SAVED_AS: Mapping[str, str] = {
    "L": "L",
    "LA": "LA",
    "RGB": "RGB",
    "RGBA": "RGBA",
    "1": "L",
    "P": "RGB",
    "PA": "RGBA",
    "La": "LA",
    "RGBa": "RGBA",
    "RGBX": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "HSV": "RGB",
    "LAB": "RGB",
}

# Modes of more than 8 bits. Pillow's own conversion clips them instead of scaling, which would be
# silent nonsense for most pictures, so the caller has to say what the values mean.
CONVERT_FIRST: Mapping[str, str] = {
    "I": "L",
    "F": "L",
    "I;16": "L",
    "I;16L": "L",
    "I;16B": "L",
    "I;16N": "L",
}


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(container.SIGNATURE)


class SdzImageFile(ImageFile.ImageFile):
    format = "SDZ"
    format_description = "Image kept as the latents of an autoencoder"

    # What a copy or a pickle of a decoded picture has, too.
    n_frames = 1
    is_animated = False
    _frame = 0

    def _open(self) -> None:
        assert self.fp is not None
        if not _accept(self.fp.read(len(container.SIGNATURE))):
            msg = "not an SDZ file"
            raise SyntaxError(msg)

        # From here on it is an SDZ file, so that whatever is wrong with it is an OSError: anything
        # that Pillow takes for "not this format" would hide the reason from the user.
        reader = container.Reader(self.fp)
        header = reader.header
        # Pillow checks again, but only after the metadata has been read.
        Image._decompression_bomb_check(header.size)
        check_shape(header)
        self._size = header.size
        self._mode = header.mode
        self.n_frames = header.frames
        self.is_animated = header.frames > 1
        self._close_exclusive_fp_after_loading = not self.is_animated

        # A file that ends within LATN or later opens and fails in load, as Pillow's own formats do;
        # ImageFile.Parser counts on that.
        self._truncated: str | None = None
        self._denoising: Denoising | None = None
        self._prompt = ""
        self._tune = container.TUNES[0]
        self._animation: Animation | None = None
        entries: list[container.Entry] = []
        self._unread: list[container.Entry] = []
        copied: list[tuple[bytes, bytes]] = []
        about: dict[str, Any] = {
            "model": header.model,
            "coding": header.coding,
            "latents": header.latents,
            "factor": header.factor,
            **_precision(header),
            "reconstructed": True,
        }
        try:
            for entry in reader:
                entries.append(entry)
                metadata = entry.type in container.METADATA
                decoding = entry.type in FOR_DECODING
                # What is not safe to copy would only take memory.
                unknown = entry.type not in container.KNOWN
                if not (
                    metadata or decoding or (unknown and container.is_safe_to_copy(entry.type))
                ):
                    if entry.type not in container.FRAME:
                        self._unread.append(entry)
                    continue
                try:
                    data = reader.data(entry)
                except container.TruncatedError:
                    raise
                except OSError:
                    if not ImageFile.LOAD_TRUNCATED_IMAGES:
                        raise
                    continue  # the picture can be decoded without it
                if metadata:
                    self._set_metadata(entry.type, data)
                elif entry.type == container.DENOISING:
                    self._denoising = Denoising.parse(data)
                    strength, steps = self._denoising
                    about["denoise"] = {"strength": strength / 1000, "steps": steps}
                elif entry.type == container.PROMPT:
                    self._prompt = about["prompt"] = container.parse_prompt(data)
                elif entry.type == container.TUNE:
                    self._tune = about["tune"] = container.parse_tune(data)
                elif entry.type == container.ANIMATION:
                    self._animation = Animation.parse(data, header.frames)
                    self._timestamps = self._animation.timestamps(header.frames)
                    self.info["loop"] = self._animation.loop
                else:
                    copied.append((entry.type, data))
        except OSError as e:
            truncated = isinstance(e, container.TruncatedError)
            has_latents = any(entry.type in container.CODED for entry in entries)
            if not (truncated or ImageFile.LOAD_TRUNCATED_IMAGES) or not has_latents:
                raise
            self._truncated = str(e)

        if copied:
            self.info["sdz_chunks"] = copied
        about["bytes"] = _count_bytes(entries)
        self.info["sdz"] = about
        self._header, self._reader = header, reader
        self._frames = container.frames(entries, len(reader.bands))
        self._latents: Frames | None = None
        if self.is_animated:
            self._fp = self.fp  # load lets go of fp; Pillow's name for what close closes as well
        self._show(0)

    def _show(self, frame: int) -> None:
        """Make ``frame`` what the next load decodes."""
        self._frame = frame
        # A thumbnail of another frame, or its alpha, may have changed them in place.
        self._size, self._mode = self._header.size, self._header.mode
        self._scale = 1
        self._im = None
        # No decoder of this name is registered: it only says that the pixels are still to come.
        self.tile = [ImageFile._Tile("sdz", (0, 0, *self.size), 0, None)]
        if self._animation is not None:
            self.info["timestamp"] = self._timestamps[frame]
            self.info["duration"] = self._animation.duration(frame)

    def seek(self, frame: int) -> None:
        """Go to a frame, counted from 0; EOFError where there is none."""
        if self._seek_check(frame):
            if isinstance(self._fp, DeferredError):
                raise self._fp.ex  # the image has been closed
            self.fp = self._fp
            self._show(frame)

    def tell(self) -> int:
        return self._frame

    def draft(
        self, mode: str | None, size: tuple[int, int] | None
    ) -> tuple[str, tuple[int, int, float, float]] | None:
        """Have the picture decoded at 1/2, 1/4 or 1/8 of its size, but not below ``size``.

        That takes a part of the time, which `Image.thumbnail` makes use of.  As of JPEGs: None, and
        no change, once there are pixels or a draft; ``mode`` is not looked at.  Of other models
        than `mini`, whose pictures only come whole, it is always None.
        """
        if not self.tile or self._scale > 1 or size is None or self._header.model != MINI.name:
            return None
        width, height = self.size
        fitting = min(width // max(1, size[0]), height // max(1, size[1]))
        self._scale = next(scale for scale in (8, 4, 2, 1) if scale == 1 or scale <= fitting)
        self._size = -(-width // self._scale), -(-height // self._scale)
        self.tile = [ImageFile._Tile("sdz", (0, 0, *self.size), 0, None)]
        return self.mode, (0, 0, width / self._scale, height / self._scale)

    def crop(self, box: tuple[float, float, float, float] | None = None) -> Image.Image:
        """A part of the picture, as `Image.crop` has it.

        Before a picture of `mini` is loaded, only what the part needs is decoded, anew at each
        call; the file stays open, and the picture unloaded.  Those of other models only come whole,
        and are loaded.
        """
        if self.tile and box is not None and self._header.model == MINI.name:
            left, top, right, bottom = (round(edge) for edge in box)
            inside = max(left, 0), max(top, 0), min(right, self.width), min(bottom, self.height)
            if inside[0] < inside[2] and inside[1] < inside[3] and inside != (0, 0, *self.size):
                found = self._part(inside)
                shifted = left - inside[0], top - inside[1], right - inside[0], bottom - inside[1]
                return self._new(found.crop(shifted).im)
        return super().crop(box)

    def _set_metadata(self, type: bytes, data: bytes) -> None:
        if type == container.ICC_PROFILE:
            self.info["icc_profile"] = data
        elif type == container.EXIF:
            # With the prefix, as JPEG and PNG hand it over: JPEG writes exif=im.info["exif"] as is.
            self.info["exif"] = container.EXIF_PREFIX + data
        else:
            self.info["xmp"] = data

    def verify(self) -> None:
        """Check the file's structure and every chunk's CRC, without decoding the picture."""
        if self.fp is None:
            msg = "verify must be called directly after open"
            raise RuntimeError(msg)
        try:
            reader = container.Reader(self.fp)
            for entry in reader:
                reader.data(entry)
        finally:
            super().verify()

    def load(self) -> PixelAccess | None:
        if self.tile:
            self.im = self._part((0, 0, *self.size)).im
            self.tile = []
            if self._exclusive_fp and self._close_exclusive_fp_after_loading:
                assert self.fp is not None
                self.fp.close()
            self.fp = None
        return super().load()

    def load_seek(self, pos: int) -> None:
        """Never called.  That there is one tells ImageFile.Parser to wait for the whole file."""

    def _part(self, box: codec.Box) -> Image.Image:
        """A part of the frame, decoded; ``box`` is in its pixels.

        OSError where it is damaged, unless LOAD_TRUNCATED_IMAGES is set: then black, or opaque.
        """
        if self.fp is None or self.fp.closed:
            msg = "the pixels of a closed image cannot be decoded"
            raise ValueError(msg)
        lenient = ImageFile.LOAD_TRUNCATED_IMAGES
        if not lenient:
            for entry in self._unread:
                self._reader.data(entry)  # for the CRC
            self._unread = []
        # The last frame that there is something of may not be all there, those before it are.
        last = len(self._frames) - 1
        if self._truncated and (self._frame > last or (self._frame == last and not lenient)):
            raise OSError(self._truncated)
        from . import codec, models

        # What is missing or damaged of the models is not what LOAD_TRUNCATED_IMAGES is about.
        header = self._header
        decoder = models.decoder_for(
            header.model,
            header.digest,
            header.channels,
            header.factor,
            perceptual=self._tune == "perceptual",
        )
        models.load(decoder)
        refine = None
        if header.model != MINI.name:
            from . import denoise

            refine = denoise.refiner(decoder, self._denoising, self._prompt)
        # Before the network runs, since damage here makes its work vain.
        alpha = self._alpha(box) if header.has_alpha else None
        if self._latents is None:
            self._latents = codec.Frames(
                header,
                models.spec(header.model),
                self._reader.bands,
                self._frames,
                self._reader.data,
            )
        latents = self._latents.frame(self._frame, lenient=lenient)
        size = box[2] - box[0], box[3] - box[1]
        found = Image.new("L" if self.mode.startswith("L") else "RGB", size)
        for place, pixels in codec.decode(
            latents, decoder=decoder, box=box, scale=self._scale, refine=refine
        ):
            found.paste(Image.fromarray(pixels).convert(found.mode), place)
        for rows in latents.damaged:
            top, bottom = (
                n * header.factor // self._scale - box[1] for n in (rows.start, rows.stop)
            )
            found.paste(0, (0, max(top, 0), size[0], max(bottom, 0)))
        if alpha is not None:
            found.putalpha(alpha)
        return found

    def _alpha(self, box: codec.Box) -> Image.Image:
        """A part of the alpha channel; opaque where it is lost and LOAD_TRUNCATED_IMAGES is set."""
        try:
            whole = self._whole_alpha()
        except OSError:
            if not ImageFile.LOAD_TRUNCATED_IMAGES:
                raise
            whole = Image.new("L", self._header.size, 255)
        return (whole.reduce(self._scale) if self._scale > 1 else whole).crop(box)

    def _whole_alpha(self) -> Image.Image:
        for frame in reversed(self._frames[max(0, self._frame - MAX_CHANGES) : self._frame + 1]):
            if not frame.alpha:
                break  # only of a truncated file
            data = self._reader.data(frame.alpha[0])
            if data != alpha_channel.AS_BEFORE:
                return alpha_channel.decode(data, self._header.size)
        msg = "damaged SDZ file: chunk ALPH is that of the frame before, which has none"
        raise OSError(msg)


def check_shape(header: Header) -> None:
    """OSError where a header cannot be that of the embedded model that it names.

    Other models are looked up when the picture is decoded: what the user has recorded of them must
    not keep a file from being opened.
    """
    if header.model == MINI_PERCEPTUAL.name:
        msg = f"damaged SDZ header: {header.model!r} decodes the latents of 'mini', it has none"
        raise OSError(msg)
    spec = EMBEDDED.get(header.model)
    if spec is None:
        return
    if (header.channels, header.factor) != (spec.channels, spec.factor):
        msg = (
            f"damaged SDZ header: {header.channels} channels at a factor of {header.factor}, "
            f"but model {spec.name} has {spec.channels} at {spec.factor}"
        )
        raise OSError(msg)
    if spec is MINI and not (header.coding == "context" and 100 <= header.quantisation <= 10000):
        msg = f"damaged SDZ header: coding {header.coding} of {header.quantisation} in model mini"
        raise OSError(msg)


def _precision(header: Header) -> dict[str, float]:
    """How finely a header says that the latents are quantised, as a user knows it."""
    if header.model == MINI.name:
        hundredths = header.quantisation
        return {"quality": hundredths // 100 if hundredths % 100 == 0 else hundredths / 100}
    return {} if header.coding == "float16" else {"step": header.step}


def _count_bytes(entries: Sequence[container.Entry]) -> dict[str, int]:
    """Where the bytes of a file with these chunks went; together, the file's size."""
    counts = {"latents": 0, "alpha": 0, "metadata": 0, "container": 0}
    for entry in entries:
        if entry.type in container.CODED:
            kind = "latents"
        elif entry.type == container.ALPHA:
            kind = "alpha"
        elif entry.type in (container.HEAD, container.BANDS):
            kind = "container"
        else:
            kind = "metadata"
        counts[kind] += entry.length
    counts["container"] = entries[-1].end - sum(
        counts[kind] for kind in ("latents", "alpha", "metadata")
    )
    return counts


def _save(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    _write(im, fp, [im])


def _save_all(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    from . import save_options

    options = im.encoderinfo
    timing = save_options.Timing(options.get("duration"), options.get("loop"))
    others = save_options.append_images(options.get("append_images"))
    with contextlib.closing(_frames_of(itertools.chain([im], others))) as frames:
        _write(im, fp, frames, timing)


def _frames_of(images: Iterable[Image.Image]) -> Generator[Image.Image]:
    """Every frame of every image, which shows afterwards what it showed before."""
    for image in images:
        frames = getattr(image, "n_frames", 1)
        if frames == 1:
            yield image
            continue
        shown = image.tell()
        try:
            for number in range(frames):
                image.seek(number)
                yield image.copy()
        finally:
            image.seek(shown)


class _Pictures:
    """The frames as the encoder has them, one by one, and what is noted besides as it asks."""

    def __init__(
        self, frames: Iterable[Image.Image], size: tuple[int, int], timing: Timing | None
    ) -> None:
        self._frames, self._size, self._timing = frames, size, timing
        self._colour = False
        self._alphas: list[bytes | None] = []

    def __iter__(self) -> Iterator[Image.Image]:
        """Pictures of mode RGB; ValueError where a frame cannot be one of this file."""
        for number, frame in enumerate(self._frames):
            frame.load()  # its mode may change
            if frame.size != self._size:
                msg = f"frame {number} has the size {frame.size}, the first one {self._size}"
                raise ValueError(msg)
            if self._timing is not None:
                self._timing.add(frame.info.get("duration"))
            image = _convert(frame)
            has_alpha = image.mode.endswith("A")
            self._alphas.append(alpha_channel.encode(image.getchannel("A")) if has_alpha else None)
            self._colour |= image.mode.startswith("RGB")
            yield image if image.mode == "RGB" else image.convert("RGB")

    @property
    def mode(self) -> str:
        """Colour where one frame has it, and alpha where one does."""
        return ("RGB" if self._colour else "L") + ("A" if any(self._alphas) else "")

    def alphas(self) -> list[list[Chunk]]:
        """Of every frame its ALPH, if there are any."""
        if not any(self._alphas):
            return [[] for _ in self._alphas]
        alphas = (alpha_channel.OPAQUE if alpha is None else alpha for alpha in self._alphas)
        data = alpha_channel.in_turn(alphas, MAX_CHANGES)
        return [[Chunk(container.ALPHA, one)] for one in data]


def _write(
    im: Image.Image, fp: IO[bytes], frames: Iterable[Image.Image], timing: Timing | None = None
) -> None:
    """Write frames to a file, with the options and the metadata of ``im``.

    Without ``timing`` there is one frame, which no other follows.
    """
    from . import save_options

    options = im.encoderinfo

    model = save_options.model_named(options.get("model"))
    coding = save_options.coding_for(options.get("coding"), model)
    effort = save_options.effort(options.get("effort"))
    tune = save_options.tune(options.get("tune"), model)
    if coding != "context" and options.get("quality") is not None:
        msg = f"quality is for the coding 'context'; {coding!r} has no choice of it"
        raise ValueError(msg)
    quality = save_options.quality(options.get("quality"))
    target_size = None
    if options.get("target_size") is not None:
        if options.get("quality") is not None:
            msg = "quality and target_size exclude each other"
            raise ValueError(msg)
        target_size = save_options.target_size(options["target_size"])
    for_decoding = save_options.for_decoding(options, model, coding)
    if tune != container.TUNES[0]:
        for_decoding.append(Chunk(container.TUNE, container.pack_tune(tune)))
    width, height = im.size
    if not (1 <= width <= container.MAX_SIDE and 1 <= height <= container.MAX_SIDE):
        msg = f"cannot write {width}x{height} as SDZ: 1 to {container.MAX_SIDE} pixels a side"
        raise ValueError(msg)
    metadata = _metadata(im)

    from . import codec  # imports torch

    pictures = _Pictures(frames, im.size, timing)
    header = Header(
        container.MODES[0],
        im.size,
        model.name,
        model.digest,
        model.channels,
        model.factor,
        int(coding != "float16"),
        coding,
    )
    about = [*metadata, *for_decoding]
    if (rows := codec.band_rows(model, *header.latents[1:])) is not None:
        about.append(Chunk(container.BANDS, container.pack_bands(rows)))

    def chunks(frames: Sequence[Sequence[Chunk]], quantisation: int) -> list[Chunk]:
        alphas = pictures.alphas()
        head = header._replace(mode=pictures.mode, frames=len(alphas), quantisation=quantisation)
        animation = []
        if timing is not None and len(alphas) > 1:
            animation.append(Chunk(container.ANIMATION, timing.animation().pack()))
        return [
            Chunk(container.HEAD, head.pack()),
            *about,
            *animation,
            *itertools.chain.from_iterable(
                (*frame, *alpha) for frame, alpha in zip(frames, alphas, strict=True)
            ),
            Chunk(container.DONE, b""),
        ]

    images: Iterable[Image.Image] = pictures
    max_size = None
    if target_size is not None:
        images = list(pictures)
        # What is no latents does not depend on the quality.
        others = container.size(chunks([[]] * len(images), header.quantisation))
        max_size = target_size - others
    try:
        encoded = codec.encode(
            images,
            model=model,
            coding=coding,
            quality=quality,
            effort=effort,
            max_size=max_size,
            predict=timing is not None,
        )
    except codec.DoesNotFit as e:
        smallest = others + e.smallest
        msg = f"target_size is {target_size}, but the smallest file has {smallest} bytes"
        raise ValueError(msg) from e

    fp.write(container.write(chunks(encoded.frames, encoded.quantisation)))


def _convert(im: Image.Image) -> Image.Image:
    """The picture in the mode it is saved as; ValueError for the modes that cannot be."""
    if im.mode in CONVERT_FIRST:
        msg = f"cannot write mode {im.mode} as SDZ: scale it to 8 bits, then convert it to 'L'"
        raise ValueError(msg)
    if im.mode not in SAVED_AS:
        msg = f"cannot write mode {im.mode} as SDZ: convert it to 'RGB'"
        raise ValueError(msg)
    mode = SAVED_AS[im.mode]
    if im.mode in ("1", "L", "P", "RGB") and im.has_transparency_data:
        mode += "A"
    if mode == im.mode:
        return im
    try:
        return im.convert(mode)
    except (ImportError, TypeError, ValueError) as e:  # littleCMS missing, odd transparency
        msg = f"cannot convert mode {im.mode} to {mode} for SDZ: {e}"
        raise ValueError(msg) from e


def _metadata(im: Image.Image) -> list[Chunk]:
    """The chunks before LATN: from the keywords, else from the picture; None and b"" drop."""
    from . import save_options

    options = {**im.info, **im.encoderinfo}
    if "icc_profile" not in im.encoderinfo and im.mode in ("CMYK", "YCbCr", "HSV", "LAB"):
        # The pixels are converted to RGB, of which a profile for inks, say, tells nonsense.
        # Bytes 16 to 19 of a profile name its colour space (ICC.1:2022, 7.2.8).
        profile = options.get("icc_profile")
        is_rgb = isinstance(profile, bytes) and profile[16:20] == b"RGB "
        options["icc_profile"] = profile if is_rgb else None
    others = im.encoderinfo.get("chunks", im.info.get("sdz_chunks"))
    return [*save_options.known_metadata(options), *save_options.other_chunks(others)]


def register() -> None:
    """Add the format to Pillow's registry; idempotent."""
    Image.register_open(SdzImageFile.format, SdzImageFile, _accept)
    Image.register_save(SdzImageFile.format, _save)
    Image.register_save_all(SdzImageFile.format, _save_all)
    Image.register_extension(SdzImageFile.format, ".sdz")
    Image.register_mime(SdzImageFile.format, "image/x-sdz")


register()
