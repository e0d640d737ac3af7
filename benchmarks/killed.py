"""Kill `sdz encode` again and again. Look at what is left, and whether another run finishes it.

    python -m benchmarks.killed --times 50

Each run has time until its first files appear, and a random time more. Then it gets SIGKILL, which
no program can catch. After each kill, every file with a final name must equal the file of a run
that nobody disturbed. The last run must do the rest. This needs POSIX.
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

PICTURES = 100  # chosen: so many that a run is still working when it is killed
LONGEST = 0.4  # chosen: seconds after the first new file, enough for several pictures


@dataclass
class Result:
    """What the killed runs left behind."""

    kills: int = 0  # runs that were killed before they finished
    wrong: int = 0  # files with a final name that are not complete
    lost: int = 0  # files that were finished and are gone
    temporary: int = 0  # files with a temporary name
    finished: bool = False  # whether the last run of each folder did the rest and said so


def killed(folder: Path, times: int, seed: int = 0, count: int = PICTURES) -> Result:
    """Kill this many runs over the pictures in ``folder``, which must be empty at the start.

    A run over a small ``count`` of pictures may end before it is killed. Then another one starts.
    """
    rng = random.Random(seed)
    pictures, undisturbed = folder / "pictures", folder / "undisturbed"
    pictures.mkdir()
    photo = demo.photo()
    for number in range(count):
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
    # The closing line of each run would stand between the figures.
    return subprocess.Popen([*command, "--skip-existing"], stdout=subprocess.DEVNULL)


def _names(output: Path) -> list[str]:
    """The files with final names in a folder, which may not exist yet."""
    return [path.name for path in output.glob("*.sdz")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.killed",
        description="Kill `sdz encode` again and again and look at what is left.",
    )
    parser.add_argument("--times", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.times < 1:
        parser.error("--times must be positive")
    with tempfile.TemporaryDirectory() as folder:
        result = killed(Path(folder), options.times, options.seed)
    print(f"{result.kills} runs were killed before they were done")
    print(f"files with a final name that are not complete: {result.wrong}")
    print(f"finished files lost: {result.lost}")
    print(f"temporary files left: {result.temporary}")
    print(f"the next run did the rest: {'yes' if result.finished else 'NO'}")
    return int(bool(result.wrong or result.lost or not result.finished))


if __name__ == "__main__":
    sys.exit(main())
