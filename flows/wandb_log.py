"""A run's or a training's figures in Weights & Biases, where somebody wants them: JACOBIAN_WANDB = offline or online.

`offline` needs neither key nor network and writes below JACOBIAN_WANDB_DIR (default: `_wandb` in the lake, or beside a
trained pair); `wandb sync` uploads it later. The project is JACOBIAN_WANDB_PROJECT (default: jacobian-flows). A client
that fails is left alone after one warning: monitoring never stops a run.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from flows.progress import Figures
from jacobian_core.artifact.redact import redact
from jacobian_core.config import RunConfig
from jacobian_core.errors import ConfigError
from jacobian_core.lake.paths import lake_path, local_folder

if TYPE_CHECKING:
    from jacobian_core.training.config import TrainPairConfig

log = logging.getLogger(__name__)

MODES = ("offline", "online")
_SECONDS = 1.0
_PLACES = ("lake", "reports", "report_page")  # folders name people, and mean nothing elsewhere


def wandb_listeners(config: RunConfig) -> tuple[WandbLog, ...]:
    """The listener that the environment asks for, or none; ConfigError for an unknown mode."""
    mode = _asked()
    return (WandbLog(config, mode),) if mode else ()


def training_log(config: TrainPairConfig) -> WandbRun | None:
    """The run that a training's records go to, if the environment asks for one; ConfigError for an unknown mode."""
    mode = _asked()
    return WandbRun(config.output.name, config.output.parent / "_wandb", config, mode) if mode else None


def _asked() -> str | None:
    mode = os.environ.get("JACOBIAN_WANDB", "")
    if mode in ("", "disabled"):
        return None
    if mode not in MODES:
        raise ConfigError(f"JACOBIAN_WANDB = {mode!r} is refused.", "Use `offline`, `online` or nothing.")
    return mode


class WandbLog:
    """Logs the figures that the progress line shows, at most once a second."""

    def __init__(self, config: RunConfig, mode: str) -> None:
        self.run = WandbRun(config.name, local_folder(lake_path(config.lake.root)) / "_wandb", config, mode)
        self._last = float("-inf")

    def note(self, text: str) -> None:
        """Stages are in the logs already."""

    def update(self, figures: Figures) -> None:
        """Log the figures, unless they were within the last second."""
        if figures.blocks and time.monotonic() - self._last >= _SECONDS:
            self._last = time.monotonic()
            self.run.log(_scalars(figures))

    def summary(self, facts: Mapping[str, object]) -> None:
        """Keep what the published run has, took and cost as the summary of the wandb run."""
        self.run.summarise({name: value for name, value in facts.items() if name not in _PLACES})

    def close(self, figures: Figures) -> None:
        """Log the last figures and end the run there."""
        if figures.blocks:
            self.run.log(_scalars(figures))
        self.run.close()


class WandbRun:
    """A run of the wandb client, begun with its first figures; left alone for good once the client failed."""

    def __init__(self, name: str, folder: Path, config: BaseModel, mode: str) -> None:
        self._name, self._folder, self._config, self._mode = name, folder, config, mode
        self._run: Any = None
        self.failed = False

    def log(self, figures: Mapping[str, float | None]) -> None:
        """Log some figures."""
        if self._run is None:
            self._safely(self._begin)
        if self._run is not None:
            self._safely(lambda: self._run.log(dict(figures)))

    def summarise(self, figures: Mapping[str, object]) -> None:
        """Keep figures of the whole run, where any was logged."""
        if self._run is not None:
            self._safely(lambda: self._run.summary.update(dict(figures)))

    def close(self) -> None:
        """End the run there."""
        if self._run is not None:
            self._safely(self._run.finish)

    def _begin(self) -> None:
        import wandb

        folder = Path(os.environ.get("JACOBIAN_WANDB_DIR") or self._folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            mode="offline" if self._mode == "offline" else "online",
            project=os.environ.get("JACOBIAN_WANDB_PROJECT") or "jacobian-flows",
            name=self._name,
            dir=str(folder),
            config=json.loads(redact(self._config.model_dump_json())),
            settings=wandb.Settings(x_disable_stats=True, console="off", silent=True, save_code=False),
        )

    def _safely(self, do: Any) -> None:
        if self.failed:
            return
        try:
            do()
        except Exception as error:
            self.failed, self._run = True, None
            log.warning("wandb is left out: %s", redact(str(error)))


def _scalars(figures: Figures) -> dict[str, float]:
    return {
        "tokens": figures.tokens_done,
        "entries": figures.entries,
        "bytes": figures.bytes,
        "blocks": figures.blocks,
        "seconds": figures.seconds,
        "tokens_per_second": figures.tokens_per_second,
        "entries_per_second": figures.entries_per_second,
    }
