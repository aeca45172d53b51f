"""The kernel behind the sums over all inputs against the eager accumulator and, through it, the notebook's cell.

float32 J of both paths differ by the order of their sums, 2e-6 of the largest |J| a token; the sums of whole steps of
the same J are exact, so any grouping of tokens gives the same bits. The tiles of a product do not depend on each other,
which is what makes the second statement true of the kernel too.
"""

import random
from dataclasses import replace

import pytest
import torch

from jacobian_core.numerics.all_inputs import Accumulator, bound, tile_rows, units
from jacobian_core.numerics.gpu import sums as sums_module
from jacobian_core.numerics.partial_sums import PairSums, merge
from jacobian_core.numerics.sandwich import Sandwich
from jacobian_core.numerics.state import SandwichState
from tests.numerics.gpu.devices import DEVICES, eager, moved_sandwich, moved_state
from tests.numerics.gpu.test_gathered import gated, inputs
from tests.numerics.helpers import random_sandwich

FIELDS = ("out_latent", "n_out_active", "n_coactive", "sum", "sum_abs", "sum_sq", "max_abs")
TOKENS = 12


def exact_sandwich(gate: bool = False) -> Sandwich:
    plain = random_sandwich(1, d_mlp=37, n=(40, 9), k=(5, 4), out_bias=-0.3)
    return gated(plain) if gate else plain


def states(exact: Sandwich, device: str, tokens: int = TOKENS) -> list[SandwichState]:
    """One-token states, in float32: the chunks of every grouping are made of these."""
    whole = moved_state(exact.state(inputs(exact, tokens)), device)
    return [whole.rows(slice(t, t + 1)) for t in range(tokens)]


def joined(parts: list[SandwichState]) -> SandwichState:
    def cat(name: str, field: str) -> torch.Tensor:
        return torch.cat([getattr(getattr(p, name), field) for p in parts])

    codes = [
        replace(getattr(parts[0], n), **{f: cat(n, f) for f in ("index", "value", "margin")})
        for n in ("inputs", "outputs")
    ]
    return SandwichState(codes[0], codes[1], torch.cat([p.z for p in parts]))


def sums(sandwich: Sandwich, groups: list[list[SandwichState]], tiles: int = 1) -> PairSums:
    partials = []
    for group in groups:
        for tile in range(tiles):
            accumulator = Accumulator(sandwich.kernel, tile_rows(sandwich.outputs.latents, tiles, tile))
            for state in group:
                accumulator.add(state)
            partials.append(accumulator.partial())
    return merge(partials, range(sandwich.outputs.latents), sandwich.inputs.latents, units(sandwich.kernel))


def assert_near(found: PairSums, expected: PairSums, tolerance: float) -> None:
    for name in ("out_latent", "n_out_active", "n_coactive"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    for name in ("sum", "sum_abs", "max_abs", "sum_sq"):
        a, b = getattr(found, name).double(), getattr(expected, name).double()
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.abs().max()), msg=name)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("gate", [False, True], ids=["plain", "gated"])
def test_equal_to_the_eager_accumulator(gate: bool, precision: str, device: str) -> None:
    exact = exact_sandwich(gate)
    parts = states(exact, device)
    sandwich = moved_sandwich(exact, device, precision)
    found, expected = sums(sandwich, [[joined(parts)]]), sums(eager(sandwich), [[joined(parts)]])
    assert_near(found, expected, 3e-6)
    with pytest.raises(AssertionError):
        assert_near(found, sums(eager(sandwich), [[joined(parts[1:])]]), 3e-6)
    if precision != "float32":
        with pytest.raises(AssertionError):
            assert_near(found, sums(moved_sandwich(exact, device), [[joined(parts)]]), 3e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_any_grouping_gives_the_same_bits(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = exact_sandwich()
    parts = states(exact, device)
    sandwich = moved_sandwich(exact, device)
    whole = sums(sandwich, [[joined(parts)]])
    order = random.Random(1).sample(parts, len(parts))
    groupings = {"one by one": [parts], "other order": [[joined(order)]], "three": [order[:1], order[1:5], order[5:]]}
    for name, groups in groupings.items():
        other = sums(sandwich, groups)
        assert all(torch.equal(getattr(whole, f), getattr(other, f)) for f in FIELDS), name
    monkeypatch.setattr(sums_module, "HELD_BYTES", 5 * 37 * 4)
    flushed = sums(sandwich, [parts])
    assert all(torch.equal(getattr(whole, f), getattr(flushed, f)) for f in FIELDS)
    lacking = sums(sandwich, [parts[:-1]])
    assert not torch.equal(whole.n_out_active, lacking.n_out_active)


@pytest.mark.parametrize("device", DEVICES)
def test_tiles_are_the_same_bits(device: str) -> None:
    exact = exact_sandwich()
    sandwich, parts = moved_sandwich(exact, device), states(exact, device)
    whole, tiled = sums(sandwich, [[joined(parts)]]), sums(sandwich, [[joined(parts)]], tiles=4)
    assert all(torch.equal(getattr(whole, f), getattr(tiled, f)) for f in FIELDS)


@pytest.mark.parametrize("device", DEVICES)
def test_many_tokens_of_one_latent_and_many_input_tiles(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tokens than a program holds at once, more inputs than a tile, more segments than a group."""
    exact = random_sandwich(2, d_mlp=37, n=(150, 10), k=(5, 10), out_bias=3.0)
    sandwich = moved_sandwich(exact, device)
    state = moved_state(exact.state(inputs(exact, 70)), device)
    assert int(state.outputs.active.sum(0).max()) > sums_module.BLOCK_TOKENS
    assert_near(sums(sandwich, [[state]]), sums(eager(sandwich), [[state]]), 3e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_no_active_latent_and_no_token(device: str) -> None:
    exact = random_sandwich(4, n=(40, 9), k=(5, 4), out_bias=-100.0)
    sandwich = moved_sandwich(exact, device)
    for state in (moved_state(exact.state(inputs(exact, n)), device) for n in (3, 0)):
        assert len(sums(sandwich, [[state]]).out_latent) == 0


@pytest.mark.parametrize("device", DEVICES)
def test_not_a_number_is_refused(device: str) -> None:
    exact = exact_sandwich()
    sandwich, (state, *_) = moved_sandwich(exact, device), states(exact, device)
    broken = replace(state, z=torch.full_like(state.z, torch.nan))
    accumulator = Accumulator(sandwich.kernel, range(9))
    accumulator.add(broken)
    with pytest.raises(FloatingPointError, match="not finite"), torch.no_grad():
        accumulator.partial()
    assert bound(sandwich.kernel) < torch.inf
