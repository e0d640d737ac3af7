"""Pillow's side of `.sdz`: opening and decoding.  `saving` writes.

`_open` makes a copy if the file is on disk.  It finds all chunks and reads the metadata.  LATN,
DIFF and ALPH are read when the pixels are first needed.  The models' registry and ONNX Runtime are
imported at the same time, not earlier.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile

from . import catalogue, chunks, reading
from .pillow_private import UndecodedFile, check_pixels, descriptor
from .signature import FORMAT, SIGNATURE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .arrays import Box
    from .chunks import Denoising
    from .decoding import Frames
    from .layers import Layers
    from .pillow_private import PixelAccess


# A copy of up to this many bytes stays in memory.  A larger copy goes to a temporary file.  Chosen:
# few files are larger.  Both ways take about half a millisecond for each megabyte.
IN_MEMORY = 64 << 20


def _copy(fp: IO[bytes]) -> reading.Reader:
    """A reader of a copy of the file, which nobody else can change or empty."""
    fp.seek(0, os.SEEK_END)  # which need not return the place
    size = fp.tell()
    fp.seek(0)
    if size > IN_MEMORY:
        import mmap
        import shutil
        import tempfile

        try:
            with tempfile.TemporaryFile() as file:
                shutil.copyfileobj(fp, file)
                file.flush()
                copy: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return reading.Reader(copy)
        except OSError:  # no folder for temporary files, or no space in it
            fp.seek(0)
    return reading.Reader(BytesIO(reading.read(fp, size)))


class SdzImageFile(UndecodedFile):
    format = FORMAT
    format_description = "Image kept as the latents of an autoencoder"

    # Copies and unpickled pictures have these values.
    n_frames = 1
    is_animated = False
    _frame = 0

    # Opening a file is fast if an object has at most 30 attributes of its own (CPython 3.11).
    _truncated: str | None = None
    _latents: Frames | None = None
    _scale = 1

    def _open(self) -> None:
        assert self.fp is not None
        if self.fp.read(len(SIGNATURE)) != SIGNATURE:
            msg = "not an SDZ file"
            raise SyntaxError(msg)

        # From here on it is an SDZ file, and every error is an OSError.  Pillow takes other
        # exceptions for "not this format", and hides the reason from the user.
        # Somebody may save over the file before its pictures are decoded.  `Image.save` empties it
        # before this package knows, so the pictures are decoded from a copy.
        on_disk = descriptor(self.fp) is not None
        reader = _copy(self.fp) if on_disk else reading.Reader(self.fp)
        header = reader.header
        # Pillow checks this as well, but only after the metadata has been read.
        check_pixels(header.size)
        self._model, self._coding = catalogue.judge(header)
        self.n_frames = header.frames
        self.is_animated = header.frames > 1
        if self.is_animated:
            self._keep_open()

        self._header, self._reader = header, reader
        # Chunks that decoding does not need.  `_part` checks their CRC once.
        self._unread: list[reading.Entry] = []
        entries = self._read_chunks()
        self._frames = reading.Frames(entries, len(reader.bands))
        self._show(0)

    def _read_chunks(self) -> list[reading.Entry]:
        """Read the chunks before the latents, and find where all chunks lie.

        If the file ends within the first frame or later, it opens, and `load` fails.  Pillow's own
        formats do the same, and ImageFile.Parser counts on it.
        """
        reader, header = self._reader, self._header
        entries: list[reading.Entry] = []
        copied: list[tuple[bytes, bytes]] = []
        found: dict[str, Any] = {}
        try:
            for entry in reader:
                entries.append(entry)
                if entry.type in chunks.FRAME:
                    continue
                kind = chunks.KINDS.get(entry.type)
                # Unknown chunks that are not safe to copy are not kept.
                if not (kind.at_open if kind is not None else chunks.is_copied(entry.type)):
                    self._unread.append(entry)
                    continue
                try:
                    data = reader.data(entry)
                except reading.TruncatedError:
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
            truncated = isinstance(e, reading.TruncatedError)
            has_pixels = any(entry.type in chunks.FRAME for entry in entries)
            if not (truncated or ImageFile.LOAD_TRUNCATED_IMAGES) or not has_pixels:
                raise
            self._truncated = str(e)
        catalogue.judge_chunks(self._model, self._coding, {entry.type for entry in entries})
        self._note(found)
        if copied:
            self.info["sdz_chunks"] = copied
        self.info["sdz"]["bytes"] = _count_bytes(entries)
        return entries

    def _note(self, found: dict[str, Any]) -> None:
        """Keep the values of the chunks before the latents; ``found`` has them by keyword."""
        header = self._header
        self._values = found
        about: dict[str, Any] = {
            "model": header.model,
            "coding": self._coding.name,
            "latents": header.latents,
            "factor": header.factor,
            **self._coding.said(header.quantisation),
            "reconstructed": True,
        }
        if (denoising := self._value(chunks.DENOISING)) is not None:
            strength, steps = denoising
            about["denoise"] = {"strength": strength / 1000, "steps": steps}
        for kind in (chunks.PROMPT, chunks.TUNE):
            if kind.keyword in found:
                about[kind.keyword] = found[kind.keyword]
        for kind in chunks.METADATA:
            if kind.keyword in found:
                self.info[kind.keyword] = found[kind.keyword]
        if (animation := self._value(chunks.ANIMATION)) is not None:
            self._timestamps = animation.timestamps(header.frames)
            self.info["loop"] = animation.loop
        self.info["sdz"] = about

    def _value(self, kind: chunks.Kind, default: Any = None) -> Any:
        """The value of a chunk before the latents, if there is one."""
        return self._values.get(kind.keyword, default)

    @functools.cached_property
    def _layers(self) -> Layers:
        from .layers import Layers  # here, because most files do not need it

        return Layers(self._header, self._frames, self._reader)

    def _show(self, frame: int) -> None:
        """Choose the frame that the next load decodes."""
        self._frame = frame
        # `thumbnail` and `putalpha` change them in place, perhaps while another frame was shown.
        self._become(self._header.size, self._header.mode)
        self._scale = 1
        exact = self._frames.exact(frame)
        self.info["sdz"]["exact"] = 0 if exact is None else self._layers.share(frame)
        if (animation := self._value(chunks.ANIMATION)) is not None:
            self.info["timestamp"] = self._timestamps[frame]
            self.info["duration"] = animation.duration(frame)

    def seek(self, frame: int) -> None:
        """Go to a frame, counted from 0; EOFError if there is none."""
        if self._returns_to_file(frame):
            self._show(frame)

    def tell(self) -> int:
        return self._frame

    def draft(
        self, mode: str | None, size: tuple[int, int] | None
    ) -> tuple[str, tuple[int, int, float, float]] | None:
        """Have `load` decode the picture at 1/2, 1/4 or 1/8 of its size, but not below ``size``.

        That is faster, and `Image.thumbnail` uses it.  If the picture is loaded or has a draft, or
        if the model has no reduced decoders, nothing changes and the result is None.  ``mode`` is
        ignored.
        """
        if not self.tile or self._scale > 1 or size is None:
            return None
        scales = sorted(self._model.scales, reverse=True)
        if scales == [1]:
            return None
        width, height = self.size
        fitting = min(width // max(1, size[0]), height // max(1, size[1]))
        self._scale = next(scale for scale in scales if scale == 1 or scale <= fitting)
        self._become((-(-width // self._scale), -(-height // self._scale)), self.mode)
        return self.mode, (0, 0, width / self._scale, height / self._scale)

    def crop(self, box: tuple[float, float, float, float] | None = None) -> Image.Image:
        """A part of the picture, as `Image.crop` returns it.

        If the picture is not loaded, each call decodes only what the part needs.  The file stays
        open, and the picture stays unloaded.  A model that decodes no parts loads the picture.
        """
        if self.tile and box is not None and self._model.by_area:
            left, top, right, bottom = (round(edge) for edge in box)
            inside = max(left, 0), max(top, 0), min(right, self.width), min(bottom, self.height)
            if inside[0] < inside[2] and inside[1] < inside[3] and inside != (0, 0, *self.size):
                found = self._part(inside)
                shifted = left - inside[0], top - inside[1], right - inside[0], bottom - inside[1]
                return self._with_pixels(found.crop(shifted).im)
        return super().crop(box)

    def verify(self) -> None:
        """Check the file's structure and every chunk's CRC, without decoding the picture."""
        if self.fp is None:
            msg = "verify must be called directly after open"
            raise RuntimeError(msg)
        try:
            reader = reading.Reader(self.fp)
            for entry in reader:
                reader.data(entry)
        finally:
            super().verify()

    def load(self) -> PixelAccess | None:
        if self.tile:
            self.im = self._part((0, 0, *self.size)).im
            self.tile = []
            self._leave_file()
        return super().load()

    def load_seek(self, pos: int) -> None:
        """Never called.  Because it exists, ImageFile.Parser waits for the whole file."""

    def _part(self, box: Box) -> Image.Image:
        """Decode a part of the frame; ``box`` is in its pixels.

        OSError if the part is damaged.  With LOAD_TRUNCATED_IMAGES, damaged pixels are black, and
        damaged alpha is opaque.
        """
        handled = sys.exc_info()[1]
        if self._truncated and isinstance(handled, OSError) and getattr(self.fp, "closed", False):
            # ImageFile.Parser opens the bytes that it has so far.  If it then fails to open the
            # whole file, it loads the first picture in a `finally`.  An error here would hide why
            # the whole file could not be opened.
            raise handled
        if self.fp is None or getattr(self.fp, "closed", False):  # some file objects lack it
            msg = "the pixels of a closed image cannot be decoded"
            raise ValueError(msg)
        lenient = ImageFile.LOAD_TRUNCATED_IMAGES
        if not lenient:
            for entry in self._unread:
                self._reader.data(entry)  # checks the CRC
            self._unread = []
        # In a truncated file, only the last frame that was found can be incomplete.
        last = len(self._frames) - 1
        if self._truncated and (self._frame > last or (self._frame == last and not lenient)):
            raise OSError(self._truncated)
        steps = self._value(chunks.CLIP, 1)
        if self._model.space.video and self._frame % steps:
            msg = (
                f"frame {self._frame} is a time step of a clip of {self._model.name} latents: only "
                f"the first of its {steps} steps is a picture, open_latents returns all of them"
            )
            raise OSError(msg)
        # Alpha and exact regions are read before the network runs.  If they are damaged, the work
        # of the network would be lost.
        alpha = None
        if self._header.has_alpha:
            alpha = self._layers.alpha(self._frame, box, self._scale, lenient=lenient)
        exact = self._layers.exact(self._frame, lenient=lenient)
        size = box[2] - box[0], box[3] - box[1]
        found = Image.new("L" if self.mode.startswith("L") else "RGB", size)
        rest = [box] if exact is None else list(exact.rest(box, self._scale))
        if rest:
            self._reconstruct(found, box, rest, lenient=lenient)
        if exact is not None:
            if box == (0, 0, *self.size) and not lenient:
                for entry in self._frames.bands(self._frame):
                    self._reader.data(entry)  # checks the CRC, also if no latents are needed
            exact.paste(found, box, self._scale)
        if alpha is not None:
            found.putalpha(alpha)
        return found

    def _reconstruct(
        self, found: Image.Image, whole: Box, boxes: Sequence[Box], *, lenient: bool
    ) -> None:
        """Paste what the latents show of some boxes, from top to bottom, onto a picture.

        The picture shows the part ``whole`` of the frame, and has mode L or RGB.
        """
        from . import codec, decoding, models, options

        # LOAD_TRUNCATED_IMAGES is about files: errors of the models are always raised.
        header = self._header
        tune = self._value(chunks.TUNE, chunks.TUNES[0])
        decoder = models.decoder_for(self._model, header.digest, tune)
        models.load(decoder)
        refine = None
        recommended: Denoising | None = self._value(chunks.DENOISING)
        denoising = recommended if options.DENOISE is None else options.DENOISE
        # A U-Net needs all latents at once, and torch.
        if denoising and not decoder.space.is_own:
            from .models import denoise

            size = header.latents[1:]
            refine = denoise.refiner(decoder, recommended, self._value(chunks.PROMPT, ""), size)
        # Zeros take the place of damaged bands.  They have all channels, so sound bands need all.
        scale = 1 if lenient else self._scale
        if self._latents is None or self._latents.scale != scale:
            self._latents = decoding.Frames(
                header,
                self._model,
                self._coding,
                self._reader.bands,
                self._frames,
                self._reader,
                scale,
            )
        latents = self._latents.frame(self._frame, lenient=lenient)
        if not decoder.by_area or refine is not None:
            boxes = [whole]  # such a model decodes everything anyway
        for box in boxes:
            at = box[0] - whole[0], box[1] - whole[1]
            for (left, top, right, bottom), pixels in codec.decode(
                latents, decoder=decoder, box=box, scale=self._scale, refine=refine
            ):
                place = at[0] + left, at[1] + top, at[0] + right, at[1] + bottom
                shown = Image.fromarray(pixels)
                if self._value(chunks.GREY):
                    shown = shown.convert("L")
                found.paste(shown.convert(found.mode), place)
        for rows, reason, shown_in_part in latents.losses:
            top, bottom = (n * header.factor // self._scale for n in (rows.start, rows.stop))
            what = "guessed in part" if shown_in_part else "black"
            message = f"{reason}: the rows {top} to {min(bottom, self.height)} are {what}"
            warnings.warn(message, stacklevel=5)
            if not shown_in_part:
                lost = max(top - whole[1], 0), max(bottom - whole[1], 0)
                found.paste(0, (0, lost[0], found.width, lost[1]))


def _count_bytes(entries: Sequence[reading.Entry]) -> dict[str, int]:
    """The bytes of a file by what they hold; their sum is the file's size."""
    counts = {"latents": 0, "exact": 0, "alpha": 0, "metadata": 0, "container": entries[-1].end}
    for entry in entries:
        counts[chunks.holds(entry.type)] += entry.length
        counts["container"] -= entry.length
    return counts
