"""The process that faults happen to: one run over warmed-up imports and weights, forked for every attempt.

`multiprocessing`'s fork server imports this module once (6 to 12 s) and runs the miniature once, so that each attempt
costs what its own steps cost, about half a second.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.faults.steps import Done, Marks, flow_run, marked, whole_run

WARM_ROOT = "JACOBIAN_FAULTS_ROOT"
"""Environment variable: the folder of the miniature to run once when this module is imported."""
Fault = Callable[[], Any]
"""Makes a context manager inside of which something is wrong; must be importable by name."""


@dataclass(frozen=True)
class Order:
    """What an attempt should do: `config` as JSON, where its caches are, and what goes wrong inside of it."""

    config: str
    cache: str
    scratch: str
    trap: tuple[str, int] | None = None
    fault: Fault | None = None
    environment: tuple[tuple[str, str], ...] = ()
    through_prefect: bool = False


@dataclass(frozen=True)
class Failed:
    """How a run ended that raised."""

    kind: str
    message: str


@contextmanager
def _surroundings(order: Order) -> Iterator[None]:
    os.environ.update({"JACOBIAN_FLOWS_CACHE": order.cache, **dict(order.environment)})
    Path(order.scratch).mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = order.scratch
    with ExitStack() as stack:
        if order.fault is not None:
            stack.enter_context(order.fault())
        yield


def attempt(order: Order, now: Any, computing: Any, entered: Connection, answer: Connection) -> None:
    """Run, and send a Done or a Failed; say on `entered` when the trap's stage is entered and wait there a moment."""
    from jacobian_core.config import RunConfig
    from jacobian_core.errors import JacobianFlowsError

    marks = Marks(now, computing, order.trap, lambda: entered.send(None))
    said: Done | Failed
    try:
        with _surroundings(order), marked(marks):
            run = flow_run if order.through_prefect else whole_run
            said = replace(run(RunConfig.model_validate_json(order.config)), entered=marks.entered)
    except JacobianFlowsError as error:
        said = Failed(type(error).__name__, str(error))
    except Exception as error:
        import traceback

        said = Failed(f"unexpected {type(error).__name__}", "".join(traceback.format_exception(error)))
    answer.send(said)
    os._exit(0)  # nothing of the fork server's is to be cleaned up here


def _warm(root: Path) -> None:
    """Load what every attempt needs: one run of each scope, whose workers stay loaded and are inherited by forks."""
    from jacobian_core.config import RunConfig
    from jacobian_core.work import worker

    loaded: dict[Any, Any] = {}
    for path in sorted(root.glob("warm-*.json")):
        os.environ["JACOBIAN_FLOWS_CACHE"] = str(root / "warm-cache")
        whole_run(RunConfig.model_validate_json(path.read_text()))
        loaded.update(worker._loaded)
    worker._loaded.update(loaded)


if os.environ.get(WARM_ROOT):
    import s3fs  # noqa: F401 - a second that is not each attempt's, where its lake is in a store

    _warm(Path(os.environ[WARM_ROOT]))
