"""Sums by latent against exact fractions, whatever the grouping of tokens."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from jacobian_core.numerics import latent_sums
from jacobian_core.numerics.latent_sums import LatentSums, added_up, of_codes

Sums = dict[tuple[bool, int], tuple[int, float, float, float]]


def codes(rows: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Active latents of 7 and their values, over many orders of magnitude; latent 5 is on no side."""
    rng = np.random.default_rng(seed)
    latent = rng.choice([0, 1, 2, 3, 4, 6], rows).astype(np.uint32)
    value, margin = np.exp(12 * rng.standard_normal((2, rows))).astype(np.float32)
    return rng.random(rows) < 0.4, latent, value, margin


def exact(is_out: np.ndarray, latent: np.ndarray, value: np.ndarray, margin: np.ndarray) -> Sums:
    """The same by their definition."""
    found: Sums = {}
    for side in (False, True):
        for which in range(int(latent.max(initial=0)) + 1):
            rows = (is_out == side) & (latent == which)
            if rows.any():
                totals = [float(sum(Fraction(float(v)) for v in column[rows])) for column in (value, margin)]
                found[side, which] = (int(rows.sum()), totals[0], float(value[rows].max()), totals[1])
    return found


def rounded(sums: LatentSums) -> Sums:
    activation, margin = sums.sums()
    keys = zip(sums.is_out.tolist(), sums.latent.tolist(), strict=True)
    columns = (sums.n_tokens, activation, sums.largest, margin)
    return dict(zip(keys, zip(*(column.tolist() for column in columns), strict=True), strict=True))


@pytest.mark.parametrize("at_once", [1 << 20, 7])
@pytest.mark.parametrize("cuts", [[], [1], [100, 101, 350], [0, 400]])
def test_exact_in_any_grouping(monkeypatch: pytest.MonkeyPatch, cuts: list[int], at_once: int) -> None:
    monkeypatch.setattr(latent_sums, "_AT_ONCE", at_once)
    whole = codes(400)
    parts = [of_codes(*columns) for columns in zip(*(np.split(column, cuts) for column in whole), strict=True)]
    by_tree = added_up([added_up(parts[:2]), *(added_up([part]) for part in parts[2:])])
    assert rounded(by_tree) == rounded(added_up(parts)) == exact(*whole)


def test_a_last_digit_is_noticed() -> None:
    whole = codes(400)
    value = whole[2].copy()
    value[np.argsort(value)[-20]] *= np.float32(1 + 2**-23)
    assert rounded(added_up([of_codes(whole[0], whole[1], value, whole[3])])) != exact(*whole)


def test_extremes() -> None:
    """The smallest and the largest float32 together, whose sum float64 rounds; and nothing at all."""
    value = np.array([1e-45, 3e38, 1e-45, 0.0], np.float32)
    is_out, latent = np.zeros(4, bool), np.array([9, 9, 9, 0], np.uint32)
    assert rounded(added_up([of_codes(is_out, latent, value, value)])) == exact(is_out, latent, value, value)
    assert rounded(added_up([])) == {}


def test_digits_are_carried() -> None:
    """So that a sum of many sums fits its 32 bits, and rounding finds its terms apart."""
    total = added_up([of_codes(*codes(400))])
    for _ in range(40):
        total = added_up([total, total])
    digits = [digit for each in (total.activation, total.margin) for digit in each.values()]
    assert max(int(np.abs(digit).max()) for digit in digits) <= 1 << 31
    once = added_up([of_codes(*codes(400))])
    assert rounded(total) == {
        key: (n << 40, activation * 2.0**40, largest, margin * 2.0**40)
        for key, (n, activation, largest, margin) in rounded(once).items()
    }
    uncarried = replace(once, activation={place: digit << 3 for place, digit in once.activation.items()})
    assert max(int(np.abs(digit).max()) for digit in uncarried.activation.values()) > 1 << 31
