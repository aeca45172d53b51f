"""The project's SQL: one statement a file, with a header that says what it answers, reads, takes and returns.

A header is checked, not decorative: reports parse their parameters from it, DuckDB's comments are made from it, and a
test compares it with what DuckDB says about the statement. So it has a fixed form, and a malformed one is an error:

    -- question: Which pairs are the strongest?        (in checks: `-- invariant:`, what must hold)
    -- reads: pair_means, tokens
    -- parameters:
    --   run_id VARCHAR - the run
    --   top BIGINT default 20 - how many [pairs]
    -- grain: one pair
    -- columns:
    --   rank BIGINT - 1 is the strongest
    -- without entries: what is null for a run that does not keep entries (else such a report refuses these runs)
    --
    -- Notes, if any, come after an empty comment line.
    SELECT ...
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, get_args

from jacobian_core.errors import QueryError
from jacobian_core.resources import project_path

Kind = Literal["views", "macros", "marts", "checks", "reports"]

_KEYS = ("question", "invariant", "reads", "parameters", "grain", "columns", "without entries")
_HEADING = re.compile(rf"({'|'.join(_KEYS)}):\s*(.*)")
_COMMENT = re.compile(r"--.*")
_PARAMETER = re.compile(r"\$([a-z][a-z0-9_]*)\b")
_ITEM = re.compile(
    r"(?P<name>[a-z][a-z0-9_]*) (?P<type>[A-Z][A-Z0-9_]*(?:\([^)]*\))?(?:\[\])?)"
    r"(?: default (?P<default>.+?))? - (?P<meaning>.+?)(?: \[(?P<unit>[^\]]+)\])?$"
)


@dataclass(frozen=True)
class Item:
    """One parameter or column of a header; `default` is its text, None where there is none."""

    name: str
    type: str
    meaning: str
    unit: str
    default: str | None = None

    @property
    def comment(self) -> str:
        """Meaning and unit in one line."""
        return f"{self.meaning} [{self.unit}]" if self.unit else self.meaning


@dataclass(frozen=True)
class SqlFile:
    """One SQL file: its parsed header and its statement (without comments' meaning, without a closing semicolon)."""

    name: str
    kind: Kind
    path: Path
    purpose: str
    reads: tuple[str, ...]
    parameters: tuple[Item, ...]
    grain: str
    columns: tuple[Item, ...]
    statement: str
    without_entries: str = ""

    def parameter(self, name: str) -> Item | None:
        """The parameter of that name, if there is one."""
        return next((p for p in self.parameters if p.name == name), None)


def sql_files(kind: Kind) -> dict[str, SqlFile]:
    """Every SQL file of a kind, by name, in alphabetical order. Raises QueryError where a header is malformed."""
    return {path.stem: parse_sql_file(path) for path in _paths(kind)}


def sql_file(kind: Kind, name: str) -> SqlFile:
    """The file of that kind and name; QueryError if there is none."""
    paths = {path.stem: path for path in _paths(kind)}
    if name not in paths:
        raise QueryError(f"there is no {name!r} in sql/{kind}.", nearest(name, paths))
    return parse_sql_file(paths[name])


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy for an unknown name: the nearest known one, or all of them."""
    names = list(known)
    close = get_close_matches(name, names, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"There is: {', '.join(names) or 'nothing'}."


def _paths(kind: Kind) -> list[Path]:
    return sorted(project_path(f"sql/{kind}").glob("*.sql"))


def parse_sql_file(path: Path) -> SqlFile:
    """Read one SQL file. Raises QueryError that names the file and what its header lacks."""
    header, statement = _split(path.read_text(encoding="utf-8"))
    sections = _sections(path, header)
    purpose = " ".join(sections.get("question", []) + sections.get("invariant", []))
    found = {"question' or 'invariant": purpose, "grain": sections.get("grain"), "reads": sections.get("reads")}
    for key, text in found.items():
        if not text:
            raise QueryError(
                f"{path.name}: the header has no '{key}'.", "See jacobian_core/sql/sql_files.py for its form."
            )
    if not statement or ";" in _COMMENT.sub("", statement):
        raise QueryError(f"{path.name}: holds no statement, or more than one.", "Keep exactly one.")
    return SqlFile(
        name=path.stem,
        kind=_kind(path),
        path=path,
        purpose=purpose,
        reads=tuple(name.strip() for name in " ".join(sections["reads"]).split(",")),
        parameters=_items(path, sections.get("parameters", [])),
        grain=" ".join(sections["grain"]),
        columns=_items(path, sections.get("columns", [])),
        statement=statement,
        without_entries=" ".join(sections.get("without entries", [])),
    )


def _kind(path: Path) -> Kind:
    for kind in get_args(Kind):
        if path.parent.name == kind:
            return kind  # type: ignore[no-any-return]
    raise QueryError(f"{path}: is not in one of the folders {', '.join(get_args(Kind))}.")


def _split(text: str) -> tuple[list[str], str]:
    """The header's lines without their dashes, and the statement; notes between them belong to neither."""
    lines = text.splitlines()
    count = next((n for n, line in enumerate(lines) if not line.startswith("--")), len(lines))
    comments = [line[2:] for line in lines[:count]]
    end = next((n for n, line in enumerate(comments) if not line.strip()), count)
    return comments[:end], "\n".join(lines[count:]).strip().removesuffix(";").rstrip()


def _sections(path: Path, header: list[str]) -> dict[str, list[str]]:
    """The header's lines by key; an indented line of four or more blanks continues the line before it."""
    sections: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in header:
        heading = _HEADING.match(line.strip()) if line.startswith(" ") and not line.startswith("  ") else None
        if heading:
            current = sections.setdefault(heading[1], [])
            current.extend([heading[2]] if heading[2] else [])
        elif current is None:
            raise QueryError(
                f"{path.name}: the header starts with {line.strip()!r}.", f"Start with one of: {', '.join(_KEYS)}."
            )
        elif line.startswith("    ") and current:
            current[-1] += " " + line.strip()
        else:
            current.append(line.strip())
    return sections


def _items(path: Path, lines: list[str]) -> tuple[Item, ...]:
    items = []
    for line in lines:
        match = _ITEM.match(line)
        if match is None:
            raise QueryError(
                f"{path.name}: can't read the header line {line!r}.", "Form: name TYPE [default X] - meaning [unit]."
            )
        items.append(Item(match["name"], match["type"], match["meaning"], match["unit"] or "", match["default"]))
    return tuple(items)


def literal(value: object) -> str:
    """A value as a DuckDB literal that can't end early; the type is the column's or parameter's to say."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"'{value!r}'" if isinstance(value, float) else str(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(literal(item) for item in value)}]"
    # A NUL ends DuckDB's parser early; no id, name or path of a lake may hold one.
    return "'" + str(value).replace("\0", "\ufffd").replace("'", "''") + "'"


def reason(error: Exception) -> str:
    """What DuckDB says went wrong, in one line: without its advice and its picture of the statement."""
    return " ".join(str(error).split("\n\n")[0].split()).rstrip(".!")


def bound_statement(file: SqlFile, values: dict[str, object]) -> str:
    """The statement with its `$parameters` as literals: a view takes none. KeyError where a value is missing."""
    types = {p.name: p.type for p in file.parameters}
    return _PARAMETER.sub(lambda match: f"{literal(values[match[1]])}::{types[match[1]]}", file.statement)


def in_reading_order(files: dict[str, SqlFile]) -> list[SqlFile]:
    """The files, each after those of them that it reads; QueryError where they read each other in a circle."""
    ordered: dict[str, SqlFile] = {}
    while len(ordered) < len(files):
        ready = [
            f for n, f in files.items() if n not in ordered and all(r in ordered or r not in files for r in f.reads)
        ]
        if not ready:
            raise QueryError(
                f"these SQL files read each other: {', '.join(set(files) - set(ordered))}.", "Break the circle."
            )
        ordered.update((file.name, file) for file in ready)
    return list(ordered.values())
