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
from jacobian_core.numerics.bounds import ROOM, unit
from jacobian_core.numerics.codes import Codes, select_top_k
from jacobian_core.numerics.dots import _gathered, dots
from jacobian_core.numerics.integer_bounds import IntegerBounds, IntegerProduct
from jacobian_core.numerics.largest import sieve
from jacobian_core.numerics.search import TopKSearch
from tests.numerics.helpers import random_sandwich, to_float32

DTYPES = [torch.int8, torch.bfloat16, torch.float32]


def encoder(seed: int, d: int, n: int, spread: float = 0.4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(d, n, generator=g) / d**0.5, spread * torch.randn(n, generator=g)


def exhaustive(W: Tensor, b: Tensor, k: int, x: Tensor) -> Codes:
    """The definition: every latent is scored, the best are taken."""
    every = torch.arange(W.shape[1]).expand(len(x), -1)
    return select_top_k(TopKSearch(W, b, k).scores(x, every), k, every, W.shape[1])[0]


def same(a: Codes, b: Codes) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("index", "value", "margin"))


def upper(finder: TopKSearch, x: Tensor) -> Tensor:
    """The bounds as the search takes them: scaled, and their last rounding allowed for."""
    bounded = finder.bounds.of(x)
    values = bounded.values.double() * bounded.scale[:, None]
    return values + values.abs() * unit(bounded.values.dtype) * ROOM + search._TINY


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
    """Vectors just off a precision's grid, on few levels: rounding errors all point one way, and many scores tie."""
    g = torch.Generator().manual_seed(seed)
    k = 1 + seed % min(n, 12)
    off_grid = (1 + 2.0**-9 * (1 - 2.0**-6), 1.49 / 127)[seed % 2]

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
        assert (finder.scores(x, every).double() <= upper(finder, x)).all()


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


def test_wide_bounds_give_way_to_narrower_ones() -> None:
    """One input is a thousand times the others: whole numbers see nothing else."""
    W, b = encoder(14, 64, 3000)
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(15))
    x[:, 0] = 1000
    W[0] = 1e-3
    finder = TopKSearch(W, b, 8, torch.int8)
    for _ in range(12):
        assert same(finder.encode(x), exhaustive(W, b, 8, x))
    assert finder.dtype in (torch.bfloat16, torch.float32)
    usual = TopKSearch(*encoder(14, 64, 3000), 8, torch.int8)
    for _ in range(12):
        usual.encode(torch.randn(64, 64, generator=torch.Generator().manual_seed(15)))
    assert usual.dtype == torch.int8


@pytest.mark.parametrize("d", [1, 5, 64, 530])
def test_whole_products_are_exact(d: int) -> None:
    """The packed product is the plain one, and that is rounded once; the extremes would overflow sums of 16 bits."""
    g = torch.Generator().manual_seed(d)
    p = torch.randint(-127, 128, (70, d), dtype=torch.int8, generator=g)
    p[:3] = torch.tensor([127, -127, 0], dtype=torch.int8)[:, None]
    q = torch.randint(0, 256, (9, d), dtype=torch.uint8, generator=g)
    q[:2] = torch.tensor([255, 0], dtype=torch.uint8)[:, None]
    scale = torch.rand(70, generator=g) + 0.5
    expected = ((q.long() - 128) @ p.long().T).float().mul(scale).bfloat16()
    assert torch.equal(IntegerProduct(p, scale)(q), expected)
    assert torch.equal(IntegerProduct.of(p, scale)(q), expected)
    assert not torch.equal(IntegerProduct.of(p, scale)(q.flip(0)), expected)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), d=st.integers(1, 60), bias=st.sampled_from([0.0, 1e-9, 1.0, 1e6]))
def test_lengths_fit_their_columns(seed: int, d: int, bias: float) -> None:
    """No length of a token is cut off: its columns add up to it, up to their rounding."""
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(30, d, generator=g) * 10.0 ** torch.randint(-6, 6, (30, 1), generator=g)
    finder = IntegerBounds(W, bias * torch.randn(30, generator=g))
    x = torch.cat([torch.randn(5, d, generator=g), torch.full((1, d), 0.4), torch.ones(1, d), torch.zeros(1, d)])
    inputs, scale = finder.inputs(x)
    width = d + finder._biased
    whole = inputs.double() - 128
    exact = torch.cat([x.double(), torch.full((len(x), finder._biased), finder._constant)], 1) / scale[:, None]
    missed = (exact - whole[:, :width]).norm(dim=1) * finder._length_unit
    length = exact.norm(dim=1) * finder._missed_unit
    for needed, columns in (
        (missed, whole[:, width : width + finder._missed_columns]),
        (length, whole[:, width + finder._missed_columns :]),
    ):
        assert (columns.sum(1) >= needed * (1 - 1e-6)).all()
        assert columns[:, -1].max() < 127  # room is left: what is added up is the length, not the columns' limit


