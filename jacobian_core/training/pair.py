"""Train a pair of TopK dictionaries on one MLP's input and output, with the Jacobian between their codes penalised.

`sae_lens` trains one dictionary at a time, so two that are coupled by a penalty are trained here (`trainer.py` makes a
step). Every step's tokens depend on the seed and the step's number only (`batches.py`), so a training that was killed
continues with the data it would have seen, and ends with the same bits.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int

from jacobian_core.training.checkpoint import Checkpointer
from jacobian_core.training.config import TrainPairConfig
from jacobian_core.training.dictionary import DictionaryPair
from jacobian_core.training.source import MlpSource
from jacobian_core.training.trainer import PairTrainer, StepResult, training_key


@dataclass(frozen=True)
class PairProgress:
    """One record of the training's stream.

    `fvu_*` are one batch's squared errors over the variances measured before training; `dead_*` are shares of latents;
    `mean_abs_jacobian` is over the k^2 selected elements of each token, null while lambda is 0.
    """

    step: int
    tokens: int
    loss: float
    fvu_in: float
    fvu_out: float
    mean_abs_jacobian: float | None
    jacobian_coefficient: float
    dead_in: float
    dead_out: float
    tokens_per_second: float

    def line(self) -> str:
        """The record as one line of plain text."""
        jacobian = "" if self.mean_abs_jacobian is None else f" · mean |J| {self.mean_abs_jacobian:.4f}"
        return (
            f"step {self.step:,} · {self.tokens:,} tokens · loss {self.loss:.4f} · FVU in {self.fvu_in:.4f} "
            f"out {self.fvu_out:.4f} · dead {self.dead_in:.1%} / {self.dead_out:.1%}{jacobian} · "
            f"{self.tokens_per_second:,.0f} tokens/s"
        )


@dataclass(frozen=True)
class TrainedPair:
    """The dictionaries, what their training took, and its last record (None: the checkpoint was finished already)."""

    pair: DictionaryPair
    steps: int
    tokens: int
    seconds: float
    last_record: PairProgress | None


def train_pair(
    config: TrainPairConfig,
    source: MlpSource,
    stream: Int[torch.Tensor, " stream"],
    on_record: Callable[[PairProgress], None] = lambda _: None,
) -> TrainedPair:
    """Train for the configured number of tokens.

    Args:
        config: the training; its paths are not read here.
        source: the model's MLP, on the configured device.
        stream: training token ids, documents end to end.
        on_record: called with each progress record.

    Raises:
        CorpusError: the stream is shorter than one window.
        ConfigError: the checkpoint belongs to another training.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    trainer = PairTrainer(config, source, stream)
    key = training_key(config, stream) if config.checkpoint else ""
    state = Checkpointer(config.checkpoint, config.checkpoint_seconds, trainer.pair, trainer.optimiser, key)
    done = state.resume()
    record: PairProgress | None = None
    for step in range(done, trainer.steps):
        result = trainer.step(step)
        if (step + 1) % config.log_every_steps == 0 or step + 1 == trainer.steps:
            record = _record(config, result, step + 1, (step + 1) * trainer.tokens_per_step, state.seconds())
            on_record(record)
        state.save_if_due(step + 1)
    state.save(max(done, trainer.steps))
    pair = trainer.pair.eval().requires_grad_(False)
    return TrainedPair(pair, trainer.steps, trainer.steps * trainer.tokens_per_step, state.seconds(), record)


def _record(config: TrainPairConfig, result: StepResult, step: int, tokens: int, seconds: float) -> PairProgress:
    losses, penalised = result.losses, config.jacobian_coefficient > 0
    return PairProgress(
        step=step,
        tokens=tokens,
        loss=result.loss.item(),
        fvu_in=losses.mse_in.item(),
        fvu_out=losses.mse_out.item(),
        mean_abs_jacobian=losses.mean_sum_abs.item() / config.active_latents**2 if penalised else None,
        jacobian_coefficient=result.coefficient,
        dead_in=result.dead[0].double().mean().item(),
        dead_out=result.dead[1].double().mean().item(),
        tokens_per_second=tokens / seconds,
    )
