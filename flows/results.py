"""A run's results for people: reports as files of the lake, as pictures of the UI and as text for the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import ui
from jacobian_core.lake.paths import LakePath

if TYPE_CHECKING:
    import pyarrow as pa

    from jacobian_core.page.write import WrittenPage
    from jacobian_core.step_values import ArtifactRef, QualityReport, RunRef

RUN_REPORTS = ("threshold_fractions", "mean_max_aggregates", "sparsity", "convergence", "data_quality")
"""Reports that every run ends with."""
ANSWER = "causal_zero_answer"
EXPERIMENT_REPORTS = (ANSWER, "causal_zero_test", "top_interventions", "function_shapes")
"""Reports of a run in which latents were changed, the answer first."""
DERIVATIVE_REPORTS = ("derivative_correlation", "derivative_quantiles", "latent_jacobian_correlation")
"""Reports of a run with second derivatives."""
TRANSCODER_REPORTS = ("transcoder_fit", "transcoder_worst")
"""Reports of a run with a transcoder."""
_ID_CHARACTERS = 12
_REDO = "Analyse again into a new lake, and report it if it returns."


def run_note(run: RunRef, artifact: ArtifactRef) -> str:
    """What is about to run, in one line."""
    wanted = "all" if run.tokens_wanted is None else f"{run.tokens_wanted:,}"
    state = {"new": "new", "resume": "continued", "done": "already done: nothing to compute"}[run.state]
    return (
        f"run {run.run_id} ({state}): {wanted} tokens of {len(run.shards)} shards, "
        f"pair {artifact.locator} {artifact.digest[:_ID_CHARACTERS]}"
    )


def quality_note(gate: QualityReport) -> str:
    """The outcome of the quality gate in one line."""
    return f"quality: FVU {gate.fvu_in:.3f} in, {gate.fvu_out:.3f} out, on {gate.tokens:,} tokens"


def skipped_note(skipped: Mapping[str, int]) -> str:
    """What of the corpus was left out, in one line; '' if nothing was."""
    counts = [f"{count:,} {reason.replace('_', '-')}" for reason, count in skipped.items() if count]
    return f"skipped documents: {', '.join(counts)}" if counts else ""


def choose_run(lake: LakePath, wanted: str | None) -> str:
    """The run whose id or name is, or whose id alone begins with, `wanted`; without it the run that ended last."""
    from jacobian_core.errors import LakeError
    from jacobian_core.lake.layout import Lake

    opened = Lake.open(lake)
    found = opened.runs()
    if wanted is not None:
        named = re.compile(re.escape(wanted) + "-[0-9a-f]{12}")
        matching = (
            [r for r in found if r == wanted]
            or [r for r in found if named.fullmatch(r)]
            or [r for r in found if r.startswith(wanted)]
        )
        if len(matching) != 1:
            problem = f"{lake}: {'no run' if not matching else 'more than one run'} begins with '{wanted}'."
            raise LakeError(problem, f"Runs: {', '.join(matching or found) or 'none'}.")
        return matching[0]
    manifests = [manifest for manifest in map(opened.manifest, found) if manifest is not None]
    if manifests:
        return max(manifests, key=lambda manifest: manifest.created_utc).run_id
    if not found:
        raise LakeError(f"{lake}: no run here yet.", "Start one with `jacobian run`.")
    return found[-1]


def reports_of(lake: LakePath, run_id: str) -> tuple[str, ...]:
    """The reports that a run ends with: those about what it was asked to compute, the answer first."""
    from jacobian_core.lake.layout import Lake

    opened = Lake.open(lake)
    record = opened.manifest(run_id) or opened.request(run_id)
    config: dict[str, Any] = dict(record.config) if record is not None else {}
    experiments, derivatives = config.get("interventions") or {}, (config.get("jacobian") or {}).get("derivatives")
    names = (
        *(EXPERIMENT_REPORTS if experiments.get("kinds") else ()),
        *(TRANSCODER_REPORTS if (config.get("sae") or {}).get("transcoder") else ()),
        *RUN_REPORTS,
        *(DERIVATIVE_REPORTS if derivatives == "second" else ()),
    )
    if (config.get("jacobian") or {}).get("keep", "entries") == "entries":
        return names
    from jacobian_core.sql.entries import needs_entries
    from jacobian_core.sql.reports import report_info

    return tuple(name for name in names if not needs_entries(report_info(name)))


def run_reports(
    lake: LakePath, run_id: str, names: Sequence[str] = RUN_REPORTS, parameters: Mapping[str, str] | None = None
) -> dict[str, pa.Table]:
    """Reports over the lake as it is now, on one run where a report is about one.

    A parameter goes to each report that has it. Raises QueryError for an unknown report or parameter.
    """
    from jacobian_core.lake.layout import Lake
    from jacobian_core.sql import reports, warehouse

    given = dict(parameters or {})
    known = {name: [p.name for p in reports.report_info(name).parameters] for name in names}
    for name in given:
        if not any(name in of_report for of_report in known.values()):
            known[names[0]].append(name)  # the first report refuses it, with the nearest name
    with warehouse.connect(Lake.open(lake)) as connection:
        return {
            name: reports.run_report(
                connection, name, {k: v for k, v in {"run_id": run_id, **given}.items() if k in of_report}
            )
            for name, of_report in known.items()
        }


def write_reports(lake: LakePath, run_id: str, tables: Mapping[str, pa.Table]) -> list[str]:
    """Write reports as Parquet and CSV; returns the files' paths."""
    from jacobian_core.lake.layout import Lake
    from jacobian_core.sql import reports

    opened = Lake.open(lake)
    return [str(path) for name, table in tables.items() for path in reports.write_report(opened, run_id, name, table)]


