"""Which room may import which: no circles, and only in the order of docs/architecture.md."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from pillow_sdz import catalogue, spaces
from pillow_sdz.presets import PRESETS

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
# Rooms of the package that may name models and codings.  All others are generic.
NAMING = {"catalogue", "codings", "families", "interchange", "presets", "spaces", "weights"}
NAMING_MODELS = ("mini", "sd_mini")  # files of `models` that belong to one model
# Modules of `codings` that belong to one coding or one prior.
CODINGS_AND_PRIORS = {
    "adaptive",
    "banded",
    "context",
    "dithering",
    "float16",
    "float32",
    "hyperprior",
    "lattice",
    "palette",
}
# These names of codings are those of dtypes as well.
DTYPES = {"bfloat16", "float16", "float32"}
# In these files they are dtypes.
WITH_DTYPES = {
    "comfyui.nodes",
    "latents",
    "models",
    "models.devices",
    "opening",
    "options",
}


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
    assert "pillow_sdz.codings" in imports("pillow_sdz.decoding")


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


def generic() -> dict[str, Path]:
    """The files that must not name a model or a coding, by the module's name in the package."""
    found = {}
    for name, path in modules("pillow_sdz").items():
        _, *parts = name.split(".")
        of_a_model = parts[:1] == ["models"] and "".join(parts[1:2]).startswith(NAMING_MODELS)
        if room(name) not in NAMING and not of_a_model:
            found[".".join(parts)] = path
    return found


def test_what_is_generic() -> None:
    rooms = {"SdzImagePlugin", "saving", "latents", "opening", "codec", "keywords", "chunks"}
    assert {*rooms, "models", "cli.encode", "comfyui.nodes", "cluster.engine"} <= generic().keys()
    assert not {"models.mini.network", "models.sd_mini", "codings.palette"} & generic().keys()


@pytest.mark.parametrize("name", generic())
def test_no_generic_file_names_a_model_or_a_coding(name: str) -> None:
    """This is about code. Documentation may give examples."""
    names = {*catalogue.all_spaces(), *catalogue.EMBEDDED, *PRESETS, *spaces.CODING_NAMES}
    if name in WITH_DTYPES:
        names -= DTYPES
    constants = "MINI|HYPERPRIOR|PALETTE|FLOAT16|FLOAT32|CONTEXT|has_hyperprior"
    tree = ast.parse(generic()[name].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            assert node.value not in names
        named = getattr(node, "id", getattr(node, "attr", ""))
        assert not re.match(constants, named.lstrip("_"))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("codings"):
            imported = {*str(node.module).split("."), *(alias.name for alias in node.names)}
            assert not imported & CODINGS_AND_PRIORS, ast.unparse(node)


@pytest.mark.parametrize("path", [*modules("pillow_sdz").values()], ids=lambda path: path.stem)
def test_files_are_short(path: Path) -> None:
    """They have at most 400 lines, unless the first comment gives a reason for more."""
    text = path.read_text()
    comment = re.search(r"^#.*$", text, re.M)
    has_reason = comment is not None and "longer than 400 lines" in comment[0]
    assert len(text.splitlines()) <= 400 or has_reason


def test_pillows_private_names_are_in_one_file() -> None:
    classes = inspect.getsource(Image.Image) + inspect.getsource(ImageFile.ImageFile)
    private = {*re.findall(r"self\.(_[a-z]\w*)", classes), *re.findall(r"def (_[a-z]\w*)", classes)}
    assert {"_size", "_exclusive_fp", "_new", "_seek_check"} <= private
    for name, path in modules("pillow_sdz").items():
        if name == "pillow_sdz.pillow_private":
            continue
        is_image = name == "pillow_sdz.SdzImagePlugin"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("PIL._"), ast.unparse(node)
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                owner = ast.unparse(node.value)
                assert owner not in ("Image", "ImageFile"), ast.unparse(node)
                # Other classes may have attributes of their own with these names.
                if is_image or owner != "self":
                    assert node.attr not in private, f"{name}: {ast.unparse(node)}"


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
