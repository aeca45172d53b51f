"""Whole runs of transcoders: beside an SAE on the MLP's output, and alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jacobian_core.config import RunConfig, SaeConfig
from jacobian_core.errors import ArtifactError, ConfigError
from jacobian_core.lake.layout import Lake
from jacobian_core.pipeline import fetch_artifact
from jacobian_core.sql.reports import run_report
from jacobian_core.sql.warehouse import connect
from tests.tiny import D_MODEL, LAYER, run_pipeline, tiny_config

LATENTS = 40


def save_transcoder(folder: Path, family: str, **metadata: str) -> Any:
    """A random sae_lens transcoder of the tiny model's MLP, as sae_lens itself saves it."""
    from sae_lens.registry import get_sae_class

    made_class, config_class = get_sae_class(family)
    config: Any = config_class(d_in=D_MODEL, d_sae=LATENTS, d_out=D_MODEL, apply_b_dec_to_input=False)
    made: Any = made_class(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            drawn = 0.3 * torch.randn(*parameter.shape, generator=generator)
            parameter.copy_(drawn.abs() if name == "threshold" else drawn - 0.5 * (name == "b_enc"))
        made.W_dec.mul_(0.05)
        if hasattr(made, "W_skip"):
            made.W_skip.mul_(0.2)
    hooks = {"hook_name": f"blocks.{LAYER}.mlp.hook_in", "hook_name_out": f"blocks.{LAYER}.hook_mlp_out"}
    for name, value in {**hooks, **metadata}.items():
        setattr(made.cfg.metadata, name, value)
    made.save_model(folder)
    return made.eval()


def config_of(tiny: Path, tmp_path: Path, sae: dict[str, Any], **jacobian: Any) -> RunConfig:
    settings = {"evaluate_at": "activation", **jacobian}
    config: RunConfig = tiny_config(tiny, tmp_path / "lake", jacobian=settings)
    return config.model_copy(update={"sae": SaeConfig.model_validate(sae)})


def folder(path: Path) -> dict[str, str]:
    return {"source": "folder", "location": str(path)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JACOBIAN_FLOWS_CACHE", str(tmp_path / "cache"))


def rows(config: RunConfig, run_id: str, sql: str) -> list[tuple[Any, ...]]:
    with connect(Lake.open(Path(config.lake.root)), [run_id]) as connection:
        return connection.execute(sql).fetchall()


def report(config: RunConfig, run_id: str, name: str, **parameters: Any) -> list[dict[str, Any]]:
    with connect(Lake.open(Path(config.lake.root)), [run_id]) as connection:
        found: list[dict[str, Any]] = run_report(connection, name, {"run_id": run_id, **parameters}).to_pylist()
        return found


def test_with_an_output_sae(tiny: Path, tmp_path: Path) -> None:
    """Published with every check holding; tables agree with sae_lens and the MLP, and reports with the tables."""
    transcoder = save_transcoder(tmp_path / "transcoder", "jumprelu_skip_transcoder")
    sae = {"transcoder": folder(tmp_path / "transcoder"), "output": folder(tiny / "pair")}
    config = config_of(tiny, tmp_path, sae)
    run = run_pipeline(config)
    facts = rows(config, run.run_id, "SELECT n_in_latents, n_out_latents, fvu_in, fvu_out, tokens FROM runs")[0]
    assert facts[:2] == (LATENTS, 80)
    counts = rows(config, run.run_id, "SELECT count(*), count(DISTINCT in_active) FROM tokens")[0]
    assert counts[0] == facts[4]
    assert counts[1] > 3
    assert rows(config, run.run_id, "SELECT count(*) FROM transcoder_tokens")[0][0] == facts[4]
    compare_first_token(config, run.run_id, transcoder)
    fit = {row["statistic"]: row["measured"] for row in report(config, run.run_id, "transcoder_fit")}
    assert fit["fvu"] == facts[2]
    pairs = rows(
        config, run.run_id,
        "SELECT mlp_effect, transcoder_effect FROM transcoder_effects INNER JOIN transcoder_latents USING (token_id) "
        "WHERE in_latent = latent AND isolation >= 0.99",
    )  # fmt: skip
    mlp, said = torch.tensor(pairs, dtype=torch.float64).T
    assert len(mlp) > 500
    assert fit["effect_pearson"] == pytest.approx(float(torch.corrcoef(torch.stack([mlp, said]))[0, 1]), rel=1e-9)
    assert fit["effect_slope"] == pytest.approx(
        float(((mlp - mlp.mean()) * (said - said.mean())).sum() / (said - said.mean()).square().sum()), rel=1e-9
    )
    seen = said.abs() >= 1e-3
    assert fit["effect_sign_agreement"] == pytest.approx(float((mlp.sign() == said.sign())[seen].double().mean()))
    worst = report(config, run.run_id, "transcoder_worst", top=3)
    assert [row["rank"] for row in worst] == [1, 2, 3]
    assert worst[0]["mean_cosine"] <= worst[1]["mean_cosine"] < 0.9
    told(config, run.run_id)


def told(config: RunConfig, run_id: str) -> None:
    """What a run ends with: its reports, their answer and the HTML page, all of them without complaint."""
    from flows import results, run_page

    lake = Path(config.lake.root)
    names = results.reports_of(lake, run_id)
    assert "transcoder_fit" in names
    tables = results.run_reports(lake, run_id, names)
    assert tables["transcoder_fit"].num_rows == 12
    assert run_id in run_page.run_page(lake, run_id, tables)
    results.say_reports(tables)
    assert results.html_page(lake, [run_id]).path.is_file()


def compare_first_token(config: RunConfig, run_id: str, transcoder: Any) -> None:
    """The first token's error against sae_lens's own forward and the Hugging Face MLP."""
    from transformers import AutoModelForCausalLM

    token, error, output = rows(
        config, run_id, "SELECT token_id, error_sq, output_sq FROM transcoder_tokens ORDER BY token_id LIMIT 1"
    )[0]
    vocab = rows(config, run_id, f"SELECT vocab_id FROM tokens WHERE token_id = {token}")[0][0]
    module = AutoModelForCausalLM.from_pretrained(config.model.name)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    mlp = module.gpt_neox.layers[LAYER].mlp
    handle = mlp.register_forward_hook(lambda _, args, y: seen.append((args[0], y)))
    with torch.no_grad():
        module(torch.tensor([[0, vocab]]))
        handle.remove()
        x, y = seen[0][0][0, 1], seen[0][1][0, 1]
        expected = float((y - transcoder(x[None])[0]).square().sum())
    assert error == pytest.approx(expected, rel=1e-4)
    assert output == pytest.approx(float(y.square().sum()), rel=1e-4)


def test_alone(tiny: Path, tmp_path: Path) -> None:
    """Without an output SAE there are no entries; the latents' changes and the errors are there all the same."""
    save_transcoder(tmp_path / "transcoder", "transcoder")
    config = config_of(tiny, tmp_path, {"transcoder": folder(tmp_path / "transcoder")})
    run = run_pipeline(config)
    found = rows(config, run.run_id, "SELECT n_out_latents, fvu_out, entries_total FROM runs")[0]
    assert found == (0, 0.0, 0)
    latents = rows(config, run.run_id, "SELECT count(*), min(isolation), max(abs(cosine)) FROM transcoder_latents")[0]
    assert latents[0] == rows(config, run.run_id, "SELECT count(*) FROM latents")[0][0] > 300
    assert latents[2] <= 1
    fit = {row["statistic"]: row["measured"] for row in report(config, run.run_id, "transcoder_fit")}
    assert fit["effect_pearson"] is None
    assert -1 < fit["cosine_mean"] < 1
    assert fit["error_share"] > 0
    told(config, run.run_id)


@pytest.mark.parametrize(
    ("group", "field", "value"),
    [
        ("jacobian", "evaluate_at", "reconstruction"),
        ("jacobian", "derivatives", "second"),
        ("jacobian", "scope", "all_inputs"),
        ("interventions", "kinds", ("ablate",)),
    ],
)
def test_settings_without_meaning_are_refused(tiny: Path, tmp_path: Path, group: str, field: str, value: Any) -> None:
    save_transcoder(tmp_path / "transcoder", "transcoder")
    config = config_of(tiny, tmp_path, {"transcoder": folder(tmp_path / "transcoder")})
    changed = getattr(config, group).model_copy(update={field: value})
    config = config.model_copy(update={group: changed})
    with pytest.raises(ConfigError, match=f"{group}.{field} = .*beside a transcoder"):
        run_pipeline(config)


def test_what_is_refused(tiny: Path, tmp_path: Path) -> None:
    save_transcoder(tmp_path / "elsewhere", "transcoder", hook_name_out=f"blocks.{LAYER}.hook_resid_post")
    config = config_of(tiny, tmp_path, {"transcoder": folder(tmp_path / "elsewhere")})
    with pytest.raises(ArtifactError, match="residual stream"):
        run_pipeline(config)
    save_transcoder(tmp_path / "t", "transcoder")
    as_input = {"input": folder(tmp_path / "t"), "output": folder(tiny / "pair")}
    with pytest.raises(ArtifactError, match='architecture = "transcoder" is not supported') as raised:
        run_pipeline(config_of(tiny, tmp_path, as_input))
    assert "sae.transcoder" in raised.value.remedy
    with pytest.raises(ValueError, match="which both read the MLP's input"):
        SaeConfig.model_validate({**as_input, "transcoder": folder(tmp_path / "t")})
    assert fetch_artifact(config).digest
