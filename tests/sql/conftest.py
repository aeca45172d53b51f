"""Lakes that several SQL tests only read."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest

from jacobian_core.lake.layout import Lake
from jacobian_core.sql.warehouse import connect
from tests.sql.lakes import HAND_RUN, RANDOM_RUN, Token, hand_lake, random_lake, random_tokens


@pytest.fixture(scope="session")
def hand(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The finished run of `lakes.HAND`."""
    return hand_lake(tmp_path_factory.mktemp("hand"))


@pytest.fixture(scope="session")
def hand_connection(hand: Lake) -> Iterator[duckdb.DuckDBPyConnection]:
    with connect(hand, [HAND_RUN]) as connection:
        yield connection


@pytest.fixture(scope="session")
def some_tokens() -> list[Token]:
    return random_tokens(160, seed=3)


@pytest.fixture(scope="session")
def random_connection(
    tmp_path_factory: pytest.TempPathFactory, some_tokens: list[Token]
) -> Iterator[duckdb.DuckDBPyConnection]:
    """The finished run of `some_tokens`."""
    lake = random_lake(tmp_path_factory.mktemp("random"), RANDOM_RUN, some_tokens)
    with connect(lake) as connection:
        yield connection
