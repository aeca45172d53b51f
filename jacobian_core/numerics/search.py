"""The k largest pre-activations of an encoder, found by bounds in low precision and decided in full precision.

An encoder's product is most of a token's work, and a CPU with instructions for bfloat16 or int8 forms it in 40 or 25 %
of the time. What it gives is off by up to some per cent, so it decides nothing; it is an upper bound of each
pre-activation (`bounds.py`, `integer_bounds.py`). The latents with the largest bounds are scored in the SAE's
precision, one dot product each in a fixed order of additions. If the (k+1)-th best score is above every bound that was
left out, then no other latent can have been selected: this is checked for every token, and where it does not hold more
latents are scored, all of them if need be. Where bounds turn out too wide to save time, a narrower kind takes over.

So the selection and its values are those of scoring every latent, whatever the precision of the product, the number of
threads or the tokens beside it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from jacobian_core.model.affine import Affine
from jacobian_core.numerics.bounds import ROOM, Bounds, FloatBounds, unit
from jacobian_core.numerics.codes import Codes, select_top_k
from jacobian_core.numerics.dots import dots
from jacobian_core.numerics.integer_bounds import IntegerBounds, IntegerProduct
from jacobian_core.numerics.largest import Sieved, sieve

_PAIRS_AT_ONCE = 1 << 18
_TINY = 1e-20
"""Pre-activations that are smaller count as 0: processors may take denormal numbers for 0, which adds up to less."""
_LARGEST = 1e12
"""Longest vectors for which that holds, and for which no bound overflows; beyond, every latent is scored."""
_WIDENED_SHARE = 0.02
_LATENTS_A_CANDIDATE = 100
"""Scoring a candidate more takes as long as int8 saves on the products of this many latents, whatever their width."""


class TopKSearch:
    """Finds the top k of `x W + b` for one encoder; `dtype` is the precision of the product that gives the bounds.

    `rows` counts the tokens that were searched, `widened` those that needed more candidates than usual.
    """

    def __init__(
        self, W_enc: Float[Tensor, "d n"], b_enc: Float[Tensor, "n"], k: int, dtype: torch.dtype | None = None
    ) -> None:
        self._weights, self._bias, self._k = W_enc.T.contiguous(), b_enc, k
        self._n = len(self._weights)
        self._longest = float(torch.linalg.vector_norm(self._weights, dim=1, dtype=torch.float64).max())
        self._narrowing = threading.Lock()
        self._begin(dtype or W_enc.dtype)
        self.rows = self.widened = 0

    def _begin(self, dtype: torch.dtype) -> None:
        """Look for candidates in some precision from now on."""
        integer = dtype == torch.int8
        kind = IntegerBounds(self._weights, self._bias) if integer else FloatBounds(self._weights, self._bias, dtype)
        self.bounds: Bounds = kind
        self.dtype, self._width = dtype, min(self._n, _first_width(self._k, dtype))

    def encode(self, x: Float[Tensor, "tokens d"]) -> Codes:
        """The codes of every token. FloatingPointError where a pre-activation is not finite."""
        width = self._width
        if width == self._n or not max(self._longest, _longest(x)) < _LARGEST:
            return self._among(x, _all_latents(x, self._n))[0]
        bounded = self.bounds.of(x)
        error = unit(bounded.values.dtype) * ROOM
        codes, proven = self._among(x, sieve(bounded.values, width, self._k + 1), bounded.scale, error)
        open_rows = torch.nonzero(~proven).flatten()
        self._count(len(x), len(open_rows))
        while len(open_rows):
            width = min(2 * width, self._n)
            few, scale = x[open_rows], bounded.scale[open_rows]
            every = width == self._n
            sieved = _all_latents(few, self._n) if every else sieve(bounded.values[open_rows], width, width)
            found, proven = self._among(few, sieved, scale, error)
            for whole, part in ((codes.index, found.index), (codes.value, found.value), (codes.margin, found.margin)):
                whole[open_rows] = part
            open_rows = open_rows[~proven]
        return codes

    def scores(self, x: Float[Tensor, "tokens d"], latents: Int64[Tensor, "tokens c"]) -> Float[Tensor, "tokens c"]:
        """Pre-activations of some latents of each token, by the definition: products added up in one fixed order.

        FloatingPointError where one is not finite.
        """
        return self._scores(x, latents, torch.full_like(latents[:, 0], latents.shape[1]))

    def _scores(
        self, x: Float[Tensor, "tokens d"], latents: Int64[Tensor, "tokens c"], count: Int64[Tensor, "tokens"]
    ) -> Float[Tensor, "tokens c"]:
        """The same of each token's first latents; minus infinity behind them."""
        tokens, c = latents.shape
        result = x.new_full((tokens, c), -torch.inf)
        filled = torch.arange(c, device=x.device) < count[:, None]
        step = max(1, _PAIRS_AT_ONCE // c)
        for start in range(0, tokens, step):
            part = slice(start, min(start + step, tokens))
            token, slot = torch.nonzero(filled[part], as_tuple=True)
            latent = latents[part][token, slot]
            found = dots(x[part], self._weights, token, latent).add_(self._bias[latent])
            found = torch.nn.functional.hardshrink(found, _TINY)
            if not bool(torch.isfinite(found).all()):
                raise FloatingPointError("a pre-activation is not finite")
            result[part][token, slot] = found
        return result

    def _among(
        self,
        x: Float[Tensor, "tokens d"],
        sieved: Sieved,
        scale: Float[Tensor, "tokens"] | None = None,
        error: float = 0.0,
    ) -> tuple[Codes, Bool[Tensor, "tokens"]]:
        """The codes if only the sieved latents come into question, and for which tokens that is proven.

        Bounds that were left out are in units of `scale`, and may have been rounded down by a share `error`.
        """
        scores = self._scores(x, sieved.entries, sieved.count)
        codes, boundary = select_top_k(scores, self._k, sieved.entries, self._n)
        left_out = sieved.left_out if scale is None else sieved.left_out * scale
        return codes, (left_out + left_out.abs() * error + _TINY < boundary) | (left_out <= 0)

    def _count(self, rows: int, widened: int) -> None:
        """Keep count; where too many tokens needed more candidates, go on with more, or with narrower bounds."""
        self.rows += rows
        self.widened += widened
        if widened <= _WIDENED_SHARE * rows + 1:
            return
        self._width = min(self._n, self._width + max(8, self._width // 8))
        if self.dtype == torch.int8 and not _pays(self._width, self._k, self._n):
            with self._narrowing:
                if self.dtype == torch.int8:
                    self._begin(quickest_dtype(self._weights.T))


def _first_width(k: int, dtype: torch.dtype) -> int:
    """How many candidates are looked for at first."""
    return 2 * (k + 1) + 8 if dtype == torch.int8 else k + 1 + max(8, k // 2)


def _pays(width: int, k: int, n: int) -> bool:
    """Whether int8 saves more than it costs, if it needs so many candidates."""
    return (width - _first_width(k, torch.bfloat16)) * _LATENTS_A_CANDIDATE <= n


def _longest(x: Float[Tensor, "tokens d"]) -> float:
    return float(x.abs().amax()) * x.shape[1] ** 0.5 if x.numel() else 0.0


def _all_latents(x: Float[Tensor, "tokens d"], n: int) -> Sieved:
    """Every latent of every token: nothing is left out."""
    every = torch.arange(n, device=x.device).expand(len(x), n)
    count = torch.full((len(x),), n, device=x.device)
    return Sieved(every, count, torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device))


def quickest_dtype(W_enc: Float[Tensor, "d n"], k: int | None = None) -> torch.dtype:
    """The precision in which this machine searches an encoder soonest: its own, bfloat16, or, for a k, int8."""
    if W_enc.device.type != "cpu" or W_enc.dtype != torch.float32:
        return W_enc.dtype
    d, n = W_enc.shape
    ones = torch.ones(_TIMED_ROWS, d)
    products: dict[torch.dtype, Callable[[], Tensor]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        products[dtype] = partial(Affine.of(W_enc.T.to(dtype), None), ones.to(dtype))
    if k is not None and _pays(_first_width(k, torch.int8), k, n):
        whole = IntegerProduct.of(torch.ones(n, d, dtype=torch.int8), torch.ones(n))
        if whole.packed is not None:
            products[torch.int8] = partial(whole, ones.to(torch.uint8))
    seconds: dict[torch.dtype, float] = {}
    for dtype, product in products.items():
        product()
        started = time.perf_counter()
        for _ in range(_TIMED_TURNS):
            product()
        seconds[dtype] = time.perf_counter() - started
    return min(seconds, key=lambda dtype: seconds[dtype])


_TIMED_ROWS, _TIMED_TURNS = 128, 3
