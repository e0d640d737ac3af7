"""Pinned files in the usual cache of the Hugging Face hub.

`locate` looks into the cache. Only `fetch` and `latest` use the network. All use huggingface_hub,
so HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN work as usual.
"""

from __future__ import annotations

from pathlib import Path

from ..presets import File, Snapshot
from ..weights import sha256
from .recorded import REVISION

NEEDS_EXTRA = 'needs diffusers and transformers: run pip install "pillow-sdz[sd]"'


def locate(snapshot: Snapshot) -> Path | None:
    """The folder of the commit in the cache; None unless all its files are there."""
    # A revision is never a branch: which commit of a branch is cached depends on when it was
    # fetched.
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
    """Download the files that the cache lacks, and return the folder of the commit.

    It shows progress, and resumes a download. OSError if the download fails, or if a file is not
    the pinned one.
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
                f"{snapshot.repository} has no {file.path}, or the hub cannot be reached; "
                f"other files, such as pickles, are not read: {e}"
            )
            raise OSError(msg) from e
        except Exception as e:  # many libraries raise here: the hub's, its HTTP client, Xet
            msg = f"{snapshot.repository}/{file.path} could not be fetched: {e}"
            raise OSError(msg) from e
        folder = _root(path, file)
        _check_size_and_hash(Path(path), file)
    return folder


def latest(repository: str) -> str:
    """The latest commit of a repository's main branch, 40 hexadecimal digits."""
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
        msg = f"{repository} gives {revision!r} as its latest commit, which is none"
        raise OSError(msg)
    return revision


def _root(path: str, file: File) -> Path:
    """The folder of the commit; ``path`` is where its file lies."""
    return Path(path).parents[file.path.count("/")]


def _check_size_and_hash(path: Path, file: File) -> None:
    path = path.resolve()  # the cache has links, but the user has to delete the file itself
    size = path.stat().st_size
    if file.bytes is not None and size != file.bytes:
        msg = f"{path} is damaged: it has {size} bytes instead of {file.bytes}: delete it"
        raise OSError(msg)
    if file.sha256 is not None and (found := sha256(path)) != file.sha256:
        msg = f"{path} is damaged: its sha256 is {found} instead of {file.sha256}: delete it"
        raise OSError(msg)
