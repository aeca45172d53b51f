"""The kernels compiled for a Hopper GPU, which needs no GPU: what the interpreter forgives, the compiler refuses.

In a process of its own, because in this one kernels are interpreted. That process shows another thing first: what a
worker imports brings nothing of this package, nor Triton.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install -e '.[dev]' on Linux x86-64 brings it")

COMPILE = """
import json, sys
import jacobian_core.work.worker, jacobian_core.work.groups
early = [m for m in sys.modules if m.startswith(("triton", "jacobian_core.numerics.gpu"))]
assert not early, f"a process without a GPU has no use for {early}"
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from jacobian_core.numerics.gpu import gathered, sums
from jacobian_core.numerics.gpu.gathered_kernel import gathered_product
from jacobian_core.numerics.gpu.sums_kernel import latent_sums

def ptx(kernel, constants, warps):
    # Arguments that are 1 become constants of the kernel when it is launched.
    lengths = {"k_out", "k_in", "n_in", "segments", "tiles_in"} if ONES else {}
    constants = constants | {name: 1 for name in kernel.arg_names if name in lengths}
    weights = "*bf16" if constants["PRECISION"] == "bf16" else "*fp32"
    types = {"E": weights, "D": weights, "unit": "*fp64", "total": "*i64", "total_abs": "*i64", "total_sq": "*i64"}
    types |= {name: "*fp32" for name in ("per_neuron", "slopes", "result", "largest")}
    types |= {name: "*i64" for name in ("out_index", "in_index", "pair_token")}
    types |= {f"segment_{name}": "*i64" for name in ("row", "start", "tokens")}
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constexprs=values)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}).asm["ptx"]

def compiled(kernel, precision, channels, k):
    shared = {"PRECISION": precision, "CHANNELS": channels}
    if kernel == "sums":
        blocks = {"BLOCK_TOKENS": sums.BLOCK_TOKENS, "BLOCK_IN": sums.BLOCK_IN, "BLOCK_MLP": sums.BLOCK_MLP}
        text = ptx(latent_sums, shared | blocks | {"GROUP": sums.GROUP}, sums.WARPS)
    else:
        block = gathered.block(k)
        blocks = {"BLOCK_OUT": block, "BLOCK_IN": block, "BLOCK_MLP": gathered.BLOCK_MLP}
        text = ptx(gathered_product, shared | blocks | {"SECOND": kernel == "second"}, gathered.warps(block * block))
    return [unit for unit in ("mma", "tf32.tf32", "bf16.bf16") if unit in text]

found = []
for *variant, ones in json.loads(sys.argv[1]):
    ONES = ones
    found.append(compiled(*variant))
print(json.dumps(found))
"""
Variant = tuple[str, str, int, int, bool]
"""Kernel, precision, channels, k, and whether lengths are 1."""
UNITS = {"float32": [], "tf32": ["mma", "tf32.tf32"], "bf16": ["mma", "bf16.bf16"]}
"""What of a kernel's text says which arithmetic it uses: float32 is exact, and needs no tensor core."""


def compiled(tmp_path: Path, variants: list[Variant]) -> list[list[str]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", COMPILE, json.dumps(variants)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return list(json.loads(result.stdout))


def test_each_precision_is_compiled_to_its_own_arithmetic(tmp_path: Path) -> None:
    variants: list[Variant] = [
        ("first", "float32", 1, 32, False), ("second", "tf32", 2, 32, False), ("first", "bf16", 1, 32, True),
        ("sums", "float32", 1, 32, False),
    ]  # fmt: skip
    assert compiled(tmp_path, variants) == [UNITS[precision] for _, precision, *_ in variants]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["first", "second", "sums"])
def test_every_variant_compiles(kernel: str, tmp_path: Path) -> None:
    variants = [(kernel, p, channels, k, k == 1) for p in UNITS for channels in (1, 2) for k in (1, 32, 128)]
    assert compiled(tmp_path, variants) == [UNITS[precision] for _, precision, *_ in variants]
