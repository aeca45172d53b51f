"""From a configuration to a trained pair on disk: load, tokenise, train, measure, export."""

import logging
import shutil
from collections.abc import Callable

import torch

from jacobian_core.errors import ConfigError, CorpusError
from jacobian_core.training.config import TrainPairConfig
from jacobian_core.training.dictionary import DictionaryPair
from jacobian_core.training.export import export_pair
from jacobian_core.training.pair import PairProgress, train_pair
from jacobian_core.training.pair_evaluation import PairEvaluation, evaluate_pair
from jacobian_core.training.source import load_source
from jacobian_core.training.text import mapped_stream

logger = logging.getLogger(__name__)


def check_paths(config: TrainPairConfig) -> None:
    """Refuse a training whose shards are missing or whose output can't be made, before anything is loaded.

    Raises:
        CorpusError: a shard does not exist.
        ConfigError: the output folder can't be made.
    """
    for shard in (*config.training_shards, *config.held_out_shards):
        if not shard.is_file():
            raise CorpusError(f"{shard}: there is no such shard of text.", "Check training_shards and held_out_shards.")
    try:
        config.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"output: {config.output} can't be made: {error.strerror}."
        raise ConfigError(problem, "Choose another folder.") from error


def run_pair_training(
    config: TrainPairConfig, on_record: Callable[[PairProgress], None] = lambda _: None
) -> PairEvaluation:
    """Train the configured pair, measure it as it will be stored, and write it to `config.output`.

    Raises:
        ModelError: the model can't be used.
        CorpusError: a shard is missing, damaged or too short.
        ConfigError: the checkpoint belongs to another shape of pair.
    """
    source = load_source(config.model, config.device)
    tokens = config.token_folder or config.output.with_name(f"{config.output.name}.tokens")
    stream = mapped_stream(config.training_shards, source.tokenizer, tokens)
    held_out = mapped_stream(config.held_out_shards, source.tokenizer, tokens)
    logger.info("%d training tokens, %d held out", len(stream), len(held_out))
    trained = train_pair(config, source, stream, on_record)
    round_weights(trained.pair, getattr(torch, config.storage_dtype))
    evaluation = evaluate_pair(config, trained.pair, source, held_out)
    export_pair(config.output, config, trained, evaluation)
    if config.token_folder is None:
        shutil.rmtree(tokens)
    logger.info("wrote %s: %s", config.output, evaluation)
    return evaluation


@torch.no_grad()
def round_weights(pair: DictionaryPair, dtype: torch.dtype) -> None:
    """Round every weight to what `dtype` can hold, so that the figures are those of the stored pair."""
    for parameter in pair.parameters():
        parameter.copy_(parameter.to(dtype))
