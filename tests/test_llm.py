"""The language model up to one MLP: conventions, padding, weights from elsewhere, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jacobian_core.config import ModelConfig
from jacobian_core.errors import ModelError
from jacobian_core.model.llm import LanguageModel, load_language_model
from jacobian_core.model.llm_identity import model_digest
from tests.tiny import D_MODEL, LAYER


def ids(rows: int = 3, width: int = 20) -> torch.Tensor:
    return torch.randint(1, 300, (rows, width), generator=torch.Generator().manual_seed(1))


def load(tiny: Path, **fields: object) -> LanguageModel:
    return load_language_model(ModelConfig.model_validate({"name": str(tiny / "model"), **fields}), LAYER)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("mlp_input", ["hook_in", "normalized"])
def test_the_formula_is_the_module(tiny: Path, mlp_input: str, dtype: str) -> None:
    model = load(tiny, mlp_input=mlp_input, dtype=dtype)
    assert model.prove_mlp(ids()) < {"float32": 1e-6, "float64": 1e-14, "bfloat16": 0.05}[dtype]


def test_the_two_conventions_differ_and_fit_only_their_own_weights(tiny: Path) -> None:
    """DESIGN trap 2: each input with the other's weights is not the module."""
    true, normalized = load(tiny), load(tiny, mlp_input="normalized")
    real = torch.ones_like(ids(), dtype=torch.bool)
    assert not torch.allclose(true.mlp_inputs(ids(), real), normalized.mlp_inputs(ids(), real), atol=0.01)
    crossed = LanguageModel(true.bridge, LAYER, normalized.mlp, true.hook, true.device)
    with pytest.raises(ModelError, match="is not what its weights say"):
        crossed.prove_mlp(ids())


def test_the_true_input_is_what_enters_the_hugging_face_module(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(tiny / "model", dtype=torch.float64)
    seen: list[torch.Tensor] = []
    module.gpt_neox.layers[LAYER].mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module(ids())
    found = load(tiny, dtype="float64").mlp_inputs(ids(), torch.ones_like(ids(), dtype=torch.bool))
    torch.testing.assert_close(found, seen[0].detach(), rtol=1e-12, atol=1e-12)


def test_right_padding_changes_nothing_before_it(tiny: Path) -> None:
    model = load(tiny, dtype="float64")
    real = torch.ones_like(ids(), dtype=torch.bool)
    padded, mask = ids(), real.clone()
    padded[1, 12:], mask[1, 12:] = 0, False
    whole, cut = model.mlp_inputs(ids(), real), model.mlp_inputs(padded, mask)
    torch.testing.assert_close(cut[mask], whole[mask], rtol=1e-12, atol=1e-12)


def test_randomised_weights_keep_each_tensors_scale(tiny: Path) -> None:
    own, first, again, other = (
        load(tiny),
        load(tiny, weights="randomised"),
        load(tiny, weights="randomised"),
        load(tiny, weights="randomised", randomise_seed=1),
    )
    assert torch.equal(first.mlp.W_in, again.mlp.W_in)
    assert not torch.equal(first.mlp.W_in, other.mlp.W_in)
    assert float(first.mlp.W_in.std()) == pytest.approx(float(own.mlp.W_in.std()), rel=0.05)
    assert first.prove_mlp(ids()) < 1e-6


def transformer_lens_state(tiny: Path, fold_ln: bool) -> dict[str, torch.Tensor]:
    """The model's weights as TransformerLens itself converts them."""
    import transformer_lens.loading_from_pretrained as loading
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(tiny / "model", dtype=torch.float32)
    config = loading.get_pretrained_model_config(str(tiny / "model"), fold_ln=fold_ln, device="cpu")
    state = loading.get_pretrained_state_dict(str(tiny / "model"), config, module, dtype=torch.float32)
    return {name: tensor.contiguous().clone() for name, tensor in state.items()}


@pytest.mark.parametrize("layout", ["huggingface", "transformer_lens"])
def test_weights_beside_the_pair(tiny: Path, tmp_path: Path, layout: str) -> None:
    path = tmp_path / "llm.safetensors"
    state = load_file(tiny / "model" / "model.safetensors")
    save_file(state if layout == "huggingface" else transformer_lens_state(tiny, fold_ln=False), path)
    config = ModelConfig(name=str(tiny / "model"), weights="artifact")
    found = load_language_model(config, LAYER, artifact_weights=path)
    real = torch.ones_like(ids(), dtype=torch.bool)
    torch.testing.assert_close(found.mlp_inputs(ids(), real), load(tiny).mlp_inputs(ids(), real), rtol=1e-5, atol=1e-5)
    state["gpt_neox.layers.0.attention.dense.weight"] = state["gpt_neox.layers.0.attention.dense.weight"].flip(0)
    save_file(state, path)
    other = load_language_model(config, LAYER, artifact_weights=path)
    assert not torch.allclose(other.mlp_inputs(ids(), real), found.mlp_inputs(ids(), real), atol=1e-3)


def test_bad_weights_beside_the_pair_are_refused(tiny: Path, tmp_path: Path) -> None:
    config, path = ModelConfig(name=str(tiny / "model"), weights="artifact"), tmp_path / "llm.safetensors"
    state = load_file(tiny / "model" / "model.safetensors")
    name = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
    for change, message in (
        ({name: torch.zeros(3, D_MODEL)}, f"another shape for {name}"),
        ({name: torch.full_like(state[name], float("nan"))}, f"{name} is not finite"),
    ):
        save_file(state | change, path)
        with pytest.raises(ModelError, match=message):
            load_language_model(config, LAYER, artifact_weights=path)
    save_file({n: t for n, t in state.items() if n != name}, path)
    with pytest.raises(ModelError, match=f"misses {name}"):
        load_language_model(config, LAYER, artifact_weights=path)
    with pytest.raises(ModelError, match="carries no language-model weights"):
        load_language_model(config, LAYER)


def test_models_that_can_not_be_used_are_refused(tiny: Path, tiny_copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no layer 9"):
        load_language_model(ModelConfig(name=str(tiny / "model")), 9)
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_language_model(ModelConfig(name=str(tmp_path)), 0)
    settings = json.loads((tiny_copy / "model/config.json").read_text())
    (tiny_copy / "model/config.json").write_text(json.dumps(settings | {"hidden_act": "mish"}))
    with pytest.raises(ModelError, match="'mish' is not supported"):
        load_language_model(ModelConfig(name=str(tiny_copy / "model")), LAYER)
    (tiny_copy / "model/model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \.safetensors"):
        model_digest(ModelConfig(name=str(tiny_copy / "model")))


def test_a_pair_on_the_wrong_input_is_refused_with_the_other_convention(tiny: Path, tmp_path: Path) -> None:
    from tests.tiny import run_pipeline, tiny_config

    config = tiny_config(tiny, tmp_path / "lake", quality={"max_fvu_in": 1e-6})
    with pytest.raises(ModelError, match=r"FVU .*model\.mlp_input=normalized"):
        run_pipeline(config)
