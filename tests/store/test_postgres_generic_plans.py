"""Generic plans of prepared pages in PostgreSQL read an index in order."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from models.runtime.environment import Environment
from models.store.database import Database
from models.store.postgres.reader import PostgresReaders
from tests.conftest import GraphQLClient, deliver_to, make_client
from tests.support.accounts.large_account import copy_message
from tests.support.case_loop import each_case
from tests.support.stores import store_fixtures
from tests.support.stores.query_plans import record_query_plans

MESSAGE_COUNT = 3000  # of each account
OTHER_USER_COUNT = 8
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
    url = store_fixtures.create_migrated_database(postgres, "generic")
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


async def test_prepared_pages_use_an_index_for_each_list(large_account: GraphQLClient) -> None:
    for case in each_case((INBOX_PAGE, ALL_MESSAGES_PAGE, *PAGES_IN_ORDERS)):
        with case as document:
            await check_page_of_one_list(large_account, document)
    for several_case in each_case(
        ((PAGES_OF_MAILBOXES, "messages_by_age"), (PAGES_OF_THREADS, "ix_messages_thread_id"))
    ):
        with several_case as (document, index):
            await check_pages_of_several_lists(large_account, document, index)


async def check_page_of_one_list(client: GraphQLClient, document: str) -> None:
    with record_query_plans(client.environment) as recorder:
        user = (await client(document))["viewer"]["user"]
        after = (user.get("mailbox") or user)["messages"]["pageInfo"]["endCursor"]
        await client(document, after=after)
    pages = [(sql, values) for sql, values in recorder.statements if is_page_of_messages(sql)]
    assert len(pages) == 2
    for sql, values in pages:
        assert sql.count(".user_id =") == 1
        plan = await explain_prepared(client.environment.database, sql, values)
        assert "Sort" not in plan, plan


def is_page_of_messages(sql: str) -> bool:
    return "FROM messages" in sql and "LIMIT" in sql


async def check_pages_of_several_lists(client: GraphQLClient, document: str, index: str) -> None:
    with record_query_plans(client.environment) as recorder:
        await client(document)
    ((sql, values),) = [each for each in recorder.statements if "LATERAL" in each[0]]
    plan = await explain_prepared(client.environment.database, sql, values)
    assert f"using {index} on messages" in plan, plan
    # the rows that were found, and those of each thread, which is short
    assert plan.count("Sort Key") == 1 + (document == PAGES_OF_THREADS), plan
