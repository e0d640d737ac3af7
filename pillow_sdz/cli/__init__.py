"""The `sdz` command: one module for each command, and below them what the commands share.

    parser                                      the whole command line, and `main`
    encode decode latents info compare models comfyui demo shell  the commands
    formats                                     what a format of pictures can hold
    pictures                                    opening pictures of any format
    running workers targets                     many files, processes, writing
    files reports metadata                      which files are read, and the results
    arguments messages                          options, and lines of text

A module imports only modules on the lines below its own. There is one exception: `encode` imports
`latents`, because it also gets files of latents.
"""

from __future__ import annotations

from .parser import main as main
