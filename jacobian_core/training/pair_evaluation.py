"""What a trained pair is worth, on text that neither it nor the language model was trained on.

A penalty on |J| can be met without any sparsity, by making every element smaller. So beside the counts above thresholds
stand three measures that do not change when J is multiplied by a number: a token's L1 norm over its L2 norm (over
the number of elements' square root: 1 is flat), its kurtosis, and the share of |J| that its largest twentieth holds.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int

from jacobian_core.training.config import TrainPairConfig
from jacobian_core.training.dictionary import DictionaryPair
from jacobian_core.training.loss import MlpBatch, channel_gains, pair_matrices
from jacobian_core.training.penalty import active_jacobian
from jacobian_core.training.source import MlpSource
from jacobian_core.training.text import consecutive_windows, with_leading_bos

ROWS_AT_ONCE = 4
LARGEST_SHARE = 0.05


@dataclass(frozen=True)
class PairEvaluation:
    """Figures over held-out tokens, BOS excluded.

    `fvu_*` is the squared error over the variance of these tokens. `dead_*` is the share of latents that no token
    made active. `mean_active_*` are latents a token. `mean_abs_jacobian` is over elements with both latents
    active; `elements_above` are elements a token, by threshold. The last three are means over tokens, scale-free.
    """

    tokens: int
    fvu_in: float
    fvu_out: float
    dead_in: float
    dead_out: float
    mean_active_in: float
    mean_active_out: float
    mean_abs_jacobian: float
    elements_above: dict[str, float]
    flatness: float
    kurtosis: float
    largest_twentieth_share: float


@dataclass
class _Reconstruction:
    """Running sums of one side, in float64."""

    latents: int
    tokens: int = 0
    error: float = 0.0
    square: float = 0.0
    active: int = 0
    total: Float[torch.Tensor, " d"] | float = 0.0
    seen: Bool[torch.Tensor, " n"] = field(init=False)

    def __post_init__(self) -> None:
        self.seen = torch.zeros(self.latents, dtype=torch.bool)

    def add(self, x: Float[torch.Tensor, "tokens d"], error: Float[torch.Tensor, "tokens d"]) -> None:
        self.tokens += len(x)
        self.error += error.double().square().sum().item()
        self.square += x.double().square().sum().item()
        self.total = x.double().sum(0) + self.total

    def fvu(self) -> float:
        variance = self.square - torch.as_tensor(self.total).square().sum().item() / self.tokens
        return self.error / variance


@torch.no_grad()
def evaluate_pair(
    config: TrainPairConfig, pair: DictionaryPair, source: MlpSource, stream: Int[torch.Tensor, " stream"]
) -> PairEvaluation:
    """Measure a pair on consecutive windows of a held-out stream, up to `config.evaluation_tokens`.

    Raises:
        CorpusError: the stream is shorter than one window.
    """
    sides = tuple(_Reconstruction(config.latents) for _ in range(2))
    jacobian = _JacobianSums(config.thresholds)
    E, D = pair_matrices(pair, source.mlp)
    for batch in _batches(config, source, stream):
        codes = []
        for side, dictionary, x in zip(sides, (pair.inputs, pair.outputs), batch, strict=True):
            code = dictionary.encode(x)
            side.add(x, x - dictionary.decode(code))
            side.active += int(code.active.sum())
            side.seen[code.index[code.active].cpu()] = True
            codes.append(code)
        elements = active_jacobian(E, D, channel_gains(source.mlp, batch.x), codes[1], codes[0])
        both = codes[1].active[:, :, None] & codes[0].active[:, None, :]
        jacobian.add(elements.flatten(1), both.flatten(1))
    tokens = sides[0].tokens
    return PairEvaluation(
        tokens=tokens,
        fvu_in=sides[0].fvu(),
        fvu_out=sides[1].fvu(),
        dead_in=1 - sides[0].seen.double().mean().item(),
        dead_out=1 - sides[1].seen.double().mean().item(),
        mean_active_in=sides[0].active / tokens,
        mean_active_out=sides[1].active / tokens,
        mean_abs_jacobian=jacobian.abs_sum / max(jacobian.elements, 1),
        elements_above={f"{level:g}": count / tokens for level, count in jacobian.above.items()},
        flatness=jacobian.flatness / tokens,
        kurtosis=jacobian.kurtosis / tokens,
        largest_twentieth_share=jacobian.largest / tokens,
    )


class _JacobianSums:
    """Running sums over tokens of what is said of the Jacobian's elements."""

    def __init__(self, thresholds: tuple[float, ...]) -> None:
        self.above = dict.fromkeys(thresholds, 0)
        self.elements = 0
        self.abs_sum = self.flatness = self.kurtosis = self.largest = 0.0

    def add(self, elements: Float[torch.Tensor, "tokens pairs"], both: Bool[torch.Tensor, "tokens pairs"]) -> None:
        """Add tokens' elements; those where not both latents are active hold 0 and do not count."""
        elements = elements.double()
        size, count = elements.abs(), both.sum(1).clamp_min(1)
        self.elements += int(both.sum())
        self.abs_sum += size.sum().item()
        for level in self.above:
            self.above[level] += int((size > level).sum())
        l1, square = size.sum(1).clamp_min(1e-30), elements.square().sum(1).clamp_min(1e-60)
        self.flatness += (l1 / (square * count).sqrt()).sum().item()
        mean = elements.sum(1) / count
        centred = (elements - mean[:, None]) * both
        squared = centred.square().sum(1).square().clamp_min(1e-60)
        self.kurtosis += (centred.pow(4).sum(1) * count / squared).sum().item()
        rank = size.argsort(1, descending=True).argsort(1)
        self.largest += (size * (rank < LARGEST_SHARE * count[:, None])).sum(1).div(l1).sum().item()


def _batches(config: TrainPairConfig, source: MlpSource, stream: torch.Tensor) -> Iterator[MlpBatch]:
    """Activations of consecutive windows, each led by BOS as in training."""
    windows = consecutive_windows(stream, length=config.context_tokens)
    rows = -(-config.evaluation_tokens // (config.context_tokens - 1))
    for part in torch.split(windows[:rows], ROWS_AT_ONCE):
        yield source.read(with_leading_bos(part, source.bos_token_id))
