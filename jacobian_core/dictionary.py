"""The data dictionary and the table of settings as markdown, generated from what defines them.

Nothing here is written twice: tables come from `contracts`, the `runs` view from `run_facts`, views, macros and reports
from the headers of `sql/`, settings from the pydantic models. The price is that a sentence can only be as good as the
one line beside the field. `python -m jacobian_core.dictionary` writes the files of `docs/`; a test says when to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jacobian_core.config import RunConfig
from jacobian_core.contracts import TABLES, Table
from jacobian_core.lake import files
from jacobian_core.profiles import group_of
from jacobian_core.resources import project_root
from jacobian_core.sql.run_facts import RUN_FACTS
from jacobian_core.sql.sql_files import Item, Kind, SqlFile, sql_files

_GENERATED = "<!-- Generated: python -m jacobian_core.dictionary -->"
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def data_dictionary(tables: Iterable[str] | None = None) -> str:
    """Every table, view, macro and report with its grain and columns, as markdown; `tables` leaves out other tables."""
    chosen = [table for name, table in TABLES.items() if tables is None or name in set(tables)]
    parts = [
        "# Data dictionary",
        _GENERATED,
        "What a lake holds. `value` and J are d t_out / d s_in throughout: t_i is the activation of output latent i, "
        "s_j that of input latent j, J'' the second derivative. A float is finite wherever it is not null. Every table "
        "and view also has the column `run_id`.",
        "## Tables",
        "Parquet, at `<lake>/<table>/run_id=<run_id>/part-<block>.parquet`.",
        *(part for table in chosen for part in _table(table)),
        "## Views",
        "In `<lake>/warehouse.duckdb`, and in every `jacobian sql`; one view for each table above, and:",
        *_runs(),
        *_section("views"),
        "## Marts",
        "Computed at the end of a run, and kept as a table above.",
        *_section("marts"),
        "## Macros",
        "Functions for queries of your own: `SELECT * FROM name(...)`, or `name(...)` where one value comes back.",
        *_section("macros"),
        "## Reports",
        "`jacobian report NAME --set parameter=value`; written to `<lake>/reports/<run_id>/NAME.parquet` and `.csv`.",
        *_section("reports"),
    ]
    return "\n\n".join(parts) + "\n"


def configuration() -> str:
    """Every setting of a run and of a pair's training, as markdown: key, type, default, meaning."""
    from jacobian_core.sweep.config import SweepConfig, SweepPair, SweepVariant
    from jacobian_core.training.config import TrainPairConfig

    parts = [
        "# Settings",
        _GENERATED,
        "## A run",
        "In a profile (TOML) a group is a table: `[corpus]`, then `max_tokens = 5000`. On the command line: "
        "`--set corpus.max_tokens=5000`. Unknown keys are refused. The groups `compute` and `lake` say how the work is "
        "done and change no data; everything else is part of the run's identity.",
        *_settings(RunConfig),
        "## Training a pair",
        "In the file that `jacobian train-pair` takes. The group `model` has the keys of a run's `model`, above; its "
        "`layer` must be given.",
        _table_of_fields(TrainPairConfig, ""),
        "## A sweep",
        "In the file that `jacobian sweep` takes, such as `deployments/sweeps/demo-layers.toml`. Every combination of "
        "layer, weights, pair and variant is a run. An override is `group.key=value`, as after `--set`; its paths are "
        "meant from the file's folder. `train` takes the keys of `Training a pair` but `model`, `output` and "
        "`checkpoint`, which the run decides.",
        _table_of_fields(SweepConfig, ""),
        "Each of `[[pairs]]`:",
        _table_of_fields(SweepPair, "pairs."),
        "Each of `[[variants]]`:",
        _table_of_fields(SweepVariant, "variants."),
    ]
    return "\n\n".join(parts) + "\n"


DOCUMENTS: dict[str, Callable[[], str]] = {
    "docs/DATA_DICTIONARY.md": data_dictionary,
    "docs/CONFIGURATION.md": configuration,
}
"""The generated files, by path in the repository."""


