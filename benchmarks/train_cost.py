"""Benchmark `train_cost`: what the Jacobian penalty adds to an optimiser step of a pair of dictionaries.

A traditional pair is the same training with lambda = 0, so the two differ in the penalty alone. Steps of all contenders
take turns on the same stored activations. `with_model` adds to both the forward pass of the language model up to the
MLP, as a training without stored activations has it. `python -m benchmarks.train_cost` runs this benchmark alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from benchmarks.measure import Timing, interleaved
from benchmarks.shapes import DEMO, PYTHIA_70M, Shape, make_model
from benchmarks.suite import Figures, Options, Results
from jacobian_core.config import ModelConfig
from jacobian_core.resources import project_path
from jacobian_core.training.config import TrainPairConfig
from jacobian_core.training.source import MlpSource, load_source
from jacobian_core.training.text import random_windows, read_texts, token_stream, with_leading_bos
from jacobian_core.training.trainer import PairTrainer

EVERY_TOKENS = (1, 4, 8)
_WARM_UP_STEPS = 2
"""Before the first steps every latent counts as dead, and all of them are tried for revival."""
_BIAS_SPREAD = 0.4
"""Standard deviation of the encoders' biases in deviations of a pre-activation: latents are used unevenly."""


def measure(options: Options) -> Results:
    """The figures of each shape, by `train_cost <name>`."""
    known = {shape.name: shape for shape in (DEMO, PYTHIA_70M)}
    return {f"train_cost {name}": measure_shape(known[name], options.turns) for name in options.shapes}


def measure_shape(shape: Shape, turns: int, clock: Callable[[], float] = time.perf_counter) -> Figures:
    """Microseconds a token of a step, and its ratio to the traditional pair's, by how often the penalty is taken."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(shape, folder / "model")
        config = _config(shape, folder)
        source = load_source(config.model)
        stream = token_stream(read_texts(config.training_shards), source.tokenizer)
        trainers = {"traditional": _trainer(config, source, stream, 0.0, 1)}
        for every in EVERY_TOKENS:
            trainers[f"every_{every}"] = _trainer(config, source, stream, 1.0, every)
        steps = {key: _stepper(trainer) for key, trainer in trainers.items()}
        tokens = trainers["traditional"].tokens_per_step
        windows = random_windows(stream, count=config.windows_per_step, length=config.context_tokens, seed=0)
        with_bos = with_leading_bos(windows, source.bos_token_id)
        for _ in range(_WARM_UP_STEPS):
            for step in steps.values():
                step()
        timings = interleaved({**steps, "model": lambda: source.inputs(with_bos)}, turns, clock)
        return _figures(timings, tokens) | _use(trainers[f"every_{EVERY_TOKENS[-1]}"])


def _config(shape: Shape, folder: Path) -> TrainPairConfig:
    return TrainPairConfig(
        model=ModelConfig(name=str(folder / "model"), layer=shape.layer),
        training_shards=(project_path("demo/corpus/00.jsonl.zst"),),
        held_out_shards=(project_path("demo/corpus/01.jsonl.zst"),),
        output=folder / "pair",
        latents=shape.latents,
        active_latents=shape.k,
        windows_per_step=16,
        activation_folder=folder / "activations",
        activation_tokens=8_000,
        statistics_tokens=2_000,
    )


def _trainer(
    config: TrainPairConfig, source: MlpSource, stream: torch.Tensor, coefficient: float, every: int
) -> PairTrainer:
    changed = {"jacobian_coefficient": coefficient, "jacobian_every_tokens": every}
    trainer = PairTrainer(config.model_copy(update=changed), source, stream)
    batch = trainer.batches.draw(500, step=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for side, x in ((trainer.pair.inputs, batch.x), (trainer.pair.outputs, batch.y)):
            spread = _BIAS_SPREAD * side.preactivations(x).std()
            side.b_enc.add_(spread * torch.randn(len(side.b_enc), generator=generator))
    return trainer


def _stepper(trainer: PairTrainer):  # type: ignore[no-untyped-def]
    numbers = itertools.count(trainer.steps // 2)  # after the warm-up, before the decay
    return lambda: trainer.step(next(numbers))


def _figures(timings: Mapping[str, Timing], tokens: int) -> Figures:
    """Median times, and the median over turns of each turn's ratio: a slow minute then hits both of its parts."""
    figures = {f"us_per_token_{key}": 1e6 * timing.median / tokens for key, timing in timings.items()}
    theirs, model = timings["traditional"].turns, timings["model"].turns
    for every in EVERY_TOKENS:
        turns = list(zip(timings[f"every_{every}"].turns, theirs, model, strict=True))
        figures[f"ratio_every_{every}"] = statistics.median(ours / plain for ours, plain, _ in turns)
        with_model = [(ours + shared) / (plain + shared) for ours, plain, shared in turns]
        figures[f"ratio_every_{every}_with_model"] = statistics.median(with_model)
    return figures


def _use(trainer: PairTrainer) -> Figures:
    """Share of the output dictionary's latents that one step's penalty meets: the more, the dearer its matrices."""
    batch = trainer.batches.draw(trainer.tokens_per_step, step=1)
    used, _ = trainer.pair.outputs.encode(batch.y)[:: trainer.config.jacobian_every_tokens].compact()
    return {f"latents_met_every_{EVERY_TOKENS[-1]}": len(used) / trainer.config.latents}


def main() -> None:
    """Measure and print; a line of JSON for each shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3, help="timed steps of each contender")
    parser.add_argument("--shapes", nargs="+", default=["demo", "pythia-70m"], choices=["demo", "pythia-70m"])
    parser.add_argument("--cpu-time", action="store_true", help="CPU time of one thread: for a machine that is shared")
    arguments = parser.parse_args()
    if arguments.cpu_time:
        torch.set_num_threads(1)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    for shape in arguments.shapes:
        figures = measure_shape({s.name: s for s in (DEMO, PYTHIA_70M)}[shape], arguments.turns, clock)
        print(json.dumps({f"train_cost {shape}": {k: float(f"{v:.4g}") for k, v in figures.items()}}), flush=True)


if __name__ == "__main__":
    main()
