"""Pillow's side of `.sdz`: opening and decoding; `saving` writes.

`_open` reads chunk headers and metadata only.  LATN, DIFF and ALPH are read, and the models'
registry and torch are imported, when the pixels are first needed.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile

from . import alpha as alpha_channel
from . import catalogue, chunks, container
from .container import MAX_CHANGES
from .pillow_private import DeferredError, check_pixels, undecoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL._imaging import PixelAccess

    from .arrays import Box
    from .chunks import Animation, Denoising
    from .codec import Frames


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
        check_pixels(header.size)
        self._model, self._coding = catalogue.judge(header)
        self._size = header.size
        self._mode = header.mode
        self.n_frames = header.frames
        self.is_animated = header.frames > 1
        self._close_exclusive_fp_after_loading = not self.is_animated

        self._header, self._reader = header, reader
        # Chunks without which the picture can be decoded; for the CRC, before the first load.
        self._unread: list[container.Entry] = []
        entries = self._read_chunks()
        self._frames = container.frames(entries, len(reader.bands))
        self._latents: Frames | None = None
        if self.is_animated:
            self._fp = self.fp  # load lets go of fp; Pillow's name for what close closes as well
        self._show(0)

    def _read_chunks(self) -> list[container.Entry]:
        """Read what stands before the latents, and where all chunks lie.

        A file that ends within the latents or later opens and fails in load, as Pillow's own
        formats do; ImageFile.Parser counts on that.
        """
        reader, header = self._reader, self._header
        self._truncated: str | None = None
        entries: list[container.Entry] = []
        copied: list[tuple[bytes, bytes]] = []
        found: dict[str, Any] = {}
        try:
            for entry in reader:
                entries.append(entry)
                kind = chunks.KINDS.get(entry.type)
                # What is not safe to copy would only take memory.
                is_copied = not chunks.is_known(entry.type) and chunks.is_safe_to_copy(entry.type)
                if not is_copied and not (kind is not None and kind.at_open):
                    if entry.type not in chunks.FRAME:
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
                if kind is None:
                    copied.append((entry.type, data))
                else:
                    found[kind.keyword] = kind.parse(data, header)
        except OSError as e:
            truncated = isinstance(e, container.TruncatedError)
            has_latents = any(entry.type in chunks.CODED for entry in entries)
            if not (truncated or ImageFile.LOAD_TRUNCATED_IMAGES) or not has_latents:
                raise
            self._truncated = str(e)
        self._note(found)
        if copied:
            self.info["sdz_chunks"] = copied
        self.info["sdz"]["bytes"] = _count_bytes(entries)
        return entries

    def _note(self, found: dict[str, Any]) -> None:
        """Keep what the chunks before the latents say, by their keywords."""
        header = self._header
        self._denoising: Denoising | None = found.get(chunks.DENOISING.keyword)
        self._prompt: str = found.get(chunks.PROMPT.keyword, "")
        self._tune: str = found.get(chunks.TUNE.keyword, chunks.TUNES[0])
        self._animation: Animation | None = found.get(chunks.ANIMATION.keyword)
        about: dict[str, Any] = {
            "model": header.model,
            "coding": self._coding.name,
            "latents": header.latents,
            "factor": header.factor,
            **self._coding.said(header.quantisation),
            "reconstructed": True,
        }
        if self._denoising is not None:
            strength, steps = self._denoising
            about["denoise"] = {"strength": strength / 1000, "steps": steps}
        for kind in (chunks.PROMPT, chunks.TUNE):
            if kind.keyword in found:
                about[kind.keyword] = found[kind.keyword]
        for kind in chunks.METADATA:
            if kind.keyword in found:
                self.info[kind.keyword] = found[kind.keyword]
        if self._animation is not None:
            self._timestamps = self._animation.timestamps(header.frames)
            self.info["loop"] = self._animation.loop
        self.info["sdz"] = about

    def _show(self, frame: int) -> None:
        """Make ``frame`` what the next load decodes."""
        self._frame = frame
        # A thumbnail of another frame, or its alpha, may have changed them in place.
        self._size, self._mode = self._header.size, self._header.mode
        self._scale = 1
        self._im = None
        self.tile = undecoded(self.size)
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

        That takes a part of the time; `Image.thumbnail` makes use of it.  As with JPEGs, once there
        are pixels or a draft, nothing changes and the result is None.  ``mode`` is not looked at.
        The result is always None with a model that has no reduced decoders.
        """
        scales = sorted(self._model.scales, reverse=True)
        if not self.tile or self._scale > 1 or size is None or scales == [1]:
            return None
        width, height = self.size
        fitting = min(width // max(1, size[0]), height // max(1, size[1]))
        self._scale = next(scale for scale in scales if scale == 1 or scale <= fitting)
        self._size = -(-width // self._scale), -(-height // self._scale)
        self.tile = undecoded(self.size)
        return self.mode, (0, 0, width / self._scale, height / self._scale)

    def crop(self, box: tuple[float, float, float, float] | None = None) -> Image.Image:
        """A part of the picture, as `Image.crop` has it.

        Before the picture is loaded, only what the part needs is decoded, anew at each call.  The
        file stays open, and the picture unloaded.  With a model whose pictures only come whole,
        the picture is loaded.
        """
        if self.tile and box is not None and self._model.by_area:
            left, top, right, bottom = (round(edge) for edge in box)
            inside = max(left, 0), max(top, 0), min(right, self.width), min(bottom, self.height)
            if inside[0] < inside[2] and inside[1] < inside[3] and inside != (0, 0, *self.size):
                found = self._part(inside)
                shifted = left - inside[0], top - inside[1], right - inside[0], bottom - inside[1]
                return self._new(found.crop(shifted).im)
        return super().crop(box)

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

    def _part(self, box: Box) -> Image.Image:
        """A part of the frame, decoded; ``box`` is in its pixels.

        OSError where it is damaged, unless LOAD_TRUNCATED_IMAGES is set: then black, or opaque.
        """
        if self.fp is None or getattr(self.fp, "closed", False):  # not every file object has it
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
        decoder = models.decoder_for(self._model, header.digest, self._tune)
        models.load(decoder)
        refine = None
        if not decoder.by_area:  # a U-Net sees all of the latents
            from .models import denoise

            size = header.latents[1:]
            refine = denoise.refiner(decoder, self._denoising, self._prompt, size)
        # Before the network runs, since damage here makes its work vain.
        alpha = self._alpha(box) if header.has_alpha else None
        if self._latents is None:
            self._latents = codec.Frames(
                header,
                self._model,
                self._coding,
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

    def _alpha(self, box: Box) -> Image.Image:
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


def _count_bytes(entries: Sequence[container.Entry]) -> dict[str, int]:
    """Where the bytes of a file with these chunks went; together, the file's size."""
    counts = {"latents": 0, "alpha": 0, "metadata": 0, "container": 0}
    for entry in entries:
        if entry.type in chunks.CODED:
            kind = "latents"
        elif entry.type == chunks.ALPHA:
            kind = "alpha"
        elif entry.type in (chunks.HEAD, chunks.BANDS.type):
            kind = "container"
        else:
            kind = "metadata"
        counts[kind] += entry.length
    counts["container"] = entries[-1].end - sum(
        counts[kind] for kind in ("latents", "alpha", "metadata")
    )
    return counts


def _save(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    from . import saving

    saving.save(im, fp, filename)


def _save_all(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    from . import saving

    saving.save_all(im, fp, filename)


def register() -> None:
    """Add the format to Pillow's registry; idempotent."""
    Image.register_open(SdzImageFile.format, SdzImageFile, _accept)
    Image.register_save(SdzImageFile.format, _save)
    Image.register_save_all(SdzImageFile.format, _save_all)
    Image.register_extension(SdzImageFile.format, ".sdz")
    Image.register_mime(SdzImageFile.format, "image/x-sdz")


register()
