"""Generic plans of prepared pages in PostgreSQL read an index in order."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import event, text

from models.runtime.environment import Environment
from models.store.database import Database
from models.store.postgres.reader import PostgresReaders
from tests.conftest import GraphQLClient, deliver_to, make_client
from tests.support.accounts.large_account import copy_message
from tests.support.stores import store_fixtures
from tests.support.stores.query_plans import record_query_plans

MESSAGE_COUNT, OTHER_USER_COUNT = (
    3000,
    8,
)  # messages of each account, and the number of other accounts
BASE = 1 << 40
RUN_COUNT = 8  # PostgreSQL considers a generic plan from the sixth execution on
INBOX_PAGE = """query ($after: String) { viewer { user { mailbox(by: {path: "INBOX"}) {
  messages(first: 50, after: $after) { nodes { id subject } pageInfo { endCursor } } } } } }"""
ALL_MESSAGES_PAGE = """query ($after: String) { viewer { user {
  messages(first: 50, after: $after) { nodes { id subject } pageInfo { endCursor } } } } }"""

PAGES_OF_MAILBOXES = """{ viewer { user { mailboxes(first: 30) { nodes {
  messages(first: 3) { nodes { id subject } } } } } } }"""
PAGES_OF_THREADS = """{ viewer { user { messages(first: 30) { nodes {
  thread { messages(first: 3) { nodes { id subject } } } } } } } }"""
PAGES_IN_ORDERS = [
    INBOX_PAGE.replace("after: $after", f"after: $after, orderBy: {order}")
    for order in ("DATE_ASC", "FROM_DESC", "SIZE_DESC", "SUBJECT_ASC")
]


@pytest.fixture(
    params=[store_name for store_name in store_fixtures.STORES if store_name == "postgres"]
)
async def database(postgres: str) -> AsyncIterator[Database]:
    """Yield an empty database without automatic ANALYZE."""
    url = await store_fixtures.create_database_beside(postgres, "generic")
    await store_fixtures.migrate_store(url)
    await store_fixtures.disable_autovacuum(url)
    database = store_fixtures.share_compiled_statements(Database(url))
    yield database
    await database.close()


@pytest.fixture
async def large_account(environment: Environment, http: httpx.AsyncClient) -> GraphQLClient:
    """Return a large account among others, with current statistics."""
    clients = [
        await make_client(environment, http, f"user{number}")
        for number in range(OTHER_USER_COUNT + 1)
    ]
    for number, client in enumerate(clients):
        await deliver_to(client, "Hello duck")
        await copy_message(client, MESSAGE_COUNT, base=BASE + number * 10 * MESSAGE_COUNT)
    async with environment.database.engine.begin() as connection:
        await connection.execute(text("ANALYZE"))
    return clients[0]


async def explain_prepared(database: Database, sql: str, values: Any) -> str:
    """Return the plan of a prepared SELECT after several executions in a reader's session."""
    # The readers configure their sessions in their own way.
    readers: Any = database._readers  # noqa: SLF001
    assert isinstance(readers, PostgresReaders)
    driver = readers._quick_reads._idle[0].driver  # noqa: SLF001
    arguments = ", ".join(
        str(value) if isinstance(value, int) else f"'{value}'" for value in values
    )
    await driver.execute(f"PREPARE page AS {sql}")
    for _ in range(RUN_COUNT):
        await driver.execute(f"EXECUTE page({arguments})")
    plan_rows = await driver.fetch(f"EXPLAIN EXECUTE page({arguments})")
    await driver.execute("DEALLOCATE page")
    return "\n".join(row[0] for row in plan_rows)


@pytest.mark.parametrize("document", [INBOX_PAGE, ALL_MESSAGES_PAGE, *PAGES_IN_ORDERS])
async def test_prepared_page_uses_its_index(large_account: GraphQLClient, document: str) -> None:
    database, statements_sent = large_account.environment.database, list[tuple[str, Any]]()

    def record_statement(_connection: Any, _cursor: Any, sql: str, values: Any, *_: Any) -> None:
        if "FROM messages" in sql and "LIMIT" in sql:
            statements_sent.append((sql, values))

    for engine in database.engines:
        event.listen(engine, "before_cursor_execute", record_statement)
    user = (await large_account(document))["viewer"]["user"]
    after = (user.get("mailbox") or user)["messages"]["pageInfo"]["endCursor"]
    await large_account(document, after=after)
    assert len(statements_sent) == 2
    for sql, values in statements_sent:
        assert sql.count(".user_id =") == 1
        plan = await explain_prepared(database, sql, values)
        assert "Sort" not in plan, plan


@pytest.mark.parametrize(
    ("document", "index"),
    [(PAGES_OF_MAILBOXES, "messages_by_age"), (PAGES_OF_THREADS, "ix_messages_thread_id")],
)
async def test_prepared_pages_of_several_lists_use_an_index_for_each(
    large_account: GraphQLClient, document: str, index: str
) -> None:
    with record_query_plans(large_account.environment) as recorder:
        await large_account(document)
    ((sql, values),) = [each for each in recorder.statements if "LATERAL" in each[0]]
    plan = await explain_prepared(large_account.environment.database, sql, values)
    assert f"using {index} on messages" in plan, plan
    # the rows that were found, and those of each thread, which is short
    assert plan.count("Sort Key") == 1 + (document == PAGES_OF_THREADS), plan
