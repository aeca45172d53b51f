"""`x W^T + b` with weights that stay: laid out once for the CPU's own matrix product.

oneDNN multiplies by weights that it has laid out beforehand at 106 GFLOPS a core where MKL, torch's default, gives 84
(float32, Zen 4), and in bfloat16 at 210. What it gives for a row depends neither on the rows beside it nor on
the number of threads, so results do not hang on how tokens are cut into chunks. The price is a second copy of the
weights, so large ones are left as they are. Without oneDNN, on a GPU and under autograd, torch does the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_PACKED_DTYPES = (torch.float32, torch.bfloat16)
_LARGEST_BYTES = 256 << 20
_PROBE_ROWS = 2
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest difference from torch's own product relative to its largest value: some roundings of each precision."""


@dataclass(frozen=True)
class Affine:
    """`x -> x weight^T + bias`; `packed` is the weight as oneDNN lays it out, None where torch multiplies."""

    weight: Float[Tensor, "d_to d_from"]
    bias: Float[Tensor, "d_to"] | None
    packed: Any = None

    @classmethod
    def of(cls, weight: Float[Tensor, "d_to d_from"], bias: Float[Tensor, "d_to"] | None) -> Affine:
        """The map, laid out if that can be done and gives what torch gives."""
        plain = cls(weight, bias)
        if not _can_be_packed(plain.weight):
            return plain
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(_PROBE_ROWS, weight.shape[1], generator=generator).to(weight.dtype)
        with torch.no_grad():
            found = cls(weight, bias, torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous()))
            expected = plain(probe).float()
            error = (found(probe).float() - expected).abs().max()
        return found if error <= _TOLERANCE[weight.dtype] * expected.abs().max() else plain

    def __call__(self, x: Float[Tensor, "*rows d_from"]) -> Float[Tensor, "*rows d_to"]:
        """The map of every row."""
        wants_gradient = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if self.packed is None or wants_gradient or not x.numel():
            return nn.functional.linear(x, self.weight, self.bias)
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) == 1:  # oneDNN has another way for a single row, which adds in another order
            return self._multiply(rows.repeat(2, 1))[:1].reshape(*x.shape[:-1], -1)
        return self._multiply(rows).reshape(*x.shape[:-1], -1)

    def _multiply(self, rows: Float[Tensor, "rows d_from"]) -> Float[Tensor, "rows d_to"]:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, "none", [], "")
        return result


def _can_be_packed(weight: Tensor) -> bool:
    """Whether oneDNN is there, and the weight is one for it."""
    if weight.device.type != "cpu" or weight.dtype not in _PACKED_DTYPES or 0 in weight.shape:
        return False
    if weight.numel() * weight.element_size() > _LARGEST_BYTES or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


class PackedLinear(nn.Module):
    """A linear layer of a model that only runs forward; laid out when first run, so unused layers cost nothing."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._affine: Affine | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        if self._affine is None:
            self._affine = Affine.of(self.weight, self.bias)
        return self._affine(x)


def pack_linear_layers(module: nn.Module) -> None:
    """Replace every plain linear layer inside a module by its packed form, over the same parameters."""
    for name, part in [(name, part) for name, part in module.named_modules() if type(part) is nn.Linear]:
        if name and _can_be_packed(part.weight):
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, PackedLinear(part))
