"""The k largest pre-activations of an encoder, found by a product in low precision and decided in full precision.

An encoder's product is most of a token's work, and a CPU with bfloat16 instructions forms it in 40 % of the time. Its
values are off by up to 1 %, so they decide nothing; they are used as upper bounds. With `x~`, `w~` the rounded vectors,

    x.w + b  <=  x~.w~ + |x - x~| |w~| + |x| |w - w~| + b  (+ roundings of the sums)

by Cauchy and Schwarz, and the four terms behind the first are columns of the same product: the weights carry
`[b, its remainder, |w~|, |w - w~|]`, the token `[1, 1, |x - x~|, |x|]`, each rounded up. The latents with the largest
bounds are scored in the SAE's precision, one dot product each in a fixed order of additions. If the (k+1)-th best score
is above every bound that was left out, then no other latent can have been selected: this is checked for every token,
and where it does not hold more latents are scored, all of them if need be.

So the selection and its values are those of scoring every latent, whatever the precision of the product, the number of
threads or the tokens beside it.
"""

from __future__ import annotations

import time

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from jacobian_core.model.affine import Affine
from jacobian_core.numerics.codes import Codes, select_top_k
from jacobian_core.numerics.largest import Sieved, sieve
from jacobian_core.numerics.scratch import scratch

_SCORED_BYTES = 2 << 20
_ROOM = 1 + 2.0**-6
"""Factor on what is rounded up: more than bfloat16's rounding down (2^-8) can take away."""
_TINY = 1e-20
"""Pre-activations that are smaller count as 0: processors may take denormal numbers for 0, which adds up to less."""
_LARGEST = 1e12
"""Longest vectors for which that holds, and for which no bound overflows; beyond, every latent is scored."""
_WIDENED_SHARE = 0.02


def _unit(dtype: torch.dtype) -> float:
    """The relative error of rounding to `dtype`."""
    return torch.finfo(dtype).eps / 2


