"""Interventions against the sandwich evaluated anew with the edited code; function shapes on known functions.

Tolerances: the selection and values are float64 on both sides here, so 1e-10 of the largest activation. The change of a
pre-activation is compared in float32 at 1e-5 of the largest change of its token.
"""

from dataclasses import replace

import pytest
import torch

from jacobian_core.numerics import reference
from jacobian_core.numerics.function_shapes import SHAPES, classify, trace
from jacobian_core.numerics.interventions import KindValues, change_latents, values_after
from jacobian_core.numerics.sandwich import Sandwich
from jacobian_core.numerics.strata import (
    PairSample,
    StrataPlan,
    all_pairs,
    chosen_tokens,
    hash_uniform,
    stratified_pairs,
)
from tests.numerics.helpers import random_sandwich, to_float32
from tests.numerics.test_jacobian import reference_function

KINDS = KindValues(set_values=(0.0, 0.7, 9.0), scale_factors=(0.5, 3.0), sweep_points=4, sweep_max=2.0)
TOKENS = 6


def sandwich_with(evaluate_at: str = "reconstruction", out_bias: float = -0.6, seed: int = 2) -> Sandwich:
    """Some selected outputs are clamped, and changes of the code switch the selection."""
    return random_sandwich(seed, k=(4, 7), out_bias=out_bias, evaluate_at=evaluate_at)


