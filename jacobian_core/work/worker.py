"""What a process keeps loaded between blocks: model, SAE pair, weight products, tokenizer.

Loading costs tens of seconds, a block well under one; so the last run's worker is kept, and a new one only loaded for
another run or device.
"""

from __future__ import annotations

import json
import logging
import threading
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

from jacobian_core.artifact.sae_pair import check_pair_fits, is_transcoder, load_sae_pair, model_weights_of
from jacobian_core.artifact.transcoder import check_transcoder_fits, load_transcoder_artifact
from jacobian_core.config import ComputeConfig
from jacobian_core.contracts import block_tables
from jacobian_core.corpus.blocks import TokenBlock
from jacobian_core.corpus.staging import load_block
from jacobian_core.corpus.tokenizer import Tokenizer, load_tokenizer
from jacobian_core.corpus.tokens import Cursor, cut_blocks
from jacobian_core.errors import CorpusError, LakeError, ModelError
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import BlockMarker
from jacobian_core.lake.publish import BlockWriter
from jacobian_core.memory import bound_memory, free_pages
from jacobian_core.model.activations import block_activations
from jacobian_core.model.llm import load_language_model
from jacobian_core.model.quality import BlockFit, Fvu, measure_fvu, refuse_wrong_search
from jacobian_core.numerics.collect import Collector, HostCollector
from jacobian_core.numerics.precision import exact_products
from jacobian_core.numerics.sae import fold_sae
from jacobian_core.numerics.sandwich import Sandwich
from jacobian_core.numerics.transcoder import TranscoderKernel, fold_transcoder
from jacobian_core.pairs.summed import BlockEntries
from jacobian_core.work.compute import BlockComputer, StageSeconds, WallSeconds
from jacobian_core.work.crew import Crew
from jacobian_core.work.transcoders import TranscoderComputer

if TYPE_CHECKING:
    from jacobian_core.step_values import QualityReport, RunRef

log = logging.getLogger(__name__)

_PROOF_POSITIONS = 64
_PROOF_TOKENS = 256


@dataclass(frozen=True)
class Worker:
    """The loaded parts of one run on one device."""

    computer: BlockComputer | TranscoderComputer
    tokenizer: Tokenizer
    wall: WallSeconds = field(default_factory=WallSeconds)

    @property
    def sandwich(self) -> Sandwich:
        """The pair's sandwich; ValueError for a transcoder, which has none."""
        if isinstance(self.computer, TranscoderComputer):
            raise ValueError("a transcoder has no sandwich")
        return self.computer.sandwich


_loading = threading.Lock()
_loaded: dict[tuple[str, str], Worker] = {}


def pick_device(compute: ComputeConfig) -> str:
    """The torch device that a setting names; 'auto' is the first GPU where there is one.

    Raises ModelError where the device is not there.
    """
    if compute.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if compute.device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(
            f"compute.device is '{compute.device}', but this torch sees no CUDA device.",
            "Set compute.device to 'cpu', or install the CUDA build of torch.",
        )
    return compute.device


def worker_for(run: RunRef) -> Worker:
    """The run's worker, loaded once a process."""
    device = pick_device(run.config.compute)
    with _loading:
        key = (run.run_id, device)
        if key not in _loaded:
            _loaded.clear()
            _loaded[key] = _load(run, device)
        return _loaded[key]


def _load(run: RunRef, device: str) -> Worker:
    config = run.config
    bound_memory()
    exact_products()
    if config.compute.threads is not None:
        torch.set_num_threads(config.compute.threads)
    if is_transcoder(Path(run.artifact.folder)):
        return _load_transcoder(run, device)
    folder = Path(run.artifact.folder)
    weights = model_weights_of(folder) if config.model.weights == "artifact" else None
    pair = load_sae_pair(folder)
    if pair.artifact_config.get("randomize_llm_weights") and config.model.weights == "model":
        log.warning(
            "the pair was trained on a randomised model (randomize_llm_weights), but model.weights is 'model'; "
            "set model.weights to 'artifact' if the artifact carries them"
        )
    model = load_language_model(config.model, run.layer, device, weights)
    check_pair_fits(pair, model.mlp.d_in, model.mlp.d_out, model.bridge.cfg.n_layers)
    sandwich = Sandwich.build(
        fold_sae(pair.input, device, model.dtype).searched_in(config.compute.encoder),
        model.mlp,
        fold_sae(pair.output, device, model.dtype).searched_in(config.compute.encoder),
        config.jacobian.evaluate_at,
        config.jacobian.precision,
    )
    collector: Collector = HostCollector()
    if device != "cpu":
        from jacobian_core.numerics.gpu.choice import with_kernels
        from jacobian_core.numerics.gpu.compaction import DeviceCollector

        sandwich, collector = with_kernels(sandwich), DeviceCollector(device)
    tokenizer = load_tokenizer(config.model)
    computer = BlockComputer(
        model=model,
        sandwich=sandwich,
        settings=config.jacobian,
        experiments=config.interventions,
        vocabulary=pa.array(_texts(tokenizer, int(model.bridge.cfg.d_vocab))),
        forward_batch_tokens=config.compute.forward_batch_tokens,
        chunk_tokens=config.compute.chunk_tokens,
        crew=Crew(torch.get_num_threads() if device == "cpu" else 1),
        collector=collector,
    )
    return Worker(computer, tokenizer)


