"""What test_server.py has the server's worker processes do, which import it from here."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any


def held(release: Path, work: str, *arguments: object) -> Any:
    """The server's function of this name, but not before there is a file called ``release``."""
    deadline = time.monotonic() + 60
    while not release.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return getattr(importlib.import_module("server"), work)(*arguments)


def endless(*_: object) -> None:
    """Work that no exception stops."""
    while True:
        try:
            time.sleep(60)
        except BaseException:
            continue
