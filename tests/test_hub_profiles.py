"""The profiles for machines with a hub, whole, on models and releases in miniature.

Names, layouts and loaders are the real ones; only sizes and text are small, and the models are local folders.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jacobian_core.lake.layout import Lake
from jacobian_core.profiles import load_config
from jacobian_core.sql.warehouse import connect
from tests import tiny
from tests.artifact import pretrained as made
from tests.artifact.conftest import no_accounts  # noqa: F401
from tests.stand_ins.hub_server import ModelRepository, serve_models

pytestmark = pytest.mark.usefixtures("no_accounts")
WIDTH, LATENTS, LAYERS = tiny.D_MODEL, 40, 16
SMALL = ["corpus.source=folder", "corpus.context_tokens=48", "corpus.max_tokens=300", "corpus.shards=['*.jsonl.zst']",
         "quality.fvu_tokens=200", "quality.max_fvu_in=1e6", "quality.max_fvu_out=1e6"]  # fmt: skip


def save_model(root: Path, kind: str) -> None:
    """A random model of the profile's architecture, deep enough for its layer, with a tokenizer."""
    import transformers as hf

    tiny.make_corpus(root / "corpus", documents=12)
    tiny.make_model(root / "model", root / "corpus")
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 40,
        "vocab_size": 320, "max_position_embeddings": tiny.CONTEXT, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    grouped = sizes | {"num_key_value_heads": 1, "head_dim": 12, "pad_token_id": 0}
    configs: dict[str, Callable[[], Any]] = {
        "gemma-scope": lambda: hf.Gemma2Config(**grouped),
        "llama-scope": lambda: hf.LlamaConfig(**grouped),
        "pythia-410m": lambda: hf.GPTNeoXConfig(**sizes),
    }
    hf.set_seed(0)
    model = hf.AutoModelForCausalLM.from_config(configs[kind]())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += (0.3 if "norm" in name else 0.1) * torch.randn_like(parameter)
    model.save_pretrained(root / "model")


def save_pair(folder: Path, layer: int) -> None:
    """A published pair, as `train-pair` writes it, on another layer."""
    tiny.make_pair(folder)
    path = folder / "cfg.json"
    changed = {"hook_name": f"blocks.{layer}.ln2.hook_normalized", "hook_layer": layer}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def shrink(monkeypatch: pytest.MonkeyPatch, release: str, **sizes: int) -> None:
    """Gemma Scope's widths follow from names; sae_lens's directory can override them, which makes the fixture small."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    monkeypatch.setattr(get_pretrained_saes_directory()[release], "config_overrides", sizes)


def run(profile: str, root: Path, *overrides: str) -> tuple[Lake, str]:
    settings = [f"model.name={root}/model", f"corpus.location={root}/corpus", *SMALL, *overrides]
    config = load_config(profile, settings, str(root / "lake"))
    found = tiny.run_pipeline(config)
    return Lake.open(root / "lake"), found.run_id


def rows(lake: tuple[Lake, str], sql: str) -> list[tuple[Any, ...]]:
    with connect(lake[0], [lake[1]]) as connection:
        return connection.execute(sql).fetchall()


def test_gemma_scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path, "gemma-scope")
    transcoder, output = made.tensors(WIDTH, LATENTS, 1), made.tensors(WIDTH, LATENTS, 2)
    made.gemma_scope(tmp_path / "hub/t/layer_12/width_16k/average_l0_6", transcoder)
    made.gemma_scope(tmp_path / "hub/o/layer_12/width_16k/average_l0_108", output)
    shrink(monkeypatch, "gemma-scope-2b-pt-transcoders", d_in=WIDTH, d_out=WIDTH, d_sae=LATENTS)
    shrink(monkeypatch, "gemma-scope-2b-pt-mlp-canonical", d_in=WIDTH, d_sae=LATENTS)
    repositories = {
        "google/gemma-scope-2b-pt-transcoders": ModelRepository(tmp_path / "hub/t"),
        "google/gemma-scope-2b-pt-mlp": ModelRepository(tmp_path / "hub/o"),
    }
    monkeypatch.setenv("JACOBIAN_FLOWS_CACHE", str(tmp_path / "cache"))
    with serve_models(repositories) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        lake = run("gemma-scope", tmp_path)
    manifest = lake[0].manifest(lake[1])
    assert manifest is not None
    assert "transcoder release:gemma-scope-2b-pt-transcoders/layer_12/" in str(manifest.artifact["locator"])
    assert rows(lake, "SELECT layer, n_in_latents, n_out_latents, mlp_input FROM runs") == [
        (12, LATENTS, LATENTS, "normalized")
    ]
    assert rows(lake, "SELECT count(*) > 500 FROM transcoder_effects") == [(True,)]


def test_llama_scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path, "llama-scope")
    save_pair(tmp_path / "pairs", 15)
    sae = made.tensors(WIDTH, LATENTS, 2)
    made.llama_scope(tmp_path / "hub/Llama3_1-8B-Base-L15M-8x", sae, "blocks.15.hook_mlp_out", 2.0, 0.01)
    monkeypatch.setenv("JACOBIAN_FLOWS_CACHE", str(tmp_path / "cache"))
    with serve_models({"fnlp/Llama3_1-8B-Base-LXM-8x": ModelRepository(tmp_path / "hub")}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        lake = run("llama-scope", tmp_path, f"sae.input.location={tmp_path}/pairs", "interventions.token_share=0.5")
    assert rows(lake, "SELECT layer, n_in_latents, n_out_latents FROM runs") == [(15, 96, LATENTS)]
    assert rows(lake, "SELECT count(*) > 500 FROM jacobian_entries WHERE second_derivative IS NOT NULL") == [(True,)]
    assert rows(lake, "SELECT count(*) > 20 FROM interventions") == [(True,)]


def test_pythia_410m(tmp_path: Path) -> None:
    save_model(tmp_path, "pythia-410m")
    save_pair(tmp_path / "pairs", 15)
    lake = run("pythia-410m", tmp_path, f"sae.location={tmp_path}/pairs", "interventions.token_share=0.5")
    assert rows(lake, "SELECT layer, n_in_latents, n_out_latents FROM runs") == [(15, 96, 80)]
    assert rows(lake, "SELECT count(*) > 20 FROM interventions") == [(True,)]
