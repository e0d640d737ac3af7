"""The fuzzing itself: it runs without atheris, finds bugs, and counts only real ones."""

from __future__ import annotations

import random
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pillow_sdz import container
from pillow_sdz.container import Chunk
from sdz_files import framed

# Fuzzing is not part of the installed package. Only the checkout has it.
sys.path.append(str(Path(__file__).parent.parent))

from fuzz import mutants, seeds, selection, targets
from fuzz.mutations import mutated, repaired

ROOT = Path(__file__).parent.parent
RUNS = {"container": 300, "entropy": 300, "whole": 60}  # chosen: about a second of each


@pytest.fixture(scope="module")
def light() -> Iterator[None]:
    with targets.light():
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("light")
@pytest.mark.parametrize("target", targets.TARGETS)
def test_nothing_but_the_allowed_exceptions(target: str) -> None:
    corpus = seeds.seeds(target)
    rng = random.Random(0)
    for data in [*corpus, *(mutated(rng, corpus) for _ in range(RUNS[target])), b""]:
        targets.TARGETS[target](data)


@pytest.mark.usefixtures("light")
def test_seeds_get_to_the_end() -> None:
    """Valid inputs are accepted, so their mutations reach all the code."""
    for data in seeds.made():
        targets.shown(data)
        if b"EXCT" not in data:  # a page may have no latents
            targets.latents_of(data)
    for case in targets.CASES:
        assert any(case is targets.CASES[data[0]] for data in seeds.seeds("entropy")[:-2])


def test_findings_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes) -> list[Chunk]:
        raise IndexError

    monkeypatch.setattr(container, "read", broken)
    with pytest.raises(IndexError):
        targets.container(b"")


def test_crcs_are_made_right() -> None:
    data = framed([Chunk(b"HEAD", b"abc"), Chunk(b"abCd", bytes(200)), Chunk(b"DONE", b"")])
    wrong = bytearray(data)
    for entry_end in (len(container.SIGNATURE) + 12, len(data)):
        wrong[entry_end - 1] ^= 1
    assert repaired(bytes(wrong)) == data
    assert repaired(data[:-1]) == data[:-1]  # what is cut off has no CRC
    assert repaired(b"") == b""
    assert zlib.crc32(b"DONE").to_bytes(4, "big") == repaired(data)[-4:]


@pytest.mark.slow
def test_the_command_leaves_what_it_finds(tmp_path: Path, environment: dict[str, str]) -> None:
    """The finding is kept. When it runs again, it gives the same exception."""
    program = (
        "import sys; from pillow_sdz import container; container.read = lambda data: data[99999]\n"
        "from fuzz.__main__ import main; main()"
    )
    command = [sys.executable, "-c", program, "container"]
    for arguments in (["--plain"], ["finding-container-*"]):
        names = [str(p) for a in arguments for p in tmp_path.glob(a)] or arguments
        done = subprocess.run(
            [*command, *names],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": f"{ROOT}:{environment['PYTHONPATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "IndexError" in done.stderr
    assert len(list(tmp_path.glob("finding-container-*"))) == 1


# changes to the package itself, which fuzz.mutants makes


@pytest.mark.parametrize(
    ("source", "places"),
    [
        (
            "def f(a: int | None, *b: str) -> (\n    int | str\n):\n    c: int | None = 1 | 2\n",
            [((1, 9), (1, 19)), ((1, 25), (1, 28)), ((2, 4), (2, 13)), ((4, 7), (4, 17))],
        ),
        ("class A(Protocol):\n    a = 1\n", [((1, 0), (2, 9))]),
        ("class A(Base):\n    a = 1\n", []),
        ("@functools.cache\ndef f():\n    return 1\n", [((1, 0), (1, 16))]),
        ("@lru_cache(16)\ndef f():\n    return 1\n", [((1, 0), (1, 14))]),
        ("@other\ndef f():\n    return 1\n", []),
        ("relu(x, inplace=True, slope=1)\n", [((1, 8), (1, 20))]),
    ],
)
def test_code_without_effect_is_not_changed(
    source: str, places: list[tuple[tuple[int, int], tuple[int, int]]]
) -> None:
    """No test can notice a change to such code."""
    assert sorted(mutants._without_effect(source)) == places


def test_a_change_meets_the_tests_of_its_line() -> None:
    """Tests are taken from each file in turn, and those that run the fewest lines come first."""
    module = "fuzz/allowed.py"
    (line,) = (
        number
        for number, text in enumerate((ROOT / module).read_text().splitlines(), 1)
        if text.startswith("ALLOWED")
    )
    all_of_it = {"a.py::wide", "a.py::wider"}
    tests = {
        module: {line: {*all_of_it, "a.py::narrow", "b.py::only"}, 1: all_of_it, 2: {"a.py::wider"}}
    }
    fitting = selection.Recorded(tests).fitting
    expected = ["a.py::narrow", "b.py::only", "a.py::wide", "a.py::wider"]
    assert fitting(module, line, 9) == expected
    assert fitting(module, line, 2) == expected[:2]


@pytest.mark.slow
def test_a_constant_meets_the_tests_of_its_name() -> None:
    """Only the import runs a constant.  The table of presets has no line that a test runs."""
    module, user = "pillow_sdz/presets.py", "pillow_sdz/catalogue.py"
    line = 1 + (ROOT / module).read_text().splitlines().index('        class_name="AutoencoderKL",')
    uses = [
        number
        for number, text in enumerate((ROOT / user).read_text().splitlines(), 1)
        if "PRESETS" in text and "import" not in text
    ]
    recorded = {module: {line: {""}, 1: {"a.py::module"}}, user: {uses[0]: {"b.py::user"}}}
    found = selection.Recorded(recorded).fitting(module, line, 99)
    assert {"a.py::module", "b.py::user"} < set(found)
    assert "tests/test_models.py::test_presets_are_pinned_or_say_that_they_are_not" in found
    assert "tests/test_models.py::test_registration" not in found


def test_a_decorator_belongs_to_its_statement() -> None:
    module = "tests/test_fuzz.py"
    lines = (ROOT / module).read_text().splitlines()
    decorator = next(n for n, text in enumerate(lines, 1) if text.startswith("@pytest"))
    assert selection.statement_start(module, decorator) == decorator
    assert selection.names_at(module, decorator) == {"light"}


def test_changes_have_names() -> None:
    """A name is a place and a kind of change, as the command prints it, with the tests or not."""
    pytest.importorskip("cosmic_ray", reason='needs pip install ".[mutants]"')
    first, *_ = mutants.drawn(["pillow_sdz/mask.py"], 1, 0)
    assert first in mutants.named([f"{first} (12 tests)", ""])
    assert {str(change) for change in mutants.named([str(first)])} == {str(first)}
    with pytest.raises(ValueError, match="there is no change"):
        mutants.named(["pillow_sdz/mask.py:1:0 None"])


def test_changes_are_drawn_by_their_seed() -> None:
    pytest.importorskip("cosmic_ray", reason='needs pip install ".[mutants]"')
    modules = ["pillow_sdz/codings/target_size.py", "pillow_sdz/mask.py"]
    drawn = mutants.drawn(modules, 12, 0)
    assert drawn == mutants.drawn(modules, 12, 0) != mutants.drawn(modules, 12, 1)
    assert len({(change.module, change.line, change.column) for change in drawn}) == 12
    for change in drawn:
        assert change.source() not in (None, (ROOT / change.module).read_text())
