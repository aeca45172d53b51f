"""A plan against the run that it is about: the figures that do not depend on the clock, and the curve behind them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jacobian_core.lake.layout import Lake
from jacobian_core.request.plan import calibrate, plan_run, unit_costs
from jacobian_core.request.unit_costs import Merging, PairGrowth, UnitCosts
from tests.tiny import make_corpus, run_pipeline, tiny_config

SETTINGS: dict[str, dict[str, dict[str, object]]] = {
    "everything": {},
    "thresholds": {"jacobian": {"min_abs": 0.02, "top_entries_per_token": 12}},
    "aggregates": {"jacobian": {"keep": "aggregates"}},
    "interventions": {"interventions": {"kinds": ["ablate"], "pairs": "all", "token_share": 0.2}},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_entries_and_bytes_are_within_a_quarter_of_the_run(tiny: Path, tmp_path: Path, name: str) -> None:
    """Planned from a fifth of the tokens, in which two thirds of the pairs that the run will have are seen."""
    make_corpus(tmp_path / "corpus", documents=400)
    groups = {"corpus": {"location": str(tmp_path / "corpus"), "block_tokens": 200}, **SETTINGS[name]}
    config = tiny_config(tiny, tmp_path / "lake", **groups)
    plan, run = plan_run(config), run_pipeline(config)
    manifest = Lake.open(tmp_path / "lake").manifest(run.run_id)
    assert manifest is not None
    assert manifest.totals["tokens"] > 4 * 6 * 200
    sizes = sum(part.bytes for parts in manifest.all_parts().values() for part in parts)
    assert plan.tokens == pytest.approx(manifest.totals["tokens"], rel=0.25)
    assert plan.entries == pytest.approx(manifest.totals["entries_stored"], rel=0.25)
    assert plan.bytes_on_disk == pytest.approx(sizes, rel=0.25)


# ---- what a short run mostly consists of


def test_importing_is_part_of_what_is_measured() -> None:
    """The plan's clock starts before the libraries are imported, as the run's does."""
    loaded = "import sys, jacobian_core.request.plan; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.split()
    assert "jacobian_core.request.plan" in modules
    assert not {"torch", "transformers", "transformer_lens", "sae_lens", "duckdb"} & set(modules)


def test_a_plan_of_what_was_calibrated_is_what_that_took(tiny: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny, tmp_path / "lake", corpus={"block_tokens": 100})
    measured = calibrate(config)
    cost = unit_costs(config, measured).cost(measured.tokens)
    assert len(measured.results) > 2
    later = sum(result.tokens for result in measured.results[measured.later])
    at_later_rate = sum(measured.block_seconds[measured.later]) / later * measured.tokens
    blocks = max(sum(measured.block_seconds), at_later_rate)  # the first ones are slower, unless all was warm before
    around = measured.start_seconds + measured.group_seconds + measured.publish_seconds
    assert cost.total_seconds == pytest.approx(blocks + around)
    twice = unit_costs(config, measured).cost(2 * measured.tokens).seconds
    assert twice["start"] == cost.seconds["start"]
    assert twice["warm-up"] == cost.seconds["warm-up"]
    assert twice["compute"] == pytest.approx(2 * cost.seconds["compute"])


# ---- how pairs grow


def _pairs_of(tokens: int, seed: int = 0) -> int:
    """Distinct pairs of 8 x 8 latents a token out of 400 x 400, used as unevenly as 1 / rank."""
    rng = np.random.default_rng(seed)
    weight = 1 / np.arange(1, 401)
    sides = [rng.choice(400, (tokens, 8), p=weight / weight.sum()) for _ in range(2)]
    return len(np.unique(sides[0][:, :, None] * 400 + sides[1][:, None, :]))


@pytest.mark.parametrize("tokens", [4_000, 20_000, 100_000])
def test_growth_of_unevenly_used_pairs(tokens: int) -> None:
    growth = PairGrowth(1_000, _pairs_of(1_000), 2_000, _pairs_of(2_000), 400 * 400)
    assert growth.at(tokens) == pytest.approx(_pairs_of(tokens), rel=0.25)
    assert growth.at(2_000) == pytest.approx(growth.pairs)


def test_growth_is_not_linear() -> None:
    """What the plan assumed before: bytes of pairs in proportion to tokens."""
    assert _pairs_of(2_000) * 10 > 1.25 * _pairs_of(20_000)


@pytest.mark.parametrize(
    ("growth", "tokens", "pairs"),
    [
        (PairGrowth(10, 0, 20, 0, 100), 1_000, 0),
        (PairGrowth(10, 100, 20, 100, 100), 1_000, 100),  # all are seen
        (PairGrowth(20, 5, 20, 5, 10**12), 2_000, 500),  # one block: as many new pairs with every token
        (PairGrowth(10, 50, 20, 60, 100), 10**9, 100),  # never more than there are
    ],
)
def test_growth_at_its_ends(growth: PairGrowth, tokens: int, pairs: int) -> None:
    assert growth.at(tokens) == pytest.approx(pairs, rel=1e-6)


def test_checks_end_at_their_limit() -> None:
    units = UnitCosts(
        growth=PairGrowth(50, 400, 100, 500, 1_000), entries_per_token=10.0, bytes_per_token=20.0, bytes_per_entry=4.0,
        bytes_per_pair=30.0, fixed_bytes=7.0, start_seconds=3.0, seconds_per_token=0.1, sum_seconds=2.0,
        check_seconds=5.0, checks_max_entries=20_000,
    )  # fmt: skip
    same, larger, unchecked = (units.cost(tokens) for tokens in (100, 1_000, 3_000))
    assert same.seconds == {"start": 3.0, "warm-up": 0.0, "compute": 10.0, "sums": 2.0, "checks": 5.0}
    assert (same.entries, same.pairs, same.bytes) == (1_000, pytest.approx(500), pytest.approx(4_000 + 15_000 + 2_007))
    assert (larger.seconds["checks"], unchecked.seconds["checks"]) == (50.0, 5.0)
    assert 2.0 < larger.seconds["sums"] < 20.0
    assert same.total_seconds == 20.0


def test_merges_of_every_level_are_counted() -> None:
    """10 tokens a block, two files into one: of 90 tokens 4 pairs of blocks, two of these, and one of those."""
    growth, merging = PairGrowth(10, 20, 20, 40, 10**9), Merging(10.0, 2)  # every token brings two new pairs
    assert list(merging.levels(90)) == [20, 40, 80]
    assert merging.weight(90, growth, 5.0, (1.0, 0.0)) == pytest.approx(90 * 5 + 90 / 40 * 80 + 90 / 80 * 160, rel=1e-6)
    assert merging.weight(90, growth, 5.0, (0.0, 1.0)) == pytest.approx(3 * 180, rel=1e-6)
    assert merging.most_bytes(90, growth, 5.0) == pytest.approx(10 * 5 * 6.5 + (40 + 80 + 160) * 14.0, rel=1e-6)


def test_shards_are_a_file_each_in_the_end() -> None:
    """Of 3 shards of 90 tokens two are ended, of 180 pairs each; the third is the run of 90 tokens, above."""
    growth = PairGrowth(10, 20, 20, 40, 10**9)
    alone, merging = Merging(10.0, 2), Merging(10.0, 2, 3)
    assert list(merging.levels(270)) == [20, 40, 80]
    assert merging.ended(270, growth) == pytest.approx(2 * 180, rel=1e-6)
    assert alone.ended(270, growth) == 0
    most = alone.most_bytes(90, growth, 5.0) + 2 * 180 * 14.0
    assert merging.most_bytes(270, growth, 5.0) == pytest.approx(most, rel=1e-6)


def test_the_disk_of_aggregates_does_not_grow_with_tokens() -> None:
    growth = PairGrowth(1_000, 40_000, 2_000, 60_000, 10**6)
    units = UnitCosts(
        growth=growth, entries_per_token=100.0, bytes_per_token=0.0, bytes_per_entry=0.0, bytes_per_pair=30.0,
        fixed_bytes=0.0, start_seconds=0.0, seconds_per_token=0.1, sum_seconds=2.0, check_seconds=0.0,
        checks_max_entries=0, merging=Merging(300.0, 8),
    )  # fmt: skip
    some, many = units.cost(10**8), units.cost(10**10)
    assert many.bytes == pytest.approx(some.bytes, rel=1e-3) == pytest.approx(30 * 10**6, rel=1e-3)
    assert many.work_bytes == pytest.approx(some.work_bytes + 2 * 7 * 14e6, rel=0.01)  # two more levels
    assert 0 < many.seconds["merges"] < 100 * some.seconds["merges"] * 1.2
    assert many.seconds["sums"] < 2 * some.seconds["sums"]
