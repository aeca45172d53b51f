"""Where the project's own files are: SQL, profiles and the demo, in a checkout or in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_BUNDLED = Path(__file__).parent / "_bundled"
_CHECKOUT = Path(__file__).parent.parent


def project_root() -> Path:
    """The folder that holds `sql/`, `deployments/profiles/`, `deployments/sweeps/` and `demo/`."""
    return _BUNDLED if _BUNDLED.is_dir() else _CHECKOUT


def project_path(relative: str) -> Path:
    """A file or folder of the project by its path in the repository, such as `sql/reports`."""
    return project_root() / relative
