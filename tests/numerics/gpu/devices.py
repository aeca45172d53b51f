"""Where the kernels run in these tests: on a GPU where there is one, and in Triton's interpreter on the CPU otherwise.

`tests/conftest.py` decides, before Triton is imported. Without Triton the tests are skipped, and say so.
"""

from dataclasses import replace

import pytest
import torch

from jacobian_core.numerics.codes import Codes
from jacobian_core.numerics.sandwich import Sandwich
from jacobian_core.numerics.state import SandwichState

pytest.importorskip("triton", reason="Triton is not installed: pip install -e '.[dev]' on Linux x86-64 brings it")

from jacobian_core.numerics.gpu.gathered import TritonProducts

DEVICES = [
    pytest.param("cpu", id="interpreter", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")),
    pytest.param(
        "cuda", id="gpu", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
    ),
]


def moved_state(state: SandwichState, device: str) -> SandwichState:
    """A state on another device, in float32."""

    def codes(c: Codes) -> Codes:
        return Codes(c.index.to(device), c.value.float().to(device), c.margin.float().to(device))

    scale = None if state.scale is None else state.scale.float().to(device)
    return SandwichState(codes(state.inputs), codes(state.outputs), state.z.float().to(device), scale)


def moved_sandwich(sandwich: Sandwich, device: str, precision: str = "float32") -> Sandwich:
    """A float64 sandwich in float32 on a device, with the kernels for its products."""
    parts = (part.to(device, torch.float32) for part in (sandwich.inputs, sandwich.mlp, sandwich.outputs))
    single = Sandwich.build(*parts, sandwich.evaluate_at, precision)
    return replace(single, kernel=replace(single.kernel, device=TritonProducts.of(single.kernel)))


def eager(sandwich: Sandwich) -> Sandwich:
    """The same without the kernels."""
    return replace(sandwich, kernel=replace(sandwich.kernel, device=None))
