"""The headers of the SQL files: read as documented, refused when malformed, and true."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pytest

from jacobian_core.contracts import TABLES
from jacobian_core.errors import QueryError
from jacobian_core.report_parameters import typed_parameters
from jacobian_core.sql.sql_files import SqlFile, bound_statement, in_reading_order, literal, parse_sql_file, sql_files
from tests.sql.lakes import HAND_RUN

GOOD = """\
-- question: What is it?
-- reads: tokens, runs
-- parameters:
--   run_id VARCHAR - the run
--   top BIGINT default 20 - how many, of
--     those there are [rows]
-- grain: one token
-- columns:
--   token_id BIGINT - the token
--   size DOUBLE - its size [bits]
--
-- A note; with a semicolon.
SELECT token_id FROM tokens WHERE run_id = $run_id LIMIT $top;
"""

KINDS = ("views", "macros", "marts", "checks", "reports")
FILES = [file for kind in KINDS for file in sql_files(kind).values()]
SELECTING = [file for file in FILES if file.kind in ("marts", "checks", "reports")]
VALUES = {"run_id": HAND_RUN, "run_a": HAND_RUN, "run_b": HAND_RUN, "thresholded": True}


def _write(folder: Path, text: str, name: str = "it.sql") -> Path:
    path = folder / "reports" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _ids(file: SqlFile) -> str:
    return f"{file.kind}/{file.name}"


def test_header_is_read(tmp_path: Path) -> None:
    file = parse_sql_file(_write(tmp_path, GOOD))
    assert (file.name, file.kind, file.purpose, file.grain) == ("it", "reports", "What is it?", "one token")
    assert file.reads == ("tokens", "runs")
    run_id, top = file.parameters
    assert (run_id.type, run_id.default, run_id.unit) == ("VARCHAR", None, "")
    assert (top.type, top.default, top.unit, top.meaning) == ("BIGINT", "20", "rows", "how many, of those there are")
    assert [(c.name, c.type, c.comment) for c in file.columns] == [
        ("token_id", "BIGINT", "the token"),
        ("size", "DOUBLE", "its size [bits]"),
    ]
    assert file.statement == "SELECT token_id FROM tokens WHERE run_id = $run_id LIMIT $top"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("-- question: What is it?\n", "", "question"),
        ("-- reads: tokens, runs\n", "", "reads"),
        ("-- grain: one token\n", "", "grain"),
        ("--   run_id VARCHAR - the run\n", "--   run_id is the run\n", "run_id is the run"),
        ("$top;", "$top; SELECT 1", "more than one"),
    ],
)
def test_malformed_header_is_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    with pytest.raises(QueryError, match=re.escape(says)) as error:
        parse_sql_file(_write(tmp_path, GOOD.replace(old, new)))
    assert "it.sql" in str(error.value)


def test_every_kind_has_files() -> None:
    assert {file.kind for file in FILES} == set(KINDS)
    reports = "compare_sparsity convergence data_quality mean_max_aggregates sparsity threshold_fractions"
    assert set(reports.split()) <= set(sql_files("reports"))


@pytest.mark.parametrize("file", FILES, ids=_ids)
def test_header_names_what_the_statement_uses(file: SqlFile) -> None:
    code = re.sub(r"--.*|'[^']*'", "", file.statement)
    if file.kind != "macros":
        assert {p.name for p in file.parameters} == set(re.findall(r"\$(\w+)", file.statement))
    else:
        assert all(re.search(rf"\b{p.name}\b", code) for p in file.parameters)
    relations = {*TABLES, "runs", *sql_files("views"), *sql_files("macros")}
    local = set(re.findall(r"(\w+) AS \(", code))
    used = set(re.findall(r"\b(?:FROM|JOIN)\s+(\w+)", code)) | set(re.findall(r"(\w+)\(", code))
    assert set(file.reads) - {"nothing"} == (used & relations) - local
    assert not re.search(r"SELECT\s+(DISTINCT\s+)?\*|\w\.\*", code)


@pytest.mark.parametrize("file", SELECTING, ids=_ids)
def test_header_has_the_columns_that_duckdb_describes(
    file: SqlFile, hand_connection: duckdb.DuckDBPyConnection
) -> None:
    given = {p.name: VALUES[p.name] for p in file.parameters if p.name in VALUES}
    values = typed_parameters(file, given)
    described = hand_connection.execute(f"DESCRIBE {file.statement}", values).fetchall()
    assert [(c.name, c.type) for c in file.columns] == [(row[0], row[1]) for row in described]


@pytest.mark.parametrize("file", list(sql_files("views").values()), ids=_ids)
def test_views_are_as_their_headers_say(file: SqlFile, hand_connection: duckdb.DuckDBPyConnection) -> None:
    described = hand_connection.execute(f"DESCRIBE {file.name}").fetchall()
    assert [(c.name, c.type) for c in file.columns] == [(row[0], row[1]) for row in described]


def test_table_macro_is_as_its_header_says(hand_connection: duckdb.DuckDBPyConnection) -> None:
    file = sql_files("macros")["token_sparsity"]
    described = hand_connection.execute(f"DESCRIBE FROM token_sparsity('{HAND_RUN}', 5, [0.5])").fetchall()
    assert [(c.name, c.type) for c in file.columns] == [(row[0], re.sub(r", ", ",", row[1])) for row in described]


def test_reports_have_a_total_order() -> None:
    for report in sql_files("reports").values():
        assert re.search(r"\nORDER BY [\w., ]+$", report.statement), report.name


def test_literals_can_not_end_early() -> None:
    hostile = "x'); DROP VIEW tokens; --\0\n"
    connection = duckdb.connect()
    assert connection.execute(f"SELECT {literal(hostile)}").fetchall() == [(hostile.replace("\0", "\ufffd"),)]
    for value, type_name in ((None, "DOUBLE"), (1e-300, "DOUBLE"), (True, "BOOLEAN"), (2**40, "BIGINT")):
        assert connection.execute(f"SELECT {literal(value)}::{type_name}").fetchall() == [(value,)]
    assert connection.execute(f"SELECT {literal(['a', hostile[:5]])}").fetchall() == [(["a", "x'); "],)]


def test_bound_statement_takes_every_parameter(tmp_path: Path) -> None:
    file = parse_sql_file(_write(tmp_path, GOOD))
    bound = bound_statement(file, {"run_id": "a'b", "top": 3})
    assert bound.endswith("WHERE run_id = 'a''b'::VARCHAR LIMIT 3::BIGINT")
    with pytest.raises(KeyError):
        bound_statement(file, {"run_id": "a"})


def test_reading_order(tmp_path: Path) -> None:
    first = parse_sql_file(_write(tmp_path, GOOD.replace("tokens, runs", "second"), "first.sql"))
    second = parse_sql_file(_write(tmp_path, GOOD, "second.sql"))
    assert [f.name for f in in_reading_order({"first": first, "second": second})] == ["second", "first"]
    circle = parse_sql_file(_write(tmp_path, GOOD.replace("tokens, runs", "first"), "second.sql"))
    with pytest.raises(QueryError, match="read each other"):
        in_reading_order({"first": first, "second": circle})
