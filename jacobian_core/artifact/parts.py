"""Two SAEs of their own as one pair: a folder in the cache that points to each, and says where each is from.

Nothing is copied: `in` and `out` are links to verified copies or to the user's folders. The pair's digest is over the
digests of its parts and their factors, so where the parts lie does not matter.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jacobian_core.artifact.files import Artifact
from jacobian_core.errors import ArtifactError

PARTS_NAME = "parts.json"
_SHELF = "pairs"


@dataclass(frozen=True)
class PartFacts:
    """One SAE of a pair made of parts: where it is from, its digest, and the factor of its activations, if known."""

    locator: str
    digest: str
    norm_factor: float | None = None


def compose(parts: dict[str, tuple[Artifact, float | None]], cache: Path) -> Artifact:
    """The pair of these SAEs, by side, each with the factor that its activations were multiplied by in training."""
    facts = {
        side: PartFacts(artifact.locator, artifact.digest, factor) for side, (artifact, factor) in sorted(parts.items())
    }
    record = json.dumps({side: vars(each) for side, each in facts.items()}, indent=2) + "\n"
    targets = {side: str(artifact.folder.resolve()) for side, (artifact, _) in parts.items()}
    name = hashlib.sha256(json.dumps([record, targets], sort_keys=True).encode()).hexdigest()[:16]
    folder = cache.absolute() / _SHELF / name
    if not (folder / PARTS_NAME).exists():
        _write(folder, record, targets)
    lines = "".join(f"{side} {each.digest} {each.norm_factor}\n" for side, each in facts.items())
    locator = "; ".join(f"{side} {each.locator}" for side, each in facts.items())
    files = {f"{side}/{name}": sha for side, (artifact, _) in parts.items() for name, sha in artifact.files.items()}
    return Artifact(folder, locator, files, hashlib.sha256(lines.encode()).hexdigest())


def read_parts(folder: Path) -> dict[str, PartFacts]:
    """The parts of a composed pair by side; {} for a pair that is one artifact."""
    path = folder / PARTS_NAME
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not readable: {error}.", "Remove its folder from the cache.") from error
    return {side: PartFacts(**facts) for side, facts in found.items()}


def _write(folder: Path, record: str, targets: dict[str, str]) -> None:
    """Made aside and renamed, so that no other process sees half of it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        for side, target in targets.items():
            (made / side).symlink_to(target, target_is_directory=True)
        (made / PARTS_NAME).write_text(record, encoding="utf-8")
        made.rename(folder)
    except OSError:
        if not (folder / PARTS_NAME).exists():
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
