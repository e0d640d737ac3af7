"""What Django's tests of its image fields check of a format, checked with `.sdz`.

Each test names Django's tests (5.2, in its folder tests) that check the same with PNG and WebP:
forms_tests/field_tests/test_imagefield.py, files/tests.py, model_fields/test_imagefield.py and
validators/tests.py.
"""

from __future__ import annotations

import mimetypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from sdz_files import assert_similar, encode

django = pytest.importorskip("django", reason="needs django")

from django.conf import settings  # noqa: E402

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    STORAGES={"default": {"BACKEND": "django.core.files.storage.InMemoryStorage"}},
)
django.setup()

from django.core.exceptions import ValidationError  # noqa: E402
from django.core.files.base import ContentFile  # noqa: E402
from django.core.files.images import ImageFile, get_image_dimensions  # noqa: E402
from django.core.files.uploadedfile import (  # noqa: E402
    SimpleUploadedFile,
    TemporaryUploadedFile,
)
from django.core.validators import validate_image_file_extension  # noqa: E402
from django.db import connection, models  # noqa: E402
from django.forms import ClearableFileInput, ImageField  # noqa: E402
from django.http import FileResponse  # noqa: E402


class Person(models.Model):
    """As in Django's own tests, the dimensions are stored with the picture."""

    portrait = models.ImageField(
        null=True, width_field="portrait_width", height_field="portrait_height"
    )
    portrait_width = models.PositiveIntegerField(null=True)
    portrait_height = models.PositiveIntegerField(null=True)

    class Meta:
        app_label = "conformance"


@pytest.fixture
def table() -> Iterator[None]:
    with connection.schema_editor() as editor:
        editor.create_model(Person)
    yield
    with connection.schema_editor() as editor:
        editor.delete_model(Person)


@pytest.fixture
def truncated(data: bytes) -> bytes:
    return data[:-30]


class TestForm:
    def test_annotated_after_clean(self, data: bytes) -> None:
        """test_imagefield_annotate_with_image_after_clean: the format, and the true MIME type."""
        upload = SimpleUploadedFile("photo.sdz", data, content_type="text/plain")
        cleaned = ImageField().clean(upload)
        assert cleaned.image.format == "SDZ"
        assert cleaned.content_type == "image/x-sdz"
        # verify has read the file, and it is read again to store it.
        assert cleaned.read() == data

    def test_large_upload(self, photo: Image.Image, data: bytes) -> None:
        """test_imagefield_annotate_...: an upload that Django keeps on the disk."""
        with TemporaryUploadedFile("photo.sdz", "", len(data), None) as upload:
            upload.write(data)
            upload.seek(0)
            cleaned = ImageField().clean(upload)
            assert cleaned.image.size == photo.size

    def test_extension(self, data: bytes) -> None:
        """test_file_extension_validation"""
        with pytest.raises(ValidationError, match="“txt” is not allowed"):
            ImageField().clean(SimpleUploadedFile("photo.txt", data))

    def test_corrupted(self, data: bytes, truncated: bytes) -> None:
        """test_corrupted_image: not a picture, half of one, and one with a wrong byte."""
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 1
        for content in (b"not a picture", truncated, bytes(flipped)):
            with pytest.raises(ValidationError, match="corrupted image"):
                ImageField().clean(SimpleUploadedFile("photo.sdz", content))

    def test_file_chooser(self) -> None:
        """test_widget_attrs_accept_specified: what the browser offers for upload."""
        assert ImageField().widget.attrs == {"accept": "image/*"}
        widget = ClearableFileInput(attrs={"accept": "image/*,.sdz"})
        assert 'accept="image/*,.sdz"' in ImageField(widget=widget).widget.render("photo", None)


@pytest.mark.parametrize("name", ["photo.sdz", "PHOTO.SDZ"])
def test_extension_validator(name: str) -> None:
    """validators/tests.py, validate_image_file_extension: Pillow's extensions, in any case."""
    validate_image_file_extension(ContentFile(b"contents", name=name))


