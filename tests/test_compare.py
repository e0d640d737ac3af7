"""`sdz compare`: its figures, and the page, which is opened in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, features

from pillow_sdz import compare, demo
from pillow_sdz.cli import main
from pillow_sdz.fidelity import psnr, ssim

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.usefixtures("one_process")

# A name has no slash, so that it cannot close an element; it can open them, and a comment.
HOSTILE = "<script>alert(1)<!-- <img onerror=alert(1)> \"'&amp;{{sections}}.png"


@pytest.fixture(scope="module")
def coffee() -> compare.Comparison:
    # A quality, because the search for one that fits a size is tested elsewhere and takes seconds.
    return compare.compare(demo.photo().crop((0, 100, 600, 300)), "coffee.webp", quality=20)


@pytest.fixture
def folder(photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a.png and b.jpg."""
    monkeypatch.chdir(tmp_path)
    photo.save("a.png")
    photo.save("b.jpg")
    return tmp_path


def sections(page: str) -> list[dict[str, Any]]:
    """The data in a page, found as a browser finds it."""

    class Parser(HTMLParser):
        data = ""
        inside = False

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            self.inside = tag == "script" and ("id", "sections") in attributes

        def handle_data(self, data: str) -> None:
            self.data += data if self.inside else ""

        def handle_endtag(self, tag: str) -> None:
            self.inside = False

    parser = Parser()
    parser.feed(page)
    result: list[dict[str, Any]] = json.loads(parser.data)
    return result


def decoded(url: str) -> bytes:
    return base64.b64decode(url.partition(";base64,")[2], validate=True)


# figures


@pytest.mark.slow
def test_every_version_keeps_to_the_bytes_of_the_sdz_or_says_so(
    coffee: compare.Comparison,
) -> None:
    sdz, *others = coffee.versions
    assert [v.codec for v in coffee.versions] == ["sdz", "JPEG", "WebP", "AVIF"]
    assert sdz.fits
    for version in others:
        assert (len(version.data) <= len(sdz.data)) is version.fits


def test_the_figures_are_those_of_the_files(coffee: compare.Comparison) -> None:
    original = np.asarray(coffee.original)
    for version in coffee.versions:
        with Image.open(io.BytesIO(version.data)) as image:
            assert image.format == version.codec.upper()
            decoded = np.asarray(image.convert("RGB"))
        assert np.array_equal(np.asarray(version.picture), decoded)
        assert version.psnr == psnr(original, decoded)
        assert version.ssim == ssim(original, decoded)
        assert version.bits_per_pixel == 8 * len(version.data) / (600 * 200)


@pytest.mark.parametrize("name", ["JPEG", "WebP"])
def test_the_others_are_the_best_that_fit(coffee: compare.Comparison, name: str) -> None:
    # All qualities up to the first that is too large: each codec was given its best chance.
    budget = len(coffee.versions[0].data)
    (version,) = (v for v in coffee.versions if v.codec == name)
    sizes = []
    for quality in range(101):
        file = io.BytesIO()
        coffee.original.save(file, name, quality=quality, **compare.CODECS[name].options)
        if file.tell() > budget:
            break
        sizes.append(file.tell())
    assert len(version.data) == max(sizes)


def test_a_version_over_the_budget_is_the_smallest_and_marked() -> None:
    # A flat picture is a few bytes of latents, and JPEG's tables alone are more.
    flat = compare.compare(Image.new("RGB", (64, 64), "teal"), "flat.png", quality=1)
    sdz, jpeg = flat.versions[:2]
    assert len(jpeg.data) > len(sdz.data)
    assert not jpeg.fits
    worst = io.BytesIO()
    flat.original.save(worst, "JPEG", quality=0, **compare.CODECS["JPEG"].options)
    assert jpeg.data == worst.getvalue()
    assert re.search(r"^JPEG .*  \(its smallest file\)$", flat.table(), re.M)


def test_codecs_that_pillow_lacks_are_left_out(
    photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "check", lambda feature: feature not in ("avif", "webp"))
    comparison = compare.compare(photo, "a.png")
    assert [v.codec for v in comparison.versions] == ["sdz", "JPEG"]
    # WebP is also what the page's pictures are in otherwise.
    pictures = json.loads(compare.section(comparison))["pictures"]
    assert all(url.startswith("data:image/png;base64,") for url in pictures)


