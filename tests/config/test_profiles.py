"""A wrong setting ends in one line that names file, field and remedy; a right one arrives with its type."""

from __future__ import annotations

from pathlib import Path

import pytest

from jacobian_core.config import RunConfig
from jacobian_core.errors import ConfigError
from jacobian_core.profiles import list_profiles, load_config, profile_path
from jacobian_core.resources import project_root

MINIMAL = """
name = "mine"
[sae]
source = "folder"
location = "pair"
[model]
name = "gpt2"
[corpus]
source = "folder"
location = "/texts"
"""


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL)
    return path


def message(profile: str | Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(str(profile), overrides)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("info", list_profiles(), ids=lambda info: info.name)
def test_every_shipped_profile_loads_and_says_what_it_is(info: object) -> None:
    config = load_config(info.name)  # type: ignore[attr-defined]
    assert config.name == info.name  # type: ignore[attr-defined]
    assert len(info.summary) > 20  # type: ignore[attr-defined]


def test_the_issue_s_profiles_are_there() -> None:
    assert {"demo", "demo-control", "pythia-70m"} <= {info.name for info in list_profiles()}
    pythia = load_config("pythia-70m")
    assert pythia.sae.location.endswith("sae_pythia-70m-deduped_blocks.3.ln2.hook_normalized_16384:v4")
    assert (pythia.model.name, pythia.corpus.max_tokens) == ("pythia-70m-deduped", 100_000)


def test_a_shipped_profile_s_paths_are_meant_from_the_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config("demo")
    assert config.corpus.location == str(project_root() / "demo/corpus")
    assert config.model.name == str(project_root() / "demo/model")
    assert config.lake.root == str(tmp_path / "lake")


def test_paths_of_a_user_s_profile_are_meant_from_its_folder_and_those_of_overrides_from_here(
    profile: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = load_config(str(profile), ["corpus.location=texts"], lake="out")
    assert config.sae.location == str(tmp_path / "pair")
    assert config.corpus.location == str(elsewhere / "texts")
    assert config.lake.root == str(elsewhere / "out")
    assert config.model.name == "gpt2"  # an official name, no path


def test_an_official_model_name_with_a_slash_stays_unless_such_a_folder_exists(profile: Path, tmp_path: Path) -> None:
    assert load_config(str(profile), ["model.name=owner/model"]).model.name == "owner/model"
    profile.write_text(MINIMAL.replace("gpt2", "owner/model"))
    (tmp_path / "owner/model").mkdir(parents=True)
    assert load_config(str(profile)).model.name == str(tmp_path / "owner/model")


def test_hub_and_wandb_locations_are_no_paths(profile: Path) -> None:
    config = load_config(str(profile), ["sae.source=wandb", "sae.location=a/b/c:v1", "corpus.source=hub"])
    assert config.corpus.location == "/texts"
    assert load_config("pythia-70m").sae.location.startswith("lucyfarnik/")


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("corpus.max_tokens=5_000", "max_tokens", 5000),
        ("corpus.max_tokens=null", "max_tokens", None),
        ("corpus.revision=1234567", "revision", "1234567"),
        ("corpus.revision=1e5", "revision", "1e5"),
        ('corpus.revision="main"', "revision", "main"),
        ("corpus.text_field=2020-01-01", "text_field", "2020-01-01"),
        ('corpus.shards=["a.jsonl", "b.jsonl"]', "shards", ("a.jsonl", "b.jsonl")),
        ("corpus.packing = concatenated", "packing", "concatenated"),
    ],
)
def test_an_override_has_the_field_s_type(profile: Path, override: str, field: str, value: object) -> None:
    assert getattr(load_config(str(profile), [override]).corpus, field) == value


def test_the_last_override_wins(profile: Path) -> None:
    assert load_config(str(profile), ["name=a", "name=b"]).name == "b"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("corpus.max_token=5", "there is no setting 'corpus.max_token'. Did you mean 'corpus.max_tokens'?"),
        ("max_tokens=5", "Did you mean 'corpus.max_tokens'?"),
        ("jacobian.max_tokens=5", "Did you mean 'corpus.max_tokens'?"),
        ("zzz=5", "`jacobian config --schema` lists the settings."),
        ("corpus=5", "It is a group: set one of corpus.source"),
        ("corpus.max_tokens", "Write it as group.key=value."),
        ("=5", "Write it as group.key=value."),
        ("corpus.max_tokens=many", 'corpus.max_tokens = "many" is refused: it should be a valid integer.'),
        ("corpus.max_tokens=true", "corpus.max_tokens = true is refused"),
        ('corpus.max_tokens="5"', "is refused: it should be a valid integer."),
        ("corpus.max_tokens=0", "corpus.max_tokens = 0 is refused: it should be greater than or equal to 1."),
        ("corpus.max_tokens=1.5", "corpus.max_tokens = 1.5 is refused"),
        ("corpus.packing=rows", "it should be 'document' or 'concatenated'."),
        ("corpus.shards=a.jsonl", "corpus.shards"),
        ("jacobian.min_abs=nan", "it should be a finite number."),
        ("compute.device=tpu", "it must be 'auto', 'cpu', 'cuda' or 'cuda:N'."),
        ("corpus.max_tokens=1\ncorpus.context_tokens=9", "is refused"),
        ("name=" + "x" * 5000, "..."),
    ],
)
def test_a_wrong_override_is_named_with_its_remedy(profile: Path, override: str, says: str) -> None:
    text = message(profile, override)
    assert says in text
    assert text.startswith("--set ")
    assert len(text) < 500


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('source = "folder"\nlocation = "pair"', 'source = "folder"', "it needs location of a pair, or the tables"),
        ('name = "gpt2"', 'name = "gpt2"\nlayr = 3', "there is no setting 'model.layr'. Did you mean 'model.layer'?"),
        ('name = "gpt2"', "name = 5", "model.name = 5 is refused: it should be a valid string."),
        ('name = "gpt2"', 'name = "gpt2"\nlayer = "3"', 'model.layer = "3" is refused'),
        ('[model]\nname = "gpt2"', "", "'model' is missing"),
        ("[model]", "[modle]", "there is no setting 'modle'. Did you mean"),
        ('[model]\nname = "gpt2"', "model = 3", "model = 3 is refused"),
        ("[sae]", "[sae", "is not valid TOML"),
    ],
)
def test_a_wrong_profile_is_named_with_its_remedy(profile: Path, old: str, new: str, says: str) -> None:
    text = MINIMAL.replace(old, new, 1)
    profile.write_text(text if "model = 3" not in text else "model = 3\n" + text.replace("model = 3", ""))
    found = message(profile)
    assert says in found
    assert found.startswith(str(profile))


def test_the_number_of_further_problems_is_said(profile: Path) -> None:
    profile.write_text(MINIMAL.replace('"gpt2"', "5").replace('"/texts"', "6"))
    assert "(1 more problem" in message(profile)


def test_an_unknown_profile_lists_the_profiles() -> None:
    assert "Did you mean 'demo'? Profiles: " in message("dmo")
    assert "there is no profile file 'nowhere/mine.toml'" in message("nowhere/mine.toml")
    assert profile_path("demo").name == "demo.toml"


def test_a_profile_that_is_not_text_is_refused(profile: Path) -> None:
    profile.write_bytes(b"\xff\xfe\x00")
    assert "is not valid TOML" in message(profile)


def test_the_result_is_the_model_with_its_defaults(profile: Path) -> None:
    config = load_config(str(profile))
    assert config == RunConfig.model_validate(config.model_dump())
    assert config.jacobian.scope == "active"
