"""The `sdz` command: one module for each command, and below them what the commands share.

    parser                                      the whole command line, and `main`
    encode decode latents info compare models demo shell          the commands
    formats                                     what a format of pictures can hold
    pictures                                    opening pictures of any format
    running workers targets                     many files, processes, writing
    files reports metadata                      what is read, what became of it
    arguments messages cores                    what comes in, what is said, where it runs

Each imports only from the lines below its own; but `encode` hands files of latents to `latents`.
"""

from __future__ import annotations

from .parser import main as main
