"""How many processor cores this program may use."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path


def cores() -> int:
    """How many processor cores this process may use: all, or those of its container."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    for quota in _quotas(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")):
        count = min(count, max(1, round(quota)))
    return count


def threads() -> int:
    """How many threads of this process may work on a picture: one for each core, or its share.

    ``OMP_NUM_THREADS`` limits them, as it limits those of torch and BLAS.  Without it, a process
    that multiprocessing has started has one thread, because it hardly ever works alone: workers of
    a torch DataLoader or of a Pool share the cores.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if first.isdecimal() and int(first):
        return min(cores(), int(first))
    # If this process is such a child, the module is imported.
    processes = sys.modules.get("multiprocessing.process")
    return 1 if processes is not None and processes.parent_process() is not None else cores()


def _quotas(groups: Path, root: Path) -> Iterator[float]:
    """The processor time that Linux's control groups (version 2) give this process, in cores."""
    try:
        own = groups.read_text().strip().rpartition("0::/")[2]
    except (OSError, ValueError):
        return
    folder = root / own
    for place in (folder, *folder.parents):
        if not place.is_relative_to(root):
            break
        try:
            allowed, period = (place / "cpu.max").read_text().split()
            if allowed != "max":
                yield int(allowed) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue
