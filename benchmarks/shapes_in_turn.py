"""Benchmark `jacobians`: all methods and the whole run at each shape that was asked for."""

from __future__ import annotations

from benchmarks.suite import Options, Results

_BLOCKS = {"pythia-70m": 4, "demo": 16}


def measure(options: Options) -> Results:
    """The figures of each shape, by its name."""
    from benchmarks.jacobians import measure_shape
    from benchmarks.shapes import DEMO, PYTHIA_70M

    known = {shape.name: shape for shape in (DEMO, PYTHIA_70M)}
    return {name: measure_shape(known[name], _BLOCKS[name] * 4_096, options.turns) for name in options.shapes}
