"""The figures of every finished cell of a sweep, from the same reports as single runs, and comparisons between cells.

Small whatever the runs' size: some thirty numbers a run. A run that is no longer in the lake has no figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from jacobian_core.lake.layout import Lake
from jacobian_core.lake.paths import LakePath
from jacobian_core.sweep.record import CellRecord, SweepRecord

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

THRESHOLDS = (1e-5, 1e-4, 1e-3, 5e-3, 1e-2, 2e-2, 0.1)
"""Of |J|: what is counted above in every cell."""
_AXES = ("pair", "weights", "variant")
Row = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """A statistic of a run with its 95 % interval, where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class CellFigures:
    """What is known of one finished cell: its row of `runs`, its statistics, its answer to the title question."""

    cell: CellRecord
    run_id: str
    facts: Row
    figures: list[Row]
    shapes: list[Row]
    answer: Row

    @property
    def layer(self) -> int:
        """The layer that the run analysed, whether or not the sweep has layers as an axis."""
        return int(self.facts["layer"])

    def measured(self, statistic: str, threshold: float | None = None) -> Measured | None:
        """A statistic of `run_figures`; None where the run has none."""
        for row in self.figures:
            if row["statistic"] == statistic and row["threshold"] == threshold:
                return Measured(row["measured"], row["low"], row["high"])
        return None

    def shape(self, shape: str, rule: str = "published") -> Measured | None:
        """The share of pairs with a function shape; None where none was traced, 0 where no function has it."""
        of_rule = [row for row in self.shapes if row["by_rule"] == rule]
        for row in of_rule:
            if row["shape"] == shape:
                low, high = row["share_of_pairs_low"], row["share_of_pairs_high"]
                return Measured(row["share_of_pairs"], low, high)
        return Measured(0.0) if of_rule else None


def gather_figures(lake: Lake, record: SweepRecord, memory: str = "auto") -> list[CellFigures]:
    """The figures of every finished cell that the lake still has, in the sweep's order.

    Raises LakeError and QueryError as `warehouse.connect` and the reports do.
    """
    from jacobian_core.sql.warehouse import connect

    found = []
    for cell in record.of_state("complete"):
        if cell.run_id is None or lake.manifest(cell.run_id) is None:
            continue
        with connect(lake, [cell.run_id], memory) as connection:
            found.append(_figures(connection, cell, cell.run_id))
    return found


def _figures(connection: duckdb.DuckDBPyConnection, cell: CellRecord, run_id: str) -> CellFigures:
    from jacobian_core.sql.reports import run_report, run_sql

    def rows(name: str, **more: object) -> list[Row]:
        found: list[Row] = run_report(connection, name, {"run_id": run_id, **more}).to_pylist()
        return found

    facts = run_sql(connection, "SELECT * FROM runs").to_pylist()[0]
    figures = rows("run_figures", thresholds=list(THRESHOLDS))
    return CellFigures(cell, run_id, facts, figures, rows("function_shapes"), rows("causal_zero_answer")[0])


def compared_cells(cells: Sequence[CellFigures]) -> Iterator[tuple[str, CellFigures, CellFigures]]:
    """The axis, and two cells that differ in it alone: the first value of the axis beside each other one."""
    for axis in _AXES:
        others = [name for name in ("layer", *_AXES) if name != axis]

        def place(figures: CellFigures, names: Sequence[str] = others) -> tuple[str, ...]:
            return tuple(str(figures.layer if name == "layer" else getattr(figures.cell, name)) for name in names)

        for _, group in groupby(sorted(cells, key=place), key=place):
            first, *rest = group
            yield from ((axis, first, other) for other in rest)


def write_tables(lake: Lake, record: SweepRecord, cells: Sequence[CellFigures]) -> list[LakePath]:
    """Write the answers, the figures and the comparisons of a sweep as Parquet and CSV; returns the files."""
    from jacobian_core.sql.reports import write_table

    folder = lake.report_folder(record.sweep_id)
    tables = {
        "sweep_answers": answers_table(cells),
        "sweep_figures": figures_table(cells),
        "sweep_comparisons": comparisons_table(lake, cells),
    }
    return [path for name, table in tables.items() for path in write_table(folder, name, table)]


def answers_table(cells: Sequence[CellFigures]) -> pa.Table:
    """`causal_zero_answer` of every cell."""
    import pyarrow as pa

    return pa.Table.from_pylist([_place(each) | each.answer for each in cells])


def figures_table(cells: Sequence[CellFigures]) -> pa.Table:
    """`run_figures` of every cell."""
    import pyarrow as pa

    return pa.Table.from_pylist([_place(each) | row for each in cells for row in each.figures])


def comparisons_table(lake: Lake, cells: Sequence[CellFigures]) -> pa.Table:
    """`compare_runs` of every two cells that differ in one axis alone."""
    import pyarrow as pa

    from jacobian_core.sql.reports import run_report
    from jacobian_core.sql.warehouse import connect

    rows = []
    for axis, a, b in compared_cells(cells):
        with connect(lake, [a.run_id, b.run_id]) as connection:
            given = {"run_a": a.run_id, "run_b": b.run_id, "thresholds": list(THRESHOLDS)}
            found = run_report(connection, "compare_runs", given).to_pylist()
        head = {"layer": a.layer, "axis": axis, "a": a.cell.series, "b": b.cell.series}
        rows += [head | {"run_id_a": a.run_id, "run_id_b": b.run_id} | row for row in found]
    return pa.Table.from_pylist(rows)


def _place(figures: CellFigures) -> Row:
    cell = figures.cell
    return {
        "layer": figures.layer,
        "pair": cell.pair,
        "weights": cell.weights,
        "variant": cell.variant,
        "run_id": figures.run_id,
    }
