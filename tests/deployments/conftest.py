"""The flow tests' real Prefect server serves the deployments' tests too."""

from tests.flows.conftest import prefect_api, server, server_lake

__all__ = ["prefect_api", "server", "server_lake"]
