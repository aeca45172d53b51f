"""A profile (TOML) and `group.key=value` overrides become a `RunConfig`, or one line that says what to change.

Types are strict (`"5"` is no number), so a typing mistake is refused here and not discovered hours later; the price is
that a string override that looks like a number is decided by the field, not by its looks (`revision=1234` is a string).
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from jacobian_core.config import RunConfig
from jacobian_core.errors import ConfigError
from jacobian_core.lake.paths import lake_path
from jacobian_core.resources import project_path, project_root

_FOLDER = "deployments/profiles"
_SHOWN_CHARACTERS = 80
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class ProfileInfo:
    """A shipped profile: its name, the first comment line of its file, and the file."""

    name: str
    summary: str
    path: Path


def list_profiles() -> list[ProfileInfo]:
    """The profiles that ship with the project, by name."""
    found = sorted(project_path(_FOLDER).glob("*.toml"))
    return [ProfileInfo(path.stem, _summary(path), path) for path in found]


def profile_path(profile: str) -> Path:
    """The file of a shipped profile (its name) or of a path to a TOML file; ConfigError lists the profiles if none."""
    return shipped_file("profile", _FOLDER, profile)


def shipped_file(kind: str, folder: str, wanted: str) -> Path:
    """The TOML file of that name in a folder of the project, or of a path; ConfigError lists the names if none."""
    paths = {path.stem: path for path in sorted(project_path(folder).glob("*.toml"))}
    is_path = wanted.endswith(".toml") or "/" in wanted
    found = Path(wanted).expanduser() if is_path else paths.get(wanted)
    if found is not None and found.is_file():
        return found
    near = difflib.get_close_matches(wanted, paths, n=1)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    remedy = f"{hint}{kind.capitalize()}s: {', '.join(paths)}; or the path of a TOML file."
    raise ConfigError(f"there is no {kind}{' file' if is_path else ''} '{wanted}'.", remedy)


def load_config(
    profile: str, overrides: Sequence[str] = (), lake: str | None = None, folder: Path | None = None
) -> RunConfig:
    """The run that a profile (name or path) asks for, changed by `group.key=value` overrides and by the lake's folder.

    Relative paths of a profile are meant from its own folder (a shipped one: from the project's root), those of an
    override from `folder`, by default the current one; the lake's from the current one. Every local path comes back
    absolute. Raises ConfigError naming file and field, and LakeError for what can't be a lake.
    """
    path = profile_path(profile)
    data = read_toml(path)
    base = project_root() if path.parent == project_path(_FOLDER) else path.resolve().parent
    _absolute_paths(data, base)
    config = build_model(RunConfig, data, str(path), overrides)
    settings = config.model_dump(mode="json")
    if lake is not None:
        settings["lake"]["root"] = lake
    _absolute_paths({key: value for key, value in settings.items() if key != "lake"}, folder or Path.cwd())
    place = lake_path(settings["lake"]["root"])
    settings["lake"]["root"] = str(Path.cwd() / place.expanduser() if isinstance(place, Path) else place)
    return build_model(RunConfig, settings, str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; ConfigError where it can't be read or parsed."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}.") from None


def build_model(model: type[_Model], data: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> _Model:
    """`data` with the overrides applied, as a `model`; ConfigError names the source (file or override) and field."""
    origin: dict[str, str] = {}
    for override in overrides:
        key = _apply_override(model, data, override)
        origin[key] = f"--set {_shown(override)}"
    for key in _unknown_keys(model, data):
        known = list(_dotted_keys(model))
        near = _nearest(key, [*known, *{k.rpartition(".")[0] for k in known if "." in k}])
        raise ConfigError(f"{origin.get(key, source)}: there is no setting '{key}'.", near)
    try:
        return model.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(_first_problem(error, source, origin)) from None


def _apply_override(model: type[BaseModel], data: dict[str, Any], override: str) -> str:
    key, equals, text = override.partition("=")
    key, where = key.strip(), f"--set {_shown(override)}"
    if not equals or not key:
        raise ConfigError(f"{where}: there is no key before an '='.", "Write it as group.key=value.")
    *groups, name = key.split(".")
    known = list(_dotted_keys(model))
    if key not in known:
        inside = [k for k in known if k.startswith(f"{key}.")]
        remedy = f"It is a group: set one of {', '.join(inside)}." if inside else _nearest(key, known)
        raise ConfigError(f"{where}: there is no setting '{_shown(key)}'.", remedy)
    target = data
    for group in groups:
        if target.get(group) is None:
            target[group] = {}
        target = target[group]
        if not isinstance(target, dict):
            raise ConfigError(f"{where}: '{group}' of the profile is not a table.")
    target[name] = _literal(text.strip(), _annotation(model, key))
    return key


def _literal(text: str, annotation: Any) -> Any:
    """An override's value: a TOML literal, `null`, or otherwise the text itself."""
    if text in ("null", "none"):
        return None
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = parsed["value"]
    wants_text = annotation is str or (get_origin(annotation) in (Union, UnionType) and str in get_args(annotation))
    return text if len(parsed) > 1 or (wants_text and not isinstance(value, str)) else value


def _dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        group = group_of(field.annotation)
        if group is None:
            yield prefix + name
        else:
            yield from _dotted_keys(group, f"{prefix}{name}.")


def group_of(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that a field holds, which may be null; None for a plain field."""
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
        annotation = kinds[0] if len(kinds) == 1 else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _annotation(model: type[BaseModel], key: str) -> Any:
    head, _, rest = key.partition(".")
    annotation = model.model_fields[head].annotation
    group = group_of(annotation)
    return _annotation(group, rest) if group is not None and rest else annotation


def _unknown_keys(model: type[BaseModel], data: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in data.items():
        field = model.model_fields.get(name)
        group = group_of(field.annotation) if field else None
        if field is None:
            yield prefix + name
        elif group is not None and isinstance(value, Mapping):
            yield from _unknown_keys(group, value, f"{prefix}{name}.")


def _nearest(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not close:  # the right name in the wrong group
        by_name = {k.rsplit(".", 1)[-1]: k for k in known}
        close = [by_name[n] for n in difflib.get_close_matches(key.rsplit(".", 1)[-1], list(by_name), n=1, cutoff=0.6)]
    return f"Did you mean '{close[0]}'?" if close else "`jacobian config --schema` lists the settings."


def _first_problem(error: ValidationError, source: str, origin: Mapping[str, str]) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    setting = next((k for k in origin if key == k or key.startswith(f"{k}.")), "")
    where = origin.get(setting, source)
    more = f" ({error.error_count() - 1} more problems)" if error.error_count() > 1 else ""
    if first["type"] == "missing":
        return f"{where}: '{key}' is missing; it has no default.{more}"
    message = re.sub(r"^(Value error, |Input |String )", "", first["msg"]).rstrip(".")
    shown = _shown(json.dumps(first["input"], default=str))
    return f"{where}: {key or 'it'} = {shown} is refused: it {message}.{more}"


def _shown(text: str) -> str:
    """A user's text on one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else line[:_SHOWN_CHARACTERS] + "..."


def _summary(path: Path) -> str:
    with path.open(encoding="utf-8") as lines:
        return next(lines, "").lstrip("# ").strip()


def _absolute_paths(data: dict[str, Any], base: Path) -> None:
    """Make the local paths among the settings absolute, in place."""
    sae = data.get("sae")
    parts = [part for part in sae.values() if isinstance(part, dict)] if isinstance(sae, dict) else []
    places = [("sae", "location"), ("corpus", "location"), ("model", "name"), ("lake", "root")]
    tables = [(group, key, data.get(group)) for group, key in places]
    for group, key, table in [*tables, *(("sae", "location", part) for part in parts)]:
        value = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict) and isinstance(value, str) and value and _is_local(group, table, value, base):
            table[key] = str(base / Path(value).expanduser())


def _is_local(group: str, table: Mapping[str, Any], value: str, base: Path) -> bool:
    if group == "model":  # 'owner/name' is an official model unless a folder of that path exists
        return value.startswith((".", "~", "/")) or (base / value).is_dir()
    if group == "lake":
        return "://" not in value
    return table.get("source") == "folder"
