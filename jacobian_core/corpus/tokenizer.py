"""The model's tokenizer: `tokenizer.json` as published, run by the Rust library without the 2 s import of transformers.

Text is encoded as Hugging Face does by default: a document that spells out a special token ("<|endoftext|>") gets that
token's id. Such a token is analysed like any other; only the BOS that packing puts in is not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jacobian_core.config import ModelConfig
from jacobian_core.corpus.listing import one_line
from jacobian_core.errors import ModelError

_MAIN = "tokenizer.json"
_BOS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "config.json")
_BOS_FIELDS = ("bos_token", "bos_token_id", "eos_token", "eos_token_id")


class Tokenizer:
    """Text to vocabulary ids and back. `bos_id` starts every row; `digest` is the SHA-256 of the tokenizer's file."""

    def __init__(self, backend: Any, bos_id: int, digest: str) -> None:
        backend.no_truncation()
        backend.no_padding()
        if getattr(backend.model, "dropout", None):
            backend.model.dropout = None  # merges left out at random would make blocks differ from run to run
        self._backend = backend
        self.bos_id = bos_id
        self.digest = digest

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The vocabulary ids of each text, no special token added."""
        return [one.ids for one in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def text_of(self, vocab_id: int) -> str:
        """One token as text, by itself: bytes that are not UTF-8 alone show as U+FFFD."""
        return str(self._backend.decode([vocab_id], skip_special_tokens=False))

    def texts(self) -> list[str]:
        """`text_of` for the whole vocabulary, at index vocab_id; '' for ids without a token."""
        size = max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        return list(self._backend.decode_batch([[i] for i in range(size)], skip_special_tokens=False))


def load_tokenizer(model: ModelConfig | str | Path) -> Tokenizer:
    """The tokenizer of a local Hugging Face folder, or of a model on the hub by its official name.

    Its BOS is the model's, or its end-of-text token where the model has none. Raises ModelError, naming the file.
    """
    name, revision = (model.name, model.revision) if isinstance(model, ModelConfig) else (str(model), None)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _load(name, lambda file: folder / file if (folder / file).is_file() else None)
    repository = _repository(name)
    return _load(name, lambda file: _from_hub(repository, file, revision))


def _load(name: str, find: Callable[[str], Path | None]) -> Tokenizer:
    from tokenizers import Tokenizer as Backend

    path = find(_MAIN)
    if path is None:
        raise ModelError(
            f"model {name} has no {_MAIN}.",
            "Load it with transformers' AutoTokenizer, save it with save_pretrained(folder) and name that folder.",
        )
    content = path.read_bytes()
    try:
        backend = Backend.from_buffer(content)
    except Exception as error:  # the Rust library raises plain Exception
        raise ModelError(f"{_MAIN} of model {name} can't be read: {one_line(error)}.", "Fetch it again.") from error
    return Tokenizer(backend, _bos_id(name, backend, find), hashlib.sha256(content).hexdigest())


def _bos_id(name: str, backend: Any, find: Callable[[str], Path | None]) -> int:
    """The first of bos_token, bos_token_id, eos_token, eos_token_id that one of the model's files sets."""
    settings = [_read_json(name, path) for path in map(find, _BOS_FILES) if path is not None]
    for field in _BOS_FIELDS:
        for setting in settings:
            value = setting.get(field)
            if isinstance(value, list) and value:
                value = value[0]
            if isinstance(value, dict):
                value = value.get("content")
            found = backend.token_to_id(value) if isinstance(value, str) else value
            if isinstance(found, int):
                return found
    raise ModelError(
        f"model {name} names no BOS or end-of-text token in {', '.join(_BOS_FILES)}.",
        "Set bos_token in its tokenizer_config.json.",
    )


def _read_json(name: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name} of model {name} can't be read: {one_line(error)}.", "Fetch it again.") from error
    return content if isinstance(content, dict) else {}


def _repository(name: str) -> str:
    """The hub repository of an official name or alias ('pythia-70m-deduped'); others are taken as they are."""
    if "/" in name:
        return name
    from transformer_lens.loading_from_pretrained import get_official_model_name

    try:
        return str(get_official_model_name(name))
    except ValueError as error:
        raise ModelError(
            f"{name} is neither a local folder nor an official model name.",
            "Name a Hugging Face folder, owner/repository, or a name that TransformerLens knows.",
        ) from error


def _from_hub(repository: str, file: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except LocalEntryNotFoundError as error:  # not in the cache, and no network: says nothing about the repository
        raise _unreachable(repository, file, error) from error
    except EntryNotFoundError:
        return None
    except Exception as error:  # the client's transport has its own families of errors, not only OSError
        raise _unreachable(repository, file, error) from error


def _unreachable(repository: str, file: str, error: Exception) -> ModelError:
    return ModelError(
        f"{file} of model {repository} can't be fetched: {type(error).__name__}: {one_line(error)}.",
        "Check the network, model.name and model.revision; a private or gated model needs HF_TOKEN.",
    )
