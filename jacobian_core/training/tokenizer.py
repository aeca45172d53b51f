"""A byte-level BPE tokenizer trained on the model's own training text, in the format that Hugging Face reads.

A small vocabulary of its own text costs a small model far less than a public 50 k vocabulary, whose embeddings alone
would be ten times the rest of its weights.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, max_positions: int) -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE whose id 0 is `<|endoftext|>`: beginning, end and unknown at once, as in GPT-NeoX.

    Args:
        texts: training text only; held-out text would leak into the vocabulary.
        vocabulary_size: entries, the 256 bytes and the special token among them.
        max_positions: recorded as the tokenizer's longest sequence.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=max_positions,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Write `tokenizer.json` and a `tokenizer_config.json` that names a class known to every release of transformers.

    The class that transformers 5 would name does not exist in 4, which other tools still pin.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.pop("backend", None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
