"""A run that several processes compute: what a second process needs to work on blocks that the first one staged.

Blocks are independent and their bytes do not depend on who computes them, so processes share nothing but the lake.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jacobian_core.artifact.sae_pair import describe_pair
from jacobian_core.config import RunConfig
from jacobian_core.errors import ArtifactError, LakeError
from jacobian_core.lake.layout import Lake
from jacobian_core.step_values import ArtifactRef, RunRef


def join_run(config: RunConfig, run_id: str, artifact: ArtifactRef) -> RunRef:
    """A run that another process has begun, as this process needs it to compute staged blocks.

    Raises LakeError where it is not in progress, and ArtifactError where this process fetched another SAE pair.
    """
    lake = Lake.open(config.lake.root)
    request = lake.request(run_id)
    if request is None:
        state = "is finished" if lake.manifest(run_id) is not None else "was not begun"
        raise LakeError(f"{lake.root}: run {run_id} {state}; it has no blocks to compute.", "Start the whole run.")
    asked = request.identity.get("artifact")
    digest = asked.get("digest") if isinstance(asked, dict) else None
    if digest != artifact.digest:
        problem = f"run {run_id} is about the pair {digest}, but {artifact.locator} is {artifact.digest}."
        raise ArtifactError(problem, "Let every worker read the same artifact.")
    layer = describe_pair(Path(artifact.folder)).layer if config.model.layer is None else config.model.layer
    return RunRef(run_id, str(lake.root), "resume", (), config.corpus.max_tokens, config, artifact, layer)


def open_blocks(run: RunRef, block_ids: Sequence[str]) -> list[str]:
    """Those of the blocks that are not done."""
    done = set(Lake(run.lake).done_blocks(run.run_id))
    return [block_id for block_id in block_ids if block_id not in done]
