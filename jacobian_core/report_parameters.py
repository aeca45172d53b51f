"""From what a user typed, or a program passed, to a SQL file's typed parameters, or a line that says what is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from jacobian_core.errors import QueryError
from jacobian_core.sql.sql_files import Item, SqlFile, nearest

Value = str | int | float | bool | list[float]
"""A parameter as DuckDB takes it."""


def typed_parameters(file: SqlFile, given: Mapping[str, object]) -> dict[str, Value]:
    """Every parameter of the file, given or by default, as a value of its type.

    Raises QueryError for an unknown name (with the nearest one), a missing value, or a value of another type.
    """
    for name in given:
        if file.parameter(name) is None:
            known = [parameter.name for parameter in file.parameters]
            raise QueryError(f"{file.name} has no parameter {name!r}.", nearest(name, known))
    values: dict[str, Value] = {}
    for item in file.parameters:
        value = given.get(item.name)
        if value is None:
            value = item.default
        if value is None:
            raise QueryError(f"{file.name} needs a value of {item.name} ({item.comment}).", f"Give {item.name}=...")
        values[item.name] = parse_value(file.name, item, value)
    return values


def parse_value(where: str, item: Item, value: object) -> Value:
    """One value as the parameter's type, read from text where need be; QueryError names `where` and the parameter."""
    try:
        if item.type == "VARCHAR":
            return _text(value)
        if item.type in ("BIGINT", "INTEGER"):
            return _whole(value)
        if item.type == "DOUBLE":
            return _number(value)
        if item.type == "BOOLEAN":
            return _truth(value)
        if item.type == "DOUBLE[]":
            return _numbers(value)
    except (ValueError, TypeError) as error:
        problem = f"{where}: {item.name} = {value!r} is not {_WANTED[item.type]}."
        raise QueryError(problem, f"It is: {item.comment}.") from error
    raise QueryError(f"{where}: parameter {item.name} has the unknown type {item.type}.", "Correct the file's header.")


_WANTED = {
    "VARCHAR": "text",
    "BIGINT": "a whole number",
    "INTEGER": "a whole number",
    "DOUBLE": "a finite number",
    "BOOLEAN": "true or false",
    "DOUBLE[]": "a list of finite numbers such as 0,0.01,1",
}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError
    number = int(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError
    return number


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _truth(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if value not in ("true", "false"):
        raise ValueError
    return value == "true"


def _numbers(value: object) -> list[float]:
    if isinstance(value, str):
        value = value.strip().removeprefix("[").removesuffix("]").split(",")
    if not isinstance(value, Sequence) or not value:
        raise TypeError
    return [_number(item) for item in value]