def test_codecs_that_have_no_room_are_left_out() -> None:
    long = Image.new("RGB", (compare.WEBP_LARGEST_SIDE + 1, 1))
    names = [v.codec for v in compare.compare(long, "long.png", ("JPEG", "WebP")).versions]
    assert names == ["sdz", "JPEG"]


def test_small_pictures_have_no_ssim() -> None:
    comparison = compare.compare(Image.new("RGB", (10, 30)), "small.png")
    assert [v["ssim"] for v in comparison.figures()["versions"]] == [None] * 4
    assert re.search(r"^sdz .* -$", comparison.table(), re.M)


def test_an_infinite_psnr_is_null(photo: Image.Image) -> None:
    sdz = compare.compare(photo, "a.png").versions[0]
    equal = compare.compare(sdz.picture, "b.png", quality=100).versions[0]
    exact = compare._version("sdz", equal.picture, equal.data, len(equal.data))
    comparison = compare.Comparison("b.png", equal.picture, "RGB", False, (exact,))
    assert comparison.figures()["versions"][0]["psnr"] is None


# what is compared


@pytest.mark.parametrize(
    ("mode", "heading"),
    [
        ("RGB", "61x43"),
        ("L", "61x43, L compared in RGB"),
        ("CMYK", "61x43, CMYK compared in RGB"),
        ("RGBA", "61x43, RGBA compared in RGB on white"),
        ("LA", "61x43, LA compared in RGB on white"),
    ],
)
def test_modes_are_compared_in_rgb(photo: Image.Image, mode: str, heading: str) -> None:
    comparison = compare.compare(photo.convert(mode), "a.png")
    assert comparison.original.mode == "RGB"
    assert comparison.heading() == heading
    assert comparison.figures()["mode"] == mode


def test_colours_under_transparency_do_not_count() -> None:
    picture = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert compare.compare(picture, "a.png").original.getcolors() == [(400, (255, 255, 255))]


def test_more_than_8_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 8 bits"):
        compare.compare(Image.new("I;16", (20, 20)), "a.png")


def test_upright_and_without_metadata(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Artist] = "Vivian"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = io.BytesIO()
    photo.save(file, "PNG", exif=exif, icc_profile=profile)
    with Image.open(file) as image:
        comparison = compare.compare(image, "a.png")
    assert "icc_profile" in image.info
    assert comparison.original.size == (43, 61)
    assert comparison.original.tobytes() == photo.transpose(Image.Transpose.ROTATE_270).tobytes()
    page = compare.section(comparison)
    for url in json.loads(page)["pictures"]:
        with Image.open(io.BytesIO(decoded(url))) as image:
            assert not image.getexif()
            assert "icc_profile" not in image.info
    # Nor does it take bytes from .sdz that the others do not spend.
    with Image.open(io.BytesIO(comparison.versions[0].data)) as image:
        assert image.info["sdz"]["bytes"]["metadata"] == 0


# the command


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--json", "-q", "40", "a.png", str(folder / "b.jpg")]) == 0
    first, second = json.loads(capsys.readouterr().out)
    with Image.open("a.png") as image:
        expected = compare.compare(image, "a.png", quality=40)
    assert first == json.loads(json.dumps(expected.figures()))
    assert second["file"] == str(folder / "b.jpg")
    assert {p.name for p in folder.iterdir()} == {"a.png", "b.jpg"}
    sdz = expected.versions[0]
    assert first["versions"][0] == {
        "codec": "sdz",
        "bytes": len(sdz.data),
        "bits_per_pixel": round(8 * len(sdz.data) / (61 * 43), 4),
        "psnr": round(sdz.psnr, 3),
        "ssim": round(sdz.ssim or 0, 5),
        "fits": True,
    }


def test_a_table_for_each_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a.png", "b.jpg"]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^(\S+): 61x43$", printed, re.M) == ["a.png", "b.jpg"]
    row = r"^(sdz|JPEG|WebP|AVIF) +[\d,]+ +\d\.\d{3} +\d\d\.\d\d +0\.\d{3}"
    assert re.findall(row, printed, re.M) == ["sdz", "JPEG", "WebP", "AVIF"] * 2


