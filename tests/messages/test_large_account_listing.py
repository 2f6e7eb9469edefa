"""Lists of an account with 100,000 messages read a page, whatever the store's statistics are."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import select, text
from sqlmodel import col

from graph.schema import schema as made
from graph.types import global_ids
from mail.storage.blobs.object_stores import FolderStore
from models.runtime.environment import Environment
from models.store.columns import select_columns
from models.store.database import Database
from models.users.roles import Scope
from models.users.tables import User
from tests.conftest import CHEAP, Client, Clock, make_client, make_key, receive
from tests.support.accounts.large_account import Effort, fill, measured
from tests.support.lists.list_fields import PARENTS, call, list_fields, required
from tests.support.stores import store_fixtures

MANY, FEW, OTHERS = 100_000, 20, 12  # messages of ada, of each other account; other accounts
MOST = 6000  # rows that a statement reads; of 100 messages one is unseen
BASE = 1 << 40
schema = made._schema  # noqa: SLF001 - what graphql-core runs
STATISTICS = ("none", "bounded", "whole")
PAGE = "(first: 50%s) { nodes { id threadId thread { id subject messageCount unseenCount } } }"
INBOX = '{ viewer { user { mailbox(by: {path: "INBOX"}) { messages%s } } } }'
ALL = "{ viewer { user { messages%s } } }"
MESSAGES = [
    *(kind % (PAGE % more) for kind in (INBOX, ALL) for more in (
        "", ", filter: {seen: false}", ", filter: {seen: true}", ", orderBy: RECEIVED_ASC",
    )),
    ALL % (PAGE % f', filter: {{thread: "{global_ids.encode("Thread", BASE + 7)}"}}'),
    INBOX % (PAGE % ', filter: {mailbox: {path: "INBOX"}, uids: "1500,1502,1504,1506,1508,1510"}'),
    INBOX % "(first: 3) { nodes { id thread { id participants { address } mailboxes { path } "
    "messages(first: 20) { totalCount nodes { id } } } } }",
    INBOX % "(last: 50) { nodes { id } } two: messages(first: 20) { nodes { id thread { id } } }",
]  # fmt: skip


async def _fill(url: str, folder: Path) -> None:
    blobs = FolderStore(folder / "blobs")
    world = Environment(Database(url), blobs, signing_secret=b"s" * 32, options=CHEAP, now=Clock())
    async with httpx.AsyncClient() as http:
        for nth in range(OTHERS + 1):
            client = await make_client(world, http, f"user{nth}" if nth else "ada")
            await receive(client, "Hello duck")
            await fill(client, FEW if nth else MANY, base=BASE + nth * 10 * MANY)
    await blobs.close()
    await world.database.close()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("large")


@pytest.fixture(scope="module")
def sqlite_filled(sqlite_template: Path, filled: Path) -> str:
    url = store_fixtures.copied(sqlite_template, filled)
    store_fixtures.run(_fill(url, filled))
    return url


@pytest.fixture(scope="module")
def postgres_filled(postgres: str, filled: Path) -> str:
    url = store_fixtures.run(store_fixtures.beside(postgres, "large"))
    store_fixtures.run(store_fixtures.migrated(url))
    store_fixtures.run(store_fixtures.left_alone(url))
    store_fixtures.run(_fill(url, filled))
    return url


CASES = [(store, kind) for store in store_fixtures.STORES for kind in STATISTICS]


@pytest.fixture(params=[one for one in CASES if one[0] == "sqlite" or one[1] == "whole"], ids=str)
async def database(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """The filled store, with these statistics. Tests only read."""
    store, statistics = request.param
    database = store_fixtures.warmed(Database(request.getfixturevalue(f"{store}_filled")))
    async with database.engine.begin() as connection:
        if store == "sqlite":
            await connection.execute(text("PRAGMA analysis_limit=0"))
        await connection.execute(text("ANALYZE"))
        if statistics == "none":
            await connection.execute(text("DELETE FROM sqlite_stat1"))
    if statistics == "bounded":
        await database.refresh_planner_statistics()
    await database.close()
    database = store_fixtures.warmed(Database(request.getfixturevalue(f"{store}_filled")))
    yield database
    await database.close()


@pytest.fixture
async def ada(world: Environment, http: httpx.AsyncClient) -> Client:
    asked = select(*select_columns(User)).where(col(User.username) == "ada")
    (row,) = await world.database.read(asked)
    secret = await make_key(world, uuid4().hex, user_id=row.id, scopes=[Scope.MASTER])
    return Client(http, world, User(**row._asdict()), secret)


@pytest.fixture
def effort(ada: Client) -> Iterator[Effort]:
    with measured(ada.world) as found:
        yield found


async def _too_many(client: Client, effort: Effort, document: str) -> list[str]:
    found = await effort.of(client.raw(document))
    return [f"{rows} rows: {document}\n{sql}" for sql, rows in found.items() if rows > MOST]


async def test_a_page_of_messages_reads_no_more_than_its_rows(ada: Client, effort: Effort) -> None:
    problems = []
    for document in MESSAGES:
        assert (await ada(document))["viewer"]["user"] is not None
        problems += await _too_many(ada, effort, document)
    assert not problems, "\n\n".join(problems)


async def test_every_list_reads_no_more_than_its_rows(ada: Client, effort: Effort) -> None:
    dice, problems, of_messages = Random(1), list[str](), 0  # noqa: S311 - no secrets are made
    for of in list_fields(schema):
        around: Any = next(
            (one for one in PARENTS[of.parent] if "viewer" in one), PARENTS[of.parent][0]
        )
        given = required(schema, of, dice) | {"first": "20"}
        selected = "{ nodes { __typename } }" if of.connected else "{ __typename }"
        field = call(of, "x", given, selected)
        problems += await _too_many(ada, effort, f"{{ {around.replace('%s', field)} }}")
        of_messages += bool(effort.of_messages)
    assert of_messages >= 5
    assert not problems, "\n\n".join(problems)
