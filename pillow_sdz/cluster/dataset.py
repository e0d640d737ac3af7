"""A torch dataset over shards: batches of latents, shuffled, for DataLoader's workers and ranks."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import fsspec
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..latents import kinds_of, pictures_of
from . import shards


class Example(NamedTuple):
    """The latents of a picture or a clip, and what is known of them."""

    latents: torch.Tensor
    model: str
    kind: str
    source: str
    key: str

    @property
    def alike(self) -> tuple[Any, ...]:
        """What must be equal for examples to be in one batch."""
        return self.latents.shape, self.latents.dtype, self.model, self.kind


class _Epochs:
    """Counts epochs in memory that a DataLoader's workers share.

    A DataLoader does not tell its dataset that an epoch begins.  It gives all workers that it
    starts together seeds of one base, and persistent workers begin as many iterations as others.
    So the base and that number name an iteration, and the first worker that begins it counts it.
    """

    KEPT = 8  # iterations that are remembered.  Chosen: a few loaders may be begun at one time.

    def __init__(self, following: int = 0) -> None:
        # A lock of this context can also go to processes that are forked.
        context = multiprocessing.get_context("spawn")
        self._shared = context.Array("q", [following, *[-1] * 3 * self.KEPT])
        self._begun = 0  # by this process

    def begin(self) -> int:
        """The number of the epoch that begins, the same for all workers of one DataLoader."""
        info = get_worker_info()
        self._begun += 1
        with self._shared.get_lock():
            epoch = self._shared[0]
            if info is not None:
                name = info.seed - info.id, self._begun
                kept = self._shared[1:]
                for at in range(0, len(kept), 3):
                    if tuple(kept[at : at + 2]) == name:
                        return int(kept[at + 2])
                self._shared[1:] = [*name, epoch, *kept[:-3]]
            self._shared[0] = epoch + 1
            return int(epoch)

    @property
    def following(self) -> int:
        """The number of the epoch that begins next."""
        return int(self._shared[0])

    @following.setter
    def following(self, number: int) -> None:
        self._shared[0] = number

    def __getstate__(self) -> Any:
        # Shared memory can only go to a process that is just being started.
        is_starting = multiprocessing.context.get_spawning_popen() is not None
        return self.__dict__ if is_starting else self.following

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            _Epochs.__init__(self, state)


class ShardedLatents(IterableDataset[dict[str, Any]]):
    """Batches of latents of one shape, family and kind, from the shards in a folder or a bucket.

    A batch is a dictionary.  ``latents`` are (B, C, h, w), scaled as pipelines return them; those
    of clips are (B, C, T, h, w).  ``model`` is their family, and ``kind`` what they are: "latents",
    "flipped" for those of mirrored pictures, or the name that others have in their cache, such as
    "latents_control" (see `interchange.kinds`).  ``sources`` and ``keys`` are lists of B names.  If
    a file has several frames or clips, each of them is an example.  Pictures whose pixels are all
    kept exactly have no latents: OSError, as for damaged files.

    Pass the dataset to a DataLoader with ``batch_size=None``.  The DataLoader's workers share the
    shards, and so do the ``ranks``.

    With a ``seed``, each epoch has the shards in another order.  Examples wait in a buffer of
    ``buffer`` examples, and random ones leave it.  Without it, they come in the order of the
    sources.  The dataset counts its epochs itself.  To go on with a training, set ``epoch``.
    ``drop_last`` leaves out batches that are not full.
    """

    def __init__(
        self,
        target: str,
        batch_size: int,
        *,
        seed: int | None = None,
        buffer: int = 1024,
        drop_last: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if batch_size < 1 or buffer < 1 or not 0 <= rank < ranks:
            msg = "batch_size and buffer must be at least 1, and rank from 0 to ranks - 1"
            raise ValueError(msg)
        self._target = target
        self._paths = shards.paths(*fsspec.url_to_fs(target))
        self._batch_size, self._seed, self._buffer = batch_size, seed, buffer
        self._drop_last, self._rank, self._ranks = drop_last, rank, ranks
        self._epochs = _Epochs()

    @property
    def epoch(self) -> int:
        """The number of the epoch that begins next, from 0.  Setting it says where to go on."""
        return self._epochs.following

    @epoch.setter
    def epoch(self, number: int) -> None:
        self._epochs.following = number

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # This is no generator: the epoch counts when it begins, not with the first batch.
        return self._of_epoch(self._epochs.begin())

    def _of_epoch(self, epoch: int) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        paths = list(self._paths)
        chance = None if self._seed is None else random.Random(f"{self._seed} {epoch}")
        if chance is not None:
            chance.shuffle(paths)
        mine = paths[self._rank * workers + worker :: self._ranks * workers]
        # Each process needs a file system of its own: those of buckets do not survive a fork.
        fs, _ = fsspec.url_to_fs(self._target)
        examples: Iterator[Example] = (each for path in mine for each in _examples(fs, path))
        if chance is not None:
            examples = _shuffled(examples, self._buffer, chance)
        yield from self._batches(examples)

    def _batches(self, examples: Iterator[Example]) -> Iterator[dict[str, Any]]:
        # Examples wait for others that are like them.
        waiting: dict[tuple[Any, ...], list[Example]] = {}
        for example in examples:
            alike = waiting.setdefault(example.alike, [])
            alike.append(example)
            if len(alike) == self._batch_size:
                yield _batch(waiting.pop(example.alike))
        if not self._drop_last:
            yield from map(_batch, waiting.values())


def _examples(fs: Any, path: str) -> Iterator[Example]:
    for item, found in shards.opened(fs, path):
        pictures = found.torch().reshape(pictures_of(found).shape)
        for latents, kind in zip(pictures, kinds_of(found), strict=True):
            yield Example(latents, found.model, kind, item.source, item.key)


def _shuffled(examples: Iterator[Example], size: int, chance: random.Random) -> Iterator[Example]:
    buffer: list[Example] = []
    for example in examples:
        if len(buffer) < size:
            buffer.append(example)
            continue
        place = chance.randrange(size)
        buffer[place], example = example, buffer[place]
        yield example
    chance.shuffle(buffer)
    yield from buffer


def _batch(examples: list[Example]) -> dict[str, Any]:
    return {
        "latents": torch.stack([example.latents for example in examples]),
        "model": examples[0].model,
        "kind": examples[0].kind,
        "sources": [example.source for example in examples],
        "keys": [example.key for example in examples],
    }