class TopKSearch:
    """Finds the top k of `x W + b` for one encoder; `dtype` is the precision of the product that gives the bounds.

    `rows` counts the tokens that were searched, `widened` those that needed more candidates than usual.
    """

    def __init__(
        self, W_enc: Float[Tensor, "d n"], b_enc: Float[Tensor, "n"], k: int, dtype: torch.dtype | None = None
    ) -> None:
        self._weights, self._bias, self._k = W_enc.T.contiguous(), b_enc, k
        self._dtype = dtype or W_enc.dtype
        self._n, self._d = self._weights.shape
        self._width = min(self._n, k + 1 + max(8, k // 2))
        self._longest = float(torch.linalg.vector_norm(self._weights, dim=1, dtype=torch.float64).max())
        summed = torch.float64 if self._dtype == torch.float64 else torch.float32
        self._sum_error = 2 * (self._d + 8) * (_unit(summed) + _unit(W_enc.dtype))
        self._product = Affine.of(self._bounding_weights(), None)
        self.rows = self.widened = 0

    def encode(self, x: Float[Tensor, "tokens d"]) -> Codes:
        """The codes of every token. FloatingPointError where a pre-activation is not finite."""
        width = self._width
        if width == self._n or not max(self._longest, _longest(x)) < _LARGEST:
            return self._among(x, _all_latents(x, self._n))[0]
        bounds = self._product(self._bounding_inputs(x))
        codes, proven = self._among(x, sieve(bounds, width, self._k + 1))
        open_rows = torch.nonzero(~proven).flatten()
        self._count(len(x), len(open_rows))
        while len(open_rows):
            width = min(4 * width, self._n)
            few = x[open_rows]
            sieved = sieve(bounds[open_rows], width, width) if width < self._n else _all_latents(few, self._n)
            found, proven = self._among(few, sieved)
            for whole, part in ((codes.index, found.index), (codes.value, found.value), (codes.margin, found.margin)):
                whole[open_rows] = part
            open_rows = open_rows[~proven]
        return codes

    def scores(self, x: Float[Tensor, "tokens d"], latents: Int64[Tensor, "tokens c"]) -> Float[Tensor, "tokens c"]:
        """Pre-activations of some latents of each token, by the definition: products added up in one fixed order.

        FloatingPointError where one is not finite.
        """
        tokens, c = latents.shape
        result = x.new_empty(tokens, c)
        step = max(1, _SCORED_BYTES // (c * self._d * x.element_size()))
        for start in range(0, tokens, step):
            part = slice(start, min(start + step, tokens))
            wanted = latents[part].reshape(-1)
            gathered = scratch("scored weights", (len(wanted), self._d), x)
            torch.index_select(self._weights, 0, wanted, out=gathered)
            products = gathered.view(-1, c, self._d).mul_(x[part, None])
            torch.sum(products, -1, out=result[part])
        result = torch.nn.functional.hardshrink(result.add_(self._bias[latents]), _TINY)
        if not bool(torch.isfinite(result).all()):
            raise FloatingPointError("a pre-activation is not finite")
        return result

    def _among(self, x: Float[Tensor, "tokens d"], sieved: Sieved) -> tuple[Codes, Bool[Tensor, "tokens"]]:
        """The codes if only the sieved latents come into question, and for which tokens that is proven."""
        scores = self.scores(x, sieved.entries)
        filled = torch.arange(scores.shape[1], device=x.device) >= sieved.count[:, None]
        codes, boundary = select_top_k(scores.masked_fill_(filled, -torch.inf), self._k, sieved.entries, self._n)
        rounded = sieved.left_out.abs() * (_unit(self._dtype) * _ROOM) + _TINY
        return codes, (sieved.left_out + rounded < boundary) | (sieved.left_out <= 0)

    def _bounding_weights(self) -> Float[Tensor, "n d_and_4"]:
        low = self._weights.to(self._dtype)
        kept = low.double()
        missed = (self._weights.double() - kept).norm(dim=1)
        bias = self._bias.double()
        bias = bias + 4 * self._sum_error * bias.abs()
        coarse = bias.to(self._dtype)
        rest = bias - coarse.double()
        rest = torch.where(rest > 0, rest * _ROOM, rest / _ROOM)
        columns = [coarse.double(), rest, kept.norm(dim=1) * _ROOM, missed * _ROOM]
        return torch.cat([low, torch.stack(columns, 1).to(self._dtype)], 1)

    def _bounding_inputs(self, x: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens d_and_4"]:
        low = x.to(self._dtype)
        length = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
        missed = torch.zeros_like(length)
        if low.dtype != x.dtype:
            missed = torch.linalg.vector_norm(x - low.to(x.dtype), dim=1, dtype=torch.float64)
        ones = torch.ones_like(length)
        error = (missed + self._sum_error * (length + missed)) * _ROOM
        columns = torch.stack([ones, ones, error, length * _ROOM], 1).to(self._dtype)
        return torch.cat([low, columns], 1)

    def _count(self, rows: int, widened: int) -> None:
        """Keep count, and start wider from now on where too many tokens needed more candidates."""
        self.rows += rows
        self.widened += widened
        if widened > _WIDENED_SHARE * rows + 1:
            self._width = min(self._n, self._width + max(8, self._width // 4))


def _longest(x: Float[Tensor, "tokens d"]) -> float:
    return float(x.abs().amax()) * x.shape[1] ** 0.5 if x.numel() else 0.0


def _all_latents(x: Float[Tensor, "tokens d"], n: int) -> Sieved:
    """Every latent of every token: nothing is left out."""
    every = torch.arange(n, device=x.device).expand(len(x), n)
    count = torch.full((len(x),), n, device=x.device)
    return Sieved(every, count, torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device))


def quickest_dtype(W_enc: Float[Tensor, "d n"]) -> torch.dtype:
    """The precision in which this machine forms an encoder's product soonest: its own, or bfloat16."""
    if W_enc.device.type != "cpu" or W_enc.dtype != torch.float32:
        return W_enc.dtype
    seconds: dict[torch.dtype, float] = {}
    x = torch.ones(_TIMED_ROWS, W_enc.shape[0])
    for dtype in (torch.float32, torch.bfloat16):
        product, low = Affine.of(W_enc.T.to(dtype), None), x.to(dtype)
        product(low)
        started = time.perf_counter()
        for _ in range(_TIMED_TURNS):
            product(low)
        seconds[dtype] = time.perf_counter() - started
    return min(seconds, key=lambda dtype: seconds[dtype])


_TIMED_ROWS, _TIMED_TURNS = 128, 3
