"""A run's figures in Weights & Biases, where somebody wants them there: JACOBIAN_WANDB = offline or online.

`offline` needs neither key nor network and writes below JACOBIAN_WANDB_DIR (default: the lake's `_wandb`); `wandb sync`
uploads it later. The project is JACOBIAN_WANDB_PROJECT (default: jacobian-flows). A client that fails is left alone
after one warning: monitoring never stops a run.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from flows.progress import Figures
from jacobian_core.artifact.redact import redact
from jacobian_core.config import RunConfig
from jacobian_core.errors import ConfigError

log = logging.getLogger(__name__)

MODES = ("offline", "online")
_SECONDS = 1.0


def wandb_listeners(config: RunConfig) -> tuple[WandbLog, ...]:
    """The listener that the environment asks for, or none; ConfigError for an unknown mode."""
    mode = os.environ.get("JACOBIAN_WANDB", "")
    if mode in ("", "disabled"):
        return ()
    if mode not in MODES:
        raise ConfigError(f"JACOBIAN_WANDB = {mode!r} is refused.", "Use `offline`, `online` or nothing.")
    return (WandbLog(config, mode),)


class WandbLog:
    """Logs the figures that the progress line shows, at most once a second."""

    def __init__(self, config: RunConfig, mode: str) -> None:
        self._config, self._mode = config, mode
        self._run: Any = None
        self._failed = False
        self._last = float("-inf")

    def note(self, text: str) -> None:
        """Stages are in the logs already."""

    def update(self, figures: Figures) -> None:
        """Log the figures, unless they were within the last second."""
        if figures.blocks and time.monotonic() - self._last >= _SECONDS:
            self._log(figures)

    def close(self, figures: Figures) -> None:
        """Log the last figures and end the run there."""
        if figures.blocks:
            self._log(figures)
        if self._run is not None:
            self._safely(self._run.finish)

    def _log(self, figures: Figures) -> None:
        self._last = time.monotonic()
        if self._run is None and not self._failed:
            self._safely(self._begin)
        if self._run is not None:
            self._safely(lambda: self._run.log(_scalars(figures)))

    def _begin(self) -> None:
        import wandb

        folder = Path(os.environ.get("JACOBIAN_WANDB_DIR") or Path(self._config.lake.root) / "_wandb")
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            mode="offline" if self._mode == "offline" else "online",
            project=os.environ.get("JACOBIAN_WANDB_PROJECT") or "jacobian-flows",
            name=self._config.name,
            dir=str(folder),
            config=json.loads(redact(self._config.model_dump_json())),
            settings=wandb.Settings(x_disable_stats=True, console="off", silent=True, save_code=False),
        )

    def _safely(self, do: Any) -> None:
        if self._failed:
            return
        try:
            do()
        except Exception as error:
            self._failed, self._run = True, None
            log.warning("wandb is left out: %s", redact(str(error)))


def _scalars(figures: Figures) -> dict[str, float]:
    return {
        "tokens": figures.tokens_done,
        "entries": figures.entries,
        "bytes": figures.bytes,
        "blocks": figures.blocks,
        "seconds": figures.seconds,
        "tokens_per_second": figures.tokens_per_second,
    }
