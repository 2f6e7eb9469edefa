"""How the stores find what is read most: by which index, and without looking at all there is."""

import shutil
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
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
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.store.columns import select_columns
from models.store.database import Database
from models.users.roles import Scope
from models.users.tables import User
from resolvers.mailboxes.loaders import NewMailboxes, create_mailboxes
from resolvers.messages import computed_fields
from resolvers.messages import loaders as message_loaders
from resolvers.search import index_query
from resolvers.transfer import export_writer
from tests.conftest import CHEAP, Client, Clock, context, make_client, make_key, receive
from tests.support.accounts.shared_mailboxes import box_id, keys, share
from tests.support.operations.bulk_operations import call, inbox
from tests.support.stores import store_fixtures
from tests.support.stores.query_plans import Plans, explained

MANY = 4000  # messages of a folder
DAY = 86_400


async def _fill(url: str, folder: Path) -> None:
    """Two accounts with a large folder each, nearly all of it seen and indexed."""
    blobs, clock = FolderStore(folder / "blobs"), Clock()
    world = Environment(Database(url), blobs, signing_secret=b"s" * 32, options=CHEAP, now=clock)
    async with httpx.AsyncClient() as http:
        ada, bob = [await make_client(world, http, name) for name in ("ada", "bob")]
    await create_mailboxes(context(ada), NewMailboxes(["Other"]))
    for client in (ada, bob):
        await receive(client, "Hello duck")
        await _copy(client, clock)
    await _crowd(world, ada.user)
    if world.database.dialect == "postgresql":
        async with world.database.engine.begin() as connection:
            for table in ("messages", "users", "addresses", "search_words"):
                await connection.execute(text(f"ANALYZE {table}"))
    await blobs.close()
    await world.database.close()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is filled once, to be copied for each test."""
    return tmp_path_factory.mktemp("filled")


@pytest.fixture(scope="module")
def sqlite_filled(sqlite_template: Path, filled: Path) -> Path:
    store_fixtures.run(_fill(store_fixtures.copied(sqlite_template, filled), filled))
    return filled / "mail.db"


@pytest.fixture(scope="module")
def postgres_filled(postgres: str, filled: Path) -> str:
    url = store_fixtures.run(store_fixtures.beside(postgres, "filled"))
    store_fixtures.run(store_fixtures.migrated(url))
    store_fixtures.run(store_fixtures.left_alone(url))
    store_fixtures.run(_fill(url, filled))
    return url


@pytest.fixture(params=store_fixtures.STORES)
async def database(
    request: pytest.FixtureRequest, filled: Path, tmp_path: Path
) -> AsyncIterator[Database]:
    """A copy of the filled store."""
    if request.param == "sqlite":
        url = store_fixtures.copied(request.getfixturevalue("sqlite_filled"), tmp_path)
    else:
        url = await store_fixtures.beside(
            request.getfixturevalue("postgres_filled"), "copy", copied=True
        )
    shutil.copytree(filled / "blobs", tmp_path / "blobs")
    database = store_fixtures.warmed(Database(url))
    yield database
    await database.close()


@pytest.fixture
def clock() -> Clock:
    """It is later than all that is stored."""
    clock = Clock()
    clock.tick(seconds=2 * MANY * 60)
    return clock


async def _known(world: Environment, http: httpx.AsyncClient, name: str) -> Client:
    asked = select(*select_columns(User)).where(col(User.username) == name)
    (row,) = await world.database.read(asked)
    secret = await make_key(world, f"{name}-later", user_id=row.id, scopes=[Scope.MASTER])
    return Client(http, world, User(**row._asdict()), secret)


@pytest.fixture
async def full(world: Environment, http: httpx.AsyncClient) -> Client:
    return await _known(world, http, "ada")


@pytest.fixture
async def bob(world: Environment, http: httpx.AsyncClient) -> Client:
    return await _known(world, http, "bob")


async def _copy(client: Client, clock: Clock) -> None:
    """The message of a client, many times."""
    world, user_id = client.world, client.user.id
    asked = select(*select_columns(Message)).where(col(Message.user_id) == user_id)
    (row,) = await world.database.read(asked)
    given = []
    for n in range(2, MANY):
        clock.tick(seconds=60)
        own = {"id": world.new_id(), "uid": n, "listed_at": clock(), "seen": n % 100 > 0}
        if n % 20 == 1:
            own["snoozed_until"] = clock() + timedelta(days=30)
        given.append({**dict(zip(row._fields, row, strict=True)), **own, "subject": f"Number {n}"})
    async with world.write_session() as session:
        await (await session.connection()).execute(insert(Message), given)
    while await index_worker.index_next_batch(world):
        pass


async def _crowd(world: Environment, like: User) -> None:
    given = [
        {**like.model_dump(), "id": world.new_id(), "username": f"n{n}", "username_key": f"n{n}"}
        for n in range(3000)
    ]
    async with world.write_session() as session:
        await (await session.connection()).execute(insert(User), given)


@pytest.fixture
def plans(full: Client) -> Iterator[Plans]:
    with explained(full.world) as made:
        yield made


PAGE = """
query ($first: Int, $after: String, $last: Int, $before: String, $filter: MessageFilter) {
  viewer { user { mailbox(by: {specialUse: INBOX}) {
    messages(first: $first, after: $after, last: $last, before: $before, filter: $filter) {
      nodes { subject } pageInfo { startCursor endCursor } } } } }
}
"""


def sorts(plan: str) -> bool:
    return "TEMP B-TREE" in plan or "Sort" in plan


async def test_a_page_of_a_folder_is_read_in_its_order(full: Client, plans: Plans) -> None:
    at = (await full(PAGE, first=50))["viewer"]["user"]["mailbox"]["messages"]["pageInfo"]
    for ask in (
        {"first": 50},
        {"last": 50},
        {"first": 50, "after": at["endCursor"]},
        {"last": 50, "before": at["endCursor"]},
    ):
        plan = await plans.of(full(PAGE, **ask), "messages")
        assert "messages_by_age" in plan, plan
        assert not sorts(plan), plan


async def test_the_unseen_have_an_index_of_their_own(full: Client, plans: Plans) -> None:
    plan = await plans.of(full(PAGE, first=50, filter={"seen": False}), "messages")
    assert "messages_unseen" in plan, plan
    assert not sorts(plan), plan


@pytest.mark.parametrize("name", ["messageDelete", "messageDeduplicate"])
@pytest.mark.parametrize("users", [{}, {"users": {"usernames": ["ada", "bob"]}}])
async def test_a_selection_is_found_by_its_folder(
    full: Client, root: Client, plans: Plans, name: str, users: dict[str, Any]
) -> None:
    given: dict[str, Any] = {"select": {**inbox("5:9"), **users}}
    client, trial = (root if users else full), {"options": {"validateOnly": True}}
    work = call(client, name, **given, **trial)
    plan = await plans.of(work, "messages", asking="messages.modseq, messages.")
    assert "messages_by_uid" in plan, plan


async def test_all_mail_of_an_account_is_read_in_its_order(full: Client, plans: Plans) -> None:
    document = "{ viewer { user { messages(first: 50) { nodes { subject } } } } }"
    plan = await plans.of(full(document), "messages")
    assert "messages_of_user" in plan, plan
    assert not sorts(plan), plan


async def test_what_is_snoozed_is_found_without_reading_all_mail(
    full: Client, plans: Plans
) -> None:
    document = """{ viewer { user { messages(first: 50, filter: {snoozed: true}) {
        nodes { subject } } } } }"""
    plan = await plans.of(full(document), "messages")
    if full.world.database.dialect == "sqlite":
        assert "messages_snoozed" in plan, plan
        assert not sorts(plan), plan
    else:  # which sorts what is snoozed, and finds it by either index of that alone
        assert "messages_snoozed" in plan or "messages_to_wake" in plan, plan


async def test_labels_are_counted_by_what_has_keywords(full: Client, plans: Plans) -> None:
    set_ = 'mutation { labelSet(input: {keyword: "work"}) { errors { code } } }'
    assert (await full(set_))["labelSet"]["errors"] == []
    document = "{ viewer { user { labels { total unseen } } } }"
    plan = await plans.of(full(document), "messages", asking="json")
    assert "messages_with_keywords" in plan, plan


async def test_what_is_due_is_found_by_its_end(full: Client, plans: Plans) -> None:
    plan = await plans.of(snooze_worker.return_due_messages(full.world), "messages")
    assert "messages_to_wake" in plan, plan


@pytest.mark.parametrize("query", ["17", "number 39*", "39* -hello"])
async def test_words_are_looked_up_and_the_folder_is_not_read(
    full: Client, plans: Plans, query: str
) -> None:
    document = """query ($query: String!) { viewer { user { messages(filter: {query: $query}) {
        nodes { subject } } } } }"""
    found = await plans.all_of(full(document, query=query), "messages")
    assert len(found) >= 2  # what waits is looked for, and the words
    for plan in found:
        assert "messages_of_user" not in plan, plan
        assert "Seq Scan" not in plan, plan
        assert "SCAN messages" not in plan, plan


@pytest.mark.parametrize("filter_", [{}, {"seen": False}, {"subject": "number"}])
async def test_a_word_that_most_messages_have_is_looked_for_among_the_newest(
    full: Client, plans: Plans, filter_: dict[str, Any]
) -> None:
    document = """query ($filter: MessageFilter!) { messages(filter: $filter, first: 10) {
        nodes { subject } } }"""
    asked = {"query": "number", **filter_}
    found = await plans.all_of(full(document, filter=asked or None), "messages")
    if full.world.database.dialect == "sqlite":
        *_, walk, rows = found
        assert "messages_of_user" in walk, walk
        assert not sorts(walk), walk
        assert "SEARCH messages USING INTEGER PRIMARY KEY" in rows, rows
    for plan in found:
        assert "SCAN messages" not in plan, plan
        assert "Seq Scan on messages" not in plan, plan
    assert len((await full(document, filter=asked or None))["messages"]["nodes"]) == 10


async def test_what_waits_to_be_indexed_is_found_by_its_owner(full: Client, plans: Plans) -> None:
    for owners in ([full.user.id], [full.user.id, full.user.id + 1]):
        plan = await plans.of(
            index_query.load_unindexed_messages(context(full), owners), "messages"
        )
        assert "messages_waiting" in plan or "messages_to_index" in plan, plan


async def test_the_indexer_finds_what_waits_without_reading_the_rest(
    full: Client, plans: Plans
) -> None:
    plan = await plans.of(index_worker.index_next_batch(full.world), "messages")
    assert "messages_to_index" in plan, plan
    assert not sorts(plan), plan


async def test_a_message_is_found_by_its_uid_and_by_its_id(full: Client, plans: Plans) -> None:
    (row,) = await full.world.database.read(select(col(Message.id)).limit(1))
    document = "query ($ref: MessageRef!) { message(by: $ref) { subject } }"
    plan = await plans.of(
        full(document, ref={"id": global_ids.encode("Message", row.id)}), "messages"
    )
    assert "PRIMARY KEY" in plan or "pk_messages" in plan, plan
    box = {"mailbox": {"path": "INBOX"}, "uid": 7}
    plan = await plans.of(
        message_loaders.find_message_id_by_uid(context(full), (await full.box()).id, 7), "messages"
    )
    assert "messages_by_uid" in plan, plan
    assert (await full(document, ref={"uid": box}))["message"]["subject"] == "Number 7"


async def test_numbers_in_a_folder_are_counted_in_its_index(full: Client, plans: Plans) -> None:
    if full.world.database.dialect == "postgresql":  # what is new is not counted by index alone
        async with full.world.database.engine.connect() as connection:
            apart = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await apart.execute(text("VACUUM messages"))
    asked = select(col(Message.id)).where(col(Message.user_id) == full.user.id)
    rows = await full.world.database.read(asked.order_by(col(Message.uid)).limit(20))
    plan = await plans.of(
        computed_fields.load_sequence_numbers(context(full), [row.id for row in rows]), "messages"
    )
    assert "messages_by_uid" in plan, plan
    assert "SCAN" not in plan, plan
    assert "Seq Scan" not in plan, plan


@pytest.mark.parametrize("name", ["ada", "ada@example.org", "nobody@example.org"])
async def test_a_name_is_looked_up_by_index(full: Client, plans: Plans, name: str) -> None:
    await address_resolution.find_sign_in_user(full.world, name)
    assert plans.sent
    for statement, _ in list(plans.sent):
        table = statement.split("FROM ")[1].split()[0]
        if table in ("users", "addresses"):
            plan = await plans.of(address_resolution.find_sign_in_user(full.world, name), table)
            assert "SCAN" not in plan, plan
            assert "Seq Scan on users" not in plan, plan


@pytest.mark.usefixtures("full")
async def test_a_list_of_users_is_read_in_its_order(root: Client, plans: Plans) -> None:
    document = """query ($after: String) { users(after: $after) {
        nodes { username } pageInfo { endCursor } } }"""
    first = (await root(document))["users"]["pageInfo"]["endCursor"]
    for after in (None, first):
        plan = await plans.of(root(document, after=after), "users")
        assert "TEMP B-TREE" not in plan, plan
        assert "Seq Scan" not in plan, plan


async def test_a_folder_is_found_by_path_and_the_tree_by_its_user(
    full: Client, plans: Plans
) -> None:
    for document in (
        '{ mailbox(by: {path: "Other"}) { path } }',
        "{ viewer { user { mailboxes { path } } } }",
    ):
        plan = await plans.of(full(document), "mailboxes")
        assert "SCAN mailboxes" not in plan, plan


SHARED = "{ viewer { user { sharedMailboxes { nodes { id } } } } }"
SHARED_PAGE = """query ($b: ID!) { mailbox(by: {id: $b}) {
  messages(first: 50) { nodes { subject } } } }"""


async def test_what_is_shared_is_found_by_index_and_costs_nobody_else(
    full: Client, bob: Client, plans: Plans
) -> None:
    eve = await make_client(full.world, full.http, "eve")
    assert await share(full, eve, "READ", path="INBOX") == []
    box = box_id((await full.box()).id)
    plan = await plans.of(eve(SHARED_PAGE, b=box), "messages")
    assert "messages_by_age" in plan, plan
    assert not sorts(plan), plan
    plan = await plans.of(eve(SHARED), "mailboxes")
    assert "mailbox_shares_of_user" in plan, plan
    (message, *_) = await keys(full, "INBOX")
    one = eve("query ($m: ID!) { message(by: {id: $m}) { id } }", m=message)
    plan = await plans.of(one, "messages")
    assert "messages_pkey" in plan or "INTEGER PRIMARY KEY" in plan or "pk_messages" in plan, plan
    for client in (full, bob):  # with whom nothing is shared
        del plans.sent[:]
        await client(PAGE, first=50)
        asked = [sql for sql, _ in plans.sent if "api_keys" not in sql]  # but the credential
        assert asked
        assert not any("mailbox_shares" in sql for sql in asked)


async def test_an_export_goes_through_an_account_by_its_age(full: Client, plans: Plans) -> None:
    ctx = context(full)
    place: export_writer.ExportPosition = None
    for _ in range(3):
        work = export_writer.write_next_chunk(ctx, ExportFormat.JSON, ArchiveState(), None, place)
        plan = await plans.of(work, "messages", asking="LIMIT")
        assert "messages_of_user" in plan
        assert "TEMP B-TREE" not in plan
        assert "Sort" not in plan.partition("JOIN")[0]
        cut = await export_writer.write_next_chunk(
            ctx, ExportFormat.JSON, ArchiveState(), None, place
        )
        assert cut is not None
        place = cut.next_position
