"""The lake's records: what a block, a run in progress and a finished run say about themselves.

They are JSON, a few hundred bytes a block, because people and other tools read them; the same record is always the same
bytes. A record of another schema version is refused, not guessed at.
"""

from __future__ import annotations

import json
from typing import Annotated, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from jacobian_core.contracts import Keep
from jacobian_core.errors import LakeError
from jacobian_core.lake.paths import LakePath

SCHEMA_VERSION = 4
"""Version of the lake's layout and records that is written; tables have their own versions in `contracts.py`."""
READ_VERSIONS = (1, 2, 3, 4)
"""Versions that are read. A block's marker has `quality` since 2, `entries_sha256` since 3, `keeps_latents` since 4;
older ones are without."""

NAME_PATTERN = r"[a-z0-9][a-z0-9_-]{0,79}"
"""What ids and table names are made of, so that none can leave its folder or end a quoted string."""

RunId = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
BlockId = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
Totals = dict[str, int | float]


class Record(BaseModel):
    """A frozen JSON record that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PartInfo(Record):
    """One published part: `path` is relative to the lake, with '/' between names."""

    path: str
    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def content(self) -> tuple[int, int, str]:
        """What is in it, wherever it lies."""
        return self.rows, self.bytes, self.sha256

    @field_validator("path")
    @classmethod
    def _inside_the_lake(cls, value: str) -> str:
        names = value.split("/")
        if "\\" in value or "\0" in value or any(name in ("", ".", "..") for name in names):
            raise ValueError("must be a path relative to the lake, without '..'")
        return value


class BlockMarker(Record):
    """A finished block: its parts by table, its totals (see `publish.block_totals`), seconds by stage, and its quality.

    `quality` (see `quality.BlockFit`) is no data: it warns, and two markers may differ in it as in their seconds.
    A block whose entries are summed and not kept has no part of them, but their digest, `entries_sha256`. If its active
    latents are not kept either (`keeps_latents`), it has no part of these, and the digest is of both.
    """

    run_id: RunId
    block_id: BlockId
    parts: dict[str, PartInfo]
    totals: Totals
    seconds: dict[str, float] = Field(default_factory=dict)
    quality: dict[str, float] = Field(default_factory=dict)
    entries_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    keeps_latents: bool = True

    @property
    def keeps(self) -> Keep:
        """What the run keeps."""
        if self.entries_sha256 is None:
            return "entries"
        return "latents" if self.keeps_latents else "aggregates"

    @property
    def entries_digest(self) -> str:
        """What tells the block's entries from others, kept or not."""
        return self.entries_sha256 or self.parts["jacobian_entries"].sha256

    @property
    def compacted(self) -> bool:
        """Whether its rows are in parts that hold several blocks; the run's manifest then names them."""
        return not self.parts

    def same_data(self, other: BlockMarker) -> bool:
        """Whether both name the same bytes (of a compacted block: have the same sums); the rest may differ."""
        same_parts = self.compacted or other.compacted or self._contents() == other._contents()
        same_sums = (self.entries_sha256, self.keeps_latents) == (other.entries_sha256, other.keeps_latents)
        return same_parts and self.totals == other.totals and same_sums

    def _contents(self) -> dict[str, tuple[int, int, str]]:
        return {table: part.content for table, part in self.parts.items()}


class RunRequest(Record):
    """A run in progress: `identity` is what determines its data, `config` is everything it was asked with."""

    run_id: RunId
    schema_version: int = SCHEMA_VERSION
    identity: dict[str, JsonValue]
    config: dict[str, JsonValue]


class RunManifest(Record):
    """A finished run. Its files are exactly those that `blocks` and `parts` name.

    In a compacted run (`compact.py`) `parts` names the files of every table, and `blocks` none.
    """

    run_id: RunId
    schema_version: int = SCHEMA_VERSION
    identity: dict[str, JsonValue]
    config: dict[str, JsonValue]
    artifact: dict[str, JsonValue]
    model: dict[str, JsonValue]
    versions: dict[str, JsonValue]
    quality: dict[str, JsonValue]
    corpus: dict[str, JsonValue]
    blocks: list[BlockMarker]
    parts: dict[str, list[PartInfo]] = Field(default_factory=dict, description="parts of pair_stats, and merged ones")
    totals: Totals
    seconds: dict[str, float]
    created_utc: AwareDatetime

    def all_parts(self) -> dict[str, list[PartInfo]]:
        """Every part of the run by table, in the order of the blocks."""
        return parts_by_table(self.blocks, self.parts)


RecordType = TypeVar("RecordType", bound=Record)


def parts_by_table(
    blocks: list[BlockMarker], run_level: dict[str, list[PartInfo]] | None = None
) -> dict[str, list[PartInfo]]:
    """The parts of the blocks, and of run-level tables, by table."""
    parts: dict[str, list[PartInfo]] = {}
    for block in blocks:
        for table, part in block.parts.items():
            parts.setdefault(table, []).append(part)
    for table, infos in (run_level or {}).items():
        parts.setdefault(table, []).extend(infos)
    return parts


def to_json(record: Record) -> bytes:
    """The record as indented UTF-8 JSON with sorted keys; LakeError where it holds a NaN or an infinity."""
    try:
        text = json.dumps(record.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
        return text.encode() + b"\n"
    except ValueError as error:  # UnicodeEncodeError (a lone surrogate) is one too
        name = type(record).__name__
        raise LakeError(f"{name} can't be written as JSON: {error}.", "Every number in it must be finite.") from error


def from_json(kind: type[RecordType], data: bytes, path: LakePath) -> RecordType:
    """Read a record that was kept at `path`; LakeError where it is damaged or of another schema version."""
    try:
        content = json.loads(data)
    except ValueError as error:
        raise LakeError(f"{path}: not JSON ({error}).", _DAMAGED) from error
    if isinstance(content, dict):
        check_schema_version(content.get("schema_version", SCHEMA_VERSION), path)
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(step) for step in first["loc"]) or "the record"
        raise LakeError(f"{path}: {field}: {first['msg']}.", _DAMAGED) from error


_DAMAGED = "The file is damaged: restore it from a copy, or remove it and start the run again."


def check_schema_version(version: object, path: LakePath) -> None:
    """Refuse a lake or record that another version of this project wrote."""
    if type(version) is int and version in READ_VERSIONS:
        return
    if isinstance(version, int) and version > SCHEMA_VERSION:
        remedy = "Update jacobian-flows, or choose another lake with `--lake`."
    else:
        remedy = "Start a new lake with `--lake`; the CHANGELOG says how older lakes are brought over."
    raise LakeError(f"{path}: schema version {version!r}, this program reads {_READ}.", remedy)


_READ = f"versions {READ_VERSIONS[0]} to {READ_VERSIONS[-1]}"
