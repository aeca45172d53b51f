"""`python -m benchmarks.gpu` where there is no GPU: it verifies at a toy's size, times nothing, and says so."""

import json
import sys

import pytest
import torch

from benchmarks import gpu, gpu_verify
from benchmarks.gpu_sandwich import TOY, Size, random_sandwich
from jacobian_core.numerics.sandwich import Sandwich
from tests.numerics.gpu.devices import eager

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: run the benchmark itself")


def test_the_last_line_is_json_and_says_what_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    gpu.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["goals"] == {}
    assert found["not_done"] == ["no CUDA device: kernels were interpreted at a toy's size, nothing was timed"]
    assert found["verify"]["groupings_that_differ"] == 0
    assert found["verify"]["tf32_plain_to_float64"] > 100 * found["verify"]["float32_plain_to_float64"]


def test_what_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that do not round when they are asked to, which here stand for any other mistake."""
    monkeypatch.setattr(gpu_verify, "with_kernels", eager)

    def never_rounded(size: Size, device: str, precision: str = "", *more: object) -> Sandwich:
        return random_sandwich(size, device, "float32", *more)  # type: ignore[arg-type]

    monkeypatch.setattr(gpu_verify, "random_sandwich", never_rounded)
    with pytest.raises(AssertionError, match="tf32_plain: operands were not rounded"):
        gpu_verify.verified(TOY, "cpu")
