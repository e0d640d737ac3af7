"""`sdz completion` and `sdz manpage`: data for a shell and for `man`, made from the parser."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

from .. import __version__
from .arguments import Commands, output, path
from .messages import complain, say

# These packages are an extra, because few users need them: a Pillow plugin mostly runs where
# nobody has a shell.
NEEDS_EXTRA = 'run pip install "pillow-sdz[shell]"'

Parser = Callable[[], argparse.ArgumentParser]


def add_completion(commands: Commands, whole: Parser) -> None:
    """Add `completion` to the commands of `sdz`."""
    parser = commands.add_parser(
        "completion",
        help="print a script that completes commands in a shell",
        description="Print a script with which a shell completes the commands and options of sdz.",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")
    parser.set_defaults(run=lambda options: _run_completion(whole(), options.shell))


def _run_completion(parser: argparse.ArgumentParser, shell: str) -> int:
    try:
        import shtab
    except ImportError:
        complain("completion", f"needs shtab: {NEEDS_EXTRA}")
        return 1
    for action in _actions(parser):
        if action.type in (path, output):
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks for it
    for line in shtab.complete(parser, shell).splitlines():
        say(line)
    return 0


def add_manpage(commands: Commands, whole: Parser) -> None:
    """Add `manpage` to the commands of `sdz`."""
    parser = commands.add_parser(
        "manpage",
        help="print the manual page",
        description="Print the manual page of sdz, as man reads it.",
    )
    parser.set_defaults(run=lambda options: _run_manpage(whole()))


def _run_manpage(parser: argparse.ArgumentParser) -> int:
    try:
        from argparse_manpage.manpage import Manpage
    except ImportError:
        complain("manpage", f"needs argparse-manpage: {NEEDS_EXTRA}")
        return 1
    page = Manpage(parser)
    page.manual = "User Commands"
    page.source = "pillow-sdz"
    page.version = __version__
    page.description = "keep pictures as the latents of an autoencoder"
    for line in str(page).splitlines():
        say(line)
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a parser, and of the commands in it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
