"""Which parts of a map are connected."""

from __future__ import annotations

import numpy as np
import pytest

from pillow_sdz import connected

MAP = """
##..#
.#.##
#..#.
#.###
"""
GROUPS = """
11..2
.1.22
3..2.
3.222
"""


def test_groups_touch_at_sides() -> None:
    """They are numbered by their first places.  Corners do not connect."""
    places = np.array([[c == "#" for c in line] for line in MAP.split()])
    wanted = [[int(c) if c != "." else 0 for c in line] for line in GROUPS.split()]
    assert connected.groups(places).tolist() == wanted


@pytest.mark.parametrize("value", [False, True])
def test_all_or_nothing(value: bool) -> None:
    assert (connected.groups(np.full((3, 4), value)) == int(value)).all()


def test_a_spiral_is_one_group() -> None:
    places = np.ones((64, 64), np.bool_)
    for turn in range(1, 31, 2):
        places[turn, turn : 64 - turn] = places[turn:-turn, 63 - turn] = False
        places[63 - turn, turn : 64 - turn] = places[turn + 2 : 64 - turn, turn] = False
        places[turn + 1, turn] = True
        places[turn + 1, turn - 1] = True
    found = connected.groups(places)
    assert (found == places).all()
