"""Which failures are worth another try: those of the network, never those of the request."""

from __future__ import annotations

from typing import Any

RETRY_SECONDS = (2.0, 10.0, 30.0)
_NETWORK_MODULES = ("requests", "urllib3", "httpx", "httpx2", "httpcore", "http.client", "socket")
_NETWORK_NAMES = ("Connect", "Connection", "Timeout", "TimedOut", "Network", "RemoteDisconnected", "CommError")


def is_transient(_task: Any, _run: Any, state: Any) -> bool:
    """Prefect's retry condition: true if the failure, or what caused it, is one of the network's."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_network_failure(error)


def is_network_failure(error: BaseException) -> bool:
    """True if the error, or one that it was raised from, is a failure of the network or says that it is `transient`."""
    seen: BaseException | None = error
    while seen is not None:
        if (
            getattr(seen, "transient", False)
            or isinstance(seen, (ConnectionError, TimeoutError))
            or _is_client_failure(seen)
        ):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _is_client_failure(error: BaseException) -> bool:
    kind = type(error)
    module = kind.__module__.partition(".")[0]
    return module in _NETWORK_MODULES and any(name in kind.__name__ for name in _NETWORK_NAMES)
