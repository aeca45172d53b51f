"""One optimiser step of a pair's training: losses, Adam, decoder norms, and the memory of which latents are alive.

Adam at a constant rate with a linear fall at the end; lambda rises over its warm-up; the decoders' rows are brought
back to length one after every step. Nothing in a step waits for the device but the count of dead latents.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int

from jacobian_core.training.batches import open_batches, step_seed
from jacobian_core.training.config import TrainPairConfig
from jacobian_core.training.dictionary import DictionaryPair
from jacobian_core.training.loss import PairLosses, Scale, pair_losses
from jacobian_core.training.revival import resample
from jacobian_core.training.source import MlpSource
from jacobian_core.training.text import stream_digest

Dead: TypeAlias = tuple[Bool[torch.Tensor, " n_in"], Bool[torch.Tensor, " n_out"]]
FUSED_DEVICES = ("cpu", "cuda")
_NOT_RESULT = {
    "training_shards", "held_out_shards", "model_name", "dataset_name", "output", "token_folder", "activation_folder",
    "evaluation_tokens", "thresholds", "log_every_steps", "checkpoint", "checkpoint_seconds", "storage_dtype",
    "export_format", "device", "threads",
}  # fmt: skip
"""Settings that do not change what a training's steps compute."""


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step did; tensors stay on the device."""

    losses: PairLosses
    loss: Float[torch.Tensor, ""]
    coefficient: float
    dead: Dead


class PairTrainer:
    """The dictionaries and their optimiser; `step` makes one optimiser step."""

    def __init__(self, config: TrainPairConfig, source: MlpSource, stream: Int[torch.Tensor, " stream"]) -> None:
        self.config, self.source = config, source
        self.batches = open_batches(config, source, stream)
        self.tokens_per_step = config.windows_per_step * (config.context_tokens - 1)
        self.steps = -(-config.tokens // self.tokens_per_step)
        mlp, device = source.mlp, torch.device(config.device)
        pair = DictionaryPair(mlp.d_in, mlp.d_out, config.latents, config.active_latents, config.seed)
        self.pair = pair.to(device)
        self.scale = Scale.of(self.batches.draw(config.statistics_tokens, step=-1))
        self.pair.inputs.centre(self.scale.mean_in)
        self.pair.outputs.centre(self.scale.mean_out)
        fused = device.type in FUSED_DEVICES
        self.optimiser = torch.optim.Adam(self.pair.parameters(), lr=config.learning_rate, fused=fused)
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16_autocast)

    def step(self, step: int) -> StepResult:
        """Make step number `step`, from 0; the pair must be as the step before left it."""
        config, pair, progress = self.config, self.pair, step / self.steps
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * decay(progress, config.decay_fraction)
        coefficient = config.jacobian_coefficient * warmup(progress, config.jacobian_warmup_fraction)
        seen = step * self.tokens_per_step
        dead = tuple(side.dead(seen, config.dead_after_tokens) for side in (pair.inputs, pair.outputs))
        batch = self.batches.draw(self.tokens_per_step, step)
        if self._resamples(step):
            for side, which, x in zip((pair.inputs, pair.outputs), dead, batch, strict=True):
                resample(side, self.optimiser, which, x, step_seed(config, step))
                side.last_active[which] = seen
        with self._autocast:
            losses = pair_losses(
                pair,
                self.source.mlp,
                batch,
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
        return StepResult(losses, loss.detach(), coefficient, (dead[0], dead[1]))

    def _resamples(self, step: int) -> bool:
        """Whether dead latents begin anew at this step: at intervals, and not while the rate falls."""
        interval, seen = self.config.resample_every_tokens, step * self.tokens_per_step
        if interval is None or step == 0 or step >= self.steps * (1 - self.config.decay_fraction):
            return False
        return seen // interval > (seen - self.tokens_per_step) // interval


def training_key(config: TrainPairConfig, stream: Int[torch.Tensor, " stream"]) -> str:
    """A digest of what a training's steps depend on: its settings and its text."""
    asked = config.model_dump(mode="json", exclude=_NOT_RESULT)
    asked |= {"stored": config.activation_folder is not None, "text": stream_digest(stream)}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def total_loss(losses: PairLosses, config: TrainPairConfig, coefficient: float) -> Float[torch.Tensor, ""]:
    """`mse_in + mse_out + lambda / k^2 sum |J|` (a mean over tokens) and the weighted revival loss."""
    jacobian = coefficient / config.active_latents**2 * losses.mean_sum_abs
    return losses.mse_in + losses.mse_out + jacobian + config.revival_coefficient * losses.revival


def warmup(progress: float, fraction: float) -> float:
    """Share of lambda after `progress` (0 to 1) of the steps: a line from 0 to 1 over the first `fraction`."""
    return min(progress / fraction, 1.0) if fraction else 1.0


def decay(progress: float, fraction: float) -> float:
    """Share of the learning rate after `progress` (0 to 1) of the steps: a line to 0 over the last `fraction`."""
    return min((1 - progress) / fraction, 1.0) if fraction else 1.0
