"""The quick forward pass gives the bridge's MLP input, on every architecture, and is not used where it would not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jacobian_core.config import ModelConfig
from jacobian_core.errors import ModelError
from jacobian_core.model.forward import PlainModule, Probe, checked_forward
from jacobian_core.model.llm import LanguageModel, load_language_model
from tests.numerics.test_families import bridge_of

KINDS = {"gpt_neox": "float64", "gpt2": "float64"} | dict.fromkeys(
    ["llama", "qwen2", "gemma2", "gemma3_text"], "float32"
)
"""Precision of each kind: RMSNorm computes in float32 in one implementation and not in the other."""


def load(kind: str, folder: Path) -> LanguageModel:
    bridge_of(kind, folder)
    return load_language_model(ModelConfig(name=str(folder), dtype=KINDS[kind]), layer=1)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_used_and_equals_the_bridge(kind: str, tmp_path: Path) -> None:
    """The two attentions add in another order: some ten roundings of the largest value."""
    model = load(kind, tmp_path)
    assert model.forward is not None
    ids = torch.randint(0, 40, (3, 11), generator=torch.Generator().manual_seed(0))
    real = torch.ones_like(ids, dtype=torch.bool)
    real[1, 4:], real[2, 9:] = False, False
    quick, slow = (m.mlp_inputs(ids, real)[real] for m in (model, replace(model, forward=None)))
    atol = {"float64": 1e-14, "float32": 1e-5}[KINDS[kind]]
    torch.testing.assert_close(quick, slow, rtol=0, atol=atol * float(slow.abs().max()))
    assert (quick - slow.roll(1, 0)).abs().max() > 0.01 * slow.abs().max(), "the comparison would notice"


def test_no_second_copy_of_the_weights(tmp_path: Path) -> None:
    model = load("llama", tmp_path)
    assert model.forward is not None
    mine = {tensor.data_ptr() for tensor in model.forward.module.parameters()}
    bridged = {tensor.data_ptr() for tensor in model.bridge.original_model.parameters()}
    assert mine <= bridged


def test_another_value_at_the_hook_is_refused(tmp_path: Path) -> None:
    """What differs from the bridge by more than rounding is not used."""
    from transformers import AutoModelForCausalLM

    bridge_of("gpt2", tmp_path)
    module = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    plain = PlainModule.beside(module)
    model = load_language_model(ModelConfig(name=str(tmp_path), dtype="float64"), layer=1)
    ids = torch.arange(8)[None]
    real = torch.ones_like(ids, dtype=torch.bool)
    block = model.bridge.blocks[1]
    names = {id(block.mlp.original_component): "transformer.h.1.mlp", id(block.original_component): "transformer.h.1"}
    plain = replace(plain, names=names)
    right = model.mlp_inputs(ids, real)
    assert checked_forward(plain, block, Probe(ids, real, right)) is not None
    assert checked_forward(plain, block, Probe(ids, real, right * 1.001)) is None


def test_a_block_of_another_build_is_refused(tmp_path: Path) -> None:
    """OPT's layers call their projections without an MLP module: no hook fires where the MLP's input would be."""
    bridge_of("opt", tmp_path)
    with pytest.raises(ModelError, match=r"nothing passed blocks\.1\.mlp\.hook_in while this opt model ran"):
        load_language_model(ModelConfig(name=str(tmp_path)), layer=1)
