"""Every MLP kind with every SAE family, against float64 autograd through the real modules.

The reference runs Hugging Face's own MLP (with the norm behind it, where the block has one) and sae_lens's own SAEs;
the closed form sees only what was read out of them. Tolerances: 1e-10 of a token's largest |J| in float64, 1e-5 of it
in float32, for the reason given in `test_jacobian.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jacobian_core.config import ModelConfig
from jacobian_core.errors import ArtifactError, ModelError
from jacobian_core.model.llm import load_language_model
from jacobian_core.model.mlp import Mlp
from jacobian_core.model.mlp_weights import read_mlp
from jacobian_core.model.neurons import GatedNeurons
from jacobian_core.model.quality import measure_fvu
from jacobian_core.numerics import reference
from jacobian_core.numerics.all_inputs import Accumulator, units
from jacobian_core.numerics.codes import Threshold
from jacobian_core.numerics.coo import Thresholds, to_entries
from jacobian_core.numerics.interventions import change_latents
from jacobian_core.numerics.partial_sums import merge
from jacobian_core.numerics.sae import fold_sae
from jacobian_core.numerics.sandwich import EvaluateAt, Sandwich
from jacobian_core.numerics.strata import all_pairs

WIDTH, HIDDEN, TOKENS = 12, 20, 3
KINDS = [
    "gpt_neox",
    "gpt2",
    "opt-like relu",
    "relu2",
    "llama",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "olmo2",
    "relu gated",
]
FAMILIES = ["standard", "topk", "jumprelu", "gated"]


def _config(kind: str) -> Any:
    import transformers as hf

    sizes = {
        "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": HIDDEN,
        "vocab_size": 40, "max_position_embeddings": 32,
    }  # fmt: skip
    grouped = sizes | {"num_key_value_heads": 1, "head_dim": 6}
    makers: dict[str, Callable[[], Any]] = {
        "gpt_neox": lambda: hf.GPTNeoXConfig(**sizes),
        "gpt2": lambda: hf.GPT2Config(n_embd=WIDTH, n_layer=2, n_head=2, n_inner=HIDDEN, vocab_size=40, n_positions=32),
        "opt-like relu": lambda: hf.GPTNeoXConfig(**sizes, hidden_act="relu"),
        "relu2": lambda: hf.GPTNeoXConfig(**sizes, hidden_act="relu2"),
        "llama": lambda: hf.LlamaConfig(**grouped, mlp_bias=True),
        "qwen2": lambda: hf.Qwen2Config(**sizes, num_key_value_heads=1),
        "qwen3": lambda: hf.Qwen3Config(**grouped),
        "olmo2": lambda: hf.Olmo2Config(**sizes, num_key_value_heads=1),
        "relu gated": lambda: hf.LlamaConfig(**grouped, hidden_act="relu2"),
        "gemma": lambda: hf.GemmaConfig(**grouped),
        "gemma2": lambda: hf.Gemma2Config(**grouped),
        "gemma3_text": lambda: hf.Gemma3TextConfig(**grouped),
        "opt": lambda: hf.OPTConfig(
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=HIDDEN,
            vocab_size=40,
            word_embed_proj_dim=WIDTH,
            max_position_embeddings=32,
        ),
        "mixtral": lambda: hf.MixtralConfig(**grouped, num_local_experts=2),
        "gpt_oss": lambda: hf.GptOssConfig(**grouped, num_local_experts=2),
        "qwen2_moe": lambda: hf.Qwen2MoeConfig(**sizes, num_key_value_heads=1, num_experts=2, moe_intermediate_size=8),
    }
    return makers[kind]()


@dataclass(frozen=True)
class Block:
    """One model's last MLP: Hugging Face's own modules as a function, and what was read out of the bridge."""

    module: Callable[[Tensor], Tensor]
    mlp: Mlp


_blocks: dict[str, Block] = {}


def bridge_of(kind: str, folder: Path) -> Any:
    """A tiny random model of a kind as a TransformerBridge, by way of a folder as every real model."""
    import transformers as hf
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge

    torch.manual_seed(7)
    model = hf.AutoModelForCausalLM.from_config(_config(kind))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 0.4 if "norm" in name else 0.0, 0.3)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(40)}, unk_token="0"))
    hf.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float64)


@pytest.fixture
def block(request: pytest.FixtureRequest, tmp_path: Path) -> Block:
    """The block of the kind that the test is parametrised with; models are made once."""
    kind = request.param
    if kind not in _blocks:
        import transformers as hf

        bridge = bridge_of(kind, tmp_path)
        model = hf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
        base = getattr(model, model.base_model_prefix)
        layer = (base.layers if hasattr(base, "layers") else base.h)[-1]
        norm = getattr(layer, "post_feedforward_layernorm", None)

        def module(x: Tensor) -> Tensor:
            # Gemma's norm casts to float32 in its forward; its two parts in float64 are the same function.
            if norm is None:
                return layer.mlp(x)
            y = layer.mlp(x)
            if hasattr(norm, "_norm"):
                return norm._norm(y) * (1 + norm.weight)
            return norm.weight * (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + norm.variance_epsilon))

        _blocks[kind] = Block(module, read_mlp(bridge, 1).to("cpu", torch.float64))
    return _blocks[kind]


def make_sae(family: str, seed: int, latents: int = 17, **settings: Any) -> Any:
    """A random sae_lens SAE of a family, float64; biases make some latents inactive and leave some active."""
    from sae_lens import (
        GatedSAE,
        GatedSAEConfig,
        JumpReLUSAE,
        JumpReLUSAEConfig,
        StandardSAE,
        StandardSAEConfig,
        TopKSAE,
        TopKSAEConfig,
    )

    classes: dict[str, tuple[Any, Any]] = {
        "standard": (StandardSAE, StandardSAEConfig),
        "topk": (TopKSAE, TopKSAEConfig),
        "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig),
        "gated": (GatedSAE, GatedSAEConfig),
    }
    sae_class, config_class = classes[family]
    if family == "topk":
        settings = {"k": 5, "rescale_acts_by_decoder_norm": True} | settings
    sae = sae_class(config_class(d_in=WIDTH, d_sae=latents, dtype="float64", **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            drawn = 0.4 * torch.randn(*parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(drawn.abs() if name == "threshold" else drawn)
    return sae.eval()


@dataclass(frozen=True)
class Held:
    """An SAE whose run-time activation norm stays that of `x`, as in one encode followed by one decode."""

    sae: Any
    x: Tensor

    def encode(self, x: Tensor) -> Tensor:
        return self.sae.encode(x)

    def decode(self, feature_acts: Tensor) -> Tensor:
        self.sae.encode(self.x[None])
        return self.sae.decode(feature_acts)


def sandwich_of(block: Block, inputs: Any, outputs: Any, at: EvaluateAt = "reconstruction") -> Sandwich:
    folded = (fold_sae(sae, "cpu", torch.float64) for sae in (inputs, outputs))
    return Sandwich.build(next(folded), block.mlp, next(folded), at)


def exact(
    block: Block, inputs: Any, outputs: Any, at: EvaluateAt, x: Tensor
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    held = Held(inputs, x)
    s = inputs.encode(x[None])[0].detach()
    if at == "reconstruction":
        return reference.sandwich_at_reconstruction(held, block.module, outputs), s
    return reference.sandwich_at_activation(held, block.module, outputs, x), s


def tokens(seed: int = 1) -> Tensor:
    return 1.5 * torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(block: Block, inputs: Any, outputs: Any, at: EvaluateAt, sandwich: Sandwich, tolerance: float) -> int:
    """Entries, second derivatives and ablations of every active pair against autograd; returns how many."""
    x = tokens()
    state = sandwich.state(x.to(sandwich.mlp.W_in.dtype))
    J = sandwich.kernel.first(state)
    K = sandwich.kernel.second(state, J)
    entries = to_entries(J, K, state.outputs, state.inputs, Thresholds())
    pairs = all_pairs(state.outputs, state.inputs, torch.ones(TOKENS, dtype=torch.bool), 1.0)
    effects = change_latents(sandwich, state, pairs, torch.zeros(len(pairs.token), dtype=J.dtype))
    for token in range(TOKENS):
        function, s = exact(block, inputs, outputs, at, x[token])
        out, in_, expected_J = reference.active_entries(function, s)
        mine = entries.token == token
        expected_pairs = torch.cartesian_prod(out, in_).reshape(-1, 2)
        assert torch.equal(torch.stack([entries.out_latent[mine], entries.in_latent[mine]], 1), expected_pairs)
        expected_K = reference.second_derivative(function, s, out, in_)
        with torch.no_grad():
            after = torch.stack([reference.intervene(function, s, int(j), 0.0)[out] for j in in_], 1)
        assert entries.second_derivative is not None
        for found, expected in ((entries.value[mine], expected_J), (entries.second_derivative[mine], expected_K)):
            atol = tolerance * (float(expected.abs().max()) or 1.0)
            torch.testing.assert_close(found.double(), expected.flatten(), rtol=0, atol=atol)
        torch.testing.assert_close(
            effects.out_after[pairs.token == token].double(),
            after.flatten(),
            rtol=0,
            atol=tolerance * float(after.max()),
        )
    return int(entries.stored.sum())


@pytest.mark.parametrize("block", KINDS, indirect=True)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_mlp_with_every_family(block: Block, family: str) -> None:
    other = FAMILIES[(FAMILIES.index(family) + 1) % len(FAMILIES)]
    inputs, outputs = make_sae(family, 1), make_sae(other, 2, latents=23)
    for at in ("reconstruction", "activation"):
        sandwich = sandwich_of(block, inputs, outputs, at)
        assert check(block, inputs, outputs, at, sandwich, 1e-10) > 20


@pytest.mark.slow
@pytest.mark.parametrize("block", KINDS, indirect=True)
@pytest.mark.parametrize("output_family", FAMILIES)
@pytest.mark.parametrize("input_family", FAMILIES)
def test_the_whole_product(block: Block, input_family: str, output_family: str) -> None:
    inputs, outputs = make_sae(input_family, 8), make_sae(output_family, 9, latents=23)
    for at in ("reconstruction", "activation"):
        check(block, inputs, outputs, at, sandwich_of(block, inputs, outputs, at), 1e-10)


@pytest.mark.parametrize("block", ["gpt_neox", "llama", "gemma2"], indirect=True)
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_within_its_tolerance(block: Block, family: str) -> None:
    inputs, outputs = make_sae(family, 3), make_sae(family, 4, latents=23)
    exact_one = sandwich_of(block, inputs, outputs)
    parts = (part.to("cpu", torch.float32) for part in (exact_one.inputs, exact_one.mlp, exact_one.outputs))
    check(block, inputs, outputs, "reconstruction", Sandwich.build(*parts, "reconstruction"), 1e-5)


@pytest.mark.parametrize("block", ["gpt_neox", "gemma2"], indirect=True)
@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("centred", [True, False])
def test_an_input_sae_that_normalises(block: Block, norm: str, centred: bool) -> None:
    inputs = make_sae("standard", 5, normalize_activations=norm, apply_b_dec_to_input=centred)
    outputs = make_sae("topk", 6, rescale_acts_by_decoder_norm=False, apply_b_dec_to_input=centred)
    for at in ("reconstruction", "activation"):
        check(block, inputs, outputs, at, sandwich_of(block, inputs, outputs, at), 1e-10)


@pytest.mark.parametrize("block", ["llama", "gemma2"], indirect=True)
def test_all_inputs(block: Block) -> None:
    """The aggregates over every input latent are those of the dense Jacobians by autograd."""
    inputs, outputs = make_sae("jumprelu", 1), make_sae("gated", 2, latents=23)
    sandwich = sandwich_of(block, inputs, outputs)
    accumulator = Accumulator(sandwich.kernel, range(23))
    accumulator.add(sandwich.state(tokens()))
    sums = merge([accumulator.partial()], range(23), 17, units(sandwich.kernel))
    dense = []
    for x in tokens():
        function, s = exact(block, inputs, outputs, "reconstruction", x)
        dense.append(reference.jacobian(function, s))
    found, expected = sums.sum_abs, torch.stack(dense).abs().sum(0)[sums.out_latent]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(found, 1.001 * expected, rtol=1e-6, atol=1e-7)


class TestTheComparisonNotices:
    """Each mistake that the general form invites must fail the same comparison."""

    @pytest.mark.parametrize("block", ["llama"], indirect=True)
    def test_gate_and_linear_path_exchanged(self, block: Block) -> None:
        class Exchanged(GatedNeurons):
            def slopes(self, z: Tensor) -> Tensor:
                return torch.cat(super().slopes(z).chunk(2, dim=-1)[::-1], dim=-1)

        inputs, outputs = make_sae("standard", 1), make_sae("topk", 2)
        right = sandwich_of(block, inputs, outputs)
        wrong = replace(right.kernel, mlp=replace(right.mlp, neurons=Exchanged(right.mlp.neurons.activation)))
        with pytest.raises(AssertionError):
            check(block, inputs, outputs, "reconstruction", replace(right, kernel=wrong), 1e-5)

    @pytest.mark.parametrize("block", ["gemma2"], indirect=True)
    def test_norm_held_fixed(self, block: Block) -> None:
        inputs, outputs = make_sae("standard", 1), make_sae("topk", 2)
        right = sandwich_of(block, inputs, outputs)
        assert right.kernel.readers is not None
        wrong = replace(right, kernel=replace(right.kernel, readers=torch.zeros_like(right.kernel.readers)))
        with pytest.raises(AssertionError):
            check(block, inputs, outputs, "reconstruction", wrong, 1e-5)

    @pytest.mark.parametrize("block", ["gpt_neox"], indirect=True)
    def test_another_deviation_of_the_output(self, block: Block) -> None:
        inputs, outputs = make_sae("standard", 1), make_sae("topk", 2, normalize_activations="layer_norm")
        right = sandwich_of(block, inputs, outputs)
        assert right.mlp.norm is not None
        mlp = replace(right.mlp, norm=replace(right.mlp.norm, unbiased=False))
        wrong = replace(right, mlp=mlp, kernel=replace(right.kernel, mlp=mlp))
        with pytest.raises(AssertionError):
            check(block, inputs, outputs, "reconstruction", wrong, 1e-5)

    @pytest.mark.parametrize("block", ["gpt_neox"], indirect=True)
    def test_threshold_ignored(self, block: Block) -> None:
        inputs, outputs = make_sae("standard", 1), make_sae("jumprelu", 2)
        right = sandwich_of(block, inputs, outputs)
        assert isinstance(right.outputs.selection, Threshold)
        zero = Threshold(torch.zeros_like(right.outputs.selection.threshold))
        wrong = replace(right, outputs=replace(right.outputs, selection=zero))
        with pytest.raises(AssertionError):
            check(block, inputs, outputs, "reconstruction", wrong, 1e-5)

    @pytest.mark.parametrize("block", ["gpt_neox"], indirect=True)
    def test_token_norm_ignored(self, block: Block) -> None:
        inputs = make_sae("standard", 5, normalize_activations="layer_norm")
        outputs = make_sae("topk", 6)
        right = sandwich_of(block, inputs, outputs)
        wrong = replace(right, inputs=replace(right.inputs, norm="none"))
        with pytest.raises(AssertionError):
            check(block, inputs, outputs, "reconstruction", wrong, 1e-5)


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_a_mixture_of_experts_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"mixture of experts \\({kind}\\)"):
        read_mlp(bridge_of(kind, tmp_path), 1)


@pytest.mark.parametrize("block", ["gpt_neox", "llama"], indirect=True)
@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_output_sae_that_normalises(block: Block, norm: str, family: str) -> None:
    inputs, outputs = make_sae("jumprelu", 1), make_sae(family, 2, latents=23, normalize_activations=norm)
    for at in ("reconstruction", "activation"):
        assert check(block, inputs, outputs, at, sandwich_of(block, inputs, outputs, at), 1e-10) > 20


@pytest.mark.parametrize("block", ["gemma2"], indirect=True)
def test_an_output_sae_that_normalises_behind_a_norm(block: Block) -> None:
    """A rescaled norm sees nothing of the length in front of it; a centred one does, and is refused by name."""
    inputs = make_sae("jumprelu", 1)
    rescaled = make_sae("topk", 2, latents=23, normalize_activations="constant_norm_rescale")
    check(block, inputs, rescaled, "reconstruction", sandwich_of(block, inputs, rescaled), 1e-10)
    with pytest.raises(ArtifactError, match="'layer_norm', and this model's MLP has a norm of its own"):
        sandwich_of(block, inputs, make_sae("topk", 2, normalize_activations="layer_norm"))


@pytest.mark.parametrize("block", ["gpt_neox"], indirect=True)
def test_both_sides_may_normalise(block: Block) -> None:
    inputs = make_sae("standard", 5, normalize_activations="layer_norm")
    outputs = make_sae("gated", 2, latents=23, normalize_activations="layer_norm")
    check(block, inputs, outputs, "reconstruction", sandwich_of(block, inputs, outputs), 1e-10)


@pytest.mark.parametrize("block", ["gpt_neox"], indirect=True)
@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
def test_fvu_is_that_of_the_sae_as_it_is(block: Block, norm: str) -> None:
    """Where the norm was moved behind the MLP, the fit is still measured on what the model's MLP gives."""
    inputs, outputs = make_sae("standard", 1), make_sae("standard", 2, normalize_activations=norm)
    sandwich = sandwich_of(block, inputs, outputs)
    x = tokens()
    y = block.module(x).detach()
    expected = (y - outputs(y).detach()).square().sum() / (y - y.mean(0)).square().sum()
    found = measure_fvu(sandwich.inputs, *sandwich.true_output, x).fvu_out
    assert found == pytest.approx(float(expected), rel=1e-9)
    assert found != pytest.approx(measure_fvu(sandwich.inputs, sandwich.mlp, sandwich.outputs, x).fvu_out, rel=1e-3)


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("block", ["llama"], indirect=True)
def test_batch_topk_and_matryoshka_work_as_what_they_are_saved_as(block: Block, kind: str, tmp_path: Path) -> None:
    """sae_lens saves both as JumpReLU, with the threshold that training settled on for every latent."""
    saved = save_batch_topk(kind, tmp_path)
    assert saved.cfg.architecture() == "jumprelu"
    for inputs, outputs in ((saved, make_sae("topk", 2, latents=23)), (make_sae("topk", 1), saved)):
        assert check(block, inputs, outputs, "reconstruction", sandwich_of(block, inputs, outputs), 1e-10) > 10


