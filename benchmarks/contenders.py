"""The ways to get a token's Jacobian that are compared: the notebook's, torch.func's, the published one, ours.

All start from the same folded dictionaries and MLP. The first three are written here from their definitions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional

from jacobian_core.corpus.blocks import TokenBlock
from jacobian_core.numerics.sandwich import Sandwich
from jacobian_core.work.compute import BlockComputer


@dataclass(frozen=True)
class Dense:
    """The sandwich in its textbook form: dense codes, top-k by scatter, differentiable."""

    sandwich: Sandwich

    def encode(self, x: Tensor, output: bool) -> tuple[Tensor, Tensor]:
        """Dense activations of one or many tokens, and the selected latents."""
        dictionary = self.sandwich.outputs if output else self.sandwich.inputs
        pre = x @ dictionary.W_enc + dictionary.b_enc
        top = torch.topk(pre, dictionary.selection.k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, top.indices, functional.relu(top.values)), top.indices

    def hidden(self, s: Tensor) -> Tensor:
        """Hidden pre-activations of dense input activations."""
        decoded = s @ self.sandwich.inputs.W_dec + self.sandwich.inputs.b_dec
        return decoded @ self.sandwich.mlp.W_in + self.sandwich.mlp.b_in

    def output(self, z: Tensor) -> Tensor:
        """The MLP's output of hidden pre-activations."""
        mlp = self.sandwich.mlp
        return mlp.neurons.values(z) @ mlp.W_out + mlp.b_out

    def run(self, s: Tensor) -> Tensor:
        """Dense output activations of dense input activations."""
        return self.encode(self.output(self.hidden(s)), output=True)[0]


def notebook(sandwich: Sandwich, x: Tensor) -> list[Tensor]:
    """The notebook's `get_sliced_jac`, token by token: autograd over a dense code, active rows and columns kept."""
    dense = Dense(sandwich)

    def sliced(s: Tensor) -> Tensor:
        t = dense.run(s)
        return t[t > 0]

    found = []
    for token in x:
        s, _ = dense.encode(token, output=False)
        found.append(torch.autograd.functional.jacobian(sliced, s)[:, s > 0])
    return found


def torch_func(sandwich: Sandwich, x: Tensor) -> Tensor:
    """`vmap(jacrev)` over the active latents alone, their supports given: what torch.func can do at best."""
    state = sandwich.state(x)

    def active_outputs(s: Tensor, in_index: Tensor, out_index: Tensor) -> Tensor:
        decoded = s @ sandwich.inputs.W_dec[in_index] + sandwich.inputs.b_dec
        y = sandwich.mlp.neurons.values(decoded @ sandwich.mlp.W_in + sandwich.mlp.b_in) @ sandwich.mlp.W_out
        pre = (y + sandwich.mlp.b_out) @ sandwich.outputs.W_enc[:, out_index] + sandwich.outputs.b_enc[out_index]
        return functional.relu(pre)

    jacobian = torch.func.vmap(torch.func.jacrev(active_outputs))
    return jacobian(state.inputs.value, state.inputs.index, state.outputs.index)


def published(sandwich: Sandwich, x: Tensor) -> Tensor:
    """The published closed form: dense codes, and one einsum over a whole document; the weight products hoisted."""
    dense = Dense(sandwich)
    s, in_index = dense.encode(x, output=False)
    z = dense.hidden(s)
    _, out_index = dense.encode(dense.output(z), output=True)
    E, D = sandwich.kernel.E[out_index], sandwich.kernel.D[in_index]
    return torch.einsum("tih,th,tjh->tij", E, sandwich.mlp.neurons.slopes(z), D)


def ours(computer: BlockComputer, x: Tensor) -> list[Tensor]:
    """The run's own path from MLP inputs to J: each thread of the crew on a part of the tokens."""
    sandwich = computer.sandwich

    def jacobian(part: Tensor) -> Tensor:
        return sandwich.kernel.first(sandwich.state(part))

    return list(computer.crew.map(jacobian, x.chunk(computer.crew.size)))


def published_run(computer: BlockComputer, block: TokenBlock, folder: Path) -> int:
    """The published path end to end: a document at a time, everything to memory, pyarrow's defaults at the end."""
    bridge = replace(computer.model, forward=None)  # the published code runs TransformerLens with its hooks
    columns: list[dict[str, Any]] = []
    for row in range(len(block.row_offsets) - 1):
        part = slice(int(block.row_offsets[row]), int(block.row_offsets[row + 1]))
        ids = torch.from_numpy(block.vocab_ids[part]).long()[None]
        x = bridge.mlp_inputs(ids, torch.ones_like(ids, dtype=torch.bool))[0, 1:]
        J = published(computer.sandwich, x)
        token, out, in_ = torch.nonzero(J, as_tuple=True)
        columns.append(
            {"token": token.numpy(), "out": out.numpy(), "in": in_.numpy(), "value": J[token, out, in_].numpy()}
        )
    table = pa.concat_tables([pa.table(c) for c in columns])
    pq.write_table(table, folder / "published.parquet")
    return int(table.num_rows)
