"""The number of connections to PostgreSQL."""

from typing import Any

from models.store.database import Database
from models.store.postgres.limits import CONNECTIONS_PER_PROCESS
from models.store.postgres.reader import CONNECTIONS_PER_POOL

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
