"""Redrawn weights: the same for the same seed, with each tensor's own mean and deviation, and nothing else changed."""

import torch

from jacobian_core.model.randomise import randomise_weights


def module() -> torch.nn.Module:
    torch.manual_seed(7)
    layers = torch.nn.Sequential(torch.nn.Linear(40, 60), torch.nn.LayerNorm(60), torch.nn.Linear(60, 50))
    with torch.no_grad():
        layers[0].weight.mul_(4).add_(0.3)
    return layers


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, second, other, untouched = (module() for _ in range(4))
    randomise_weights(first, 5)
    torch.manual_seed(99)  # the global generator plays no part
    randomise_weights(second, 5)
    randomise_weights(other, 6)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name))
        if parameter.std() > 0 and "1." not in name:
            assert not torch.equal(parameter, other.get_parameter(name))
            assert not torch.equal(parameter, untouched.get_parameter(name))


def test_each_tensor_keeps_its_mean_and_deviation() -> None:
    before, after = module(), module()
    randomise_weights(after, 0)
    for name, parameter in after.state_dict().items():
        old = before.get_parameter(name).detach()
        if old.numel() > 1000:
            torch.testing.assert_close(parameter.mean(), old.mean(), rtol=0, atol=4 * float(old.std()) / 2000**0.5)
            torch.testing.assert_close(parameter.std(), old.std(), rtol=0.1, atol=0)
    assert torch.equal(after.get_parameter("1.weight"), torch.ones(60)), "a constant tensor stays constant"


def test_dtype_stays_and_tied_weights_stay_tied() -> None:
    tied = torch.nn.ModuleDict({"a": torch.nn.Linear(8, 8), "b": torch.nn.Linear(8, 8)}).half()
    tied["b"].weight = tied["a"].weight
    randomise_weights(tied, 0)
    assert tied["a"].weight is tied["b"].weight
    assert tied["a"].weight.dtype == torch.float16
