"""The training flow: a Jacobian SAE pair on one MLP of a language model, and a page of its figures in the UI.

Between the tasks go the configuration and the folder of the exported pair. The training itself is one task: what
makes it safe to kill is its own checkpoint (`checkpoint`), from which the same request continues.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows import ui
from flows.wandb_log import training_log
from jacobian_core.training.config import TrainPairConfig

if TYPE_CHECKING:
    from jacobian_core.training.pair import PairProgress


@task(name="check-training", persist_result=False, cache_policy=NO_CACHE)
def check(config: TrainPairConfig) -> None:
    """What is missing before a long training: a shard that does not exist, an output that can't be written."""
    from jacobian_core.training.job import check_paths

    training_log(config)  # an unknown mode is refused before the training, not after it
    check_paths(config)


@task(name="train", persist_result=False, cache_policy=NO_CACHE)
def train(config: TrainPairConfig) -> Path:
    """Train, measure on the held-out text and export; returns the pair's folder."""
    from jacobian_core.training.job import run_pair_training

    logger, wandb = get_run_logger(), training_log(config)

    def on_record(record: PairProgress) -> None:
        logger.info(record.line())
        if wandb is not None:
            wandb.log(asdict(record))

    try:
        run_pair_training(config, on_record)
    finally:
        if wandb is not None:
            wandb.close()
    return config.output


@task(name="training-report", persist_result=False, cache_policy=NO_CACHE)
def report(folder: Path) -> dict[str, Any]:
    """Leave the figures in the UI as a markdown page; returns them."""
    from prefect.artifacts import create_markdown_artifact

    from jacobian_core.training.export_files import FIGURES_FILE

    figures: dict[str, Any] = json.loads((folder / FIGURES_FILE).read_text(encoding="utf-8"))
    create_markdown_artifact(page(folder, figures), key=ui.artifact_key(f"pair-{folder.name}"), description=str(folder))
    return figures


def page(folder: Path, figures: dict[str, Any]) -> str:
    """The figures of a training as markdown: what was asked, how it went, what the pair is worth on held-out text."""
    held_out = {**figures["held_out"]}
    above = held_out.pop("elements_above")
    held_out |= {f"elements a token with |J| > {level}": count for level, count in above.items()}
    asked = ("latents", "active_latents", "jacobian_coefficient", "learning_rate", "tokens", "seed")
    tables = {
        "Held-out text": held_out,
        "End of the training": figures["last_record"],
        "Asked for": {
            "layer": figures["config"]["model"]["layer"],
            **{name: figures["config"][name] for name in asked},
        },
    }
    parts = [f"# Jacobian SAE pair `{folder.name}`", f"{figures['tokens']:,} tokens in {figures['seconds']:,} s."]
    for title, facts in tables.items():
        rows = [{"figure": name, "value": value} for name, value in facts.items()]
        parts.append(f"## {title}\n\n{ui.markdown_table(rows)}")
    return "\n\n".join(parts)


@flow(name="train-pair", persist_result=False)
def train_pair(config: TrainPairConfig) -> dict[str, Any]:
    """Train a pair of TopK dictionaries with the Jacobian penalty and export it as published pairs are.

    Returns the figures that `training.json` beside the weights holds. Raises the JacobianFlowsError of the step that
    failed.
    """
    check(config)
    return report(train(config))
