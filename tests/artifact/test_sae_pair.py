"""The pair's loader: sae_lens computes what the formulas say, and everything unsupported is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from jacobian_core.artifact.sae_pair import SaePair, check_pair_fits, describe_pair, load_sae_pair, model_weights_of
from jacobian_core.errors import ArtifactError
from tests.artifact.conftest import (
    LATENTS,
    OUT_LATENTS,
    OUT_WIDTH,
    WIDTH,
    K,
    published_config,
    published_tensors,
)

WritePair = Callable[..., Path]


def codes_by_hand(x: Tensor, tensors: dict[str, Tensor], suffix: str, *, centre: bool, rescale: bool = False) -> Tensor:
    """TopK of the pre-activations, then ReLU, one token at a time."""
    encoder, bias, decoder, centre_of = (tensors[f"_{name}{suffix}"] for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    pre = (x - centre_of if centre else x) @ encoder + bias
    if rescale:
        pre = pre * decoder.norm(dim=1)
    codes = torch.zeros_like(pre)
    for row in range(len(x)):
        best = sorted(range(pre.shape[1]), key=lambda latent: -float(pre[row, latent]))[:K]
        for latent in best:
            codes[row, latent] = max(0.0, float(pre[row, latent]))
    return codes


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("shift", [0.0, -5.0])
def test_the_published_format_computes_its_formulas(write_pair: WritePair, centre: bool, shift: float) -> None:
    """With a large negative bias some selected latents are clamped to 0, and some tokens have none."""
    tensors = published_tensors()
    for name in ("_b_enc", "_b_enc_out"):
        tensors[name] += shift
    pair = load_sae_pair(write_pair(tensors=tensors, apply_b_dec_to_input=centre))
    for sae, suffix, width in ((pair.input, "", WIDTH), (pair.output, "_out", OUT_WIDTH)):
        x = torch.randn(32, width, generator=torch.Generator().manual_seed(1))
        codes = codes_by_hand(x, tensors, suffix, centre=centre)
        torch.testing.assert_close(sae.encode(x), codes)
        decoded = codes @ tensors[f"_W_dec{suffix}"] + tensors[f"_b_dec{suffix}"]
        torch.testing.assert_close(sae.decode(sae.encode(x)), decoded)
        assert (codes_by_hand(x, tensors, suffix, centre=not centre) - codes).abs().max() > 0.1
        assert bool(((codes > 0).sum(1) < K).any()) == (shift < 0)


def test_what_the_pair_says_of_itself(write_pair: WritePair) -> None:
    pair = load_sae_pair(write_pair())
    assert (pair.layer, pair.hook_name) == (3, "blocks.3.ln2.hook_normalized")
    assert (pair.model_name, pair.context_tokens, pair.model_weights) == ("pythia-70m-deduped", 256, None)
    assert pair.artifact_config == published_config()
    assert (pair.input.cfg.d_in, pair.input.cfg.d_sae) == (WIDTH, LATENTS)
    assert (pair.output.cfg.d_in, pair.output.cfg.d_sae) == (OUT_WIDTH, OUT_LATENTS)
    assert pair.output.cfg.metadata.hook_name == "blocks.3.hook_mlp_out"
    for sae in (pair.input, pair.output):
        assert sae.cfg.k == K
        assert not sae.training
        for parameter in sae.parameters():
            assert parameter.dtype == torch.float32
            assert not parameter.requires_grad


def test_the_two_saes_are_not_swapped(write_pair: WritePair) -> None:
    pair = load_sae_pair(write_pair())
    tensors = published_tensors()
    assert torch.equal(pair.input.W_dec, tensors["_W_dec"])
    assert torch.equal(pair.output.W_dec, tensors["_W_dec_out"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(write_pair: WritePair, dtype: torch.dtype) -> None:
    tensors = published_tensors(dtype)
    pair = load_sae_pair(write_pair(tensors=tensors, dtype=str(dtype)))
    assert pair.input.W_enc.dtype == torch.float32
    assert pair.input.dtype == torch.float32
    assert torch.equal(pair.input.W_enc, tensors["_W_enc"].float())
    assert pair.input.encode(torch.ones(1, WIDTH)).dtype == torch.float32


def test_the_weights_survive_their_file(write_pair: WritePair) -> None:
    folder = write_pair()
    pair = load_sae_pair(folder)
    before = pair.input.W_enc.clone()
    with (folder / "sae_weights.safetensors").open("r+b") as file:
        file.truncate(0)
    assert torch.equal(pair.input.W_enc, before)


def write_two_folders(root: Path, **config: Any) -> Path:
    """The same pair as two sae_lens 6 folders."""
    tensors = published_tensors()
    for side, suffix, hook in (("in", "", "ln2.hook_normalized"), ("out", "_out", "hook_mlp_out")):
        folder = root / side
        folder.mkdir(parents=True)
        mine = {name: tensors[f"_{name}{suffix}"] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        save_file(mine, folder / "sae_weights.safetensors")
        metadata = {"sae_lens_version": "6.54.12", "hook_name": f"blocks.3.{hook}", "model_name": "m"}
        width, latents = mine["W_enc"].shape
        content = {
            "architecture": "topk", "k": K, "d_in": width, "d_sae": latents, "dtype": "float32", "metadata": metadata,
            "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none", **config,
        }  # fmt: skip
        (folder / "cfg.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("rescale", [False, True])
def test_two_sae_lens_folders(tmp_path: Path, rescale: bool) -> None:
    pair = load_sae_pair(write_two_folders(tmp_path / "pair", rescale_acts_by_decoder_norm=rescale))
    assert (pair.layer, pair.hook_name, pair.model_name) == (3, "blocks.3.ln2.hook_normalized", "m")
    x = torch.randn(16, OUT_WIDTH, generator=torch.Generator().manual_seed(2))
    by_hand = codes_by_hand(x, published_tensors(), "_out", centre=True, rescale=rescale)
    other = codes_by_hand(x, published_tensors(), "_out", centre=True, rescale=not rescale)
    torch.testing.assert_close(pair.output.encode(x), by_hand)
    assert (other - by_hand).abs().max() > 0.1


def test_folders_that_sae_lens_wrote_itself(write_pair: WritePair, tmp_path: Path) -> None:
    published = load_sae_pair(write_pair())
    published.input.save_model(tmp_path / "saved/in")
    published.output.save_model(tmp_path / "saved/out")
    pair = load_sae_pair(tmp_path / "saved")
    x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(3))
    assert torch.equal(pair.input.encode(x), published.input.encode(x))
    assert pair.input.cfg.apply_b_dec_to_input is False


def test_two_folders_of_different_layers_are_refused(tmp_path: Path) -> None:
    root = write_two_folders(tmp_path / "pair")
    content = json.loads((root / "out/cfg.json").read_text())
    content["metadata"]["hook_name"] = "blocks.4.hook_mlp_out"
    (root / "out/cfg.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"is on layer 3, .*out/cfg\.json on layer 4"):
        load_sae_pair(root)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another activation": ({"activation_fn_str": "relu"}, r'activation_fn_str = "relu" is not supported'),
    "another architecture": ({"architecture": "jumprelu"}, r'architecture = "jumprelu" is not supported'),
    "abs topk": ({"architecture": "abstopk", "activation_fn_str": None}, r'architecture = "abstopk"'),
    "no activation": ({"activation_fn_str": None}, "names no TopK activation"),
    "no k": ({"activation_fn_kwargs": {}}, "says nothing of k"),
    "no kwargs": ({"activation_fn_kwargs": None}, "says nothing of k"),
    "k of zero": ({"activation_fn_kwargs": {"k": 0}}, r"activation_fn_kwargs\.k = 0"),
    "k a fraction": ({"activation_fn_kwargs": {"k": 3.0}}, r"activation_fn_kwargs\.k = 3\.0"),
    "k a truth": ({"activation_fn_kwargs": {"k": True}}, r"activation_fn_kwargs\.k = true"),
    "two k": ({"k": 7}, "two different k"),
    "k beyond the latents": ({"activation_fn_kwargs": {"k": 15}}, r"k = 15, .* only 14 latents \(_W_enc_out\)"),
    "layer norm": ({"normalize_activations": "layer_norm"}, r'normalize_activations = "layer_norm"'),
    "expected average": ({"normalize_activations": "expected_average_only_in"}, "normalize_activations"),
    "legacy normalisation": ({"normalize_activations": True}, "normalize_activations = true"),
    "zero is not none": ({"normalize_activations": 0}, "normalize_activations = 0"),
    "finetuning factor": ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor = true"),
    "reshaping": ({"reshape_activations": "hook_z"}, "reshape_activations"),
    "attention head": ({"hook_head_index": 0}, "hook_head_index = 0"),
    "odd truth": ({"apply_b_dec_to_input": "False"}, r'apply_b_dec_to_input = "False"'),
    "no hook": ({"hook_name": None}, "has no hook_name"),
    "no layer": ({"hook_name": "mlp_in", "hook_layer": None}, "names a layer"),
    "layers disagree": ({"hook_layer": 4}, r"hook_layer = 4, .* is on layer 3"),
    "layer a text": ({"hook_layer": "3"}, r'hook_layer = "3"'),
    "negative layer": ({"hook_layer": -1}, "hook_layer = -1"),
    "another width": ({"d_in": 7}, r"d_in = 7, .* _W_enc of shape \(6, 20\)"),
    "another number of latents": ({"d_sae": 21}, "d_sae = 21"),
    "odd context": ({"context_size": -1}, "context_size = -1"),
    "odd model": ({"model_name": 5}, "model_name = 5"),
    "odd version": ({"sae_lens_version": "six"}, "sae_lens can't read it"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations_that_are_refused(write_pair: WritePair, case: str) -> None:
    changes, expected = CONFIGS[case]
    with pytest.raises(ArtifactError, match=expected) as raised:
        load_sae_pair(write_pair(**changes))
    assert "cfg.json" in raised.value.problem
    assert raised.value.remedy


@pytest.mark.parametrize(
    "changes",
    [
        {"hook_layer": None},
        {"hook_name": None, "hook_point": "blocks.3.mlp.hook_in"},
        {"hook_name": "transformer.h.mlp"},
        {"activation_fn_str": None, "activation_fn": "topk"},
        {"architecture": None},
        {"normalize_activations": None},
        {"normalize_activations": False},
        {"d_in": None, "d_sae": None},
        {"use_jacobian_loss": None, "is_pair": True},
        {"an_unknown_key": {"of": "no meaning"}},
    ],
)
def test_spellings_that_are_read(write_pair: WritePair, changes: dict[str, Any]) -> None:
    pair = load_sae_pair(write_pair(**changes))
    assert (pair.layer, pair.input.cfg.k, pair.output.cfg.k) == (3, K, K)


def with_value(name: str, value: float) -> Tensor:
    tensor = published_tensors()[name]
    tensor.view(-1)[:2] = value
    return tensor


TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "a nan": ({"_W_dec": with_value("_W_dec", float("nan"))}, r"_W_dec has 2 values of 120 that are not finite"),
    "infinite": ({"_b_enc_out": with_value("_b_enc_out", float("inf"))}, r"_b_enc_out has 2 values of 14"),
    "too large": ({"_W_enc": torch.full((WIDTH, LATENTS), 1e300, dtype=torch.float64)}, "_W_enc has 120 values"),
    "integers": ({"_b_dec": torch.zeros(WIDTH, dtype=torch.int64)}, "_b_dec is int64"),
    "transposed": ({"_W_dec": torch.zeros(WIDTH, LATENTS)}, r"_W_dec has shape \(6, 20\), expected \(20, 6\)"),
    "a vector": ({"_W_enc_out": torch.zeros(5)}, r"_W_enc_out has shape \(5,\)"),
    "nothing in it": ({"_W_enc": torch.zeros(WIDTH, 0)}, r"_W_enc has shape \(6, 0\)"),
    "a short bias": ({"_b_enc_out": torch.zeros(3)}, r"_b_enc_out has shape \(3,\), expected \(14,\)"),
    "a short centre": ({"_b_dec": torch.zeros(2)}, r"_b_dec has shape \(2,\), expected \(6,\)"),
    "one missing": ({"_b_dec_out": None}, "has no tensor _b_dec_out"),
    "one SAE": ({f"_{n}_out": None for n in ("W_enc", "b_enc", "W_dec", "b_dec")}, "holds one SAE, not a pair"),
    "one too many": ({"_threshold": torch.zeros(3)}, "tensors that a TopK pair does not have: _threshold"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_refused(write_pair: WritePair, case: str) -> None:
    tensors, expected = TENSORS[case]
    with pytest.raises(ArtifactError, match=expected) as raised:
        load_sae_pair(write_pair(tensors=tensors))
    assert "sae_weights.safetensors" in raised.value.problem


def test_a_zero_decoder_row_is_refused_only_where_it_divides(write_pair: WritePair) -> None:
    tensors = {"_W_dec": with_value("_W_dec", 0.0)}
    tensors["_W_dec"][0] = 0.0
    load_sae_pair(write_pair("plain", tensors=tensors))
    with pytest.raises(ArtifactError, match="1 rows of _W_dec are zero"):
        load_sae_pair(write_pair("rescaled", tensors=tensors, rescale_acts_by_decoder_norm=True))


@pytest.mark.parametrize(
    ("name", "body", "expected"),
    [
        ("cfg.json", b"{", "is not readable JSON"),
        ("cfg.json", b"\xff\xfe", "is not readable JSON"),
        ("cfg.json", b"[]", "holds a list"),
        ("cfg.json", None, r"cfg\.json is missing"),
        ("sae_weights.safetensors", b"", "is damaged or not safetensors"),
        ("sae_weights.safetensors", b"PK\x03\x04 a pickle", "is damaged or not safetensors"),
        ("sae_weights.safetensors", None, r"sae_weights\.safetensors is missing"),
    ],
)
def test_damaged_files_are_named(write_pair: WritePair, name: str, body: bytes | None, expected: str) -> None:
    folder = write_pair()
    if body is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(body)
    with pytest.raises(ArtifactError, match=expected):
        load_sae_pair(folder)


def test_a_truncated_weights_file_is_refused(write_pair: WritePair) -> None:
    folder = write_pair()
    path = folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match="is damaged or not safetensors"):
        load_sae_pair(folder)


def test_weights_only_as_a_pickle_are_refused(write_pair: WritePair) -> None:
    folder = write_pair()
    (folder / "sae_weights.safetensors").rename(folder / "sae_weights.pt")
    with pytest.raises(ArtifactError, match=r"Convert sae_weights\.pt to \.safetensors: pickles can run code"):
        load_sae_pair(folder)


def test_a_folder_without_a_pair(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="There is no folder"):
        load_sae_pair(tmp_path / "gone")
    with pytest.raises(ArtifactError, match="holds no SAE pair"):
        load_sae_pair(tmp_path)


def test_the_models_own_weights(write_pair: WritePair) -> None:
    folder = write_pair()
    (folder / "sparsity.safetensors").write_bytes(b"not a model")
    assert load_sae_pair(folder).model_weights is None
    with pytest.raises(ArtifactError, match="holds no language model's weights"):
        model_weights_of(folder)
    (folder / "artifact.json").write_text(json.dumps({"left_out": ["llm.pt"]}))
    with pytest.raises(ArtifactError, match=r"Convert llm\.pt"):
        model_weights_of(folder)
    save_file({"embed.W_E": torch.zeros(2, 2)}, folder / "llm.safetensors")
    assert load_sae_pair(folder).model_weights == model_weights_of(folder) == folder / "llm.safetensors"
    save_file({"embed.W_E": torch.zeros(2, 2)}, folder / "other.safetensors")
    assert load_sae_pair(folder).model_weights is None
    with pytest.raises(ArtifactError, match=r"2 files .* llm\.safetensors, other\.safetensors"):
        model_weights_of(folder)


@pytest.fixture
def pair(write_pair: WritePair) -> SaePair:
    return load_sae_pair(write_pair())


def test_a_pair_that_fits(pair: SaePair) -> None:
    check_pair_fits(pair, WIDTH, OUT_WIDTH, 4)


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        (
            (8, OUT_WIDTH, 6),
            r"sae_weights\.safetensors: _W_enc has shape \(6, 20\), expected \(8, 20\): the MLP's input",
        ),
        ((WIDTH, 9, 6), r"_W_enc_out has shape \(5, 14\), expected \(9, 14\): the MLP's output has 9"),
        ((WIDTH, OUT_WIDTH, 3), r"on layer 3 .* layers 0 to 2"),
    ],
)
def test_a_pair_that_does_not_fit_says_where(pair: SaePair, widths: tuple[int, int, int], expected: str) -> None:
    with pytest.raises(ArtifactError, match=expected) as raised:
        check_pair_fits(pair, *widths)
    assert "pythia-70m-deduped" in raised.value.remedy


FAMILIES = ("standard", "topk", "jumprelu", "gated")


def save_apart(root: Path, families: tuple[str, str], **input_settings: Any) -> list[Any]:
    """Two SAEs of the given families as sae_lens itself saves them, in `in/` and `out/`."""
    from tests.numerics.test_families import make_sae

    saes = [make_sae(families[0], 1, **input_settings).float(), make_sae(families[1], 2, latents=23).float()]
    for side, sae, hook in zip(("in", "out"), saes, ("mlp.hook_in", "hook_mlp_out"), strict=True):
        sae.cfg.dtype = "float32"
        sae.dtype = torch.float32
        sae.cfg.metadata.hook_name = f"blocks.3.{hook}"
        sae.save_model(root / side)
    return saes


@pytest.mark.parametrize("family", FAMILIES)
def test_two_folders_of_different_families(tmp_path: Path, family: str) -> None:
    families = (family, FAMILIES[(FAMILIES.index(family) + 1) % 4])
    saved = save_apart(tmp_path, families)
    pair = load_sae_pair(tmp_path)
    x = torch.randn(9, saved[0].cfg.d_in, generator=torch.Generator().manual_seed(0))
    for before, after in zip(saved, (pair.input, pair.output), strict=True):
        assert torch.equal(before.encode(x), after.encode(x))
        assert not torch.equal(before.encode(x), after.encode(x + 0.1))
    assert (describe_pair(tmp_path).n_in_latents, describe_pair(tmp_path).n_out_latents) == (17, 23)


def test_saes_apart_may_normalise(tmp_path: Path) -> None:
    saved = save_apart(tmp_path, ("standard", "topk"), normalize_activations="layer_norm")
    x = torch.randn(9, saved[0].cfg.d_in, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_sae_pair(tmp_path).input.encode(x), saved[0].encode(x))
    path = tmp_path / "out" / "cfg.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"normalize_activations": "layer_norm"}))
    assert load_sae_pair(tmp_path).output.cfg.normalize_activations == "layer_norm"
    path.write_text(json.dumps(config | {"normalize_activations": "covariance_whitening"}))
    with pytest.raises(ArtifactError, match=r'out/cfg.json: normalize_activations = "covariance_whitening"'):
        load_sae_pair(tmp_path)
    path.write_text(json.dumps(config | {"normalize_activations": True}))
    with pytest.raises(ArtifactError, match="by which factor is not known"):
        load_sae_pair(tmp_path)


@pytest.mark.parametrize("family", ["transcoder", "temporal", "matching_pursuit", "abstopk"])
def test_other_families_are_refused_by_name(tmp_path: Path, family: str) -> None:
    save_apart(tmp_path, ("standard", "topk"))
    path = tmp_path / "in" / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architecture": family}))
    with pytest.raises(ArtifactError, match=f'architecture = "{family}" is not supported'):
        load_sae_pair(tmp_path)


def test_tensors_of_another_family_are_refused(tmp_path: Path) -> None:
    save_apart(tmp_path, ("jumprelu", "topk"))
    path = tmp_path / "in" / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architecture": "standard"}))
    with pytest.raises(ArtifactError, match="tensors that a standard SAE does not have: threshold"):
        load_sae_pair(tmp_path)