class TestDots:
    """Dot products at a pattern against the definition, and whatever else is asked for."""

    g = torch.Generator().manual_seed(16)
    x, weights = torch.randn(9, 33, generator=g), torch.randn(70_000, 33, generator=g)
    token = torch.randint(0, 9, (500,), generator=g)
    latent = torch.cat([torch.randint(0, 70_000, (400,), generator=g), torch.arange(100)])

    def test_are_dot_products(self) -> None:
        expected = (self.x[self.token].double() * self.weights[self.latent].double()).sum(1)
        for function in (dots, _gathered):
            found = function(self.x, self.weights, self.token, self.latent)
            assert (found.double() - expected).abs().max() < 1e-5
            shifted = function(self.x, self.weights, self.token, self.latent.roll(1))
            assert (shifted.double() - expected).abs().max() > 1

    def test_do_not_depend_on_the_others(self) -> None:
        whole = dots(self.x, self.weights, self.token, self.latent)
        for part in (slice(0, 1), slice(7, 300), slice(490, None)):
            assert torch.equal(dots(self.x, self.weights, self.token[part], self.latent[part]), whole[part])
        assert len(dots(self.x, self.weights, self.token[:0], self.latent[:0])) == 0


class TestTheComparisonNotices:
    """Siblings: what would be wrong does fail."""

    W, b = encoder(12, 128, 4000)
    x = torch.randn(200, 128, generator=torch.Generator().manual_seed(13))

    def test_selecting_by_the_low_precision(self) -> None:
        """The product's own values pick other latents, so the scoring is needed."""
        finder = TopKSearch(self.W, self.b, 16, torch.bfloat16)
        product = finder.bounds.of(self.x).values.float()
        every = torch.arange(4000).expand(200, -1)
        assert not torch.equal(
            select_top_k(product, 16, every, 4000)[0].index, exhaustive(self.W, self.b, 16, self.x).index
        )

    def test_bounds_without_their_errors(self) -> None:
        """Without the columns of errors, bounds fall below scores."""
        finder = TopKSearch(self.W, self.b, 16, torch.bfloat16)
        inputs = finder.bounds.inputs(self.x)
        inputs[:, -2:] = 0
        every = torch.arange(4000).expand(200, -1)
        assert (finder.bounds.product(inputs).double() * (1 + 2.0**-8) < finder.scores(self.x, every)).any()

    @pytest.mark.parametrize("side", ["token", "latent"])
    def test_whole_numbers_without_the_error_of_a_side(self, side: str) -> None:
        """Either side's rounding can all point one way: its column is needed, and is enough."""
        W, x = torch.full((64, 300), 127.0), torch.full((1, 64), 127.0)
        (x.T if side == "token" else W)[1:] = 10.49
        finder = TopKSearch(W, torch.zeros(300), 4, torch.int8)
        score = finder.scores(x, torch.zeros(1, 1, dtype=torch.long)).item()
        assert upper(finder, x).min() >= score
        inputs, scale = finder.bounds.inputs(x)
        inputs[:, 64:65] = 128 if side == "token" else inputs[:, 64:65]
        inputs[:, 65:] = 128 if side == "latent" else inputs[:, 65:]
        assert finder.bounds.product(inputs).double().max() * scale.item() * (1 + 2.0**-7) < score

    @pytest.mark.parametrize("share", [0.0, 0.5])
    def test_a_wrong_bound_selects_wrong_codes(self, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
        """Bounds that are too low for half of the latents are noticed by the comparison."""
        finder = TopKSearch(self.W, self.b, 16, torch.int8)
        assert same(finder.encode(self.x), exhaustive(self.W, self.b, 16, self.x))
        right = finder.bounds.product

        def wrong(inputs: Tensor) -> Tensor:
            values = right(inputs)
            values[:, ::2] *= share
            return values

        monkeypatch.setattr(finder.bounds, "product", wrong)
        assert not same(finder.encode(self.x), exhaustive(self.W, self.b, 16, self.x))

    @pytest.mark.parametrize("precision", ["bfloat16", "int8"])
    def test_a_machine_with_wrong_products_is_refused(self, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
        exact = to_float32(random_sandwich(d_in=16, d_mlp=32, d_out=16, n=(900, 800)))
        quick = replace(exact, inputs=exact.inputs.searched_in(precision), outputs=exact.outputs.searched_in(precision))
        x = torch.randn(20, 16, generator=torch.Generator().manual_seed(1))
        refuse_wrong_search(quick, x)
        refuse_wrong_search(exact, x)
        bounds = quick.inputs.search.bounds
        right = bounds.product
        monkeypatch.setattr(bounds, "product", lambda rows: right(rows).roll(1, 1))
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
        for dtype in DTYPES:
            with pytest.raises(FloatingPointError):
                TopKSearch(W, b, 4, dtype).encode(x)
