"""Buffers that a thread uses again and again: a fresh tensor of some megabytes costs more in page faults than in work.

On a CPU, the first touch of 32 MB takes about as long as filling them by a matrix product. A buffer is the thread's own
and is overwritten by its next use under the same name, so nothing that outlives the caller may be a view of one. On a
GPU torch's allocator does the same.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor


class _Buffers(threading.local):
    """Each thread's buffers, by name and precision."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, torch.dtype], Tensor] = {}


_mine = _Buffers()


def scratch(name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised tensor with the dtype and device of `like`."""
    if like.device.type != "cpu":
        return like.new_empty(shape)
    size, key = math.prod(shape), (name, like.dtype)
    kept = _mine.kept.get(key)
    if kept is None or kept.numel() < size:
        kept = _mine.kept[key] = torch.empty(size, dtype=like.dtype)
    return kept[:size].view(shape)
