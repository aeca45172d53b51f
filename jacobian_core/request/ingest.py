"""Which shards of a corpus the lake lacks, and in which batches they come next.

The lake's manifests are the only record: a shard is there if a finished run, asked for everything else exactly as now,
read it. So a firing of the schedule needs no state of its own, and one that was lost or doubled does no harm. Local
shards are hashed only where they are newer than the run that holds them: hashing the whole Pile takes minutes a firing.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jacobian_core.config import RunConfig
from jacobian_core.corpus.listing import Shard, hash_shard, select_shards
from jacobian_core.errors import ConfigError, CorpusError
from jacobian_core.lake.layout import Lake
from jacobian_core.request.identity import Identity, run_id, shard_content

Batch = tuple[str, ...]
"""Names of the shards of one run, in corpus order."""


@dataclass(frozen=True)
class HeldShard:
    """A shard that a finished run read: its place, its content as the run's identity says, and when the run ended."""

    name: str
    index: int
    content: str
    held_since: datetime


@dataclass(frozen=True)
class IngestPlan:
    """How much of the corpus the lake has, and the batches that it lacks, the next one first."""

    listed: int
    held: int
    batches: tuple[Batch, ...]

    def line(self) -> str:
        """The plan in one line of plain text."""
        if not self.batches:
            return f"nothing new: the lake has all {self.listed} shards"
        names = ", ".join(self.batches[0])
        return f"the lake has {self.held} of {self.listed} shards; next: {names}"


def plan_ingest(config: RunConfig, wanted: Identity, shards_at_once: int) -> IngestPlan:
    """What a firing has to do.

    Args:
        config: the request over the whole corpus.
        wanted: its identity; which shards it names does not matter.
        shards_at_once: shards of one batch.

    Raises ConfigError for a batch size that can't be, CorpusError where the corpus can't be listed or has got a shard
    before others that the lake has, and LakeError for a lake that can't be read.
    """
    _check_batches(config, shards_at_once)
    listed = select_shards(config.corpus)
    lake = Lake.create(config.lake.root)
    lacking = lacking_shards(listed, held_shards(lake, wanted))
    begun = begun_batches(lake, config.name, wanted, shards_at_once)
    batches = next_batches([shard.name for shard in lacking], begun, shards_at_once)
    return IngestPlan(len(listed), len(listed) - len(lacking), batches)


def batch_config(config: RunConfig, batch: Batch) -> RunConfig:
    """The same request over exactly these shards."""
    shards = tuple(glob.escape(name) for name in batch)  # a name is no pattern
    return config.model_copy(update={"corpus": config.corpus.model_copy(update={"shards": shards})})


def held_shards(lake: Lake, wanted: Identity) -> list[HeldShard]:
    """The shards of every finished run that was asked for the same as `wanted`, but for its shards.

    A run over several shards with a limit of tokens may not have come to its later ones: its shards do not count.
    """
    held = []
    for name in lake.runs():
        manifest = lake.manifest(name)
        if manifest is None or not _same_but_shards(manifest.identity, wanted):
            continue
        corpus: Any = manifest.identity["corpus"]
        if corpus.get("max_tokens") is not None and len(corpus["shards"]) > 1:
            continue
        held += [HeldShard(s["name"], s["index"], s["content"], manifest.created_utc) for s in corpus["shards"]]
    return held


def lacking_shards(listed: Sequence[Shard], held: Iterable[HeldShard]) -> list[Shard]:
    """The listed shards that are not held, or whose content has changed since, in corpus order.

    Raises CorpusError where a held shard has moved to another place: the ids of its documents would change.
    """
    by_name: dict[str, list[HeldShard]] = {}
    for each in held:
        by_name.setdefault(each.name, []).append(each)
    return [shard for shard in listed if not _is_held(shard, by_name.get(shard.name, []))]


def begun_batches(lake: Lake, name: str, wanted: Identity, shards_at_once: int) -> list[Batch]:
    """The shards of runs that an earlier firing began and did not finish.

    Larger runs in progress are left alone: someone has started them by hand.
    """
    batches = []
    for run in lake.runs():
        request = lake.request(run)
        if request is None or lake.manifest(run) is not None or not _same_but_shards(request.identity, wanted):
            continue
        corpus: Any = request.identity["corpus"]
        if len(corpus["shards"]) <= shards_at_once and run == run_id(name, request.identity):
            batches.append(tuple(shard["name"] for shard in corpus["shards"]))
    return batches


def next_batches(lacking: Sequence[str], begun: Iterable[Batch], shards_at_once: int) -> tuple[Batch, ...]:
    """Every lacking shard in exactly one batch: what was begun as it was begun, then the rest in corpus order."""
    left = list(lacking)
    batches = []
    for batch in sorted(begun):
        if all(name in left for name in batch):
            batches.append(batch)
            left = [name for name in left if name not in batch]
    batches += [tuple(left[at : at + shards_at_once]) for at in range(0, len(left), shards_at_once)]
    return tuple(batches)


def _check_batches(config: RunConfig, shards_at_once: int) -> None:
    if shards_at_once < 1:
        raise ConfigError(f"shards_at_once = {shards_at_once} is refused: it must be at least 1.")
    if shards_at_once > 1 and config.corpus.max_tokens is not None:
        problem = f"shards_at_once = {shards_at_once} with corpus.max_tokens = {config.corpus.max_tokens} is refused: "
        remedy = "Set corpus.max_tokens=null, or take one shard at once: the limit then holds for each."
        raise ConfigError(f"{problem}later shards of a batch would be left out.", remedy)


def _same_but_shards(one: Identity, other: Identity) -> bool:
    return _without_shards(one) == _without_shards(other)


def _without_shards(identity: Identity) -> Identity:
    corpus = identity["corpus"]
    kept = {k: v for k, v in corpus.items() if k != "shards"} if isinstance(corpus, dict) else corpus
    return {**identity, "corpus": kept}


def _is_held(shard: Shard, held: Sequence[HeldShard]) -> bool:
    there = [each for each in held if each.index == shard.index]
    if held and not there:
        raise CorpusError(
            f"shard {shard.name} is number {shard.index} of the corpus now and was {held[0].index} when the lake read "
            "it: its documents would get other ids.",
            "Name new shards so that they sort after the old ones, or start another lake with --lake.",
        )
    if shard.digest is None and _is_local(shard):
        changed = _changed_utc(shard)
        if any(changed < each.held_since for each in there):
            return True
        shard = hash_shard(shard) if there else shard
    return any(each.content == shard_content(shard) for each in there)


def _is_local(shard: Shard) -> bool:
    return "://" not in shard.url


def _changed_utc(shard: Shard) -> datetime:
    """When the file or its name last changed, as the file system says: copying tools can't set that back."""
    try:
        return datetime.fromtimestamp(Path(shard.url).stat().st_ctime, UTC)
    except OSError as error:
        raise CorpusError(f"shard {shard.name} can't be read: {error.strerror}.", "Check the file.") from None
