"""DuckDB over a lake in an object store: by its own `httpfs` where that is installed, else through pyarrow.

`httpfs` comes as a Python package and is only loaded, never downloaded. It reads s3:// addresses itself, so the views
are the same as over a disk, several ranges at a time; pyarrow's datasets give the same rows, with filters passed down,
at the price of reading through Python. Credentials go into a secret of the connection, which lives in memory, and is
never written: not into a warehouse either.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jacobian_core.contracts import TABLES
from jacobian_core.errors import LakeError
from jacobian_core.lake import store
from jacobian_core.lake.paths import StorePath
from jacobian_core.lake.store_errors import store_errors
from jacobian_core.sql.run_facts import RunSnapshot
from jacobian_core.sql.sql_files import literal
from jacobian_core.sql.warehouse_sql import dataset_name

if TYPE_CHECKING:
    import duckdb

log = logging.getLogger(__name__)

_PACKAGE = "duckdb_extension_httpfs"


@cache
def httpfs_path() -> Path | None:
    """The extension for this version of DuckDB, as its package installed it; None where it did not."""
    import duckdb

    found = find_spec(_PACKAGE)
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder) / "extensions" / f"v{duckdb.__version__}" / "httpfs.duckdb_extension"
        if path.is_file():
            return path
    return None


def load_httpfs(connection: duckdb.DuckDBPyConnection, root: StorePath) -> bool:
    """Let a connection read the store's addresses; False where there is no extension for it."""
    import duckdb

    path = httpfs_path()
    if path is None:
        return False
    try:
        connection.execute(f"LOAD {literal(str(path))}")
    except duckdb.Error as error:
        log.warning("DuckDB can't load %s (%s); the lake is read through pyarrow", path, error)
        return False
    options = ", ".join(f"{name} {literal(value)}" for name, value in _secret(root).items())
    try:
        connection.execute(f"CREATE SECRET jacobian_lake (TYPE s3, {options})")
    except duckdb.Error:  # its message may hold the statement
        raise LakeError(f"{root}: DuckDB refuses the store's settings.", "Check the AWS settings.") from None
    return True


def _secret(root: StorePath) -> dict[str, Any]:
    """What DuckDB has to know, as the store's client found it in the environment and in the AWS configuration."""
    from fsspec.asyn import sync

    with store_errors(root, "open the store"):
        client = store.filesystem()
        client.connect()
        credentials = sync(client.loop, _credentials, client)
        place = urlsplit(client.s3.meta.endpoint_url)
        region = client.s3.meta.region_name
    of_amazon = (place.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
    keys = {} if credentials is None else {
        "KEY_ID": credentials.access_key, "SECRET": credentials.secret_key, "SESSION_TOKEN": credentials.token or "",
    }  # fmt: skip
    return {
        **keys,
        "SCOPE": f"s3://{root.bucket}",
        "ENDPOINT": place.netloc + place.path.rstrip("/"),
        "USE_SSL": place.scheme == "https",
        "URL_STYLE": "vhost" if of_amazon else "path",
        "REGION": region or "us-east-1",
    }


async def _credentials(client: Any) -> Any:
    found = await client.session.get_credentials()
    return None if found is None else await found.get_frozen_credentials()


def register_datasets(connection: duckdb.DuckDBPyConnection, root: StorePath, states: list[RunSnapshot]) -> None:
    """Name the parts of each table as a pyarrow dataset, which the views then read."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    files = store.arrow_filesystem()
    run_id = pa.field("run_id", pa.string())
    for table in TABLES.values():
        paths = [root / part.path for state in states for part in state.parts.get(table.name, [])]
        if not paths:
            continue
        with store_errors(root / table.name, "open the parts"):
            dataset = ds.dataset(
                [f"{path.bucket}/{path.key}" for path in paths],
                schema=pa.schema([*table.schema(), run_id]),
                filesystem=files,
                format="parquet",
                partitioning=ds.partitioning(pa.schema([run_id]), flavor="hive"),
            )
        connection.register(dataset_name(table.name), dataset)
