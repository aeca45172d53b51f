"""A pipeline of empty steps over real files: what the flow decides can be seen, and nothing is computed.

A block is done when its marker file exists, as in the lake.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jacobian_core.errors import LakeError

BLOCK_TOKENS = 100


@dataclass
class FakePipeline:
    """`shards` maps a shard's name to its number of blocks; `failing` blocks raise LakeError."""

    root: Path
    shards: dict[str, int]
    tokens_wanted: int | None = None
    failing: set[str] = field(default_factory=set)
    unreachable: dict[str, int] = field(default_factory=dict)
    fetch_errors: list[Exception] = field(default_factory=list)
    compute_seconds: float = 0.0
    calls: list[str] = field(default_factory=list)
    most_computing: int = 0

    def __post_init__(self) -> None:
        self._computing = 0
        self._lock = threading.Lock()

    def fetch_artifact(self, config: Any) -> Any:
        self.calls.append("fetch")
        if self.fetch_errors:
            raise self.fetch_errors.pop(0)
        return SimpleNamespace(folder=config.sae.location, locator=f"folder:{config.sae.location}", digest="ab" * 32)

    def resolve_run(self, config: Any, artifact: Any) -> Any:
        self.calls.append("resolve")
        done = (self.root / "manifest").exists()
        state = "done" if done else "resume" if list(self.root.glob("done-*")) else "new"
        shards = [SimpleNamespace(name=name, index=i) for i, name in enumerate(self.shards)]
        return SimpleNamespace(
            run_id=f"{config.name}-0123456789ab", lake=str(self.root), state=state, shards=shards,
            tokens_wanted=self.tokens_wanted,
        )  # fmt: skip

    def check_quality(self, run: Any) -> Any:
        self.calls.append("quality")
        return SimpleNamespace(fvu_in=0.1, fvu_out=0.2, tokens=64)

    def stage_blocks(self, run: Any, shard: Any, cursor: int | None, budget: int | None, max_blocks: int) -> Any:
        start = cursor or 0
        self.calls.append(f"stage {shard.name} {start}")
        limit = max_blocks if budget is None else min(max_blocks, -(-budget // BLOCK_TOKENS))
        stop = min(self.shards[shard.name], start + limit)
        blocks = [SimpleNamespace(block_id=f"{shard.index:04d}-{n:06d}", tokens=100) for n in range(start, stop)]
        return SimpleNamespace(
            blocks=blocks, next_cursor=stop if stop < self.shards[shard.name] else None,
            tokens=BLOCK_TOKENS * len(blocks), skipped={"empty": 1},
        )  # fmt: skip

    def compute_and_gather(self, run: Any, block_id: str) -> Any:
        with self._lock:
            self._computing += 1
            self.most_computing = max(self.most_computing, self._computing)
            self.calls.append(f"compute {block_id}")
        time.sleep(self.compute_seconds)
        with self._lock:
            self._computing -= 1
        if self.unreachable.get(block_id, 0):
            self.unreachable[block_id] -= 1
            raise ConnectionError(f"{block_id}: no route")
        if block_id in self.failing:
            raise LakeError(f"block {block_id} is broken.", "Mend it.")
        marker = self.root / f"done-{block_id}"
        fresh = not marker.exists()
        marker.touch()
        return SimpleNamespace(
            block_id=block_id, tokens=BLOCK_TOKENS, entries_total=1000, entries_stored=1000, bytes=4000, seconds={},
            fresh=fresh,
        )  # fmt: skip

    def open_groups(self, run: Any) -> list[Any]:
        return []

    def publish_run(self, run: Any, skipped: dict[str, int]) -> Any:
        self.calls.append(f"publish {skipped}")
        (self.root / "manifest").touch()
        return SimpleNamespace(run_id=run.run_id)

    @property
    def done(self) -> list[str]:
        return sorted(p.name.removeprefix("done-") for p in self.root.glob("done-*"))

    def called(self, word: str) -> list[str]:
        return [c for c in self.calls if c.startswith(word)]
