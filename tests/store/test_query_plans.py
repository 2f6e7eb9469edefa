"""Query plans of frequent reads: the expected index, and no full scan."""

import shutil
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, select, text
from sqlmodel import col

from graph.types import global_ids
from mail.archives.archive_writer import ArchiveState, ExportFormat
from mail.maintenance import snooze_worker
from mail.recipients import address_resolution
from mail.search import index_worker
from mail.storage.blobs.object_stores import FolderStore
from mail.storage.message_sort_keys import sort_key_columns
from models.messages.sort_keys import MessageSortKey
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.store.columns import select_columns
from models.store.database import Database
from models.users.roles import Scope
from models.users.tables import User
from resolvers.mailboxes.create import NewMailboxes, create_mailboxes
from resolvers.messages import computed_fields
from resolvers.messages import loaders as message_loaders
from resolvers.search import index_query
from resolvers.transfer import export_writer
from tests.conftest import (
    TEST_OPTIONS,
    GraphQLClient,
    ManualClock,
    client_context,
    deliver_to,
    make_api_key,
    make_client,
)
from tests.support.accounts.shared_mailboxes import (
    list_message_ids,
    mailbox_global_id,
    share_mailbox,
)
from tests.support.case_loop import each_case
from tests.support.operations.bulk_operations import inbox_selection, run_message_mutation
from tests.support.stores import store_fixtures
from tests.support.stores.query_plans import QueryPlanRecorder, record_query_plans

MESSAGE_COUNT = 4000  # messages of a mailbox
DAY = 86_400


async def fill_database(url: str, folder: Path) -> None:
    """Create two accounts with a large mailbox each, nearly all of it seen and indexed."""
    blobs, clock = FolderStore(folder / "blobs"), ManualClock()
    environment = Environment(
        Database(url), blobs, signing_secret=b"s" * 32, options=TEST_OPTIONS, now=clock
    )
    async with httpx.AsyncClient() as http:
        ada, bob = [await make_client(environment, http, name) for name in ("ada", "bob")]
    await create_mailboxes(client_context(ada), NewMailboxes(["Other"]))
    for client in (ada, bob):
        await deliver_to(client, "Hello duck")
        await copy_message(client, clock)
    await insert_users(environment, ada.user)
    if environment.database.dialect == "postgresql":
        async with environment.database.engine.begin() as connection:
            for table in ("messages", "users", "addresses", "search_words"):
                await connection.execute(text(f"ANALYZE {table}"))
    await blobs.close()
    await environment.database.close()


@pytest.fixture(scope="module")
def filled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the filled database, which each test copies."""
    return tmp_path_factory.mktemp("filled")


@pytest.fixture(scope="module")
def filled_sqlite_file(sqlite_template: Path, filled_folder: Path) -> Path:
    store_fixtures.run_in_new_loop(
        fill_database(
            store_fixtures.copy_sqlite_template(sqlite_template, filled_folder), filled_folder
        )
    )
    return filled_folder / "mail.db"


@pytest.fixture(scope="module")
def filled_postgres_url(postgres: str, filled_folder: Path) -> str:
    url = store_fixtures.create_migrated_database(postgres, "filled")
    store_fixtures.run_in_new_loop(store_fixtures.disable_autovacuum(url))
    store_fixtures.run_in_new_loop(fill_database(url, filled_folder))
    return url


@pytest.fixture(params=store_fixtures.STORES)
async def database(
    request: pytest.FixtureRequest, filled_folder: Path, tmp_path: Path
) -> AsyncIterator[Database]:
    """Yield a copy of the filled database."""
    if request.param == "sqlite":
        url = store_fixtures.copy_sqlite_template(
            request.getfixturevalue("filled_sqlite_file"), tmp_path
        )
    else:
        url = await store_fixtures.create_database_beside(
            request.getfixturevalue("filled_postgres_url"), "copy", copies_data=True
        )
    shutil.copytree(filled_folder / "blobs", tmp_path / "blobs")
    database = store_fixtures.share_compiled_statements(Database(url))
    yield database
    await database.close()


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock later than all stored times."""
    clock = ManualClock()
    clock.tick(seconds=2 * MESSAGE_COUNT * 60)
    return clock


