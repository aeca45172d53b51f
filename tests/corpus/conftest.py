"""A byte-level BPE tokenizer of 400 tokens, trained here, with the settings of a published GPT-NeoX one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from jacobian_core.corpus.tokenizer import Tokenizer, load_tokenizer

TEXT = "the cat sat on the mat and the dog ran to the other end of the long road because it had seen a bird " * 20


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that holds what a tokenizer needs."""
    folder = tmp_path_factory.mktemp("model")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT], trainer)
    backend.enable_truncation(7)  # as some published files have it: must not shorten documents
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|endoftext|>"}))
    return folder


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> Tokenizer:
    """That tokenizer, loaded as a run loads it."""
    return load_tokenizer(model_folder)