def test_options_of_the_encoder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["-t", "700B", "--model", "sd-mini", "--coding", "context", "--effort", "0"]
    assert main(["compare", "--json", "a.png", *options]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    with Image.open("a.png") as image:
        saved = compare.compare(
            image, "a.png", target_size=700, model="sd-mini", coding="context", effort=0
        )
    assert entry["versions"][0]["bytes"] == len(saved.versions[0].data) <= 700


def test_one_bad_picture_does_not_stop_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("notes.png").write_text("no picture")
    names = ["missing.png", "notes.png", "a.png"]
    assert main(["compare", *names, "--report", "new/page.html"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "sdz: missing.png: No such file or directory",
        "sdz: notes.png: not a picture that Pillow can read",
    ]
    page = Path("new/page.html").read_text("utf-8")
    assert [section["file"] for section in sections(page)] == ["a.png"]


def test_no_page_of_nothing(folder: Path) -> None:
    Path("page.html").write_text("precious")
    assert main(["compare", "missing.png", "--report", "page.html"]) == 1
    assert Path("page.html").read_text() == "precious"


def test_a_page_that_cannot_be_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("page.html").mkdir()
    assert main(["compare", "a.png", "--report", "page.html"]) == 1
    assert capsys.readouterr().err.startswith("sdz: page.html: ")
    assert {p.name for p in folder.iterdir()} == {"a.png", "b.jpg", "page.html"}


def test_a_report_is_no_picture(folder: Path) -> None:
    before = Path("b.jpg").read_bytes()
    with pytest.raises(SystemExit) as exit:
        main(["compare", "a.png", "--report", "b.jpg"])
    assert exit.value.code == 2
    assert Path("b.jpg").read_bytes() == before


# the page


def test_the_pictures_are_in_the_page_without_loss(coffee: compare.Comparison) -> None:
    (section,) = sections(compare.report([compare.section(coffee)]))
    expected = [coffee.original, *(v.picture for v in coffee.versions)]
    for url, picture in zip(section["pictures"], expected, strict=True):
        with Image.open(io.BytesIO(decoded(url))) as image:
            assert image.tobytes() == picture.tobytes()
    assert section["versions"] == coffee.figures()["versions"]


def test_the_page_needs_nothing_else(photo: Image.Image) -> None:
    page = compare.report([compare.section(compare.compare(photo, "a.png"))])
    markup = re.sub(r"data:[\w/;]*,[A-Za-z0-9+/=]*", "", page)
    assert not re.search(r"https?:|file:|//\w+\.|@import|url\(|\bsrc=|<iframe|<object", markup)
    assert set(re.findall(r'href="([^"]*)"', markup)) <= {""}
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "img-src data:;" in policy[1]


@pytest.mark.parametrize("name", [HOSTILE, "a\udcff.png", "ä 猫.png"])
def test_names_are_escaped(photo: Image.Image, name: str) -> None:
    comparison = compare.compare(photo, f"/home/vivian/{name}", ())
    plain = compare.compare(photo, "a.png", ())
    page = compare.report([compare.section(comparison)])
    (section,) = sections(page)
    assert section["file"] == name
    # The text is ASCII without markup, and does not say where the picture lies.
    assert page.encode().count(b"<") == compare.report([compare.section(plain)]).count("<")
    assert "vivian" not in page


# the page in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright, see extra test")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Chromium (Debian's package chromium, say)")
    switches = [
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with sync_api.sync_playwright() as playwright:
        # Headless, in a new profile of its own. Chromium's sandbox does not start for root.
        browser = playwright.chromium.launch(
            executable_path=chromium, args=switches, chromium_sandbox=False
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(
    coffee: compare.Comparison, photo: Image.Image, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A page with the photo, and below it a small picture with transparency and a hostile name."""
    below = compare.compare(photo.convert("RGBA"), HOSTILE)
    path = tmp_path_factory.mktemp("report") / "page.html"
    path.write_text(compare.report(map(compare.section, (coffee, below))), "utf-8")
    return path


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """The page in a window that shows all of the photo. It has no errors, and requests nothing."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    yield page
    page.close()
    assert complaints == []
    assert requests == [report.as_uri()]


def seen(page: Page) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """What the window shows of the first picture, (height, width, 3).

    But for its first and last row: the text above ends where it likes, and a row at the edge may
    lie across two of the screen's.
    """
    box = page.locator(".stage").first.bounding_box()
    assert box is not None
    clip = {name: round(value) for name, value in box.items()}
    with Image.open(io.BytesIO(page.screenshot(clip=clip))) as image:
        return np.asarray(image.convert("RGB"))[1:-1]


def pixels(picture: Image.Image) -> np.ndarray[Any, np.dtype[np.int_]]:
    """What `seen` shows of a picture as it is."""
    return np.asarray(picture).astype(int)[1:-1]


@pytest.mark.slow
def test_dragging_the_line(page: Page, coffee: compare.Comparison, tmp_path: Path) -> None:
    handle, left = page.get_by_role("slider").first, page.locator(".side.left").first
    stage = page.locator(".stage").first.bounding_box()
    box = handle.bounding_box()
    assert stage is not None
    assert box is not None
    assert handle.get_attribute("aria-valuenow") == "50"
    assert left.evaluate("side => side.style.clipPath") == "inset(0px 50% 0px 0px)"

    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] / 4, y, steps=5)
    page.mouse.up()
    page.mouse.move(stage["x"] + stage["width"] / 2, y)  # with no button, it stays
    page.screenshot(path=tmp_path / "dragged.png")
    assert handle.get_attribute("aria-valuenow") == "25"
    assert left.evaluate("side => side.style.clipPath") == "inset(0px 75% 0px 0px)"

    # Up to the line the original, from there on .sdz, but for the handle.
    shown = seen(page)
    assert np.array_equal(shown[:, :120], pixels(coffee.original)[:, :120])
    assert np.array_equal(shown[:, 180:], pixels(coffee.versions[0].picture)[:, 180:])


def test_the_keyboard_moves_the_line(page: Page) -> None:
    handle = page.get_by_role("slider").first
    handle.focus()
    positions = []
    for key in ("ArrowLeft", "ArrowRight", "PageUp", "End", "ArrowRight", "Home", "PageDown"):
        page.keyboard.press(key)
        positions.append(handle.get_attribute("aria-valuenow"))
    assert positions == ["49", "50", "60", "100", "100", "0", "0"]


def test_difference_and_zoom(page: Page, coffee: compare.Comparison, tmp_path: Path) -> None:
    section = page.locator("section").first
    section.get_by_label("left").select_option("JPEG")
    section.get_by_label("right").select_option("AVIF")
    section.get_by_label("zoom").select_option("1:1")
    section.get_by_label("difference").check()
    page.screenshot(path=tmp_path / "difference.png")

    original = pixels(coffee.original)
    amplified = {
        v.codec: np.minimum(4 * abs(pixels(v.picture) - original), 255) for v in coffee.versions
    }
    shown = seen(page)
    for name, columns in (("JPEG", slice(0, 270)), ("AVIF", slice(330, 600))):
        assert np.array_equal(shown[:, columns], amplified[name][:, columns])

    # The original's own side shows the other's difference too: all of it is to be seen.
    section.get_by_label("left").select_option("original")
    shown = seen(page)
    assert np.array_equal(shown[:, :270], amplified["AVIF"][:, :270])

    section.get_by_label("difference").uncheck()
    section.get_by_label("zoom").select_option("4")
    page.screenshot(path=tmp_path / "zoomed.png")
    view = page.locator(".view").first.bounding_box()
    assert view is not None
    clip = {**view, "width": 200, "height": 200, "y": view["y"] + 100}
    with Image.open(io.BytesIO(page.screenshot(clip=clip))) as image:
        blocks = np.asarray(image.convert("RGB"))
    # Each pixel of the picture is a square of 4x4, wherever the first one is cut.
    steps = (np.diff(blocks.astype(int), axis=1) != 0).any(axis=(0, 2)).nonzero()[0]
    assert len(set(steps % 4)) == 1


def test_names_and_remarks_are_text(page: Page) -> None:
    headings = page.get_by_role("heading", level=2).all_text_contents()
    assert headings == ["coffee.webp600x200", f"{HOSTILE}61x43, RGBA compared in RGB on white"]
    rows = page.locator("section").first.locator("tbody tr").all_text_contents()
    assert [re.match(r"[A-Za-z]+", row)[0] for row in rows] == ["sdz", "JPEG", "WebP", "AVIF"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(page: Page, scheme: str, tmp_path: Path) -> None:
    page.emulate_media(color_scheme=scheme)
    page.screenshot(path=tmp_path / f"{scheme}.png")
    with Image.open(tmp_path / f"{scheme}.png") as image:
        corner = image.convert("L").getpixel((2, 2))
    assert corner > 200 if scheme == "light" else corner < 50
