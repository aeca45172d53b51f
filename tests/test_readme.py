"""The README says nothing that is not so: its commands, options, settings, tables, queries, tree and links are real.

Each guard must find nothing in the README, and must find the mistake in a README that has one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jacobian_core.dictionary import DOCUMENTS
from jacobian_core.errors import JacobianFlowsError
from jacobian_core.lake.layout import Lake
from tests.readme_guards import (
    ROOT,
    queries,
    section,
    wrong_commands,
    wrong_keys,
    wrong_links,
    wrong_lists,
    wrong_tables,
    wrong_toml,
    wrong_tree,
)
from tests.tiny import run_pipeline, tiny_config

README = (ROOT / "README.md").read_text(encoding="utf-8")
GUARDS: dict[Callable[[str], list[str]], tuple[str, str]] = {
    wrong_commands: ("jacobian verify --lake lake", "jacobian verify --lakes lake"),
    wrong_keys: ("`jacobian.min_abs`", "`jacobian.minimum`"),
    wrong_toml: ("max_tokens = 100_000", "most_tokens = 100_000"),
    wrong_tree: ("  pipeline.py ", "  pipelines.py "),
    wrong_tables: ("| `latents` |", "| `codes` |"),
    wrong_lists: ("| `jacobian verify` |", "| `jacobian check` |"),
    wrong_links: ("](LICENSE)", "](LICENCE)"),
}


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.__name__)
def test_the_readme_is_right(guard: Callable[[str], list[str]]) -> None:
    assert guard(README) == []


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.__name__)
def test_a_mistake_is_noticed(guard: Callable[[str], list[str]]) -> None:
    right, wrong = GUARDS[guard]
    assert right in README
    assert guard(README.replace(right, wrong)) != []


@pytest.mark.parametrize(
    "line",
    ["make rum", "make run PROFIL=demo", "make run PROFILE=dmo", "jacobian runn", "jacobian run --set corpus.tokens=5",
     "jacobian report sparsities", "jacobian report sparsity --set top=5", "jacobian server restart", "rm -r lake"],
)  # fmt: skip
def test_a_wrong_command_is_noticed(line: str) -> None:
    assert wrong_commands(f"```sh\n{line}\n```\n") != []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_generated_documents_are_fresh(name: str) -> None:
    written = (ROOT / name).read_text(encoding="utf-8")
    assert written == DOCUMENTS[name](), f"run `python -m jacobian_core.dictionary` and commit {name}"


@pytest.fixture(scope="module")
def lake(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    config = tiny_config(
        tiny,
        tmp_path_factory.mktemp("readme") / "lake",
        jacobian={"derivatives": "second"},
        interventions={"kinds": ["ablate"]},
    )
    run_pipeline(config)
    return Lake.open(Path(config.lake.root))


@pytest.mark.parametrize("query", queries(README), ids=lambda query: query.splitlines()[0][3:30])
def test_queries_run(query: str, lake: Lake) -> None:
    from jacobian_core.sql.reports import run_sql
    from jacobian_core.sql.warehouse import connect

    with connect(lake) as connection:
        found = run_sql(connection, query)
    assert found.num_columns > 1
    assert found.num_rows > 0


def test_there_are_ten_queries_and_a_wrong_one_fails(lake: Lake) -> None:
    from jacobian_core.sql.reports import run_sql
    from jacobian_core.sql.warehouse import connect

    ten = queries(section(README, "Ten queries"))
    assert [query.split(".")[0] for query in ten] == [f"-- {number}" for number in range(1, 11)]
    with connect(lake) as connection, pytest.raises(JacobianFlowsError, match="pair_mean"):
        run_sql(connection, ten[0].replace("pair_means", "pair_mean_values"))
