"""The part of `latent_stats` of a run that does not keep its active latents: a row for each latent, made at its end."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from jacobian_core.config import LakeConfig
from jacobian_core.contracts import LATENT_STATS
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.parts import PartWriter, PreparedPart
from jacobian_core.numerics.latent_sums import LatentSums, added_up
from jacobian_core.pairs.chosen import Chosen, merged_sources
from jacobian_core.pairs.latent_bytes import unpacked
from jacobian_core.pairs.rows import opened_rows
from jacobian_core.pairs.sums_file import open_sums
from jacobian_core.sql.run_facts import RunSnapshot, known_run
from jacobian_core.work.tables import make_table

RUN_BLOCK = "run"
"""Block id of the part."""


def build_latent_stats(lake: Lake, run_id: str, config: LakeConfig) -> PreparedPart:
    """The part, for `publish_run` to publish. Raises QueryError and LakeError as `build_pair_stats`."""
    sums = latent_sums(lake, known_run(lake, run_id))
    activation, margin = sums.sums()
    order = np.argsort(sums.is_out, kind="stable")  # keys ascend by latent
    columns = {
        "side": np.where(sums.is_out, "out", "in"), "latent": sums.latent.astype(np.uint32), "n_tokens": sums.n_tokens,
        "sum_activation": activation, "max_activation": sums.largest, "sum_margin": margin,
    }  # fmt: skip
    with PartWriter(lake, LATENT_STATS, run_id, RUN_BLOCK, config) as writer:
        rows = {name: pa.array(column[order]) for name, column in columns.items()}
        writer.write(make_table(LATENT_STATS, rows))
        return writer.finish()


def latent_sums(lake: Lake, state: RunSnapshot) -> LatentSums:
    """What the run's files say of its active latents, added up; LakeError where there is none for a block."""
    total = added_up([])
    with merged_sources(lake, state) as found:
        for content in _contents(found):
            total = added_up([total, unpacked(content)])
    return total


def _contents(found: Chosen) -> Iterator[bytes]:
    for marker in found.blocks:
        with opened_rows(found.folder, marker) as rows:
            yield rows.latents
    for path in found.merged or ():
        with open_sums(path) as sums:
            yield sums.latents


def summed_by_out_latent(lake: Lake, state: RunSnapshot) -> Int64[np.ndarray, "n_out"]:
    """At how many tokens each output latent was active."""
    sums = latent_sums(lake, state)
    found = np.zeros(int(sums.latent[sums.is_out].max(initial=0)) + 1, np.int64)
    found[sums.latent[sums.is_out]] = sums.n_tokens[sums.is_out]
    return found
