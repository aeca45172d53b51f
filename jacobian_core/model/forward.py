"""The quick way to an MLP's input: the plain Hugging Face module with fused attention, ended where the MLP begins.

`TransformerBridge` names every activation, and pays for it with eager attention and a hook around every part. Here the
same parameters (shared, not copied) stand in a second module tree without hooks. Texts are causal and padded on the
right only, so padding is never attended and no mask is passed: attention takes its fused causal path. Linear layers are
laid out for the CPU's own matrix product (`affine.py`) when they first run. In blocks whose
MLP runs beside the attention, the last block's attention is not needed and not computed.

Nothing here is trusted: `checked_forward` compares with the bridge's own hook when a model is loaded. Where they
differ, or where the architecture has its parts in other places, the bridge does the work.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from jacobian_core.model.affine import pack_linear_layers

log = logging.getLogger(__name__)

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest difference from the bridge relative to the largest value: some 100 roundings of the model's precision, which
fused and eager attention make in another order; a wrong norm, mask or layer is off by more than 0.1."""


class _ReachedError(Exception):
    """The forward pass has come to where it ends; carries what was wanted."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


@dataclass(frozen=True)
class PlainModule:
    """A Hugging Face module without hooks, and the name of each module that the bridge was given."""

    module: nn.Module
    names: dict[int, str]

    @classmethod
    def beside(cls, original: nn.Module) -> PlainModule:
        """A second tree of modules over the parameters and buffers of `original`, which the bridge may then rebuild."""
        shared = {id(tensor): tensor for tensor in [*original.parameters(), *original.buffers()]}
        names = {id(part): name for name, part in original.named_modules()}
        return cls(copy.deepcopy(original, dict(shared)).eval(), names)

    def counterpart(self, bridged: Any) -> nn.Module:
        """The module here that a part of the bridge wraps; LookupError if there is none."""
        name = self.names[id(bridged.original_component)]
        return self.module.get_submodule(name)


@dataclass(frozen=True)
class Forward:
    """Runs the module up to one point; `finish` makes the MLP's input of what arrives there."""

    module: nn.Module
    finish: Callable[[Tensor], Tensor]

    def __call__(self, vocab_ids: Int[Tensor, "rows context"]) -> Float[Tensor, "rows context d_in"]:
        """The MLP's input at every position of right-padded rows; positions beyond a row's end are noise."""
        try:
            self.module(input_ids=vocab_ids, use_cache=False)
        except _ReachedError as reached:
            return self.finish(reached.value)
        raise RuntimeError("the forward pass ended before the MLP")


@dataclass(frozen=True)
class Probe:
    """Right-padded rows, which of their positions are real, and what the bridge's hook has there."""

    vocab_ids: Int[Tensor, "rows context"]
    real: Bool[Tensor, "rows context"]
    expected: Float[Tensor, "rows context d_in"]


def checked_forward(plain: PlainModule, block: Any, probe: Probe) -> Forward | None:
    """The quick forward pass to the input of a block's MLP, or None where it can't be shown to be the bridge's.

    `block` is the bridge's block; `plain` was made before the bridge wrapped the module, and is used up.
    """
    with suppress(ValueError):  # Gemma 2 caps attention's logits, which fused attention can't: eager, without hooks
        plain.module.set_attn_implementation("sdpa")  # type: ignore[operator]
    pack_linear_layers(plain.module)
    for build in (_ended_at_block, _ended_at_mlp):
        try:
            forward, handle = build(plain, block)
            with torch.no_grad():
                found = forward(probe.vocab_ids)[probe.real]
        except Exception as problem:  # any architecture may break an assumption made here: then the bridge is run
            log.debug("%s: %r", build.__name__, problem)
            continue
        expected = probe.expected[probe.real]
        error = float((found - expected).abs().max() / expected.abs().max())
        if error <= TOLERANCE[found.dtype]:
            log.info("%s: within %.1g of the bridge", build.__name__.strip("_"), error)
            return forward
        handle.remove()
    log.warning("the quick forward pass does not give this model's MLP input; the bridge is run")
    return None


def _stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    del module
    raise _ReachedError(args[0] if args else kwargs["hidden_states"])


def _ended_at_block(plain: PlainModule, block: Any) -> tuple[Forward, Any]:
    """For blocks whose MLP reads the block's own input through `ln2`: GPT-NeoX's parallel residual."""
    handle = plain.counterpart(block).register_forward_pre_hook(_stop, with_kwargs=True)
    try:
        return Forward(plain.module, plain.counterpart(block.ln2)), handle
    except BaseException:
        handle.remove()
        raise


def _ended_at_mlp(plain: PlainModule, block: Any) -> tuple[Forward, Any]:
    """For all others: the block runs until its MLP is called."""
    handle = plain.counterpart(block.mlp).register_forward_pre_hook(_stop, with_kwargs=True)
    return Forward(plain.module, lambda x: x), handle
