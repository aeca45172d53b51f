"""The penalty against autograd through the whole sandwich, in float64, and against its own slow twin."""

import pytest
import torch

from jacobian_core.model.activation_functions import GELU, SILU
from jacobian_core.model.mlp import Mlp
from jacobian_core.model.neurons import GatedNeurons, PlainNeurons
from jacobian_core.training import penalty
from jacobian_core.training.config import TrainPairConfig
from jacobian_core.training.dictionary import DictionaryPair, Selection
from jacobian_core.training.loss import MlpBatch, PairLosses, Scale, channel_gains, pair_losses, pair_matrices
from jacobian_core.training.trainer import decay, total_loss, warmup

K = 5
TOKENS = 7


@pytest.fixture(params=["plain", "gated"])
def sandwich(request: pytest.FixtureRequest) -> tuple[DictionaryPair, Mlp, MlpBatch]:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    neurons = PlainNeurons(GELU) if request.param == "plain" else GatedNeurons(SILU)
    width = 11 * neurons.channels
    size = 1.0 / neurons.channels  # a product of two paths is larger, and would leave no latent clamped
    mlp = Mlp(size * draw(6, width), size * draw(width), size * draw(11, 4), draw(4), neurons)
    pair = DictionaryPair(6, 4, 24, K, seed=1).double()
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.add_(0.3 * draw(*parameter.shape))
        pair.outputs.b_enc.sub_(1.2)  # some selected output latents clamp at 0
    x = draw(TOKENS, 6)
    return pair, mlp, MlpBatch(x, mlp(x))


def no_dead(pair: DictionaryPair) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(24, dtype=torch.bool), torch.zeros(24, dtype=torch.bool)


def losses_of(pair: DictionaryPair, mlp: Mlp, batch: MlpBatch, every: int = 1) -> PairLosses:
    scale = Scale.of(batch)
    return pair_losses(pair, mlp, batch, scale, dead=no_dead(pair), revival_latents=3, jacobian_every_tokens=every)


def autograd_sum_abs(pair: DictionaryPair, mlp: Mlp, batch: MlpBatch) -> float:
    """Mean over tokens of sum |d t / d s| by autograd through decoder, MLP and encoder, at the true MLP input."""
    total = 0.0
    for x, y in zip(*batch, strict=True):
        inputs, outputs = pair.inputs.encode(x[None]), pair.outputs.encode(y[None])
        chosen_in = inputs.index[inputs.active]
        chosen_out = outputs.index[outputs.active]

        def code(s: torch.Tensor, at: torch.Tensor = x, rows: torch.Tensor = chosen_in) -> torch.Tensor:
            return pair.outputs.preactivations(mlp(at + s @ pair.inputs.W_dec[rows])[None])[0]

        jacobian = torch.autograd.functional.jacobian(code, torch.zeros(len(chosen_in), dtype=torch.float64))
        total += jacobian[chosen_out].abs().sum().item()
    return total / len(batch.x)


def test_penalty_is_the_autograd_jacobian(sandwich: tuple[DictionaryPair, Mlp, MlpBatch]) -> None:
    pair, mlp, batch = sandwich
    losses = losses_of(pair, mlp, batch)
    assert not bool(losses.code_out.active.all()), "the test needs clamped latents"
    expected = autograd_sum_abs(pair, mlp, batch)
    assert losses.mean_sum_abs.item() == pytest.approx(expected, rel=1e-12)


def test_penalty_on_every_second_token_is_that_of_those_tokens(sandwich: tuple[DictionaryPair, Mlp, MlpBatch]) -> None:
    pair, mlp, batch = sandwich
    half = MlpBatch(batch.x[::2], batch.y[::2])
    every_second = losses_of(pair, mlp, batch, every=2).mean_sum_abs.item()
    assert every_second == pytest.approx(autograd_sum_abs(pair, mlp, half), rel=1e-12)
    assert every_second != pytest.approx(autograd_sum_abs(pair, mlp, batch), rel=1e-2)


def test_penalty_without_the_activations_derivative_is_not(sandwich: tuple[DictionaryPair, Mlp, MlpBatch]) -> None:
    pair, mlp, batch = sandwich
    E, D = pair_matrices(pair, mlp)
    ones = tuple(torch.ones_like(gain) for gain in channel_gains(mlp, batch.x))
    losses = losses_of(pair, mlp, batch)
    wrong = penalty.sum_abs_jacobian(E, D, ones, losses.code_out, losses.code_in).item() / TOKENS
    assert wrong != pytest.approx(autograd_sum_abs(pair, mlp, batch), rel=1e-2)


def test_penalty_transposed_is_not(sandwich: tuple[DictionaryPair, Mlp, MlpBatch]) -> None:
    pair, mlp, batch = sandwich
    E, D = pair_matrices(pair, mlp)
    losses = losses_of(pair, mlp, batch)
    gains = channel_gains(mlp, batch.x)
    wrong = penalty.sum_abs_jacobian(D[0], (E,) * len(D), gains, losses.code_out, losses.code_in).item()
    assert wrong / TOKENS != pytest.approx(autograd_sum_abs(pair, mlp, batch), rel=1e-4)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_fused_penalty_and_gradients_equal_the_slow_twin(
    monkeypatch: pytest.MonkeyPatch, channels: int, chunk: int
) -> None:
    monkeypatch.setattr(penalty, "chunk_tokens", lambda *_: chunk)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def selection(n: int, k: int) -> Selection:
        index = torch.stack([torch.randperm(n, generator=generator)[:k] for _ in range(TOKENS)])
        return Selection(index, draw(TOKENS, k).relu())

    E = draw(20, 9).requires_grad_()
    D = tuple(draw(15, 9).requires_grad_() for _ in range(channels))
    gains = tuple(draw(TOKENS, 9) for _ in range(channels))
    codes = selection(20, 6), selection(15, 4)
    results = []
    for function in (penalty.sum_abs_jacobian, penalty.penalty_by_autograd):
        value = function(E, D, gains, *codes)
        results.append((value, *torch.autograd.grad(3 * value, (E, *D))))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
        assert slow.abs().sum() > 0


def test_total_loss_is_the_published_one(
    sandwich: tuple[DictionaryPair, Mlp, MlpBatch], pair_config: TrainPairConfig
) -> None:
    pair, mlp, batch = sandwich
    config = pair_config.model_copy(update={"active_latents": K, "revival_coefficient": 0.0})
    coded = [side.encode(x) for side, x in zip((pair.inputs, pair.outputs), batch, strict=True)]
    errors = [
        (x - side.decode(code)).square().sum(1).mean() / x.var(0, correction=0).sum()
        for side, code, x in zip((pair.inputs, pair.outputs), coded, batch, strict=True)
    ]
    expected = sum(errors, torch.zeros(())) + 0.7 / K**2 * autograd_sum_abs(pair, mlp, batch)
    assert total_loss(losses_of(pair, mlp, batch), config, 0.7).item() == pytest.approx(
        float(expected.detach()), rel=1e-12
    )


def test_schedules() -> None:
    assert [warmup(p, 0.05) for p in (0.0, 0.025, 0.05, 1.0)] == pytest.approx([0, 0.5, 1, 1])
    assert warmup(0.0, 0.0) == 1
    assert [decay(p, 0.2) for p in (0.0, 0.8, 0.9, 1.0)] == pytest.approx([1, 1, 0.5, 0])
    assert decay(1.0, 0.0) == 1
