"""Millions of pictures or latents, on more than one machine: shards of `.sdz`, made with Ray Data.

    python -m pillow_sdz.cluster encode SOURCE TARGET --shards 64

Folders may be on any file system that fsspec knows, such as `s3://bucket/folder`.  `read` and
`ShardedLatents` read the shards back.  Encoding needs the extra `ray`, `ShardedLatents` only torch.
"""

from __future__ import annotations

from .dataset import ShardedLatents
from .engine import encode, read
from .plan import Settings

__all__ = ["Settings", "ShardedLatents", "encode", "read"]
