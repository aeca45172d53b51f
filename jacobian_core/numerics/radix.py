"""The order that sorts whole numbers: numpy sorts those of 16 bits by their digits, several times as fast as others."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

_BITS = 16


def ascending_order(numbers: Int64[np.ndarray, "numbers"]) -> Int64[np.ndarray, "numbers"]:
    """What sorts numbers that are not negative, stably: a pass (10 ns a number) for each 16 bits of the largest."""
    order = np.argsort((numbers & 0xFFFF).astype(np.uint16), kind="stable")
    for shift in range(_BITS, int(numbers.max(initial=0)).bit_length(), _BITS):
        order = order[np.argsort((numbers[order] >> shift & 0xFFFF).astype(np.uint16), kind="stable")]
    return order
