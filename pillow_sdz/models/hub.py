"""Pinned files in the Hugging Face hub's ordinary cache.

`locate` only looks; nothing but `fetch` uses the network. Both go through huggingface_hub, so
HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN mean what they mean elsewhere.
"""

from __future__ import annotations

from pathlib import Path

from ..catalogue import File, Snapshot
from ..weights import sha256
from .recorded import REVISION

NEEDS_EXTRA = 'needs diffusers and transformers: run pip install "pillow-sdz[sd]"'


def locate(snapshot: Snapshot) -> Path | None:
    """The folder of the commit in the cache; None unless all its files are there."""
    # Never a branch: what the cache has for one depends on when it was looked at.
    if snapshot.revision is None or not REVISION.fullmatch(snapshot.revision):
        return None
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    paths = []
    for file in snapshot.files:
        path = try_to_load_from_cache(snapshot.repository, file.path, revision=snapshot.revision)
        if not isinstance(path, str):
            return None
        paths.append(path)
    return _root(paths[0], snapshot.files[0])


def fetch(snapshot: Snapshot) -> Path:
    """Download what the cache lacks, showing progress and resuming; the folder of the commit.

    OSError where that fails, or where a file is not the pinned one.
    """
    assert snapshot.revision is not None
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as e:
        msg = f"fetching models {NEEDS_EXTRA}"
        raise OSError(msg) from e
    folder = Path()
    for file in snapshot.files:
        try:
            path = hf_hub_download(snapshot.repository, file.path, revision=snapshot.revision)
        except EntryNotFoundError as e:
            msg = (
                f"{snapshot.repository} has no {file.path}, or it cannot be reached; "
                f"other files, such as pickles, are not read: {e}"
            )
            raise OSError(msg) from e
        except Exception as e:  # of many libraries: the hub's, its HTTP client's, Xet's
            msg = f"{snapshot.repository}/{file.path} could not be fetched: {e}"
            raise OSError(msg) from e
        folder = _root(path, file)
        _check_size_and_hash(Path(path), file)
    return folder


def latest(repository: str) -> str:
    """The commit, 40 hexadecimal digits, that the repository's main branch is at now."""
    try:
        from huggingface_hub import HfApi
    except ImportError as e:
        msg = f"fetching models {NEEDS_EXTRA}"
        raise OSError(msg) from e
    try:
        revision = HfApi().model_info(repository).sha
    except Exception as e:
        msg = f"{repository} could not be asked for its latest commit: {e}"
        raise OSError(msg) from e
    if revision is None or not REVISION.fullmatch(revision):
        msg = f"{repository} says that its latest commit is {revision!r}"
        raise OSError(msg)
    return revision


def _root(path: str, file: File) -> Path:
    """The folder of the commit, of which this is the path of a file."""
    return Path(path).parents[file.path.count("/")]


def _check_size_and_hash(path: Path, file: File) -> None:
    path = path.resolve()  # what the cache's links point to is what has to be deleted
    size = path.stat().st_size
    if file.bytes is not None and size != file.bytes:
        msg = f"{path} is damaged: it has {size} bytes instead of {file.bytes}: delete it"
        raise OSError(msg)
    if file.sha256 is not None and (found := sha256(path)) != file.sha256:
        msg = f"{path} is damaged: its sha256 is {found} instead of {file.sha256}: delete it"
        raise OSError(msg)
