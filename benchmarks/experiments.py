"""Benchmark `experiments`: interventions against the published loop, sums over all inputs against the notebook's cell.

Both are written here from their definitions. The published loop changes one latent for each pair and runs the MLP and
the output SAE anew; ours changes each latent once and looks at all outputs. The notebook's cell takes a token's dense
Jacobian by autograd and adds it to dense matrices. Its matrices and ours would take 4 and 9 GB at pythia-70m's shape,
so ours are measured on one of `_TILES` tiles of the output latents, times their number.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.contenders import Dense
from benchmarks.measure import interleaved
from benchmarks.shapes import PYTHIA_70M, make_config
from benchmarks.suite import Options, Results
from jacobian_core import pipeline
from jacobian_core.corpus.staging import load_block
from jacobian_core.lake.layout import Lake
from jacobian_core.numerics.all_inputs import Accumulator, tile_rows
from jacobian_core.numerics.interventions import change_latents
from jacobian_core.numerics.sandwich import Sandwich
from jacobian_core.numerics.strata import all_pairs
from jacobian_core.work.compute import BlockComputer, StageSeconds
from jacobian_core.work.worker import worker_for

_PUBLISHED_PAIRS, _OUR_TOKENS = 24, 16
_SUMMED_TOKENS, _TILES = 256, 16


def measure(options: Options) -> Results:
    """Microseconds of a token by both ways of both, and their ratios."""
    with tempfile.TemporaryDirectory() as name:
        config = make_config(PYTHIA_70M, Path(name), 1_000)
        run = pipeline.resolve_run(config, pipeline.fetch_artifact(config))
        computer = worker_for(run).computer
        staged = pipeline.stage_blocks(run, run.shards[0], None, 1_000, 1_000).blocks[0]
        block = load_block(Lake(Path(run.lake)).staged_path(run.run_id, staged.block_id))
        x = computer.activations(block, StageSeconds())
        with torch.no_grad():
            figures = _interventions(computer, x, options.turns)
            figures |= _all_inputs(computer, x, options.turns)
    return {"experiments": figures}


def published_interventions(sandwich: Sandwich, x: Tensor, pairs: int) -> list[Tensor]:
    """What the output latent does when the input latent of each of a token's first pairs is set to 0."""
    dense = Dense(sandwich)
    s, _ = dense.encode(x, output=False)
    t = dense.run(s)
    found = []
    for i, j in torch.cartesian_prod(torch.nonzero(t)[:, 0], torch.nonzero(s)[:, 0])[:pairs]:
        changed = s.clone()
        changed[j] = 0
        found.append(dense.run(changed)[i] - t[i])
    return found


def _interventions(computer: BlockComputer, x: Tensor, turns: int) -> dict[str, float]:
    sandwich, size = computer.sandwich, computer.crew.size

    def ours_of(part: Tensor) -> object:
        state = sandwich.state(part)
        pairs = all_pairs(state.outputs, state.inputs, torch.ones(len(part), dtype=torch.bool), 1.0)
        return change_latents(sandwich, state, pairs, torch.zeros(len(pairs.token)))

    few = x[:_OUR_TOKENS]
    timings = interleaved(
        {
            "ours": lambda: list(computer.crew.map(ours_of, few.chunk(size))),
            "published": lambda: published_interventions(sandwich, x[0], _PUBLISHED_PAIRS),
        },
        turns,
    )
    each = PYTHIA_70M.k**2 / _PUBLISHED_PAIRS
    figures = {
        "us_per_token_interventions": 1e6 * timings["ours"].median / len(few),
        "us_per_token_interventions_published": 1e6 * timings["published"].median * each,
    }
    ratio = figures["us_per_token_interventions_published"] / figures["us_per_token_interventions"]
    return figures | {"speedup_interventions": ratio}


def averaging_cell(sandwich: Sandwich, x: Tensor) -> Tensor:
    """The notebook's cell: dense sums and maxima of |J| over tokens, by autograd."""
    dense = Dense(sandwich)
    total = torch.zeros(sandwich.outputs.latents, sandwich.inputs.latents, dtype=x.dtype)
    largest = torch.zeros_like(total)
    for token in x:
        s, _ = dense.encode(token, output=False)
        t = dense.run(s)

        def sliced(code: Tensor) -> Tensor:
            out = dense.run(code)
            return out[out > 0]

        with torch.enable_grad():
            jacobian = torch.autograd.functional.jacobian(sliced, s)
        whole = torch.zeros_like(total)
        whole[t > 0] = jacobian.detach().abs()
        total += whole
        largest = torch.max(largest, whole)
    return total


def _all_inputs(computer: BlockComputer, x: Tensor, turns: int) -> dict[str, float]:
    sandwich, tokens = computer.sandwich, x[:_SUMMED_TOKENS]
    accumulator = Accumulator(sandwich.kernel, tile_rows(sandwich.outputs.latents, _TILES, 0))
    state = sandwich.state(tokens)
    ours = interleaved({"state": lambda: sandwich.state(tokens), "tile": lambda: accumulator.add(state)}, turns)
    notebook = interleaved({"notebook": lambda: averaging_cell(sandwich, x[:1])}, max(1, turns // 2))
    figures = {
        "us_per_token_all_inputs": 1e6 * (ours["state"].median + _TILES * ours["tile"].median) / len(tokens),
        "us_per_token_all_inputs_notebook": 1e6 * notebook["notebook"].median,
    }
    ratio = figures["us_per_token_all_inputs_notebook"] / figures["us_per_token_all_inputs"]
    return figures | {"speedup_all_inputs": ratio}
