"""A Prefect server watched and steered over its REST API, as a person would do it in the UI."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_POLL_SECONDS = 0.5


def until(true: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true value of `true()`."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"no {what} within {seconds:.0f} s"
        time.sleep(_POLL_SECONDS)
    return found


@dataclass
class Server:
    """The server whose API is at `api`."""

    api: str = field(default="", kw_only=True)

    def post(self, path: str, body: dict[str, Any], method: str = "POST") -> Any:
        request = urllib.request.Request(
            f"{self.api}/{path}", json.dumps(body).encode(), {"content-type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def deployment(self, name: str) -> dict[str, Any]:
        body = {"deployments": {"name": {"any_": [name]}}}
        found: list[dict[str, Any]] = self.post("deployments/filter", body)
        return found[0]

    def start(self, name: str, **parameters: Any) -> str:
        """Trigger a deployment; the flow run's id."""
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return str(self.post(f"deployments/{self.deployment(name)['id']}/create_flow_run", body)["id"])

    def every(self, name: str, seconds: int) -> None:
        """Shorten the interval of a deployment's schedule."""
        deployment = self.deployment(name)
        path = f"deployments/{deployment['id']}/schedules/{deployment['schedules'][0]['id']}"
        self.post(path, {"schedule": {"interval": seconds}, "active": True}, "PATCH")

    def flow_run(self, run: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.api}/flow_runs/{run}", timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def ended(self, run: str, seconds: float = 240) -> dict[str, Any]:
        """The flow run's final state."""
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

        def state() -> dict[str, Any] | None:
            found: dict[str, Any] = self.flow_run(run)["state"]
            return found if found["type"] in final else None

        found: dict[str, Any] = until(state, seconds, "end of the flow run")
        return found

    def firings(self) -> list[dict[str, Any]]:
        """The ingest's flow runs that are over, in the order of their start."""
        body = {
            "deployments": {"name": {"any_": ["ingest"]}},
            "flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}},
            "sort": "START_TIME_ASC",
            "limit": 100,
        }
        found: list[dict[str, Any]] = self.post("flow_runs/filter", body)
        return found
