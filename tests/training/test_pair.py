"""A pair end to end on a tiny model: training, figures, export, and what sae_lens makes of the export."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jacobian_core.artifact.sae_pair import load_sae_pair
from jacobian_core.config import ModelConfig
from jacobian_core.errors import ConfigError, CorpusError, ModelError
from jacobian_core.training.config import TrainPairConfig
from jacobian_core.training.export import export_pair, pair_tensors
from jacobian_core.training.export_files import last_file
from jacobian_core.training.job import check_paths, round_weights, run_pair_training
from jacobian_core.training.pair import PairProgress, train_pair
from jacobian_core.training.pair_evaluation import evaluate_pair
from jacobian_core.training.revival import resample
from jacobian_core.training.source import MlpSource, load_source
from jacobian_core.training.text import consecutive_windows, read_texts, token_stream, with_leading_bos
from jacobian_core.training.trainer import PairTrainer

pytestmark = pytest.mark.filterwarnings("ignore:The 'utils' module has been deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def source(model_folder: Path) -> MlpSource:
    return load_source(ModelConfig(name=str(model_folder), layer=1))


@pytest.fixture(scope="module")
def stream(source: MlpSource, corpus: tuple[Path, Path]) -> torch.Tensor:
    return token_stream(read_texts(corpus[:1]), source.tokenizer)


def test_source_reads_the_hugging_face_mlp_and_drops_bos(
    source: MlpSource, stream: torch.Tensor, model_folder: Path
) -> None:
    from transformers import AutoModelForCausalLM

    windows = with_leading_bos(consecutive_windows(stream, length=16)[:5], 0)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    seen: list[torch.Tensor] = []
    mlp = model.gpt_neox.layers[1].mlp
    mlp.register_forward_hook(lambda _, arguments, output: seen.extend((arguments[0], output)))
    with torch.no_grad():
        model(windows)
    kept = windows != 0
    assert int((~kept).sum()) > 5, "the test needs a BOS inside a window"
    for mine, theirs in zip(source.read(windows), seen, strict=True):
        torch.testing.assert_close(mine, theirs[kept], rtol=1e-4, atol=1e-5)


def test_training_lowers_the_loss(pair_config: TrainPairConfig, source: MlpSource, stream: torch.Tensor) -> None:
    records: list[PairProgress] = []
    trained = train_pair(pair_config, source, stream, records.append)
    assert records[-1].loss < 0.7 * records[0].loss
    assert trained.last_record == records[-1]
    assert trained.tokens == records[-1].tokens >= pair_config.tokens
    for side in (trained.pair.inputs, trained.pair.outputs):
        torch.testing.assert_close(side.W_dec.norm(dim=1), torch.ones(48))
    assert "mean |J|" in records[-1].line()


def test_resampling_leaves_few_latents_dead(
    pair_config: TrainPairConfig, source: MlpSource, stream: torch.Tensor
) -> None:
    dead = {}
    for interval in (None, 1200):
        asked = {"jacobian_coefficient": 0.0, "resample_every_tokens": interval, "dead_after_tokens": 900}
        trainer = PairTrainer(pair_config.model_copy(update=asked | {"tokens": 150 * 60}), source, stream)
        side, x = trainer.pair.inputs, trainer.batches.draw(200, step=0).x
        with torch.no_grad():
            side.b_enc[::2] -= 3 * side.preactivations(x).std()  # every second latent starts where it never wins
        for step in range(trainer.steps):
            result = trainer.step(step)
        dead[interval] = int(result.dead[0].sum())
    assert dead[None] >= 15, "the test needs latents that the auxiliary loss alone leaves dead"
    assert dead[1200] <= 0.7 * dead[None]


def test_a_resampled_latent_is_a_token_s_error_and_the_others_stay(
    pair_config: TrainPairConfig, source: MlpSource, stream: torch.Tensor
) -> None:
    trainer = PairTrainer(pair_config, source, stream)
    trainer.step(0)
    side, x = trainer.pair.inputs, trainer.batches.draw(50, step=5).x
    before = {name: tensor.clone() for name, tensor in side.state_dict().items()}
    residual = torch.nn.functional.normalize(x - side.decode(side.encode(x)), dim=1).detach()
    dead = torch.zeros(48, dtype=torch.bool)
    dead[[3, 7, 11]] = True
    assert resample(side, trainer.optimiser, dead, x, seed=1) == 3
    assert torch.equal(side.W_dec[~dead], before["W_dec"][~dead])
    assert torch.equal(side.W_enc[:, ~dead], before["W_enc"][:, ~dead])
    torch.testing.assert_close((side.W_dec[dead] @ residual.T).max(1).values, torch.ones(3))
    torch.testing.assert_close(side.preactivations(side.b_dec[None])[0, dead], torch.zeros(3), rtol=0, atol=1e-5)
    moments = trainer.optimiser.state[side.W_enc]["exp_avg"]
    assert not moments[:, dead].any()
    assert moments[:, ~dead].any()
    assert resample(side, trainer.optimiser, ~torch.ones(48, dtype=torch.bool), x, seed=1) == 0


def test_penalty_lowers_the_jacobian(pair_config: TrainPairConfig, source: MlpSource, stream: torch.Tensor) -> None:
    means = {}
    for coefficient in (0.0, 3000.0):
        config = pair_config.model_copy(update={"jacobian_coefficient": coefficient})
        trained = train_pair(config, source, stream)
        means[coefficient] = evaluate_pair(config, trained.pair, source, stream).mean_abs_jacobian
    assert means[3000.0] < 0.5 * means[0.0]


def test_a_training_that_was_stopped_continues_to_the_same_pair(
    pair_config: TrainPairConfig, source: MlpSource, stream: torch.Tensor, tmp_path: Path
) -> None:
    config = pair_config.model_copy(update={"tokens": 12 * 60, "log_every_steps": 1, "checkpoint_seconds": 0.0})
    whole = train_pair(config, source, stream).pair.state_dict()

    class StoppedError(Exception):
        pass

    def stop(record: PairProgress) -> None:
        if record.step == 7:
            raise StoppedError

    config = config.model_copy(update={"checkpoint": tmp_path / "pair.checkpoint"})
    with pytest.raises(StoppedError):
        train_pair(config, source, stream, stop)
    resumed = train_pair(config, source, stream).pair.state_dict()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor)
    with pytest.raises(ConfigError, match="other settings"):
        train_pair(config.model_copy(update={"latents": 50}), source, stream)


def test_figures_equal_a_plain_computation(
    pair_config: TrainPairConfig, source: MlpSource, stream: torch.Tensor
) -> None:
    config = pair_config.model_copy(update={"tokens": 300, "thresholds": (0.01, 0.1)})
    pair = train_pair(config, source, stream).pair
    figures = evaluate_pair(config, pair, source, stream)
    rows = -(-config.evaluation_tokens // 15)
    x, y = source.read(with_leading_bos(consecutive_windows(stream, length=16)[:rows], 0))
    assert figures.tokens == len(x)
    fvu = (y - pair.outputs.decode(pair.outputs.encode(y))).square().sum() / (y - y.mean(0)).square().sum()
    assert figures.fvu_out == pytest.approx(float(fvu), rel=1e-4)
    per_token = []
    for one, other in zip(x, y, strict=True):
        inputs, outputs = pair.inputs.encode(one[None]), pair.outputs.encode(other[None])

        def code(s: torch.Tensor, at: torch.Tensor = one) -> torch.Tensor:
            return pair.outputs.preactivations(source.mlp((at + s @ pair.inputs.W_dec)[None]))[0]

        jacobian = torch.autograd.functional.jacobian(code, torch.zeros(48))
        block = jacobian[outputs.index[outputs.active]][:, inputs.index[inputs.active]]
        per_token.append(block.flatten().double())
    elements = torch.cat(per_token)
    assert figures.mean_abs_jacobian == pytest.approx(float(elements.abs().mean()), rel=1e-4)
    assert figures.elements_above["0.1"] == pytest.approx(int((elements.abs() > 0.1).sum()) / len(x), rel=1e-2)
    kurtosis = [float(((e - e.mean()) ** 4).mean() / ((e - e.mean()) ** 2).mean() ** 2) for e in per_token]
    assert figures.kurtosis == pytest.approx(sum(kurtosis) / len(x), rel=1e-3)
    flatness = [float(e.abs().sum() / (e.square().sum() * len(e)).sqrt()) for e in per_token]
    assert figures.flatness == pytest.approx(sum(flatness) / len(x), rel=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_export_loads_in_sae_lens_as_it_was_trained(
    pair_config: TrainPairConfig, source: MlpSource, stream: torch.Tensor, dtype: str
) -> None:
    config = pair_config.model_copy(update={"tokens": 300, "storage_dtype": dtype})
    trained = train_pair(config, source, stream)
    round_weights(trained.pair, getattr(torch, dtype))
    export_pair(config.output, config, trained, evaluate_pair(config, trained.pair, source, stream))
    weights = load_file(config.output / "sae_weights.safetensors")
    names = {f"_{part}{suffix}" for part in ("W_enc", "b_enc", "W_dec", "b_dec") for suffix in ("", "_out")}
    assert set(weights) == names
    assert {tensor.dtype for tensor in weights.values()} == {getattr(torch, dtype)}
    loaded = load_sae_pair(config.output)
    assert loaded.layer == 1
    assert loaded.hook_name == "blocks.1.ln2.hook_normalized"
    x, y = source.read(with_leading_bos(consecutive_windows(stream, length=16)[:3], 0))
    for theirs, mine, part in ((loaded.input, trained.pair.inputs, x), (loaded.output, trained.pair.outputs, y)):
        code = mine.encode(part)
        dense = torch.zeros(len(part), 48).scatter(1, code.index, code.value)
        assert theirs.cfg.k == 4
        torch.testing.assert_close(theirs.encode(part), dense)
        torch.testing.assert_close(theirs.decode(dense), mine.decode(code))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_two_folders_load_in_sae_lens_and_in_a_run_as_they_were_trained(
    pair_config: TrainPairConfig, source: MlpSource, stream: torch.Tensor, dtype: str
) -> None:
    from sae_lens import SAE

    asked = {"tokens": 300, "storage_dtype": dtype, "export_format": "sae_lens"}
    config = pair_config.model_copy(update=asked)
    trained = train_pair(config, source, stream)
    round_weights(trained.pair, getattr(torch, dtype))
    export_pair(config.output, config, trained, evaluate_pair(config, trained.pair, source, stream))
    assert last_file(config.output, config).is_file()
    assert not list(config.output.glob("*.safetensors")), "one format at a time"
    pair = load_sae_pair(config.output)
    assert (pair.layer, pair.hook_name, pair.context_tokens) == (1, "blocks.1.mlp.hook_in", 16)
    x, y = source.read(with_leading_bos(consecutive_windows(stream, length=16)[:3], 0))
    sides = (("in", pair.input, trained.pair.inputs, x), ("out", pair.output, trained.pair.outputs, y))
    for side, ours, mine, part in sides:
        theirs = SAE.load_from_disk(config.output / side, dtype="float32")
        assert theirs.cfg.architecture() == "topk"
        assert theirs.cfg.metadata.hook_name == f"blocks.1.{'mlp.hook_in' if side == 'in' else 'hook_mlp_out'}"
        code = mine.encode(part)
        dense = torch.zeros(len(part), 48).scatter(1, code.index, code.value)
        for loaded in (theirs, ours):
            torch.testing.assert_close(loaded.encode(part), dense)
            torch.testing.assert_close(loaded.decode(dense), mine.decode(code))
        assert not torch.allclose(theirs.encode(part.roll(1, 0)), dense)


def test_bfloat16_products_train_as_well_and_leave_everything_else_in_float32(
    pair_config: TrainPairConfig, source: MlpSource, stream: torch.Tensor
) -> None:
    figures = {}
    for asked in (False, True):
        config = pair_config.model_copy(update={"bfloat16_autocast": asked})
        records: list[PairProgress] = []
        trained = train_pair(config, source, stream, records.append)
        assert {parameter.dtype for parameter in trained.pair.parameters()} == {torch.float32}
        figures[asked] = records[0].fvu_in, records[-1].loss, trained.pair.inputs.W_enc
    assert figures[True][1] == pytest.approx(figures[False][1], rel=0.1)  # bfloat16 keeps 8 bits
    assert not torch.equal(figures[True][2], figures[False][2]), "it must have made a difference"


def test_weights_that_overflow_the_stored_dtype_are_refused(
    pair_config: TrainPairConfig, source: MlpSource, stream: torch.Tensor
) -> None:
    pair = train_pair(pair_config.model_copy(update={"tokens": 60}), source, stream).pair
    pair.outputs.W_enc[0, 0] = 1e6
    with pytest.raises(ValueError, match="_W_enc_out is not finite"):
        pair_tensors(pair, torch.float16)


def test_job_on_a_randomised_model(pair_config: TrainPairConfig) -> None:
    model = pair_config.model.model_copy(update={"weights": "randomised", "randomise_seed": 4})
    config = pair_config.model_copy(update={"model": model, "tokens": 600})
    figures = run_pair_training(config)
    written = json.loads((config.output / "training.json").read_text())
    assert written["held_out"]["fvu_in"] == figures.fvu_in
    assert TrainPairConfig.model_validate(written["config"]) == config
    assert json.loads((config.output / "cfg.json").read_text())["activation_fn_kwargs"] == {"k": 4}


def test_wrong_requests_are_refused(pair_config: TrainPairConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.layer"):
        TrainPairConfig.model_validate({**pair_config.model_dump(), "model": {"name": "x"}})
    with pytest.raises(ValueError, match="active_latents"):
        TrainPairConfig.model_validate({**pair_config.model_dump(), "active_latents": 49})
    with pytest.raises(ValueError, match="latent_count"):
        TrainPairConfig.model_validate({**pair_config.model_dump(), "latent_count": 3})
    with pytest.raises(CorpusError, match="no such shard"):
        check_paths(pair_config.model_copy(update={"training_shards": (tmp_path / "none.jsonl",)}))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="output"):
        check_paths(pair_config.model_copy(update={"output": tmp_path / "file"}))
    with pytest.raises(ModelError, match="layers"):
        load_source(pair_config.model.model_copy(update={"layer": 7}))
