"""The errors a user can meet. Each names what is wrong, where, and what to do about it.

The command line prints `str(error)` as its one line and exits with `exit_code`; nothing else is shown unless asked for.
"""

from __future__ import annotations


class JacobianFlowsError(Exception):
    """Base of every error that this project raises on purpose.

    `problem` says what is wrong and names the file and field; `remedy` says what to do.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem} {remedy}".strip())

    def __reduce__(self) -> tuple[type[JacobianFlowsError], tuple[str, str]]:
        """Survive the trip between processes: an exception is rebuilt from its constructor's arguments."""
        return type(self), (self.problem, self.remedy)


class ConfigError(JacobianFlowsError):
    """A profile, a `--set` override or a parameter is wrong."""

    exit_code = 2


class ArtifactError(JacobianFlowsError):
    """The SAE artifact can't be fetched, or is not what it should be."""

    exit_code = 3


class ModelError(JacobianFlowsError):
    """The language model can't be loaded, or does not match the SAE pair."""

    exit_code = 4


class CorpusError(JacobianFlowsError):
    """A shard of text is missing or damaged."""

    exit_code = 5


class ChangedShardError(CorpusError):
    """A shard's bytes are not those that the run began with: nothing that was made of it can be trusted."""


class LakeError(JacobianFlowsError):
    """The lake can't be written, or a part breaks its contract."""

    exit_code = 6


class QueryError(JacobianFlowsError):
    """A SQL statement or a report can't be run."""

    exit_code = 7


class ServerError(JacobianFlowsError):
    """The local Prefect server can't be started or reached."""

    exit_code = 8


class SweepError(JacobianFlowsError):
    """Some runs of a sweep failed; the others are whole."""

    exit_code = 9
