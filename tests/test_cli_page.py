"""docs/command-line.md: its commands run, and it names every command and setting."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_registry import autoencoder_directory, hub_cache, no_network, registry
from pillow_sdz import options
from pillow_sdz.cli import main
from pillow_sdz.cli.parser import parser

__all__ = ["hub_cache", "no_network", "registry"]

pytestmark = pytest.mark.usefixtures("one_process")

PAGE = Path(__file__).parent.parent / "docs" / "command-line.md"


def test_its_commands_for_models_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """test_readme.py runs all other commands."""
    monkeypatch.chdir(tmp_path)
    autoencoder_directory(Path("my-pipeline/vae"))
    lines = re.findall(r"^sdz models .*$", PAGE.read_text(), re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, line


def commands(of: argparse.ArgumentParser) -> Iterator[str]:
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices


def test_it_names_every_command_and_setting() -> None:
    text = PAGE.read_text()
    assert [c for c in commands(parser()) if f"`sdz {c}`" not in text] == []
    assert [name for name in options._RULES if f"`SDZ_{name}`" not in text] == []
