"""From a sweep's file to its runs: which, under which names, with which settings; and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from jacobian_core.errors import ConfigError, CorpusError
from jacobian_core.lake.layout import Lake
from jacobian_core.sweep.cells import Cell, expand
from jacobian_core.sweep.config import load_sweep
from jacobian_core.sweep.record import begin_sweep, choose_sweep, done_before, read_sweep, write_sweep
from jacobian_core.sweep.trained import place_of, training_digest


def cells_of(file: Path, *overrides: str, lake: str = "lake") -> list[Cell]:
    sweep, base = load_sweep(str(file))
    return expand(sweep, base, lake, overrides)


def changed(work: Path, old: str, new: str) -> Path:
    file = work / "sweep.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    return file


def test_every_combination_that_has_a_pair_is_a_run(work: Path) -> None:
    cells = cells_of(work / "sweep.toml")
    assert [cell.label for cell in cells] == [
        "l0-made-trained",
        "l1-made-trained",
        "l1-taken-trained",
        "l1-taken-random",
    ]
    assert [cell.config.name for cell in cells] == [f"tiny-{cell.label}" for cell in cells]
    assert [(c.config.model.layer, c.config.model.weights) for c in cells] == [
        (0, "model"), (1, "model"), (1, "model"), (1, "randomised"),
    ]  # fmt: skip
    assert cells[3].tags == ["layer:1", "pair:taken", "weights:random"]
    assert cells[3].series == "taken, random"


def test_paths_are_meant_from_the_sweep_s_folder_and_the_lake_from_here(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    made, _, taken, _ = cells_of(work / "sweep.toml")
    assert taken.config.sae.location == str(work / "pairs/layer1")
    assert taken.config.corpus.location == str(work / "corpus")
    assert made.training is not None
    assert made.training.training_shards == (work / "corpus/00.jsonl.zst",)
    assert made.config.lake.root == str(tmp_path / "elsewhere/lake")
    assert taken.training is None


def test_a_pair_is_trained_on_what_its_run_analyses(work: Path) -> None:
    made = cells_of(work / "sweep.toml")[1]
    assert made.training is not None
    assert made.training.model == made.config.model
    assert (made.training.latents, made.training.jacobian_coefficient) == (48, 1.0)


def test_overrides_win_in_every_run(work: Path) -> None:
    file = changed(work, "layers = [0, 1]", 'settings = ["corpus.max_tokens=200"]\nlayers = [0, 1]')
    assert {cell.config.corpus.max_tokens for cell in cells_of(file)} == {200}
    assert {cell.config.corpus.max_tokens for cell in cells_of(file, "corpus.max_tokens=77")} == {77}


def test_variants_are_an_axis_of_their_own(work: Path) -> None:
    file = work / "sweep.toml"
    for name in ("reconstruction", "activation"):
        text = f'[[variants]]\nname = "{name[:4]}"\nsettings = ["jacobian.evaluate_at={name}"]\n'
        file.write_text(file.read_text() + text)
    cells = cells_of(file)
    assert len(cells) == 8
    assert [c.label for c in cells[:2]] == ["l0-made-trained-reco", "l0-made-trained-acti"]
    assert [c.config.jacobian.evaluate_at for c in cells[:2]] == ["reconstruction", "activation"]
    assert cells[0].series == "made, trained, reco"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("layers = [0, 1]", "layer = [0, 1]", "Did you mean 'layers'?"),
        ("layers = [0, 1]", "layers = [1, 1]", "must name each value once"),
        ('name = "taken"', 'name = "made"', "must have different names"),
        ("jacobian_coefficient = 1.0", "jacobian_coeficient = 1.0", "Did you mean 'jacobian_coefficient'?"),
        ("jacobian_coefficient = 1.0", 'output = "x"', "train.output: the sweep itself decides it"),
        ("sae.location=", "sae.place=", "l1-taken-trained: --set sae.place=pairs/layer1: there is no setting"),
        ('name = "tiny"', 'name = "tiny-and-long-as-it-is"', "has more than 40 characters"),
        ('weights = ["model"]\n\n[[pairs]]', "layers = [7]\n\n[[pairs]]", "{}"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_the_place(work: Path, old: str, new: str, says: str) -> None:
    file = changed(work, old, new)
    if says == "{}":  # a pair for no layer of the sweep is left out, and that is no mistake
        assert {cell.pair for cell in cells_of(file)} == {"taken"}
        return
    if "40 characters" in says:
        changed(work, 'name = "taken"', 'name = "taken-from-another-place"')
    with pytest.raises(ConfigError) as refused:
        cells_of(file)
    assert says in str(refused.value)


def test_a_sweep_without_a_run_and_an_unknown_sweep_are_refused(work: Path) -> None:
    file = changed(work, "layers = [1]\n", "layers = [5]\n")
    changed(work, 'weights = ["model"]\n\n[[pairs]]', "layers = [7]\n\n[[pairs]]")
    with pytest.raises(ConfigError, match="no pair is for any of its layers"):
        cells_of(file)
    with pytest.raises(ConfigError, match="Did you mean 'demo-layers'"):
        load_sweep("demo-layer")
    with pytest.raises(ConfigError, match="there is no sweep file"):
        load_sweep("none/such.toml")


def test_the_shipped_sweep_is_all_layers_and_both_weights_with_pair_and_control() -> None:
    sweep, base = load_sweep("demo-layers")
    cells = expand(sweep, base, "lake")
    assert len(cells) == 4 * 2 * 2
    assert all(cell.training is not None for cell in cells)
    trained_on = {shard.name for cell in cells if cell.training for shard in cell.training.training_shards}
    assert trained_on == {"00.jsonl.zst"}
    assert {cell.config.corpus.shards for cell in cells} == {("01.jsonl.zst",)}  # never the text of the training


def test_a_trained_pair_is_known_by_its_content(work: Path, tmp_path: Path) -> None:
    first, second, taken, _ = cells_of(work / "sweep.toml")
    assert first.training is not None
    assert second.training is not None
    assert place_of(taken, tmp_path) is None
    digest = training_digest(first.training)
    same = first.training.model_copy(update={"output": Path("x"), "threads": 1, "device": "cuda"})
    assert training_digest(same) == digest
    moved = work.rename(work.with_name("moved"))
    assert training_digest(cells_of(moved / "sweep.toml")[0].training or same) == digest
    others = [
        second.training,
        first.training.model_copy(update={"seed": 1}),
        first.training.model_copy(update={"training_shards": first.training.held_out_shards}),
    ]
    others = [other.model_copy(update=_moved(other, work, moved)) for other in others]
    assert digest not in {training_digest(other) for other in others}
    place = place_of(cells_of(moved / "sweep.toml")[0], tmp_path / "cache")
    assert place is not None
    assert place.training.output == place.folder == tmp_path / f"cache/trained-pairs/layer0-{digest[:12]}"
    assert not place.is_made
    (moved / "corpus/00.jsonl.zst").unlink()
    with pytest.raises(CorpusError, match=r"00\.jsonl\.zst"):
        place_of(cells_of(moved / "sweep.toml")[0], tmp_path)


def _moved(training: object, old: Path, new: Path) -> dict[str, object]:
    """The same training after its folder was moved."""
    model = training.model.model_copy(update={"name": str(new / "model")})  # type: ignore[attr-defined]
    shards = {
        key: tuple(new / shard.relative_to(old) for shard in getattr(training, key))
        for key in ("training_shards", "held_out_shards")
    }
    return {"model": model, **shards}


def test_the_record_is_the_same_for_the_same_request(work: Path, tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    sweep, base = load_sweep(str(work / "sweep.toml"))
    record = begin_sweep(lake, sweep, expand(sweep, base, "lake"))
    assert [cell.state for cell in record.cells] == ["waiting"] * 4
    failed = record.with_cell("l0-made-trained", state="failed", problem="no luck", run_id="r-1", training="ab")
    write_sweep(lake, failed)
    assert read_sweep(lake, record.sweep_id) == failed
    assert begin_sweep(lake, sweep, expand(sweep, base, "elsewhere", ["compute.threads=1"])) == failed
    other = begin_sweep(lake, sweep, expand(sweep, base, "lake", ["corpus.max_tokens=5"]))
    assert other.sweep_id != record.sweep_id
    assert choose_sweep(lake, record.sweep_id) == failed
    assert done_before(lake, failed, "l0-made-trained", "ab") is None  # the lake has no such run