async def load_client(
    environment: Environment, http: httpx.AsyncClient, name: str
) -> GraphQLClient:
    statement = select(*select_columns(User)).where(col(User.username) == name)
    (row,) = await environment.database.read(statement)
    secret = await make_api_key(environment, f"{name}-later", user_id=row.id, scopes=[Scope.FULL])
    return GraphQLClient(http, environment, User(**row._asdict()), secret)


@pytest.fixture
async def large_account(environment: Environment, http: httpx.AsyncClient) -> GraphQLClient:
    return await load_client(environment, http, "ada")


@pytest.fixture
async def bob(environment: Environment, http: httpx.AsyncClient) -> GraphQLClient:
    return await load_client(environment, http, "bob")


async def copy_message(client: GraphQLClient, clock: ManualClock) -> None:
    """Insert copies of the client's message."""
    environment, user_id = client.environment, client.user.id
    statement = select(*select_columns(Message)).where(col(Message.user_id) == user_id)
    (row,) = await environment.database.read(statement)
    rows = []
    for n in range(2, MESSAGE_COUNT):
        clock.tick(seconds=60)
        changed_columns = {
            "id": environment.new_id(),
            "uid": n,
            "listed_at": clock(),
            "seen": n % 100 > 0,
        }
        if n % 20 == 1:
            changed_columns["snoozed_until"] = clock() + timedelta(days=30)
        rows.append({**row._asdict(), **changed_columns, "subject": f"Number {n}"})
    async with environment.write_session() as session:
        connection = await session.connection()
        await connection.execute(insert(Message), rows)
        await connection.execute(insert(MessageSortKey), list(map(sort_key_columns, rows)))
    while await index_worker.index_next_batch_and_record_contacts(environment):
        pass


async def insert_users(environment: Environment, template: User) -> None:
    columns = template.model_dump()
    rows = [
        {**columns, "id": environment.new_id(), "username": f"n{n}", "username_key": f"n{n}"}
        for n in range(3000)
    ]
    async with environment.write_session() as session:
        await (await session.connection()).execute(insert(User), rows)


@pytest.fixture
def query_plans(large_account: GraphQLClient) -> Iterator[QueryPlanRecorder]:
    with record_query_plans(large_account.environment) as recorder:
        yield recorder


INBOX_PAGE = """
query ($first: Int, $after: String, $last: Int, $before: String, $filter: MessageFilter) {
  viewer { user { mailbox(by: {specialUse: INBOX}) {
    messages(first: $first, after: $after, last: $last, before: $before, filter: $filter) {
      nodes { subject } pageInfo { startCursor endCursor } } } } }
}
"""


def has_sort(plan: str) -> bool:
    return "TEMP B-TREE" in plan or "Sort" in plan


async def test_mailbox_page_is_read_in_index_order(
    large_account: GraphQLClient, query_plans: QueryPlanRecorder
) -> None:
    page_info = (await large_account(INBOX_PAGE, first=50))["viewer"]["user"]["mailbox"][
        "messages"
    ]["pageInfo"]
    for page_arguments in (
        {"first": 50},
        {"last": 50},
        {"first": 50, "after": page_info["endCursor"]},
        {"last": 50, "before": page_info["endCursor"]},
    ):
        plan = await query_plans.explain_select(
            large_account(INBOX_PAGE, **page_arguments), "messages"
        )
        assert "messages_by_age" in plan, plan
        assert not has_sort(plan), plan


async def test_unseen_messages_are_read_by_their_index(
    large_account: GraphQLClient, query_plans: QueryPlanRecorder
) -> None:
    plan = await query_plans.explain_select(
        large_account(INBOX_PAGE, first=50, filter={"seen": False}), "messages"
    )
    assert "messages_unseen" in plan, plan
    assert not has_sort(plan), plan


