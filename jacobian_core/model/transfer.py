"""Copies between host and device beside the computation; on a CPU there is nothing to copy, and nothing happens.

Copies in either direction run on streams of their own from and to pinned memory, so a chunk's columns leave while the
next chunk is computed. The buffers are torch's: its allocator keeps pinned blocks and hands one out again only when the
copy that used it is done, so two chunks in flight use two sets of buffers in turn, and no more are ever made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Download:
    """Columns on their way to the host."""

    columns: dict[str, Tensor]
    done: Any = None

    def wait(self) -> dict[str, Tensor]:
        """The columns on the host, once they are there."""
        if self.done is not None:
            self.done.synchronize()
        return self.columns


class Transfer:
    """The copies of one device. Shared by threads: each call orders its copies after what its own thread launched."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        on_gpu = self.device.type == "cuda"
        self._inward = _stream(self.device) if on_gpu else None
        self._outward = _stream(self.device) if on_gpu else None

    def upload(self, tensor: Tensor) -> Tensor:
        """A host tensor on the device; what the current stream does next waits for it, the host does not."""
        if self._inward is None:
            return tensor.to(self.device)
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._inward):
            moved = tensor.contiguous().pin_memory().to(self.device, non_blocking=True)
        current.wait_stream(self._inward)
        moved.record_stream(current)
        return moved

    def download(self, columns: Mapping[str, Tensor]) -> Download:
        """Begin to copy columns to the host, after what the current stream has been given so far."""
        if self._outward is None:
            return Download(dict(columns))
        sources = {name: column.contiguous() for name, column in columns.items()}
        self._outward.wait_stream(torch.cuda.current_stream(self.device))
        found: dict[str, Tensor] = {}
        with torch.cuda.stream(self._outward):
            for name, column in sources.items():
                found[name] = torch.empty(column.shape, dtype=column.dtype, pin_memory=True)
                found[name].copy_(column, non_blocking=True)
                column.record_stream(self._outward)
            done = self._outward.record_event()
        return Download(found, done)


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
