"""Options as frozen values, read from TOML with every mistake named.

A mistyped key in a recipe that is silently ignored costs an hour of training before anyone
notices. So each table of a recipe is a frozen dataclass, and `from_table` refuses unknown keys,
wrong types and values outside the range that the annotation states. Imports no torch.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from merkit.errors import InvalidInputError

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both inclusive; stands in an `Annotated` type."""

    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"{self.low:g} or more"
        return f"{self.low:g} to {self.high:g}"


Count = Annotated[int, Range(1)]
"""A whole number of things, at least one."""
Natural = Annotated[int, Range(0)]
"""A whole number, zero allowed."""
Share = Annotated[float, Range(0, 1)]
"""A part of a whole."""
Amount = Annotated[float, Range(0)]
"""A finite number that is not negative."""


def divides(hidden: int, heads: int) -> None:
    """Refuses a width that its attention heads cannot share."""
    if hidden % heads:
        raise ValueError(f"hidden ({hidden}) must be a multiple of heads ({heads})")


def from_table(cls: type[T], table: object, where: str) -> T:
    """Builds the dataclass `cls` from a TOML table.

    Understands bool, int, float, str, `Literal`, `tuple[X, ...]`, `X | None`, nested
    dataclasses, and `Annotated[number, Range(...)]`. A `ValueError` of `__post_init__` counts as
    an impossible value.

    Args:
        cls: a frozen dataclass.
        table: what tomllib or json gave.
        where: how messages name the table, such as "tiny.toml [synth]".

    Raises:
        InvalidInputError: names the key, what was found and what was expected.
    """
    if not isinstance(table, Mapping):
        raise _wrong(where, table, "a table")
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(table) - set(known)):
        raise InvalidInputError(
            f"{where} has the unknown key {unknown[0]!r}",
            f"keys among {', '.join(known)}",
            "correct or remove it",
        )
    for name, field in known.items():
        if name not in table and field.default is MISSING and field.default_factory is MISSING:
            raise InvalidInputError(f"{where} lacks the key {name!r}", f"all of {', '.join(known)}")
    hints = get_type_hints(cls, include_extras=True)
    values = {name: _convert(hints[name], table[name], f"{where}.{name}") for name in table}
    try:
        return cls(**values)
    except ValueError as error:
        raise InvalidInputError(f"{where}: {error}", action="correct the recipe") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _ranged(_convert(args[0], value, where), args[1:], where)
    if origin in (Union, types.UnionType):  # X | None: TOML has no null, JSON has
        inner = next(arg for arg in args if arg is not type(None))
        return None if value is None else _convert(inner, value, where)
    if origin is Literal:
        if value not in args:
            raise _wrong(where, value, f"one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(where, value, "a list")
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise _wrong(where, value, f"{len(args)} values")
        inner_types = [args[0]] * len(value) if args[-1] is Ellipsis else args
        pairs = enumerate(zip(inner_types, value, strict=True))
        return tuple(_convert(inner, item, f"{where}[{i}]") for i, (inner, item) in pairs)
    if is_dataclass(hint):
        return from_table(hint, value, where)  # type: ignore[arg-type]
    return _plain(hint, value, where)


def _plain(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        article = "an" if kind.__name__[0] in "aeiou" else "a"
        raise _wrong(where, value, f"{article} {kind.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(where, value, "a finite number")
    return value


def _ranged(value: Any, marks: tuple[Any, ...], where: str) -> Any:
    for mark in marks:
        if isinstance(mark, Range) and not mark.low <= value <= mark.high:
            raise _wrong(where, value, str(mark))
    return value


def _wrong(where: str, value: object, expected: str) -> InvalidInputError:
    return InvalidInputError(f"{where} is {value!r}", expected, "correct the recipe")
