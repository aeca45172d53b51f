"""A run in miniature: a GPT-NeoX with random weights, a random published-format pair, two Pile-format shards.

Weights are larger than an initialised model's, so that the MLP's activation function is used beyond its linear part.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch

LAYER = 1
D_MODEL, D_MLP = 24, 56
CONTEXT = 48
_WORDS = [
    *[
        "a",
        "latent",
        "drives",
        "another",
        "one",
        "where",
        "the",
        "zero",
        "of",
        "its",
        "derivative",
        "says",
        "nothing",
        "can",
        "be",
        "seen",
        "at",
        "all",
    ]
]


def make_corpus(folder: Path, documents: int = 60) -> None:
    """Two compressed shards of made-up sentences, 3 to 120 words each."""
    import zstandard

    folder.mkdir(parents=True)
    draw = random.Random(7)
    for shard in range(2):
        lines = [
            json.dumps(
                {"text": " ".join(draw.choices(_WORDS, k=draw.randint(3, 120))), "meta": {"pile_set_name": "Made"}}
            )
            for _ in range(documents // 2)
        ]
        data = ("\n".join(lines) + "\n").encode()
        (folder / f"{shard:02d}.jsonl.zst").write_bytes(zstandard.compress(data))


def make_model(folder: Path, corpus: Path) -> None:
    """A three-layer GPT-NeoX with its tokenizer, as a Hugging Face folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(_WORDS)] * 4, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    ).save_pretrained(folder)
    config = GPTNeoXConfig(
        vocab_size=320, hidden_size=D_MODEL, num_hidden_layers=3, num_attention_heads=4, intermediate_size=D_MLP,
        max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += (0.3 if "norm" in name else 0.1) * torch.randn_like(parameter)
    model.save_pretrained(folder)


def make_pair(folder: Path, widths: tuple[int, int] = (96, 80), k: int = 6) -> None:
    """A pair in the published format; the output SAE's biases are negative enough for some latents to be clamped."""
    from safetensors.torch import save_file

    g = torch.Generator().manual_seed(3)
    tensors: dict[str, torch.Tensor] = {}
    for suffix, width, bias in (("", widths[0], 0.0), ("_out", widths[1], -0.4)):
        W_dec = torch.randn(width, D_MODEL, generator=g)
        W_dec /= W_dec.norm(dim=1, keepdim=True)
        tensors |= {
            f"_W_enc{suffix}": W_dec.T.contiguous(),
            f"_b_enc{suffix}": 0.1 * torch.randn(width, generator=g) + bias,
            f"_W_dec{suffix}": W_dec,
            f"_b_dec{suffix}": 0.1 * torch.randn(D_MODEL, generator=g),
        }
    folder.mkdir(parents=True)
    save_file(tensors, str(folder / "sae_weights.safetensors"))
    config = {
        "architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": k}, "d_in": D_MODEL,
        "d_sae": widths[0], "hook_name": f"blocks.{LAYER}.ln2.hook_normalized", "hook_layer": LAYER,
        "apply_b_dec_to_input": False, "normalize_activations": "none", "dtype": "float32", "device": "cpu",
        "model_name": "tiny", "is_pair": True, "context_size": CONTEXT, "prepend_bos": True,
        "model_from_pretrained_kwargs": {},
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))


def tiny_config(root: Path, lake: Path, **groups: dict[str, object]):  # type: ignore[no-untyped-def]
    """The configuration of a run over a `tiny` folder; `groups` change single fields."""
    from jacobian_core.config import RunConfig

    base: dict[str, dict[str, object]] = {
        "sae": {"source": "folder", "location": str(root / "pair")},
        "model": {"name": str(root / "model")},
        "corpus": {
            "source": "folder", "location": str(root / "corpus"), "context_tokens": CONTEXT, "block_tokens": 300,
        },
        "quality": {"fvu_tokens": 200, "max_fvu_in": 50.0, "max_fvu_out": 50.0},
        "lake": {"root": str(lake)},
    }  # fmt: skip
    for group, fields in groups.items():
        base[group] = {**base.get(group, {}), **fields}
    return RunConfig.model_validate({"name": "tiny", **base})


def run_pipeline(config):  # type: ignore[no-untyped-def]
    """All steps of a run one after another, in this process and without Prefect; returns the RunRef."""
    from jacobian_core import pipeline

    run = pipeline.resolve_run(config, pipeline.fetch_artifact(config))
    if run.state == "done":
        return run
    pipeline.check_quality(run)
    budget = run.tokens_wanted
    for shard in run.shards:
        cursor = None
        while budget != 0:
            batch = pipeline.stage_blocks(run, shard, cursor, budget, 3)
            for block in batch.blocks:
                pipeline.compute_block(run, block.block_id)
            budget = None if budget is None else budget - batch.tokens
            cursor = batch.next_cursor
            if cursor is None:
                break
    for group in pipeline.open_groups(run):
        pipeline.accumulate_group(run, group)
    pipeline.publish_run(run, {})
    return run
