"""Rows of tables behave as frozen dataclasses do."""

from __future__ import annotations

import copy
import pickle

import pytest

from pillow_sdz.rows import Row


class Model(Row):
    name: str
    factor: int = 8
    #: Not a field, because it has no type.
    unit = "pixel"


class Other(Row):
    name: str
    factor: int = 8


def test_fields_and_their_defaults() -> None:
    model = Model("a", factor=16)
    assert (model.name, model.factor) == ("a", 16)
    assert Model("a").factor == 8
    assert repr(model) == "Model('a', 16)"


@pytest.mark.parametrize(
    ("values", "named"), [((), {}), (("a", 8, 9), {}), (("a",), {"size": 1}), ((), {"factor": 8})]
)
def test_missing_and_unknown_fields(values: tuple[object, ...], named: dict[str, object]) -> None:
    with pytest.raises(TypeError, match="Model has the fields name, factor"):
        Model(*values, **named)  # type: ignore[arg-type]


def test_a_row_cannot_be_changed() -> None:
    model = Model("a")
    with pytest.raises(AttributeError, match="Model cannot be changed"):
        model.factor = 16  # type: ignore[misc]
    assert model.replace(factor=16) == Model("a", 16)
    assert model.factor == 8


def test_rows_are_equal_if_their_fields_are() -> None:
    assert Model("a") == Model("a", 8)
    assert len({Model("a"), Model("a", 8), Model("a", 9)}) == 2
    assert Model("a") != Other("a")
    assert Other("a") != Model("a")


def test_rows_go_to_other_processes() -> None:
    model = Model("a", 16)
    assert pickle.loads(pickle.dumps(model)) == copy.deepcopy(model) == model
