"""The language model reads one block ahead, and no more; the tables are those of blocks computed one after another."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jacobian_core import pipeline
from jacobian_core.corpus.blocks import TokenBlock
from jacobian_core.corpus.staging import load_block
from jacobian_core.lake.layout import Lake
from jacobian_core.work.compute import BlockComputer, StageSeconds, Tables
from jacobian_core.work.crew import Crew
from jacobian_core.work.worker import worker_for
from tests.tiny import tiny_config


def until(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within ten seconds."""
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()


@pytest.mark.parametrize("size", [1, 2])
def test_one_block_ahead(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    config = tiny_config(tiny, tmp_path / "lake")
    run = pipeline.resolve_run(config, pipeline.fetch_artifact(config))
    computer = worker_for(run).computer
    assert isinstance(computer, BlockComputer)
    computer = replace(computer, chunk_tokens=4, crew=Crew(size))
    staged = pipeline.stage_blocks(run, run.shards[0], None, config.corpus.max_tokens, 3).blocks
    blocks = [load_block(Lake(run.lake).staged_path(run.run_id, block.block_id)) for block in staged]
    assert len(blocks) == 3
    read: list[str] = []
    activations = BlockComputer.activations

    def noted(self: BlockComputer, block: TokenBlock, clock: StageSeconds) -> torch.Tensor:
        read.append(block.block_id)
        return activations(self, block, clock)

    monkeypatch.setattr(BlockComputer, "activations", noted)
    alone = [list(computer.compute(block, StageSeconds())) for block in blocks]
    assert min(len(tables) for tables in alone) > size + 3
    read.clear()
    found: dict[str, list[Tables]] = {}

    def whole(block: TokenBlock) -> None:
        found[block.block_id] = list(computer.compute(block, StageSeconds()))

    first = computer.compute(blocks[0], StageSeconds())
    begun = [next(first)]
    names = [block.block_id for block in blocks]
    others = [threading.Thread(target=whole, args=(block,)) for block in blocks[1:]]
    others[0].start()
    assert until(lambda: read == names[:2])  # while the first block's chunks are not handed out
    others[1].start()
    time.sleep(0.1)
    assert read == names[:2]
    assert found == {}
    found[names[0]] = [*begun, *first]
    for thread in others:
        thread.join(20)
    assert read == names
    assert [found[name] for name in names] == alone


def _fail(*_: object) -> None:
    raise ValueError("broken")


def test_an_error_ends_both_turns(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tiny, tmp_path / "lake")
    run = pipeline.resolve_run(config, pipeline.fetch_artifact(config))
    computer = worker_for(run).computer
    assert isinstance(computer, BlockComputer)
    block_id = pipeline.stage_blocks(run, run.shards[0], None, None, 1).blocks[0].block_id
    block = load_block(Lake(run.lake).staged_path(run.run_id, block_id))
    for step in ("activations", "_chunk"):
        with monkeypatch.context() as broken:
            broken.setattr(BlockComputer, step, _fail)
            with pytest.raises(ValueError, match="broken"):
                list(computer.compute(block, StageSeconds()))
        assert list(computer.compute(block, StageSeconds()))
