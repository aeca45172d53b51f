"""The `jacobian` command over a fake pipeline, in its own process: `fake_cli ROOT SECONDS FAILING -- ARGUMENTS`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jacobian_core
from tests.flows.fake_pipeline import FakePipeline


def main() -> None:
    root, seconds, failing = sys.argv[1:4]
    del sys.argv[1:5]
    pipeline: Any = FakePipeline(
        Path(root), {"a": 12}, compute_seconds=float(seconds), failing=set(filter(None, failing.split(",")))
    )
    sys.modules["jacobian_core.pipeline"] = pipeline
    jacobian_core.pipeline = pipeline
    import flows.cli_run
    import flows.results

    flows.results.run_facts = lambda _lake, run_id: {"run_id": run_id}
    flows.results.publish_reports = lambda *_: []
    flows.cli_run._show_result = lambda _lake, run_id, _json: print(run_id)
    import flows.cli

    flows.cli.main()


if __name__ == "__main__":
    main()
