"""Train a small GPT-NeoX language model from nothing, on a CPU, in a time that is set beforehand.

One plain loop: random windows of a token stream, AdamW, warm-up and cosine. The schedule follows whichever of the two
budgets (tokens, minutes) is further used up, so a slow machine still ends on a small learning rate; with `minutes` set
the result depends on the machine's speed, with tokens alone it depends on the seed only. A training that is killed
continues from its last checkpoint with the windows that it would have seen.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int

from jacobian_core.training.checkpoint import Checkpointer
from jacobian_core.training.config import LanguageModelConfig
from jacobian_core.training.text import consecutive_windows, random_windows, stream_digest

if TYPE_CHECKING:
    from transformers import GPTNeoXForCausalLM

BETAS = (0.9, 0.95)
FINAL_RATE_SHARE = 0.05
GRADIENT_NORM = 1.0
EVALUATION_WINDOWS = 32


@dataclass(frozen=True)
class LanguageModelProgress:
    """One record of the training's stream: counts since its start, the loss of one batch."""

    step: int
    tokens: int
    loss_nats: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class TrainedLanguageModel:
    """The model (float32, evaluation mode) and what its training took, earlier parts of a resumed one included."""

    model: "GPTNeoXForCausalLM"
    steps: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class LanguageModelEvaluation:
    """Loss on held-out text: predicted tokens (BOS is never one), nats a token, bits a byte of those tokens' text."""

    tokens: int
    nats_per_token: float
    bits_per_byte: float


def build_language_model(config: LanguageModelConfig) -> "GPTNeoXForCausalLM":
    """A seeded float32 model with random weights; parallel residual, exact GELU and untied embeddings as in Pythia."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(config.seed)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=config.vocabulary_size,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp_width,
            max_position_embeddings=config.max_positions,
            hidden_act="gelu",
            use_parallel_residual=True,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def schedule(progress: float, warmup_fraction: float) -> float:
    """Share of the peak learning rate after `progress` (0 to 1) of the training."""
    if progress < warmup_fraction:
        return max(progress / warmup_fraction, 1e-3)
    done = (min(progress, 1.0) - warmup_fraction) / (1 - warmup_fraction)
    return FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * 0.5 * (1 + math.cos(math.pi * done))


def train_language_model(
    config: LanguageModelConfig,
    stream: Int[torch.Tensor, " stream"],
    checkpoint: Path,
    on_record: Callable[[LanguageModelProgress], None] = lambda _: None,
) -> TrainedLanguageModel:
    """Train until a budget is used up.

    Args:
        config: shape and schedule.
        stream: training token ids, documents end to end.
        checkpoint: file that is written regularly and, if it exists, continued from.
        on_record: called with each progress record.

    Raises:
        CorpusError: the stream is shorter than one window.
        ConfigError: the checkpoint belongs to another training.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    model = build_language_model(config).train()
    optimiser = _optimiser(model, config)
    key = config.model_dump_json(exclude={"checkpoint_seconds", "log_every_steps", "threads"})
    state = Checkpointer(checkpoint, config.checkpoint_seconds, model, optimiser, key + stream_digest(stream))
    step = state.resume()
    per_step = config.windows_per_step * config.context_tokens
    while (progress := _progress(config, step * per_step, state.seconds())) < 1:
        rate = config.learning_rate * schedule(progress, config.warmup_fraction)
        for group in optimiser.param_groups:
            group["lr"] = rate
        windows = random_windows(
            stream, count=config.windows_per_step, length=config.context_tokens + 1, seed=(config.seed << 32) + step
        )
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bfloat16_autocast):
            loss = _next_token_loss(model, windows).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        if step % config.log_every_steps == 0:
            on_record(LanguageModelProgress(step, step * per_step, loss.item(), rate, state.seconds()))
        state.save_if_due(step)
    state.save(step)
    return TrainedLanguageModel(model.eval(), step, step * per_step, state.seconds())


@torch.no_grad()
def evaluate_language_model(
    model: "GPTNeoXForCausalLM", stream: Int[torch.Tensor, " stream"], *, context_tokens: int, text_bytes: int
) -> LanguageModelEvaluation:
    """Mean loss over consecutive windows of held-out text.

    Args:
        model: the model, of any floating dtype.
        stream: held-out token ids, documents end to end.
        context_tokens: length of a window; each window's first token is only context.
        text_bytes: UTF-8 bytes of the text that the whole stream stands for, to turn nats a token into bits a byte.
    """
    bos = model.config.bos_token_id
    total, count = 0.0, 0
    for part in torch.split(consecutive_windows(stream, length=context_tokens), EVALUATION_WINDOWS):
        windows = part.long()
        losses = _next_token_loss(model, windows)
        kept = windows[:, 1:].flatten() != bos
        total += losses[kept].double().sum().item()
        count += int(kept.sum())
    bytes_per_token = text_bytes / int((stream != bos).sum())
    return LanguageModelEvaluation(count, total / count, total / count / math.log(2) / bytes_per_token)


def _progress(config: LanguageModelConfig, tokens: int, seconds: float) -> float:
    """Share of the training that is done, by whichever budget is further used up."""
    by_time = seconds / (60 * config.minutes) if config.minutes else 0.0
    return max(tokens / config.tokens, by_time)


def _next_token_loss(
    model: "GPTNeoXForCausalLM", windows: Int[torch.Tensor, "rows context"]
) -> Float[torch.Tensor, " predicted"]:
    """Cross-entropy in nats of each token of each window but the first, windows end to end."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten(), reduction="none")


def _optimiser(model: torch.nn.Module, config: LanguageModelConfig) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=BETAS, fused=True)
