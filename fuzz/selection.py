"""Which tests may notice a change to a line of the package.

They are the tests that run the line.  Constants, defaults and decorators run when a module is
imported, and `coverage` does not say for which test.  For those, they are the tests that use the
name, run a line that uses the name, or run any line of the module.
"""

from __future__ import annotations

import ast
import functools
import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "pillow_sdz"
TESTS = "tests"


class Recorded:
    """Which tests run which lines of which module."""

    def __init__(self, tests: Mapping[str, Mapping[int, set[str]]]) -> None:
        self._tests = tests
        self._lines: dict[str, int] = defaultdict(int)  # how many lines a test runs
        for lines in tests.values():
            for test in itertools.chain.from_iterable(lines.values()):
                self._lines[test] += 1

    @classmethod
    def by_coverage(cls, file: Path, failing: Iterable[str]) -> Recorded:
        """Read the record of `coverage`, without tests that always fail."""
        from coverage import CoverageData

        data = CoverageData(str(file))
        data.read()
        without = set(failing)
        return cls(
            {
                path[path.rindex(f"{PACKAGE}{os.sep}") :]: {
                    line: {context.partition("|")[0] for context in contexts} - without
                    for line, contexts in data.contexts_by_lineno(path).items()
                }
                for path in data.measured_files()
            }
        )

    def fitting(self, module: str, line: int, count: int) -> list[str]:
        """The tests for a change.  Each file in turn gives the test that runs the fewest lines."""
        found = self._running(module, range(statement_start(module, line), line + 1))
        if found <= {""}:  # only the import runs it, or no test that is recorded
            names = names_at(module, line)
            found = set[str]().union(*self._tests.get(module, {}).values())
            for user in _modules(PACKAGE):
                found |= self._running(user, _lines_with(user, names))
            for user in _modules(TESTS):
                found |= {f"{user}::{test}" for test in _tests_with(user, names)}
        by_file: dict[str, list[str]] = defaultdict(list)
        for test in sorted(found - {""}, key=lambda test: (self._lines[test], test)):
            by_file[test.partition("::")[0]].append(test)
        turns = itertools.zip_longest(*by_file.values())
        return [test for turn in turns for test in turn if test is not None][:count]

    def _running(self, module: str, lines: Iterable[int]) -> set[str]:
        recorded = self._tests.get(module, {})
        return set[str]().union(*(recorded.get(line, ()) for line in lines))


def statement_start(module: str, line: int) -> int:
    """The first line of the innermost statement around a line.  coverage knows only this line."""
    return _starts(module)[line]


@functools.cache
def _starts(module: str) -> dict[int, int]:
    """For every line with code, the first line of the innermost statement around it."""
    found: dict[int, int] = {}
    for node in ast.walk(_tree(module)):  # outer statements come before inner ones
        if isinstance(node, ast.stmt):
            first = _first_line(node)
            found |= dict.fromkeys(range(first, (node.end_lineno or first) + 1), first)
    return found


def names_at(module: str, line: int) -> set[str]:
    """What the outermost statement around a line defines: a class, a function or constants."""
    for node in _tree(module).body:
        if _first_line(node) <= line <= (node.end_lineno or node.lineno):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                return {node.name}
            return {
                name.id
                for name in ast.walk(node)
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
            }
    return set()


def _lines_with(module: str, names: set[str]) -> Iterator[int]:
    """The first lines of the statements that use one of these names."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.expr) and _uses(node, names):
            yield statement_start(module, node.lineno)


def _tests_with(module: str, names: set[str]) -> Iterator[str]:
    """The tests in a module that use one of these names."""
    functions = (node for node in _tree(module).body if isinstance(node, ast.FunctionDef))
    for test in functions:
        if test.name.startswith("test") and any(_uses(node, names) for node in ast.walk(test)):
            yield test.name


def _uses(node: ast.AST, names: set[str]) -> bool:
    if isinstance(node, ast.Name):
        return node.id in names
    return isinstance(node, ast.Attribute) and node.attr in names


def _first_line(node: ast.stmt) -> int:
    """The first line of a statement, with its decorators."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


@functools.cache
def _tree(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text("utf-8"))


def _modules(folder: str) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in sorted((ROOT / folder).rglob("*.py"))]