def write_documents(root: Path) -> list[Path]:
    """Write every generated document under `root`; returns the files. Raises OSError where one can't be written."""
    written = []
    for name, content in DOCUMENTS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, content().encode())
        written.append(path)
    return written


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table; cells are text, in which pipes and angle brackets stay what they are."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    """Pipes end a cell even inside backticks, and angle brackets begin HTML outside them."""
    pieces = text.replace("|", "\\|").split("`")
    return "`".join(p if n % 2 else p.replace("<", "&lt;") for n, p in enumerate(pieces)).replace("\n", " ")


def _table(table: Table) -> Iterator[str]:
    yield f"### {table.name}"
    yield _cell(f"{table.description} A row: {table.grain}. Key: {_code(table.key)}. Contract version {table.version}.")
    rows = [
        (f"`{c.name}`", c.type + (" or null" if c.nullable else ""), c.unit, c.description + _allowed(c.allowed))
        for c in table.columns
    ]
    yield markdown_table(("column", "type", "unit", "meaning"), rows)


def _allowed(values: Sequence[str]) -> str:
    return f" (one of {_code(values)})" if values else ""


def _runs() -> Iterator[str]:
    yield "### runs"
    yield "The runs of the lake, those that go on among them. A row: one run."
    rows = [(f"`{fact.name}`", fact.type, fact.unit, fact.description) for fact in RUN_FACTS]
    yield markdown_table(("column", "type", "unit", "meaning"), rows)


def _section(kind: Kind) -> Iterator[str]:
    for file in sql_files(kind).values():
        yield from _sql(file)


def _sql(file: SqlFile) -> Iterator[str]:
    yield f"### {file.name}"
    reads = [name for name in file.reads if name != "nothing"]
    yield _cell(f"{file.purpose} A row: {file.grain}." + (f" Reads {_code(reads)}." if reads else ""))
    if file.parameters:
        rows = [(f"`{p.name}`", p.type, f"`{p.default}`" if p.default else "", p.comment) for p in file.parameters]
        yield markdown_table(("parameter", "type", "default", "meaning"), rows)
    if file.columns:
        yield markdown_table(("column", "type", "unit", "meaning"), [_item(column) for column in file.columns])
    if file.without_entries:
        yield _cell(f"Of a run that does not keep entries: {file.without_entries}.")


def _item(column: Item) -> tuple[str, str, str, str]:
    return f"`{column.name}`", column.type, column.unit, column.meaning


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _settings(model: type[BaseModel]) -> Iterator[str]:
    """The plain fields of `model` as one table, then one for each group of settings in it."""
    yield _table_of_fields(model, "")
    for name, field in model.model_fields.items():
        group = _group(field)
        if group is not None:
            yield f"### {name}"
            yield _cell(group.__doc__ or "")
            yield _table_of_fields(group, f"{name}.")
            parts = [f"{name}.{inner}" for inner, part in group.model_fields.items() if _group(part)]
            if parts:
                inner = next(found for part in group.model_fields.values() if (found := _group(part)))
                yield f"Each of {', '.join(f'`[{part}]`' for part in parts)}: {_cell(inner.__doc__ or '')}"
                yield _table_of_fields(inner, f"{name}.(...).")


def _table_of_fields(model: type[BaseModel], prefix: str) -> str:
    rows = [
        (f"`{prefix}{name}`", _type(field), _default(field), field.description or "")
        for name, field in model.model_fields.items()
        if _group(field) is None
    ]
    return markdown_table(("key", "type", "default", "meaning"), rows)


def _group(field: FieldInfo) -> type[BaseModel] | None:
    return group_of(field.annotation)


def _type(field: FieldInfo) -> str:
    bounds = [f"{sign} {getattr(m, key):,}" for m in field.metadata for key, sign in _BOUNDS.items() if hasattr(m, key)]
    return ", ".join([_type_name(field.annotation), *bounds])


def _type_name(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type_name(argument) for argument in arguments)
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict or (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return "table"
    if kind is NoneType:
        return "null"
    name: str = kind.__name__
    return {"str": "text", "Path": "path"}.get(name, name)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(required)"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return "`[" + ", ".join(_literal(item) for item in value) + "]`"
    return f"`{_literal(value)}`"


def _literal(value: Any) -> str:
    """A value as TOML writes it, floats briefly."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (str, Path)):
        return f'"{value}"'
    return str(value)


if __name__ == "__main__":
    write_documents(project_root())
