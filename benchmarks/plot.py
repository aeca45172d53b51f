"""The picture of growth: `python -m benchmarks ... | tail -1 | python -m benchmarks.plot benchmarks/growth.svg`."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(path: Path, line: str) -> None:
    """Tokens a second, and peak memory, over the tokens of a run; a line for each shape."""
    from matplotlib.figure import Figure

    found = [(name, figures) for name, figures in json.loads(line).items() if isinstance(figures, dict)]
    sizes = [(name.split(" ")[0], figures) for name, figures in found if "tokens_per_second" in figures and " " in name]
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, (column, title, scale) in zip(
        figure.subplots(1, 2),
        [("tokens_per_second", "tokens a second", 1.0), ("peak_bytes", "peak memory of the run, GB", 1e9)],
        strict=True,
    ):
        for shape in dict.fromkeys(shape for shape, _ in sizes):
            mine = [figures for name, figures in sizes if name == shape]
            axes.plot([f["tokens"] for f in mine], [f[column] / scale for f in mine], marker="o", label=shape)
        axes.set(xscale="log", xlabel="tokens of the run", title=title, ylim=(0, None))
        axes.legend()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.stdin.read())
