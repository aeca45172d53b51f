"""When the kernels are taken, and that they are not where they are wrong, do not run, or do not apply."""

import logging
from dataclasses import replace

import pytest
import torch

from jacobian_core.numerics.gpu import choice
from jacobian_core.numerics.gpu.gathered import TritonProducts
from jacobian_core.numerics.sandwich import Sandwich
from tests.numerics.gpu.devices import DEVICES, eager, moved_sandwich
from tests.numerics.helpers import random_sandwich


@pytest.fixture(params=DEVICES)
def single(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Sandwich:
    """A float32 sandwich without kernels; on a CPU the interpreter is let through as if it were a device."""
    if request.param == "cpu":
        monkeypatch.setattr(choice, "unsuited", lambda kernel: None)
    return eager(moved_sandwich(random_sandwich(1, d_mlp=37), request.param))


def test_kernels_that_agree_are_taken(single: Sandwich, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert isinstance(choice.with_kernels(single).kernel.device, TritonProducts)
    assert "Jacobian by Triton kernels in float32" in caplog.text


def test_kernels_that_are_off_are_not(
    single: Sandwich, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = TritonProducts.of
    monkeypatch.setattr(TritonProducts, "of", lambda kernel: replace(right(kernel), E=right(kernel).E * (1 + 1e-4)))
    assert choice.with_kernels(single).kernel.device is None
    assert "are off by 0.0001 of the largest" in caplog.text


def test_kernels_that_are_off_in_the_sums_alone_are_not(
    single: Sandwich, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sums = TritonProducts.row_sums
    monkeypatch.setattr(
        TritonProducts, "row_sums", lambda self, into, row: sums(replace(self, D=-0.5 * self.D), into, row)
    )
    assert choice.with_kernels(single).kernel.device is None
    assert "are off by 0.5 of the largest" in caplog.text


def test_kernels_that_do_not_run_are_not(
    single: Sandwich, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(TritonProducts, "first", fails)
    assert choice.with_kernels(single).kernel.device is None
    assert "do not run here (RuntimeError('no compiler'))" in caplog.text


def test_on_a_cpu_the_batched_products_are_taken(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    sandwich = random_sandwich()
    assert choice.with_kernels(sandwich) is sandwich
    assert "Jacobian by batched products: the device is cpu" in caplog.text


def test_a_value_that_is_not_finite_never_agrees() -> None:
    ones = torch.ones(2, 3, 4)
    assert choice._relative(ones, ones) == 0.0
    assert choice._relative(torch.where(torch.arange(4) == 2, torch.nan, ones), ones) == torch.inf
