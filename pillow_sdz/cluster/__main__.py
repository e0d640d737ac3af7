"""`python -m pillow_sdz.cluster encode SOURCE TARGET --shards N`."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

import fsspec
from tqdm import tqdm

from .. import catalogue
from ..cli.arguments import integer, number, pixels, positive
from ..header import MAX_FACTOR
from .plan import SHARD_FORMATS, Settings

MOST = 1_000_000  # shards or workers.  Chosen: more would be a mistake.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    The exit status is 0, 1 if items failed, now or in an earlier run, or 2 if nothing could run.
    """
    options = _parser().parse_args(arguments)
    try:
        import ray
    except ImportError:
        print('needs the extra ray: pip install ".[ray]" in a checkout', file=sys.stderr)
        return 2
    from .engine import encode

    for place in (options.source, options.target):
        try:
            fsspec.url_to_fs(place)
        except (ImportError, ValueError) as e:  # before Ray starts, which takes long
            print(f"{place}: {e}", file=sys.stderr)
            return 2
    names = ("model", "quality", "step", "lossless", "effort", "factor", "size")
    settings = Settings(**{name: getattr(options, name) for name in names})
    ray.init(
        options.address, num_cpus=options.workers, log_to_driver=False, logging_level=logging.ERROR
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    begin = time.monotonic()
    with tqdm(total=None, unit=" items", file=sys.stderr) as bar:

        def told(done: dict[str, Any]) -> None:
            bar.update(int(done["items"]) + int(done["errors"]))

        try:
            total = encode(
                options.source,
                options.target,
                count=options.shards,
                format=options.format,
                settings=settings,
                retry=options.retry,
                told=told,
            )
        except (OSError, ValueError) as e:
            print(f"{options.source}: {e}", file=sys.stderr)
            return 2
    seconds = time.monotonic() - begin
    per_core = total["items"] / total["seconds"] if total["seconds"] else 0
    print(
        f"{total['items']} items in {total['shards']} shards, {total['before']:,} -> "
        f"{total['after']:,} bytes, {seconds:.1f} s, {per_core:.1f} items a second of a core"
    )
    if total["left_out"]:
        print(f"{total['left_out']} other files left out")
    if total["assumed"]:
        family = catalogue.DEFAULT_FAMILY
        print(f"{total['assumed']} are assumed to be of {family} (--model names another model)")
    if total["warned"]:
        lists = f"*.warnings.jsonl in {options.target}"
        print(f"of {total['warned']} sources, something is not kept: see {lists}")
    if errors := total["errors"] + total["known_errors"]:
        earlier = f", {total['known_errors']} of them in earlier runs" * bool(total["known_errors"])
        print(
            f"{errors} could not be encoded{earlier}: see *.errors.jsonl in {options.target}"
            " (--retry tries again)"
        )
    return 1 if errors else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pillow_sdz.cluster")
    parser.add_argument(
        "command",
        choices=["encode"],
        help="all pictures of a folder to shards or, if it has none or an option is for latents,"
        " all caches",
    )
    parser.add_argument("source", help="a folder, or what fsspec knows, such as s3://bucket/folder")
    parser.add_argument("target", help="where the shards go")
    parser.add_argument(
        "--shards", type=integer(1, MOST), required=True, help="how many; a few for each core"
    )
    parser.add_argument("--format", choices=SHARD_FORMATS, default="tar")
    parser.add_argument("--model", help="of pictures, or of latents whose files do not say it")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--quality", type=number(1, 100))
    precision.add_argument("--step", type=positive, help="for latents")
    precision.add_argument("--lossless", action="store_const", const=True, help="for latents")
    parser.add_argument("--effort", type=integer(0, 9))
    parser.add_argument(
        "--factor", type=integer(1, MAX_FACTOR), help="of latents of a model that is not known"
    )
    parser.add_argument("--size", type=pixels, help="of the pictures of packed latents: 1024x768")
    parser.add_argument("--address", help="of a running Ray cluster; default: this machine")
    parser.add_argument(
        "--workers", type=integer(1, MOST), help="on this machine; default: one for each core"
    )
    parser.add_argument(
        "--retry", action="store_true", help="try again what an earlier run could not encode"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
