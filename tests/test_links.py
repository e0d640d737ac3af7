"""The links of the documentation work, and the README stays short."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "training" / "README.md"))

CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
INLINE_CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\(([^()\s]+)\)")
ELSEWHERE = re.compile(r"[a-z]+:")

# Sources name pages in comments and docstrings.
SOURCES = ("pillow_sdz", "training", "benchmarks", "fuzz", "examples", "tests")
MENTION = re.compile(
    r"\b((?:docs/[a-z0-9_-]+|(?:training/)?README|CONTRIBUTING|SECURITY)\.md)\b(?:#([\w-]+))?"
)


def prose(page: Path) -> str:
    return CODE.sub("", page.read_text())


@functools.cache
def anchors(page: Path) -> frozenset[str]:
    """The names that GitHub gives to headings: lower case, hyphens, no punctuation."""
    names: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        again = (f"{name}-{number}" for number in range(1, len(names) + 1))
        names.add(name if name not in names else next(each for each in again if each not in names))
    return frozenset(names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links(page: Path) -> None:
    """For each relative link, the file exists and has the heading that the link names."""
    # A link's text may be code, but `x[i](y)` in code is not a link.
    text = INLINE_CODE.sub("code", prose(page))
    for link in LINK.findall(text):
        if ELSEWHERE.match(link):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_contents() -> None:
    """The README leads to every page of docs/."""
    linked = set(LINK.findall(prose(ROOT / "README.md")))
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= linked


def test_readme_is_short() -> None:
    """A newcomer can read it to the end."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_mentions() -> None:
    """A page that a source file names exists and has the heading that it names."""
    for folder in SOURCES:
        for path in (ROOT / folder).rglob("*.py"):
            for page, anchor in MENTION.findall(path.read_text()):
                where = f"{path.relative_to(ROOT)} names {page}#{anchor}"
                assert (ROOT / page).exists(), where
                assert not anchor or anchor in anchors(ROOT / page), where
