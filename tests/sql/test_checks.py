"""Each check passes on a sound run and finds the one thing that is broken in another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from jacobian_core.contracts import TABLES
from jacobian_core.errors import QueryError
from jacobian_core.lake.layout import Lake
from jacobian_core.sql.checks import run_checks
from jacobian_core.sql.sql_files import sql_files
from jacobian_core.sql.warehouse import connect
from tests.sql.lakes import HAND, HAND_RUN, RANDOM_RUN, random_lake, random_tokens

A, B, C = (token.token_id for token in HAND)

# Statements that break the hand-made run, the checks that must find it (others may), and how many rows they list.
BROKEN: list[tuple[str, dict[str, int]]] = [
    (f"UPDATE jacobian_entries SET value = 'nan' WHERE token_id = {B}", {"finite_values": 1, "token_entries": 1}),
    ("UPDATE latents SET margin = 'inf' WHERE side = 'in'", {"finite_values": 1}),
    ("UPDATE pair_stats SET sum_sq = '-inf' WHERE in_latent = 0", {"finite_values": 1}),
    (f"INSERT INTO tokens FROM tokens WHERE token_id = {A}", {"unique_keys": 1, "record_totals": 6}),
    (f"INSERT INTO latents FROM latents WHERE token_id = {B}", {"unique_keys": 2, "token_latents": 1}),
    (f"INSERT INTO jacobian_entries FROM jacobian_entries WHERE token_id = {B}", {"unique_keys": 1}),
    ("INSERT INTO pair_stats FROM pair_stats WHERE in_latent = 3", {"unique_keys": 2, "pair_sums": 3}),
    ("INSERT INTO documents FROM documents", {"unique_keys": 2, "record_totals": 1}),
    (f"DELETE FROM tokens WHERE token_id = {B}", {"entries_have_tokens": 2}),
    ("DELETE FROM documents WHERE document_id = 2", {"entries_have_tokens": 1, "record_totals": 1}),
    (f"DELETE FROM latents WHERE token_id = {C} AND latent = 3", {"entries_have_latents": 1, "token_latents": 1}),
    (f"UPDATE latents SET latent = 5 WHERE token_id = {A} AND latent = 2", {"entries_have_latents": 1}),
    (f"DELETE FROM jacobian_entries WHERE token_id = {C} AND in_latent = 3", {"token_entries": 1, "record_totals": 1}),
    (f"UPDATE jacobian_entries SET value = value * 1.00001 WHERE token_id = {B}", {"token_entries": 1}),
    (f"UPDATE tokens SET in_active = 3 WHERE token_id = {A}", {"token_latents": 1}),
    (f"UPDATE tokens SET entries_total = 5 WHERE token_id = {A}", {"token_latents": 1, "record_totals": 1}),
    (f"UPDATE tokens SET entries_stored = 5 WHERE token_id = {A}", {"dropped_mass": 1, "token_entries": 1}),
    (f"UPDATE tokens SET abs_sum_total = 3 WHERE token_id = {A}", {"dropped_mass": 1, "record_totals": 1}),
    (f"UPDATE tokens SET abs_sum_stored = 'nan' WHERE token_id = {A}", {"dropped_mass": 1, "finite_values": 1}),
    (f"UPDATE tokens SET sq_sum_total = 9 WHERE token_id = {A}", {"dropped_mass": 1, "record_totals": 1}),
    (f"UPDATE tokens SET sq_sum_total = 1 WHERE token_id = {A}", {"dropped_mass": 1}),
    (f"UPDATE tokens SET abs_max = 1 WHERE token_id = {A}", {"thresholds_kept": 1, "dropped_mass": 1}),
    ("UPDATE runs SET min_abs = 0.25", {"thresholds_kept": 2, "pair_sums": 1}),
    ("UPDATE runs SET top_entries_per_token = 3", {"thresholds_kept": 1}),
    ("UPDATE runs SET abs_sum_stored = 5.0000001", {"record_totals": 1, "pair_sums": 1}),
    ("UPDATE runs SET entries_stored = 8", {"record_totals": 2, "pair_sums": 1}),
    (f"UPDATE tokens SET position = 2 WHERE token_id = {C}", {"identifiers": 1}),
    (f"UPDATE tokens SET document_id = 0 WHERE token_id = {C}", {"identifiers": 1}),
    ("UPDATE documents SET \"row\" = 3 WHERE document_id = 2", {"identifiers": 1}),
    ("UPDATE documents SET tokens = 1 WHERE document_id = 0", {"identifiers": 1}),
    ("UPDATE runs SET n_in_latents = 3", {"latent_widths": 3}),
    ("UPDATE runs SET n_out_latents = 2", {"latent_widths": 3}),
    ("UPDATE latent_stats SET sum_margin = 'inf' WHERE side = 'in'", {"finite_values": 1}),
    ("INSERT INTO latent_stats FROM latent_stats WHERE latent = 3", {"unique_keys": 1, "latent_sums": 1}),
    ("DELETE FROM latent_stats WHERE side = 'out'", {"latent_sums": 1}),
    ("UPDATE latent_stats SET n_tokens = n_tokens + 9 WHERE side = 'in'", {"latent_sums": 3}),
    ("UPDATE latent_stats SET max_activation = 9 WHERE latent = 2", {"latent_sums": 1}),
    ("UPDATE latent_stats SET sum_activation = 99 WHERE latent = 2", {"latent_sums": 1}),
    (f"UPDATE runs SET keep = 'aggregates'; UPDATE tokens SET in_active = 1, out_active = 4 WHERE token_id = {A}",
     {"latent_sums": 2}),
    ("UPDATE pair_stats SET n_coactive = 0 WHERE in_latent = 3", {"pair_sums": 2}),
    ("UPDATE pair_stats SET \"sum\" = -9 WHERE in_latent = 3", {"pair_sums": 2}),
    ("UPDATE pair_stats SET sum_abs = sum_abs * 1.001", {"pair_sums": 2}),
    ("UPDATE pair_stats SET sum_sq = 5 WHERE out_latent = 2 AND in_latent = 3", {"pair_sums": 2}),
    ("UPDATE pair_stats SET sum_sq = sum_sq * 0.99999", {"pair_sums": 1}),
    ("DELETE FROM pair_stats WHERE out_latent = 2 AND in_latent = 0", {"pair_sums": 1}),
    ("UPDATE threshold_counts SET pairs_max = pairs_max - 1 WHERE part = 1 AND left_out = -1 AND threshold = 0",
     {"threshold_counts_agree": 3}),
    ("UPDATE threshold_counts SET pairs_mean_all_tokens = 9 WHERE part = 2 AND threshold = 1",
     {"threshold_counts_agree": 2}),
    ("UPDATE threshold_counts SET entries = 9 WHERE threshold = 0.1 AND part = 1 AND left_out = -1",
     {"threshold_counts_agree": 1}),
    ("UPDATE threshold_counts SET threshold = 'inf' WHERE threshold = 1", {"finite_values": 1}),
    ("INSERT INTO threshold_counts FROM threshold_counts WHERE threshold = 1 AND part = 1", {"unique_keys": 3}),
    (f"INSERT INTO interventions VALUES ({A}, 1, 7, 'ablate', 2, 0, .5, 0, 4, 3, -1, false, 1, '{HAND_RUN}')",
     {"interventions_refer": 1}),
    (f"INSERT INTO interventions VALUES ({A}, 1, 0, 'ablate', 2, 1, .5, 0, 4, 3, -1, false, 1, '{HAND_RUN}')",
     {"interventions_agree": 1}),
    (f"INSERT INTO function_shapes VALUES ({A}, 1, 0, .5, 2, 5, 100, 3, .5, 3, 'linear', 'other', 1, '{HAND_RUN}')",
     {"function_shapes_agree": 1}),
    (f"INSERT INTO transcoder_effects VALUES ({A}, 1, 0, .5, .5, '{HAND_RUN}')", {"transcoder_agrees": 1}),
    (f"INSERT INTO transcoder_latents VALUES ({A}, 0, .5, 1, 1, 1, 1, '{HAND_RUN}')", {"transcoder_agrees": 1}),
    (f"INSERT INTO transcoder_tokens VALUES ({A}, 'nan', 1, '{HAND_RUN}')",
     {"transcoder_agrees": 14, "finite_values": 1}),
]  # fmt: skip


@pytest.fixture
def editable(hand: Lake) -> Iterator[duckdb.DuckDBPyConnection]:
    """The hand-made run as tables in memory, under the names of the views."""
    with connect(hand, read_only=False) as connection:
        for name in (*TABLES, "runs"):
            connection.execute(f"CREATE TABLE copied AS FROM {name}")
            connection.execute(f"DROP VIEW {name}")
            connection.execute(f"ALTER TABLE copied RENAME TO {name}")
        yield connection


def _violations(connection: duckdb.DuckDBPyConnection, run_id: str = HAND_RUN) -> dict[str, int]:
    return {r.name: r.violations for r in run_checks(connection, run_id) if not r.passed}


def test_sound_run_passes(editable: duckdb.DuckDBPyConnection, hand_connection: duckdb.DuckDBPyConnection) -> None:
    for connection in (editable, hand_connection):
        results = run_checks(connection, HAND_RUN)
        assert [r.name for r in results] == list(sql_files("checks"))
        assert all(r.passed and r.violations == 0 and r.sample == () and r.invariant for r in results)


@pytest.mark.parametrize(("statement", "found"), BROKEN, ids=[statement for statement, _ in BROKEN])
def test_broken_run_is_found(editable: duckdb.DuckDBPyConnection, statement: str, found: dict[str, int]) -> None:
    editable.execute(statement)
    violations = _violations(editable)
    assert {name: violations.get(name) for name in found} == found


def test_every_check_is_shown_to_find_something() -> None:
    assert {name for _, found in BROKEN for name in found} == set(sql_files("checks"))


def test_sample_and_count(editable: duckdb.DuckDBPyConnection) -> None:
    editable.execute("UPDATE jacobian_entries SET out_latent = out_latent + 2, in_latent = in_latent + 1")
    result = next(r for r in run_checks(editable, HAND_RUN) if r.name == "entries_have_latents")
    assert (result.violations, len(result.sample)) == (9, 5)
    assert result.sample[0] == {"side": "in", "token_id": A, "latent": 1, "entries": 2}


def test_another_runs_rows_do_not_heal_it(editable: duckdb.DuckDBPyConnection) -> None:
    """A token that only another run has is as good as missing."""
    editable.execute(f"UPDATE tokens SET run_id = 'other' WHERE token_id = {B}")
    editable.execute(f"UPDATE latents SET run_id = 'other' WHERE token_id = {B}")
    assert {"entries_have_tokens", "entries_have_latents"} <= set(_violations(editable))


@pytest.mark.parametrize(("min_abs", "complete"), [(0.0, True), (0.02, True), (0.02, False)])
def test_random_runs_pass(tmp_path: Path, min_abs: float, complete: bool) -> None:
    lake = random_lake(tmp_path, RANDOM_RUN, random_tokens(120, seed=9), min_abs, complete)
    with connect(lake) as connection:
        assert _violations(connection, RANDOM_RUN) == {}


def test_contract_is_covered() -> None:
    """Every float column is tested for finiteness, and every key for uniqueness."""
    finite, unique = (sql_files("checks")[name].statement for name in ("finite_values", "unique_keys"))
    for table in TABLES.values():
        _, _, part = finite.partition(f"'{table.name}' AS table_name")
        part = part.split("UNION ALL")[0]
        for column in table.columns:
            assert (f"'{column.name}'" in part) == column.type.startswith("float"), (table.name, column.name)
        keys = unique.split(f"FROM {table.name}\n")[1].split("HAVING")[0]
        assert f"GROUP BY {', '.join(table.key)}\n" in keys


def test_unknown_run(hand_connection: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(QueryError, match="no run 'nobody'"):
        run_checks(hand_connection, "nobody")
