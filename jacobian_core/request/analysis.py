"""The request of an analysis: an existing run's, with changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jacobian_core.config import RunConfig
from jacobian_core.errors import LakeError
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.paths import LakePath, absolute
from jacobian_core.profiles import build_model

_DEFAULT_EXPERIMENTS = {"kinds": ["ablate", "unit"], "shape_token_share": 0.02}


def analysis_config(root: LakePath, run_id: str, settings: Sequence[str]) -> RunConfig:
    """The settings of the run `run_id`, changed by `group.key=value` overrides.

    Second derivatives and a sample of interventions are asked for where neither the run nor the overrides say else.
    Raises LakeError where there is no such run, ConfigError for a wrong override.
    """
    lake = Lake.open(root)
    record = lake.manifest(run_id) or lake.request(run_id)
    if record is None:
        raise LakeError(f"{root} has no run {run_id}.", "`jacobian runs` lists the runs.")
    data: dict[str, Any] = dict(record.config)
    data["lake"] = {**data["lake"], "root": str(absolute(root))}
    if not any(setting.strip().startswith("jacobian.derivatives") for setting in settings):
        data["jacobian"] = {**data["jacobian"], "derivatives": "second"}
    experiments = data.get("interventions") or {}
    if not experiments.get("kinds") and not any(s.strip().startswith("interventions.kinds") for s in settings):
        data["interventions"] = {**experiments, **_DEFAULT_EXPERIMENTS}
    return build_model(RunConfig, data, str(lake.manifest_path(run_id)), settings)
