"""A training's state in one file, replaced in one step, so that a killed training continues where it was last saved.

Checkpoints are torch archives read with `weights_only=True`: they hold tensors and numbers, never code. They are
working files; what a training hands on is written as safetensors elsewhere.
"""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from jacobian_core.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass
class Checkpointer:
    """Saves a module, its optimiser and their clock; without a path it does nothing but keep the time."""

    path: Path | None
    interval_seconds: float
    module: torch.nn.Module
    optimiser: torch.optim.Optimizer
    seconds_before: float = 0.0
    _started: float = field(default_factory=time.monotonic)
    _saved: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """Wall-clock seconds of training, those before an interruption included."""
        return self.seconds_before + time.monotonic() - self._started

    def resume(self) -> int:
        """Load the file if it exists; returns the steps that it had done.

        Raises:
            ConfigError: the file was made with another shape of model.
        """
        if self.path is None or not self.path.exists():
            return 0
        state: dict[str, Any] = torch.load(self.path, weights_only=True)
        try:
            self.module.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ConfigError(
                f"{self.path} was made with another shape of model.", "Remove it to start anew."
            ) from error
        self.optimiser.load_state_dict(state["optimiser"])
        self.seconds_before = state["seconds"]
        logger.info("continuing from %s at step %d", self.path, state["step"])
        step: int = state["step"]
        return step

    def save_if_due(self, step: int) -> None:
        """Save when the interval has passed since the last time."""
        if time.monotonic() - self._saved >= self.interval_seconds:
            self.save(step)

    def save(self, step: int) -> None:
        """Write the state after `step` steps to a temporary file and put it in the file's place."""
        if self.path is None:
            return
        self._saved = time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".partial")
        state = {
            "model": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": step,
            "seconds": self.seconds(),
        }
        torch.save(state, temporary)
        temporary.replace(self.path)
