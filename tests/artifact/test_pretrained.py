"""SAEs by release and id, end to end: sae_lens's own loaders over files from a local stand-in for the hub.

The repositories have the names, layouts and file formats of the real releases; only their tensors are small.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jacobian_core.artifact.fetch import fetch_artifact
from jacobian_core.artifact.files import Artifact
from jacobian_core.artifact.pretrained import PICKLE_LOADERS, fetch_pretrained
from jacobian_core.artifact.sae_pair import describe_pair, load_sae_pair
from jacobian_core.artifact.sae_side import load_side
from jacobian_core.config import SaeConfig, SaePartConfig
from jacobian_core.errors import ArtifactError, ConfigError
from tests.artifact import pretrained as made
from tests.artifact.test_sae_pair import save_apart
from tests.stand_ins.hub_dataset_server import COMMIT, Hub
from tests.stand_ins.hub_server import ModelRepository, serve_models

pytestmark = pytest.mark.usefixtures("no_accounts")
WIDTH, LATENTS = 24, 40
LLAMA = {"release": "llama_scope_lxm_8x", "id": "l1m_8x"}
LLAMA_NORM, LLAMA_THRESHOLD = 0.0679, 0.4
GEMMA_2 = {"release": "gemma-scope-2-1b-pt-mlp", "id": "layer_13_width_16k_l0_big"}
GEMMA = {"release": "tiny-gemma-scope-2b-pt-mlp", "id": "layer_1/width_16k/canonical"}
LATER = "b" * 40


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return made.tensors(WIDTH, LATENTS)


@pytest.fixture
def repositories(tmp_path: Path, weights: dict[str, Tensor]) -> dict[str, ModelRepository]:
    root = tmp_path / "hub"
    made.llama_scope(
        root / "llama/Llama3_1-8B-Base-L1M-8x", weights, "blocks.1.hook_mlp_out", LLAMA_NORM, LLAMA_THRESHOLD
    )
    made.gemma_scope_2(
        root / "gemma2/mlp_out/layer_13_width_16k_l0_big", weights,
        {"model_name": "gemma-v3-1b-pt", "hf_hook_point_in": "model.layers.13.post_feedforward_layernorm.output"},
    )  # fmt: skip
    made.gemma_scope(root / "gemma/layer_1/width_16k/average_l0_9", weights)
    return {
        "fnlp/Llama3_1-8B-Base-LXM-8x": ModelRepository(root / "llama", revisions=("main", LATER)),
        "google/gemma-scope-2-1b-pt": ModelRepository(root / "gemma2"),
        "google/gemma-scope-2b-pt-mlp": ModelRepository(root / "gemma"),
    }


@pytest.fixture
def hub(
    repositories: dict[str, ModelRepository], monkeypatch: pytest.MonkeyPatch, tiny_gemma_release: None
) -> Iterator[Hub]:
    with serve_models(repositories) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def tiny_gemma_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma Scope's widths follow from its names; a release of the same repository with smaller ones, for sae_lens."""
    from sae_lens.loading.pretrained_saes_directory import PretrainedSAELookup, get_pretrained_saes_directory

    lookup = PretrainedSAELookup(
        release=GEMMA["release"], repo_id="google/gemma-scope-2b-pt-mlp", model="gemma-2-2b", conversion_func="gemma_2",
        saes_map={GEMMA["id"]: "layer_1/width_16k/average_l0_9"}, expected_var_explained={}, expected_l0={},
        neuronpedia_id={}, norm_scaling_factor={}, config_overrides={"d_in": WIDTH, "d_sae": LATENTS},  # type: ignore[dict-item]
    )  # fmt: skip
    monkeypatch.setitem(get_pretrained_saes_directory(), GEMMA["release"], lookup)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def fetch(cache: Path, part: dict[str, str], **more: Any) -> Artifact:
    return fetch_pretrained(SaePartConfig.model_validate({"source": "release", **part, **more}), cache)


