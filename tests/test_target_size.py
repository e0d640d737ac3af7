"""The search for the quality that fits: never over the limit, and as good as time allows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pillow_sdz import container
from pillow_sdz.chunks import LATENTS
from pillow_sdz.codings.target_size import (
    NEAR_ENOUGH,
    ONE_IN,
    SLOW_TRIES,
    DoesNotFit,
    EncodedLatents,
    largest,
    largest_of_slow,
)
from pillow_sdz.container import Chunk
from pillow_sdz.spaces import HIGHEST_QUALITY, LOWEST_QUALITY

Coded = Callable[[int], EncodedLatents]


def of_size(size: int, quality: int) -> EncodedLatents:
    """The bytes of a payload in a file. The framing of a chunk has 9 or 10."""
    data = bytes(size - container.chunk_size(size) + size)
    coded = EncodedLatents([[Chunk(LATENTS, data)]], quality)
    assert coded.size == size
    return coded


def sizes(growth: float, part: float = 1, jitter: int = 0) -> Callable[[int], int]:
    """Bytes that grow exponentially with a quality, plus or minus up to ``jitter``."""

    def size(quality: int) -> int:
        at = (quality - LOWEST_QUALITY) / (HIGHEST_QUALITY - LOWEST_QUALITY)
        unsteady = quality * 7919 % (2 * jitter + 1) - jitter  # 7919 is prime, so all values occur
        return round(300 * part * growth**at) + unsteady

    return size


def is_largest(size: Callable[[int], int], quality: int, limit: int) -> bool:
    """Whether a larger file does not fit, or less than a thousandth of the bytes is left."""
    return size(quality + 1) > limit or limit - size(quality) < limit // ONE_IN


class Counted:
    """Encodes to the given sizes, and notes at which qualities."""

    def __init__(self, size: Callable[[int], int]) -> None:
        self.size = size
        self.asked: list[int] = []

    def __call__(self, quality: int) -> EncodedLatents:
        self.asked.append(quality)
        return of_size(self.size(quality), quality)


@pytest.mark.parametrize("growth", [1.5, 20, 400])
@pytest.mark.parametrize("limit", [300, 301, 449, 450, 2_000, 120_000, 1_000_000])
def test_the_highest_quality_that_fits(growth: float, limit: int) -> None:
    size = sizes(growth)
    coded = Counted(size)
    quality, found = largest(coded, LOWEST_QUALITY, HIGHEST_QUALITY, limit)
    assert quality == found.quantisation
    assert found.size == size(quality) <= limit
    assert quality == HIGHEST_QUALITY or is_largest(size, quality, limit)
    assert len(coded.asked) <= 30  # of 9,901 qualities


@pytest.mark.parametrize("growth", [20, 60, 120])
@pytest.mark.parametrize("bend", [0.7, 1, 1.5])
def test_few_tries_where_sizes_grow_as_those_of_photos(growth: float, bend: float) -> None:
    def size(quality: int) -> int:
        at = (quality - LOWEST_QUALITY) / (HIGHEST_QUALITY - LOWEST_QUALITY)
        return round(3_000 * growth**at**bend)

    for limit in (4_000, 10_000, 36_000, 50_000):
        coded = Counted(size)
        quality, _ = largest(coded, LOWEST_QUALITY, HIGHEST_QUALITY, limit, 7500)
        assert is_largest(size, quality, limit)
        assert coded.asked[0] == 7500
        assert len(coded.asked) <= (6 if bend >= 1 else 8)


def test_none_that_fits() -> None:
    with pytest.raises(DoesNotFit) as caught:
        largest(Counted(sizes(20)), LOWEST_QUALITY, HIGHEST_QUALITY, 299)
    assert caught.value.smallest == 300


SLOW = [sizes(20, part, jitter) for part in (0.8, 0.93, 1.1) for jitter in (0, 3, 10)]


@pytest.mark.parametrize("slow", SLOW)
def test_slow_encoders_never_exceed_the_limit(slow: Callable[[int], int]) -> None:
    """They never exceed the limit and mostly use it. They are asked only a few times."""
    quick = sizes(20)
    used = []
    for limit in range(450, 3_000, 17):
        counted = Counted(slow)
        found = largest_of_slow(Counted(quick), counted, limit)
        assert found.size <= limit
        assert len(counted.asked) <= SLOW_TRIES
        used.append(found.size / limit)
    assert min(used) > 0.8
    assert sum(share > NEAR_ENOUGH for share in used) > 0.7 * len(used)


@pytest.mark.parametrize("over", [1, 2, 3])
def test_a_file_that_is_over_by_a_few_bytes_does_not_fit(over: int) -> None:
    """The slow encoder may miss by a little any number of times. The quick one's file is kept."""
    quick = sizes(20)
    limit = 1_000
    found = largest_of_slow(Counted(quick), lambda quality: of_size(limit + over, quality), limit)
    assert found.size <= limit
    assert found.size == quick(found.quantisation)
    assert is_largest(quick, found.quantisation, limit)


def test_the_largest_of_those_that_fit_is_kept() -> None:
    """It is the best of the few that were tried. Later tries do not matter."""
    sizes_in_turn = iter((900, 930, 920))
    limit = 1_000
    slow = Counted(lambda _: next(sizes_in_turn))
    assert largest_of_slow(Counted(sizes(20)), slow, limit).size == 930
    assert len(slow.asked) == SLOW_TRIES


def test_near_enough_is_enough() -> None:
    slow = Counted(lambda _: 980)
    assert largest_of_slow(Counted(sizes(20)), slow, 1_000).size == 980
    assert len(slow.asked) == 1


def test_a_slow_encoder_that_fits_nowhere() -> None:
    """The smallest size is the slow encoder's own at the lowest quality, not the quick one's."""
    with pytest.raises(DoesNotFit) as caught:
        largest_of_slow(Counted(sizes(20)), Counted(sizes(20, 0.9)), 200)
    assert caught.value.smallest == 270


def test_the_highest_quality_needs_no_second_try() -> None:
    slow = Counted(sizes(20))
    found = largest_of_slow(Counted(sizes(20)), slow, 1_000_000)
    assert (found.quantisation, slow.asked) == (HIGHEST_QUALITY, [HIGHEST_QUALITY])
