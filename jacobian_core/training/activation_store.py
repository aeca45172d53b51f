"""MLP inputs of many tokens, read once from the language model and kept in one float16 file.

Running a language model costs more than training a pair on what comes out of it, and a pair sees the same text several
times. So with `activation_folder` the model runs over the text once; every step then draws rows from the file (mapped,
not loaded), and the MLP's outputs are computed from its inputs anew, which costs a twentieth of a forward pass.

The rows come from the stream's windows in an order drawn from the seed. What is written is recorded window by window,
so that a filling that was killed continues; a folder that was filled for another request is refused.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int

from jacobian_core.errors import ConfigError, ModelError
from jacobian_core.training.config import TrainPairConfig
from jacobian_core.training.source import MlpSource
from jacobian_core.training.text import consecutive_windows, stream_digest, with_leading_bos

logger = logging.getLogger(__name__)

RECORD_FILE = "activations.json"
ROWS_FILE = "mlp_inputs.f16"
LOG_EVERY_FILLINGS = 20


@dataclass(frozen=True)
class ActivationStore:
    """Rows of MLP inputs on disk."""

    rows: np.memmap

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, count: int, seed: int) -> Float[torch.Tensor, "tokens d_in"]:
        """`count` rows chosen, with replacement, by `seed` alone; float32."""
        index = np.random.default_rng(seed).integers(0, len(self.rows), count)
        return torch.from_numpy(self.rows[np.sort(index)]).float()


def fill_store(
    folder: Path, config: TrainPairConfig, source: MlpSource, stream: Int[torch.Tensor, " stream"]
) -> ActivationStore:
    """The store of `folder`, filled with as many tokens as are asked for and not there yet.

    Raises:
        ConfigError: the folder was filled for another model or text.
        CorpusError: the stream is shorter than one window.
        ModelError: an activation does not fit float16.
    """
    windows = consecutive_windows(stream, length=config.context_tokens)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(config.seed))
    folder.mkdir(parents=True, exist_ok=True)
    key, width = _key(config, stream), source.mlp.d_in
    done, rows = _resume(folder, key)
    wanted = config.activation_tokens
    with (folder / ROWS_FILE).open("r+b" if rows else "w+b") as file:
        file.seek(rows * width * 2)
        file.truncate()
        fillings = 0
        while rows < wanted and done < len(order):
            some = order[done : done + config.windows_per_step]
            x = source.inputs(with_leading_bos(windows[some], source.bos_token_id)).half().cpu()
            if not bool(x.isfinite().all()):
                raise ModelError("an MLP input does not fit float16.", "Leave activation_folder out.")
            file.write(x.numpy().tobytes())
            file.flush()
            done, rows, fillings = done + len(some), rows + len(x), fillings + 1
            _record(folder, key, done, rows)
            if fillings % LOG_EVERY_FILLINGS == 0:
                logger.info("activations of %d tokens are in %s", rows, folder)
    return ActivationStore(np.memmap(folder / ROWS_FILE, dtype=np.float16, mode="r", shape=(rows, width)))


def _key(config: TrainPairConfig, stream: Int[torch.Tensor, " stream"]) -> str:
    """What the rows depend on: model, text, context and order."""
    asked = (config.model.model_dump(mode="json"), stream_digest(stream), config.context_tokens, config.seed)
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _resume(folder: Path, key: str) -> tuple[int, int]:
    """Windows and rows that an earlier filling recorded."""
    path = folder / RECORD_FILE
    if not path.exists():
        return 0, 0
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["key"] != key:
        raise ConfigError(f"{folder} holds the activations of another model or text.", "Choose another folder.")
    return record["windows"], record["rows"]


def _record(folder: Path, key: str, windows: int, rows: int) -> None:
    partial = folder / (RECORD_FILE + ".partial")
    partial.write_text(json.dumps({"key": key, "windows": windows, "rows": rows}), encoding="utf-8")
    partial.replace(folder / RECORD_FILE)
