"""The names of the files that a training writes; kept apart from `export.py`, which loads torch."""

from pathlib import Path

from jacobian_core.training.config import TrainPairConfig

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
FIGURES_FILE = "training.json"


def last_file(folder: Path, config: TrainPairConfig) -> Path:
    """The file of an exported pair that is written last: where it is, the pair is whole."""
    return folder / (CONFIG_FILE if config.export_format == "published" else f"out/{CONFIG_FILE}")
