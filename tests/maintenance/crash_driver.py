"""Compact copies of a lake, each killed (SIGKILL) one durable step later, until one is not killed any more.

Usage: python -m tests.maintenance.crash_driver LAKE FOLDER; each attempt's copy is FOLDER/<step>. Prints the attempts.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from jacobian_core.lake.compact import compact_run
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.retention import sweep_lake
from tests.lake.builders import RUN
from tests.lake.crash_driver import _kill_before_step


def maintain(root: Path) -> None:
    """What `jacobian compact` does, the sweep not waiting for anybody."""
    lake = Lake.open(root)
    compact_run(lake, RUN)
    sweep_lake(lake, grace_seconds=0)  # builds the warehouse


def main(source: Path, folder: Path) -> None:
    """Kill at every step, from the first to the last."""
    shutil.copytree(source, folder / "warm")
    maintain(folder / "warm")  # what is imported late is then imported once, not in every child
    step = 0
    while True:
        shutil.copytree(source, folder / str(step))
        child = os.fork()
        if child == 0:
            _kill_before_step(step)
            maintain(folder / str(step))
            os._exit(0)
        step += 1
        if os.waitpid(child, 0)[1] == 0:
            break
    print(step)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
