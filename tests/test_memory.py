"""What libraries keep for a process stays bounded, and what is free goes back to the system.

Each script runs in an interpreter of its own: the caches' limits are read once, and other tests' memory would disturb.
`malloc` counts what is in use in glibc's heaps, to the byte; resident memory is only used where half of it must go.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jacobian_core.memory import _CACHES, KEPT_PRODUCTS, _glibc, free_pages, peak_resident_bytes
from tests.tiny import run_pipeline, tiny_config

pytestmark = pytest.mark.skipif(_glibc() is None, reason="needs glibc")

_PRODUCTS = """
import ctypes, torch
from jacobian_core.memory import bound_memory
if {bounded}:
    bound_memory()
from jacobian_core.model.affine import Affine

class Heaps(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

glibc = ctypes.CDLL(None)
glibc.mallinfo2.restype = Heaps
torch.set_num_threads(1)
affine, x = Affine.of(torch.randn(64, 32), None), torch.randn(600, 32)
used = []
with torch.no_grad():
    for rows in range(2, 300):
        torch.nn.functional.gelu(affine(x[:rows]))
        used.append(glibc.mallinfo2().uordblks)
print((used[-1] - used[2 * {kept}]) / 1e6)
"""

_FREE = """
import numpy as np
from jacobian_core.memory import FreePages, resident_bytes
pages = FreePages()
assert not pages.after_step(), "the first block is what others are held against"
assert not pages.after_step(), "nothing was added"
pieces = [np.ones(12_000) for _ in range(1000)]
full = resident_bytes()
kept = pieces[::2][-1]  # the end of the heap stays in use, so nothing goes back by itself
del pieces
assert resident_bytes() > full - 30e6, "it would have gone back by itself"
assert pages.after_step()
assert resident_bytes() < full - 60e6, (full, resident_bytes())
assert not pages.after_step()
assert kept.sum() == 12_000
"""


def _output(script: str) -> str:
    ours = {name: value for name, value in os.environ.items() if name not in _CACHES}  # as other tests may have set
    done = subprocess.run([sys.executable, "-c", script], env=ours, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this machine's torch has no oneDNN")


@needs_onednn
def test_products_of_ever_other_numbers_of_rows_are_not_all_kept() -> None:
    assert float(_output(_PRODUCTS.format(bounded=True, kept=KEPT_PRODUCTS))) < 2


@needs_onednn
def test_unbounded_they_are() -> None:
    assert float(_output(_PRODUCTS.format(bounded=False, kept=KEPT_PRODUCTS))) > 20


def test_free_pages_go_back() -> None:
    _output(_FREE)


def test_a_run_bounds_them(tiny: Path, tmp_path: Path) -> None:
    free_pages.allowed = None
    run_pipeline(tiny_config(tiny, tmp_path / "lake"))
    assert free_pages.allowed is not None
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == os.environ["LRU_CACHE_CAPACITY"] == str(KEPT_PRODUCTS)


def test_the_peak_is_the_process_own() -> None:
    """A process that was started by a large one, whose peak `getrusage` would give it, and one that became large."""
    code = "from jacobian_core.memory import peak_resident_bytes as peak\n{}\nprint(peak())"
    large = np.ones(400 << 20, np.uint8)
    small, grown = (
        int(subprocess.run([sys.executable, "-c", code.format(line)], stdout=subprocess.PIPE, check=True).stdout)
        for line in ("", "held = bytearray(b'x') * (300 << 20)")
    )
    assert small < large.nbytes / 2 < large.nbytes < peak_resident_bytes()
    assert grown > small + (250 << 20)