def _load_transcoder(run: RunRef, device: str) -> Worker:
    config = run.config
    artifact = load_transcoder_artifact(Path(run.artifact.folder))
    model = load_language_model(config.model, run.layer, device)
    check_transcoder_fits(artifact, model.mlp.d_in, model.mlp.d_out, model.bridge.cfg.n_layers)
    output = None if artifact.output is None else fold_sae(artifact.output, device, model.dtype)
    tokenizer = load_tokenizer(config.model)
    computer = TranscoderComputer(
        model=model,
        kernel=TranscoderKernel.build(fold_transcoder(artifact.transcoder, device, model.dtype), model.mlp, output),
        settings=config.jacobian,
        vocabulary=pa.array(_texts(tokenizer, int(model.bridge.cfg.d_vocab))),
        forward_batch_tokens=config.compute.forward_batch_tokens,
        chunk_tokens=config.compute.chunk_tokens,
    )
    return Worker(computer, tokenizer)


def _texts(tokenizer: Tokenizer, vocabulary: int) -> list[str]:
    """A text for every id that the model knows, the tokenizer's own or ''."""
    texts = tokenizer.texts()
    return texts + [""] * (vocabulary - len(texts))


def measure_quality(run: RunRef) -> tuple[Fvu, float]:
    """FVU of both SAEs on the run's first tokens, and the error of the MLP's formula against the model's module."""
    worker = worker_for(run)
    computer = worker.computer
    limit = run.config.quality.fvu_tokens
    taken: list[torch.Tensor] = []
    proof = None
    for block in _first_blocks(run, worker.tokenizer, limit):
        if proof is None:
            proof = _first_row(block)
        taken.append(block_activations(computer.model, block, computer.forward_batch_tokens))
    if proof is None:
        raise CorpusError("the corpus has no document that can be analysed.", "Check corpus.location and its shards.")
    mlp_error = computer.model.prove_mlp(proof)
    x = torch.cat(taken)
    if isinstance(computer, TranscoderComputer):
        return computer.fvu(x), mlp_error
    refuse_wrong_search(computer.sandwich, x[:_PROOF_TOKENS])
    return measure_fvu(computer.sandwich.inputs, *computer.sandwich.true_output, x), mlp_error


def _first_blocks(run: RunRef, tokenizer: Tokenizer, tokens: int) -> list[TokenBlock]:
    """Blocks from the start of the corpus that hold `tokens` analysed tokens, or all there are."""
    small = run.config.corpus.model_copy(update={"block_tokens": min(tokens, run.config.corpus.block_tokens)})
    blocks: list[TokenBlock] = []
    left = tokens
    for shard in run.shards:
        for block, _, _ in cut_blocks(shard, tokenizer, small, Cursor(0, 0), left):
            blocks.append(block)
            left -= block.analysed
        if left <= 0:
            break
    return blocks


def _first_row(block: TokenBlock) -> torch.Tensor:
    end = min(int(block.row_offsets[1]), _PROOF_POSITIONS)
    return torch.from_numpy(block.vocab_ids[:end].astype(np.int64))[None]


def quality_json(report: QualityReport) -> bytes:
    """The report as it is kept until the manifest is written."""
    return json.dumps(asdict(report)).encode()


def compute_and_publish(run: RunRef, block_id: str) -> BlockMarker:
    """Compute a staged block and publish its parts; returns its marker."""
    worker = worker_for(run)
    lake = Lake(run.lake)
    try:
        block = load_block(lake.staged_path(run.run_id, block_id))
    except LakeError:
        marker = lake.block(run.run_id, block_id)
        if marker is None:
            raise
        return marker  # another worker did it a moment ago, and took away what it was made from
    clock, fit = StageSeconds(), BlockFit(run.config.quality.block_fvu_tokens)
    keep = run.config.jacobian.keep
    entries, names = None if keep == "entries" else BlockEntries(block_id, keep), block_tables(keep)
    with (
        BlockWriter(lake, run.run_id, block_id, run.config.lake, names) as writer,
        closing(worker.computer.compute(block, clock, fit)) as chunks,  # closed before an error goes on: others wait
    ):
        writer.write("documents", block.documents)
        for tables in chunks:
            for name, table in tables.items():
                if name in names:
                    writer.write(name, table)
                if entries is not None:
                    entries.add(name, table)
            clock.done("write")
        clock.resume()
        writer.finish()
        summed = None if entries is None else entries.finish(lake, run.run_id)
        clock.done("write")
        marker = writer.publish(clock.of_wall(worker.wall.charge(clock.began)), fit.figures, summed)
    free_pages.after_step()
    return marker
