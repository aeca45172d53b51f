"""Laid-out weights give torch's own product within float32 rounding, whatever stands beside a row."""

import pytest
import torch
from torch import nn

from jacobian_core.model.affine import Affine, PackedLinear, pack_linear_layers


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "d_from", "d_to"), [(1, 8, 3), (7, 129, 65), (100, 64, 256), (0, 8, 3)])
def test_it_is_the_affine_map(rows: int, d_from: int, d_to: int) -> None:
    W, b, x = drawn(d_to, d_from), drawn(d_to, seed=1), drawn(rows, d_from, seed=2)
    found, expected = Affine.of(W, b)(x), (x.double() @ W.double().T + b).float()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * d_from**0.5)
    if rows:
        assert not torch.allclose(found, expected + 0.01, rtol=0, atol=1e-5 * d_from**0.5), "it would notice"


def test_rows_do_not_depend_on_their_neighbours() -> None:
    affine, x = Affine.of(drawn(48, 320), drawn(48, seed=1)), drawn(90, 320, seed=2)
    if affine.packed is None:
        pytest.skip("this machine's torch has no oneDNN")
    whole = affine(x)
    for part in (slice(0, 1), slice(4, 11), slice(11, 90)):
        assert torch.equal(affine(x[part]), whole[part])


def test_gradients_flow() -> None:
    affine = Affine.of(drawn(5, 4), None)
    x = drawn(3, 4, seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad(affine(x).sum(), x)
    torch.testing.assert_close(gradient, affine.weight.sum(0).expand(3, 4))


def test_layers_are_replaced_over_the_same_parameters() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Sequential(nn.Linear(5, 4, bias=False)))
    x = drawn(2, 3, 6)
    expected, before = model(x), [p.data_ptr() for p in model.parameters()]
    pack_linear_layers(model)
    assert isinstance(model[0], PackedLinear)
    assert isinstance(model[2][0], PackedLinear)
    assert [p.data_ptr() for p in model.parameters()] == before
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_other_precisions_are_left_to_torch() -> None:
    assert Affine.of(drawn(4, 3).double(), None).packed is None