def by_hand(x: Tensor, w: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """JumpReLU codes and their reconstruction from the raw weights."""
    pre = x @ w["W_enc"] + w["b_enc"]
    codes = torch.relu(pre) * (pre > w["threshold"])
    return codes, codes @ w["W_dec"] + w["b_dec"]


def scaled(w: dict[str, Tensor]) -> dict[str, Tensor]:
    """Llama Scope's weights with the factor of its activations folded in, as sae_lens documents it for this release."""
    factor = 72.1762114537445
    own = WIDTH**0.5 / LLAMA_NORM
    rounded = {key: tensor.to(torch.bfloat16).float() for key, tensor in w.items()}
    threshold = torch.full((LATENTS,), LLAMA_THRESHOLD * own)
    return {
        "W_enc": rounded["W_enc"] * factor, "b_enc": rounded["b_enc"], "W_dec": rounded["W_dec"] / factor,
        "b_dec": rounded["b_dec"] / factor, "threshold": threshold,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("part", "form"),
    [(GEMMA, dict), (GEMMA_2, dict), (LLAMA, scaled)],
    ids=["gemma_2: npz", "gemma_3: safetensors", "llama_scope: bfloat16, scaled"],
)
def test_a_release_s_sae_computes_its_formula(
    hub: Hub, cache: Path, weights: dict[str, Tensor], part: dict[str, str], form: Callable[..., dict[str, Tensor]]
) -> None:
    artifact = fetch(cache, part)
    loaded = load_side(artifact.folder, "out", "cpu")
    x = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(1))
    codes, decoded = by_hand(x, form(weights))
    assert 0.1 < float((codes > 0).float().mean()) < 0.9
    torch.testing.assert_close(loaded.sae.encode(x), codes, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(loaded.sae.decode(loaded.sae.encode(x)), decoded, rtol=1e-5, atol=1e-4)
    assert loaded.settings.layer == (13 if part is GEMMA_2 else 1)
    assert loaded.sae.cfg.normalize_activations == "none"


def test_it_is_fetched_once_verified_and_needs_no_network_again(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fetch(cache, LLAMA)
    assert first.locator == f"release:llama_scope_lxm_8x/l1m_8x@{COMMIT}"
    record = json.loads((first.folder / "artifact.json").read_text())
    assert set(record["origin"]["files"]) == {
        "Llama3_1-8B-Base-L1M-8x/hyperparams.json", "Llama3_1-8B-Base-L1M-8x/checkpoints/final.safetensors",
    }  # fmt: skip
    assert record["origin"]["loader"] == "llama_scope"
    assert record["files"] == first.files
    before = len(hub.requests)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch(cache, LLAMA) == first
    assert fetch(cache, LLAMA, revision=COMMIT) == first
    assert len(hub.requests) == before
    with pytest.raises(ArtifactError, match="no answer from the hub"):
        fetch(cache, LLAMA, revision="main")
    (first.folder / "cfg.json").write_text("{}")
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert fetch(cache, LLAMA) == first


def test_the_digest_is_of_the_content_not_of_the_commit(
    hub: Hub, cache: Path, tmp_path: Path, repositories: dict[str, ModelRepository]
) -> None:
    first = fetch(cache, LLAMA)
    repositories["fnlp/Llama3_1-8B-Base-LXM-8x"].commit = LATER
    later = fetch(tmp_path / "elsewhere", LLAMA)
    assert later.locator.endswith(LATER)
    assert later.digest == first.digest


def test_a_body_damaged_twice_reaches_no_loader(
    hub: Hub, cache: Path, repositories: dict[str, ModelRepository]
) -> None:
    repositories["fnlp/Llama3_1-8B-Base-LXM-8x"].corrupt_bodies = 2
    with pytest.raises(ArtifactError, match=r"hyperparams\.json of .* arrived damaged 2 times"):
        fetch(cache, LLAMA)
    assert list((cache / "pretrained").iterdir()) == []


def test_a_repository_without_a_release_is_read_by_a_loader_s_name(
    hub: Hub, cache: Path, weights: dict[str, Tensor]
) -> None:
    """Without a release nobody knows the factor: it is a setting then, and the SAE is refused without it."""
    where = {"location": "fnlp/Llama3_1-8B-Base-LXM-8x", "subfolder": "Llama3_1-8B-Base-L1M-8x"}
    part = SaePartConfig.model_validate({"source": "huggingface", **where, "loader": "llama_scope"})
    artifact = fetch_pretrained(part, cache)
    with pytest.raises(ArtifactError, match="by which factor is not known") as raised:
        load_side(artifact.folder, "out", "cpu")
    assert "Set norm_factor in [sae.output]" in raised.value.remedy
    sae = load_side(artifact.folder, "out", "cpu", norm_factor=72.1762114537445).sae
    x = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sae.encode(x), by_hand(x, scaled(weights))[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("release", "sae_id"),
    [
        ("goodfire-llama-3.1-8b-instruct", "layer_19"),
        ("deepseek-r1-distill-llama-8b-qresearch", "blocks.19.hook_resid_post"),
        ("gpt2-small-hook-z-kk", "blocks.0.hook_z"),
        ("saebench_gemma-2-2b_width-2pow12_date-0108", None),
        ("qwen-scope-3-1.7b-base-w32k-l50", None),
        ("sae_bench_pythia70m_sweep_topk_ctx128_0730", None),
    ],
)
def test_pickles_are_refused_by_name_before_anything_is_fetched(
    hub: Hub, cache: Path, release: str, sae_id: str | None
) -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()[release].saes_map
    with pytest.raises(ArtifactError, match="is a pickle") as raised:
        fetch(cache, {"release": release, "id": sae_id if sae_id in known else next(iter(known))})
    assert release in raised.value.problem
    assert "never opened" in raised.value.remedy
    assert hub.requests == []


def test_every_loader_of_sae_lens_that_unpickles_is_on_the_list() -> None:
    from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS

    unpickling = {name for name, f in NAMED_PRETRAINED_SAE_LOADERS.items() if "torch.load" in inspect.getsource(f)}
    assert unpickling == set(PICKLE_LOADERS)


def test_a_loader_gets_no_pickle_even_under_another_name(hub: Hub, cache: Path, tmp_path: Path) -> None:
    """The second line: whatever asks for a .pt file is refused it, on the list or not."""
    from jacobian_core.artifact.hub import repository_at
    from jacobian_core.artifact.pretrained import Wanted, _Files

    repository = repository_at("google/gemma-scope-2b-pt-mlp", None, tmp_path)
    wanted = Wanted("new", "x", repository.location, "x", "a loader to come")
    with pytest.raises(ArtifactError, match=r"ae\.pt may be a pickle"):
        _Files(wanted, repository, tmp_path).path(repository.location, "ae.pt")
    with pytest.raises(ArtifactError, match="asks for owner/other"):
        _Files(wanted, repository, tmp_path).path("owner/other", "cfg.json")


@pytest.mark.parametrize(
    ("release", "says"),
    [
        ("temporal-sae-gemma-2-2b", "read other positions"),
        ("mntss-gemma-2-2b-2.5m-clt-as-per-layer", "cross-layer transcoder"),
    ],
)
def test_other_families_are_refused_by_name(hub: Hub, cache: Path, release: str, says: str) -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    sae_id = next(iter(get_pretrained_saes_directory()[release].saes_map))
    with pytest.raises(ArtifactError, match=says):
        fetch(cache, {"release": release, "id": sae_id})


def test_unknown_names_come_with_the_nearest(cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"knows no release 'llama_scope_lxm_9x'\. Near it: llama_scope_lxm_8x"):
        fetch(cache, LLAMA | {"release": "llama_scope_lxm_9x"})
    with pytest.raises(ConfigError, match=r"has no SAE 'l99m_8x'\. Near it: l\d+m_8x"):
        fetch(cache, LLAMA | {"id": "l99m_8x"})
    where = {"source": "huggingface", "location": "owner/name", "subfolder": "x"}
    with pytest.raises(ConfigError, match=r"no loader 'gemma2'\. Near it: gemma_2"):
        fetch_pretrained(SaePartConfig.model_validate({**where, "loader": "gemma2"}), cache)


def test_two_saes_of_two_places_are_one_pair(hub: Hub, cache: Path, tmp_path: Path) -> None:
    """A half of a published pair in a folder, and a release; widths differ, and so do the numbers of active latents."""
    from tests.tiny import make_pair

    make_pair(tmp_path / "pair", widths=(96, 80))
    settings = {
        "input": {"source": "folder", "location": str(tmp_path / "pair")},
        "output": {"source": "release", **LLAMA},
    }
    config = SaeConfig.model_validate(settings)
    artifact = fetch_artifact(config, cache)
    assert re.fullmatch(rf"in folder:.*/pair; out release:llama_scope_lxm_8x/l1m_8x@{COMMIT}", artifact.locator)
    assert fetch_artifact(config, cache) == artifact
    pair = load_sae_pair(artifact.folder)
    assert (pair.input.cfg.d_sae, pair.output.cfg.d_sae) == (96, LATENTS)
    assert (pair.input.cfg.architecture(), pair.output.cfg.architecture()) == ("topk", "jumprelu")
    facts = describe_pair(artifact.folder)
    assert (facts.layer, facts.n_in_latents, facts.n_out_latents) == (1, 96, LATENTS)
    assert facts.parts["out"].locator.startswith("release:")
    moved = tmp_path / "moved"
    (tmp_path / "pair").rename(moved)
    settings["input"]["location"] = str(moved)
    again = fetch_artifact(SaeConfig.model_validate(settings), cache)
    assert again.digest == artifact.digest
    assert again.folder != artifact.folder


def test_a_part_that_changes_gives_another_pair(cache: Path, tmp_path: Path) -> None:
    save_apart(tmp_path, ("jumprelu", "gated"))
    sides = {side: {"source": "folder", "location": str(tmp_path / side[:-3])} for side in ("input", "output")}
    sides["output"]["location"] = str(tmp_path / "out")
    first = fetch_artifact(SaeConfig.model_validate(sides), cache)
    path = tmp_path / "out" / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalize_activations": "expected_average_only_in"}))
    sides["output"]["norm_factor"] = 2.0  # type: ignore[assignment]
    second = fetch_artifact(SaeConfig.model_validate(sides), cache)
    sides["output"]["norm_factor"] = 3.0  # type: ignore[assignment]
    third = fetch_artifact(SaeConfig.model_validate(sides), cache)
    assert len({first.digest, second.digest, third.digest}) == 3
    assert load_sae_pair(third.folder).output.cfg.normalize_activations == "none"


@pytest.mark.parametrize(
    ("side", "hook", "says"),
    [
        ("in", "blocks.3.hook_resid_post", "residual stream"),
        ("in", "blocks.3.hook_mlp_out", "the MLP's output"),
        ("in", "blocks.3.hook_mlp_in", "before the norm"),
        ("in", "blocks.3.attn.hook_z", "attention"),
        ("out", "blocks.3.hook_resid_post", "residual stream"),
        ("out", "blocks.3.mlp.hook_in", "the MLP's input"),
        ("out", "blocks.3.hook_attn_out", "attention"),
    ],
)
def test_an_sae_on_another_hook_is_refused_with_the_reason(tmp_path: Path, side: Any, hook: str, says: str) -> None:
    save_apart(tmp_path, ("standard", "topk"))
    path = tmp_path / side / "cfg.json"
    config = json.loads(path.read_text())
    config["metadata"]["hook_name"] = hook
    path.write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=f"hook is '{re.escape(hook)}', .*{says}"):
        load_side(tmp_path / side, side, "cpu")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"source": "release", "release": "x"}, "needs id"),
        ({"source": "release", "release": "x", "id": "y", "location": "z"}, "location, which has no meaning"),
        ({"source": "folder"}, "needs location"),
        ({"source": "wandb", "location": "a/b/c:v1", "loader": "gemma_2"}, "loader, which has no meaning"),
        ({"source": "folder", "location": "x", "norm_factor": 0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_belong_together_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SaePartConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"source": "folder", "location": "x", "input": {"source": "folder", "location": "y"}}, "the one or the other"),
        ({"input": {"source": "folder", "location": "y"}}, r"both sae\.input and sae\.output"),
        ({}, "needs source and location of a pair"),
    ],
)
def test_a_pair_is_one_artifact_or_two(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SaeConfig.model_validate(settings)
