"""The benchmarks' contenders compute what ours computes: or a ratio of their times would say nothing.

In float64, so they agree to 1e-9.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.contenders import Dense, notebook, published, torch_func
from benchmarks.experiments import averaging_cell, published_interventions
from jacobian_core.numerics import reference
from jacobian_core.numerics.sandwich import Sandwich
from tests.numerics.helpers import DenseTopK, random_sandwich

TOKENS = 5


@pytest.fixture
def sandwich() -> Sandwich:
    return random_sandwich(3, out_bias=2.0)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(TOKENS, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def _ours(sandwich: Sandwich, x: Tensor) -> Tensor:
    """J of each token as a dense matrix, 0 where a latent is not active."""
    state = sandwich.state(x)
    found = torch.zeros(len(x), sandwich.outputs.latents, sandwich.inputs.latents, dtype=x.dtype)
    J = sandwich.kernel.first(state)
    for token in range(len(x)):
        out, in_ = state.outputs.index[token], state.inputs.index[token]
        found[token, out[:, None], in_[None]] = J[token]
    return found


def _active(sandwich: Sandwich, token: Tensor) -> tuple[Tensor, Tensor]:
    dense = Dense(sandwich)
    s, _ = dense.encode(token, output=False)
    return torch.nonzero(dense.run(s))[:, 0], torch.nonzero(s)[:, 0]


def test_methods_give_the_same_jacobian(sandwich: Sandwich, x: Tensor) -> None:
    ours, by_func, by_einsum = _ours(sandwich, x), torch_func(sandwich, x), published(sandwich, x)
    dense, state = Dense(sandwich), sandwich.state(x)
    s, in_index = dense.encode(x, output=False)
    _, out_index = dense.encode(dense.output(dense.hidden(s)), output=True)
    assert ours.abs().sum() > 0
    torch.testing.assert_close(by_func, sandwich.kernel.first(state), rtol=1e-9, atol=1e-9)
    for n, (token, sliced) in enumerate(zip(x, notebook(sandwich, x), strict=True)):
        out, in_ = _active(sandwich, token)
        torch.testing.assert_close(sliced, ours[n][out][:, in_], rtol=1e-9, atol=1e-9)
        whole = torch.zeros_like(ours[n])
        whole[out_index[n][:, None], in_index[n][None]] = by_einsum[n]
        torch.testing.assert_close(whole[out][:, in_], sliced, rtol=1e-9, atol=1e-9)


def test_sums_of_the_notebooks_cell(sandwich: Sandwich, x: Tensor) -> None:
    """Rows of active output latents against every input latent, active or not, from the reference's autograd."""
    function, expected = _reference(sandwich), torch.zeros(sandwich.outputs.latents, sandwich.inputs.latents)
    for token in x:
        s, _ = Dense(sandwich).encode(token, output=False)
        jacobian = torch.autograd.functional.jacobian(function, s)
        expected = expected + torch.where((function(s) > 0)[:, None], jacobian.abs(), 0)
    torch.testing.assert_close(averaging_cell(sandwich, x), expected, rtol=1e-9, atol=1e-9)
    assert (expected > 0).sum() > (_ours(sandwich, x).abs().sum(0) > 0).sum()


def _reference(sandwich: Sandwich) -> Callable[[Tensor], Tensor]:
    return reference.sandwich_at_reconstruction(DenseTopK(sandwich.inputs), sandwich.mlp, DenseTopK(sandwich.outputs))


def test_published_interventions(sandwich: Sandwich, x: Tensor) -> None:
    """Each of a token's pairs, its input latent at 0, against the reference."""
    out, in_ = _active(sandwich, x[0])
    pairs = [(int(i), int(j)) for i in out for j in in_]
    function = _reference(sandwich)
    s, _ = Dense(sandwich).encode(x[0], output=False)
    found = published_interventions(sandwich, x[0], len(pairs))
    before = function(s)
    expected = [reference.intervene(function, s, j, 0.0)[i] - before[i] for i, j in pairs]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-9, atol=1e-9)
    assert max(map(abs, expected)) > 0.01
