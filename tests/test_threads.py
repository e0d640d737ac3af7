"""The limit on numpy's BLAS: it holds while a prior or a draft needs it, and ends after that."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController, threadpool_limits

from pillow_sdz import catalogue, models
from pillow_sdz.models.mini import Mini
from pillow_sdz.threads import one_blas_thread


def blas_threads() -> set[int]:
    np.ones((2, 2)) @ np.ones((2, 2))  # so that it is loaded
    libraries = ThreadpoolController().select(internal_api="openblas").info()
    # scipy has its own copy with the same name. Another test may have imported it.
    numpys = [library for library in libraries if "numpy" in library["filepath"]]
    return {library["num_threads"] for library in numpys}


@pytest.fixture(autouse=True)
def two_threads() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))  # so that it is loaded
    libraries = ThreadpoolController().select(internal_api="openblas")
    if not libraries.info() or (os.cpu_count() or 1) < 2:
        pytest.skip("numpy is not built on OpenBLAS, or has one core")
    libraries.limit(limits=2)


def test_limited_within_and_restored_after() -> None:
    with one_blas_thread():
        assert blas_threads() == {1}
    assert blas_threads() == {2}


def test_restored_after_an_error() -> None:
    with pytest.raises(KeyError), one_blas_thread():
        raise KeyError
    assert blas_threads() == {2}


def test_threads_that_overlap() -> None:
    """The thread that came first leaves first. The limit holds until the other one leaves."""
    first_in, second_in, first_out = Event(), Event(), Event()

    def first() -> None:
        with one_blas_thread():
            first_in.set()
            assert second_in.wait(30)
        first_out.set()

    def second() -> set[int]:
        assert first_in.wait(30)
        with one_blas_thread():
            second_in.set()
            assert first_out.wait(30)
            return blas_threads()

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.submit(first), pool.submit(second)
        one.result(60)
        assert two.result(60) == {1}
    assert blas_threads() == {2}


def test_any_thread_limits_after_any_other() -> None:
    """From version 3.8 on, threadpoolctl lets only one thread do so, for the whole process."""

    def limited() -> set[int]:
        with one_blas_thread():
            return blas_threads()

    with ThreadPoolExecutor(1) as pool:
        for _ in range(2):
            assert pool.submit(limited).result(60) == limited() == {1}
            with threadpool_limits(1, "blas"):
                assert blas_threads() == {1}
            assert blas_threads() == pool.submit(blas_threads).result(60) == {2}


class NotedMatrix:
    """A matrix that notes how many threads multiply it."""

    __array_ufunc__ = None  # numpy leaves products to this class

    def __init__(self, matrix: NDArray[np.float32], found: list[set[int]]) -> None:
        self._matrix, self._found = matrix, found

    def __getitem__(self, rows: slice) -> NotedMatrix:
        return NotedMatrix(self._matrix[rows], self._found)

    def __rmatmul__(self, other: NDArray[np.float32]) -> NDArray[np.float32]:
        self._found.append(blas_threads())
        product: NDArray[np.float32] = other @ self._matrix
        return product


def test_a_draft_at_an_eighth_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its product is small, and threads of BLAS would go on spinning after it."""
    mini = models.load(catalogue.MINI)
    assert isinstance(mini, Mini)
    found: list[set[int]] = []
    network = mini._decoders._eighth
    monkeypatch.setattr(network, "_matrix", NotedMatrix(network._matrix, found))
    latents = np.zeros((8, 8, 64), np.float32)
    list(mini.decode(latents, 5000, scale=8))
    assert found == [{1}]
    assert blas_threads() == {2}
