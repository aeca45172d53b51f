"""The closed-form Jacobian against autograd, entry by entry, at many shapes and edge cases.

Tolerances: float64 is compared at 1e-10 of a token's largest |J| (sums of some tens of terms round at 1e-15). float32
is compared at 1e-5 of it: an entry near zero is a difference of terms as large as the token's largest entry, so no
float32 method reproduces it relative to itself.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from jacobian_core.model.activation_functions import GELU, GELU_TANH, RELU, RELU_SQUARED, SILU, Activation
from jacobian_core.model.neurons import PlainNeurons
from jacobian_core.numerics import reference
from jacobian_core.numerics.codes import Codes, TopK
from jacobian_core.numerics.coo import Entries, Thresholds, to_entries
from jacobian_core.numerics.sandwich import Sandwich
from tests.numerics.helpers import DenseTopK, random_sandwich, to_float32

ACTIVATIONS = [GELU, GELU_TANH, SILU, RELU, RELU_SQUARED]


def entries_of(sandwich: Sandwich, x: Tensor, thresholds: Thresholds = Thresholds()) -> Entries:  # noqa: B008
    state = sandwich.state(x)
    J = sandwich.kernel.first(state)
    K = sandwich.kernel.second(state)
    return to_entries(J, K, state.outputs, state.inputs, thresholds)


def reference_function(sandwich: Sandwich, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The sandwich around one token as the reference defines it, and the token's dense input code."""
    sae_in, sae_out = DenseTopK(sandwich.inputs), DenseTopK(sandwich.outputs)
    s = sae_in.encode(x[None])[0]
    if sandwich.evaluate_at == "reconstruction":
        return reference.sandwich_at_reconstruction(sae_in, sandwich.mlp, sae_out), s
    return reference.sandwich_at_activation(sae_in, sandwich.mlp, sae_out, x), s


def compare(sandwich: Sandwich, x: Tensor, exact: Sandwich, tolerance: float) -> int:
    """Assert that every entry of every token, its support included, is autograd's; returns the number of entries."""
    entries = entries_of(sandwich, x)
    for token in range(x.shape[0]):
        function, s = reference_function(exact, x[token].double())
        out, in_, J = reference.active_entries(function, s)
        K = reference.second_derivative(function, s, out, in_)
        mine = entries.token == token
        expected_pairs = torch.cartesian_prod(out, in_).reshape(-1, 2)
        found_pairs = torch.stack([entries.out_latent[mine], entries.in_latent[mine]], 1).long()
        assert torch.equal(found_pairs, expected_pairs)
        for found, expected in ((entries.value, J), (entries.second_derivative, K)):
            assert found is not None
            scale = expected.abs().max().item() if expected.numel() else 1.0
            torch.testing.assert_close(found[mine].double(), expected.flatten(), rtol=0, atol=tolerance * (scale or 1))
    return int(entries.stored.sum())


