"""The user, the database and the connections that docs/operating/databases.md asks for."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from models.store.database import Database
from models.store.postgres.limits import CONNECTIONS_PER_PROCESS
from models.store.postgres.reader import CONNECTIONS_PER_POOL
from tests.support.stores.store_fixtures import migrate_store

PAGE = Path(__file__).parents[2] / "docs" / "operating" / "databases.md"
SQL_BLOCK = re.compile(r"^```sql\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OTHER_CONNECTIONS = 3  # event bus, lock of the server, log store
RESERVE = 3


async def test_documented_number_is_that_of_all_pools(postgres: str) -> None:
    database = Database(postgres)
    engines: list[Any] = [*database.engines, database._heartbeat_engine]  # noqa: SLF001
    pools = [engine.pool for engine in engines]
    pooled = sum(pool.size() + max(pool._max_overflow, 0) for pool in pools)  # noqa: SLF001
    driver_connections = 2 * CONNECTIONS_PER_POOL
    await database.close()
    assert pooled + driver_connections + OTHER_CONNECTIONS + RESERVE == CONNECTIONS_PER_PROCESS
    assert f"Allow {CONNECTIONS_PER_PROCESS} connections" in PAGE.read_text()


async def test_documented_statements_create_a_database_that_can_be_used(postgres: str) -> None:
    (block,) = SQL_BLOCK.findall(PAGE.read_text())
    administrator = await asyncpg.connect(postgres.replace("+asyncpg", ""))
    try:
        for statement in filter(None, map(str.strip, block.split(";"))):
            await administrator.execute(statement)
        query = urlsplit(postgres).query
        await migrate_store(
            f"postgresql+asyncpg://merganser:a%20long%20password@/merganser?{query}"
        )
    finally:
        await administrator.execute("DROP DATABASE IF EXISTS merganser WITH (FORCE)")
        await administrator.execute("DROP ROLE IF EXISTS merganser")
        await administrator.close()
