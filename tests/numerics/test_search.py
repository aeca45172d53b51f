"""Codes found by bounds in low precision are, bit by bit, those of scoring every latent.

There is no tolerance: the scores are the same additions in the same order, so only the selection could differ.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jacobian_core.errors import ModelError
from jacobian_core.model.quality import refuse_wrong_search
from jacobian_core.numerics import search
from jacobian_core.numerics.codes import Codes, select_top_k
from jacobian_core.numerics.largest import sieve
from jacobian_core.numerics.search import TopKSearch
from tests.numerics.helpers import random_sandwich, to_float32

DTYPES = [torch.bfloat16, torch.float32]


def encoder(seed: int, d: int, n: int, spread: float = 0.4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(d, n, generator=g) / d**0.5, spread * torch.randn(n, generator=g)


def exhaustive(W: Tensor, b: Tensor, k: int, x: Tensor) -> Codes:
    """The definition: every latent is scored, the best are taken."""
    every = torch.arange(W.shape[1]).expand(len(x), -1)
    return select_top_k(TopKSearch(W, b, k).scores(x, every), k, every, W.shape[1])[0]


def same(a: Codes, b: Codes) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("index", "value", "margin"))


def check(W: Tensor, b: Tensor, k: int, x: Tensor) -> None:
    for dtype in DTYPES:
        assert same(TopKSearch(W, b, k, dtype).encode(x), exhaustive(W, b, k, x)), dtype


@pytest.mark.parametrize(
    ("d", "n", "k", "tokens"),
    [(64, 2000, 32, 40), (33, 1111, 7, 9), (512, 700, 1, 3), (1, 300, 5, 20), (16, 20, 20, 4)],
)
def test_shapes(d: int, n: int, k: int, tokens: int) -> None:
    W, b = encoder(d, d, n)
    check(W, b, k, torch.randn(tokens, d, generator=torch.Generator().manual_seed(n)))


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e11, 1e20])
def test_sizes_of_numbers(scale: float) -> None:
    W, b = encoder(3, 48, 900)
    check(W * 3, b, 16, scale * torch.randn(12, 48, generator=torch.Generator().manual_seed(4)))


@pytest.mark.parametrize(
    "change", ["twins", "one token", "few positive", "none positive", "zero token", "uneven norms", "all the same"]
)
def test_edges(change: str) -> None:
    W, b = encoder(5, 24, 640)
    x = torch.randn(16, 24, generator=torch.Generator().manual_seed(6))
    if change == "twins":
        W[:, 1::2], b[1::2] = W[:, ::2], b[::2]
    elif change == "one token":
        x = x[:1]
    elif change == "few positive":
        b -= 3.0
    elif change == "none positive":
        b -= 100.0
    elif change == "zero token":
        x[3] = 0
    elif change == "uneven norms":
        W *= torch.logspace(-3, 3, 640)
    else:
        W[:], b[:] = W[:, :1].clone(), 0.25
    check(W, b, 13, x)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    d=st.integers(1, 40),
    n=st.integers(2, 700),
    exponent=st.integers(-12, 12),
    levels=st.integers(1, 6),
)
def test_adversarial_bounds(seed: int, d: int, n: int, exponent: int, levels: int) -> None:
    """Vectors just off bfloat16's grid, on few levels: rounding errors all point one way, and many scores tie."""
    g = torch.Generator().manual_seed(seed)
    k = 1 + seed % min(n, 12)
    off_grid = 1 + 2.0**-9 * (1 - 2.0**-6)

    def draw(*shape: int) -> Tensor:
        return torch.randint(-levels, levels + 1, shape, generator=g).float() * off_grid

    W, x = draw(d, n), draw(5, d) * 2.0**exponent
    check(W, draw(n) / 3, k, x)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), d=st.integers(1, 200), spread=st.floats(0, 20))
def test_bounds_are_bounds(seed: int, d: int, spread: float) -> None:
    """The product of the widened vectors is never below the score, its own rounding allowed for."""
    W, b = encoder(seed, d, 257, spread)
    x = torch.randn(7, d, generator=torch.Generator().manual_seed(seed + 1)) * 2.0 ** (seed % 9 - 4)
    every = torch.arange(257).expand(7, -1)
    for dtype in DTYPES:
        finder = TopKSearch(W, b, 4, dtype)
        bound = finder._product(finder._bounding_inputs(x)).double()
        allowed = bound + bound.abs() * torch.finfo(dtype).eps / 2 * search._ROOM + search._TINY
        assert (finder.scores(x, every).double() <= allowed).all()


