"""FVU of a block: on its evenly spaced sample, against the definition by dense codes in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jacobian_core.model.quality import BlockFit
from jacobian_core.numerics.sandwich import Sandwich
from tests.numerics.helpers import DenseTopK, random_sandwich


def activations(tokens: int, seed: int = 5) -> Tensor:
    return torch.randn(tokens, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(sandwich: Sandwich, x: Tensor) -> tuple[float, float]:
    """sum |x - x^|^2 / sum |x - mean|^2, token by token, of the MLP's input and of its output."""
    found = []
    for dictionary, true in ((sandwich.inputs, x), (sandwich.outputs, sandwich.mlp(x))):
        dense = DenseTopK(dictionary)
        lost = sum(float((row - dense.decode(dense.encode(row))).square().sum()) for row in true)
        there = sum(float((row - true.mean(0)).square().sum()) for row in true)
        found.append(lost / there)
    return found[0], found[1]


def fit_of(sandwich: Sandwich, x: Tensor, limit: int) -> dict[str, float]:
    fit = BlockFit(limit)
    fit.measure(sandwich, x)
    return fit.figures


@pytest.mark.parametrize(("tokens", "limit"), [(200, 1000), (32, 32), (200, 64), (201, 50), (99, 98)])
@pytest.mark.parametrize("evaluate_at", ["reconstruction", "activation"])
def test_it_is_the_definition_on_evenly_spaced_tokens(tokens: int, limit: int, evaluate_at: str) -> None:
    sandwich, x = random_sandwich(evaluate_at=evaluate_at), activations(tokens)  # type: ignore[arg-type]
    found = fit_of(sandwich, x, limit)
    rows = sorted({number * tokens // min(limit, tokens) for number in range(min(limit, tokens))})
    assert found["fvu_tokens"] == len(rows) == min(limit, tokens)
    assert (found["fvu_in"], found["fvu_out"]) == pytest.approx(by_hand(sandwich, x[rows]), rel=1e-12)


def test_the_definition_would_notice_other_rows_and_another_side() -> None:
    sandwich, x = random_sandwich(), activations(200)
    found, first = fit_of(sandwich, x, 64), by_hand(sandwich, x[:64])
    assert found["fvu_in"] != pytest.approx(first[0], rel=1e-3)
    assert found["fvu_in"] != pytest.approx(found["fvu_out"], rel=1e-3)


def test_a_dictionary_that_fits_worse_shows() -> None:
    sandwich, x = random_sandwich(), activations(200)
    assert fit_of(sandwich, x * 3 + 5, 128)["fvu_in"] > 1.2 * fit_of(sandwich, x, 128)["fvu_in"]


@pytest.mark.parametrize("x", [activations(31), activations(0), torch.ones(64, 7, dtype=torch.float64)])
def test_a_block_too_short_or_without_variance_says_nothing(x: Tensor) -> None:
    assert fit_of(random_sandwich(), x, 128) == {}


def test_it_can_be_left_out_and_the_same_tokens_give_the_same_bits() -> None:
    sandwich, x = random_sandwich(), activations(150)
    assert fit_of(sandwich, x, 0) == {}
    assert fit_of(sandwich, x, 40) == fit_of(sandwich, x.clone(), 40)
