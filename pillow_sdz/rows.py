"""Classes for the rows of tables, such as the table of models.

Opening a picture imports five of them.  A NamedTuple or a dataclass compiles code for each class
when it is imported, which takes about 0.15 ms.  `Row` compiles nothing (docs/speed.md).
"""

from __future__ import annotations

from typing import Any, Self, dataclass_transform


@dataclass_transform(frozen_default=True)
class Row:
    """Works like a frozen dataclass: a subclass lists its fields, perhaps with default values."""

    def __init__(self, *values: Any, **named: Any) -> None:
        fields = type(self).__annotations__
        self.__dict__.update(zip(fields, values), **named)  # noqa: B905  # most have fewer values
        if len(values) > len(fields) or not (
            self.__dict__.keys() <= fields.keys() <= {*self.__dict__, *vars(type(self))}
        ):
            msg = f"{type(self).__name__} has the fields {', '.join(fields)}"
            raise TypeError(msg)

    def __setattr__(self, name: str, value: Any) -> None:
        msg = f"{type(self).__name__} cannot be changed"
        raise AttributeError(msg)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self._values()}"

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in type(self).__annotations__)

    def replace(self, **changes: Any) -> Self:
        """A copy with other values in some fields."""
        return type(self)(**{**self.__dict__, **changes})
