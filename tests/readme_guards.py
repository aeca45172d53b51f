"""What can be wrong in a README: each guard is a function from its text to the list of what is not so.

Names, options, settings and questions are compared with what defines them: the command line's own tree, the contracts,
the pydantic models, the SQL headers.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import typer.main

from flows.cli import app
from jacobian_core.config import RunConfig
from jacobian_core.contracts import TABLES
from jacobian_core.errors import JacobianFlowsError
from jacobian_core.profiles import build_model, list_profiles
from jacobian_core.sql.reports import list_reports, report_info
from jacobian_core.sql.sql_files import sql_files
from jacobian_core.sweep.config import SweepConfig
from jacobian_core.training.config import TrainPairConfig

ROOT = Path(__file__).parents[1]
PROGRAMS = {"python3", ".venv/bin/python"}
FOLDER = {"source": "folder", "location": "x"}
REQUIRED = {"sae": FOLDER, "model": {"name": "x"}, "corpus": {**FOLDER}}
REQUIRED_TRAINING = {
    "model": {"name": "x", "layer": 0}, "training_shards": ["x"], "held_out_shards": ["x"], "output": "x"
}  # fmt: skip
COMMANDS: Any = typer.main.get_command(app)


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def code(text: str) -> list[str]:
    """What stands in single backticks outside fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def section(text: str, title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"the README has no section '{title}'"
    return found[1]


def first_cells(text: str) -> list[str]:
    """The names in backticks in the first column of the tables of `text`."""
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ")]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def differences(found: list[str], expected: list[str], what: str) -> list[str]:
    return [f"{what} {name} is not documented" for name in expected if name not in found] + [
        f"there is no {what} {name}" for name in found if name not in expected
    ]


def command_lines(text: str) -> Iterator[list[str]]:
    for line in "".join(fenced(text, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words
    for inline in code(text):
        if re.match(r"(make|jacobian) [a-z-]", inline):
            yield shlex.split(inline)


def wrong_commands(text: str) -> list[str]:
    problems: list[str] = []
    for program, *words in command_lines(text):
        if program == "make":
            problems += wrong_make(words)
        elif program in ("jacobian", ".venv/bin/jacobian"):
            problems += wrong_jacobian(words)
        elif program not in PROGRAMS:
            problems.append(f"{program} is not a program of this README")
    return problems


def wrong_make(words: list[str]) -> Iterator[str]:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, equals, value = word.partition("=")
        if not re.search(rf"^{name}\s*\?=" if equals else rf"^{name}:", makefile, re.MULTILINE):
            yield f"make does not know {word}"
        if name == "PROFILE":
            yield from wrong_profile(value)
        if name == "ARGS":
            yield from wrong_jacobian(["run", *shlex.split(value)])


def wrong_jacobian(words: list[str]) -> Iterator[str]:
    command, path, rest = COMMANDS, [], list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        path.append(rest.pop(0))
        command = command.commands[path[-1]]
    if hasattr(command, "commands"):
        yield f"jacobian {' '.join(words)} is not a command"
        return
    options = {name: p for p in command.params for name in [*p.opts, *p.secondary_opts]}
    arguments, values = [], []
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            arguments.append(word)
        elif word not in (*options, "--help", "--debug"):
            yield f"jacobian {' '.join(path)} has no option {word}"
        elif word == "--set":
            values.append(rest.pop(0))
        elif word == "--profile":
            yield from wrong_profile(rest.pop(0))
        elif word in options and not options[word].is_flag:
            rest.pop(0)
    yield from wrong_settings(path[-1], arguments, values)


def wrong_settings(command: str, arguments: list[str], values: list[str]) -> Iterator[str]:
    try:
        if command == "report":
            found = [report_info(name) for name in arguments]
            known = {p.name for report in found or list_reports() for p in report.parameters}
            yield from (f"no report has the parameter {v}" for v in values if v.partition("=")[0] not in known)
        elif command == "train-pair":
            build_model(TrainPairConfig, deepcopy(REQUIRED_TRAINING), "README", values)
        else:
            build_model(RunConfig, deepcopy(REQUIRED), "README", values)
    except JacobianFlowsError as error:
        yield str(error)


def wrong_profile(name: str) -> list[str]:
    names = [p.name for p in list_profiles()]
    return [] if name in names or name.endswith(".toml") else [f"there is no profile {name}"]


def wrong_keys(text: str) -> list[str]:
    """Settings named in the prose as `group.key`, with or without a value."""
    problems = []
    for name in code(text):
        match = re.match(r"([a-z_]+)\.([a-z_]+)(?=$|=| =)", name)
        field = RunConfig.model_fields.get(match[1]) if match else None
        fields = getattr(field.annotation, "model_fields", None) if field else None
        if match and fields is not None and match[2] not in fields and not name.endswith((".py", ".md")):
            problems.append(f"there is no setting {name}")
    return problems


def wrong_toml(text: str) -> list[str]:
    problems = []
    for block in fenced(text, "toml"):
        data = tomllib.loads(block)
        model: Any = RunConfig
        if "pairs" in data:
            model = SweepConfig
        elif "training_shards" in data:
            model = TrainPairConfig
        try:
            build_model(model, data, "README")
        except JacobianFlowsError as error:
            problems.append(str(error))
    return problems


def wrong_tree(text: str) -> list[str]:
    (tree,) = fenced(section(text, "Where things are"), "text")
    problems, folder = [], Path()
    for line in tree.splitlines():
        name, inner = line.split()[0], line.startswith("  ")
        folder = folder if inner else Path(name)
        path = folder / name if inner else folder
        if not (ROOT / path).exists():
            problems.append(f"there is no {path}")
    return problems


def wrong_tables(text: str) -> list[str]:
    tables = section(text, "Tables")
    views = re.findall(r"`(\w+)`", tables[tables.index("as views:") : tables.index("A block is visible")])
    expected = ["runs", *sql_files("views")]
    found = first_cells(tables)
    return differences(found, list(TABLES), "table") + differences(views, expected, "view")


def wrong_lists(text: str) -> list[str]:
    def leaves(group: Any, path: str) -> Iterator[str]:
        for name, command in group.commands.items():
            yield from leaves(command, f"{path} {name}") if hasattr(command, "commands") else [f"{path} {name}"]

    named = re.findall(r"`([a-z_]+)`", section(text, "Reports"))
    return [
        *differences(first_cells(section(text, "Commands")), list(leaves(COMMANDS, "jacobian")), "command"),
        *differences(first_cells(section(text, "Profiles and settings")), [p.name for p in list_profiles()], "profile"),
        *differences(named, [r.name for r in list_reports()], "report"),
    ]


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def wrong_links(text: str) -> list[str]:
    problems = []
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith("https://"):
            continue
        if not (ROOT / path).exists():
            problems.append(f"the link {target} leads nowhere")
        elif anchor and anchor not in anchors((ROOT / path).read_text(encoding="utf-8") if path else text):
            problems.append(f"there is no heading for {target}")
    return problems


def queries(text: str) -> list[str]:
    return [q.strip() for block in fenced(text, "sql") for q in block.split(";\n") if q.strip()]
