"""Pages that PostgreSQL has prepared are read in the order of an index, run after run."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import event, text

from models.runtime.environment import Environment
from models.store.database import Database
from models.store.postgres.reader import PostgresReaders
from tests.conftest import Client, make_client, receive
from tests.support.accounts.large_account import fill
from tests.support.stores import store_fixtures

MANY, OTHERS = 3000, 8  # messages of each account; other accounts
BASE = 1 << 40
RUNS = 8  # PostgreSQL weighs a generic plan from the sixth on
INBOX = """query ($after: String) { viewer { user { mailbox(by: {path: "INBOX"}) {
  messages(first: 50, after: $after) { nodes { id subject } pageInfo { endCursor } } } } } }"""
ALL = """query ($after: String) { viewer { user {
  messages(first: 50, after: $after) { nodes { id subject } pageInfo { endCursor } } } } }"""


@pytest.fixture(params=[one for one in store_fixtures.STORES if one == "postgres"])
async def database(postgres: str) -> AsyncIterator[Database]:
    """An empty store that analyzes nothing by itself."""
    url = await store_fixtures.beside(postgres, "generic")
    await store_fixtures.migrated(url)
    await store_fixtures.left_alone(url)
    database = store_fixtures.warmed(Database(url))
    yield database
    await database.close()


@pytest.fixture
async def full(world: Environment, http: httpx.AsyncClient) -> Client:
    """An account among others, whose statistics are up to date."""
    clients = [await make_client(world, http, f"user{nth}") for nth in range(OTHERS + 1)]
    for nth, client in enumerate(clients):
        await receive(client, "Hello duck")
        await fill(client, MANY, base=BASE + nth * 10 * MANY)
    async with world.database.engine.begin() as connection:
        await connection.execute(text("ANALYZE"))
    return clients[0]


async def _plan(database: Database, sql: str, values: Any) -> str:
    """The plan of a prepared select, in a session of those that run it, after several runs."""
    readers: Any = database._readers  # noqa: SLF001 - whose sessions are set up in their own way
    assert isinstance(readers, PostgresReaders)
    driver = readers._quick_reads._idle[0].driver  # noqa: SLF001
    given = ", ".join(str(one) if isinstance(one, int) else f"'{one}'" for one in values)
    await driver.execute(f"PREPARE page AS {sql}")
    for _ in range(RUNS):
        await driver.execute(f"EXECUTE page({given})")
    found = await driver.fetch(f"EXPLAIN EXECUTE page({given})")
    await driver.execute("DEALLOCATE page")
    return "\n".join(row[0] for row in found)


@pytest.mark.parametrize("document", [INBOX, ALL])
async def test_a_prepared_page_keeps_to_its_index(full: Client, document: str) -> None:
    database, sent = full.world.database, list[tuple[str, Any]]()

    def note(_connection: Any, _cursor: Any, sql: str, values: Any, *_: Any) -> None:
        if "FROM messages" in sql and "LIMIT" in sql:
            sent.append((sql, values))

    for engine in database.engines:
        event.listen(engine, "before_cursor_execute", note)
    found = (await full(document))["viewer"]["user"]
    after = (found.get("mailbox") or found)["messages"]["pageInfo"]["endCursor"]
    await full(document, after=after)
    assert len(sent) == 2
    for sql, values in sent:
        assert sql.count("messages.user_id =") == 1
        plan = await _plan(database, sql, values)
        assert "Sort" not in plan, plan