async def test_selection_is_found_by_mailbox_and_uid(
    large_account: GraphQLClient, root: GraphQLClient, query_plans: QueryPlanRecorder
) -> None:
    validate_only = {"options": {"validateOnly": True}}
    users_of_clients: list[tuple[GraphQLClient, dict[str, Any]]] = [
        (large_account, {}),
        (root, {"users": {"usernames": ["ada", "bob"]}}),
    ]
    for case in each_case(product(("messageDelete", "messageDeduplicate"), users_of_clients)):
        with case as (name, (client, users)):
            selection = {**inbox_selection("5:9"), **users}
            request = run_message_mutation(client, name, select=selection, **validate_only)
            plan = await query_plans.explain_select(
                request, "messages", containing="messages.modseq, messages."
            )
            assert "messages_by_uid" in plan, plan


async def test_all_messages_of_a_user_are_read_in_index_order(
    large_account: GraphQLClient, query_plans: QueryPlanRecorder
) -> None:
    document = "{ viewer { user { messages(first: 50) { nodes { subject } } } } }"
    plan = await query_plans.explain_select(large_account(document), "messages")
    assert "messages_of_user" in plan, plan
    assert not has_sort(plan), plan


async def test_snoozed_messages_are_found_by_index(
    large_account: GraphQLClient, query_plans: QueryPlanRecorder
) -> None:
    document = """{ viewer { user { messages(first: 50, filter: {snoozed: true}) {
        nodes { subject } } } } }"""
    plan = await query_plans.explain_select(large_account(document), "messages")
    if large_account.environment.database.dialect == "sqlite":
        assert "messages_snoozed" in plan, plan
        assert not has_sort(plan), plan
    else:  # PostgreSQL sorts the snoozed messages and uses either index of them
        assert "messages_snoozed" in plan or "messages_to_wake" in plan, plan


async def test_labels_are_counted_by_the_keyword_index(
    large_account: GraphQLClient, query_plans: QueryPlanRecorder
) -> None:
    mutation = 'mutation { labelCreate(input: {keyword: "work"}) { errors { code } } }'
    assert (await large_account(mutation))["labelCreate"]["errors"] == []
    document = "{ viewer { user { labels { messageCount unseenCount } } } }"
    plan = await query_plans.explain_select(large_account(document), "messages", containing="json")
    assert "messages_with_keywords" in plan, plan


async def test_due_snoozed_messages_are_found_by_index(
    large_account: GraphQLClient, query_plans: QueryPlanRecorder
) -> None:
    plan = await query_plans.explain_select(
        snooze_worker.unsnooze_due_messages(large_account.environment), "messages"
    )
    assert "messages_to_wake" in plan, plan


async def test_search_words_are_found_by_index(
    large_account: GraphQLClient, query_plans: QueryPlanRecorder
) -> None:
    document = """query ($query: String!) { viewer { user { messages(filter: {query: $query}) {
        nodes { subject } } } } }"""
    cases: list[str] = ["17", "number 39*", "39* -hello"]
    for case in each_case(cases):
        with case as query:
            plans_found = await query_plans.explain_selects(
                large_account(document, query=query), "messages"
            )
            assert len(plans_found) >= 2  # the unindexed messages and the words
            for plan in plans_found:
                assert "messages_of_user" not in plan, plan
                assert "Seq Scan" not in plan, plan
                assert "SCAN messages" not in plan, plan


async def test_frequent_word_is_searched_in_the_newest_messages(
    large_account: GraphQLClient, query_plans: QueryPlanRecorder
) -> None:
    document = """query ($filter: MessageFilter!) { messages(filter: $filter, first: 10) {
        nodes { subject } } }"""
    cases: list[dict[str, Any]] = [{}, {"seen": False}, {"subject": "number"}]
    for case in each_case(cases):
        with case as filter_:
            condition = {"query": "number", **filter_}
            plans_found = await query_plans.explain_selects(
                large_account(document, filter=condition or None), "messages"
            )
            if large_account.environment.database.dialect == "sqlite":
                *_, scan_plan, rows_plan = plans_found
                assert "messages_of_user" in scan_plan, scan_plan
                assert not has_sort(scan_plan), scan_plan
                assert "SEARCH messages USING INTEGER PRIMARY KEY" in rows_plan, rows_plan
            for plan in plans_found:
                assert "SCAN messages" not in plan, plan
                assert "Seq Scan on messages" not in plan, plan
            assert (
                len((await large_account(document, filter=condition or None))["messages"]["nodes"])
                == 10
            )