@pytest.mark.parametrize("evaluate_at", ["reconstruction", "activation"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.name)
def test_entries_equal_autograd(activation: Activation, evaluate_at: str) -> None:
    sandwich = random_sandwich(activation=activation, evaluate_at=evaluate_at)
    x = torch.randn(6, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert compare(sandwich, x, sandwich, 1e-10) > 50


@pytest.mark.parametrize("seed", range(5))
def test_float32_within_its_tolerance(seed: int) -> None:
    exact = random_sandwich(seed, d_in=32, d_mlp=128, d_out=32, n=(100, 80), k=(8, 12))
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(seed))
    compare(to_float32(exact), x, exact, 1e-5)


@pytest.mark.parametrize(
    "shape",
    [
        {"d_in": 1, "d_mlp": 1, "d_out": 1, "n": (1, 1), "k": (1, 1)},
        {"d_in": 3, "d_mlp": 5, "d_out": 9, "n": (4, 4), "k": (4, 4)},
        {"d_in": 8, "d_mlp": 40, "d_out": 3, "n": (50, 7), "k": (1, 7)},
    ],
    ids=["one of everything", "k equals width", "wide in, narrow out"],
)
def test_shapes(shape: dict[str, object]) -> None:
    sandwich = random_sandwich(3, **shape)
    x = torch.randn(5, sandwich.mlp.d_in, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    compare(sandwich, x, sandwich, 1e-10)


def test_one_token() -> None:
    sandwich = random_sandwich()
    compare(sandwich, torch.ones(1, 7, dtype=torch.float64), sandwich, 1e-10)


def test_clamped_latents_are_not_active() -> None:
    """DESIGN trap 7: selected by top-k, clamped by ReLU: derivative 0, no entry."""
    sandwich = random_sandwich(4, out_bias=-1.2, k=(4, 12))
    x = torch.randn(8, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    outputs = sandwich.state(x).outputs
    assert 0 < int(outputs.active.sum()) < outputs.value.numel()
    compare(sandwich, x, sandwich, 1e-10)


def test_no_active_latent_gives_no_entry() -> None:
    sandwich = random_sandwich(4, out_bias=-100.0)
    entries = entries_of(sandwich, torch.ones(3, 7, dtype=torch.float64))
    assert entries.value.numel() == 0
    assert entries.total.tolist() == [0, 0, 0]
    assert entries.abs_max.tolist() == [0, 0, 0]


def test_ties_at_the_boundary_take_the_lower_latent() -> None:
    base = random_sandwich(6)
    W, b = base.outputs.W_enc.clone(), base.outputs.b_enc.clone()
    for twin in range(1, 31, 2):
        W[:, twin], b[twin] = W[:, twin - 1], b[twin - 1]
    outputs = replace(base.outputs, W_enc=W, b_enc=b, selection=TopK(5))
    sandwich = Sandwich.build(base.inputs, base.mlp, outputs, "reconstruction")
    x = torch.randn(20, 7, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    codes = sandwich.state(x).outputs
    for index, active, margin in zip(codes.index, codes.active, codes.margin, strict=True):
        chosen = set(index[active].tolist())
        alone = [i for i in chosen if i % 2 and i - 1 not in chosen]
        assert not alone
        assert (margin >= 0).all()
    compare(sandwich, x, sandwich, 1e-10)


class TestTheComparisonNotices:
    """Siblings of the tests above: each common mistake must fail the same comparison."""

    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def test_derivative_dropped(self) -> None:
        sandwich = random_sandwich()
        ones = replace(GELU, first=torch.ones_like)
        wrong = replace(sandwich.kernel, mlp=replace(sandwich.mlp, neurons=PlainNeurons(ones)))
        with pytest.raises(AssertionError):
            compare(replace(sandwich, kernel=wrong), self.x, sandwich, 1e-10)

    def test_transposed(self) -> None:
        sandwich = random_sandwich(k=(5, 5))
        state = sandwich.state(self.x)
        J = sandwich.kernel.first(state)
        right = to_entries(J, None, state.outputs, state.inputs, Thresholds())
        wrong = to_entries(J.transpose(1, 2).contiguous(), None, state.outputs, state.inputs, Thresholds())
        assert not torch.allclose(right.value, wrong.value, rtol=1e-3)

    def test_wrong_point(self) -> None:
        sandwich = random_sandwich()
        with pytest.raises(AssertionError):
            compare(replace(sandwich, evaluate_at="activation"), self.x, sandwich, 1e-10)

    def test_second_derivative_without_square(self) -> None:
        sandwich = random_sandwich()
        state = sandwich.state(self.x)
        right = sandwich.kernel.second(state)
        curvature = replace(GELU, first=GELU.second)
        wrong = replace(sandwich.kernel, mlp=replace(sandwich.mlp, neurons=PlainNeurons(curvature))).first(state)
        assert not torch.allclose(right, wrong, rtol=1e-3)


def test_the_notebooks_second_derivative_is_zero() -> None:
    """DESIGN trap 1: without create_graph the inner Jacobian is detached, and the outer one is zero."""
    sandwich = random_sandwich()
    x = torch.randn(1, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)[0]
    function, s = reference_function(sandwich, x)
    notebook = torch.autograd.functional.jacobian(
        lambda code: torch.autograd.functional.jacobian(function, code), s.clone().requires_grad_(), strict=False
    )
    assert notebook.abs().max() == 0
    out, in_, _ = reference.active_entries(function, s)
    assert reference.second_derivative(function, s, out, in_).abs().max() > 0.01


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.name)
def test_activation_derivatives_equal_autograd(activation: Activation) -> None:
    z = torch.linspace(-6, 6, 201, dtype=torch.float64) + 0.013
    z.requires_grad_()
    (first,) = torch.autograd.grad(activation.f(z).sum(), z, create_graph=True)
    torch.testing.assert_close(activation.first(z), first, rtol=1e-12, atol=1e-12)
    if first.requires_grad:
        (second,) = torch.autograd.grad(first.sum(), z)
        torch.testing.assert_close(activation.second(z), second, rtol=1e-11, atol=1e-12)
    assert not torch.allclose(activation.first(z) + 1e-6, first, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.name)
def test_activation_derivatives_are_slopes(activation: Activation) -> None:
    """Against differences, as autograd takes the same kernels; and in float32 against float64."""
    z, step = torch.linspace(-9, 9, 301, dtype=torch.float64) + 0.013, 1e-5

    def slope(function: Callable[[Tensor], Tensor]) -> Tensor:
        return (function(z + step) - function(z - step)) / (2 * step)

    torch.testing.assert_close(activation.first(z), slope(activation.f), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(activation.second(z), slope(activation.first), rtol=1e-9, atol=1e-9)
    single = z.float()
    torch.testing.assert_close(activation.first(single).double(), activation.first(single.double()), rtol=0, atol=2e-6)
    assert (
        not torch.allclose(activation.first(z + 1e-7), slope(activation.f), rtol=1e-9, atol=1e-9) or activation is RELU
    )


class TestThresholds:
    """What is dropped is counted exactly."""

    sandwich = random_sandwich(9, k=(6, 6))
    x = torch.randn(12, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    @pytest.mark.parametrize(
        "thresholds", [Thresholds(0.05), Thresholds(0.0, 7), Thresholds(0.05, 7), Thresholds(1e9), Thresholds(0.0, 1)]
    )
    def test_accounting(self, thresholds: Thresholds) -> None:
        everything = entries_of(self.sandwich, self.x)
        kept = entries_of(self.sandwich, self.x, thresholds)
        for token in range(len(self.x)):
            all_values = everything.value[everything.token == token]
            expected = all_values[all_values.abs() >= thresholds.min_abs]
            if thresholds.top is not None:
                expected = expected[expected.abs().argsort(descending=True)[: thresholds.top]]
            found = kept.value[kept.token == token]
            assert sorted(found.tolist()) == sorted(expected.tolist())
            assert kept.stored[token] == len(expected)
            assert kept.total[token] == len(all_values)
            torch.testing.assert_close(kept.abs_sum_stored[token], expected.abs().sum())
            torch.testing.assert_close(kept.abs_sum_total[token], all_values.abs().sum())
            torch.testing.assert_close(kept.sq_sum_total[token], all_values.square().sum())
            assert kept.abs_max[token] == all_values.abs().max()

    def test_equal_magnitudes_keep_the_lower_pair(self) -> None:
        J = torch.tensor([[[1.0, -1.0], [1.0, 1.0]]])
        codes = Codes(torch.tensor([[2, 5]]), torch.ones(1, 2), torch.ones(1, 2))
        kept = to_entries(J, None, codes, codes, Thresholds(0.0, 3))
        assert list(zip(kept.out_latent.tolist(), kept.in_latent.tolist(), strict=True)) == [(2, 2), (2, 5), (5, 2)]

    def test_not_finite_is_refused(self) -> None:
        codes = Codes(torch.tensor([[2, 5]]), torch.ones(1, 2), torch.ones(1, 2))
        for bad in (float("nan"), float("inf")):
            J = torch.tensor([[[1.0, bad], [1.0, 1.0]]])
            with pytest.raises(FloatingPointError):
                to_entries(J, None, codes, codes, Thresholds(0.5))
