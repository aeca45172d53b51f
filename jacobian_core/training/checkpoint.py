"""A training's state in one file, replaced in one step, so that a killed training continues where it was last saved.

A checkpoint is safetensors: the module's tensors, the optimiser's, and in its header the step, the clock and a key of
what was asked for. The same bits are computed after a resumption as without one, on one machine with one number of
threads.
"""

import json
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from jacobian_core.errors import ConfigError

logger = logging.getLogger(__name__)

_MODULE, _OPTIMISER = "module/", "optimiser/"


@dataclass
class Checkpointer:
    """Saves a module, its optimiser and their clock; without a path it does nothing but keep the time.

    `key` stands for everything that decides the result: a file with another key is refused.
    """

    path: Path | None
    interval_seconds: float
    module: torch.nn.Module
    optimiser: torch.optim.Optimizer
    key: str
    seconds_before: float = 0.0
    _started: float = field(default_factory=time.monotonic)
    _saved: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """Wall-clock seconds of training, those before an interruption included."""
        return self.seconds_before + time.monotonic() - self._started

    def resume(self) -> int:
        """Load the file if it exists; returns the steps that it had done.

        Raises:
            ConfigError: the file is not a checkpoint, or one of another training.
        """
        if self.path is None or not self.path.exists():
            return 0
        tensors, facts = _read(self.path)
        if facts.get("key") != self.key:
            problem = f"{self.path} is the checkpoint of a training with other settings or another text."
            raise ConfigError(problem, "Remove it to start anew, or name another file.")
        self.module.load_state_dict(_below(_MODULE, tensors))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in _below(_OPTIMISER, tensors).items():
            index, _, part = name.partition("/")
            state.setdefault(int(index), {})[part] = tensor
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        self.seconds_before, step = float(facts["seconds"]), int(facts["step"])
        logger.info("continuing from %s at step %d", self.path, step)
        return step

    def save_if_due(self, step: int) -> None:
        """Save when the interval has passed since the last time."""
        if time.monotonic() - self._saved >= self.interval_seconds:
            self.save(step)

    def save(self, step: int) -> None:
        """Write the state after `step` steps beside the file, to the disk, and put it in the file's place."""
        if self.path is None:
            return
        from safetensors.torch import save

        self._saved = time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {_MODULE + name: tensor for name, tensor in self.module.state_dict().items()}
        for index, parts in self.optimiser.state_dict()["state"].items():
            tensors |= {f"{_OPTIMISER}{index}/{part}": tensor for part, tensor in parts.items()}
        facts = {"step": str(step), "seconds": repr(self.seconds()), "key": self.key}
        temporary = self.path.with_name(self.path.name + ".partial")
        with temporary.open("wb") as file:
            file.write(save({name: tensor.contiguous() for name, tensor in tensors.items()}, facts))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = path.read_bytes()
    try:
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        facts: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError) as error:
        raise ConfigError(f"{path} is not a checkpoint: {error}.", "Remove it to start anew.") from error
    return {name: tensor.clone() for name, tensor in tensors.items()}, facts


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
