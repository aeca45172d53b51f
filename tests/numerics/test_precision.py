"""Rounded operands: the rounding itself, and what it does to entries, by emulation against float64.

The stated errors are those of `numerics/precision.py`; a test fails where an error is larger, and where it is so much
smaller that the statement is no longer one about this precision.
"""

from dataclasses import replace

import pytest
import torch

from jacobian_core.config import JacobianConfig, RunConfig
from jacobian_core.model.activation_functions import GELU, SILU
from jacobian_core.model.neurons import GatedNeurons
from jacobian_core.numerics.all_inputs import Accumulator, units
from jacobian_core.numerics.partial_sums import merge
from jacobian_core.numerics.precision import TOLERANCE, Precision, as_bf16, as_tf32, exact_products, kept, operand
from jacobian_core.numerics.sandwich import Sandwich
from jacobian_core.request.identity import run_identity
from tests.numerics.helpers import random_sandwich, to_float32

STATED: dict[Precision, float] = {"float32": 1e-6, "tf32": 1e-3, "bf16": 1.5e-2}


def realistic(gated: bool = False) -> Sandwich:
    """float64, as wide as a small real model; the gated one shares the plain one's shapes."""
    sandwich = random_sandwich(1, d_in=64, d_mlp=512, d_out=64, n=(256, 256), k=(16, 16), activation=GELU)
    if not gated:
        return sandwich
    g = torch.Generator().manual_seed(2)
    W_in = torch.randn(64, 1024, generator=g, dtype=torch.float64) / 8
    mlp = replace(sandwich.mlp, W_in=W_in, b_in=torch.zeros(1024).double(), neurons=GatedNeurons(SILU))
    return Sandwich.build(sandwich.inputs, mlp, sandwich.outputs, "reconstruction")


def in_precision(sandwich: Sandwich, precision: Precision) -> Sandwich:
    single = to_float32(sandwich)
    return replace(single, kernel=replace(single.kernel, precision=precision))


def largest_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest error over entries, relative to the token's largest value."""
    return float(((found.double() - exact).abs().amax((1, 2)) / exact.abs().amax((1, 2))).max())


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("precision", list(STATED))
def test_entries_err_as_much_as_stated(precision: Precision, gated: bool) -> None:
    exact = realistic(gated)
    state = exact.state(torch.randn(128, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    single = in_precision(exact, precision)
    rounded = replace(state, z=state.z.float())
    J = largest_error(single.kernel.first(rounded), exact.kernel.first(state))
    K = largest_error(single.kernel.second(rounded), exact.kernel.second(state))
    assert STATED[precision] / 20 < max(J, K) <= STATED[precision]
    assert STATED[precision] * 4 <= TOLERANCE[precision]


def test_sums_over_all_inputs_follow_the_precision() -> None:
    exact = realistic()
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def sums(sandwich: Sandwich) -> torch.Tensor:
        accumulator = Accumulator(sandwich.kernel, range(256))
        accumulator.add(replace(exact.state(x), z=exact.state(x).z.to(sandwich.mlp.W_in.dtype)))
        return merge([accumulator.partial()], range(256), 256, units(sandwich.kernel)).sum_abs

    expected = sums(exact)
    errors = {p: float((sums(in_precision(exact, p)) - expected).abs().max() / expected.max()) for p in STATED}
    assert errors["float32"] < 1e-6 < errors["tf32"] < 5e-4 < errors["bf16"] < 5e-3


@pytest.mark.parametrize(("rounding", "bits"), [(as_tf32, 10), (as_bf16, 7)])
def test_rounding_is_to_nearest_even(rounding, bits: int) -> None:  # type: ignore[no-untyped-def]
    step = 2.0**-bits
    exact = [0.0, -0.0, 1.0, -1.0, 1 + step, 2.0**-100, -3.0 * 2.0**90]
    assert rounding(torch.tensor(exact)).tolist() == exact
    ties = torch.tensor([1 + step / 2, 1 + 3 * step / 2, -1 - step / 2, 2 - step / 2])
    assert rounding(ties).tolist() == [1.0, 1 + 2 * step, -1.0, 2.0]
    x = torch.randn(4096, generator=torch.Generator().manual_seed(1))
    error = (rounding(x).double() - x.double()).abs() / x.abs()
    assert step / 4 < float(error.max()) <= step / 2
    assert abs(float((rounding(x).double().abs() - x.double().abs()).mean())) < step / 100, "rounding must not shrink"


def test_cutting_digits_off_would_be_noticed() -> None:
    """What a tensor core does to float32 operands: the mean of |x| shrinks, which rounding to nearest does not do."""
    x = torch.randn(4096, generator=torch.Generator().manual_seed(1))
    cut = (x.view(torch.int32) & -(1 << 13)).view(torch.float32)
    assert float((cut.double().abs() - x.double().abs()).mean()) < -(2.0**-10) / 10


def test_only_bf16_changes_what_is_kept() -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(1))
    assert operand(x, "float32") is x
    assert kept(x, "tf32") is x
    assert torch.equal(kept(x, "bf16"), as_bf16(x))
    assert not torch.equal(as_bf16(x), x)


def test_torch_is_told_not_to_round_by_itself() -> None:
    torch.set_float32_matmul_precision("high")
    exact_products()
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction


def test_precision_belongs_to_the_runs_identity() -> None:
    def identity(**jacobian: object) -> dict[str, object]:
        config = RunConfig(
            sae={"source": "folder", "location": "x"}, model={"name": "m"},
            corpus={"source": "folder", "location": "c"}, jacobian=JacobianConfig(**jacobian),
        )  # fmt: skip
        return run_identity(config, {}, {}, [])

    assert identity() == identity(precision="float32")
    assert "precision" not in identity()["jacobian"]
    assert len({str(identity(precision=p)) for p in STATED}) == 3
