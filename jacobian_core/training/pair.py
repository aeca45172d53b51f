"""Train a pair of TopK dictionaries on one MLP's input and output, with the Jacobian between their codes penalised.

`sae_lens` trains one dictionary at a time, so two that are coupled by a penalty are trained here. Adam at a constant
rate with a linear fall at the end; lambda rises over its warm-up; the decoders' rows are brought back to length one
after every step. Every step's tokens depend on the seed and the step's number only (`batches.py`), so a training that
was killed continues with the data it would have seen. What holds a step up is the penalty: it takes longer than the
rest together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Int

from jacobian_core.training.batches import open_batches
from jacobian_core.training.checkpoint import Checkpointer
from jacobian_core.training.config import TrainPairConfig
from jacobian_core.training.dictionary import DictionaryPair
from jacobian_core.training.loss import PairLosses, Scale, pair_losses
from jacobian_core.training.source import MlpSource

Dead: TypeAlias = tuple[Bool[torch.Tensor, " n_in"], Bool[torch.Tensor, " n_out"]]
FUSED_DEVICES = ("cpu", "cuda")


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
        ConfigError: the checkpoint was made with another shape of pair.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    trainer = _Trainer(config, source, stream)
    state = Checkpointer(config.checkpoint, config.checkpoint_seconds, trainer.pair, trainer.optimiser)
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


def total_loss(losses: PairLosses, config: TrainPairConfig, coefficient: float) -> torch.Tensor:
    """`mse_in + mse_out + lambda / k^2 sum |J|` (a mean over tokens) and the weighted revival loss."""
    jacobian = coefficient / config.active_latents**2 * losses.mean_sum_abs
    return losses.mse_in + losses.mse_out + jacobian + config.revival_coefficient * losses.revival


def warmup(progress: float, fraction: float) -> float:
    """Share of lambda after `progress` (0 to 1) of the steps: a line from 0 to 1 over the first `fraction`."""
    return min(progress / fraction, 1.0) if fraction else 1.0


def decay(progress: float, fraction: float) -> float:
    """Share of the learning rate after `progress` (0 to 1) of the steps: a line to 0 over the last `fraction`."""
    return min((1 - progress) / fraction, 1.0) if fraction else 1.0


@dataclass(frozen=True)
class _Step:
    """What one optimiser step did."""

    losses: PairLosses
    loss: float
    coefficient: float
    dead: Dead


class _Trainer:
    """The dictionaries and their optimiser; `step` makes one optimiser step."""

    def __init__(self, config: TrainPairConfig, source: MlpSource, stream: Int[torch.Tensor, " stream"]) -> None:
        self.config, self.source = config, source
        self.batches = open_batches(config, source, stream)
        self.tokens_per_step = config.windows_per_step * (config.context_tokens - 1)
        self.steps = -(-config.tokens // self.tokens_per_step)
        mlp = source.mlp
        pair = DictionaryPair(mlp.d_in, mlp.d_out, config.latents, config.active_latents, config.seed)
        self.pair = pair.to(config.device)
        self.scale = Scale.of(self.batches.draw(config.statistics_tokens, step=-1))
        self.pair.inputs.centre(self.scale.mean_in)
        self.pair.outputs.centre(self.scale.mean_out)
        fused = config.device in FUSED_DEVICES
        self.optimiser = torch.optim.Adam(self.pair.parameters(), lr=config.learning_rate, fused=fused)

    def step(self, step: int) -> _Step:
        """Make step number `step`, from 0; the pair must be as the step before left it."""
        config, pair, progress = self.config, self.pair, step / self.steps
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * decay(progress, config.decay_fraction)
        coefficient = config.jacobian_coefficient * warmup(progress, config.jacobian_warmup_fraction)
        seen = step * self.tokens_per_step
        dead = tuple(side.dead(seen, config.dead_after_tokens) for side in (pair.inputs, pair.outputs))
        losses = pair_losses(
            pair,
            self.source.mlp,
            self.batches.draw(self.tokens_per_step, step),
            self.scale,
            dead=(dead[0], dead[1]),
            revival_latents=config.revival_latents,
            jacobian_every_tokens=config.jacobian_every_tokens if config.jacobian_coefficient else None,
        )
        loss = total_loss(losses, config, coefficient)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        pair.normalise_decoders()
        pair.inputs.remember(losses.code_in, seen + self.tokens_per_step)
        pair.outputs.remember(losses.code_out, seen + self.tokens_per_step)
        return _Step(losses, loss.item(), coefficient, (dead[0], dead[1]))


def _record(config: TrainPairConfig, result: _Step, step: int, tokens: int, seconds: float) -> PairProgress:
    losses, penalised = result.losses, config.jacobian_coefficient > 0
    return PairProgress(
        step=step,
        tokens=tokens,
        loss=result.loss,
        fvu_in=losses.mse_in.item(),
        fvu_out=losses.mse_out.item(),
        mean_abs_jacobian=losses.mean_sum_abs.item() / config.active_latents**2 if penalised else None,
        jacobian_coefficient=result.coefficient,
        dead_in=result.dead[0].double().mean().item(),
        dead_out=result.dead[1].double().mean().item(),
        tokens_per_second=tokens / seconds,
    )
