"""Real stores, a clock that ticks when told, and a client that speaks GraphQL over HTTP."""

import asyncio
import gc
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.orm import make_transient_to_detached

from graph.app import create_app
from mail.recipients import address_resolution
from mail.smtp import lmtp
from mail.smtp.lmtp import LmtpListener
from mail.storage import message_insert, message_trace, received_messages
from mail.storage.blobs.object_stores import FolderStore
from models.auth.credentials import ApiKey
from models.runtime.environment import Environment
from models.runtime.options import Options
from models.store.columns import ColumnRow, core_table
from models.store.database import Database
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.auth import authentication
from resolvers.context import Context, Viewer
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from tests.support import item_selection
from tests.support.mail_servers.lmtp_client import Neighbour, connect
from tests.support.stores import counter_check, store_fixtures

if TYPE_CHECKING:
    from tests.support.servers.live_server import House

pytest_plugins = ["tests.support.servers.s3_server"]

CHEAP = Options(
    argon2_memory=8,
    argon2_time=1,
    auto_create_domains=True,
    hostname="mx.example.org",
    mx_private=True,  # the servers of tests are on loopback
    restore_window=timedelta(0),  # tests of the collector see at once what it removes
    webauthn_id="mail.example.org",
    webauthn_origins=("https://mail.example.org",),
)


# the columns of each account's user, and the secret of its key
Accounts = dict[str, tuple[dict[str, Any], str]]
ACCOUNTS = pytest.StashKey[Accounts]()
Place = TypeVar("Place")
PrepareStore = Callable[[tuple[str, ...]], tuple[Place, Accounts]]


class Clock:
    """Stands still until told otherwise."""

    def __init__(self) -> None:
        self.time = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def tick(self, **by: float) -> None:
        self.time += timedelta(**by)


