"""The tokenizer: as published, and refused by name where it is not usable."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend

from jacobian_core.config import ModelConfig
from jacobian_core.corpus.tokenizer import Tokenizer, load_tokenizer
from jacobian_core.errors import ModelError


def test_encoding_adds_nothing_and_cuts_nothing(tokenizer: Tokenizer) -> None:
    texts = ["the cat sat on the mat", "", "nul \0 and \x1b and é", "the " * 50]
    encoded = tokenizer.encode(texts)
    assert ["".join(tokenizer.text_of(i) for i in ids) for ids in encoded[:2]] == texts[:2]
    assert all(tokenizer.bos_id not in ids for ids in encoded)
    assert len(encoded[3]) > 49
    assert encoded == [tokenizer.encode([text])[0] for text in texts]


def test_a_special_token_that_a_text_spells_out_is_that_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.bos_id in tokenizer.encode(["end<|endoftext|>start"])[0]


def test_it_agrees_with_transformers(tokenizer: Tokenizer, model_folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(model_folder / "tokenizer.json"), bos_token="<|endoftext|>")
    for text in ("the bird had seen\n\n  the other END", "<|endoftext|> x", "é\0"):
        assert tokenizer.encode([text])[0] == theirs(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.bos_id == theirs.bos_token_id


def test_the_whole_vocabulary_as_text(tokenizer: Tokenizer) -> None:
    texts = tokenizer.texts()
    assert texts == [tokenizer.text_of(i) for i in range(len(texts))]
    assert texts[tokenizer.bos_id] == "<|endoftext|>"
    assert " the" in texts
    assert "\ufffd" in texts  # a byte that is not UTF-8 alone


def test_the_digest_is_that_of_the_file(tokenizer: Tokenizer, model_folder: Path) -> None:
    assert tokenizer.digest == hashlib.sha256((model_folder / "tokenizer.json").read_bytes()).hexdigest()


def test_a_model_configuration_names_the_folder(tokenizer: Tokenizer, model_folder: Path) -> None:
    assert load_tokenizer(ModelConfig(name=str(model_folder))).digest == tokenizer.digest


@pytest.mark.parametrize(
    ("files", "bos"),
    [
        ({"tokenizer_config.json": {"bos_token": {"content": "<|padding|>"}, "eos_token": "<|endoftext|>"}}, 1),
        ({"special_tokens_map.json": {"eos_token": "<|padding|>"}}, 1),
        (
            {
                "tokenizer_config.json": {"bos_token": None, "eos_token": "<|endoftext|>"},
                "config.json": {"bos_token_id": 5},
            },
            5,
        ),
        ({"config.json": {"eos_token_id": [7, 8]}}, 7),
    ],
)
def test_bos_is_the_models_or_its_end_of_text(
    model_folder: Path, tmp_path: Path, files: dict[str, object], bos: int
) -> None:
    shutil.copy(model_folder / "tokenizer.json", tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).bos_id == bos


def test_merges_left_out_at_random_are_switched_off(model_folder: Path, tmp_path: Path) -> None:
    content = json.loads((model_folder / "tokenizer.json").read_text())
    content["model"]["dropout"] = 0.9
    wild = Backend.from_str(json.dumps(content))
    assert len({tuple(wild.encode("the other road").ids) for _ in range(20)}) > 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    shutil.copy(model_folder / "tokenizer_config.json", tmp_path)
    steady = load_tokenizer(tmp_path)
    assert len({tuple(steady.encode(["the other road"])[0]) for _ in range(20)}) == 1


def test_what_is_missing_or_damaged_is_named(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)
    shutil.copy(model_folder / "tokenizer.json", tmp_path)
    with pytest.raises(ModelError, match="names no BOS or end-of-text token"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json of model .* can't be read"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json of model .* can't be read"):
        load_tokenizer(tmp_path)


def test_without_a_network_the_file_and_the_model_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"tokenizer\.json of model owner/model can't be fetched") as caught:
        load_tokenizer("owner/model")
    assert "\n" not in str(caught.value)
