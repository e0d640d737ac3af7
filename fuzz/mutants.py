"""`python -m fuzz.mutants`: make small changes to the package, and see whether tests notice.

The other targets change files and look at the reader. This one changes the package and looks at the
tests. Cosmic Ray lists the possible changes. First a place in the source is drawn, then one of its
changes. So an operator, which has many changes, is not drawn more often than a number.

Everything happens in a copy of the checkout. The tests run there once, to record which tests run
which lines. For each change, some of the tests that run its line are chosen (`fuzz.selection`). In
each test file, the tests that run the fewest lines come first. A change is noticed if a test fails
or does not end. Results are kept, so a second run goes on where the first one ended.

    pip install ".[test,mutants]"
    python -m fuzz.mutants --count 300 --seed 0 --jobs 2
    python -m fuzz.mutants pillow_sdz/mask.py --tests tests/test_caches.py
    python -m fuzz.mutants --only survivors.txt

This takes one run of the tests, and then about a quarter of a minute for each change. ``--only``
tries the changes that a file names, one a line, as the command prints them.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import itertools
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from .selection import PACKAGE, ROOT, Recorded

GOAL = 0.9  # chosen: the share of changes that tests must notice
# Chosen: more tests seldom find more, and take most of the time.
TESTS = 40
SECONDS = 120  # for the tests of a change; chosen: without a change they take 5 to 15

NOTICED = ("failed", "hung")
Position = tuple[int, int]


@dataclass(frozen=True)
class Mutant:
    """A change to a module: Cosmic Ray's operator, its number in the module, and its place."""

    module: str  # as a path from the root
    operator: str
    occurrence: int
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.module}:{self.line}:{self.column} {self.operator.removeprefix('core/')}"

    def source(self) -> str | None:
        """The module with the change. None if the result is not Python, or is the same."""
        import cosmic_ray.mutating
        import cosmic_ray.plugins

        original = (ROOT / self.module).read_text("utf-8")
        operator = cosmic_ray.plugins.get_operator(self.operator)()
        changed: str | None = cosmic_ray.mutating.mutate_code(original, operator, self.occurrence)
        if changed is None or changed == original:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                compile(changed, self.module, "exec")
        except (SyntaxError, ValueError):
            return None
        return changed


@dataclass(frozen=True)
class Result:
    """The result of a change: ``failed``, ``hung``, ``passed``, or ``no test`` runs the line."""

    mutant: Mutant
    outcome: str
    seconds: float
    tests: int


# the possible changes


def mutants(module: str) -> dict[Position, list[Mutant]]:
    """The changes to a module by place, without those that have no effect."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    source = (ROOT / module).read_text("utf-8")
    without_effect = list(_without_effect(source))
    nodes = list(ast_nodes(get_ast(source)))
    found: dict[Position, list[Mutant]] = defaultdict(list)
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments():  # it would need arguments that nobody gives here
            continue
        places = (place for node in nodes for place in operator().mutation_positions(node))
        for occurrence, (start, _) in enumerate(places):
            if not any(first <= start < last for first, last in without_effect):
                found[start].append(Mutant(module, name, occurrence, *start))
    return found


def _without_effect(source: str) -> Iterator[tuple[Position, Position]]:
    """Where a module has code whose changes no test can notice, from start to end.

    Annotations and protocols are never run.  Caches, and torch's operations in place, only save
    time and memory.
    """
    for node in ast.walk(ast.parse(source)):
        noted = (getattr(node, name, None) for name in ("annotation", "returns"))
        for annotation in noted:
            if isinstance(annotation, ast.expr):
                yield _place(annotation)
        if isinstance(node, ast.ClassDef) and any(_name(base) == "Protocol" for base in node.bases):
            yield _place(node)
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                if _name(decorator) in ("cache", "lru_cache"):
                    (line, column), end = _place(decorator)
                    yield (line, column - 1), end  # with the @
        if isinstance(node, ast.keyword) and node.arg == "inplace":
            yield _place(node)


def _place(node: ast.expr | ast.stmt | ast.keyword) -> tuple[Position, Position]:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def _name(node: ast.expr) -> str | None:
    """The last name of an expression like ``name``, ``module.name`` or ``module.name(1)``."""
    if isinstance(node, ast.Call):
        node = node.func
    return getattr(node, "attr", getattr(node, "id", None))


def named(lines: Iterable[str]) -> list[Mutant]:
    """The changes of these names. A name stands for all changes of its kind at its place."""
    names = {line.partition(" (")[0].strip() for line in lines if line.strip()}
    modules = sorted({name.partition(":")[0] for name in names})
    possible = (change for module in modules for at in mutants(module).values() for change in at)
    found = [change for change in possible if str(change) in names and change.source() is not None]
    if missing := names - {str(change) for change in found}:
        msg = f"there is no change {min(missing)}"
        raise ValueError(msg)
    return found


def drawn(modules: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """Draw this many changes to these modules, or all. A seed and a source give the same ones."""
    rng = random.Random(seed)
    places = [changes for module in modules for _, changes in sorted(mutants(module).items())]
    rng.shuffle(places)
    sound = (mutant for place in places if (mutant := rng.choice(place)).source() is not None)
    return list(itertools.islice(sound, count))


# the copy, and what runs in it


def checkout() -> list[Path]:
    """The files of the checkout, also those that are not committed yet."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    names = (Path(name) for name in sorted(set(listed.split("\0"))) if name)
    return [name for name in names if (ROOT / name).is_file()]


def digest(files: Sequence[Path], tests: Sequence[str]) -> str:
    """A digest of everything that the results depend on."""
    total = hashlib.sha256(repr(list(tests)).encode())
    for name in files:
        total.update(f"{name}\0".encode() + hashlib.sha256((ROOT / name).read_bytes()).digest())
    return total.hexdigest()[:12]