def say_reports(tables: Mapping[str, pa.Table]) -> None:
    """Print reports as tables for a terminal, each under its question."""
    from flows.output import line_width, say, say_text
    from jacobian_core.sql.render import render
    from jacobian_core.sql.reports import report_info

    for name, table in tables.items():
        question, _, rows = render(table, report_info(name), line_width()).partition("\n")
        say_text(f"{name}: {question}")
        say(rows + "\n")


def publish_reports(lake: LakePath, run_id: str) -> list[str]:
    """Write what every run ends with, and leave it in the UI; returns the files written."""
    from flows.run_page import run_page

    tables = run_reports(lake, run_id, reports_of(lake, run_id))
    written = write_reports(lake, run_id, tables)
    for name, table in tables.items():
        ui.leave_table(run_id, name, table.to_pylist())
    ui.leave_page(run_id, run_page(lake, run_id, tables))
    page = html_page(lake, [run_id], known={run_id: tables})
    ui.leave_pictures(run_id, page.images, page.captions)
    return [*written, *page.files]


def html_page(
    lake: LakePath,
    run_ids: Sequence[str],
    folder: Path | None = None,
    known: Mapping[str, Mapping[str, pa.Table]] | None = None,
) -> WrittenPage:
    """Write the page of these runs as `report.html`, with its figures as PNG files, and say where."""
    from jacobian_core.lake.layout import Lake
    from jacobian_core.page.write import write_page

    return write_page(Lake.open(lake), run_ids, folder, known)


def answer_of(tables: Mapping[str, pa.Table]) -> str:
    """What the run's interventions say to the title question, in a sentence; '' for a run without them."""
    found = tables.get(ANSWER)
    return str(found.column("answer")[0].as_py() or "") if found is not None and found.num_rows else ""


def run_facts(lake: LakePath, run_id: str) -> dict[str, object]:
    """A finished run's figures and places, for the end of a command's output."""
    from jacobian_core.cost import cost_facts
    from jacobian_core.lake.layout import Lake

    manifest = Lake.open(lake).manifest(run_id)
    totals = manifest.totals if manifest is not None else {}
    stored = sum(part.bytes for parts in manifest.all_parts().values() for part in parts) if manifest else 0
    return {
        "run_id": run_id,
        "tokens": int(totals.get("tokens", 0)),
        "entries_stored": int(totals.get("entries_stored", 0)),
        "bytes": stored,
        **(cost_facts(manifest) if manifest is not None else {}),
        "lake": str(lake),
        "reports": str(lake / "reports" / run_id),
        "report_page": str(lake / "reports" / run_id / "report.html"),
    }


def run_query(
    lake: LakePath, query: str, run: str | None, parameters: Mapping[str, str], write: bool = False
) -> pa.Table:
    """The rows of an ad-hoc statement (or of the file that holds it) over the lake; reading only, unless `write`.

    With `run`, the views hold that run alone, and `$run_id` in the text of the statement is its id.
    """
    from jacobian_core.lake.layout import Lake
    from jacobian_core.sql import reports, warehouse

    chosen = None if run is None else [choose_run(lake, run)]
    given = dict(parameters)
    if chosen and "$run_id" in query:
        given.setdefault("run_id", chosen[0])
    with warehouse.connect(Lake.open(lake), chosen, read_only=not write) as connection:
        return reports.run_sql(connection, query, given, write)


def verify_all(lake: LakePath, run_id: str | None) -> list[dict[str, str]]:
    """Findings of the files' and of the SQL checks, as rows of severity, run_id, path, what and remedy."""
    from flows.output import plain
    from jacobian_core.lake.layout import Lake
    from jacobian_core.lake.verify import verify_lake
    from jacobian_core.sql import checks, warehouse

    opened = Lake.open(lake)
    findings: list[dict[str, str]] = [plain(finding) for finding in verify_lake(opened, run_id)]
    if any(finding["severity"] == "error" for finding in findings):
        return findings  # SQL over damaged files would only repeat it less clearly
    for each in [run_id] if run_id else opened.runs():
        with warehouse.connect(opened, [each]) as connection:
            for check in checks.run_checks(connection, each):
                if not check.passed:
                    found = f"{check.violations} rows break '{check.invariant}'"
                    what = f"check {check.name}: {found}, such as {', '.join(map(str, check.sample[:1]))}."
                    findings.append({"severity": "error", "run_id": each, "path": "", "what": what, "remedy": _REDO})
    return findings