def save_batch_topk(kind: str, folder: Path) -> Any:
    """A training SAE of sae_lens saved for inference by its own method, and loaded again."""
    from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.matryoshka_batchtopk_sae import (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
    )

    settings: dict[str, Any] = {"d_in": WIDTH, "d_sae": 17, "k": 4, "dtype": "float64", "apply_b_dec_to_input": False}
    if kind == "batchtopk":
        sae: Any = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**settings))
    else:
        sae = MatryoshkaBatchTopKTrainingSAE(
            MatryoshkaBatchTopKTrainingSAEConfig(**settings, matryoshka_widths=[5, 17])
        )
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_(0, 0.4)
        sae.topk_threshold.fill_(0.35)
    sae.save_inference_model(folder)
    return SAE.load_from_disk(folder).eval()


@pytest.mark.parametrize("kind", ["gemma2", "llama", "gpt2"])
def test_the_pre_affine_convention(kind: str, tmp_path: Path) -> None:
    """`mlp_input = "normalized"` folds in the gain, stored as it is or (Gemma) less 1; the proof notices another."""
    bridge_of(kind, tmp_path)
    config = ModelConfig(name=str(tmp_path), mlp_input="normalized")
    assert load_language_model(config, 1).prove_mlp(torch.arange(12)[None] % 40) < 1e-5


def test_a_norm_that_follows_is_not_in_front(tmp_path: Path) -> None:
    bridge_of("olmo2", tmp_path)
    load_language_model(ModelConfig(name=str(tmp_path)), 1).prove_mlp(torch.arange(12)[None] % 40)
    with pytest.raises(ModelError, match="no norm in front of its MLP"):
        load_language_model(ModelConfig(name=str(tmp_path), mlp_input="normalized"), 1)
