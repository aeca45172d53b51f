"""A whole run of a gated model with a norm behind its MLP, and of SAEs without a k, as two sae_lens folders."""

import pyarrow.dataset as ds
import pytest

from jacobian_core.lake.layout import Lake
from tests import tiny
from tests.artifact.test_sae_pair import save_apart
from tests.numerics.test_families import WIDTH


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, str]:
    import transformers as hf

    root = tmp_path_factory.mktemp("families")
    tiny.make_corpus(root / "corpus", documents=16)
    tiny.make_model(root / "model", root / "corpus")
    config = hf.Gemma2Config(
        hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1, head_dim=6,
        intermediate_size=20, vocab_size=320, max_position_embeddings=tiny.CONTEXT, bos_token_id=0, eos_token_id=0,
        pad_token_id=0,
    )  # fmt: skip
    hf.set_seed(0)
    hf.Gemma2ForCausalLM(config).save_pretrained(root / "model")
    save_apart(root / "pair", ("jumprelu", "gated"), normalize_activations="layer_norm")
    settings = {
        "jacobian": {"scope": "all_inputs", "derivatives": "second"},
        "interventions": {"kinds": ["ablate"], "shape_token_share": 0.2},
    }
    run = tiny.run_pipeline(tiny.tiny_config(root, root / "lake", **settings))
    return Lake.open(root / "lake"), run.run_id


def rows(lake: tuple[Lake, str], table: str) -> dict[str, list[object]]:
    where, run_id = lake
    found: dict[str, list[object]] = ds.dataset(where.root / table / f"run_id={run_id}").to_table().to_pydict()
    return found


def test_it_is_published_and_the_checks_hold(lake: tuple[Lake, str]) -> None:
    """`publish_run` runs every check of sql/checks first, and a failed one stops it."""
    manifest = lake[0].manifest(lake[1])
    assert manifest is not None
    assert manifest.totals["tokens"] > 200


def test_tokens_have_their_own_numbers_of_latents(lake: tuple[Lake, str]) -> None:
    tokens = rows(lake, "tokens")
    pairs = list(zip(tokens["in_active"], tokens["out_active"], tokens["entries_total"], strict=True))
    assert len({(i, o) for i, o, _ in pairs}) > 3
    assert all(i * o == total for i, o, total in pairs)
    assert sum(total for _, _, total in pairs) == len(rows(lake, "jacobian_entries")["value"])


def test_interventions_shapes_and_aggregates_are_there(lake: tuple[Lake, str]) -> None:
    interventions = rows(lake, "interventions")
    assert len(interventions["out_after"]) > 100
    assert any(interventions["left_selection"])
    assert rows(lake, "function_shapes")["shape"]
    assert {"active", "all_inputs"} == set(rows(lake, "pair_stats")["scope"])