def inputs(d: int = 7) -> torch.Tensor:
    return torch.randn(TOKENS, d, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def every_pair(sandwich: Sandwich, x: torch.Tensor) -> PairSample:
    state = sandwich.state(x)
    return all_pairs(state.outputs, state.inputs, torch.ones(len(x), dtype=torch.bool), 1.0)


@pytest.mark.parametrize("evaluate_at", ["reconstruction", "activation"])
@pytest.mark.parametrize("kind", ["ablate", "unit", "set", "scale", "sweep"])
def test_effects_equal_the_edited_sandwich(kind: str, evaluate_at: str) -> None:
    sandwich, x = sandwich_with(evaluate_at), inputs()
    state, pairs = sandwich.state(x), every_pair(sandwich, x)
    before = state.inputs.value[pairs.token, pairs.in_slot]
    left = 0
    for values in values_after(kind, before, KINDS):
        effects = change_latents(sandwich, state, pairs, values)
        left += compare(sandwich, x, pairs, effects.out_after, effects.left_selection, values)
    assert left > 0 or kind == "unit"


def compare(sandwich, x, pairs, out_after, left_selection, values) -> int:  # type: ignore[no-untyped-def]
    state = sandwich.state(x)
    for row in range(len(pairs.token)):
        token = int(pairs.token[row])
        function, s = reference_function(sandwich, x[token])
        i = int(state.outputs.index[token, pairs.out_slot[row]])
        j = int(state.inputs.index[token, pairs.in_slot[row]])
        expected = float(reference.intervene(function, s, j, float(values[row]))[i])
        assert float(out_after[row]) == pytest.approx(expected, abs=1e-10)
        assert bool(left_selection[row]) == (expected == 0)
    return int(left_selection.sum())


def test_the_comparison_notices_a_selection_that_is_not_redone() -> None:
    sandwich, x = sandwich_with(), inputs()
    state, pairs = sandwich.state(x), every_pair(sandwich, x)
    values = torch.zeros(len(pairs.token), dtype=torch.float64)
    effects = change_latents(sandwich, state, pairs, values)
    stays = (effects.out_before + effects.pre_change).clamp(min=0)
    with pytest.raises(AssertionError):
        compare(sandwich, x, pairs, stays, stays <= 0, values)


def test_no_change_has_no_effect() -> None:
    sandwich, x = sandwich_with(), inputs()
    state, pairs = sandwich.state(x), every_pair(sandwich, x)
    effects = change_latents(sandwich, state, pairs, state.inputs.value[pairs.token, pairs.in_slot])
    assert effects.pre_change.abs().max() == 0
    assert not effects.left_selection.any()
    assert torch.equal(effects.out_after, effects.out_before)


def test_a_small_change_is_the_derivative() -> None:
    """The first-order prediction is exact in the limit: intervention, J and K agree with each other."""
    sandwich, x = sandwich_with(), inputs()
    state, pairs = sandwich.state(x), every_pair(sandwich, x)
    at = (pairs.token, pairs.out_slot, pairs.in_slot)
    J = sandwich.kernel.first(state)[at]
    K = sandwich.kernel.second(state)[at]
    step = 1e-4
    change = change_latents(sandwich, state, pairs, state.inputs.value[pairs.token, pairs.in_slot] + step).pre_change
    torch.testing.assert_close(change, J * step + 0.5 * K * step**2, rtol=0, atol=1e-10)
    assert not torch.allclose(change, J * step, rtol=0, atol=1e-10)


def test_float32_change_within_its_tolerance() -> None:
    exact = random_sandwich(4, d_in=32, d_mlp=128, d_out=32, n=(100, 80), k=(8, 12))
    single = to_float32(exact)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    pairs = every_pair(single, x)
    zeros = torch.zeros(len(pairs.token))
    found = change_latents(single, single.state(x), pairs, zeros).pre_change
    expected = change_latents(exact, exact.state(x.double()), pairs, zeros.double()).pre_change
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


class TestSample:
    """The stratified sample: deterministic, and unbiased by its weights."""

    sandwich = random_sandwich(9, k=(6, 8))
    x = torch.randn(40, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    token_ids = torch.arange(1000, 1040)
    everywhere = torch.ones(40, dtype=torch.bool)

    def draw(self, plan: StrataPlan, part: slice = slice(None)) -> tuple[PairSample, torch.Tensor]:
        state = self.sandwich.state(self.x[part])
        J = self.sandwich.kernel.first(state)
        codes = (state.inputs, state.outputs)
        return stratified_pairs(J, codes, self.token_ids[part], self.everywhere[part], plan), J

    def test_weights_count_every_pair_once(self) -> None:
        plan = StrataPlan((0.05, 0.2), 2, 1.0, 0)
        pairs, J = self.draw(plan)
        state = self.sandwich.state(self.x)
        active = state.outputs.active[:, :, None] & state.inputs.active[:, None, :]
        for token in range(40):
            mine = pairs.token == token
            assert float(pairs.weight[mine].sum()) == pytest.approx(int(active[token].sum()))
            sizes = J[token][pairs.out_slot[mine], pairs.in_slot[mine]].abs()
            for low, high in ((0, 0.05), (0.05, 0.2), (0.2, 1e9)):
                inside = (J[token].abs() >= low) & (J[token].abs() < high) & active[token]
                assert int(((sizes >= low) & (sizes < high)).sum()) == min(2, int(inside.sum()))

    def test_any_cut_into_chunks_gives_the_same_sample(self) -> None:
        plan = StrataPlan((0.05, 0.2), 1, 1.0, 5)
        whole, _ = self.draw(plan)
        first, _ = self.draw(plan, slice(0, 13))
        second, _ = self.draw(plan, slice(13, 40))
        assert torch.equal(whole.token, torch.cat([first.token, second.token + 13]))
        assert torch.equal(whole.in_slot, torch.cat([first.in_slot, second.in_slot]))
        other, _ = self.draw(replace(plan, seed=6))
        assert not torch.equal(whole.in_slot, other.in_slot)

    def test_the_mean_over_seeds_is_the_mean_over_all_pairs(self) -> None:
        state = self.sandwich.state(self.x)
        active = state.outputs.active[:, :, None] & state.inputs.active[:, None, :]
        estimates = []
        for seed in range(60):
            pairs, J = self.draw(StrataPlan((0.05, 0.2), 1, 1.0, seed))
            values = J[pairs.token, pairs.out_slot, pairs.in_slot]
            estimates.append(float((values * pairs.weight).sum() / pairs.weight.sum()))
        truth, spread = float(J[active].mean()), torch.tensor(estimates).std()
        assert abs(sum(estimates) / 60 - truth) < 4 * float(spread) / 60**0.5
        assert spread > 0

    def test_a_share_of_tokens(self) -> None:
        ids = torch.arange(20_000)
        chosen = chosen_tokens(ids, 0.25, 3)
        assert abs(int(chosen.sum()) - 5_000) < 5 * (20_000 * 0.25 * 0.75) ** 0.5
        assert not torch.equal(chosen, chosen_tokens(ids, 0.25, 4))
        assert chosen_tokens(ids, 1.0, 3).all()

    def test_hashes_are_uniform_and_independent_of_order(self) -> None:
        draws = hash_uniform(1, torch.arange(50_000))
        assert float(draws.min()) >= 0
        assert float(draws.max()) < 1
        counts = torch.histc(draws, 20, 0, 1)
        assert float((counts - 2500).square().sum() / 2500) < 45  # chi-square with 19 degrees of freedom, p < 0.001
        assert torch.equal(draws[100:], hash_uniform(1, torch.arange(100, 50_000)))


class TestShapes:
    """The classification on functions whose shape is known."""

    s = torch.linspace(0, 5, 100, dtype=torch.float64)[None]

    @pytest.mark.parametrize(
        ("function", "published", "scale_free"),
        [
            (lambda s: 0.3 * s + 1, "linear", "linear"),
            (lambda s: 0 * s, "linear", "linear"),
            (lambda s: torch.where(s > 2, 0.5 * s + 0.2, 0), "jumprelu", "jumprelu"),
            (lambda s: torch.where(s < 2, 2 - 0.4 * s, 0), "jumprelu", "jumprelu"),
            (lambda s: torch.relu(s - 2), "jumprelu", "jumprelu"),
            (lambda s: torch.where((s > 1) & (s < 3), s, 0), "other", "other"),
            (lambda s: s**2, "other", "other"),
            (lambda s: 1e-3 * s**2, "linear", "other"),
            (lambda s: 100 * (s + 1e-4 * s**2), "other", "linear"),
        ],
    )
    def test_known_functions(self, function, published: str, scale_free: str) -> None:  # type: ignore[no-untyped-def]
        _, _, shape, free = classify(self.s, function(self.s))
        assert (SHAPES[int(shape[0])], SHAPES[int(free[0])]) == (published, scale_free)

    def test_a_traced_function_is_the_sandwich_over_its_range(self) -> None:
        sandwich, x = sandwich_with(), inputs()
        pairs = every_pair(sandwich, x)
        shapes = trace(sandwich, sandwich.state(x), pairs, 9)
        state = sandwich.state(x)
        for row in range(0, len(pairs.token), 5):
            token = int(pairs.token[row])
            function, code = reference_function(sandwich, x[token])
            i = int(state.outputs.index[token, pairs.out_slot[row]])
            j = int(state.inputs.index[token, pairs.in_slot[row]])
            end = max(5.0, float(code[j]) + 1)
            values = [float(reference.intervene(function, code, j, v * end / 8)[i]) for v in range(9)]
            assert float(shapes.in_max[row]) == pytest.approx(end)
            assert float(shapes.out_range[row]) == pytest.approx(max(values) - min(values), abs=1e-10)
