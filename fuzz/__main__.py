"""`python -m fuzz TARGET`: libFuzzer through atheris if that is installed, or plain mutations.

The exit status is 0 if nothing was found. Findings are written to the current folder, as crash-*
(by libFuzzer) or finding-*. `python -m fuzz TARGET FILE ...` runs such files again.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from PIL import Image

Target = Callable[[bytes], None]

MAX_LENGTH = 4096  # bytes of an input; chosen: the fixtures have up to 3.2 kB
SLOWEST = 10  # seconds for one input; chosen: a thousand times the usual


def plain(target: Target, corpus: list[bytes], args: argparse.Namespace) -> None:
    """Mutate the corpus. This does not look at which code the inputs reach."""
    from .mutations import mutated

    rng = random.Random(args.seed)
    start = last = time.monotonic()
    slowest, runs = 0.0, 0
    while runs < args.runs and last - start < args.seconds:
        data = mutated(rng, corpus)
        try:
            target(data)
        except Exception:
            path = Path(f"finding-{args.target}-{hashlib.sha1(data).hexdigest()[:12]}")
            path.write_bytes(data)
            print(f"found: {path}, after {runs} executions", file=sys.stderr)
            raise
        now = time.monotonic()
        slowest, last, runs = max(slowest, now - last), now, runs + 1
    print(
        f"{args.target}: {runs} executions in {last - start:.0f} s, the slowest took "
        f"{1000 * slowest:.0f} ms, no findings"
    )


def guided(target: Target, corpus: list[bytes], args: argparse.Namespace) -> None:
    """Run libFuzzer, which keeps inputs that reach new code. It ends the process itself."""
    import atheris

    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(corpus):
            (Path(folder) / f"seed{number}").write_bytes(data)
        flags = {
            "runs": args.runs,
            "max_total_time": args.seconds,
            "seed": args.seed + 1,  # libFuzzer takes 0 as a random seed
            "max_len": MAX_LENGTH,
            "timeout": SLOWEST,
            "print_final_stats": 1,
        }
        options = [f"-{flag}={value}" for flag, value in flags.items()]
        atheris.Setup([sys.argv[0], *options, folder], target)
        atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("target", choices=("container", "entropy", "whole"))
    parser.add_argument("inputs", nargs="*", type=Path, help="run only these")
    parser.add_argument("--runs", type=int, default=100_000, help="executions at most")
    parser.add_argument("--seconds", type=int, default=1 << 30, help="seconds at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="do not use atheris")
    args = parser.parse_args()

    use_atheris = not (args.plain or args.inputs) and importlib.util.find_spec("atheris")
    if use_atheris:
        import atheris

        # This must come before anything imports these modules. libFuzzer sees only their branches.
        with atheris.instrument_imports(include=["pillow_sdz"]):
            from . import seeds, targets
    else:
        from . import seeds, targets

    target = targets.TARGETS[args.target]
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    with targets.light():
        if args.inputs:
            for path in args.inputs:
                target(path.read_bytes())
        else:
            run = guided if use_atheris else plain
            run(target, seeds.seeds(args.target), args)


if __name__ == "__main__":
    main()
