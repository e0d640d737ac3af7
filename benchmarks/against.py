"""What importing, opening and loading cost, compared with another checkout of this package.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.against /tmp/before

Each figure is CPU time of a process that does nothing else, so other work of the machine matters
little. The two checkouts take turns. Each opens a file that it has written itself, because the
format may differ. Both files have about the same number of bytes. The time of importing Pillow does
not count.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .speed import SMALL, photo

HERE = Path(__file__).parent.parent
OPENED = 1000  # times in a row, because one is too short for the clock

START = "import time; from PIL import Image; start = time.process_time(); "
SIZE = 3000  # bytes; chosen: low quality
SAVE = (
    "from PIL import Image; import pillow_sdz; "
    f"Image.open({{picture!r}}).save({{file!r}}, target_size={SIZE})"
)
# Each program prints its CPU time in seconds.
PROGRAMS = {
    "import pillow_sdz": START + "import pillow_sdz; print(time.process_time() - start)",
    "import, and the first Image.open": (
        START + "import pillow_sdz; Image.open({file!r}); print(time.process_time() - start)"
    ),
    f"Image.open, the mean of {OPENED}": (
        "import time; from PIL import Image; import pillow_sdz; Image.open({file!r}); "
        "start = time.process_time(); "
        f"[Image.open({{file!r}}) for _ in range({OPENED})]; "
        f"print((time.process_time() - start) / {OPENED})"
    ),
    f"import, open and load {SMALL[0]}x{SMALL[1]}": (
        START + "import pillow_sdz; Image.open({file!r}).load(); print(time.process_time() - start)"
    ),
}


def run(source: str, checkout: Path, compiled: Path) -> str:
    """What a fresh Python prints that imports the package from this checkout.

    The folder ``compiled`` keeps its bytecode, whatever the environment says.
    """
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    environment |= {"PYTHONPYCACHEPREFIX": str(compiled), "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(
        [sys.executable, "-c", source],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=checkout,
    )
    return done.stdout


def compared(checkouts: Sequence[Path], repeats: int) -> dict[str, list[list[float]]]:
    """The seconds of each program in each checkout, ``repeats`` times."""
    with tempfile.TemporaryDirectory() as folder:
        compiled, picture = Path(folder) / "compiled", Path(folder) / "photo.png"
        photo(SMALL).save(picture)
        files = [str(Path(folder) / f"{number}.sdz") for number in range(len(checkouts))]
        for checkout, file in zip(checkouts, files, strict=True):
            run(SAVE.format(picture=str(picture), file=file), checkout, compiled)
        found: dict[str, list[list[float]]] = {}
        for what, program in PROGRAMS.items():
            found[what] = [[] for _ in checkouts]
            for turn in range(repeats + 1):
                for checkout, file, taken in zip(checkouts, files, found[what], strict=True):
                    seconds = float(run(program.format(file=file), checkout, compiled))
                    if turn:  # the first one compiles
                        taken.append(seconds)
        return found


def table(found: dict[str, list[list[float]]]) -> str:
    """The medians as a Markdown table, with the quartiles of the ratio of neighbouring runs."""
    lines = ["| CPU time | before | now | ratio | quartiles |", "|---|--:|--:|--:|--:|"]
    for what, (before, now) in found.items():
        ratios = [b / a for a, b in zip(before, now, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios[:1] * 3
        a, b = statistics.median(before), statistics.median(now)
        times = f"{1e3 * a:.3g} ms | {1e3 * b:.3g} ms"
        lines.append(f"| {what} | {times} | {middle:.2f} | {low:.2f}, {high:.2f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.against",
        description="CPU time of importing, opening and loading, compared with another checkout.",
    )
    parser.add_argument(
        "before", type=Path, metavar="CHECKOUT", help="the checkout to compare with"
    )
    parser.add_argument("--repeats", type=int, default=15, help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    if not (options.before / "pillow_sdz" / "__init__.py").is_file():
        parser.error(f"{options.before} is no checkout of this package")
    print(table(compared((options.before.resolve(), HERE), options.repeats)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