def test_scores_do_not_depend_on_the_tokens_beside_them() -> None:
    W, b = encoder(8, 96, 1500)
    x = torch.randn(70, 96, generator=torch.Generator().manual_seed(9))
    finder = TopKSearch(W, b, 20, torch.bfloat16)
    whole = finder.encode(x)
    for start, stop in ((0, 1), (3, 40), (40, 70)):
        part = finder.encode(x[start:stop])
        assert torch.equal(part.value, whole.value[start:stop])
        assert torch.equal(part.index, whole.index[start:stop])


def test_narrow_searches_are_widened_and_counted() -> None:
    W, b = encoder(10, 64, 3000)
    W[:, 1000:2000] = W[:, :1]  # a thousand equal latents: no bound tells them apart
    b[1000:2000] = 2.0
    finder = TopKSearch(W, b, 8, torch.bfloat16)
    x = torch.randn(30, 64, generator=torch.Generator().manual_seed(11))
    assert same(finder.encode(x), exhaustive(W, b, 8, x))
    assert finder.rows == 30
    assert 0 < finder.widened <= 30


class TestTheComparisonNotices:
    """Siblings: what would be wrong does fail."""

    W, b = encoder(12, 128, 4000)
    x = torch.randn(200, 128, generator=torch.Generator().manual_seed(13))

    def test_selecting_by_the_low_precision(self) -> None:
        """The product's own values pick other latents, so the scoring is needed."""
        finder = TopKSearch(self.W, self.b, 16, torch.bfloat16)
        product = finder._product(finder._bounding_inputs(self.x)).float()
        every = torch.arange(4000).expand(200, -1)
        assert not torch.equal(
            select_top_k(product, 16, every, 4000)[0].index, exhaustive(self.W, self.b, 16, self.x).index
        )

    def test_bounds_without_their_errors(self) -> None:
        """Without the columns of errors, bounds fall below scores."""
        finder = TopKSearch(self.W, self.b, 16, torch.bfloat16)
        inputs = finder._bounding_inputs(self.x)
        inputs[:, -2:] = 0
        every = torch.arange(4000).expand(200, -1)
        assert (finder._product(inputs).double() * (1 + 2.0**-8) < finder.scores(self.x, every)).any()

    def test_a_machine_with_wrong_products_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        exact = to_float32(random_sandwich(d_in=16, d_mlp=32, d_out=16, n=(900, 800)))
        quick = replace(
            exact, inputs=exact.inputs.searched_in("bfloat16"), outputs=exact.outputs.searched_in("bfloat16")
        )
        x = torch.randn(20, 16, generator=torch.Generator().manual_seed(1))
        refuse_wrong_search(quick, x)
        refuse_wrong_search(exact, x)
        right = quick.inputs.search._product
        monkeypatch.setattr(quick.inputs.search, "_product", lambda rows: right(rows).roll(1, 1))
        with pytest.raises(ModelError, match=r"set compute\.encoder to 'exact'"):
            refuse_wrong_search(quick, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("entries", [30, 257, 1000])
def test_sieve_keeps_the_largest(dtype: torch.dtype, entries: int) -> None:
    values = torch.randn(50, entries, generator=torch.Generator().manual_seed(entries)).to(dtype)
    values[:5] -= 100  # nothing positive: nothing need be kept
    values[5:9] -= 2
    sieved = sieve(values, 12, 13)
    for row, kept, count, left_out in zip(values, sieved.entries, sieved.count, sieved.left_out, strict=True):
        found = kept[:count].tolist()
        assert found == sorted(set(found))
        others = [i for i in range(entries) if i not in found]
        assert row[others].double().max() <= left_out
        assert len(found) >= min(12, int((row > 0).sum()))
    assert sieved.count.max() < 60


def test_not_finite_is_refused() -> None:
    W, b = encoder(1, 8, 300)
    for bad in (torch.inf, torch.nan):
        x = torch.ones(2, 8)
        x[1, 3] = bad
        with pytest.raises(FloatingPointError):
            TopKSearch(W, b, 4, torch.bfloat16).encode(x)
