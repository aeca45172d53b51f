"""Where the project's own files are, in a checkout or an installed wheel, and where downloads are kept."""

from __future__ import annotations

import os
from pathlib import Path

_BUNDLED = Path(__file__).parent / "_bundled"
_CHECKOUT = Path(__file__).parent.parent


def project_root() -> Path:
    """The folder that holds `sql/`, `deployments/profiles/`, `deployments/sweeps/` and `demo/`."""
    return _BUNDLED if _BUNDLED.is_dir() else _CHECKOUT


def project_path(relative: str) -> Path:
    """A file or folder of the project by its path in the repository, such as `sql/reports`."""
    return project_root() / relative


def cache_folder() -> Path:
    """Where downloads are kept: `$JACOBIAN_FLOWS_CACHE`, or the user's cache folder."""
    configured = os.environ.get("JACOBIAN_FLOWS_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(configured) if configured else Path(home) / "jacobian-flows"