def copy(files: Sequence[Path], folder: Path) -> None:
    """Make a new checkout, without the bytecode of other sources."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)


def pytest(folder: Path, *arguments: str, seconds: float | None = None) -> int:
    """Run tests in a copy and return the exit status. TimeoutExpired after too many seconds."""
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    # Python would use the old bytecode for a change of the same size within a second.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with (folder / "pytest.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            return process.wait(seconds)
        finally:
            # This also ends what the tests started and a failed test left running.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def recorded(folder: Path, files: Sequence[Path], tests: Sequence[str]) -> Recorded:
    """Read which tests run which lines. Record it first if that is not done yet."""
    data, failing = folder / "coverage", folder / "failing.json"
    if not failing.exists():
        print("the tests run once to record their lines", flush=True)
        work = folder / "work"
        copy(files, work)
        pytest(work, f"--cov={PACKAGE}", "--cov-context=test", "--cov-report=", *tests)
        shutil.move(work / ".coverage", data)
        failed = work / ".pytest_cache" / "v" / "cache" / "lastfailed"
        failing.write_text(failed.read_text() if failed.exists() else "{}")
    return Recorded.by_coverage(data, json.loads(failing.read_text()))


def tried(mutant: Mutant, tests: Sequence[str], folder: Path) -> Result:
    """Make a change in this copy, run the tests, and take the change back."""
    if not tests:
        return Result(mutant, "no test", 0, 0)
    start = time.monotonic()
    outcome = _outcome(mutant, tests, folder, SECONDS)
    if outcome == "hung":  # or the computer is busy, and the tests are slow without the change, too
        unchanged = time.monotonic()
        pytest(folder, "-x", "-p", "no:cacheprovider", *tests)
        if (patience := 3 * (time.monotonic() - unchanged)) > SECONDS:  # 3 is chosen
            outcome = _outcome(mutant, tests, folder, patience)
    return Result(mutant, outcome, round(time.monotonic() - start, 1), len(tests))


def _outcome(mutant: Mutant, tests: Sequence[str], folder: Path, seconds: float) -> str:
    path = folder / mutant.module
    source = mutant.source()
    assert source is not None
    path.write_text(source, "utf-8")
    try:
        status = pytest(folder, "-x", "-p", "no:cacheprovider", *tests, seconds=seconds)
        return "failed" if status else "passed"
    except subprocess.TimeoutExpired:
        return "hung"
    finally:
        shutil.copyfile(ROOT / mutant.module, path)


def run(mutants: Iterable[Mutant], tests: Recorded, copies: Sequence[Path]) -> Iterator[Result]:
    """The results as they come. Each copy of the checkout works on one change at a time."""
    free: queue.Queue[Path] = queue.Queue()
    for place in copies:
        free.put(place)

    def one(mutant: Mutant) -> Result:
        place = free.get()
        try:
            return tried(mutant, tests.fitting(mutant.module, mutant.line, TESTS), place)
        finally:
            free.put(place)

    with ThreadPoolExecutor(len(copies)) as pool:
        try:
            for done in as_completed([pool.submit(one, mutant) for mutant in mutants]):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def kept(file: Path) -> Iterator[Result]:
    """Read the results of earlier runs."""
    if file.exists():
        for line in file.read_text().splitlines():
            fields = json.loads(line)
            yield Result(**{**fields, "mutant": Mutant(**fields["mutant"])})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 1 if too many changes went unnoticed."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.mutants", description=__doc__)
    parser.add_argument("modules", nargs="*", help="modules to change; default: the whole package")
    parser.add_argument("--tests", nargs="+", default=[], help="tests to run; default: all")
    parser.add_argument("--count", type=int, default=300, help="changes; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=Path, help="a file that names the changes, one a line")
    parser.add_argument(
        "--jobs", type=int, default=1, help="at the same time; default: %(default)s"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir(), "pillow-sdz-mutants"),
        help="folder for copies and results; default: %(default)s",
    )
    options = parser.parse_args(arguments)
    files = checkout()
    modules = options.modules or [
        str(f) for f in files if f.suffix == ".py" and f.parts[0] == PACKAGE
    ]
    if options.only:
        sample = named(options.only.read_text("utf-8").splitlines())
    else:
        sample = drawn(modules, options.count, options.seed)
    folder = options.folder / digest(files, options.tests)
    folder.mkdir(parents=True, exist_ok=True)
    results = {result.mutant: result for result in kept(folder / "results.jsonl")}
    tests = recorded(folder, files, options.tests)
    copies = [folder / f"work{number}" for number in range(options.jobs)]
    for place in copies:
        copy(files, place)
    with (folder / "results.jsonl").open("a") as file:
        for result in run((mutant for mutant in sample if mutant not in results), tests, copies):
            results[result.mutant] = result
            print(f"{result.outcome:8}{result.seconds:6.1f} s  {result.mutant}", flush=True)
            print(json.dumps(asdict(result)), file=file, flush=True)
    return report([results[mutant] for mutant in sample])


def report(results: Sequence[Result]) -> int:
    """Print the changes that went unnoticed. Return the exit status: 1 if they are too many."""
    unnoticed = [result for result in results if result.outcome not in NOTICED]
    print(f"\n{len(results) - len(unnoticed)} of {len(results)} changes noticed; not noticed:")
    for result in sorted(unnoticed, key=lambda result: str(result.mutant)):
        print(f"{result.mutant} ({result.tests or 'no'} tests)")
    return int(len(unnoticed) > (1 - GOAL) * len(results))


if __name__ == "__main__":
    sys.exit(main())
