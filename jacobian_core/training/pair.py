"""Train a pair of TopK dictionaries on one MLP's input and output, with the Jacobian between their codes penalised.

`sae_lens` trains one dictionary at a time, so two that are coupled by a penalty are trained here. Adam at a constant
rate
with a linear fall at the end; lambda rises over its warm-up; the decoders' rows are brought back to length one after
every step. Every step's windows depend on the seed and the step's number only, so a training that was killed
continues with the data it would have seen. What holds a step up is the penalty: it takes longer than the rest together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Int

from jacobian_core.training.checkpoint import Checkpointer
from jacobian_core.training.config import TrainPairConfig
from jacobian_core.training.dictionary import DictionaryPair
from jacobian_core.training.loss import MlpBatch, PairLosses, Scale, pair_losses
from jacobian_core.training.source import MlpSource
from jacobian_core.training.text import random_windows, with_leading_bos

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
    mlp = source.mlp
    pair = DictionaryPair(mlp.d_in, mlp.d_out, config.latents, config.active_latents, config.seed).to(config.device)
    scale = _prepare(pair, config, source, stream)
    optimiser = torch.optim.Adam(pair.parameters(), lr=config.learning_rate, fused=config.device in FUSED_DEVICES)
    state = Checkpointer(config.checkpoint, config.checkpoint_seconds, pair, optimiser)
    step = state.resume()
    per_step = config.windows_per_step * (config.context_tokens - 1)
    steps = -(-config.tokens // per_step)
    record: PairProgress | None = None
    while step < steps:
        coefficient = config.jacobian_coefficient * warmup(step / steps, config.jacobian_warmup_fraction)
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * decay(step / steps, config.decay_fraction)
        batch = _batch(config, source, stream, config.windows_per_step, step)
        dead = _dead(pair, config, step * per_step)
        losses = pair_losses(
            pair,
            mlp,
            batch,
            scale,
            dead=dead,
            revival_latents=config.revival_latents,
            jacobian_every_tokens=config.jacobian_every_tokens if config.jacobian_coefficient else None,
        )
        loss = total_loss(losses, config, coefficient)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        pair.normalise_decoders()
        step += 1
        pair.inputs.remember(losses.code_in, step * per_step)
        pair.outputs.remember(losses.code_out, step * per_step)
        if step % config.log_every_steps == 0 or step == steps:
            rate = step * per_step / state.seconds()
            record = _record(config, losses, dead, step, step * per_step, loss.item(), coefficient, rate)
            on_record(record)
        state.save_if_due(step)
    state.save(step)
    return TrainedPair(pair.eval().requires_grad_(False), step, step * per_step, state.seconds(), record)


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


def _prepare(pair: DictionaryPair, config: TrainPairConfig, source: MlpSource, stream: torch.Tensor) -> Scale:
    """Measure the losses' scale on the first random windows, and start both dictionaries at the data's means."""
    rows = max(1, config.statistics_tokens // config.context_tokens)
    scale = Scale.of(_batch(config, source, stream, rows, step=-1))
    pair.inputs.centre(scale.mean_in)
    pair.outputs.centre(scale.mean_out)
    return scale


def _batch(config: TrainPairConfig, source: MlpSource, stream: torch.Tensor, rows: int, step: int) -> MlpBatch:
    """The activations of one step's windows, which depend on the seed and the step only."""
    seed = (config.seed << 32) + step + 1
    windows = random_windows(stream, count=rows, length=config.context_tokens, seed=seed)
    return source.read(with_leading_bos(windows, source.bos_token_id))


def _dead(pair: DictionaryPair, config: TrainPairConfig, tokens: int) -> Dead:
    after = config.dead_after_tokens
    return pair.inputs.dead(tokens, after), pair.outputs.dead(tokens, after)


def _record(
    config: TrainPairConfig,
    losses: PairLosses,
    dead: Dead,
    step: int,
    tokens: int,
    loss: float,
    coefficient: float,
    tokens_per_second: float,
) -> PairProgress:
    penalised = config.jacobian_coefficient > 0
    return PairProgress(
        step=step,
        tokens=tokens,
        loss=loss,
        fvu_in=losses.mse_in.item(),
        fvu_out=losses.mse_out.item(),
        mean_abs_jacobian=losses.mean_sum_abs.item() / config.active_latents**2 if penalised else None,
        jacobian_coefficient=coefficient,
        dead_in=dead[0].double().mean().item(),
        dead_out=dead[1].double().mean().item(),
        tokens_per_second=tokens_per_second,
    )
