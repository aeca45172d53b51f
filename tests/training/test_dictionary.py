"""The dictionary in training: selection, decoder norms, what counts as dead, and the revival of dead latents."""

import torch

from jacobian_core.training.dictionary import DictionaryPair, Selection, TopKDictionary
from jacobian_core.training.loss import MlpBatch, Scale, pair_losses


def test_decoder_rows_have_length_one_after_a_step() -> None:
    pair = DictionaryPair(6, 5, 20, 3)
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.mul_(3).add_(0.1)
    assert not torch.allclose(pair.inputs.W_dec.norm(dim=1), torch.ones(20))
    pair.normalise_decoders()
    for side in (pair.inputs, pair.outputs):
        torch.testing.assert_close(side.W_dec.norm(dim=1), torch.ones(20))


def test_code_and_reconstruction_equal_the_dense_formula() -> None:
    side = TopKDictionary(6, 20, 3, torch.Generator().manual_seed(0))
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    pre = x @ side.W_enc + side.b_enc
    kept = pre >= pre.topk(3, dim=1).values[:, -1:]
    dense = torch.where(kept, pre, 0).relu()
    code = side.encode(x)
    assert torch.equal(torch.zeros_like(dense).scatter(1, code.index, code.value), dense)
    torch.testing.assert_close(side.decode(code), dense @ side.W_dec + side.b_dec)


def test_centred_dictionary_does_not_see_the_mean() -> None:
    side = TopKDictionary(6, 20, 3, torch.Generator().manual_seed(0))
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    before = side.preactivations(x)
    mean = torch.full((6,), 5.0)
    side.centre(mean)
    torch.testing.assert_close(side.preactivations(x + mean), before, rtol=1e-4, atol=1e-4)


def test_latents_die_when_not_active_and_live_when_active() -> None:
    side = TopKDictionary(6, 20, 3)
    code = side.encode(torch.randn(50, 6))
    active = torch.zeros(20, dtype=torch.bool)
    active[code.index[code.active]] = True
    side.remember(code, tokens_seen=1000)
    assert torch.equal(side.dead(1000, dead_after_tokens=500), ~active)
    assert not side.dead(400, dead_after_tokens=500).any(), "nothing is dead before it had its chance"


def test_compact_codes_are_the_same_codes() -> None:
    code = TopKDictionary(6, 20, 3, torch.Generator().manual_seed(0)).encode(torch.randn(4, 6))
    used, compact = code.compact()
    assert torch.equal(used[compact.index], code.index)
    assert used.tolist() == sorted(set(code.index.flatten().tolist()))
    assert torch.equal(compact.value, code.value)


def test_a_latent_that_is_not_active_is_not_remembered() -> None:
    side = TopKDictionary(6, 20, 3)
    code = Selection(torch.tensor([[4, 5, 6], [4, 5, 7]]), torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]]))
    side.remember(code, tokens_seen=10)
    assert side.last_active.nonzero().flatten().tolist() == [4, 6, 7]


def test_only_dead_latents_get_the_revival_gradient() -> None:
    from jacobian_core.model.activation_functions import GELU
    from jacobian_core.model.mlp import Mlp
    from jacobian_core.model.neurons import PlainNeurons

    pair = DictionaryPair(6, 6, 20, 3)
    mlp = Mlp(torch.randn(6, 8), torch.zeros(8), torch.randn(8, 6), torch.zeros(6), PlainNeurons(GELU))
    x = torch.randn(30, 6)
    batch = MlpBatch(x, mlp(x))
    dead = torch.zeros(20, dtype=torch.bool)
    dead[[2, 5]] = True
    losses = pair_losses(
        pair,
        mlp,
        batch,
        Scale.of(batch),
        dead=(dead, torch.zeros(20, dtype=torch.bool)),
        revival_latents=8,
        jacobian_every_tokens=None,
    )
    (gradient,) = torch.autograd.grad(losses.revival, pair.inputs.W_dec)
    assert torch.equal(gradient.abs().sum(1) > 0, dead)
