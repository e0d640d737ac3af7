"""Pillow's side of `.sdz`: opening, decoding and saving.

`_open` reads chunk headers and metadata only. LATN and ALPH are read, and the models' registry and
torch are imported, when the pixels are first needed.
"""

from __future__ import annotations

from io import BytesIO
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile
from PIL._util import DeferredError

from . import alpha as alpha_channel
from . import container
from .container import Chunk, Denoising, Header
from .embedded_models import EMBEDDED, MINI, MINI_PERCEPTUAL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from PIL._imaging import PixelAccess

    from .embedded_models import ModelSpec

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
        entries: list[container.Entry] = []
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
                decoding = entry.type in (container.DENOISING, container.PROMPT, container.TUNE)
                # What is not safe to copy would only take memory.
                unknown = entry.type not in container.KNOWN
                if not (
                    metadata or decoding or (unknown and container.is_safe_to_copy(entry.type))
                ):
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
                else:
                    copied.append((entry.type, data))
        except OSError as e:
            truncated = isinstance(e, container.TruncatedError)
            if not (truncated or ImageFile.LOAD_TRUNCATED_IMAGES) or not _has_latents(entries):
                raise
            self._truncated = str(e)

        if copied:
            self.info["sdz_chunks"] = copied
        about["bytes"] = _count_bytes(entries)
        self.info["sdz"] = about
        # The decoder gets the whole file and parses it anew. That costs nothing beside the network,
        # and whatever opened from its first bytes (ImageFile.Parser) is checked in full.
        self.decodermaxblock = reader.file_size
        self._header = header
        if self.is_animated:
            self._fp = self.fp  # load lets go of fp; Pillow's name for what close closes as well
        self._show(0)

    def _show(self, frame: int) -> None:
        """Make ``frame`` what the next load decodes."""
        self._frame = frame
        # A thumbnail of another frame, or its alpha, may have changed them in place.
        self._size, self._mode = self._header.size, self._header.mode
        self._im = None
        counts = self.info["sdz"]["bytes"]
        args = (self._header, counts, frame, self._tune, self._denoising, self._prompt)
        self.tile = [ImageFile._Tile("sdz", (0, 0, *self.size), 0, args)]

    def seek(self, frame: int) -> None:
        """Go to a frame, counted from 0; EOFError where there is none."""
        if self._seek_check(frame):
            if isinstance(self._fp, DeferredError):
                raise self._fp.ex  # the image has been closed
            self.fp = self._fp
            self._show(frame)

    def tell(self) -> int:
        return self._frame

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
        # Pillow would only count the bytes that were not processed.
        if self.tile and self._truncated and not ImageFile.LOAD_TRUNCATED_IMAGES:
            raise OSError(self._truncated)
        return super().load()


class SdzDecoder(ImageFile.PyDecoder):
    """Decodes once the buffer holds the whole file.

    Errors are raised instead of returned as codes: so the message says what is wrong and where, and
    Pillow keeps the tile, so that loading again fails again.
    """

    _pulls_fd = False

    def init(self, args: tuple[Any, ...]) -> None:
        self._header: Header
        self._bytes: dict[str, int]
        self._frame: int
        self._tune: str
        self._denoising: Denoising | None
        self._prompt: str
        (
            self._header,
            self._bytes,
            self._frame,
            self._tune,
            self._denoising,
            self._prompt,
        ) = args
        self._colour: Image.Image | None = None

    def decode(self, buffer: Image.DecoderInput) -> tuple[int, int]:
        assert isinstance(buffer, bytes)
        if not ImageFile.LOAD_TRUNCATED_IMAGES:
            try:
                for _ in container.Reader(BytesIO(buffer)):
                    pass
            except container.TruncatedError:
                return 0, 0  # Parser feeds more; load finds that there is no more and says so
        from . import models

        # What is missing or damaged of the models is not what LOAD_TRUNCATED_IMAGES is about.
        decoder = models.decoder_for(
            self._header.model,
            self._header.digest,
            self._header.channels,
            self._header.factor,
            perceptual=self._tune == "perceptual",
        )
        models.load(decoder)
        refine = None
        if self._header.model != MINI.name:
            from . import denoise

            refine = denoise.refiner(decoder, self._denoising, self._prompt)
        try:
            self._decode(container.Reader(BytesIO(buffer)), decoder, refine)
        except container.TruncatedError:
            return 0, 0
        except OSError:
            if not ImageFile.LOAD_TRUNCATED_IMAGES:
                raise
            return -1, -2
        return -1, 0

    def _decode(
        self,
        reader: container.Reader,
        decoder: ModelSpec,
        refine: Callable[[Any], Any] | None,
    ) -> None:
        """Fill the image; TruncatedError where more of the file is needed to complete it."""
        if reader.header != self._header:
            msg = "the SDZ file has changed since it was opened"
            raise OSError(msg)
        entries: list[container.Entry] = []
        truncated: container.TruncatedError | None = None
        try:
            for entry in reader:
                entries.append(entry)
                if entry.type not in container.FRAME and not ImageFile.LOAD_TRUNCATED_IMAGES:
                    reader.data(entry)  # for the CRC, also of what open did not read
        except OSError as e:
            if not ImageFile.LOAD_TRUNCATED_IMAGES or not _has_latents(entries, self._frame):
                raise
            # Damage after the latents is done with; but more of the file may come.
            truncated = e if isinstance(e, container.TruncatedError) else None
        by_type = _of_frame(entries, self._frame)

        # Before the network runs, since damage here makes its work vain.
        alpha = self._alpha(reader, by_type) if self._header.has_alpha else None
        if self._colour is None:
            from . import codec, models  # imports torch

            try:
                self._colour = codec.decode(
                    reader.data(by_type[container.LATENTS]),
                    model=models.spec(self._header.model),
                    size=self._header.size,
                    coding=self._header.coding,
                    quantisation=self._header.quantisation,
                    decoder=decoder,
                    refine=refine,
                )
            except container.TruncatedError:
                raise
            except OSError:
                if not ImageFile.LOAD_TRUNCATED_IMAGES:
                    raise
                self._colour = Image.new("RGB", self._header.size)  # alpha may be sound
        image = self._colour
        if self._header.mode in ("L", "LA"):
            image = image.convert("L")
        if alpha is not None:
            image = Image.merge(self._header.mode, (*image.split(), alpha))
        self.set_as_raw(image.tobytes())

        if truncated is not None:
            raise truncated
        # The file may have been opened from its first bytes only.
        self._bytes.update(_count_bytes(entries))

    def _alpha(
        self, reader: container.Reader, by_type: Mapping[bytes, container.Entry]
    ) -> Image.Image:
        """The alpha channel; opaque where it is lost and LOAD_TRUNCATED_IMAGES is set."""
        try:
            # Only a truncated file gets here without the chunk.
            data = reader.data(by_type[container.ALPHA]) if container.ALPHA in by_type else b""
            return alpha_channel.decode(data, self._header.size)
        except OSError:
            if not ImageFile.LOAD_TRUNCATED_IMAGES:
                raise
            return Image.new("L", self._header.size, 255)


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


