"""Aggregates over all inputs against the notebook's dense accumulation by autograd, and against themselves merged anew.

Tolerance: float64 J on both sides; sums are rounded to the accumulator's unit once a token, so they may differ by half
a unit a token.
"""

import random

import pytest
import torch

from jacobian_core.config import AllInputsConfig
from jacobian_core.errors import ConfigError
from jacobian_core.numerics import reference
from jacobian_core.numerics.all_inputs import GROUP_TOKENS, Accumulator, bound, refuse_too_large, tile_rows, units
from jacobian_core.numerics.partial_sums import ExactSum, PairSums, Partial, load_partial, merge, save_partial
from jacobian_core.numerics.sandwich import Sandwich
from tests.numerics.helpers import random_sandwich, to_float32
from tests.numerics.test_jacobian import reference_function

CHUNK = 10


def chunks(sandwich: Sandwich, tokens: int) -> list[torch.Tensor]:
    x = torch.randn(tokens, sandwich.mlp.d_in, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return list(x.to(sandwich.mlp.W_in.dtype).split(CHUNK))


def partial_of(sandwich: Sandwich, parts: list[torch.Tensor], tiles: int = 1) -> list[Partial]:
    found = []
    for tile in range(tiles):
        accumulator = Accumulator(sandwich.kernel, tile_rows(sandwich.outputs.latents, tiles, tile))
        for x in parts:
            accumulator.add(sandwich.state(x))
        found.append(accumulator.partial())
    return found


def merged(sandwich: Sandwich, partials: list[Partial]) -> PairSums:
    rows = range(sandwich.outputs.latents)
    return merge(partials, rows, sandwich.inputs.latents, units(sandwich.kernel))


def dense(sandwich: Sandwich, parts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The notebook's cell: the full Jacobian of each token by autograd, accumulated densely."""
    jacobians, coactive = [], []
    for x in torch.cat(parts):
        function, s = reference_function(sandwich, x.double())
        jacobians.append(reference.jacobian(function, s))
        coactive.append(((function(s) > 0)[:, None] & (s > 0)[None, :]).double())
    return reference.pair_sums(torch.stack(jacobians), torch.stack(coactive))


def compare(sandwich: Sandwich, found: PairSums, expected: dict[str, torch.Tensor], tokens: int) -> None:
    tolerance = 0.6 * tokens / units(sandwich.kernel).value
    rows = found.out_latent
    silent = torch.ones(sandwich.outputs.latents, dtype=torch.bool)
    silent[rows] = False
    assert expected["sum_abs"][silent].abs().max() == 0
    for name in ("sum", "sum_abs"):
        torch.testing.assert_close(getattr(found, name), expected[name][rows], rtol=1e-13, atol=tolerance)
    square = 0.6 * tokens / units(sandwich.kernel).square
    torch.testing.assert_close(found.sum_sq, expected["sum_sq"][rows], rtol=1e-13, atol=square)
    torch.testing.assert_close(found.max_abs, expected["max_abs"][rows].float(), rtol=1e-6, atol=0)
    assert torch.equal(found.n_coactive, expected["n_coactive"][rows].long())


def test_equal_to_the_notebooks_accumulation_over_500_tokens() -> None:
    sandwich = random_sandwich(1, n=(40, 31), k=(5, 6), out_bias=-0.3)
    parts = chunks(sandwich, 500)
    found, expected = merged(sandwich, partial_of(sandwich, parts)), dense(sandwich, parts)
    compare(sandwich, found, expected, 500)
    shares = {t: float((expected["sum_abs"] / 500 > t).double().mean()) for t in (0.0, 1e-4, 1e-2)}
    for threshold, share in shares.items():
        above = int((found.sum_abs / 500 > threshold).sum())
        assert above / expected["sum_abs"].numel() == pytest.approx(share, abs=1e-12)
    expected["sum_abs"] = expected["sum_abs"].T.contiguous().reshape(expected["sum_abs"].shape)
    with pytest.raises(AssertionError):
        compare(sandwich, found, expected, 500)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_grouping_and_order_is_identical(dtype: str) -> None:
    sandwich = random_sandwich(1, n=(40, 31), k=(5, 6))
    sandwich = to_float32(sandwich) if dtype == "float32" else sandwich
    parts = chunks(sandwich, 500)
    whole = merged(sandwich, partial_of(sandwich, parts))
    draw = random.Random(1)
    for blocks in (3, 7):
        order = draw.sample(range(len(parts)), len(parts))
        groups = [partial_of(sandwich, [parts[i] for i in order[b::blocks]])[0] for b in range(blocks)]
        draw.shuffle(groups)
        other = merged(sandwich, groups)
        for name in ("out_latent", "n_out_active", "n_coactive", "sum", "sum_abs", "sum_sq", "max_abs"):
            assert torch.equal(getattr(whole, name), getattr(other, name)), name
    assert not torch.equal(whole.sum, merged(sandwich, partial_of(sandwich, parts[:-1])).sum)


@pytest.mark.parametrize("tiles", [2, 3, 31])
def test_tiles_are_the_same_sums(tiles: int) -> None:
    sandwich = random_sandwich(1, n=(40, 31), k=(5, 6))
    parts = chunks(sandwich, 60)
    whole, tiled = merged(sandwich, partial_of(sandwich, parts)), merged(sandwich, partial_of(sandwich, parts, tiles))
    assert torch.equal(whole.n_coactive, tiled.n_coactive)
    tolerance = 60 / units(sandwich.kernel).value
    torch.testing.assert_close(whole.sum, tiled.sum, rtol=1e-12, atol=tolerance)


def test_a_kept_partial_comes_back(tmp_path) -> None:  # type: ignore[no-untyped-def]
    sandwich = random_sandwich(1)
    (partial,) = partial_of(sandwich, chunks(sandwich, 20))
    save_partial(partial, tmp_path / "group.safetensors")
    again = load_partial(tmp_path / "group.safetensors")
    assert all(torch.equal(getattr(partial, f), getattr(again, f)) for f in partial.__dataclass_fields__)


def test_no_jacobian_exceeds_the_bound() -> None:
    sandwich = random_sandwich(2)
    for x in chunks(sandwich, 50):
        state = sandwich.state(x)
        assert sandwich.kernel.first(state).abs().max() <= bound(sandwich.kernel)
    assert units(sandwich.kernel).value * bound(sandwich.kernel) * GROUP_TOKENS <= 2.0**62


def test_limbs_do_not_overflow() -> None:
    total = ExactSum((1, 2))
    big = torch.tensor([[2**62, -(2**62) + 1]])
    for _ in range(1000):
        total.add(torch.tensor([0]), big)
    assert total.scaled(1.0)[0].tolist() == [1000 * 2.0**62, float(1000 * (-(2**62) + 1))]


def test_too_many_tokens_in_a_partial_are_refused() -> None:
    sandwich = random_sandwich(1)
    accumulator = Accumulator(sandwich.kernel, range(31))
    accumulator._tokens = GROUP_TOKENS
    with pytest.raises(OverflowError):
        accumulator.add(sandwich.state(torch.ones(1, 7, dtype=torch.float64)))


def test_memory_is_refused_with_the_number_of_tiles() -> None:
    with pytest.raises(ConfigError, match=r"8.00 GiB.*all_inputs.tiles=4"):
        refuse_too_large(16384, 16384, AllInputsConfig(max_memory_bytes=2 << 30))
    refuse_too_large(16384, 16384, AllInputsConfig(max_memory_bytes=2 << 30, tiles=4))


def test_rounded_sums_obey_what_any_numbers_obey() -> None:
    """J far below the unit: what is rounded away must not leave sums that the lake's own checks call impossible."""
    sandwich = random_sandwich()
    unit = units(sandwich.kernel)
    shape = (1, sandwich.inputs.latents)
    largest = torch.full(shape, 0.4 / unit.value, dtype=torch.float32)
    zeros = torch.zeros(shape, dtype=torch.int64)
    three = torch.full((1,), 3, dtype=torch.int64)
    # Three |J| of 0.4 units: each rounds to 0, while its square rounds up to a step of its own.
    part = Partial(torch.zeros(1, dtype=torch.int64), three, zeros.int(), zeros, zeros, zeros + 3, largest)
    sums = merge([part], range(1), shape[1], unit)
    exact = largest.double()
    assert float(3 / unit.square) > float(3 * exact.square().max()), "the case must be one that rounding spoils"
    assert (sums.sum_abs >= exact).all()
    assert (sums.sum_abs <= 3 * exact).all()
    assert (sums.sum_sq <= sums.sum_abs * exact).all()
    assert (sums.sum_sq * 3 >= sums.sum_abs.square() * (1 - 1e-12)).all()
    assert (sums.sum.abs() <= sums.sum_abs).all()
