"""The `sdz` command: one module for each command, and below them what the commands share.

    parser                                        the whole command line, and `main`
    pictures latents info compare models demo     the commands
    arguments files metadata running messages     what they share

Each imports only from lines below its own; `pictures` also hands files of latents to `latents`.
"""

from __future__ import annotations

from .parser import main as main