async def test_unindexed_messages_are_found_by_user(
    large_account: GraphQLClient, query_plans: QueryPlanRecorder
) -> None:
    for owners in ([large_account.user.id], [large_account.user.id, large_account.user.id + 1]):
        plan = await query_plans.explain_select(
            index_query.load_unindexed_messages_within_limit(client_context(large_account), owners),
            "messages",
        )
        assert "messages_waiting" in plan or "messages_to_index" in plan, plan


async def test_index_worker_finds_unindexed_messages_by_index(
    large_account: GraphQLClient, query_plans: QueryPlanRecorder
) -> None:
    plan = await query_plans.explain_select(
        index_worker.index_next_batch_and_record_contacts(large_account.environment), "messages"
    )
    assert "messages_to_index" in plan, plan
    assert not has_sort(plan), plan


async def test_message_is_found_by_uid_and_id(
    large_account: GraphQLClient, query_plans: QueryPlanRecorder
) -> None:
    (row,) = await large_account.environment.database.read(select(col(Message.id)).limit(1))
    document = "query ($ref: MessageRef!) { message(by: $ref) { subject } }"
    plan = await query_plans.explain_select(
        large_account(document, ref={"id": global_ids.encode("Message", row.id)}), "messages"
    )
    assert "PRIMARY KEY" in plan or "pk_messages" in plan, plan
    uid_ref = {"mailbox": {"path": "INBOX"}, "uid": 7}
    plan = await query_plans.explain_select(
        message_loaders.find_message_id_by_uid(
            client_context(large_account), (await large_account.load_mailbox()).id, 7
        ),
        "messages",
    )
    assert "messages_by_uid" in plan, plan
    assert (await large_account(document, ref={"uid": uid_ref}))["message"]["subject"] == "Number 7"


async def test_sequence_numbers_are_counted_by_the_uid_index(
    large_account: GraphQLClient, query_plans: QueryPlanRecorder
) -> None:
    # without VACUUM, PostgreSQL doesn't use an index-only scan
    if large_account.environment.database.dialect == "postgresql":
        async with large_account.environment.database.engine.connect() as connection:
            autocommit_connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await autocommit_connection.execute(text("VACUUM messages"))
    statement = select(col(Message.id)).where(col(Message.user_id) == large_account.user.id)
    rows = await large_account.environment.database.read(
        statement.order_by(col(Message.uid)).limit(20)
    )
    plan = await query_plans.explain_select(
        computed_fields.load_sequence_numbers(
            client_context(large_account), [row.id for row in rows]
        ),
        "messages",
    )
    assert "messages_by_uid" in plan, plan
    assert "SCAN" not in plan, plan
    assert "Seq Scan" not in plan, plan


async def test_sign_in_name_is_found_by_index(
    large_account: GraphQLClient, query_plans: QueryPlanRecorder
) -> None:
    cases: list[str] = ["ada", "ada@example.org", "nobody@example.org"]
    for case in each_case(cases):
        with case as name:
            del query_plans.statements[:]
            await address_resolution.find_sign_in_user_id(large_account.environment, name)
            assert query_plans.statements
            for statement, _ in list(query_plans.statements):
                table = statement.split("FROM ")[1].split()[0]
                if table in ("users", "addresses"):
                    plan = await query_plans.explain_select(
                        address_resolution.find_sign_in_user_id(large_account.environment, name),
                        table,
                    )
                    assert "SCAN" not in plan, plan
                    assert "Seq Scan on users" not in plan, plan


