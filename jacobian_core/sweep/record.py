"""A sweep's record in the lake: its cells, the run of each, and what became of it.

`<lake>/sweeps/<sweep_id>.json`, written anew after every cell, so that a sweep that was killed is seen as far as it
came. It decides nothing: a cell is done when its run is (`runs/<run_id>.json`), and the same request finds that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from jacobian_core.errors import LakeError
from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import NAME_PATTERN, SCHEMA_VERSION, Record, RunId, from_json, to_json
from jacobian_core.lake.paths import LakePath
from jacobian_core.sweep.cells import Cell
from jacobian_core.sweep.config import SweepConfig

FOLDER = "sweeps"
_HEX_DIGITS = 12

SweepId = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]


class CellRecord(Record):
    """One cell: its place on the axes, its run once that is known, and how it stands."""

    label: str
    series: str
    layer: int | None
    pair: str
    weights: str
    variant: str
    request: str = Field(pattern=r"^[0-9a-f]{64}$", description="digest of the cell's settings")
    training: str | None = Field(default=None, description="digest of its pair's training, where it is trained here")
    run_id: RunId | None = None
    state: Literal["waiting", "complete", "failed"] = "waiting"
    problem: str = Field(default="", description="why it failed, in one line")


class SweepRecord(Record):
    """A sweep and how far it is."""

    sweep_id: SweepId
    schema_version: int = SCHEMA_VERSION
    config: dict[str, JsonValue]
    cells: list[CellRecord]

    def of_state(self, state: str) -> list[CellRecord]:
        """The cells that stand so."""
        return [cell for cell in self.cells if cell.state == state]

    def with_cell(self, label: str, **changed: object) -> SweepRecord:
        """The same with one cell changed."""
        cells = [cell.model_copy(update=changed) if cell.label == label else cell for cell in self.cells]
        return self.model_copy(update={"cells": cells})


def begin_sweep(lake: Lake, sweep: SweepConfig, cells: Sequence[Cell]) -> SweepRecord:
    """The record of these cells: as the lake has it, or a new one. It is written where it was not there.

    The id is a digest of the cells' settings, so the same request is the same sweep.
    """
    fresh = [_cell_record(cell) for cell in cells]
    text = json.dumps([[cell.label, cell.request] for cell in fresh], separators=(",", ":"))
    sweep_id = f"{sweep.name}-{hashlib.sha256(text.encode()).hexdigest()[:_HEX_DIGITS]}"
    known = read_sweep(lake, sweep_id)
    if known is not None:
        return known
    record = SweepRecord(sweep_id=sweep_id, config=sweep.model_dump(mode="json"), cells=fresh)
    write_sweep(lake, record)
    return record


def _cell_record(cell: Cell) -> CellRecord:
    settings = cell.config.model_dump(mode="json", exclude={"compute", "lake"})
    training = None if cell.training is None else cell.training.model_dump(mode="json", exclude={"device", "threads"})
    request = hashlib.sha256(json.dumps([settings, training], sort_keys=True).encode()).hexdigest()
    return CellRecord(
        label=cell.label,
        series=cell.series,
        layer=cell.layer,
        pair=cell.pair,
        weights=cell.weights,
        variant=cell.variant,
        request=request,
    )


def sweep_ids(lake: Lake) -> list[str]:
    """The ids of the lake's sweeps, sorted."""
    return sorted(path.stem for path in files.list_folder(lake.root / FOLDER) if path.suffix == ".json")


def read_sweep(lake: Lake, sweep_id: str) -> SweepRecord | None:
    """The record of a sweep; None where there is none; LakeError where it is damaged."""
    path = _path(lake, sweep_id)
    data = files.read_bytes(path)
    return None if data is None else from_json(SweepRecord, data, path)


def write_sweep(lake: Lake, record: SweepRecord) -> None:
    """Write the record, whole or not at all."""
    files.write_atomic(_path(lake, record.sweep_id), to_json(record))


def done_before(lake: Lake, record: SweepRecord, label: str, training: str) -> str | None:
    """The finished run of a cell whose pair had this training; None where it has to be made.

    So a pair that was trained and analysed is not trained again only because the cache was emptied.
    """
    for cell in record.cells:
        if cell.label == label and cell.run_id is not None and cell.training == training:
            return cell.run_id if lake.manifest(cell.run_id) is not None else None
    return None


def choose_sweep(lake: Lake, wanted: str) -> SweepRecord:
    """The sweep whose id is, or begins with, `wanted`; LakeError where that is none or several."""
    found = sweep_ids(lake)
    matching = [name for name in found if name == wanted] or [name for name in found if name.startswith(wanted)]
    record = read_sweep(lake, matching[0]) if len(matching) == 1 else None
    if record is None:
        problem = f"{lake.root}: {'more than one' if len(matching) > 1 else 'no'} sweep begins with '{wanted}'."
        raise LakeError(problem, f"Sweeps: {', '.join(matching or found) or 'none'}.")
    return record


def _path(lake: Lake, sweep_id: str) -> LakePath:
    return lake.root / FOLDER / f"{sweep_id}.json"
