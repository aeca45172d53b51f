"""What goes from one step of a run to the next: ids, paths and counts, in frozen records, never arrays.

Flows hand these on between tasks, also between machines, so each field is what another process can use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jacobian_core.config import RunConfig
from jacobian_core.corpus.listing import Shard
from jacobian_core.corpus.tokens import Cursor

ShardRef = Shard
CursorRef = Cursor


@dataclass(frozen=True)
class ArtifactRef:
    """A fetched SAE artifact: where it lies, where it came from, what it is."""

    folder: str
    locator: str
    digest: str


@dataclass(frozen=True)
class RunRef:
    """A run that was begun: everything that a later step needs to know of it."""

    run_id: str
    lake: str
    state: Literal["new", "resume", "done"]
    shards: tuple[ShardRef, ...]
    tokens_wanted: int | None
    config: RunConfig
    artifact: ArtifactRef
    layer: int


@dataclass(frozen=True)
class QualityReport:
    """FVU of both SAEs on the run's first tokens, and the proof that the MLP is what its weights say."""

    fvu_in: float
    fvu_out: float
    tokens: int
    mlp_error: float


@dataclass(frozen=True)
class BlockRef:
    """A staged block."""

    block_id: str
    tokens: int


@dataclass(frozen=True)
class StagedBatch:
    """Blocks that wait to be computed; `next_cursor` is None when the shard is finished."""

    blocks: tuple[BlockRef, ...]
    next_cursor: CursorRef | None
    tokens: int
    skipped: dict[str, int]


@dataclass(frozen=True)
class GroupRef:
    """Staged blocks that are summed together (scope 'all_inputs')."""

    group_id: str
    block_ids: tuple[str, ...]


@dataclass(frozen=True)
class BlockResult:
    """A finished block; `fresh` is False if it was done before."""

    block_id: str
    tokens: int
    entries_total: int
    entries_stored: int
    bytes: int
    seconds: dict[str, float]
    fresh: bool


@dataclass(frozen=True)
class RunSummary:
    """A finished run."""

    run_id: str
    tokens: int
    entries_stored: int
    bytes: int
    seconds: dict[str, float]
    manifest_path: str
