"""Which room may import which: no circles, and only in the order of docs/architecture.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from pillow_sdz import catalogue

ROOT = Path(__file__).parent.parent
ARCHITECTURE = ROOT / "docs" / "architecture.md"
# Top-level folders may not import each other, except as listed.
TOP_LEVEL = {
    "pillow_sdz": set[str](),
    "evaluation": {"pillow_sdz"},
    "benchmarks": {"pillow_sdz", "evaluation"},
    "training": {"pillow_sdz", "evaluation"},
    "fuzz": {"pillow_sdz"},
}
# Files of the package that must not name a model or a coding.
GENERIC = (
    "SdzImagePlugin",
    "chunks",
    "codec",
    "container",
    "contents",
    "exact",
    "graphics",
    "header",
    "keywords",
    "latents",
    "layers",
    "models/__init__",
    "opening",
    "order",
    "protection",
    "reading",
    "regions",
    "saving",
    "scaling",
    "shapes",
    "vp8l",
)


def modules(folder: str) -> dict[str, Path]:
    """The files of a top-level folder by module name, such as "pillow_sdz.models"."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def all_modules() -> dict[str, Path]:
    return {name: path for folder in TOP_LEVEL for name, path in modules(folder).items()}


def statements(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import, also those in functions, but not those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        yield from statements(node)


def imports(name: str) -> set[str]:
    """The modules of this repository that one module imports."""
    path = all_modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, *([base] if base else [])])
        for alias in node.names:
            # A module of a package, or a name in the package itself.
            inside = f"{base}.{alias.name}"
            found.add(inside if inside in all_modules() else base)
    return {one for one in found if one in all_modules()} - {name}


def test_what_is_walked() -> None:
    """The walk sees a lazy import and a name of the package itself, but no types."""
    assert "pillow_sdz.saving" in imports("pillow_sdz")
    assert "pillow_sdz.models.stable_diffusion" in imports("pillow_sdz.models")
    assert "pillow_sdz.models.network" not in imports("pillow_sdz.models")
    assert "pillow_sdz.codings" in imports("pillow_sdz.codec")


def test_no_circles() -> None:
    graph = {name: imports(name) for name in all_modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        pytest.fail(f"imports go in a circle: {' <- '.join(e.args[1])}")


def floors() -> dict[str, int]:
    """The rooms of the package by name, with their floors in docs/architecture.md."""
    text = ARCHITECTURE.read_text().partition("## The order")[2].partition("\n## ")[0]
    found = {}
    for line in text.splitlines():
        if match := re.match(r"(\d+)\. (.*)", line):
            for room in re.findall(r"`([\w/]+)`", match[2].partition(":")[0]):
                found[room.rstrip("/")] = int(match[1])
    return found


def room(name: str) -> str:
    """The room of a module: its file or folder directly in the package."""
    inside = name.split(".")[1:]
    return inside[0] if inside else "__init__"


def test_every_room_has_its_floor() -> None:
    assert floors().keys() == {room(name) for name in modules("pillow_sdz")}


@pytest.mark.parametrize("name", modules("pillow_sdz"))
def test_no_arrow_against_the_order(name: str) -> None:
    """A room imports only rooms on lower floors. Files in one room may import each other."""
    high = floors()
    for other in imports(name):
        if other.startswith("pillow_sdz") and room(other) != room(name):
            assert high[room(other)] < high[room(name)], f"{name} imports {other}"


@pytest.mark.parametrize("folder", TOP_LEVEL)
def test_folders_keep_apart(folder: str) -> None:
    for name in modules(folder):
        for other in imports(name):
            top = other.partition(".")[0]
            assert top == folder or top in TOP_LEVEL[folder], f"{name} imports {other}"


def test_no_generic_file_names_a_model_or_a_coding() -> None:
    """In code. Documentation may give examples."""
    names = {*catalogue.all_spaces(), *catalogue.EMBEDDED, "context", "palette", "float16"}
    for name in GENERIC:
        tree = ast.parse((ROOT / "pillow_sdz" / f"{name}.py").read_text())
        documentation = {
            node.body[0].value
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node not in documentation:
                assert node.value not in names
            named = getattr(node, "id", getattr(node, "attr", ""))
            assert not re.search(r"MINI|HYPERPRIOR|PALETTE|FLOAT16|CONTEXT|has_hyperprior", named)


@pytest.mark.parametrize("path", [*modules("pillow_sdz").values()], ids=lambda path: path.stem)
def test_files_are_short(path: Path) -> None:
    """At most 400 lines, unless the first comment gives a reason for more."""
    text = path.read_text()
    comment = re.search(r"^#.*$", text, re.M)
    has_reason = comment is not None and "longer than 400 lines" in comment[0]
    assert len(text.splitlines()) <= 400 or has_reason


def test_pillows_private_names_are_in_one_file() -> None:
    for name, path in modules("pillow_sdz").items():
        if name == "pillow_sdz.pillow_private":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("PIL._"), ast.unparse(node)
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                assert ast.unparse(node.value) not in ("Image", "ImageFile"), ast.unparse(node)


# Records that are filled while something runs.
COLLECTING = {"Contents", "Found", "Report", "Summary", "_Item"}


def test_records_cannot_be_changed() -> None:
    """Threads, caches and frames share them.  The others collect what a command does."""
    for name, path in modules("pillow_sdz").items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
                records = [text for text in decorators if re.match(r"dataclass\b", text)]
                expected = "dataclass" if node.name in COLLECTING else "dataclass(frozen=True"
                assert all(text.startswith(expected) for text in records), f"{name}.{node.name}"
