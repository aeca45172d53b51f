"""Tables of a run that are computed from its other tables, by SQL, before the run is published.

DuckDB does the aggregation within its memory limit and spills into the run's work folder; its result streams into one
part, a record batch at a time. The SQL adds exactly, so the same blocks give the same bytes on any number of threads.
"""

from __future__ import annotations

import logging

import pyarrow as pa

from jacobian_core.config import LakeConfig
from jacobian_core.contracts import PAIR_STATS
from jacobian_core.errors import QueryError
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.parts import PartWriter, PreparedPart
from jacobian_core.sql.run_facts import run_snapshot
from jacobian_core.sql.sql_files import reason, sql_file
from jacobian_core.sql.warehouse import MORE_MEMORY, connect

PAIR_STATS_ACTIVE = "active"
"""Block id of the part of `pair_stats` that holds scope 'active'."""
_BATCH_ROWS = 1 << 17

logger = logging.getLogger(__name__)


def build_pair_stats(lake: Lake, run_id: str, config: LakeConfig, threads: int | None = None) -> PreparedPart:
    """Aggregate the run's finished blocks into `pair_stats`, scope 'active'; the part is for `publish_run` to publish.

    Reads a run in progress (its block markers) as well as a finished one. Raises QueryError where there is no such run
    or DuckDB can't do it in `config.duckdb_memory`, LakeError where a part breaks its contract or the disk is full.
    """
    import duckdb

    state = run_snapshot(lake, run_id)
    if state is None:
        raise QueryError(f"{lake.root} has no run {run_id}.", "`jacobian runs` lists the runs.")
    parameters = {"run_id": run_id, "thresholded": state.thresholded}
    # A finished run has no work folder, and must not get one: it would look as if it went on.
    spill = None if state.complete else files.spill_folder(lake.work_folder(run_id))
    with (
        connect(lake, [run_id], config.duckdb_memory, threads, temporary_folder=spill) as connection,
        PartWriter(lake, PAIR_STATS, run_id, PAIR_STATS_ACTIVE, config) as writer,
    ):
        try:
            result = connection.execute(sql_file("marts", "pair_stats").statement, parameters)
            for batch in result.to_arrow_reader(_BATCH_ROWS):
                writer.write(pa.table(batch).cast(PAIR_STATS.schema()))
        except duckdb.OutOfMemoryException as error:
            problem = f"pair_stats of {run_id} does not fit in {config.duckdb_memory} of memory: {reason(error)}."
            raise QueryError(problem, MORE_MEMORY) from error
        except duckdb.Error as error:
            raise QueryError(f"pair_stats of {run_id}: {reason(error)}.", "Try `jacobian verify`.") from error
        prepared = writer.finish()
    logger.info("pair_stats of %s: %d pairs", run_id, prepared.info.rows)
    return prepared