def test_without_the_import(data: bytes, tmp_path: Path, environment: dict[str, str]) -> None:
    """Django asks Pillow for the formats. It needs the plugin to be imported."""
    (tmp_path / "photo.sdz").write_bytes(data)
    script = """
import sys
from pathlib import Path
from django.conf import settings
settings.configure()
if sys.argv[1:] == ["imported"]:
    import pillow_sdz
from django.core.exceptions import ValidationError
from django.core.files.uploadedfile import SimpleUploadedFile
from django.forms import ImageField
try:
    ImageField().clean(SimpleUploadedFile("photo.sdz", Path("photo.sdz").read_bytes()))
except ValidationError as e:
    print(e.code)
else:
    print("accepted")
"""

    def outcome(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    assert outcome() == "invalid_image"
    assert outcome("imported") == "accepted"


class TestDimensions:
    """files/tests.py: get_image_dimensions, which feeds a parser with 1,024 bytes at a time."""

    def test_name_and_file(self, path: Path) -> None:
        """test_closing_of_filenames, test_not_closing_of_files: closes what it has opened."""
        assert get_image_dimensions(str(path)) == (61, 43)
        with path.open("rb") as stream:
            stream.seek(7)
            assert get_image_dimensions(stream) == (61, 43)
            assert not stream.closed
            assert stream.tell() == 7

    def test_multiple_calls(self, path: Path) -> None:
        """test_multiple_calls, test_bug_19457: the second call gives the same as the first."""
        with path.open("rb") as stream:
            file = ImageFile(stream)
            for _ in range(2):
                assert get_image_dimensions(file) == (61, 43)
            assert (file.width, file.height) == (61, 43)

    def test_large_metadata(self, photo: Image.Image) -> None:
        """test_webp: the same for a file whose picture begins some chunks later."""
        data = encode(photo, icc_profile=bytes(10_000), xmp=bytes(10_000))
        assert get_image_dimensions(ContentFile(data)) == (61, 43)

    def test_invalid(self, data: bytes, truncated: bytes) -> None:
        """test_invalid_image: unknown dimensions are no error. Half a picture has known ones."""
        assert get_image_dimensions(ContentFile(b"not a picture")) == (None, None)
        assert get_image_dimensions(ContentFile(data[:20])) == (None, None)
        assert get_image_dimensions(ContentFile(truncated)) == (61, 43)


@pytest.mark.usefixtures("table")
class TestModel:
    """model_fields/test_imagefield.py, ImageFieldTests and ImageFieldTwoDimensionsTests."""

    @pytest.fixture
    def file(self, data: bytes) -> Any:
        return ImageFile(ContentFile(data, name="photo.sdz"), name="photo.sdz")

    def check(self, person: Person, width: int | None, height: int | None) -> None:
        assert (person.portrait_width, person.portrait_height) == (width, height)
        if width is not None:
            assert (person.portrait.width, person.portrait.height) == (width, height)

    def test_assigned(self, photo: Image.Image, file: Any) -> None:
        """test_constructor, test_create, test_assignment_to_None: dimensions follow."""
        person = Person(portrait=file)
        self.check(person, 61, 43)
        person.save()
        self.check(person, 61, 43)
        person.portrait = None
        self.check(person, None, None)
        turned = encode(photo.transpose(Image.Transpose.ROTATE_90))
        person.portrait = ImageFile(ContentFile(turned), name="turned.sdz")
        self.check(person, 43, 61)

    def test_saved_and_deleted(self, file: Any) -> None:
        """test_field_save_and_delete_methods, test_dimensions"""
        person = Person()
        person.portrait.save("portrait.sdz", file)
        self.check(Person.objects.get(), 61, 43)
        person.portrait.delete()
        self.check(Person.objects.get(), None, None)

    def test_opened_again(self, photo: Image.Image, file: Any) -> None:
        """test_image_field_io_closed_file: what was stored opens as a picture."""
        Person.objects.create(portrait=file)
        with Person.objects.get().portrait.open() as stream, Image.open(stream) as im:
            assert_similar(im.convert("RGB"), photo, 8)


def test_response(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """file_responses: Python guesses the content type, so it must know `.sdz`."""
    # Only for this process, whatever the machine's own tables say.
    monkeypatch.setattr(mimetypes, "_db", mimetypes.MimeTypes(filenames=()))
    with path.open("rb") as stream:
        assert FileResponse(stream)["Content-Type"] == "application/octet-stream"
        mimetypes.add_type("image/x-sdz", ".sdz")
        assert FileResponse(stream)["Content-Type"] == "image/x-sdz"


def test_snippet(
    snippet: Callable[[str], dict[str, Any]],
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An application with the lines of docs/tools.md serves the right type."""
    monkeypatch.setattr(mimetypes, "_db", mimetypes.MimeTypes(filenames=()))
    gallery = ModuleType("gallery")
    gallery.__path__ = [str(path.parent)]
    snippet("django")["GalleryConfig"]("gallery", gallery).ready()
    with path.open("rb") as stream:
        assert FileResponse(stream)["Content-Type"] == "image/x-sdz"
