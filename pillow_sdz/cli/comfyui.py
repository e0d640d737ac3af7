"""`sdz comfyui`: where the nodes for ComfyUI are, or a link to them in a ComfyUI."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import Commands, path
from .messages import say

NODES = Path(__file__).parents[1] / "comfyui"
LINK = "pillow-sdz"  # what the folder of nodes is called in ComfyUI


def add_comfyui(commands: Commands) -> None:
    """Add `comfyui` to the commands of `sdz`."""
    parser = commands.add_parser(
        "comfyui",
        help="add the nodes for ComfyUI to a ComfyUI",
        description="Link the nodes for ComfyUI into the folder of a ComfyUI, whose Python must"
        " have this package. Without a folder, print where the nodes are.",
    )
    parser.add_argument("folder", nargs="?", type=path, metavar="FOLDER", help="of ComfyUI")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    """OSError if the folder is not ComfyUI's, or if something else has the link's name."""
    if options.folder is None:
        say(f"{NODES}\nlink it into ComfyUI: sdz comfyui FOLDER")
        return 0
    nodes = options.folder / "custom_nodes"
    if not nodes.is_dir():
        msg = f"{options.folder} has no folder custom_nodes: name the folder of a ComfyUI"
        raise OSError(msg)
    link = nodes / LINK
    if not (link.is_symlink() and link.resolve() == NODES.resolve()):
        link.symlink_to(NODES, target_is_directory=True)
    say(f"{link} -> {NODES}")
    return 0