@pytest.mark.usefixtures("large_account")
async def test_list_of_users_is_read_in_index_order(
    root: GraphQLClient, query_plans: QueryPlanRecorder
) -> None:
    document = """query ($after: String) { users(after: $after) {
        nodes { username } pageInfo { endCursor } } }"""
    end_cursor = (await root(document))["users"]["pageInfo"]["endCursor"]
    for after in (None, end_cursor):
        plan = await query_plans.explain_select(root(document, after=after), "users")
        assert "TEMP B-TREE" not in plan, plan
        assert "Seq Scan" not in plan, plan


async def test_mailboxes_are_found_by_path_and_user(
    large_account: GraphQLClient, query_plans: QueryPlanRecorder
) -> None:
    for document in (
        '{ mailbox(by: {path: "Other"}) { path } }',
        "{ viewer { user { mailboxes { nodes { path } } } } }",
    ):
        plan = await query_plans.explain_select(large_account(document), "mailboxes")
        assert "SCAN mailboxes" not in plan, plan


async def test_pages_of_all_mailboxes_use_the_index_of_each(
    large_account: GraphQLClient, query_plans: QueryPlanRecorder
) -> None:
    document = """{ viewer { user { mailboxes(first: 30) { nodes {
      messages(first: 3) { nodes { subject } } } } } } }"""
    plan = await query_plans.explain_select(large_account(document), "messages", containing="json")
    assert "messages_by_age" in plan, plan
    assert "SCAN messages" not in plan, plan
    assert "Seq Scan" not in plan, plan


SHARED_MAILBOXES = "{ viewer { user { sharedMailboxes { nodes { id } } } } }"
SHARED_PAGE = """query ($b: ID!) { mailbox(by: {id: $b}) {
  messages(first: 50) { nodes { subject } } } }"""


async def test_shares_are_found_by_index_and_not_read_without_shares(
    large_account: GraphQLClient, bob: GraphQLClient, query_plans: QueryPlanRecorder
) -> None:
    eve = await make_client(large_account.environment, large_account.http, "eve")
    assert await share_mailbox(large_account, eve, "READ", path="INBOX") == []
    mailbox_id = mailbox_global_id((await large_account.load_mailbox()).id)
    plan = await query_plans.explain_select(eve(SHARED_PAGE, b=mailbox_id), "messages")
    assert "messages_by_age" in plan, plan
    assert not has_sort(plan), plan
    plan = await query_plans.explain_select(eve(SHARED_MAILBOXES), "mailboxes")
    assert "mailbox_shares_of_user" in plan, plan
    (message, *_) = await list_message_ids(large_account, "INBOX")
    query = eve("query ($m: ID!) { message(by: {id: $m}) { id } }", m=message)
    plan = await query_plans.explain_select(query, "messages")
    assert "messages_pkey" in plan or "INTEGER PRIMARY KEY" in plan or "pk_messages" in plan, plan
    for client in (large_account, bob):  # who have no shared mailboxes
        del query_plans.statements[:]
        await client(INBOX_PAGE, first=50)
        # without the statement for the credential
        statements = [sql for sql, _ in query_plans.statements if "api_keys" not in sql]
        assert statements
        assert not any("mailbox_shares" in sql for sql in statements)


async def test_export_reads_the_messages_of_a_user_in_index_order(
    large_account: GraphQLClient, query_plans: QueryPlanRecorder
) -> None:
    ctx = client_context(large_account)
    position: export_writer.ExportPosition = None
    for _ in range(3):
        query = export_writer.encode_next_chunk(
            ctx, ExportFormat.JSON, ArchiveState(), None, position
        )
        plan = await query_plans.explain_select(query, "messages", containing="LIMIT")
        assert "messages_of_user" in plan
        assert "TEMP B-TREE" not in plan
        assert "Sort" not in plan.partition("JOIN")[0]
        chunk = await export_writer.encode_next_chunk(
            ctx, ExportFormat.JSON, ArchiveState(), None, position
        )
        assert chunk is not None
        position = chunk.next_position
