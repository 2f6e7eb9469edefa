"""Test that a page reads few rows, with any statistics, in a large account and beside one."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import select, text
from sqlmodel import col

from graph.schema import schema as strawberry_schema
from graph.types import global_ids
from mail.storage.blobs.object_stores import FolderStore
from models.runtime.environment import Environment
from models.store.columns import select_columns
from models.store.database import Database
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.pagination import MAX_TESTED_ROWS
from tests.conftest import (
    TEST_OPTIONS,
    GraphQLClient,
    ManualClock,
    deliver_to,
    make_api_key,
    make_client,
)
from tests.support.accounts.large_account import (
    SelectCostRecorder,
    copy_message,
    record_select_costs,
)
from tests.support.lists.list_fields import (
    PARENT_SELECTIONS,
    aliased_field,
    list_fields,
    required_arguments,
)
from tests.support.stores import store_fixtures

# Messages of ada, of bob and of each other account, and the number of these accounts.
LARGE_COUNT, MIDDLE_COUNT, SMALL_COUNT, OTHER_ACCOUNTS = 50_000, 2500, 20, 12
MAX_ROWS_READ = 6000  # Per statement. One of 100 messages is unseen.
MAX_ROWS_BESIDE_LARGE = 600  # of a page of bob: the first step of a filter tests 500
ROWS_PER_TESTED_MESSAGE = 2  # the row of the message and that of its sort keys
FIRST_ID = 1 << 40
schema = strawberry_schema._schema  # noqa: SLF001 - the schema of graphql-core
STATISTICS = ("none", "bounded", "whole")
PAGE_FIELDS = (
    "(first: 50%s) { nodes { id threadId thread { id subject messageCount unseenCount } } }"
)
INBOX_QUERY = '{ viewer { user { mailbox(by: {path: "INBOX"}) { messages%s } } } }'
OF_BOB = '{ user(by: {username: "bob"}) {'
USER_QUERY = "{ viewer { user { messages%s } } }"
ORDERS_OF_ONE_MAILBOX = ("DATE_ASC", "FROM_DESC", "SIZE_DESC", "SUBJECT_ASC")
MESSAGE_LIST_QUERIES = [
    *(kind % (PAGE_FIELDS % extra) for kind in (INBOX_QUERY, USER_QUERY) for extra in (
        "", ", filter: {seen: false}", ", filter: {seen: true}", ", orderBy: RECEIVED_AT_ASC",
    )),
    USER_QUERY % (
        PAGE_FIELDS % f', filter: {{thread: {{id: "{global_ids.encode("Thread", FIRST_ID + 7)}"}}}}'
    ),
    INBOX_QUERY % (
        PAGE_FIELDS
        % ', filter: {mailbox: {path: "INBOX"}, uids: "1500,1502,1504,1506,1508,1510"}'
    ),
    *(INBOX_QUERY % (PAGE_FIELDS % f", orderBy: {order}") for order in ORDERS_OF_ONE_MAILBOX),
    INBOX_QUERY % "(first: 3) { nodes { id thread { id participants { address } "
    "mailboxes { nodes { path } } messages(first: 20) { totalCount nodes { id } } } } }",
    INBOX_QUERY
    % "(last: 50) { nodes { id } } two: messages(first: 20) { nodes { id thread { id } } }",
]  # fmt: skip


async def create_accounts(url: str, folder: Path) -> None:
    blobs = FolderStore(folder / "blobs")
    environment = Environment(
        Database(url), blobs, signing_secret=b"s" * 32, options=TEST_OPTIONS, now=ManualClock()
    )
    async with httpx.AsyncClient() as http:
        counts = {"ada": LARGE_COUNT, "bob": MIDDLE_COUNT} | {
            f"user{nth}": SMALL_COUNT for nth in range(OTHER_ACCOUNTS)
        }
        await make_client(environment, http, "over", role=Role.ADMIN)
        for nth, (name, count) in enumerate(counts.items()):
            client = await make_client(environment, http, name)
            await deliver_to(client, "Hello duck")
            await copy_message(client, count, base=FIRST_ID + nth * 10 * LARGE_COUNT)
    await blobs.close()
    await environment.database.close()


@pytest.fixture(scope="module")
def blob_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("large")


@pytest.fixture(scope="module")
def sqlite_filled(sqlite_template: Path, blob_folder: Path) -> str:
    url = store_fixtures.copy_sqlite_template(sqlite_template, blob_folder)
    store_fixtures.run_in_new_loop(create_accounts(url, blob_folder))
    return url


@pytest.fixture(scope="module")
def postgres_filled(postgres: str, blob_folder: Path) -> str:
    url = store_fixtures.create_migrated_database(postgres, "large")
    store_fixtures.run_in_new_loop(store_fixtures.disable_autovacuum(url))
    store_fixtures.run_in_new_loop(create_accounts(url, blob_folder))
    return url


STORE_CASES = [(store, kind) for store in store_fixtures.STORES for kind in STATISTICS]


@pytest.fixture(
    params=[item for item in STORE_CASES if item[0] == "sqlite" or item[1] == "whole"], ids=str
)
async def database(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """The database with large accounts and the given statistics. Tests only read it."""
    store, statistics = request.param
    database = store_fixtures.share_compiled_statements(
        Database(request.getfixturevalue(f"{store}_filled"))
    )
    async with database.engine.begin() as connection:
        if store == "sqlite":
            await connection.execute(text("PRAGMA analysis_limit=0"))
        await connection.execute(text("ANALYZE"))
        if statistics == "none":
            await connection.execute(text("DELETE FROM sqlite_stat1"))
    if statistics == "bounded":
        await database.refresh_planner_statistics()
    await database.close()
    database = store_fixtures.share_compiled_statements(
        Database(request.getfixturevalue(f"{store}_filled"))
    )
    yield database
    await database.close()


async def sign_in(
    environment: Environment, http: httpx.AsyncClient, name: str, role: Role = Role.USER
) -> GraphQLClient:
    query = select(*select_columns(User)).where(col(User.username) == name)
    (row,) = await environment.database.read(query)
    secret = await make_api_key(
        environment, uuid4().hex, user_id=row.id, role=role, scopes=[Scope.FULL]
    )
    return GraphQLClient(http, environment, User(**row._asdict()), secret)


@pytest.fixture
async def ada(environment: Environment, http: httpx.AsyncClient) -> GraphQLClient:
    return await sign_in(environment, http, "ada")


@pytest.fixture
def effort(ada: GraphQLClient) -> Iterator[SelectCostRecorder]:
    with record_select_costs(ada.environment) as row_counts:
        yield row_counts


async def find_excessive_statements(
    client: GraphQLClient,
    effort: SelectCostRecorder,
    document: str,
    max_rows: int = MAX_ROWS_READ,
) -> list[str]:
    rows_by_statement = await effort.count_rows_read(client.execute(document))
    return [
        f"{rows} rows: {document}\n{sql}"
        for sql, rows in rows_by_statement.items()
        if rows > max_rows
    ]


async def test_message_page_reads_bounded_number_of_rows(
    ada: GraphQLClient, effort: SelectCostRecorder
) -> None:
    problems = []
    for document in MESSAGE_LIST_QUERIES:
        assert (await ada(document))["viewer"]["user"] is not None
        problems += await find_excessive_statements(ada, effort, document)
    assert not problems, "\n\n".join(problems)


async def test_page_beside_a_large_account_does_not_read_the_mailbox(
    environment: Environment, http: httpx.AsyncClient, effort: SelectCostRecorder
) -> None:
    """PostgreSQL knows how few of all messages belong to the user."""
    bob = await sign_in(environment, http, "bob")
    admin = await sign_in(environment, http, "over", Role.ADMIN)
    problems = []
    for document in MESSAGE_LIST_QUERIES:
        problems += await find_excessive_statements(bob, effort, document, MAX_ROWS_BESIDE_LARGE)
        document_of_admin = document.replace("{ viewer { user {", OF_BOB).removesuffix(" }")
        problems += await find_excessive_statements(
            admin, effort, document_of_admin, MAX_ROWS_BESIDE_LARGE
        )
        assert effort.message_selects  # administrators may list the messages
    assert not problems, "\n\n".join(problems)


@pytest.mark.parametrize("order", ORDERS_OF_ONE_MAILBOX)
async def test_filtered_page_in_an_order_of_one_mailbox_tests_bounded_number_of_rows(
    ada: GraphQLClient, effort: SelectCostRecorder, order: str
) -> None:
    document = INBOX_QUERY % (PAGE_FIELDS % f", orderBy: {order}, filter: {{seen: false}}")
    problems = await find_excessive_statements(
        ada, effort, document, max_rows=ROWS_PER_TESTED_MESSAGE * MAX_TESTED_ROWS
    )
    assert not problems, "\n\n".join(problems)


async def test_every_list_reads_bounded_number_of_rows(
    ada: GraphQLClient, effort: SelectCostRecorder
) -> None:
    random, problems, message_list_count = Random(1), list[str](), 0  # noqa: S311 - not for secrets
    for list_field in list_fields(schema):
        parent: Any = next(
            (
                parent_query
                for parent_query in PARENT_SELECTIONS[list_field.parent]
                if "viewer" in parent_query
            ),
            PARENT_SELECTIONS[list_field.parent][0],
        )
        arguments = required_arguments(schema, list_field, random) | {"first": "20"}
        selected = "{ nodes { __typename } }" if list_field.is_connection else "{ __typename }"
        field = aliased_field(list_field, "x", arguments, selected)
        problems += await find_excessive_statements(
            ada, effort, f"{{ {parent.replace('%s', field)} }}"
        )
        message_list_count += bool(effort.message_selects)
    assert message_list_count >= 5
    assert not problems, "\n\n".join(problems)
