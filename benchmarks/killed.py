"""`sdz encode` over a folder, killed again and again: what is left, and whether a new run finishes.

    python -m benchmarks.killed --times 50

Each run is given as long as the first files take to appear and a random time beyond, then it gets
SIGKILL, which no program can answer.  After each, every file under a final name must be the one
that an undisturbed run writes; the last run must finish the rest.  Needs POSIX.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pillow_sdz import demo

PICTURES = 12  # chosen: so many that a run is not over when it is killed
LONGEST = 0.4  # seconds after the first new file, chosen: several pictures' time


@dataclass
class Result:
    """What killed runs left behind."""

    kills: int = 0  # of runs that had not finished
    wrong: int = 0  # files under a final name that are not complete
    lost: int = 0  # files that were finished and are not there any more
    temporary: int = 0  # files under a temporary name
    finished: bool = False  # whether the last run of each folder did the rest and said so


def killed(folder: Path, times: int, seed: int = 0) -> Result:
    """Kill so many runs over pictures in ``folder``, which is to be empty."""
    rng = random.Random(seed)
    pictures, undisturbed = folder / "pictures", folder / "undisturbed"
    pictures.mkdir()
    photo = demo.photo()
    for number in range(PICTURES):
        left, top = rng.randrange(400), rng.randrange(300)
        photo.crop((left, top, left + 128, top + 96)).save(pictures / f"{number:02}.png")
    _encode(pictures, undisturbed).wait()
    expected = {path.name: path.read_bytes() for path in undisturbed.iterdir()}

    result = Result(finished=True)
    output = folder / "output"
    while result.kills < times:
        before = set(_names(output))
        process = _encode(pictures, output)
        while process.poll() is None and set(_names(output)) == before:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, LONGEST))
        process.send_signal(signal.SIGKILL)
        done = process.wait() == 0
        result.kills += not done
        after = {name: (output / name).read_bytes() for name in _names(output)}
        result.lost += len(before - after.keys())
        result.wrong += sum(data != expected.get(name) for name, data in after.items())
        if done or result.kills == times:
            complete = done or _encode(pictures, output).wait() == 0
            result.finished &= complete and set(_names(output)) == expected.keys()
            result.temporary += sum(path.suffix == ".tmp" for path in output.iterdir())
            output = output.with_name(f"output after {result.kills} kills")
    return result


def _encode(pictures: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pillow_sdz", "encode", str(pictures), "-o", str(output)]
    return subprocess.Popen([*command, "--skip-existing"])


def _names(output: Path) -> list[str]:
    """The final names in a folder, which may not be there yet."""
    return [path.name for path in output.glob("*.sdz")]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.killed",
        description="Kill `sdz encode` again and again, and look at what is left.",
    )
    parser.add_argument("--times", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.times < 1:
        parser.error("--times must be positive")
    with tempfile.TemporaryDirectory() as folder:
        result = killed(Path(folder), options.times, options.seed)
    print(f"{result.kills} runs killed before they were done")
    print(f"files under a final name that are not complete: {result.wrong}")
    print(f"finished files lost: {result.lost}")
    print(f"temporary files left: {result.temporary}")
    print(f"the next run did the rest: {'yes' if result.finished else 'NO'}")
    return int(bool(result.wrong or result.lost or not result.finished))


if __name__ == "__main__":
    sys.exit(main())
