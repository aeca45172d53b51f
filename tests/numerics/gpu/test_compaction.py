"""Columns compacted on the device are those of the plain path, entry by entry, bit by bit; copies arrive whole.

The device's part runs on the CPU as it stands (streams do nothing there), and on a GPU where there is one.
"""

from dataclasses import fields, replace

import pytest
import torch

from jacobian_core.model.transfer import Transfer
from jacobian_core.numerics.collect import Collected, Collector, HostCollector
from jacobian_core.numerics.coo import Entries, Thresholds
from jacobian_core.numerics.gpu import compaction
from jacobian_core.numerics.gpu.compaction import DeviceCollector
from jacobian_core.numerics.state import SandwichState
from tests.numerics.helpers import random_sandwich

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]
SETTINGS = [Thresholds(), Thresholds(0.05), Thresholds(0.0, 7), Thresholds(0.05, 3), Thresholds(1e9)]


def chunk(tokens: int, out_bias: float = -0.4) -> tuple[SandwichState, torch.Tensor, torch.Tensor]:
    sandwich = random_sandwich(9, k=(6, 5), out_bias=out_bias)
    x = torch.randn(tokens, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    state = sandwich.state(x)
    J = sandwich.kernel.first(state)
    return state, J.float(), sandwich.kernel.second(state, J).float()


def on(state: SandwichState, device: str) -> SandwichState:
    def codes(side: object) -> object:
        return replace(side, **{f.name: getattr(side, f.name).to(device) for f in fields(side)})  # type: ignore[type-var]

    return replace(state, inputs=codes(state.inputs), outputs=codes(state.outputs), z=state.z.to(device))


def assert_same(found: Collected, expected: Collected) -> None:
    for field in fields(Entries):
        a, b = getattr(found.entries, field.name), getattr(expected.entries, field.name)
        if b is None:
            assert a is None
        elif b.dtype == torch.float64:  # sums: a GPU adds in another order
            torch.testing.assert_close(a, b, rtol=1e-13, atol=0)
        else:
            assert torch.equal(a.to(b.dtype), b), field.name
    assert torch.equal(found.entries.token, expected.entries.token)
    for side in ("inputs", "outputs"):
        for name in ("index", "value", "margin"):
            assert torch.equal(getattr(getattr(found, side), name), getattr(getattr(expected, side), name))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("thresholds", SETTINGS, ids=str)
@pytest.mark.parametrize("tokens", [12, 1])
def test_equal_to_the_plain_path(tokens: int, thresholds: Thresholds, device: str) -> None:
    state, J, K = chunk(tokens)
    collector = DeviceCollector(device)
    for second in (None, K):
        expected = HostCollector().collect(J, second, state, thresholds)
        there = None if second is None else second.to(device)
        found = collector.collect(J.to(device), there, on(state, device), thresholds)
        assert_same(found, expected)
        assert found.entries.out_latent.dtype == torch.int32
        assert isinstance(collector, Collector)
    if tokens == 12 and not thresholds.min_abs > 1:
        order = torch.stack([found.entries.token, found.entries.out_latent, found.entries.in_latent], 1).tolist()
        assert order == sorted(order)
        assert len(order) > 12
        with pytest.raises(AssertionError):
            assert_same(found, HostCollector().collect(J.roll(1, 0), K, state, thresholds))


@pytest.mark.parametrize("device", DEVICES)
def test_no_active_latent(device: str) -> None:
    state, J, K = chunk(3, out_bias=-100.0)
    found = DeviceCollector(device).collect(J.to(device), K.to(device), on(state, device), Thresholds())
    assert found.entries.value.numel() == 0
    assert found.entries.total.tolist() == [0, 0, 0]


@pytest.mark.parametrize("device", DEVICES)
def test_not_finite_is_refused(device: str) -> None:
    state, J, _ = chunk(12)
    token, out, in_ = torch.nonzero(state.outputs.active[:, :, None] & state.inputs.active[:, None, :])[0].tolist()
    J[token, out, in_] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        DeviceCollector(device).collect(J.to(device), None, on(state, device), Thresholds(1e9))


def test_a_place_too_far_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = compaction.places
    monkeypatch.setattr(compaction, "places", lambda keep: (right(keep) + 1).clamp_max(keep.numel()))
    state, J, K = chunk(12)
    with pytest.raises(AssertionError):
        assert_same(
            DeviceCollector("cpu").collect(J, K, state, Thresholds()),
            HostCollector().collect(J, K, state, Thresholds()),
        )


@pytest.mark.parametrize("device", DEVICES)
def test_copies_arrive_whole_while_others_are_under_way(device: str) -> None:
    transfer = Transfer(device)
    draw = torch.Generator().manual_seed(1)
    sources = [torch.randn(1 << 16, generator=draw) for _ in range(4)]
    begun = []
    for source in sources:
        there = transfer.upload(source)
        begun.append(transfer.download({"twice": there * 2, "every third": there[::3]}))
    for source, download in zip(sources, begun, strict=True):
        columns = download.wait()
        assert columns["twice"].device.type == "cpu"
        assert torch.equal(columns["twice"], source * 2)
        assert torch.equal(columns["every third"], source[::3])
