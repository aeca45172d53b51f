"""Each way to break a contract is refused, by a message that names the place; what is valid passes."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jacobian_core.contracts import JACOBIAN_ENTRIES, LATENTS, TABLES, TOKENS
from jacobian_core.errors import LakeError
from jacobian_core.lake.validate import check_rows
from tests.lake.builders import example_tables, rows_of, table_of

Change = Callable[[dict[str, list[Any]]], object]


def _changed(name: str, change: Change) -> pa.Table:
    columns = example_tables()[name].to_pydict()
    change(columns)
    return table_of(name, columns)


def _set(column: str, row: int, value: object) -> Change:
    return lambda columns: columns[column].__setitem__(row, value)


def _swap(first: int, second: int) -> Change:
    def change(columns: dict[str, list[Any]]) -> None:
        for values in columns.values():
            values[first], values[second] = values[second], values[first]

    return change


BROKEN: list[tuple[str, Change, str]] = [
    ("jacobian_entries", _set("value", 3, float("nan")), r"value: nan at row 3 is not finite"),
    ("jacobian_entries", _set("value", 3, float("-inf")), r"value: -inf at row 3 is not finite"),
    ("jacobian_entries", _set("second_derivative", 2, float("inf")), r"second_derivative: inf at row 2 is not finite"),
    ("jacobian_entries", _set("value", 1, None), r"value: 1 nulls, first at row 1"),
    ("jacobian_entries", _set("out_latent", 0, None), r"out_latent: 1 nulls, first at row 0"),
    ("jacobian_entries", _set("in_latent", 1, 0), r"key \(\d+, 0, 0\) at row 1 is a duplicate"),
    ("jacobian_entries", _swap(4, 5), r"at row 5 comes after"),
    ("latents", _set("side", 0, "inside"), r"side: 'inside' is not one of \['in', 'out'\]"),
    ("latents", _set("side", 0, "out"), r"must ascend"),
    ("latents", _set("activation", 5, -0.5), r"activation: -0.5 at row 5 is below 0"),
    ("tokens", _set("entries_total", 1, -1), r"entries_total: -1 at row 1 is below 0"),
    ("tokens", _set("position", 0, 0), r"position: 0 at row 0 is below 1"),
    ("tokens", _set("text", 2, None), r"text: 1 nulls, first at row 2"),
    ("tokens", _swap(0, 1), r"must ascend"),
]


@pytest.mark.parametrize(("name", "change", "message"), BROKEN)
def test_broken_rows_are_refused(name: str, change: Change, message: str) -> None:
    with pytest.raises(LakeError, match=message):
        check_rows(TABLES[name], _changed(name, change), "here")


VALID: list[tuple[str, Change]] = [
    ("jacobian_entries", lambda columns: None),
    ("jacobian_entries", _set("value", 3, -0.0)),
    ("jacobian_entries", _set("second_derivative", 2, 1e30)),
    ("jacobian_entries", _set("in_latent", 3, 2**32 - 1)),
    ("latents", _set("activation", 5, 0.0)),
    ("tokens", _set("position", 0, 1)),
    ("tokens", _set("text", 2, "\0\x1b[31m'")),
    ("documents", _set("source", 0, None)),
]


@pytest.mark.parametrize(("name", "change"), VALID)
def test_their_valid_siblings_pass(name: str, change: Change) -> None:
    check_rows(TABLES[name], _changed(name, change), "here")


@pytest.mark.parametrize(
    ("drift", "message"),
    [
        (lambda t: t.set_column(3, "value", t["value"].cast(pa.float64())), "value is double, the contract says float"),
        (lambda t: t.set_column(0, "token_id", t["token_id"].cast(pa.int32())), "token_id is int32"),
        (lambda t: t.drop_columns(["value"]), r"missing \['value'\]"),
        (lambda t: t.append_column("extra", t["value"]), r"unknown \['extra'\]"),
        (lambda t: t.select([1, 0, 2, 3, 4]), "columns in the order"),
        (lambda t: pa.table(t.to_pydict(), schema=pa.schema([f.with_nullable(True) for f in t.schema])), "not null"),
    ],
)
def test_a_drifted_schema_is_refused(drift: Callable[[pa.Table], pa.Table], message: str) -> None:
    with pytest.raises(LakeError, match=message):
        check_rows(JACOBIAN_ENTRIES, drift(example_tables()["jacobian_entries"]), "here")


def test_keys_ascend_across_tables_too() -> None:
    tokens = example_tables()["tokens"]
    last = check_rows(TOKENS, tokens.slice(0, 2), "first")
    assert last == (tokens["token_id"][1].as_py(),)
    assert check_rows(TOKENS, tokens.slice(2), "second", last) == (tokens["token_id"][2].as_py(),)
    with pytest.raises(LakeError, match="must ascend"):
        check_rows(TOKENS, tokens.slice(1), "second", last)


def test_no_rows_leave_the_last_key_as_it_was() -> None:
    assert check_rows(TOKENS, TOKENS.schema().empty_table(), "here") is None
    assert check_rows(TOKENS, TOKENS.schema().empty_table(), "here", (7,)) == (7,)


@settings(deadline=None, max_examples=50)
@given(rows_of(LATENTS), st.data())
def test_order_is_checked_as_python_orders_tuples(rows: pa.Table, data: st.DataObject) -> None:
    """Any permutation passes exactly if the key tuples, strings among them, ascend strictly."""
    order = data.draw(st.permutations(range(rows.num_rows)))
    shuffled = rows.take(pa.array(order, pa.int64()))
    keys = list(zip(*(shuffled[name].to_pylist() for name in LATENTS.key), strict=True))
    if keys == sorted(set(keys)):
        check_rows(LATENTS, shuffled, "here")
    else:
        with pytest.raises(LakeError, match="must ascend"):
            check_rows(LATENTS, shuffled, "here")
