"""The kernel behind J and K against float64 in closed form, which `test_jacobian.py` holds against autograd.

Tolerances are those of `precision.TOLERANCE`, relative to a token's largest value; against the eager path in the same
precision, whose operands are the same, only the order of the float32 sum differs: 2e-6.
"""

from dataclasses import replace

import pytest
import torch

from jacobian_core.model.activation_functions import GELU, SILU
from jacobian_core.model.mlp import OutputNorm
from jacobian_core.model.neurons import GatedNeurons
from jacobian_core.numerics import reference
from jacobian_core.numerics.codes import Codes
from jacobian_core.numerics.precision import TOLERANCE
from jacobian_core.numerics.sandwich import Sandwich
from tests.numerics.gpu.devices import DEVICES, TritonProducts, eager, moved_sandwich, moved_state
from tests.numerics.helpers import random_sandwich
from tests.numerics.test_jacobian import reference_function
from tests.numerics.test_precision import largest_error

ORDER_OF_SUM = 2e-6


def gated(sandwich: Sandwich) -> Sandwich:
    g = torch.Generator().manual_seed(2)
    d_in, d_mlp = sandwich.mlp.d_in, sandwich.mlp.d_mlp
    W_in = torch.randn(d_in, 2 * d_mlp, generator=g, dtype=torch.float64) / d_in**0.5
    b_in = 0.3 * torch.randn(2 * d_mlp, generator=g, dtype=torch.float64)
    mlp = replace(sandwich.mlp, W_in=W_in, b_in=b_in, neurons=GatedNeurons(SILU))
    return Sandwich.build(sandwich.inputs, mlp, sandwich.outputs, sandwich.evaluate_at)


def sandwich_of(k: tuple[int, int], gate: bool = False, d_mlp: int = 37) -> Sandwich:
    n = (max(23, 2 * k[0]), max(31, 2 * k[1]))
    plain = random_sandwich(1, d_mlp=d_mlp, n=n, k=k, activation=GELU, out_bias=-0.2)
    return gated(plain) if gate else plain


