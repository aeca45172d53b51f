"""A process takes as much memory after a thousand blocks as after three.

Nothing of ours outlives a block, but libraries keep things for it. At the demo's shape a run of 48 blocks needed 270 MB
more than one of three, of which

* 160 MB were compiled products: oneDNN keeps one for each number of rows that it met, 0.3 MB each, and so does torch's
  layer around it, a thousand each. Texts of ever other lengths bring ever new ones, which hardly ever come back, while
  making one again takes half a millisecond. So both keep `KEPT_PRODUCTS`.
* The rest was free: glibc gives each thread a heap, and pyarrow brings an allocator with more of them. What is made in
  one thread and freed in another fills all of them up. So there is one heap for `_THREADS_A_HEAP` cores, pyarrow's
  buffers come from it too, and free pages are given back before the sums at a run's end, and after a block where the
  process is `_SLACK_BYTES` larger than after its first. More often would be dear: the next block touches them again.

The caches' limits are read by these libraries when they first multiply. Without glibc (macOS, musl) only they apply.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

KEPT_PRODUCTS = 16
"""Compiled products in each cache: about what one block uses."""
_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_THREADS_A_HEAP = 8
_M_ARENA_MAX = -8
_SLACK_BYTES = 32 << 20
"""Free pages that are kept. At the demo's shape, three blocks in flight and 64 MB, 41 of 96 blocks gave some back,
which took a thread 36 ms; with 256 MB none did, the process became 9 % larger, and the run was no faster. With 32 MB
it was 15 MB smaller than with 64 and as fast (11.1 and 11.0 thousand tokens a second), with 16 MB slower (10.0)."""
_STATM, _STATUS = Path("/proc/self/statm"), Path("/proc/self/status")


def share_heap() -> None:
    """Let threads that start from now on share heaps."""
    if (glibc := _glibc()) is not None:
        glibc.mallopt(_M_ARENA_MAX, max(1, (os.cpu_count() or 1) // _THREADS_A_HEAP))


def bound_memory() -> None:
    """Limit what libraries keep, for this process; before anything is multiplied. What the user has set stays."""
    for name in _CACHES:
        os.environ.setdefault(name, str(KEPT_PRODUCTS))
    share_heap()
    if _glibc() is not None:
        import pyarrow as pa

        pa.set_memory_pool(pa.system_memory_pool())


def give_back_free_pages() -> None:
    """Give back all that is free."""
    if (glibc := _glibc()) is not None:
        glibc.malloc_trim(0)


@dataclass
class FreePages:
    """Gives free pages back to the system where the process has become larger than when it was first looked at.

    Two threads at once may both do it, which does no harm.
    """

    allowed: int | None = None

    def after_step(self) -> bool:
        """Look at the process' size; returns whether pages were given back."""
        resident = resident_bytes()
        if self.allowed is None:
            self.allowed = resident + _SLACK_BYTES
        if resident <= self.allowed:
            return False
        give_back_free_pages()
        self.allowed = max(self.allowed, resident_bytes() + _SLACK_BYTES)  # what is not free is not held against it
        return True


free_pages = FreePages()
"""This process' own."""


def resident_bytes() -> int:
    """This process' resident memory, 0 where the system does not say."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def peak_resident_bytes() -> int:
    """This process' largest resident memory so far.

    On Linux `getrusage` is not asked: a process begins with the peak of the one that started it.
    """
    try:
        status = _STATUS.read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None
