"""Finds which parts of a map are connected, from its runs: True values side by side in a row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .arrays import Bools


def runs_of(begins: Bools) -> NDArray[np.int32]:
    """The number of the run that each place is in, if True begins a run."""
    return (np.cumsum(begins.ravel(), dtype=np.int32) - 1).reshape(begins.shape)


def joined(first: NDArray[np.int32], second: NDArray[np.int32], count: int) -> NDArray[np.int32]:
    """A name for each of ``count`` runs, the same for those that pairs connect."""
    names = np.arange(count, dtype=np.int32)
    while True:
        a, b = names[first], names[second]
        apart = a != b
        if not apart.any():
            return names
        first, second, a, b = first[apart], second[apart], a[apart], b[apart]
        np.minimum.at(names, np.maximum(a, b), np.minimum(a, b))
        while True:
            nearer = names[names]
            if (nearer == names).all():
                break
            names = nearer


def groups(places: Bools) -> NDArray[np.int64]:
    """The groups of True places that touch each other at a side, numbered from 1 on; 0 elsewhere.

    They are numbered by their first places.
    """
    begins = places.copy()
    begins[:, 1:] &= ~places[:, :-1]
    runs = runs_of(begins)
    touch = places[1:] & places[:-1] & (begins[1:] | begins[:-1])
    names = joined(runs[:-1][touch], runs[1:][touch], int(begins.sum()))
    _, numbers = np.unique(names, return_inverse=True)
    found = np.zeros(places.shape, np.int64)
    found[places] = numbers[runs[places]] + 1
    return found