@dataclass
class Client:
    """A GraphQL client for one user, or for a key of the platform."""

    http: httpx.AsyncClient
    world: Environment
    user: User
    secret: str

    @property
    def address(self) -> str:
        return f"{self.user.username}@example.org"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret}"}

    async def __call__(self, document: str, **variables: Any) -> Any:
        """Run `document` and return its data; any GraphQL error fails the test."""
        answer = await self.raw(document, **variables)
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    async def raw(self, document: str, **variables: Any) -> Any:
        response = await self.http.post(
            "/graphql",
            json={"query": document, "variables": variables},
            headers=self.headers,
        )
        return response.json()

    async def box(self, path: str = "INBOX") -> ColumnRow:
        """This user's folder."""
        return await mailbox_loaders.require_mailbox(
            context(self), mailbox_loaders.MailboxSelector(path=path)
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put what takes long first, and leave to CI what would make it longer still."""
    left = item_selection.left_out(items)
    if left:
        config.hook.pytest_deselected(items=list(left))
        items[:] = [item for item in items if item not in left]
    items.sort(key=item_selection.longest_first)
    gc.collect()
    gc.freeze()  # modules and tests stay: looking through them is a tenth of the whole time
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_fixtures.sqlite_template(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="session")
def sqlite_prepared(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> PrepareStore[Path]:
    """SQLite stores to copy, with accounts in them."""

    @cache
    def prepare(names: tuple[str, ...]) -> tuple[Path, Accounts]:
        folder = tmp_path_factory.mktemp("prepared")
        accounts = store_fixtures.run(
            make_accounts(store_fixtures.copied(sqlite_template, folder), names, folder)
        )
        return folder / "mail.db", accounts

    return prepare


@pytest.fixture(scope="session")
def postgres_prepared(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> PrepareStore[str]:
    """Schemas of the PostgreSQL database, with the rows of accounts."""

    async def make(names: tuple[str, ...]) -> Accounts:
        database = Database(postgres)
        await store_fixtures.emptied(database)
        await database.close()
        accounts = await make_accounts(postgres, names, tmp_path_factory.mktemp("prepared"))
        await store_fixtures.keep_rows(postgres, "_".join(names))
        return accounts

    @cache
    def prepare(names: tuple[str, ...]) -> tuple[str, Accounts]:
        return "_".join(names), store_fixtures.run(make(names))

    return prepare


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of this worker's migrated database."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    server = store_fixtures.postgres_server()
    url = store_fixtures.run(
        store_fixtures.new_database(server.get_uri(), f"merganser_{worker or 'alone'}")
    )
    store_fixtures.run(store_fixtures.migrated(url))
    store_fixtures.run(store_fixtures.can_be_emptied(url))
    yield url
    server.cleanup()


@pytest.fixture(params=store_fixtures.STORES)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """A store with nothing but the accounts of the test's fixtures."""
    names = _prepared_names(request)
    if request.param == "sqlite":
        template: Path = request.getfixturevalue("sqlite_template")
        if names:
            template, request.node.stash[ACCOUNTS] = request.getfixturevalue("sqlite_prepared")(
                names
            )
        database = store_fixtures.warmed(Database(store_fixtures.copied(template, tmp_path)))
    else:
        database, schema = store_fixtures.warmed(Database(request.getfixturevalue("postgres"))), ""
        if names:
            schema, request.node.stash[ACCOUNTS] = request.getfixturevalue("postgres_prepared")(
                names
            )
        await store_fixtures.emptied(database, schema)
    yield database
    await database.close()
    await asyncio.sleep(0)  # what was cut off amid something is gone with the loop's next turn


def _prepared_names(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The fixtures of the test that are accounts of this file, in a fixed order."""
    known = request.node._fixtureinfo.name2fixturedefs  # noqa: SLF001
    if any(len(known.get(name, ())) != 1 for name in ("clock", "world")):
        return ()  # no accounts, or accounts with another clock or other options
    ours = known["clock"][0].baseid
    return tuple(name for name in PREPARED if name in known and known[name][-1].baseid == ours)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def world(database: Database, clock: Clock, tmp_path: Path) -> AsyncIterator[Environment]:
    blobs = FolderStore(tmp_path / "blobs")
    made = Environment(database, blobs, signing_secret=b"s" * 32, options=CHEAP, now=clock)
    yield made
    await authentication.wait_for_background_tasks(
        made
    )  # uses of keys are noted behind the answers
    await message_trace.flush(made)
    await blobs.close()


@pytest.fixture
async def counted(world: Environment) -> AsyncIterator[None]:
    """After a test, all that the store counts is counted again."""
    yield
    await counter_check.recount(world)


@pytest.fixture
async def examined(world: Environment) -> AsyncIterator[None]:
    """After a test, all is counted again, and the verifier finds nothing."""
    yield
    await counter_check.examine(world)


@pytest.fixture
async def http(world: Environment, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(world, spool_folder=tmp_path)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
    await app.end_subscriptions()


async def make_key(world: Environment, name: str, **more: Any) -> str:
    """The secret of a new API key."""
    secret = f"mgk_{name}".ljust(47, "k")
    key = ApiKey(
        id=world.new_id(),
        name=name,
        digest=hashlib.sha256(secret.encode()).hexdigest(),
        created_at=world.now(),
        **more,
    )
    async with world.write_session() as session:
        session.add(key)
    return secret


async def make_user(world: Environment, name: str, **more: Any) -> User:
    """A user of example.org, with folders and the address name@example.org."""
    admin = Context(world, Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER})))
    more = {"password_disabled": "password" not in more} | more
    new = NewUser(username=name, address=f"{name}@example.org", **more)
    return await creation_create.create_user(admin, new)


async def make_client(
    world: Environment, http: httpx.AsyncClient, name: str, **more: Any
) -> Client:
    user = await make_user(world, name, **more)
    scopes = [Scope.MASTER]
    secret = await make_key(world, name, user_id=user.id, role=user.role, scopes=scopes)
    return Client(http, world, user, secret)


# the accounts that are made once in each worker and copied with the store
PREPARED: dict[str, Role] = {
    "ada": Role.USER, "bob": Role.USER, "root": Role.ROOT, "over": Role.ADMIN,
}  # fmt: skip


async def make_accounts(url: str, names: Iterable[str], folder: Path) -> Accounts:
    """Make these of the `PREPARED` accounts in an empty store."""
    database, blobs = Database(url), FolderStore(folder / "blobs")
    world = Environment(database, blobs, signing_secret=b"s" * 32, options=CHEAP, now=Clock())
    accounts = {name: await _make_account(world, None, name) for name in names}
    await database.close()
    await blobs.close()
    return {
        name: (
            {column.name: getattr(client.user, column.name) for column in core_table(User).columns},
            client.secret,
        )
        for name, client in accounts.items()
    }


async def _make_account(world: Environment, http: Any, name: str) -> Client:
    if name != "root":
        return await make_client(world, http, name, role=PREPARED[name])
    secret = await make_key(world, "root", role=Role.ROOT, scopes=[Scope.MASTER])
    nobody = User(
        id=0,
        username="",
        username_key="",
        tenant_id=0,
        created_at=world.now(),
        updated_at=world.now(),
    )
    return Client(http, world, nobody, secret)


async def _account(
    request: pytest.FixtureRequest, world: Environment, http: httpx.AsyncClient
) -> Client:
    """The account that a fixture is named after: of the prepared store, or a new one."""
    name = request.fixturename or ""
    if prepared := request.node.stash.get(ACCOUNTS, {}).get(name):
        columns, secret = prepared
        user = User(**deepcopy(columns))
        if user.id:
            make_transient_to_detached(user)
        return Client(http, world, user, secret)
    return await _make_account(world, http, name)


@pytest.fixture
async def ada(
    request: pytest.FixtureRequest, world: Environment, http: httpx.AsyncClient
) -> Client:
    return await _account(request, world, http)


@pytest.fixture
async def bob(
    request: pytest.FixtureRequest, world: Environment, http: httpx.AsyncClient
) -> Client:
    return await _account(request, world, http)


@pytest.fixture
async def root(
    request: pytest.FixtureRequest, world: Environment, http: httpx.AsyncClient
) -> Client:
    """A key of the platform, which belongs to no user."""
    return await _account(request, world, http)


@pytest.fixture
async def over(
    request: pytest.FixtureRequest, world: Environment, http: httpx.AsyncClient
) -> Client:
    """An administrator."""
    return await _account(request, world, http)


@pytest.fixture
async def live(world: Environment, tmp_path: Path) -> AsyncIterator["House"]:
    """A server on a port of its own, for those who follow."""
    from tests.support.servers.live_server import house  # which imports this file

    async with house(world, tmp_path) as made:
        yield made


def context(client: Client, *scopes: Scope) -> Context:
    """What an operation of this client is handed."""
    viewer = Viewer(client.user.id, client.user.role, frozenset(scopes or {Scope.MASTER}))
    return Context(client.world, viewer)


def raw_message(subject: str = "Hello", *, body: str = "Hi there.", **headers: str) -> bytes:
    """A small message, different for each subject."""
    lines = {
        "From": "Carol <carol@example.com>",
        "To": "ada@example.org",
        "Subject": subject,
        "Date": "Tue, 01 Jan 2030 10:00:00 +0000",
        "Message-ID": f"<{hashlib.sha256((subject + body).encode()).hexdigest()[:16]}@example.com>",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return f"{head}\r\n{body}\r\n".encode()


async def receive(
    client: Client, raw: bytes | str = "Hello", sender: str = "carol@example.com"
) -> message_insert.InsertedMessage:
    """Deliver a message, as if it came by LMTP; a text is its subject."""
    message = raw_message(raw) if isinstance(raw, str) else raw
    letter = await received_messages.read_message(message)
    to = await address_resolution.load_recipient(client.world, client.address)
    return await received_messages.store_for_recipient(client.world, letter, to, sender)


@pytest.fixture
async def post(ada: Client, clock: Clock) -> Client:
    """Three messages, a to c, in INBOX, and two folders: Keep, and Brief, where mail ends."""
    for letter in "abc":
        await receive(ada, letter)
        clock.tick(seconds=1)
    for new in (NewMailboxes(["Keep"]), NewMailboxes(["Brief"], retention=timedelta(days=1))):
        await mailbox_loaders.create_mailboxes(context(ada), new)
    return ada


def few_of(client: Client, spool: Path) -> Client:
    """The same client, of a world where two messages are many."""
    small = replace(client.world, options=replace(client.world.options, bulk=2))
    transport = httpx.ASGITransport(app=create_app(small, spool_folder=spool))
    return replace(client, http=httpx.AsyncClient(transport=transport, base_url="http://few"))


@pytest.fixture
async def few(post: Client, tmp_path: Path) -> Client:
    return few_of(post, tmp_path)


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports and imports take few messages at a time."""
    monkeypatch.setattr("resolvers.transfer.export_writer.MAX_CHUNK_MESSAGES", 3)
    monkeypatch.setattr("resolvers.transfer.import_writer.MAX_BATCH_MESSAGES", 4)


@pytest.fixture
async def listener(world: Environment, tmp_path: Path) -> AsyncIterator[LmtpListener]:
    """Takes mail by LMTP."""
    listener = await lmtp.start_lmtp_listener(
        world, "127.0.0.1", 0, spool_folder=tmp_path / "spool"
    )
    yield listener
    await listener.close(1)


@pytest.fixture
async def neighbour(listener: LmtpListener) -> AsyncIterator[Neighbour]:
    """A server that has come to hand over mail."""
    neighbour = await connect(listener.port)
    yield neighbour
    await neighbour.close()


ASIDE = ("BEGIN", "PRAGMA", "SAVEPOINT", "RELEASE")


def heard(database: Database, *aside: str) -> list[str]:
    """Every SQL statement from now on, in order, but those that have one of these parts."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith(ASIDE) and not any(part in statement for part in aside):
            sent.append(statement)

    for engine in database.engines:
        event.listen(engine, "before_cursor_execute", note)
    return sent


@pytest.fixture
def statements(database: Database) -> Any:
    """Every SQL statement sent, in order; `del statements[:]` to start afresh.

    But not that which writes steps of messages, up to a second after they were taken, and not
    that which looks each second for changes of credentials.
    """
    return heard(database, "INSERT INTO message_steps", "credential_changes")