def _of_frame(entries: Sequence[container.Entry], frame: int) -> dict[bytes, container.Entry]:
    """The chunks that concern a frame, by their type."""
    found = {}
    number = -1
    for entry in entries:
        number += entry.type == container.LATENTS
        if entry.type not in container.FRAME or number == frame:
            found[entry.type] = entry
    return found


def _has_latents(entries: Sequence[container.Entry], frame: int = 0) -> bool:
    return container.LATENTS in _of_frame(entries, frame)


def _count_bytes(entries: Sequence[container.Entry]) -> dict[str, int]:
    """Where the bytes of a file with these chunks went; together, the file's size."""
    counts = {"latents": 0, "alpha": 0, "metadata": 0, "container": 0}
    for entry in entries:
        if entry.type == container.LATENTS:
            kind = "latents"
        elif entry.type == container.ALPHA:
            kind = "alpha"
        elif entry.type == container.HEAD:
            kind = "container"
        else:
            kind = "metadata"
        counts[kind] += entry.length
    counts["container"] = entries[-1].end - sum(
        counts[kind] for kind in ("latents", "alpha", "metadata")
    )
    return counts


def _save(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
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
    image = _convert(im)

    *colours, last = image.split()
    alpha = []
    if image.mode.endswith("A"):
        alpha.append(Chunk(container.ALPHA, alpha_channel.encode(last)))
    else:
        colours.append(last)
    # One grey band stands for all three.
    rgb = Image.merge("RGB", colours * 3 if len(colours) == 1 else colours)

    def chunks(payload: bytes, quantisation: int) -> list[Chunk]:
        header = Header(
            image.mode,
            image.size,
            model.name,
            model.digest,
            model.channels,
            model.factor,
            quantisation,
            coding,
        )
        return [
            Chunk(container.HEAD, header.pack()),
            *metadata,
            *for_decoding,
            Chunk(container.LATENTS, payload),
            *alpha,
            Chunk(container.DONE, b""),
        ]

    from . import codec  # imports torch

    # What is not the LATN chunk; it does not depend on the quality.
    fixed = container.size(chunks(b"", int(coding != "float16"))) - container.chunk_size(0)
    max_payload = None if target_size is None else container.largest_data(target_size - fixed)
    try:
        encoded = codec.encode(
            rgb,
            model=model,
            coding=coding,
            quality=quality,
            effort=effort,
            max_payload=max_payload,
        )
    except codec.DoesNotFit as e:
        smallest = fixed + container.chunk_size(e.smallest)
        msg = f"target_size is {target_size}, but the smallest file has {smallest} bytes"
        raise ValueError(msg) from e

    fp.write(container.write(chunks(encoded.payload, encoded.quantisation)))


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
    Image.register_extension(SdzImageFile.format, ".sdz")
    Image.register_mime(SdzImageFile.format, "image/x-sdz")
    Image.register_decoder("sdz", SdzDecoder)


register()
