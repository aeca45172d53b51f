"""Blocks: every token once, wherever the cuts are; the same blocks from any start, in any batches."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from jacobian_core.config import CorpusConfig
from jacobian_core.contracts import DOCUMENTS, document_id, token_id
from jacobian_core.corpus import tokens
from jacobian_core.corpus.blocks import TokenBlock
from jacobian_core.corpus.listing import Shard
from jacobian_core.corpus.shards import SkipCounts
from jacobian_core.corpus.tokenizer import Tokenizer
from jacobian_core.corpus.tokens import Cursor, cut_blocks
from tests.corpus.helpers import only_shard, record, settings, until_damage, write_lines

START = Cursor(0, 0)
Cut = list[tuple[TokenBlock, Cursor, SkipCounts]]

WORDS = st.sampled_from(["the", " cat", " sat", "\n", " <|endoftext|>", " é\0", "x"])
TEXTS = st.lists(WORDS, max_size=30).map("".join)
LINES = st.lists(st.one_of(TEXTS.map(record), st.sampled_from([b"broken", b"", record("a")])), max_size=12)
PACKINGS = st.sampled_from(["document", "concatenated"])


@dataclass
class Corpus:
    """A shard on disk and how it is to be cut."""

    shard: Shard
    config: CorpusConfig
    tokenizer: Tokenizer

    def cut(self, cursor: Cursor = START, budget: int | None = None, **changes: Any) -> Cut:
        return list(cut_blocks(self.shard, self.tokenizer, self.config.model_copy(update=changes), cursor, budget))


@pytest.fixture(scope="session")
def make_corpus(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("corpora")

    def make(lines: list[bytes], **changes: Any) -> Corpus:
        folder = Path(tempfile.mkdtemp(dir=root))
        write_lines(folder / "a.jsonl", [b"{}"])  # takes index 0, so that ids show their shard
        write_lines(folder / "b.jsonl", lines)
        shard = Shard("b.jsonl", 1, str(folder / "b.jsonl"), None, None)
        return Corpus(shard, settings(folder, **changes), tokenizer)

    return make


def same(left: Cut, right: Cut) -> bool:
    """Whether two cuts are equal to the last bit."""
    return len(left) == len(right) and all(
        a.block_id == b.block_id
        and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("row_offsets", "vocab_ids", "token_ids"))
        and a.documents.equals(b.documents, check_metadata=True)
        and rest_a == rest_b
        for (a, *rest_a), (b, *rest_b) in zip(left, right, strict=True)
    )


def analysed_of(blocks: Cut) -> dict[int, int]:
    """token_id -> vocab_id over all blocks; fails where an id comes twice."""
    found: dict[int, int] = {}
    for block, _, _ in blocks:
        for token, vocab in zip(block.token_ids.tolist(), block.vocab_ids.tolist(), strict=True):
            if token >= 0:
                assert token not in found
                found[token] = vocab
    return found


def expected_of(corpus: Corpus, lines: list[bytes]) -> tuple[dict[int, int], SkipCounts]:
    """The same from the definition, one token at a time."""
    import json

    found: dict[int, int] = {}
    skips = SkipCounts()
    for row, line in enumerate(lines):
        if line == b"broken":
            skips += SkipCounts(broken=1)
            continue
        ids = corpus.tokenizer.encode([json.loads(line)["text"]])[0] if line else []
        skips += SkipCounts(empty=not ids, one_token=len(ids) == 1)
        kept = ids if corpus.config.packing == "concatenated" else ids[: corpus.config.context_tokens - 1]
        for position, vocab in enumerate(kept if len(ids) > 1 else [], start=1):
            found[token_id(document_id(1, row), position)] = vocab
    return found, skips


@hypothesis_settings(deadline=None, max_examples=60)
@given(lines=LINES, packing=PACKINGS, context=st.integers(2, 9), block_tokens=st.integers(1, 40))
def test_every_token_of_every_document_comes_exactly_once(
    make_corpus: Any, lines: list[bytes], packing: str, context: int, block_tokens: int
) -> None:
    corpus = make_corpus(lines, packing=packing, context_tokens=context, block_tokens=block_tokens)
    generator = cut_blocks(corpus.shard, corpus.tokenizer, corpus.config)
    blocks: Cut = []
    leftover = yield_all(generator, blocks)
    expected, skips = expected_of(corpus, lines)
    assert analysed_of(blocks) == expected
    assert sum((block[2] for block in blocks), leftover) == skips
    for number, (block, _, _) in enumerate(blocks):
        check_block(block, corpus, number)
        assert block.analysed >= block_tokens or number == len(blocks) - 1


def yield_all(generator: Any, into: Cut) -> SkipCounts:
    """Run a generator to its end; its return value."""

    result = SkipCounts()

    def outer() -> Iterator[Any]:
        nonlocal result
        result = yield from generator

    into.extend(outer())
    return result


def check_block(block: TokenBlock, corpus: Corpus, number: int) -> None:
    """What holds for every block by itself."""
    context = corpus.config.context_tokens
    lengths = np.diff(block.row_offsets)
    assert block.block_id == f"0001-{number:06d}"
    assert block.row_offsets[0] == 0
    assert block.row_offsets[-1] == len(block.vocab_ids) == len(block.token_ids)
    assert (lengths >= 2).all()
    assert (lengths <= context).all()
    firsts = block.row_offsets[:-1]
    assert (block.vocab_ids[firsts] == corpus.tokenizer.bos_id).all()
    assert (block.token_ids[firsts] == -1).all()
    assert (block.vocab_ids[block.token_ids < 0] == corpus.tokenizer.bos_id).all()
    analysed = block.token_ids[block.token_ids >= 0]
    assert (np.diff(analysed) > 0).all()
    if corpus.config.packing == "concatenated":
        assert (lengths[:-1] == context).all()
    else:
        assert len(lengths) == block.documents.num_rows
        assert (block.token_ids >= 0).sum() == len(block.token_ids) - len(firsts)
    check_documents(block, analysed)


def check_documents(block: TokenBlock, analysed: np.ndarray[Any, Any]) -> None:
    assert block.documents.schema.equals(DOCUMENTS.schema(), check_metadata=True)
    documents, counts = np.unique(analysed >> 24, return_counts=True)
    assert block.documents["document_id"].to_pylist() == documents.tolist()
    for row, count in zip(block.documents.to_pylist(), counts.tolist(), strict=True):
        assert row["document_id"] == document_id(1, row["row"])
        assert row["shard"] == "b.jsonl"
        assert row["source"] == "Books"
        assert row["truncated"] == (count < row["tokens"])


@hypothesis_settings(deadline=None, max_examples=40)
@given(lines=LINES, packing=PACKINGS, block_tokens=st.integers(1, 40), budget=st.one_of(st.none(), st.integers(0, 60)))
def test_a_block_can_be_made_again_alone_from_its_cursor_and_budget(
    make_corpus: Any, lines: list[bytes], packing: str, block_tokens: int, budget: int | None
) -> None:
    corpus = make_corpus(lines, packing=packing, context_tokens=7, block_tokens=block_tokens)
    blocks = corpus.cut(budget=budget)
    cursor, left = Cursor(0, 0), budget
    for at, (block, following, _) in enumerate(blocks):
        assert same(corpus.cut(cursor, left), blocks[at:])
        cursor = following
        left = None if left is None else left - block.analysed
    assert corpus.cut(cursor, left) == []


@hypothesis_settings(deadline=None, max_examples=40)
@given(lines=LINES, packing=PACKINGS, budget=st.integers(0, 120))
def test_a_budget_is_met_exactly_and_only_shortens(
    make_corpus: Any, lines: list[bytes], packing: str, budget: int
) -> None:
    corpus = make_corpus(lines, packing=packing, context_tokens=6, block_tokens=15)
    everything = analysed_of(corpus.cut())
    some = analysed_of(corpus.cut(budget=budget))
    assert len(some) == min(budget, len(everything))
    assert list(some.items()) == list(everything.items())[:budget]


def test_the_document_that_meets_the_budget_is_marked_truncated(make_corpus: Any) -> None:
    corpus = make_corpus([record("the cat sat"), record("the cat sat on the mat")], packing="concatenated")
    ((block, _, _),) = corpus.cut(budget=4)
    first, second = block.documents.to_pylist()
    assert (first["truncated"], second["truncated"]) == (False, True)
    assert (first["tokens"], block.analysed) == (3, 4)
    assert second["tokens"] > 1


@pytest.mark.parametrize(("documents", "characters"), [(1, 1 << 18), (3, 1 << 18), (256, 1), (2, 10)])
def test_batches_do_not_change_blocks(
    make_corpus: Any, monkeypatch: pytest.MonkeyPatch, documents: int, characters: int
) -> None:
    lines = [record("the cat sat on the mat " * (row % 5)) for row in range(40)] + [b"broken"]
    corpus = make_corpus(lines, context_tokens=16, block_tokens=30)
    expected = corpus.cut()
    monkeypatch.setattr(tokens, "_BATCH_DOCUMENTS", documents)
    monkeypatch.setattr(tokens, "_BATCH_CHARACTERS", characters)
    assert same(corpus.cut(), expected)
    assert not same(corpus.cut(block_tokens=31), expected)


def test_skipped_rows_belong_to_the_block_before_them(make_corpus: Any) -> None:
    lines = [b"broken", record("the cat sat"), b"", record("a"), record("the cat sat"), b"broken"]
    corpus = make_corpus(lines, block_tokens=1)
    blocks = corpus.cut()
    assert [skips for _, _, skips in blocks] == [SkipCounts(broken=1, empty=1, one_token=1), SkipCounts(broken=1)]
    assert [cursor for _, cursor, _ in blocks] == [Cursor(4, 1), Cursor(6, 2)]


def test_a_shard_without_a_usable_document_counts_and_warns(make_corpus: Any, caplog: pytest.LogCaptureFixture) -> None:
    corpus = make_corpus([b"broken", record("a"), b""])
    blocks: Cut = []
    with caplog.at_level(logging.WARNING):
        leftover = yield_all(cut_blocks(corpus.shard, corpus.tokenizer, corpus.config), blocks)
    assert blocks == []
    assert leftover == SkipCounts(broken=1, empty=1, one_token=1)
    assert "holds no usable document" in caplog.text


def test_concatenated_rows_by_hand(make_corpus: Any) -> None:
    corpus = make_corpus([record("the cat"), record("the cat sat")], packing="concatenated", context_tokens=4)
    ((block, _, _),) = corpus.cut()
    the, cat = corpus.tokenizer.encode(["the cat"])[0]
    sat = corpus.tokenizer.encode(["the cat sat"])[0][2]
    first, second = (document_id(1, row) << 24 for row in (0, 1))
    assert block.row_offsets.tolist() == [0, 4, 8]
    assert block.vocab_ids.tolist() == [0, the, cat, 0, 0, the, cat, sat]
    assert block.token_ids.tolist() == [-1, first + 1, first + 2, -1, -1, second + 1, second + 2, second + 3]


def test_document_rows_by_hand(make_corpus: Any) -> None:
    corpus = make_corpus([record("the cat"), record("the cat sat")], context_tokens=3)
    ((block, _, _),) = corpus.cut()
    the, cat = corpus.tokenizer.encode(["the cat"])[0]
    first, second = (document_id(1, row) << 24 for row in (0, 1))
    assert block.row_offsets.tolist() == [0, 3, 6]
    assert block.vocab_ids.tolist() == [0, the, cat, 0, the, cat]
    assert block.token_ids.tolist() == [-1, first + 1, first + 2, -1, second + 1, second + 2]
    assert block.documents["tokens"].to_pylist() == [2, 3]
    assert block.documents["truncated"].to_pylist() == [False, True]


def test_a_document_with_more_tokens_than_positions_is_too_long(
    make_corpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "POSITION_BITS", 2)
    corpus = make_corpus([record("the cat sat"), record("the cat sat sat")])
    ((_, _, skips),) = corpus.cut()
    assert skips == SkipCounts(too_long=1)


@pytest.mark.parametrize("packing", ["document", "concatenated"])
def test_a_damaged_shard_gives_its_full_blocks_first(tmp_path: Path, tokenizer: Tokenizer, packing: str) -> None:
    lines = [record("the cat sat on the mat " * 3 + str(row * 7919)) for row in range(5000)]
    path = write_lines(tmp_path / "b.jsonl.zst", lines)
    config = settings(tmp_path, packing=packing, context_tokens=64, block_tokens=500)
    whole = list(cut_blocks(only_shard(tmp_path), tokenizer, config))
    path.write_bytes(path.read_bytes()[:-100])
    blocks, problem = until_damage(cut_blocks(only_shard(tmp_path), tokenizer, config))
    assert len(whole) > len(blocks) > 10
    assert same(blocks, whole[: len(blocks)])
    row = int(problem.split("b.jsonl.zst can't be read beyond row ")[1].split(":")[0])
    assert blocks[-1][1].row <= row
    assert row - blocks[-1][1].row < 40  # documents of one block at most were given up


def test_a_full_block_comes_out_although_its_next_row_is_damaged(tmp_path: Path, tokenizer: Tokenizer) -> None:
    # two lines of two whole reads each, so that the damage is met by a read of its own
    line = record("the cat sat" + " " * (8191 - len(record("the cat sat")))) + b"\n"
    good = zstandard.ZstdCompressor().compress(line + line)
    (tmp_path / "b.jsonl.zst").write_bytes(good + b"this is no frame")
    for block_tokens, count in ((6, 1), (40, 0)):
        config = settings(tmp_path, block_tokens=block_tokens, context_tokens=4)
        blocks, problem = until_damage(cut_blocks(only_shard(tmp_path), tokenizer, config))
        assert len(blocks) == count
        assert "beyond row 2:" in problem