def inputs(sandwich: Sandwich, tokens: int) -> torch.Tensor:
    return torch.randn(tokens, sandwich.mlp.d_in, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gate", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("k", [(1, 1), (3, 3), (16, 16), (33, 33), (5, 70)], ids=str)
def test_equal_to_float64(k: tuple[int, int], gate: bool, device: str) -> None:
    exact = sandwich_of(k, gate)
    state = exact.state(inputs(exact, 2))
    kernel = moved_sandwich(exact, device).kernel
    single = moved_state(state, device)
    for found, expected in (
        (kernel.first(single), exact.kernel.first(state)),
        (kernel.second(single), exact.kernel.second(state)),
    ):
        assert found.shape == (2, k[1], k[0])
        assert largest_error(found.cpu(), expected) < TOLERANCE["float32"]
        assert largest_error(found.cpu().roll(1, 0), expected) > TOLERANCE["float32"], "tokens exchanged"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("gate", [False, True], ids=["plain", "gated"])
def test_equal_to_the_eager_path_in_every_precision(gate: bool, precision: str, device: str) -> None:
    exact = sandwich_of((9, 6), gate, d_mlp=64)
    state = moved_state(exact.state(inputs(exact, 3)), device)
    sandwich = moved_sandwich(exact, device, precision)
    assert sandwich.kernel.device.E.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    plain = moved_sandwich(exact, device)
    for order in ("first", "second"):
        found = getattr(sandwich.kernel, order)(state)
        expected = getattr(eager(sandwich).kernel, order)(state).double()
        assert largest_error(found, expected) < ORDER_OF_SUM
        if precision != "float32":
            assert largest_error(getattr(plain.kernel, order)(state), expected) > ORDER_OF_SUM


@pytest.mark.parametrize("device", DEVICES)
def test_active_entries_equal_autograd(device: str) -> None:
    exact = sandwich_of((4, 6))
    x = inputs(exact, 3)
    state = exact.state(x)
    J = moved_sandwich(exact, device).kernel.first(moved_state(state, device)).cpu().double()
    for token in range(3):
        out, in_, expected = reference.active_entries(*reference_function(exact, x[token]))
        rows, columns = state.outputs.active[token], state.inputs.active[token]
        assert torch.equal(state.outputs.index[token][rows], out)
        assert torch.equal(state.inputs.index[token][columns], in_)
        found = J[token][rows][:, columns]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("device", DEVICES)
def test_one_token_and_none(device: str) -> None:
    exact = sandwich_of((4, 6))
    kernel = moved_sandwich(exact, device).kernel
    for tokens in (1, 0):
        state = exact.state(inputs(exact, 1)[:tokens])
        found = kernel.first(moved_state(state, device))
        assert found.shape == (tokens, 6, 4)
        torch.testing.assert_close(found.cpu().double(), exact.kernel.first(state), rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_latents_given_twice_and_in_any_order(device: str) -> None:
    """Short rows of codes end in the last latent, given again and again; ties keep no order of their own."""
    exact = sandwich_of((4, 6))
    state = exact.state(inputs(exact, 2))
    index = torch.tensor([[22, 22, 22, 22], [7, 0, 7, 22]])
    repeated = replace(state, inputs=Codes(index, state.inputs.value, state.inputs.margin))
    found = moved_sandwich(exact, device).kernel.first(moved_state(repeated, device)).cpu()
    assert largest_error(found, exact.kernel.first(repeated)) < 1e-5
    assert torch.equal(found[0, :, :1].expand(-1, 4), found[0])
    assert torch.equal(found[1, :, 0], found[1, :, 2])
    assert not torch.equal(found[1, :, 0], found[1, :, 1])


@pytest.mark.parametrize("device", DEVICES)
def test_what_a_unit_of_the_input_code_is_worth(device: str) -> None:
    exact = sandwich_of((4, 6))
    state = replace(exact.state(inputs(exact, 2)), scale=torch.tensor([[2.0], [0.5]]).double())
    kernel = moved_sandwich(exact, device).kernel
    single = moved_state(state, device)
    assert largest_error(kernel.first(single).cpu(), exact.kernel.first(state)) < 1e-5
    assert largest_error(kernel.second(single).cpu(), exact.kernel.second(state)) < 1e-5
    assert largest_error(kernel.first(replace(single, scale=None)).cpu(), exact.kernel.first(state)) > 0.1


def test_norms_and_float64_are_not_covered() -> None:
    exact = sandwich_of((4, 6))
    with pytest.raises(ValueError, match="norm"):
        TritonProducts.of(exact.kernel)
    single = eager(moved_sandwich(exact, "cpu"))
    normed = replace(single.mlp, norm=OutputNorm(torch.ones(5), 1e-6))
    with pytest.raises(ValueError, match="norm"):
        TritonProducts.of(replace(single.kernel, mlp=normed))


@pytest.mark.parametrize("mistake", ["slopes", "gate and line", "square"])
def test_the_comparison_notices(mistake: str) -> None:
    """Siblings: a dropped derivative, the two halves of a gated state exchanged, K without its second factor of D."""
    exact = sandwich_of((4, 6), gate=True)
    state = exact.state(inputs(exact, 2))
    products = TritonProducts.of(moved_sandwich(exact, "cpu").kernel)
    at = (state.outputs.index, state.inputs.index)
    slopes, curvatures = (f(state.z).float() for f in (exact.mlp.neurons.slopes, exact.mlp.neurons.curvatures))
    expected = exact.kernel.second(state) if mistake == "square" else exact.kernel.first(state)
    right = products.second(curvatures, *at) if mistake == "square" else products.first(slopes, *at)
    wrong = {
        "slopes": lambda: products.first(torch.ones_like(slopes), *at),
        "gate and line": lambda: products.first(torch.cat(slopes.chunk(2, 1)[::-1], 1), *at),
        "square": lambda: products.first(curvatures, *at),
    }[mistake]()
    assert largest_error(right, expected) < 1e-5
    assert largest_error(wrong, expected) > 1e-2
