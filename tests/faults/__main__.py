"""Try every fault, the long series too, and write docs/FAULTS.md: `python -m tests.faults` (about ten minutes)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.faults.table import TABLE_FILE

_PAGE = """# Faults

What was done to runs, and what it cost. Each trial is a whole run in miniature (a random model and SAE pair over two
compressed shards), disturbed at a random moment and, unless it comes to its end by itself, started again with the same
request. Then the lake is compared with an undisturbed one: the same files, every part the same bytes (SHA-256), the
same manifest but for times, the same rows in the reports and in the warehouse, no temporary file, and `jacobian verify`
finds nothing. Between a kill or a failure and the second start, a reader must have seen whole blocks only.

{table}

*Blocks recomputed* counts computations that were begun more than once; a kill costs the block in hand at most. Rows
would be lost or doubled if a table of the lake had fewer or more of them than the undisturbed one.

- **SIGKILL in a stage**: the process is killed at a random moment of fetching the pair, tokenising, computing, summing
  (scope `all_inputs`), writing parts, publishing a block or the run, merging sums (where entries are not kept), or
  reporting.
- **worker paused**: SIGSTOP at such a moment; another worker does the whole run; then the first one wakes, and finds
  its work done.
- **disk full, file size limit, read-only lake**: a small file system that fills up, the kernel's limit on the size of
  files, errors at any durable step, permissions taken away in the middle of a run.
- **part or manifest damaged**: `jacobian verify` names it; started again, the run computes that block (after a bit
  flip, once the file is removed, as `verify` says).
- **shard damaged while it is read**: after the run has hashed it. Lines are hashed again as they are read, so even a
  change that no checksum of the format notices ends in an error, and what was made of that shard is computed anew.
- **clock jumps**: by seconds to a year in both directions, also in the dates of the lake's files.
- **network to the artifact**: connections to the hub and to W&B break off half-way through a file.
- **Prefect server**: killed in the middle of a run and started again; the run waits for it and completes.

`make test` tries the short series, about forty trials. This page is written by `python -m tests.faults`, which tries
all; `python -m pytest tests/faults -m slow` runs the long series alone.
"""


def main() -> int:
    """The trials, then the page; it is only written when all of them passed."""
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.md"
        command = [sys.executable, "-m", "pytest", str(Path(__file__).parent), "-m", "", *sys.argv[1:]]
        code = subprocess.run(command, cwd=root, env={**os.environ, TABLE_FILE: str(table)}, check=False).returncode
        if code == 0:
            (root / "docs" / "FAULTS.md").write_text(_PAGE.format(table=table.read_text().strip()))
    return code


if __name__ == "__main__":
    sys.exit(main())
